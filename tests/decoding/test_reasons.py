"""Why a picture cannot be read, in words a person can use."""

from __future__ import annotations

import io
import re
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin
from support.samples import jpeg_bytes

from featpipe.base.errors import BadImageError
from featpipe.decoding.pixels import decode_rgb
from featpipe.decoding.reasons import unreadable

INTERNALS = re.compile(r"[A-Za-z]+(Error|Warning|Exception)\b|Plugin|decoder error|0x[0-9a-f]{6}")


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(width: int = 24, height: int = 18) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def error_of(data: bytes, **options: int) -> BadImageError:
    with pytest.raises(BadImageError) as caught:
        decode_rgb(data, **options)
    return caught.value


def tiff(pixels: np.ndarray, **tags: int) -> bytes:
    """A TIFF of one uncompressed strip: pixels (height, width, channels), integers of any size."""
    height, width, channels = pixels.shape
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    values = {
        256: width,
        257: height,
        258: (8 * pixels.itemsize,) * channels,
        259: 1,
        262: 1,
        273: 0,
        277: channels,
        278: height,
        279: pixels.nbytes,
    }
    values |= {int(tag.removeprefix("t")): value for tag, value in tags.items()}
    for tag, value in values.items():
        directory[tag] = value
    # Pillow adds the end of the directory to the strip's offset, tag 273.
    head = b"II*\0" + struct.pack("<I", 8)
    return head + directory.tobytes(8) + pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()


FTYP = b"\0\0\0\x18ftyp"
FILES = {
    "a HEIC picture; convert it to JPEG or PNG": [
        FTYP + b"heic\0\0\0\0mif1heic",
        FTYP + b"mif1\0\0\0\0mif1heic",
    ],
    "a Canon raw picture (CR3); convert it to JPEG or PNG": [FTYP + b"crx \0\0\0\1"],
    "a video; extract its frames as JPEG or PNG": [
        FTYP + b"isom\0\0\2\0",
        b"RIFF\0\0\0\0AVI LIST",
        b"\x1a\x45\xdf\xa3\x01\0\0\0",
    ],
    "a JPEG XL picture; convert it to JPEG or PNG": [
        b"\xff\x0a\0\0\0\0",
        b"\0\0\0\x0cJXL \r\n\x87\n",
    ],
    "a JPEG 2000 picture; convert it to JPEG or PNG": [
        b"\0\0\0\x0cjP  \r\n\x87\n",
        b"\xff\x4f\xff\x51\0\x2f",
    ],
    "a Photoshop picture (PSD); convert it to JPEG or PNG": [b"8BPS\0\1" + bytes(20)],
    "a PGM picture; convert it to JPEG or PNG": [b"P5 3 2 255\nabcdef", b"P2\n# made\n1 1\n9\n7\n"],
    "an icon (ICO); convert it to JPEG or PNG": [b"\0\0\1\0\1\0\x10\x10"],
    "a Radiance HDR picture; convert it to JPEG or PNG": [b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe"],
    "an OpenEXR picture; convert it to JPEG or PNG": [b"v/1\1\2\0\0\0"],
    "a Panasonic raw picture (RW2); convert it to JPEG or PNG": [b"IIU\0\x18\0\0\0"],
    "a Canon raw picture (CR2); convert it to JPEG or PNG": [b"II*\0\x10\0\0\0CR\2\0" + bytes(9)],
    "a PDF document; save its pages as PNG": [b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"],
    "a web page (HTML); download the picture itself": [
        b"<!DOCTYPE html>\n<html><body>404</body></html>",
        b"\xef\xbb\xbf\n<HTML>\n<svg></svg>",
    ],
    "an SVG drawing; render it as PNG": [b'<?xml version="1.0"?>\n<svg width="9"/>'],
    "a Git LFS pointer; get the picture with 'git lfs pull'": [
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
    ],
    "not a picture but text; remove it, or give it an ending such as .txt": [
        b"not found",
        "Größe\tBM\r\n".encode(),
        b"BM is not enough to be a bitmap",
    ],
    "only zero bytes; copy or download it again": [bytes(1), bytes(50_000)],
    "an archive; unpack it": [b"PK\3\4\x14\0", b"\x1f\x8b\x08\0"],
    "not a JPEG, PNG, WEBP, BMP, GIF, TIFF or AVIF image": [b"\x93\x01\xfe" * 50, b"\xff\xd8"],
    "damaged JPEG: the file is truncated": [b"\xff\xd8\xff\xe0" + b"\xff" * 4],
    "damaged PNG: its header cannot be read": [b"\x89PNG\r\n\x1a\n" + bytes(30)],
    "damaged GIF: its header cannot be read": [b"GIF89a\1"],
    "damaged TIFF: its header cannot be read": [b"MM\0*" + b"\xff" * 20],
    "damaged BMP: its header cannot be read": [b"BM" + bytes(3)],
    "damaged AVIF: its header cannot be read": [
        FTYP + b"avif\0\0\0\0avifmif1",
        FTYP + b"mif1\0\0\0\0mif1avif",
    ],
    "damaged WEBP: its header cannot be read": [b"RIFF\x10\0\0\0WEBPVP8 " + bytes(8)],
}


@pytest.mark.parametrize(
    ("reason", "data"), [(reason, data) for reason, files in FILES.items() for data in files]
)
def test_a_file_is_named_by_its_content(reason: str, data: bytes) -> None:
    assert str(error_of(data)) == f"open: {reason}"


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_a_cut_picture_is_called_damaged_by_its_own_name(file_format: str) -> None:
    data = encode(noise(), file_format)
    for part in (0.3, 0.6, 0.9):
        error = error_of(data[: int(part * len(data))])
        assert error.reason.startswith(f"damaged {file_format}: "), error
        assert not INTERNALS.search(error.reason)
        assert error.detail, "what the decoder said is lost"


def test_no_exceptions_name_and_no_code_of_a_decoder_is_shown() -> None:
    for data in (jpeg_bytes(0), encode(noise(), "PNG"), encode(noise(), "TIFF")):
        for stage in ("open", "decode", "convert", "resize"):
            for error in (
                SyntaxError("broken PNG file (chunk b'IDAT')"),
                OSError("decoder error -2 when reading image file"),
                ValueError("Decompressed data too large for PngImagePlugin.MAX_TEXT_CHUNK"),
                KeyError("x"),
                ZeroDivisionError(),
            ):
                found = unreadable(stage, error, data)
                assert found.stage == stage
                assert not INTERNALS.search(found.reason)
                assert type(error).__name__ in found.detail


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_too_many_pixels_are_counted_and_the_option_is_named(file_format: str) -> None:
    data = encode(noise(101, 100), file_format)
    for limit in (10_099, 4_000):
        assert str(error_of(data, max_pixels=limit)) == (
            f"open: 101 x 100 is more than {limit} pixels; shrink it, or allow it with "
            "--max-pixels 10100"
        )
    assert decode_rgb(data, max_pixels=10_100).size == (101, 100)


def test_a_size_beyond_any_memory_is_not_offered_as_an_option() -> None:
    data = bytearray(encode(noise(), "BMP"))
    data[18:22] = struct.pack("<I", 2_000_000_000)
    assert str(error_of(bytes(data))) == (
        "open: 2000000000 x 18 is more than 50000000 pixels; the file is damaged, or the picture "
        "too large"
    )


def test_signed_16_bit_pixels_are_not_called_32_bit() -> None:
    values = np.array([[[-300], [1200]]], np.int16)
    assert str(error_of(tiff(values, t339=2))) == (
        "convert: integer pixels from -300 to 1200 go beyond 0..65535, so nothing says what is "
        "black and white; save as unsigned 8 or 16 bit"
    )


@pytest.mark.parametrize("extra_samples", [1, 2], ids=["premultiplied", "plain"])
def test_grey_with_alpha_is_read_from_tiffs(extra_samples: int) -> None:
    # Opaque, half transparent, transparent. Premultiplied grey 50 of alpha 128 is grey 100.
    grey = 50 if extra_samples == 1 else 100
    values = np.array([[[80, 255], [grey, 128], [0, 0]]], np.uint8)
    found = np.asarray(decode_rgb(tiff(values, t338=extra_samples)))
    assert found[0, 0].tolist() == [80] * 3
    assert np.abs(found[0, 1].astype(int) - 177).max() <= 1, "over white: 100 * 128/255 + 127"
    assert found[0, 2].tolist() == [255] * 3
