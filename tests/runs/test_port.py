"""A head file says all that is needed to repeat ``predict`` without featpipe."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from safetensors.numpy import load_file, save_file
from support.runs import load_head, save_head, trained_head
from support.samples import class_picture, jpeg_bytes

from featpipe import api
from featpipe.base.preprocessing import describe
from featpipe.base.space import Preprocessing
from featpipe.runs.trained_head import _document_digest

SIZE = 33
"""Odd, and no multiple of 7: the margin has to be rounded (33 * 256 / 224 = 37.7)."""
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"epochs": 20},
    "mlp": {"epochs": 20, "hidden": 16},
    "logistic": {"C": 0.1},
}
TAPS = {"crop": ("block2_pool", "none"), "squash": ("block2_conv1", "avg")}
BLOCKS = (2, 2)
"""Convolutions in the first blocks of VGG16."""


def rebuilt_pixels(data: bytes, rules: dict[str, Any]) -> np.ndarray:
    """Steps 1 to 4 of docs/file-format.md."""
    image = Image.open(io.BytesIO(data))
    if rules["jpeg_scales"]:
        image.draft(None, (rules["jpeg_min_side"],) * 2)
    image.seek(rules["frame"])
    if rules["exif_orientation"]:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        white, becomes = rules["grey_16"]["white"], rules["grey_16"]["becomes"]
        grey = (np.asarray(image).astype(np.int64) * becomes + white // 2) // white
        image = Image.fromarray(grey.astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        under = Image.new("RGBA", image.size, (*rules["background"], 255))
        image = Image.alpha_composite(under, image)
    image = image.convert("RGB")
    assert (rules["interpolation"], rules["antialias"]) == ("bilinear", True)
    size = rules["size"]
    if rules["resize"] == "squash":
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    assert rules["rounding"] == {
        "short_side": "nearest",
        "long_side": "down",
        "crop_offset": "nearest, half to even",
    }
    longest = rules["max_aspect"] * min(image.size)
    image = centre(image, min(image.width, longest), min(image.height, longest))
    shorter, target = min(image.size), rules["short_side"]
    width, height = (side * target // shorter for side in image.size)
    return np.asarray(centre(image.resize((width, height), Image.Resampling.BILINEAR), size, size))


def centre(image: Image.Image, width: int, height: int) -> Image.Image:
    left, top = round((image.width - width) / 2), round((image.height - height) / 2)
    return image.crop((left, top, left + width, top + height))


def rebuilt_features(
    pixels: np.ndarray,
    weights: dict[str, np.ndarray],
    rules: dict[str, Any],
    space: dict[str, Any],
) -> np.ndarray:
    """Steps 5 to 7, for one feature space."""
    values = pixels.astype(np.float32) / np.float32(rules["divide_by"])
    if rules["channels"] == "bgr":
        values = values[..., ::-1]
    values = (values - np.float32(rules["mean"])) / np.float32(rules["std"])
    x = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1)))[None]
    block, conv = int(space["tap"][5]), space["tap"].partition("conv")[2]
    number = 0
    for i, count in enumerate(BLOCKS[:block], 1):
        for _ in range(int(conv) if conv and i == block else count):
            kernel, bias = (torch.from_numpy(weights[f"{number}.{n}"]) for n in ("weight", "bias"))
            x = torch.relu(torch.nn.functional.conv2d(x, kernel, bias, padding=1))
            number += 2
        number += 1
        if not conv or i < block:
            x = torch.nn.functional.max_pool2d(x, 2)
    row = x[0].numpy()
    if space["pooling"] == "avg":
        row = row.mean(axis=(1, 2))
    return row.astype(space["dtype"])


def rebuilt_probabilities(row: np.ndarray, tensors: dict[str, np.ndarray], kind: str) -> np.ndarray:
    """Step 8."""
    z = (row.reshape(-1).astype(np.float32) - tensors["mean"]) / tensors["scale"]
    if kind == "mlp":
        hidden = np.maximum(0, tensors["hidden.weight"] @ z + tensors["hidden.bias"])
        logits = tensors["output.weight"] @ hidden + tensors["output.bias"]
    else:
        logits = tensors["weight"] @ z + tensors["bias"]
    if "temperature" in tensors:
        logits = logits / tensors["temperature"]
    e = np.exp(logits.astype(float) - logits.max())
    return e / e.sum()


def odd_pictures() -> dict[str, bytes]:
    """What a port gets wrong first."""
    rng = np.random.default_rng(5)

    def png(pixels: np.ndarray | Image.Image, **options: Any) -> bytes:
        image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
        stream = io.BytesIO()
        image.save(stream, "PNG", **options)
        return stream.getvalue()

    def stripes(width: int, height: int) -> np.ndarray:
        # Red at the ends, blue in the middle: what is cut off decides.
        pixels = rng.integers(0, 120, (height, width, 3), np.uint8)
        across, along = np.arange(width) * 4 // width, np.arange(height) * 4 // height
        is_end = np.isin(across, (0, 3))[None, :] | np.isin(along, (0, 3))[:, None]
        pixels[..., 0] += np.where(is_end, 130, 0).astype(np.uint8)
        pixels[..., 2] += np.where(is_end, 0, 130).astype(np.uint8)
        return pixels

    exif = Image.Exif()
    exif[0x0112] = 6
    alpha = rng.integers(0, 256, (50, 41, 1), np.uint8)
    cmyk = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 60, 4), np.uint8), "CMYK").save(cmyk, "JPEG")
    palette = Image.fromarray(stripes(60, 45)).quantize(8)
    return {
        "turned.jpg": jpeg_bytes(1, (71, 47), exif=exif),
        "alpha.png": png(np.concatenate([stripes(41, 50), alpha], axis=2)),
        "sixteen bits.png": png(rng.integers(0, 65536, (45, 52), np.uint16)),
        "long.png": png(stripes(420, 42)),
        "tall.png": png(stripes(43, 430)),
        "grey.png": png(rng.integers(0, 256, (46, 39), np.uint8)),
        "palette.png": png(palette, transparency=0),
        "cmyk.jpg": cmyk.getvalue(),
        "margin.png": png(stripes(70, 53)),
        "plainly red.png": png(class_picture(0, 99).crop((0, 0, 40, 34))),
        "large.jpg": jpeg_bytes(2, (301, 257)),
    }


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Odd pictures, weights as a file, and a data set to train on."""
    folder = tmp_path_factory.mktemp("port")
    for channel, label in ((0, "red"), (2, "blue")):
        (folder / "photos" / label).mkdir(parents=True)
        for seed in range(12):
            class_picture(channel, seed).save(folder / "photos" / label / f"{seed}.png")
    (folder / "odd").mkdir()
    for name, data in odd_pictures().items():
        (folder / "odd" / name).write_bytes(data)
    rng, weights, channels = np.random.default_rng(0), {}, 3
    for number, width in ((0, 64), (2, 64), (5, 128), (7, 128)):
        scale = np.sqrt(2 / (9 * channels))
        kernel = rng.normal(0, scale, (width, channels, 3, 3)).astype(np.float32)
        bias = rng.normal(0, 0.1, width).astype(np.float32)
        weights |= {f"features.{number}.weight": kernel, f"features.{number}.bias": bias}
        channels = width
    save_file(weights, folder / "weights.safetensors")
    return folder


@pytest.mark.parametrize("decoder", ["pillow", "pillow-draft"])
@pytest.mark.parametrize("resize", ["crop", "squash"])
def test_predictions_are_rebuilt_from_the_documented_numbers(
    resize: str, decoder: str, place: Path
) -> None:
    tap, pool = TAPS[resize]
    name = f"{resize}-{decoder}"
    features: dict[str, Any] = {"size": SIZE, "resize": resize, "tap": tap, "pool": pool}
    features |= {"decoder": decoder, "precision": "fp32", "device": "cpu", "workers": 1}
    features |= {"weights": str(place / "weights.safetensors")}
    api.extract(place / "photos", name=name, cache=place / "cache", **features)
    weights = {
        name.removeprefix("features."): tensor
        for name, tensor in load_file(place / "weights.safetensors").items()
    }
    rows: dict[str, np.ndarray] = {}
    for kind, options in KINDS.items():
        run = place / name / kind
        api.train_head(name, cache=place / "cache", head=kind, out=run, device="cpu", **options)
        if kind == "mlp":
            calibrated = load_head(run)
            calibrated.head.temperature_ = 1.7
            save_head(run, calibrated)
        found = api.predict(run, place / "odd", cache=place / "cache", device="cpu", workers=1)
        document = json.loads((run / "head.json").read_text())
        tensors = load_file(run / "head.safetensors")
        assert len(found) == 11 and {p.label for p in found} == {"red", "blue"}
        for prediction in found:
            path = Path(prediction.path)
            if path.name not in rows:
                pixels = rebuilt_pixels(path.read_bytes(), document["preprocessing"])
                rules, space = document["preprocessing"], document["feature_space"]
                rows[path.name] = rebuilt_features(pixels, weights, rules, space)
            p = rebuilt_probabilities(rows[path.name], tensors, document["kind"])
            assert document["classes"][p.argmax()] == prediction.label, path.name
            assert prediction.probabilities is not None
            assert p == pytest.approx(list(prediction.probabilities.values()), abs=1e-4), path.name


def test_a_head_on_two_taps_is_rebuilt_from_the_documented_numbers(place: Path) -> None:
    features: dict[str, Any] = {"size": SIZE, "tap": ["block1_pool", "block2_conv1"], "pool": "avg"}
    features |= {"precision": "fp32", "device": "cpu", "workers": 1}
    features |= {"weights": str(place / "weights.safetensors")}
    api.extract(place / "photos", name="two", cache=place / "cache", **features)
    weights = {
        name.removeprefix("features."): tensor
        for name, tensor in load_file(place / "weights.safetensors").items()
    }
    run, taps = place / "two", ["block2_conv1", "block1_pool"]
    api.train_head("two", cache=place / "cache", tap=taps, C=0.1, head="logistic", out=run)
    document = json.loads((run / "head.json").read_text())
    tensors = load_file(run / "head.safetensors")
    for prediction in api.predict(run, place / "odd", cache=place / "cache", workers=1):
        rules = document["preprocessing"]
        pixels = rebuilt_pixels(Path(prediction.path).read_bytes(), rules)
        spaces = document["feature_spaces"]
        parts = [rebuilt_features(pixels, weights, rules, space).ravel() for space in spaces]
        p = rebuilt_probabilities(np.concatenate(parts), tensors, document["kind"])
        assert prediction.probabilities is not None
        assert p == pytest.approx(list(prediction.probabilities.values()), abs=1e-4)


def test_without_the_margin_the_pixels_are_others(place: Path) -> None:
    # Or the test above could not tell a port that leaves it out.
    prep = Preprocessing(size=SIZE, resize="crop", mean=(0, 0, 0), std=(1, 1, 1))
    rules: dict[str, Any] = {**describe(prep)}
    for name, data in odd_pictures().items():
        right = rebuilt_pixels(data, rules).astype(int)
        without = rebuilt_pixels(data, {**rules, "short_side": SIZE})
        assert np.abs(right - without).mean() > 3, name


@pytest.mark.parametrize("size", [1, 33, 180, 224, 299, 4096])
def test_the_record_has_the_numbers_of_its_size(size: int) -> None:
    prep = Preprocessing(size=size, resize="crop", mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    found = describe(prep)
    assert found["short_side"] == round(size * 256 / 224) and found["size"] == size
    assert (found["mean"], found["std"]) == ([0.1, 0.2, 0.3], [1, 2, 3])
    assert json.loads(json.dumps(found)) == found
    squashed = describe(Preprocessing(size=size, resize="squash", mean=(0,) * 3, std=(1,) * 3))
    assert [squashed[key] for key in ("short_side", "margin", "max_aspect")] == [None] * 3  # type: ignore[literal-required]


def test_a_head_without_the_record_still_loads(tmp_path: Path) -> None:
    # Those of earlier versions.
    run = save_head(tmp_path / "run", trained_head())
    path = run / "head.json"
    document = json.loads(path.read_text())
    assert document.pop("preprocessing") == describe(trained_head().space.preprocessing)
    document["sha256"] = _document_digest(document)
    path.write_text(json.dumps(document))
    assert load_head(run).space == trained_head().space
