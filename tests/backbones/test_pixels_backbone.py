"""The backbone that computes nothing: rows are the decoded pictures, bit by bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featpipe
from featpipe.backbones.pixels import grey
from featpipe.base.errors import UsageError
from featpipe.datasets.files import load_dataset
from featpipe.decoding.pixels import load_pixels
from featpipe.store.feature_store import FeatureStore


def test_grey_is_pillows() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    assert np.array_equal(grey(picture), np.asarray(Image.fromarray(picture).convert("L")))
    values = np.arange(256, dtype=np.uint8)
    assert np.array_equal(grey(np.stack([values] * 3, axis=-1)), values)


@pytest.mark.parametrize("channels", ["rgb", "grey"])
def test_rows_are_the_decoded_pictures(channels: str, photo_folder: Path, tmp_path: Path) -> None:
    options = {"backbone": "pixels", "size": 24, "channels": channels, "cache": tmp_path}
    done = featpipe.extract(photo_folder, name="set", **options)
    (space,) = done.spaces
    assert (space.tap, space.dtype, space.precision) == ("input", "uint8", "fp32")
    dataset = load_dataset(tmp_path, "set")
    rows = FeatureStore(tmp_path, space).rows(dataset.image_sha256)
    assert rows.dtype == np.uint8 and rows.shape[1:] == (3 if channels == "rgb" else 1, 24, 24)
    for path, row in zip(dataset.paths, rows, strict=True):
        picture = load_pixels((photo_folder / path).read_bytes(), space.preprocessing)
        expected = picture.transpose(2, 0, 1) if channels == "rgb" else grey(picture)[None]
        assert np.array_equal(row, expected)
    again = featpipe.extract(photo_folder, name="set", **options)
    assert again.computed == 0


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"size": None}, "expected --size for --backbone pixels"),
        ({"pool": "avg"}, "expected --pool none for pixels"),
        ({"weights": "IMAGENET1K_V1"}, "expected no --weights for pixels"),
        ({"tap": "layer1"}, "expected a tap of pixels"),
    ],
)
def test_what_has_no_meaning_is_refused(
    option: dict[str, object], message: str, photo_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        featpipe.extract(
            photo_folder,
            name="set",
            cache=tmp_path,
            **{"backbone": "pixels", "size": 24, **option},  # type: ignore[arg-type]
        )


def test_torch_is_not_loaded_to_plan_pixels() -> None:
    code = (
        "import sys; from featpipe.specs.extract import ExtractSpec; "
        "ExtractSpec.from_options({'name': 'a', 'backbone': 'pixels', 'size': 28}); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
