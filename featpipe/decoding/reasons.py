"""Says in plain words why a picture cannot be read: no exception's name, no decoder's codes."""

from __future__ import annotations

import io
import re
import struct

from PIL import Image

from featpipe.base.errors import BadImageError
from featpipe.base.text import one_line
from featpipe.decoding.signatures import (
    READ_FORMATS,
    raw_camera_format,
    read_format_of,
    what_else,
)

_MAX_DECLARED = 2**30
"""No picture with more pixels fits into the memory of a decoding process: such a size stands in
damaged files."""

_CUT = re.compile(
    r"truncat|incomplete|not enough image data|end of file|unexpected end|\beof\b|was 0 bytes"
    r"|unpack requires|buffer is not large enough",
    re.IGNORECASE,
)
_UNSUPPORTED = re.compile(
    r"unsupported|not (yet )?supported|unknown pixel mode|unknown compression|cannot handle"
    r"|not implemented|unknown data organization|unrecognized image mode|no loader",
    re.IGNORECASE,
)


def unreadable(stage: str, error: BaseException, data: bytes) -> BadImageError:
    """The error for a picture that a decoder refused.

    Parameters
    ----------
    stage : {"open", "decode", "convert", "resize"}
        The step that failed.
    error : BaseException
        What the decoder raised; its text becomes the ``detail``.
    data : bytes
        The file's content.
    """
    return BadImageError(stage, _in_words(stage, str(error), data), detail=one_line(error))


def _in_words(stage: str, said: str, data: bytes) -> str:
    name = read_format_of(data)
    if name is None:
        known = what_else(data)
        if known is not None:
            return "; ".join(known)
        return f"not a {', '.join(READ_FORMATS[:-1])} or {READ_FORMATS[-1]} image"
    raw = raw_camera_format(data) if name == "TIFF" else None
    if raw is not None:
        return f"{raw}; convert it to JPEG or PNG"
    if "MAX_TEXT" in said:
        return f"a {name} with too much text beside its pixels; save it again without"
    if _UNSUPPORTED.search(said):
        return f"an unusual or damaged {name}, which is not read; save it anew as PNG or JPEG"
    if _CUT.search(said):
        return f"damaged {name}: the file is truncated"
    where = {
        "open": "its header cannot be read",
        "decode": "its pixels cannot be decoded",
        "convert": "its colours or its EXIF data cannot be read",
        "resize": "its pixels cannot be resized",
    }
    return f"damaged {name}: {where[stage]}"


def too_many_pixels(data: bytes, max_pixels: int, said: str = "") -> BadImageError:
    """The error for a picture with more pixels than allowed: says how many, and the option.

    Parameters
    ----------
    data : bytes
        The file's content.
    max_pixels : int
    said : str
        Pillow's message, where it refused the picture itself.
    """
    width, height = _declared_size(data, max_pixels) or (0, 0)
    count, size = width * height, f"{width} x {height}"
    if count <= max_pixels:
        # A frame may be larger than its animation, and a damaged header may open only once.
        counted = re.search(r"\((\d+) pixels\)", said)
        if counted is None:
            advice = "shrink it, or allow more with --max-pixels"
            return BadImageError("open", f"more than {max_pixels} pixels; {advice}")
        count = int(counted[1])
        size = f"a picture or frame of {count} pixels"
    reason = f"{size} is more than {max_pixels} pixels; "
    if count > _MAX_DECLARED:
        return BadImageError("open", reason + "the file is damaged, or the picture too large")
    return BadImageError("open", f"{reason}shrink it, or allow it with --max-pixels {count}")


def _declared_size(data: bytes, max_pixels: int) -> tuple[int, int] | None:
    """Width and height as the file's header says them; no pixel is decoded."""
    if data[:3] == b"GIF" and len(data) >= 10:
        # Opening a GIF may fill a frame.
        width, height = struct.unpack_from("<HH", data, 6)
        return width, height
    Image.MAX_IMAGE_PIXELS = None
    try:
        with Image.open(io.BytesIO(data), formats=READ_FORMATS) as image:
            return image.size
    except Exception:
        return None
    finally:
        Image.MAX_IMAGE_PIXELS = max_pixels
