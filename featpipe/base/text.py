"""File and class names are anyone's text: how to show them on one line."""


def visible(text: str) -> str:
    """Control characters and bytes that are no UTF-8, spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
