"""Makes text from outside, such as file and class names, fit to print."""

from collections.abc import Sequence

_SHOWN_NAMES = 5


def some_of(names: Sequence[str]) -> str:
    """The first few names, between quotes, and how many there are where there are more."""
    more = f", … ({len(names)} in all)" if len(names) > _SHOWN_NAMES else ""
    return ", ".join(map(repr, names[:_SHOWN_NAMES])) + more


def one_line(error: BaseException) -> str:
    """What a library's exception says, with its class, on one line of at most 300 characters."""
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text}"[:300]


def is_name(text: str) -> bool:
    """Whether a text can be stored and printed: no NUL, and UTF-8 or a file name's bytes."""
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    # NumPy drops zeros at the end of a text.
    return "\0" not in text


def escape(text: str) -> str:
    """Replace characters that are not printable, and bytes that are not UTF-8, by escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def as_utf8(text: str) -> str:
    """A text that every tool can store: bytes that are not UTF-8 become ``\\xNN``."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
