"""Promise 6: no picture ends a job, whatever its decoder does; none is padded or made up."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.command import TINY_FLAGS, Run, json_of
from support.samples import class_picture, jpeg_bytes
from support.tally import NewTally, Scale

from featpipe import open_features
from featpipe.base.errors import BadImageError
from featpipe.base.space import Preprocessing
from featpipe.datasets.files import load_dataset
from featpipe.decoding.pixels import FORMATS, load_pixels
from featpipe.decoding.pool import DecodePool
from featpipe.decoding.worker_process import Task

PROMISE = "6 One image never ends a job"
PREPROCESSING = Preprocessing(size=24, resize="squash", mean=(0.0,) * 3, std=(1.0,) * 3)

EXCEPTIONS = (
    "ValueError IndexError SyntaxError TypeError KeyError EOFError OSError AttributeError "
    "AssertionError NotImplementedError OverflowError ZeroDivisionError RecursionError "
    "UnicodeDecodeError('utf8',b'',0,1,'x') RuntimeError BufferError StopIteration SystemError "
    "FloatingPointError ImportError NameError MemoryError Exception Warning "
    "Image.DecompressionBombError Image.DecompressionBombWarning struct.error zlib.error"
).split()

# Loaded by every Python that starts; pictures whose comment asks for it are decoded badly.
HOOK = r"""
import ctypes, os, signal, struct, sys, time, zlib
import numpy as np
from PIL import Image, ImageFile
import featpipe.decoding.pixels as pixels
from featpipe.decoding.pool import DecodePool

# A minute is long in a test: the hang is to be cut, the limit itself has its own test.
DecodePool.__init__.__kwdefaults__["time_limit_s"] = 4.0
real = Image.open

def fault(word):
    if word == "segfault":
        ctypes.string_at(0)
    elif word == "abort":
        os.abort()
    elif word == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif word == "exit":
        os._exit(3)
    elif word == "leave":
        sys.exit(4)
    elif word == "hang":
        time.sleep(600)
    elif word == "eat":
        hoard = []
        for _ in range(20):
            hoard.append(np.empty(1 << 30, np.uint8))
    elif word == "recurse":
        fault(word)
    elif word == "talk":
        print("chatter" * 100000)
        os.write(1, b"chatter" * 1000)
    elif word.startswith("raise "):
        raise eval(word.split(" ", 1)[1])

def open_badly(file, *args, **options):
    data = file.getvalue()
    if b"FAULT:" in data:
        fault(data.split(b"FAULT:")[1].split(b";")[0].decode())
    return real(file, *args, **options)

Image.open = open_badly
"""

FATAL = ["segfault", "abort", "kill", "exit", "leave", "hang", "eat", "recurse"]
HARMLESS = ["talk"]


@pytest.fixture
def hooked(tmp_path: Path) -> dict[str, str]:
    """The environment in which pictures can ask for a fault."""
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    before = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join(filter(None, [str(tmp_path / "hook"), before]))}


def test_each_fault_costs_exactly_its_picture(
    photo_folder: Path, featpipe: Run, hooked: dict[str, str], tmp_path: Path, tally: NewTally
) -> None:
    undisturbed = featpipe(
        "extract", photo_folder, "--name", "good", "--cache", tmp_path / "calm", *TINY_FLAGS
    )
    assert undisturbed.returncode == 0, undisturbed.stderr

    faults = FATAL + HARMLESS + [f"raise {error}" for error in EXCEPTIONS]
    for number, (word, path) in enumerate(paths_of(faults).items()):
        (photo_folder / path).write_bytes(jpeg_bytes(number, comment=f"FAULT:{word};".encode()))
    done = featpipe("extract", photo_folder, "--name", "all", "--json", *TINY_FLAGS, env=hooked)
    assert done.returncode == 3, done.stderr
    found = json_of(done)
    bad = {entry["path"]: entry for entry in found["bad"]}

    t = tally(PROMISE, "faults of a decoder, through the command line")
    for word, path in paths_of(faults).items():
        with t.case(word):
            assert (path in bad) == (word not in HARMLESS)
            if path in bad:
                assert bad[path]["stage"]
                assert bad[path]["reason"].isprintable()
                assert bad[path]["reason"]
    assert found["quarantined"] == len(bad) == len(faults) - len(HARMLESS)
    reasons = {word: bad[path]["reason"] for word, path in paths_of(faults).items() if path in bad}
    assert reasons["segfault"] == "its decoder died twice (SIGSEGV)"
    assert reasons["hang"] == "took longer than 4 s"
    assert "memory" in reasons["eat"]

    # Not a bit of the good ones is different for the company they were in.
    calm, _ = open_features("good", split="all", cache=tmp_path / "calm")
    data = load_dataset(tmp_path / "cache", "all")
    good = load_dataset(tmp_path / "calm", "good")
    rows, _ = open_features("all", split="all", cache=tmp_path / "cache")
    usable = [path for path, fine in zip(data.paths, data.usable, strict=True) if fine]
    for number, path in enumerate(good.paths):
        assert (rows[usable.index(path)] == calm[number]).all(), path


def paths_of(faults: list[str]) -> dict[str, str]:
    """Names between those of the good pictures, in the order in which they are read."""
    return {
        word: f"{('red', 'blue')[number % 2]}/{number % 20:02d}-{number}.jpg"
        for number, word in enumerate(faults)
    }


def encodings() -> dict[str, bytes]:
    """One small picture in every format, and in ways of writing it that decoders treat apart."""
    picture = class_picture(0, 0)
    ways: dict[str, tuple[str, dict[str, object]]] = {
        "jpeg": ("JPEG", {}),
        "progressive": ("JPEG", {"progressive": True}),
        "png": ("PNG", {}),
        "webp": ("WEBP", {}),
        "lossless": ("WEBP", {"lossless": True}),
        "bmp": ("BMP", {}),
        "gif": ("GIF", {}),
        "tiff": ("TIFF", {}),
        "lzw": ("TIFF", {"compression": "tiff_lzw"}),
        "deflate": ("TIFF", {"compression": "tiff_adobe_deflate"}),
        "avif": ("AVIF", {}),
    }
    found = {}
    for name, (kind, options) in ways.items():
        buffer = io.BytesIO()
        picture.save(buffer, kind, **options)
        found[name] = buffer.getvalue()
    assert {kind for kind, _ in ways.values()} == set(FORMATS)
    return found


Change = Callable[[np.random.Generator, bytes], bytes]


def flip_bits(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 9))):
        changed[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def flip_header(rng: np.random.Generator, data: bytes) -> bytes:
    changed = bytearray(data)
    changed[int(rng.integers(min(64, len(data))))] = int(rng.integers(256))
    return bytes(changed)


def cut(rng: np.random.Generator, data: bytes) -> bytes:
    return data[: int(rng.integers(len(data)))]


def overwrite(rng: np.random.Generator, data: bytes) -> bytes:
    start = int(rng.integers(len(data)))
    run = bytes([int(rng.choice([0, 255, rng.integers(256)]))]) * int(rng.integers(1, 200))
    return (data[:start] + run + data[start + len(run) :])[: len(data)]


def splice(rng: np.random.Generator, data: bytes) -> bytes:
    a, b = sorted(rng.integers(0, len(data), 2).tolist())
    return data[:b] + data[a:]


CHANGES: list[Change] = [flip_bits, flip_header, cut, overwrite, splice]


@pytest.mark.timeout(1800)
def test_damaged_pictures_are_decoded_or_refused_with_a_reason(
    tally: NewTally, scale: Scale
) -> None:
    rng = np.random.default_rng(6)
    originals = list(encodings().items())
    contents = []
    for number in range(scale(300, 20_000)):
        name, data = originals[number % len(originals)]
        change = CHANGES[number % len(CHANGES)]
        contents.append((f"{name}, {change.__name__}, {number}", change(rng, data)))
    t = tally(PROMISE, "damaged pictures of every format")
    seen = set()
    tasks = [Task(key, None, data) for key, (_, data) in enumerate(contents)]
    known = np.empty((0, 32), np.uint8)
    with DecodePool(PREPROCESSING, workers=2, known=known, max_pixels=10**6) as pool:
        for result in pool.decode(tasks):
            if result is None:
                continue
            with t.case(contents[result.key][0]):
                assert result.key not in seen
                seen.add(result.key)
                if result.kind == "bad":
                    assert result.stage in ("read", "open", "decode", "convert", "resize")
                    assert result.reason
                    assert result.reason.isprintable()
                else:
                    assert result.pixels is not None
                    assert result.pixels.shape == (1, 24, 24, 3)
    assert len(seen) == len(contents)


def test_a_cut_picture_is_never_padded(tally: NewTally, scale: Scale) -> None:
    t = tally(PROMISE, "cut pictures: refused, or what was cut held no pixel")
    places = scale(25, 400)
    for name, data in encodings().items():
        whole = load_pixels(data, PREPROCESSING)
        for size in sorted(set(np.linspace(0, len(data) - 1, places).astype(int).tolist())):
            with t.case(f"{name} at {size} of {len(data)}"):
                try:
                    pixels = load_pixels(data[:size], PREPROCESSING)
                except BadImageError:
                    continue
                assert np.array_equal(pixels, whole)


@pytest.mark.parametrize(("limit", "fits"), [(1599, False), (1600, True)])
def test_the_pixel_cap_can_be_set(
    photo_folder: Path, featpipe: Run, limit: int, fits: bool
) -> None:
    done = featpipe(
        *("extract", photo_folder, "--name", "x", "--max-pixels", limit, "--json"), *TINY_FLAGS
    )
    assert done.returncode == (0 if fits else 3), done.stderr
    assert json_of(done)["quarantined"] == (0 if fits else 40)


def test_pixels_are_counted_before_they_are_decoded() -> None:
    buffer = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(buffer, "PNG")
    assert len(buffer.getvalue()) < 100_000
    with pytest.raises(BadImageError, match="more than 50000000 pixels"):
        load_pixels(buffer.getvalue(), PREPROCESSING)
