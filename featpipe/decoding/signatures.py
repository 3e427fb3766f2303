"""Names what a file is by its first bytes, so that a person learns what to do with it."""

from __future__ import annotations

import codecs
import re
import struct

READ_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
"""The only picture formats that are read, as Pillow names them."""

_HEAD_BYTES = 4096
_CONVERT = "convert it to JPEG or PNG"
_FRAMES = "extract its frames as JPEG or PNG"

_READ_SIGNATURES = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG", "PNG"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"II[*+]\0|MM\0[*+]", "TIFF"),
    (rb"....ftypavi[fs]|....ftypmi[fa]1.{4}(?:....){0,16}?avi[fs]", "AVIF"),
)
_OTHER_SIGNATURES = (
    (rb"version https://git-lfs", "a Git LFS pointer", "get the picture with 'git lfs pull'"),
    (rb"....ftyp(?:hei[cxmsf]|hev[cx]|mi[fa]1|msf1)", "a HEIC picture", _CONVERT),
    (rb"....ftypcrx ", "a Canon raw picture (CR3)", _CONVERT),
    (rb"....ftyp(?:iso|mp4|avc|M4V|qt|3g|dash|MSNV)", "a video", _FRAMES),
    (rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture", _CONVERT),
    (rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51", "a JPEG 2000 picture", _CONVERT),
    (rb"II\xbc", "a JPEG XR picture", _CONVERT),
    (rb"8BPS", "a Photoshop picture (PSD)", _CONVERT),
    (rb"gimp xcf", "a GIMP picture (XCF)", _CONVERT),
    (rb"P[14]\s+[#\d]", "a PBM picture", _CONVERT),
    (rb"P[25]\s+[#\d]", "a PGM picture", _CONVERT),
    (rb"P[36]\s+[#\d]", "a PPM picture", _CONVERT),
    (rb"P7\s+(?:#|WIDTH)", "a PAM picture", _CONVERT),
    (rb"P[Ff]4?\s+\d", "a PFM picture", _CONVERT),
    (rb"\0\0\x01\0[^\0]", "an icon (ICO)", _CONVERT),
    (rb"\0\0\x02\0[^\0]", "a cursor (CUR)", _CONVERT),
    (rb"icns\0", "an icon (ICNS)", _CONVERT),
    (rb"#\?(?:RADIANCE|RGBE)", "a Radiance HDR picture", _CONVERT),
    (rb"v/1\x01", "an OpenEXR picture", _CONVERT),
    (rb"DDS ", "a DDS texture", _CONVERT),
    (rb"qoif", "a QOI picture", _CONVERT),
    (rb"\x01\xda[\0\x01][\x01\x02]", "an SGI picture", _CONVERT),
    (rb"\x0a[\0-\x05]\x01[\x01\x02\x04\x08]", "a PCX picture", _CONVERT),
    (rb"\x59\xa6\x6a\x95", "a Sun raster picture", _CONVERT),
    (rb"SIMPLE  =", "a FITS picture", _CONVERT),
    (rb"(?s:.{128})DICM", "a DICOM picture", _CONVERT),
    (rb"....[\x11\x12]\xaf", "a FLI animation", _CONVERT),
    (rb"IIRO|IIRS|MMOR", "an Olympus raw picture (ORF)", _CONVERT),
    (rb"IIU\0", "a Panasonic raw picture (RW2)", _CONVERT),
    (rb"FUJIFILMCCD-RAW", "a Fujifilm raw picture (RAF)", _CONVERT),
    (rb"FOVb", "a Sigma raw picture (X3F)", _CONVERT),
    (rb"%!PS|\xc5\xd0\xd3\xc6", "PostScript (EPS)", _CONVERT),
    (rb"\xd7\xcd\xc6\x9a|\x01\0\0\0(?s:.{36}) EMF", "a Windows metafile", _CONVERT),
    (rb"%PDF-", "a PDF document", "save its pages as PNG"),
    (rb"PK\x03\x04|Rar!\x1a|7z\xbc\xaf|BZh\d1AY", "an archive", "unpack it"),
    (rb"\x1f\x8b|\xfd7zXZ|\x28\xb5\x2f\xfd", "an archive", "unpack it"),
    (rb"\x1a\x45\xdf\xa3|RIFF....AVI ", "a video", _FRAMES),
    (rb"RIFF....WAVE|ID3[\x02-\x04]|OggS|fLaC", "a sound", "remove it"),
    (rb"\x7fELF|MZ[^ -~]", "a program", "remove it"),
    (rb"\x89HDF|\x93NUMPY", "an array", "save its pictures as PNG"),
)
_TEXTS = (
    (rb"(?i:<!doctype html|<html|<head|<body)", "a web page (HTML)", "download the picture itself"),
    (rb"<svg", "an SVG drawing", "render it as PNG"),
    (rb"\s*/\* XPM \*/", "an XPM picture", _CONVERT),
    (rb"\s*#define \S+_width", "an XBM picture", _CONVERT),
)


def read_format_of(data: bytes) -> str | None:
    """Name of the format of :data:`READ_FORMATS` whose signature a file has, None without one."""
    for pattern, name in _READ_SIGNATURES:
        if re.match(pattern, data[:_HEAD_BYTES], re.DOTALL):
            return name
    # Two letters are no proof: text may begin with them.
    return "BMP" if data[:2] == b"BM" and not _is_text(data[:_HEAD_BYTES]) else None


def what_else(data: bytes) -> tuple[str, str] | None:
    """What a file is that is no readable picture, and what to do with it; None if not known.

    Parameters
    ----------
    data : bytes
        The file's content, not empty.
    """
    if data.count(0) == len(data):
        return "only zero bytes", "copy or download it again"
    head = data[:_HEAD_BYTES]
    for pattern, name, advice in _OTHER_SIGNATURES:
        if re.match(pattern, head, re.DOTALL):
            return name, advice
    if _is_text(head):
        for pattern, name, advice in _TEXTS:
            if re.search(pattern, head):
                return name, advice
        return "not a picture but text", "remove it, or give it an ending such as .txt"
    return ("a TGA picture", _CONVERT) if _is_tga(data) else None


def raw_camera_format(data: bytes) -> str | None:
    """What raw camera picture a TIFF is, whose pixels Pillow could not read."""
    if data[8:10] == b"CR":
        return "a Canon raw picture (CR2)"
    return "a raw picture (DNG)" if _DNG_VERSION in _tiff_tags(data) else None


_DNG_VERSION = 50706


def _tiff_tags(data: bytes) -> set[int]:
    """Tags of the first directory of a TIFF file."""
    order = "<" if data[:2] == b"II" else ">"
    try:
        (start,) = struct.unpack_from(order + "I", data, 4)
        (count,) = struct.unpack_from(order + "H", data, start)
        starts = range(start + 2, start + 2 + 12 * count, 12)
        return {struct.unpack_from(order + "H", data, place)[0] for place in starts}
    except struct.error:
        return set()


def _is_text(head: bytes) -> bool:
    """Whether bytes are UTF-8 or mostly ASCII, without control characters."""
    if re.search(rb"[\0-\x08\x0b\x0e-\x1a\x1c-\x1f\x7f]", head):
        return False
    try:
        # An incremental decoder, because the head may end inside a character.
        codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return sum(byte < 128 for byte in head) > 0.75 * len(head)
    return True


def _is_tga(data: bytes) -> bool:
    """Whether a file is a Targa picture: the format has a footer since 1989, and no signature."""
    if data[-18:] == b"TRUEVISION-XFILE.\0":
        return True
    if len(data) < 18:
        return False
    colour_map, kind = data[1], data[2]
    width, height, bits = struct.unpack_from("<HHB", data, 12)
    kinds = (1, 9) if colour_map == 1 else (2, 3, 10, 11)
    return (
        colour_map in (0, 1)
        and kind in kinds
        and width > 0
        and height > 0
        and bits in (8, 15, 16, 24, 32)
    )
