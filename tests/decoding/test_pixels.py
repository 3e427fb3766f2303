"""Image bytes to pixels: every mode a picture can have, and everything that is no picture."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms
from support.samples import jpeg_bytes

from featpipe.base.errors import BadImageError
from featpipe.base.space import Preprocessing
from featpipe.decoding import pixels
from featpipe.decoding.pixels import FORMATS, decode_rgb, fit, load_pixels

ORIENTATION = 274  # the EXIF and TIFF tag


def preprocessing(size: int = 16, resize: str = "squash") -> Preprocessing:
    return Preprocessing(size=size, resize=resize, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def noise(width: int = 24, height: int = 18, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize(
    ("size", "resize", "decoded"),
    [
        # The shorter side never gets smaller than what is resized from it.
        (224, "squash", (250, 375)),
        (224, "crop", (500, 750)),
        (100, "squash", (125, 188)),
        (16, "crop", (125, 188)),
        (600, "squash", (1000, 1500)),
    ],
)
def test_drafts_are_decoded_no_larger_than_needed(
    monkeypatch: pytest.MonkeyPatch, size: int, resize: str, decoded: tuple[int, int]
) -> None:
    seen = []
    real = pixels.fit

    def spy(image: Image.Image, *arguments: Any) -> Image.Image:
        seen.append(image.size)
        return real(image, *arguments)

    monkeypatch.setattr(pixels, "fit", spy)
    data = encode(noise(1000, 1500), "JPEG")
    draft = dataclasses.replace(preprocessing(size, resize), decoder="pillow-draft")
    found = load_pixels(data, draft)
    plain = load_pixels(data, preprocessing(size, resize))
    assert seen == [decoded, (1000, 1500)]
    assert found.shape == plain.shape == (size, size, 3)


def test_drafts_look_like_the_whole_picture() -> None:
    data = encode(noise(6, 8).resize((1200, 1600), Image.Resampling.BICUBIC), "JPEG", quality=95)
    draft = load_pixels(data, dataclasses.replace(preprocessing(64), decoder="pillow-draft"))
    plain = load_pixels(data, preprocessing(64))
    assert not np.array_equal(draft, plain), "the same pixels would need no space of their own"
    assert np.abs(draft.astype(int) - plain).mean() < 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_only_jpegs_have_drafts(kind: str) -> None:
    data = encode(noise(200, 300), kind)
    draft = load_pixels(data, dataclasses.replace(preprocessing(16), decoder="pillow-draft"))
    assert np.array_equal(draft, load_pixels(data, preprocessing(16)))


def test_a_cut_jpeg_is_bad_as_a_draft_too() -> None:
    data = encode(noise(1000, 1000), "JPEG")
    with pytest.raises(BadImageError, match="truncated"):
        load_pixels(
            data[: len(data) // 2], dataclasses.replace(preprocessing(16), decoder="pillow-draft")
        )


def reason_of(data: bytes) -> str:
    with pytest.raises(BadImageError) as caught:
        decode_rgb(data)
    return str(caught.value)


def rgb_of(data: bytes) -> np.ndarray:
    image = decode_rgb(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_pixels_are_square_rgb_bytes() -> None:
    for resize in ("crop", "squash"):
        found = load_pixels(jpeg_bytes(1), preprocessing(20, resize))
        assert found.shape == (20, 20, 3) and found.dtype == np.uint8


def test_lossless_rgb_comes_back_exactly() -> None:
    for file_format in ("PNG", "BMP", "TIFF"):
        assert np.array_equal(rgb_of(encode(noise(), file_format)), np.asarray(noise()))
    assert np.array_equal(rgb_of(encode(noise(), "WEBP", lossless=True)), np.asarray(noise()))


def test_grey_becomes_three_equal_channels() -> None:
    grey = noise().convert("L")
    found = rgb_of(encode(grey, "PNG"))
    assert all(np.array_equal(found[..., channel], np.asarray(grey)) for channel in range(3))


def test_one_bit_becomes_black_and_white() -> None:
    bits = Image.fromarray(np.array([[True, False], [False, True]]))
    assert bits.mode == "1"
    for file_format in ("PNG", "BMP", "TIFF"):
        assert rgb_of(encode(bits, file_format))[..., 1].tolist() == [[255, 0], [0, 255]]


def test_palette_colours_are_looked_up() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    assert rgb_of(encode(picture, "PNG")).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_transparent_palette_entry_lies_on_white() -> None:
    picture = Image.new("P", (2, 1))
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.putpixel((1, 0), 1)
    expected = [[[255, 255, 255], [200, 100, 50]]]
    for file_format in ("PNG", "GIF"):
        assert rgb_of(encode(picture, file_format, transparency=0)).tolist() == expected
    # PNG also knows half-transparent entries.
    half = rgb_of(encode(picture, "PNG", transparency=b"\x80\xff"))[0, 0]
    assert np.abs(half.astype(int) - [132, 137, 142]).max() <= 1


@pytest.mark.parametrize("mode", ["L", "RGB", "1"])
def test_colour_named_transparent_lies_on_white(mode: str) -> None:
    grey = Image.fromarray(np.array([[0, 255], [255, 0]], np.uint8))
    transparent: Any = (255, 255, 255) if mode == "RGB" else 0
    if mode == "RGB":
        transparent = (0, 0, 0)
    data = encode(grey.convert(mode), "PNG", transparency=transparent)
    assert (rgb_of(data) == 255).all()


def test_colour_named_transparent_in_16_bit_grey_lies_on_white() -> None:
    grey = Image.fromarray(np.array([[0, 65535]], np.uint16))
    assert rgb_of(encode(grey, "PNG", transparency=0))[..., 0].tolist() == [[255, 255]]


def test_alpha_lies_on_white() -> None:
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0, :, 3] = 0, 128, 255
    found = rgb_of(encode(Image.fromarray(rgba), "PNG"))[0, :, 0]
    assert found.tolist() == [255, 127, 0]
    grey_alpha = Image.fromarray(rgba).convert("LA")
    assert rgb_of(encode(grey_alpha, "PNG"))[0, :, 0].tolist() == [255, 127, 0]


def test_16_bit_grey_is_scaled_not_clipped() -> None:
    values = np.array([[0, 257, 32768, 65535]], np.uint16)
    for file_format in ("PNG", "TIFF"):
        found = rgb_of(encode(Image.fromarray(values), file_format))
        assert found[0, :, 0].tolist() == [0, 1, 128, 255]
        assert (found == found[..., :1]).all()


def test_integers_beyond_16_bits_are_refused_not_clipped() -> None:
    for value in (70000, -1):
        data = encode(Image.fromarray(np.array([[0, value]], np.int32)), "TIFF")
        with pytest.raises(BadImageError, match=r"convert: .*beyond 0\.\.65535"):
            decode_rgb(data)


def test_float_pixels_are_refused() -> None:
    data = encode(Image.fromarray(np.array([[0.5]], np.float32)), "TIFF")
    with pytest.raises(BadImageError, match="convert: 32-bit float"):
        decode_rgb(data)


def test_cmyk_jpeg_looks_as_pillow_says() -> None:
    cmyk = noise(32, 32).convert("CMYK")
    data = encode(cmyk, "JPEG", quality=95)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(rgb_of(data), np.asarray(expected))
    white = encode(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG")
    assert rgb_of(white).min() >= 250


def test_lab_becomes_the_colour_it_names() -> None:
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    for colour in ((255, 0, 0), (0, 128, 0), (255, 255, 255)):
        picture = ImageCms.profileToProfile(
            Image.new("RGB", (4, 4), colour), srgb, lab, outputMode="LAB"
        )
        assert picture is not None
        found = rgb_of(encode(picture, "TIFF"))[0, 0].astype(int)
        assert np.abs(found - colour).max() <= 8


@pytest.mark.parametrize("file_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame_of_an_animation_counts(file_format: str) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    options: dict[str, Any] = {"lossless": True} if file_format == "WEBP" else {}
    data = encode(first, file_format, save_all=True, append_images=[second], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 2
    assert (rgb_of(data) == [255, 0, 0]).all()


STORED_AS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""How a camera that writes this orientation lays down an upright scene."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "I;16"])
def test_every_orientation_gives_the_same_upright_picture(orientation: int, mode: str) -> None:
    if mode == "I;16":
        upright = Image.fromarray(np.arange(432, dtype=np.uint16).reshape(18, 24) * 150)
    else:
        upright = noise().convert(mode)
    method = STORED_AS[orientation]
    stored = upright.transpose(method) if method is not None else upright
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    expected = rgb_of(encode(upright, "PNG"))
    assert np.array_equal(rgb_of(encode(stored, "PNG", exif=exif)), expected)
    if mode not in ("RGBA", "P"):
        tiff = encode(stored, "TIFF", tiffinfo={ORIENTATION: orientation})
        assert np.array_equal(rgb_of(tiff), expected)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_of_jpeg_is_undone(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    # A dark left half shows a wrong turn through the compression.
    upright = Image.new("L", (64, 32), 255)
    upright.paste(0, (0, 0, 32, 16))
    method = STORED_AS[orientation]
    stored = upright.transpose(method) if method is not None else upright
    found = rgb_of(encode(stored, "JPEG", quality=95, exif=exif))
    assert found.shape == (32, 64, 3)
    assert np.abs(found[..., 0].astype(int) - np.asarray(upright)).max() < 40


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_nonsense_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    assert np.array_equal(rgb_of(encode(noise(), "PNG", exif=exif)), np.asarray(noise()))


def test_broken_exif_does_not_cost_the_picture() -> None:
    whole = jpeg_bytes(3)
    for body in (b"", b"II*\0", b"MM\0*\0\0\0\x08\xff\xff", b"\xff" * 40):
        exif = b"Exif\0\0" + body
        data = whole[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + whole[2:]
        assert np.array_equal(rgb_of(data), rgb_of(whole)), body


@pytest.mark.parametrize(
    "data",
    [
        jpeg_bytes(5, (64, 64)),
        jpeg_bytes(5, (64, 64), progressive=True),
        encode(noise(40, 40), "PNG"),
        encode(noise(40, 40), "WEBP", lossless=True),
        encode(noise(40, 40), "BMP"),
        encode(noise(40, 40), "TIFF"),
        encode(noise(40, 40), "GIF"),
        encode(noise(40, 40), "AVIF"),
    ],
    ids=["jpeg", "progressive", "png", "webp", "bmp", "tiff", "gif", "avif"],
)
def test_a_cut_file_is_bad_never_padded(data: bytes) -> None:
    whole = rgb_of(data)
    refused = 0
    lengths = sorted(
        {*range(0, len(data), max(1, len(data) // 60)), *range(len(data) - 9, len(data))}
    )
    for length in lengths:
        try:
            # Only what lies behind the last pixel (an end marker) may be missing.
            assert np.array_equal(rgb_of(data[:length]), whole), f"padded at {length}"
        except BadImageError as error:
            refused += 1
            assert error.stage in ("read", "open", "decode", "convert")
    assert refused >= 55


def test_empty_file_is_named_so() -> None:
    with pytest.raises(BadImageError, match="read: the file is empty"):
        decode_rgb(b"")


def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(Image.new("L", (101, 100)), "PNG")

    def load(_: Image.Image) -> None:
        raise AssertionError("decoded")

    # Pillow warns up to twice its limit and raises beyond: neither may reach the decoder.
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", load)
    for limit in (10_099, 5_100, 5_000, 10):
        with pytest.raises(BadImageError, match="pixels") as caught:
            decode_rgb(data, max_pixels=limit)
        assert caught.value.stage == "open"


def test_the_pixel_limit_itself_is_allowed() -> None:
    data = encode(Image.new("L", (100, 100)), "PNG")
    assert decode_rgb(data, max_pixels=10_000).size == (100, 100)


@pytest.mark.parametrize(
    ("file_format", "word"),
    [
        ("PPM", "a PPM picture"),
        ("TGA", "a TGA picture"),
        ("EPS", "PostScript (EPS)"),
        ("PCX", "a PCX picture"),
        ("ICO", "an icon (ICO)"),
        ("JPEG2000", "a JPEG 2000 picture"),
        ("SGI", "an SGI picture"),
        ("DDS", "a DDS texture"),
    ],
)
def test_other_formats_are_refused_by_name(file_format: str, word: str) -> None:
    assert reason_of(encode(noise(), file_format)) == f"open: {word}; convert it to JPEG or PNG"


def test_postscript_and_photoshop_are_never_opened() -> None:
    assert set(FORMATS) == {"JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"}
    for data in (b"8BPS\0\1" + bytes(40), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        assert reason_of(data).endswith("; convert it to JPEG or PNG")


SAMPLES = [
    jpeg_bytes(0, (16, 16)),
    jpeg_bytes(0, (16, 16), progressive=True),
    encode(noise(9, 7), "PNG"),
    encode(noise(9, 7).convert("P"), "PNG", transparency=3),
    encode(noise(9, 7).convert("RGBA"), "WEBP"),
    encode(noise(9, 7), "BMP"),
    encode(noise(9, 7), "GIF"),
    encode(noise(9, 7), "TIFF", compression="tiff_lzw"),
    encode(noise(9, 7), "AVIF"),
]

fuzz = settings(
    max_examples=150,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)


def decodes_or_is_bad(data: bytes) -> None:
    try:
        found = load_pixels(data, preprocessing(), max_pixels=1_000_000)
    except BadImageError as error:
        assert error.reason and "\n" not in error.reason
    else:
        assert found.shape == (16, 16, 3)


@fuzz
@given(st.binary(max_size=200), st.sampled_from([b"", *(sample[:12] for sample in SAMPLES)]))
def test_random_bytes_are_bad_and_nothing_else(data: bytes, start: bytes) -> None:
    decodes_or_is_bad(start + data)


@fuzz
@given(st.data())
def test_mutated_files_decode_or_are_bad_and_nothing_else(data: st.DataObject) -> None:
    content = bytearray(data.draw(st.sampled_from(SAMPLES)))
    for _ in range(data.draw(st.integers(1, 6))):
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, 20))
    decodes_or_is_bad(bytes(content[: len(content) - cut]))


SIZES = [
    (256, 256), (300, 200), (200, 300), (640, 427), (333, 500), (224, 224), (100, 37), (37, 100),
    (1, 1), (257, 255), (512, 64), (64, 512), (500, 375), (375, 499),
]  # fmt: skip


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_crop_gives_torchvisions_pixels(size: tuple[int, int]) -> None:
    from torchvision.transforms import v2

    image = noise(*size, seed=sum(size))
    preset = v2.Compose(
        [
            v2.Resize(256, interpolation=v2.InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(224),
        ]
    )
    assert np.array_equal(
        np.asarray(fit(image, preprocessing(224, "crop"))), np.asarray(preset(image))
    )


def test_squash_keeps_the_whole_picture() -> None:
    image = Image.new("RGB", (100, 20), "white")
    image.paste((0, 0, 0), (0, 0, 10, 20))
    image.paste((0, 0, 0), (90, 0, 100, 20))
    found = np.asarray(fit(image, preprocessing(10, "squash")))[..., 0]
    assert found[:, [0, -1]].max() < 60 and found[:, 5].min() > 235
    # The central square has lost both ends.
    assert np.asarray(fit(image, preprocessing(10, "crop"))).min() > 235


@pytest.mark.parametrize("size", [(1_000_000, 1), (1, 1_000_000), (40_000, 9)], ids=str)
def test_very_long_pictures_stay_small_and_keep_their_middle(
    size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", size, "white")
    width, height = size
    image.paste((255, 0, 0), (width // 2 - 99, 0, width // 2 + 99, height))
    if height > width:
        image.paste((255, 0, 0), (0, height // 2 - 99, 1, height // 2 + 99))
    asked: list[int] = []
    resize = Image.Image.resize

    def recorded(self: Image.Image, to: tuple[int, int], *args: Any) -> Image.Image:
        asked.append(to[0] * to[1])
        assert asked[-1] < 10**7, "would fill the memory"
        return resize(self, to, *args)

    monkeypatch.setattr(pixels.Image.Image, "resize", recorded)
    found = load_pixels(encode(image, "PNG"), preprocessing(224, "crop"))
    assert (found == [255, 0, 0]).all()
    assert asked


def test_a_failing_resize_is_a_bad_image(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("no\nsize")

    monkeypatch.setattr(pixels, "fit", fail)
    with pytest.raises(BadImageError, match="resize: damaged JPEG: its pixels cannot be resized"):
        load_pixels(jpeg_bytes(1), preprocessing())


@pytest.mark.parametrize(
    ("picture", "shape"),
    [
        ((40, 30), (24, 32)),
        ((30, 41), (32, 24)),
        ((24, 24), (24, 24)),
        ((5, 5), (24, 24)),
        ((2000, 10), (24, 24 * 8)),
        ((3, 400), (24 * 8, 24)),
    ],
)
def test_whole_keeps_the_aspect_up_to_a_limit(
    picture: tuple[int, int], shape: tuple[int, int]
) -> None:
    found = load_pixels(jpeg_bytes(0, picture), preprocessing(24, "whole"))
    assert found.shape == (*shape, 3)


def test_whole_is_a_crop_without_its_last_cut() -> None:
    data = jpeg_bytes(1, (90, 60))
    whole = load_pixels(data, preprocessing(40, "whole"))
    crop = load_pixels(data, dataclasses.replace(preprocessing(40, "crop"), resize_to=40))
    assert whole.shape == (40, 60, 3)
    assert np.array_equal(whole[:, 10:50], crop)
