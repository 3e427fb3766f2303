"""Where the card of an exported network lies."""

from __future__ import annotations

from pathlib import Path

from featpipe.base.disk import is_temporary, read_regular
from featpipe.exports.model_card import is_card, is_card_of

CARD_NAME = "README.md"


def card_path(out: Path) -> Path:
    """README.md in a folder of the model's own, ``FILE.README.md`` elsewhere.

    A folder is the model's own if it is not there yet, or holds nothing but exported networks with
    their cards. A README.md that is the card of this very file is replaced, and no other.
    """
    shared = out.parent / CARD_NAME
    if out.name == CARD_NAME:
        return _own_card(out)
    try:
        text = read_regular(shared).decode("utf-8", "replace")
    except FileNotFoundError:
        return shared if _holds_exports_alone(out.parent) else _own_card(out)
    except OSError:
        return _own_card(out)
    return shared if is_card_of(text, out.name) else _own_card(out)


def _own_card(file: Path) -> Path:
    return file.parent / f"{file.name}.{CARD_NAME}"


def _holds_exports_alone(folder: Path) -> bool:
    """Whether all that lies in a folder without README.md are exported networks and their cards."""
    try:
        files = [path for path in folder.iterdir() if not is_temporary(path.name)]
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return all(
        is_card(_text_of(path))
        if path.name.endswith(f".{CARD_NAME}")
        else is_card_of(_text_of(_own_card(path)), path.name)
        for path in files
    )


def _text_of(path: Path) -> str:
    """Content of a file; empty where it cannot be read."""
    try:
        return read_regular(path).decode("utf-8", "replace")
    except OSError:
        return ""
