"""A few pictures beside their views: what an augmentation does to them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup
from PIL import Image

from featpipe.base.space import Augmentation, Preprocessing
from featpipe.base.views import counted_views
from featpipe.decoding.augmentation import is_known
from featpipe.decoding.pixels import load_pixels
from featpipe.decoding.views import load_views
from featpipe.reports.thumbnails import image_uri

PICTURES = 4
SHOWN_VIEWS = 8
"""More are not shown: a row is to be seen at one glance."""


@dataclass(frozen=True)
class SheetPicture:
    """A picture of a contact sheet.

    Attributes
    ----------
    path : str
    image_id : bytes
        SHA-256 of the picture's bytes when its features were computed.
    read : callable
        Returns the bytes of the picture at a path.
    """

    path: str
    image_id: bytes
    read: Callable[[str], bytes]


@dataclass(frozen=True)
class SheetRow:
    """A picture of a sheet with its views.

    Attributes
    ----------
    path : str
    images : list of Markup
        Addresses that hold the picture as the network sees it, then its views 1, 2, …; empty where
        it is gone, changed or unreadable.
    """

    path: str
    images: list[Markup]


@dataclass(frozen=True)
class ContactSheet:
    """What the page shows of views.

    Attributes
    ----------
    words : str
        Which views they are.
    split : str
        Where the pictures are from.
    is_known : bool
        Whether this featpipe draws the same views; if not, there are no rows.
    rows : list of SheetRow
    shown : int
        Views shown of each picture.
    hidden : int
        Views of each picture that are not shown.
    """

    words: str
    split: str
    is_known: bool
    rows: list[SheetRow]
    shown: int
    hidden: int


def contact_sheet(
    pictures: Sequence[SheetPicture],
    preprocessing: Preprocessing,
    augmentation: Augmentation,
    number: int,
    *,
    split: str,
) -> ContactSheet:
    """Make views of pictures anew, from their files, as extraction made them.

    Parameters
    ----------
    pictures : sequence of SheetPicture
    preprocessing : Preprocessing
    augmentation : Augmentation
    number : int
        How many views there are; the first ones are shown.
    split : str
        Where the pictures are from.
    """
    shown, known = min(number, SHOWN_VIEWS), is_known(augmentation)
    return ContactSheet(
        words=counted_views(number, augmentation.policy, augmentation.seed),
        split=split,
        is_known=known,
        rows=[_row(one, preprocessing, augmentation, shown) for one in pictures if known],
        shown=shown,
        hidden=number - shown,
    )


def _row(
    picture: SheetPicture, preprocessing: Preprocessing, augmentation: Augmentation, shown: int
) -> SheetRow:
    try:
        data = picture.read(picture.path)
        if hashlib.sha256(data).digest() != picture.image_id:
            return SheetRow(picture.path, [])
        numbers = range(1, shown + 1)
        views = load_views(data, preprocessing, augmentation, numbers, picture.image_id)
        each = [load_pixels(data, preprocessing), *views]
    # Decoders raise all kinds of errors; none of them may prevent the page.
    except Exception:
        return SheetRow(picture.path, [])
    return SheetRow(picture.path, [image_uri(Image.fromarray(pixels)) for pixels in each])
