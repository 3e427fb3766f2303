"""One image can never end the job: workers that die, hang, eat memory or talk too much."""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image
from support.samples import jpeg_bytes

from featpipe.base.errors import FeatpipeError
from featpipe.base.locations import Encoded, File, Slice
from featpipe.base.space import Preprocessing
from featpipe.decoding import messages, worker
from featpipe.decoding.pixels import FORMATS, load_pixels
from featpipe.decoding.pool import DecodePool
from featpipe.decoding.worker_process import Decoded, Task, WorkerProcess

PREPROCESSING = Preprocessing(size=16, resize="squash", mean=(0.0,) * 3, std=(1.0,) * 3)
NOTHING_KNOWN = np.empty((0, 32), np.uint8)

SABOTAGE = '''
"""Loaded by every Python that starts: files with these first words misbehave when decoded."""
import ctypes, os, time
import featpipe.decoding.pixels as pixels

real = pixels.load_pixels

def load_pixels(data, *args, **options):
    word = data.split(b" ")[0]
    if word == b"DIE":
        os.kill(os.getpid(), 9)
    if word == b"CRASH":
        ctypes.string_at(0)
    if word == b"ONCE":
        # Dies at the first try only.
        try:
            os.close(os.open(data.split(b" ")[1], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return real(data.split(b" ", 2)[2], *args, **options)
        os.kill(os.getpid(), 9)
    if word == b"EXIT":
        os._exit(7)
    if word == b"HANG":
        time.sleep(float(data.split(b" ")[1]))
    if word == b"EAT":
        raise MemoryError
    if word == b"TALK":
        print("chatter " * 10000)
    return real(data, *args, **options)

pixels.load_pixels = load_pixels
'''


@pytest.fixture
def saboteur(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make decoding misbehave on command, in the worker processes only."""
    use_at_start(SABOTAGE, tmp_path, monkeypatch)


def use_at_start(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "at_start"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(code)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(folder), before])))


def pool(**options: Any) -> DecodePool:
    return DecodePool(PREPROCESSING, **{"workers": 1, "known": NOTHING_KNOWN, **options})


def decode_all(tasks: list[Task], **options: Any) -> dict[int, Decoded]:
    """Results by key; fails where a task gives none, or two."""
    found: dict[int, Decoded] = {}
    with pool(**options) as workers:
        for result in workers.decode(tasks):
            if result is not None:
                assert result.key not in found
                found[result.key] = result
    assert sorted(found) == sorted(task.key for task in tasks)
    return found


def payloads(*contents: bytes) -> list[Task]:
    return [Task(key, None, content) for key, content in enumerate(contents)]


def kinds(found: dict[int, Decoded]) -> list[str]:
    return [found[key].kind for key in sorted(found)]


def test_every_task_gives_exactly_one_result(tmp_path: Path) -> None:
    tasks = []
    for key in range(40):
        path = tmp_path / f"{key}.jpg"
        path.write_bytes(jpeg_bytes(key) if key % 5 else b"no picture")
        tasks.append(Task(key, str(path)))
    found = decode_all(tasks, workers=3)
    for key, result in found.items():
        data = (tmp_path / f"{key}.jpg").read_bytes()
        assert result.image_id == hashlib.sha256(data).digest()
        status = os.stat(tmp_path / f"{key}.jpg")
        assert result.stat == (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        if key % 5:
            assert result.kind == "pixels"
            assert np.array_equal(result.pixels[0], load_pixels(data, PREPROCESSING))
        else:
            assert (result.kind, result.stage, result.pixels) == ("bad", "open", None)


def test_no_tasks_give_no_results() -> None:
    assert decode_all([]) == {}


def test_pixels_stay_after_the_slot_is_used_again() -> None:
    # The worker writes into two shared slots; what was handed out must be a copy.
    contents = [jpeg_bytes(seed) for seed in range(8)]
    with pool() as workers:
        results = [result for result in workers.decode(payloads(*contents)) if result]
    for result in results:
        expected = load_pixels(contents[result.key], PREPROCESSING)
        assert np.array_equal(result.pixels[0], expected)


def test_payloads_need_no_file() -> None:
    found = decode_all(payloads(jpeg_bytes(1), b"", jpeg_bytes(2, (400, 300))))
    assert kinds(found) == ["pixels", "bad", "pixels"]
    assert found[0].stat is None
    assert found[1].stage == "read"


def test_an_image_may_be_a_part_of_a_file(tmp_path: Path) -> None:
    first, second = jpeg_bytes(1), jpeg_bytes(2)
    (tmp_path / "archive").write_bytes(first + second)
    path, after = str(tmp_path / "archive"), len(first) + len(second)
    parts = [(0, len(first)), (len(first), len(second)), (after - 1, 2)]
    tasks = [Task.at(key, Slice(path, *part)) for key, part in enumerate(parts)]
    found = decode_all([*tasks, Task.at(3, File(path)), Task.at(4, Encoded(second))])
    assert [found[key].image_id for key in (0, 1, 4)] == [
        hashlib.sha256(data).digest() for data in (first, second, second)
    ]
    assert np.array_equal(found[1].pixels[0], load_pixels(second, PREPROCESSING))
    assert found[0].stat == found[3].stat is not None
    assert (found[2].stage, found[2].reason) == ("read", "the file ends too early")


def test_known_images_are_not_decoded(saboteur: None) -> None:
    # Decoding the known one would kill the worker.
    known = [hashlib.sha256(content).digest() for content in (b"DIE known", b"other")]
    known += [bytes(32), b"\xff" * 32, b"\x01" + bytes(31)]
    ids = np.frombuffer(b"".join(known), np.uint8).reshape(-1, 32)
    found = decode_all(payloads(b"DIE known", jpeg_bytes(1), b"DIE unknown"), known=ids)
    assert kinds(found) == ["known", "pixels", "bad"]
    assert found[0].image_id == known[0]
    assert found[0].pixels is None


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.jpg")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    names = ["fifo.jpg", "folder.jpg", "loop.jpg", "missing.jpg"]
    found = decode_all([Task(k, str(tmp_path / name)) for k, name in enumerate(names)])
    assert kinds(found) == ["bad"] * 4
    assert {result.stage for result in found.values()} == {"read"}
    assert all(result.image_id is None for result in found.values())
    assert [found[k].reason for k in (0, 1)] == ["not a regular file"] * 2
    assert found[3].reason == "No such file or directory"


def test_any_file_name_works(tmp_path: Path) -> None:
    names = [b"a\nb.jpg", b"\xff\xfe.jpg", "größe \U0001f408.jpg".encode(), b'q"uo\\te.jpg']
    for name in names:
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(jpeg_bytes(1))
    paths = [os.fsdecode(os.path.join(os.fsencode(tmp_path), name)) for name in names]
    found = decode_all([Task(k, path) for k, path in enumerate(paths)])
    assert kinds(found) == ["pixels"] * 4


def test_a_dying_worker_costs_exactly_its_image(saboteur: None) -> None:
    contents = [jpeg_bytes(seed) for seed in range(10)]
    contents[0], contents[4], contents[5], contents[9] = b"DIE 0", b"DIE 4", b"EXIT 5", b"DIE 9"
    found = decode_all(payloads(*contents), workers=2)
    for key, result in found.items():
        if key in (0, 4, 5, 9):
            how = "exit 7" if key == 5 else "SIGKILL"
            assert (result.kind, result.stage) == ("bad", "worker")
            assert result.reason == f"its decoder died twice ({how})"
        else:
            expected = load_pixels(contents[key], PREPROCESSING)
            assert np.array_equal(result.pixels[0], expected)


def test_only_deadly_images_still_end(saboteur: None) -> None:
    # More deaths than workers may die at start: these were ready, so it is the images' fault.
    found = decode_all(payloads(*(b"DIE %d" % key for key in range(5))))
    assert kinds(found) == ["bad"] * 5


def test_a_worker_killed_from_outside_costs_nothing(saboteur: None, tmp_path: Path) -> None:
    # As the kernel does when memory is short: nobody's image is at fault.
    contents = [jpeg_bytes(seed) for seed in range(6)]
    for key in (0, 3):
        contents[key] = b"ONCE %s " % os.fsencode(tmp_path / str(key)) + contents[key]
    found = decode_all(payloads(*contents), workers=2)
    assert kinds(found) == ["pixels"] * 6
    assert np.array_equal(found[3].pixels[0], load_pixels(jpeg_bytes(3), PREPROCESSING))


def test_a_segmentation_fault_costs_exactly_its_image(saboteur: None) -> None:
    found = decode_all(payloads(jpeg_bytes(0), b"CRASH now", jpeg_bytes(2)))
    assert kinds(found) == ["pixels", "bad", "pixels"]
    assert found[1].reason == "its decoder died twice (SIGSEGV)"


def test_a_hang_is_cut_and_the_rest_goes_on(saboteur: None) -> None:
    contents = [jpeg_bytes(0), b"HANG 600", jpeg_bytes(2), jpeg_bytes(3)]
    started = time.monotonic()
    found = decode_all(payloads(*contents), time_limit_s=3)
    assert time.monotonic() - started < 60
    assert kinds(found) == ["pixels", "bad", "pixels", "pixels"]
    assert (found[1].stage, found[1].reason) == ("worker", "took longer than 3 s")


def test_a_hang_is_cut_also_when_a_large_payload_waits_behind_it(saboteur: None) -> None:
    # The second payload is larger than a pipe holds.
    contents = [b"HANG 5.5", jpeg_bytes(1) + bytes(1 << 20), jpeg_bytes(2)]
    found = decode_all(payloads(*contents), time_limit_s=3)
    assert kinds(found)[1:] == ["pixels", "pixels"]
    assert found[0].reason == "took longer than 3 s"


def test_the_time_limit_is_that_of_one_image_though_many_are_sent_at_once(saboteur: None) -> None:
    contents = [b"HANG 0.3 %d" % key for key in range(12)] + [jpeg_bytes(k) for k in range(8)]
    contents[15] = b"HANG 600"
    found = decode_all(payloads(*contents), time_limit_s=2)
    assert [found[key].stage for key in range(12)] == ["open"] * 12
    assert kinds(found)[12:] == ["pixels"] * 3 + ["bad"] + ["pixels"] * 4
    assert found[15].reason == "took longer than 2 s"


def test_small_images_in_memory_share_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    send = WorkerProcess._send

    def counted(self: WorkerProcess, data: bytes) -> None:
        sent.append(len(data))
        send(self, data)

    monkeypatch.setattr(WorkerProcess, "_send", counted)
    small = [jpeg_bytes(k, (4, 4)) for k in range(200)]
    found = decode_all(payloads(*small))
    assert all(
        np.array_equal(found[k].pixels[0], load_pixels(small[k], PREPROCESSING)) for k in found
    )
    assert len(sent) < 200 / 4
    # More than the pipe of a busy process holds would block the pool.
    assert max(sent) < 1 << 15


def test_what_is_finished_when_the_tasks_fail_is_not_lost() -> None:
    def tasks() -> Iterator[Task]:
        yield from payloads(*(jpeg_bytes(k) for k in range(8)))
        time.sleep(2)  # they are decoded by then
        raise KeyError("mine")

    found = []
    with pool() as workers, pytest.raises(KeyError, match="mine"):
        for result in workers.decode(tasks()):
            found.append(result)
    assert sorted(result.key for result in found if result) == list(range(8))


def test_a_caller_is_never_kept_waiting(saboteur: None) -> None:
    with pool() as workers:
        results = workers.decode(payloads(b"HANG 600"))
        assert next(results) is None
        started = time.monotonic()
        assert next(results) is None
        assert time.monotonic() - started < 5
        process = workers._workers[0].process
    # Leaving the pool ends its processes, also one that hangs.
    assert process.poll() is not None


def test_a_consumer_that_stays_away_makes_no_image_late() -> None:
    found = []
    with pool(time_limit_s=2) as workers:
        for result in workers.decode(payloads(*(jpeg_bytes(seed) for seed in range(4)))):
            if result is not None:
                found.append(result.kind)
                if len(found) == 1:
                    time.sleep(3)
    assert found == ["pixels"] * 4


def test_memory_of_one_image_is_capped(tmp_path: Path) -> None:
    # 1 MB of PNG, 1.6 GB as RGB.
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    (tmp_path / "small.jpg").write_bytes(jpeg_bytes(1))
    names = ["large.png", "small.jpg"]
    tasks = [Task(k, str(tmp_path / name)) for k, name in enumerate(names)]
    found = decode_all(tasks, memory_bytes=900 << 20, max_pixels=10**9)
    assert kinds(found) == ["bad", "pixels"]


def test_an_image_too_large_for_the_memory_is_told_so(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "large.png")
    task = Task(0, str(tmp_path / "large.png"))
    found = decode_all([task], memory_bytes=900 << 20, max_pixels=10**9)
    assert found[0].reason == "needs more memory than one image may take"


def test_out_of_memory_is_a_bad_image_not_a_dead_worker(saboteur: None) -> None:
    found = decode_all(payloads(b"EAT", jpeg_bytes(1)))
    assert kinds(found) == ["bad", "pixels"]
    assert (found[0].stage, found[0].reason) == (
        "decode",
        "needs more memory than one image may take",
    )


def test_too_many_pixels_are_bad() -> None:
    found = decode_all(payloads(jpeg_bytes(0, (30, 30)), jpeg_bytes(1, (31, 30))), max_pixels=900)
    assert kinds(found) == ["pixels", "bad"]


def test_a_decoder_that_prints_breaks_nothing(saboteur: None) -> None:
    found = decode_all(payloads(b"TALK", jpeg_bytes(1)))
    assert kinds(found) == ["bad", "pixels"]
    assert found[0].stage == "open"


def test_workers_that_cannot_start_end_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_at_start("import os; os._exit(3)", tmp_path, monkeypatch)
    with pytest.raises(FeatpipeError, match=r"3 in a row did not \(exit 3\)"):
        decode_all(payloads(jpeg_bytes(1)))


def test_an_error_in_the_callers_tasks_reaches_the_caller() -> None:
    def tasks() -> Iterator[Task]:
        yield Task(0, None, jpeg_bytes(1))
        raise KeyError("mine")

    with pool() as workers, pytest.raises(KeyError, match="mine"):
        list(workers.decode(tasks()))


def test_interrupting_the_group_leaves_workers_to_their_parent(saboteur: None) -> None:
    found = []
    with pool() as workers:
        for result in workers.decode(payloads(jpeg_bytes(0), b"HANG 2", jpeg_bytes(2))):
            if result is not None:
                found.append(result.kind)
                for number in (signal.SIGINT, signal.SIGTERM):
                    os.kill(workers._workers[0].process.pid, number)
    # The one that hung for a while is no picture, but nobody died.
    assert found == ["pixels", "bad", "pixels"]


def test_the_sample_folder_of_bad_images_ends_as_listed(shared: Path) -> None:
    folder = shared / "data" / "bad_images"
    with open(folder / "expected.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    good = jpeg_bytes(7, (300, 200))
    tasks, expected = [], {}
    for key, row in enumerate(rows):
        tasks.append(Task(2 * key, str(folder / row["file"])))
        tasks.append(Task(2 * key + 1, None, good))
        readable = row["pillow_13_verdict"] == "decodes" and row["format"] in FORMATS
        # Float pixels have no defined white: refused on purpose.
        expected[2 * key] = "pixels" if readable and row["mode"] != "F" else "bad"
    found = decode_all(tasks, workers=2)
    assert len(rows) > 100
    wrong = {
        rows[key // 2]["file"]: found[key] for key in expected if found[key].kind != expected[key]
    }
    if int(PIL.__version__.partition(".")[0]) == 13:
        # Other versions of Pillow read a few of these files that this one refuses.
        assert not wrong
    pixels = load_pixels(good, PREPROCESSING)
    assert all(np.array_equal(found[2 * k + 1].pixels[0], pixels) for k in range(len(rows)))
    assert not [r for r in found.values() if r.stage == "worker"]


def test_frames_survive_any_cut() -> None:
    headers = [{"key": number, "reason": "ä" * number} for number in range(5)]
    stream = b"".join(
        messages.pack(header, b"payload"[:number]) for number, header in enumerate(headers)
    )
    for step in (1, 3, 7, len(stream)):
        splitter = messages.Splitter()
        found = []
        for start in range(0, len(stream), step):
            found += splitter.feed(stream[start : start + step])
        assert found == headers


def test_known_ids_that_end_in_zero_bytes_are_recognised() -> None:
    ids = np.frombuffer(b"".join(bytes([n]) * 30 + b"\0\0" for n in range(9)), np.uint8)
    known = np.sort(ids.reshape(9, 32).view("S32").reshape(-1))
    assert all(worker._is_known(known, row.tobytes()) for row in ids.reshape(9, 32))
    assert not worker._is_known(known, bytes([3]) * 30 + b"\0\1")
    assert not worker._is_known(known, b"\xff" * 32)
    assert not worker._is_known(known[:0], b"\0" * 32)


def test_pictures_of_several_shapes_come_back_with_their_own() -> None:
    preprocessing = dataclasses.replace(PREPROCESSING, resize="whole")
    contents = [jpeg_bytes(0, (48, 40)), jpeg_bytes(1, (40, 90)), jpeg_bytes(2, (900, 20))]
    with DecodePool(preprocessing, workers=1, known=NOTHING_KNOWN) as workers:
        found = {result.key: result for result in workers.decode(payloads(*contents)) if result}
    for key, content in enumerate(contents):
        assert np.array_equal(found[key].pixels[0], load_pixels(content, preprocessing))
    assert [found[key].pixels.shape for key in range(3)] == [
        (1, 16, 19, 3),
        (1, 36, 16, 3),
        (1, 16, 128, 3),
    ]
