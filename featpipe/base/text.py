"""Makes text from outside, such as file and class names, safe to print."""


def escape(text: str) -> str:
    """Replace characters that are not printable, and bytes that are not UTF-8, by escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
