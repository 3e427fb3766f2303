"""Promise 8: files made to mislead are refused before they are read, and any name survives.

Every file is opened in a process of its own kind: one that counts its processor time and its
memory, so that what the HDF5 library makes of a hostile file, a crash or a loop without end, is
one failing case and not the end of the tests.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from support.command import TINY_FLAGS
from support.samples import class_picture, image_ids, in_splits, small_space, stored_set
from support.tally import NewTally, Scale

from featpipe import api
from featpipe.base import disk
from featpipe.base.errors import DamageError
from featpipe.datasets.files import dataset_path, load_dataset
from featpipe.store.feature_store import FeatureStore
from featpipe.store.index import INDEX_NAME, load_index
from featpipe.store.segments import build_segment, read_segment, whole_rows

PROMISE = "8 Hostile caches and names"
SPACE = small_space()
IDS = image_ids(*range(40))
ROWS = np.random.default_rng(8).normal(size=(40, 4)).astype(np.float16)

CPU_SECONDS = 10.0
"""Processor time, not the clock's: a busy machine makes no case fail."""
MOST_MEMORY = 96 * 2**20
"""What one case may add to the memory of the process that has its imports behind it."""

# A child that does one case after another, and says before each which it is.

_STARTER = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from reliability import test_hostile
test_hostile.child()
"""


def peak_kib() -> int:
    # What getrusage calls the peak counts that of the process this one was started from.
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"VmHWM:\s+(\d+) kB", status)[0])


def child() -> None:
    """Do the cases that stdin names; the system ends it where a case takes too long."""
    order = json.loads(sys.stdin.read())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    do = globals()[order["do"]]
    for _ in range(2):  # what is imported late must not be counted as a case's
        do(order["first"])
    for number, case in order["cases"]:
        print(json.dumps([number]), file=answers, flush=True)
        before = peak_kib()
        signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
        try:
            found = do(case)
        except Exception as error:
            found = f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        more = (peak_kib() - before) * 1024
        if more > order["memory"]:
            found = f"{more >> 20} MiB more, {found}"
        print(json.dumps([number, found]), file=answers, flush=True)


def in_child(
    do: str, cases: Sequence[Any], *, first: Any, memory: int = MOST_MEMORY
) -> Iterator[tuple[Any, str]]:
    """Each case and what the child's function ``do`` says of it: empty where all is well.

    ``first`` is a harmless case; what dies of a case is followed by another child.
    """
    waiting = list(enumerate(cases))
    while waiting:
        order = json.dumps({"do": do, "first": first, "memory": memory, "cases": waiting})
        done = subprocess.run(
            [sys.executable, "-c", _STARTER],
            input=order,
            capture_output=True,
            text=True,
            timeout=3000,
            check=False,
            env={**os.environ, "FEATPIPE_CACHE": "", "NO_COLOR": "1"},
        )
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        assert lines or not waiting, f"the child did not start: {done.stderr}"
        answered = {line[0]: line[1] for line in lines if len(line) == 2}
        for number, found in answered.items():
            yield cases[number], found
        waiting = [(n, case) for n, case in waiting if n not in answered]
        if waiting and lines[-1][0] == waiting[0][0]:
            number, case = waiting.pop(0)
            yield case, f"the process ended with {done.returncode}: {done.stderr[-300:]}"


def refused(call: Callable[[], Any]) -> str:
    """The message of a refusal with exit code 13; empty where the call returns."""
    try:
        call()
    except DamageError as error:
        assert error.exit_code == 13
        assert "\n" not in str(error), "more than one line"
        return str(error) or "no message"
    return ""


# Hostile HDF5 files: each is a good one with one thing changed.

Change = Callable[[h5py.File, str], None]


def stored_as(**options: Any) -> Change:
    """The same values, stored in another way."""

    def change(file: h5py.File, name: str) -> None:
        data = file[name][()]
        del file[name]
        file.create_dataset(name, **{"data": data, **options})

    return change


def turned_into(convert: Callable[[np.ndarray], Any], **options: Any) -> Change:
    """Other values, from the good ones."""

    def change(file: h5py.File, name: str) -> None:
        data = convert(file[name][()])
        del file[name]
        file.create_dataset(name, data=data, **options)

    return change


def replaced(make: Callable[[h5py.File, str, np.ndarray], None]) -> Change:
    """The data set goes; ``make`` gets the file, its name and its values."""

    def change(file: h5py.File, name: str) -> None:
        data = file[name][()]
        file.move(name, "moved")
        make(file, name, data)

    return change


def linked(link: Callable[[str], Any]) -> Change:
    def make(file: h5py.File, name: str, data: np.ndarray) -> None:
        file[name] = link(name)

    return replaced(make)


def low_level(set_up: Callable[[Any], None], *, write: bool = True) -> Change:
    """With properties that h5py's own functions do not offer."""

    def make(file: h5py.File, name: str, data: np.ndarray) -> None:
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        if not write:
            properties.set_chunk((1,) * data.ndim)
        set_up(properties)
        space = h5py.h5s.create_simple(data.shape)
        kind = h5py.h5t.py_create(data.dtype)
        made = h5py.h5d.create(file.id, name.encode(), kind, space, properties)
        if write:
            made.write(h5py.h5s.ALL, h5py.h5s.ALL, data)

    return replaced(make)


def _external(file: h5py.File, name: str, data: np.ndarray) -> None:
    raw = Path(file.filename).with_suffix(".raw")
    raw.write_bytes(data.tobytes())
    file.create_dataset(name, data.shape, data.dtype, external=[(str(raw), 0, data.nbytes)])


def _external_device(file: h5py.File, name: str, data: np.ndarray) -> None:
    device = [("/dev/zero", 0, data.nbytes)]
    file.create_dataset(name, data.shape, data.dtype, external=device)


def _virtual(where: str) -> Callable[[h5py.File, str, np.ndarray], None]:
    def make(file: h5py.File, name: str, data: np.ndarray) -> None:
        layout = h5py.VirtualLayout(data.shape, data.dtype)
        layout[...] = h5py.VirtualSource(where, "moved" if where == "." else name, data.shape)
        file.create_virtual_dataset(name, layout)

    return make


def _group_of_itself(file: h5py.File, name: str, data: np.ndarray) -> None:
    group = file.create_group(name)
    group[name] = group


def _loop_of_links(file: h5py.File, name: str, data: np.ndarray) -> None:
    file[name] = h5py.SoftLink("/round")
    file["round"] = h5py.SoftLink(f"/{name}")


def _references(file: h5py.File, name: str, data: np.ndarray) -> None:
    found = file.create_dataset(name, data.shape[:1], h5py.ref_dtype)
    found[:] = [file["moved"].ref] * len(data)


def _regions(file: h5py.File, name: str, data: np.ndarray) -> None:
    found = file.create_dataset(name, data.shape[:1], h5py.regionref_dtype)
    for number in range(len(data)):
        found[number] = file["moved"].regionref[:1]


def _numbers_of_any_length(file: h5py.File, name: str, data: np.ndarray) -> None:
    found = file.create_dataset(name, data.shape[:1], h5py.vlen_dtype(data.dtype))
    for number in range(len(data)):
        found[number] = np.atleast_1d(data[number]).reshape(-1)


def _pairs(data: np.ndarray) -> np.ndarray:
    return np.zeros(data.shape, [("a", data.dtype), ("b", data.dtype)])


def _wider(data: np.ndarray) -> np.ndarray:
    return data.astype({2: np.float32, 1: np.int16, 4: np.uint64, 8: np.float32}[data.itemsize])


CHANGES: dict[str, Change] = {
    "missing": lambda file, name: file.__delitem__(name),
    "soft link": linked(lambda name: h5py.SoftLink("/moved")),
    "dangling soft link": linked(lambda name: h5py.SoftLink("/nowhere")),
    "external link": linked(lambda name: h5py.ExternalLink("good.h5", f"/{name}")),
    "external link to a device": linked(lambda name: h5py.ExternalLink("/dev/zero", "/x")),
    "soft links in a circle": replaced(_loop_of_links),
    "external storage": replaced(_external),
    "external storage on a device": replaced(_external_device),
    "virtual": replaced(_virtual(".")),
    "virtual, elsewhere": replaced(_virtual("good.h5")),
    "group": replaced(lambda file, name, data: file.create_group(name)),
    "group that holds itself": replaced(_group_of_itself),
    "named type": replaced(lambda file, name, data: file.__setitem__(name, data.dtype)),
    "chunked": stored_as(chunks=True),
    "one byte to a chunk": lambda file, name: stored_as(chunks=(1,) * file[name].ndim)(file, name),
    "gzip": stored_as(compression="gzip"),
    "lzf": stored_as(compression="lzf"),
    "shuffled": stored_as(shuffle=True),
    "fletcher32": stored_as(fletcher32=True),
    "unknown filter": low_level(
        lambda properties: properties.set_filter(32_700, h5py.h5z.FLAG_OPTIONAL, ()), write=False
    ),
    "scale offset": stored_as(scaleoffset=4),
    "growing": lambda file, name: stored_as(maxshape=(None,) * file[name].ndim)(file, name),
    "gzip bomb": replaced(
        lambda file, name, data: file.create_dataset(
            name, (2**31, *data.shape[1:]), data.dtype, chunks=True, compression="gzip"
        )
    ),
    "declared far more": replaced(
        lambda file, name, data: file.create_dataset(name, (2**40, *data.shape[1:]), data.dtype)
    ),
    "declared more than can be counted": replaced(
        lambda file, name, data: file.create_dataset(name, (2**31, 2**31 - 1), data.dtype)
    ),
    "far more columns": replaced(
        lambda file, name, data: file.create_dataset(name, (len(data), 2**40), data.dtype)
    ),
    "many axes": replaced(
        lambda file, name, data: file.create_dataset(name, (2,) * 32, data.dtype)
    ),
    "one row more": replaced(
        lambda file, name, data: file.create_dataset(
            name, data=np.concatenate([data, data[:1]]), dtype=data.dtype
        )
    ),
    "one row less": turned_into(lambda data: data[:-1]),
    "no rows": turned_into(lambda data: data[:0]),
    "an axis more": turned_into(lambda data: data[..., None]),
    "scalar": turned_into(lambda data: data.reshape(-1)[0]),
    "null": replaced(lambda file, name, data: file.__setitem__(name, h5py.Empty(data.dtype))),
    "another width": turned_into(_wider),
    "float64": turned_into(lambda data: data.astype(np.float64)),
    "float128": turned_into(lambda data: data.astype(np.longdouble)),
    "complex": turned_into(lambda data: data.astype(np.complex64)),
    "big-endian": turned_into(lambda data: data.astype(">u8")),
    "truth values": turned_into(lambda data: data.astype(bool)),
    "compound": turned_into(_pairs),
    "arrays in a row": turned_into(lambda data: np.zeros(len(data), [("a", data.dtype, 4)])),
    "texts": turned_into(lambda data: np.full(data.shape, b"12345678")),
    "texts of any length": turned_into(
        lambda data: np.full(data.shape, "x" * 99, object), dtype=h5py.string_dtype()
    ),
    "numbers of any length": replaced(_numbers_of_any_length),
    "references": replaced(_references),
    "region references": replaced(_regions),
    "opaque": turned_into(lambda data: data.reshape(-1).view("V1")),
    "named numbers": turned_into(
        lambda data: data.astype("i1"), dtype=h5py.enum_dtype({"A": 1}, basetype="i1")
    ),
}
"""By what is done to one data set of the file."""


def _deep(file: h5py.File, _: str) -> None:
    group = file
    for _number in range(1500):
        group = group.create_group("g")


def _cycle(file: h5py.File, _: str) -> None:
    inner = file.create_group("loop")
    inner["again"] = file["/"]
    inner["itself"] = inner


def _crowd(file: h5py.File, _: str) -> None:
    for number in range(3000):
        file[f"x{number}"] = h5py.SoftLink("/nowhere")


def _large_attribute(file: h5py.File, _: str) -> None:
    file.create_group("more", track_order=True).attrs.create("large", np.zeros(8000, "u8"))
    for number in range(200):
        file.attrs[f"x{number}"] = np.zeros(500, "u8")


def _odd_attributes(file: h5py.File, _: str) -> None:
    file.attrs["text of any length"] = "x" * 50_000
    file.attrs.create("reference", file["/"].ref, dtype=h5py.ref_dtype)
    file.attrs["pickled"] = np.void(b"\x80\x04]\x94.")


def _every_part_declares_more(file: h5py.File, _: str) -> None:
    # They agree with one another; only the file is too small for them.
    for name in list(file):
        shape, dtype = file[name].shape, file[name].dtype
        del file[name]
        file.create_dataset(name, (2**26, *shape[1:]), dtype)


def attribute(value: Callable[[Any], Any] | None) -> Change:
    def change(file: h5py.File, name: str) -> None:
        before = file.attrs[name]
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value(before)

    return change


_IN_THE_HEADER = low_level(lambda properties: properties.set_layout(h5py.h5d.COMPACT))
_EARLY = low_level(lambda properties: properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY))

HARMLESS: dict[str, Change] = {
    "features in the header": lambda file, _: _IN_THE_HEADER(file, next(iter(file))),
    "allocated early": lambda file, _: _EARLY(file, next(iter(file))),
    "nothing at all": lambda file, name: None,
    "groups 1,500 deep": _deep,
    "hard links in a circle": _cycle,
    "3,000 links": _crowd,
    "large attributes": _large_attribute,
    "odd attributes": _odd_attributes,
}
"""What is beside the point is left alone: such a file gives its own rows, or is refused."""

ATTRIBUTE_CHANGES: dict[str, Change] = {
    "missing": attribute(None),
    "text of any length": attribute(str),
    "texts of any length": attribute(lambda value: [str(value)] * 3),
    "several": attribute(lambda value: [value, value]),
    "null": attribute(lambda value: h5py.Empty("S4")),
    "compound": attribute(lambda value: np.zeros((), [("a", "i4")])),
    "bytes": attribute(lambda value: np.void(b"\x80\x04]\x94.")),
    "float": attribute(lambda value: 1.0),
    "newer": attribute(lambda value: 2),
    "no UTF-8": attribute(lambda value: np.bytes_(b"\xff\xfe")),
    "another text": attribute(lambda value: np.bytes_(b"{}")),
    "a text of 60 kB": attribute(lambda value: np.bytes_(b"[" * 60_000)),
}


def crafted(template: bytes, path: Path, change: Change, name: str, **options: Any) -> None:
    """A copy of an HDF5 file with one thing changed, written to ``path``."""
    with h5py.File(path, "w", **options) as file:
        with h5py.File(io.BytesIO(template)) as good:
            for key in good.attrs:
                file.attrs[key] = good.attrs[key]
            for key in good:
                file.create_dataset(key, data=good[key][()])
        change(file, name)


SEAL = hashlib.sha256(b"featpipe data set").hexdigest().encode()


def unsealed(data: bytes) -> bytes:
    """A data set file with the text in it that its digest is taken with."""
    with h5py.File(io.BytesIO(data)) as file:
        return data.replace(bytes(file.attrs["sha256"]), SEAL, 1)


def sealed(data: bytes) -> bytes:
    """With its digest: whoever may write to a cache can make it fit."""
    return data.replace(SEAL, hashlib.sha256(data).hexdigest().encode(), 1)


def good_segment() -> bytes:
    return build_segment(SPACE, IDS, ROWS, {"host": "node"})


def good_dataset(folder: Path) -> bytes:
    samples = in_splits(train=10, val=5, test=5)
    stored_set(folder, samples, name="set")
    return dataset_path(folder, "set").read_bytes()


def by_digest(path: Path) -> Path:
    """Named as a whole segment is."""
    name = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(path.with_name(f"{name}.h5"))


def read_hostile_segment(case: dict[str, Any]) -> str:
    """Runs in the child: refused, or harmless and then the rows are those of the good one."""
    path = Path(case["path"])

    def read() -> None:
        segment = read_segment(path, SPACE)
        assert case["harmless"], "it was accepted"
        assert segment.ids.tobytes() == IDS.tobytes()
        rows = list(whole_rows(segment, SPACE))
        assert b"".join(row.tobytes() for row in rows if row is not None) == ROWS.tobytes()

    said = refused(read)
    return "" if said == "" or str(path) in said else f"it does not name the file: {said}"


def read_hostile_dataset(case: dict[str, Any]) -> str:
    """The same for data sets."""
    cache = Path(case["path"]).parents[1]

    def read() -> None:
        found = load_dataset(cache, Path(case["path"]).stem)
        assert case["harmless"], "it was accepted"
        assert found.digest() == case["digest"]

    said = refused(read)
    return "" if said == "" or case["path"] in said else f"it does not name the file: {said}"


@pytest.fixture(scope="module")
def hostile_segments(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every change to every part of a segment."""
    folder = tmp_path_factory.mktemp("segments")
    template = good_segment()
    crafted(template, folder / "good.h5", HARMLESS["nothing at all"], "")
    wanted: list[tuple[str, Change, str, bool]] = []
    for name in ("features", "image_sha256", "crc32"):
        wanted += [(f"{name}: {what}", change, name, False) for what, change in CHANGES.items()]
    for name in ("format_version", "space", "space_id"):
        for what, change in ATTRIBUTE_CHANGES.items():
            wanted.append((f"attribute {name}: {what}", change, name, False))
    wanted.append(("every part declares more", _every_part_declares_more, "", False))
    wanted += [(what, change, "", True) for what, change in HARMLESS.items()]
    return made(folder, template, wanted, lambda path: None)


@pytest.fixture(scope="module")
def hostile_datasets(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Every change to every part of a data set, its digest made to fit."""
    cache = tmp_path_factory.mktemp("datasets")
    data = good_dataset(cache)
    digest = load_dataset(cache, "set").digest()
    folder = cache / "datasets"
    (folder / "good.h5").write_bytes(data)
    columns = ("label", "split", "image_sha256", "status", "stat")
    columns += ("path_bytes", "path_end", "header")
    wanted: list[tuple[str, Change, str, bool]] = []
    for name in columns:
        wanted += [(f"{name}: {what}", change, name, False) for what, change in CHANGES.items()]
    for name in ("format_version", "sha256"):
        for what, change in ATTRIBUTE_CHANGES.items():
            wanted.append((f"attribute {name}: {what}", change, name, False))
    wanted.append(("every part declares more", _every_part_declares_more, "", False))
    wanted += [(what, change, "", True) for what, change in HARMLESS.items()]

    def seal(path: Path) -> None:
        path.write_bytes(sealed(path.read_bytes()))

    found = made(folder, unsealed(data), wanted, seal)
    return [{**case, "digest": digest} for case in found]


def made(
    folder: Path,
    template: bytes,
    wanted: list[tuple[str, Change, str, bool]],
    finish: Callable[[Path], None],
) -> list[dict[str, Any]]:
    """One folder for each file, so that relative links find the good one beside them."""
    cases = []
    for number, (what, change, name, harmless) in enumerate(wanted):
        options = {"libver": "latest"} if number % 2 and harmless else {}
        path = folder / f"set{number}.h5"
        try:
            crafted(template, path, change, name, **options)
        except ValueError:
            # Two changes that HDF5 itself refuses for some numbers.
            assert what.endswith(("scale offset", "more than can be counted")), what
            path.unlink()
            continue
        finish(path)
        cases.append({"path": str(path), "what": what, "harmless": harmless})
    return cases


def test_hostile_files_are_refused_before_they_are_read(
    hostile_segments: list[dict[str, Any]],
    hostile_datasets: list[dict[str, Any]],
    tally: NewTally,
) -> None:
    for kind, cases in ("segment", hostile_segments), ("dataset", hostile_datasets):
        t = tally(PROMISE, f"crafted HDF5 files as {kind}s")
        (first,) = (case for case in cases if case["what"] == "nothing at all")
        for case, found in in_child(f"read_hostile_{kind}", cases, first=first):
            with t.case(case["what"]):
                assert not found, found


def test_what_a_child_dies_of_is_one_case(tmp_path: Path) -> None:
    # Without this, a crash or a loop could pass unseen.
    cases = ["fine", "crash", "error", "memory", "fine"]
    found = dict(zip(range(5), in_child("misbehave", cases, first="fine"), strict=True))
    by_case = dict(found.values())
    assert by_case["fine"] == ""
    assert by_case["crash"].startswith(f"the process ended with {-signal.SIGSEGV}")
    assert by_case["error"] == "KeyError: 'x'"
    assert "MiB more" in by_case["memory"]


def misbehave(case: str) -> str:
    if case == "crash":
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    if case == "error":
        raise KeyError("x")
    if case == "memory":
        assert len(b"x" * (MOST_MEMORY + 2**25))
    return ""


# Random damage where HDF5 and zip keep what describes a file.

HEADER = 4096


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Bits, bytes, runs and lengths changed in the first 4 kB."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        end = max(1, min(HEADER, len(changed)))
        place, length = int(rng.integers(end)), int(rng.integers(1, 65))
        match rng.choice(("bit", "byte", "run", "number", "cut", "twice", "swap")):
            case "bit":
                changed[place] ^= 1 << int(rng.integers(8))
            case "byte":
                changed[place] = int(rng.integers(256))
            case "run":
                length = min(length, len(changed) - place)
                changed[place : place + length] = bytes([int(rng.choice((0, 255)))]) * length
            case "number":
                wide = int(rng.choice((2, 4, 8)))
                number = int(rng.choice((0, 1, 2**15, 2**31, 2**40, 2**62))) % 2 ** (8 * wide)
                changed[place : place + wide] = number.to_bytes(wide, "little")
            case "cut":
                if rng.integers(8) == 0:
                    del changed[place:]
                else:
                    del changed[place : place + length]
            case "twice":
                changed[place:place] = changed[place : place + length]
            case "swap":
                other = int(rng.integers(end))
                a, b = changed[place : place + 8], changed[other : other + 8]
                if len(a) == len(b):
                    changed[other : other + 8], changed[place : place + 8] = a, b
        if not changed:
            break
    return bytes(changed)


class NoSync(disk.Disk):
    """What is thrown away at once need not wait for the real disk."""

    def fsync(self, fd: int) -> None:
        pass

    def fsync_folder(self, folder: Path) -> None:
        pass


def read_damaged(case: dict[str, Any]) -> str:
    """Runs in the child: refused, or what is read is what was meant."""
    cache, kind, number = Path(case["cache"]), case["kind"], case["number"]
    # What a fault left has no digest that fits; what somebody made has.
    resealed = bool(number % 2)
    rng = np.random.default_rng([8, number])
    store = FeatureStore(cache, SPACE)
    with disk.use_disk(NoSync()):
        if kind == "segment":
            path = cache / f"{number}.h5"
            path.write_bytes(damaged((cache / "good.h5").read_bytes(), rng))
            segment = []
            if not refused(lambda: segment.append(read_segment(path, SPACE))):
                (found,) = segment
                assert found.ids.shape == (len(found.crc32), 32)
                # A row that is handed out is one that was computed.
                for row in whole_rows(found, SPACE):
                    assert row is None or row.tobytes() in case["rows"].encode("latin-1")
        elif kind == "dataset":
            path = cache / "datasets" / "set.h5"
            good = (cache / "good_set.h5").read_bytes()
            if resealed:
                path.write_bytes(sealed(damaged(unsealed(good), rng)))
            else:
                path.write_bytes(damaged(good, rng))
            same = path.read_bytes() == good
            told = refused(lambda: load_dataset(cache, "set").describe())
            assert told or same or resealed, "a damaged data set was accepted"
        else:
            path = store.folder / INDEX_NAME
            good = (cache / "good.npz").read_bytes()
            data = damaged(good[:-32], rng) if resealed else damaged(good, rng)
            path.write_bytes(data + hashlib.sha256(data).digest() if resealed else data)
            index = load_index(store.folder, SPACE)
            if not resealed:
                assert sorted(row.tobytes() for row in index.ids) == sorted(
                    row.tobytes() for row in IDS
                )
    path.unlink(missing_ok=True)
    return ""


@pytest.mark.timeout(3600)
def test_random_damage_neither_crashes_nor_hangs(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    store = FeatureStore(tmp_path, SPACE)
    store.prepare()
    store.append(IDS[:20], ROWS[:20], {})
    store.append(IDS[20:], ROWS[20:], {})
    assert len(store.index.ids) == 40
    shutil.copy(store.folder / INDEX_NAME, tmp_path / "good.npz")
    (tmp_path / "good.h5").write_bytes(good_segment())
    (tmp_path / "good_set.h5").write_bytes(good_dataset(tmp_path / "other"))
    (tmp_path / "datasets").mkdir()
    common = {"cache": str(tmp_path), "rows": ROWS.tobytes().decode("latin-1")}
    for kind, count in ("segment", 250), ("dataset", 150), ("index", 100):
        t = tally(PROMISE, f"random damage in the first 4 kB: {kind}")
        numbers = range(scale(count, 40 * count))
        cases = [{**common, "kind": kind, "number": number} for number in numbers]
        for case, found in in_child("read_damaged", cases, first=cases[0]):
            with t.case(f"{kind} {case['number']}"):
                assert not found, found


# The commands on such caches.

COMMANDS = {
    "verify": ["cache", "verify"],
    "verify --quick": ["cache", "verify", "--quick"],
    "train-head": ["train-head", "colours", "--device", "cpu", "--epochs", "1"],
    "evaluate": ["evaluate", "run"],
    "advise": ["advise", "colours"],
    "audit": ["audit", "colours"],
    "export": ["export", "colours", "--format", "npz", "--out", "x.npz"],
    "predict": ["predict", "run", "photos/red/00.png", "--device", "cpu", "--workers", "1"],
    "extract": ["extract", "photos", "--name", "colours", "--workers", "1", *TINY_FLAGS],
    "info": ["cache", "info", "colours"],
    "gc": ["cache", "gc", "--grace", "0"],
}
NEEDS_NO_DATASET = ("predict",)
NEEDS_NO_SEGMENT = ("info",)


def command(case: dict[str, Any]) -> str:
    """Runs in the child: a command on a cache with one hostile file ends with 13 and one line."""
    from typer.testing import CliRunner

    from featpipe.cli.app import app

    folder = Path(case["folder"]) / "now"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case["workspace"], folder)
    os.chdir(folder)
    make_hostile(folder / "cache", case["kind"], case["change"], case["name"])
    done = CliRunner().invoke(app, COMMANDS[case["command"]])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    unused = NEEDS_NO_DATASET if case["kind"] == "dataset" else NEEDS_NO_SEGMENT
    expected = 0 if case["change"] in HARMLESS or case["command"] in unused else 13
    assert done.exit_code == expected, f"exit code {done.exit_code}: {done.stderr}"
    if expected and "verify" not in case["command"]:
        last = done.stderr.strip().split("\n")[-1]
        assert last.startswith("Error: expected a whole"), last
    assert "Traceback" not in done.stderr
    return ""


def make_hostile(cache: Path, kind: str, what: str, name: str) -> None:
    """Change the one data set, or one segment, in one way; name and digest are made to fit."""
    change = (CHANGES | HARMLESS)[what]
    pattern = "datasets/*.h5" if kind == "dataset" else "spaces/*/segments/*.h5"
    path = next(cache.glob(pattern))
    data = path.read_bytes()
    path.unlink()
    if kind == "dataset":
        crafted(unsealed(data), path, change, name)
        path.write_bytes(sealed(path.read_bytes()))
    else:
        (path.parents[1] / INDEX_NAME).unlink()
        crafted(data, path, change, name)
        by_digest(path)


@pytest.mark.timeout(3600)
def test_every_command_on_a_hostile_cache_ends_with_13(
    workspace: Path, tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    common = {"folder": str(tmp_path), "workspace": str(workspace)}
    changes = [
        (kind, what, name)
        for kind, name in (("segment", "features"), ("dataset", "label"))
        for what in CHANGES
        if not what.startswith(("scale offset", "declared more than can"))
    ]
    picked = np.random.default_rng(8).permutation(len(changes))[: scale(8, len(changes))]
    per_change = scale(1, len(COMMANDS))
    cases = [
        {**common, "kind": kind, "change": what, "name": name, "command": list(COMMANDS)[k % 7]}
        for number, (kind, what, name) in enumerate(changes[i] for i in picked)
        for k in range(number, number + per_change)
    ]
    harmless = {**common, "kind": "segment", "change": "nothing at all", "name": ""}
    first = {**harmless, "command": "verify"}
    # A command's memory is that of its imports, too.
    cases += [{**harmless, "command": name} for name in (*COMMANDS, "verify")[-scale(1, 8) :]]
    t = tally(PROMISE, "commands on caches with a crafted file")
    for case, found in in_child("command", cases, first=first, memory=2**30):
        with t.case(f"{case['command']}, {case['kind']} {case['change']}"):
            assert not found, found


# Any name a file system allows.

NAMES = [
    b"new\nline.png",
    b"carriage\rreturn.png",
    b"not \xff\xfe utf-8.png",
    b"half \xed\xa0\x80 pair.png",
    b"bell\x07 and escape\x1b[31m.png",
    b"\x7f\x01\x02.png",
    b"-rf.png",
    b"--json.png",
    b"quote\"s and 'others'.png",
    b"comma, semicolon; tab\t.png",
    b"<script>alert(1)<&script>.png",
    b"<img src=x onerror=alert(1)>.png",
    b"&lt;&amp;.png",
    "right\u202eto left\u200f.png".encode(),
    "separators\u2028\u2029\u0085.png".encode(),
    "\U0001f600 e\u0301 \u00e9 \u0000".replace("\u0000", "").encode() + b".png",
    b"=cmd|' &C'!A0.png",
    b"%s %d {} {0} $HOME `id` $(id).png",
    b" leading and trailing .png ",
    b"back\\slash\\n.png",
    b"..\\..\\up.png",
    b"...png",
    b"*?[a]~.png",
    b"x" * 251 + b".png",
    b"\xff" * 251 + b".png",
    b"no suffix",
]
NAMES = [name for name in NAMES if not name.startswith(b".")]

# Commands one after another in one process, each with a file for its stdout, as a shell does it.
_EACH_TO_A_FILE = """
import json, os, sys
from featpipe.cli import main
for number, arguments in enumerate(json.loads(sys.argv[1])):
    os.dup2(os.open(f"out{number}", os.O_WRONLY | os.O_CREAT), 1)
    sys.argv = ["featpipe", *arguments]
    try:
        main()
    except SystemExit as end:
        sys.stdout.flush()
        assert end.code == 0, (arguments, end.code)
"""


@pytest.fixture
def strange_folder(tmp_path: Path) -> Path:
    """Two classes with odd names, whose pictures have every odd name."""
    folder = tmp_path / "strange"
    for number, label in enumerate((b"cl<a>ss, \xff\n1", b"-\"2'\xe2\x80\xae")):
        inside = os.fsencode(folder) + b"/" + label
        os.makedirs(inside)
        for seed, name in enumerate(NAMES):
            picture = class_picture(number * 2, seed)
            with open(inside + b"/" + name, "wb") as file:
                picture.save(file, "PNG")
    return folder


def test_any_name_comes_back_unchanged_and_is_escaped(
    strange_folder: Path, tmp_path: Path, tally: NewTally
) -> None:
    t = tally(PROMISE, "odd names: folder, data set, JSON, CSV, report")
    labels = sorted(os.listdir(strange_folder))
    wanted = sorted(os.fsencode(label) + b"/" + name for label in labels for name in NAMES)
    pairs = zip(TINY_FLAGS[::2], TINY_FLAGS[1::2], strict=True)
    options = {flag.removeprefix("--"): value for flag, value in pairs}
    cache = tmp_path / "cache"
    api.extract(strange_folder, name="odd", cache=cache, split=(0.4, 0.2, 0.4), **options)
    dataset = load_dataset(cache, "odd")
    assert dataset.classes == labels
    assert dataset.usable.all()
    found = {os.fsencode(path) for path in dataset.paths}
    for path in wanted:
        with t.case(f"data set {path!r}"):
            assert path in found

    run = tmp_path / "run"
    api.train_head("odd", cache=cache, out=run, epochs=1, seed=0, device="cpu")
    predict = ["predict", str(run), str(strange_folder), "--device", "cpu", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-c", _EACH_TO_A_FILE, json.dumps([[*predict, "--json"], predict])],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env={**os.environ, "FEATPIPE_CACHE": str(cache), "NO_COLOR": "1", "LC_ALL": "C"},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    whole = {os.fsencode(strange_folder) + b"/" + path for path in wanted}
    lines = (tmp_path / "out0").read_bytes().split(b"\n")[:-1]
    from_json = {os.fsencode(json.loads(line)["path"]): json.loads(line) for line in lines}
    text = (tmp_path / "out1").read_bytes().decode("utf-8", errors="surrogateescape")
    rows = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    from_csv = {os.fsencode(row["path"]): row for row in rows}
    assert len(from_json) == len(from_csv) == len(wanted)
    for path in sorted(whole):
        with t.case(f"JSON {path!r}"):
            assert from_json[path]["label"] in labels
        with t.case(f"CSV {path!r}"):
            assert from_csv[path]["label"] == from_json[path]["label"]

    # A list that says the opposite of each makes mistakes of them: their names are shown.
    opposite = dict(zip(labels, reversed(labels), strict=True))
    rows_of_list = [
        json.dumps({"path": path, "label": opposite[path.split("/")[0]], "split": "test"})
        for path in dataset.paths
        if any(
            sign in path.split("/")[1]
            for sign in ("<script", "<img", "\x07", "\u202e", "\u2028", "half")
        )
    ]
    (tmp_path / "list.jsonl").write_text("\n".join(rows_of_list))
    api.extract(
        tmp_path / "list.jsonl", name="opposite", cache=cache, root=strange_folder, **options
    )
    report = api.evaluate(run, cache=cache, on="opposite").as_json()["report"]
    page = Path(report).read_text(encoding="utf-8")
    with t.case("report shows names at all"):
        assert page.count("<figure ") == len(rows_of_list) == 12
        assert "&lt;script&gt;alert(1)&lt;&amp;script&gt;" in page
        assert "cl&lt;a&gt;ss, \\udcff\\n1" in page
    for sign in (
        "<script>alert",
        "<img src=x",
        "cl<a>",
        "\u202e",
        "\u2028",
        "\x1b",
        "\x07",
        "\udcff",
    ):
        with t.case(f"report shows {sign!r} as text"):
            assert sign not in page
    with t.case("report is text that anyone may write down"):
        assert all(character.isprintable() or character == "\n" for character in page)


def test_a_list_of_any_names_gives_the_same_data_set(
    strange_folder: Path, tmp_path: Path, tally: NewTally
) -> None:
    from featpipe.sources import open_source

    t = tally(PROMISE, "odd names in lists")
    records = open_source(strange_folder).records
    for suffix in (".csv", ".tsv", ".jsonl"):
        path = tmp_path / f"list{suffix}"
        text = io.StringIO(newline="")
        if suffix == ".jsonl":
            for r in records:
                text.write(json.dumps({"path": r.path, "label": r.label}) + "\n")
        else:
            writer = csv.writer(text, delimiter="\t" if suffix == ".tsv" else ",")
            writer.writerow(["path", "label"])
            writer.writerows([r.path, r.label] for r in records)
        path.write_bytes(text.getvalue().encode("utf-8", errors="surrogateescape"))
        read = open_source(path, root=strange_folder).records
        for mine, its in zip(records, read, strict=True):
            with t.case(f"{suffix} {mine.path!r}"):
                assert (mine.path, mine.label) == (its.path, its.label)
