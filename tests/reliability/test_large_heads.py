"""Heads of many blocks: their files are written, read and hashed piece by piece.

A network of 120 million parameters takes 60 blocks. Here a small one takes as many smaller ones.
"""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.crash import no_temporary_files, undisturbed
from support.faulty_disk import FaultyDisk, JournalDisk, PowerLoss, PowerLossModel, build_tree
from support.runs import JSON_NAME, TENSORS_NAME, load_head, save_head, trained_head
from support.tally import NewTally, Scale

from featpipe.base import disk as disk_module
from featpipe.base import tensor_files
from featpipe.base.disk import use_disk
from featpipe.base.errors import DamageError, StorageError
from featpipe.runs.trained_head import TrainedHead

BLOCKS = 60


@pytest.fixture(scope="module")
def heads() -> list[TrainedHead]:
    """Networks that differ."""
    return [trained_head("lenet", seed) for seed in range(3)]


@pytest.fixture(autouse=True)
def small_blocks(heads: list[TrainedHead], monkeypatch: pytest.MonkeyPatch) -> None:
    size = sum(tensor.nbytes for tensor in heads[0].head.tensors().values())
    monkeypatch.setattr(tensor_files, "BLOCK_BYTES", size // BLOCKS)
    monkeypatch.setattr(disk_module, "_COLLECTED_BYTES", 1)


def answering(folder: Path, heads: list[TrainedHead]) -> int:
    """Which of the heads a run folder gives; all of it, not one tensor of another."""
    found = load_head(folder)
    number: int = found.info["seed"]
    expected = heads[number].head.tensors()
    assert {n: t.tobytes() for n, t in found.head.tensors().items()} == {
        n: np.ascontiguousarray(t).tobytes() for n, t in expected.items()
    }
    return number


def calls_of_saving(folder: Path, heads: list[TrainedHead]) -> list[str]:
    """The calls to the disk of saving a head over another one."""
    save_head(folder, heads[0])
    disk = FaultyDisk(syncs=False)
    with use_disk(disk):
        save_head(folder, heads[1])
    assert disk.calls.count("write") > BLOCKS
    return disk.calls


def test_a_head_cut_after_any_block_is_the_old_one_or_the_new(
    tmp_path: Path, heads: list[TrainedHead], tally: NewTally, scale: Scale
) -> None:
    calls = calls_of_saving(tmp_path / "whole", heads)
    t = tally("1 Killed at any instant", "each call of saving a head of many blocks over another")
    for number, call in [*enumerate(calls)][:: scale(11, 1)]:
        folder = tmp_path / f"{number}"
        save_head(folder, heads[0])
        with t.case(f"cut after call {number}, {call}"):
            disk = FaultyDisk(lose_power_after=number, syncs=False)
            with use_disk(disk), pytest.raises(PowerLoss):
                save_head(folder, heads[1])
            is_new = calls[: number + 1].count("rename") == 2
            assert answering(folder, heads) == int(is_new)
            undisturbed(lambda folder=folder: save_head(folder, heads[2]))
            assert answering(folder, heads) == 2
            assert {path.name for path in folder.iterdir()} == {JSON_NAME, TENSORS_NAME}
        shutil.rmtree(folder)


def test_a_head_of_many_blocks_survives_a_power_loss(
    tmp_path: Path, heads: list[TrainedHead], tally: NewTally, scale: Scale
) -> None:
    root = tmp_path / "recorded"
    save_head(root / "run", heads[0])
    journal = JournalDisk(root)
    with use_disk(journal):
        save_head(root / "run", heads[1])
    # The replacement is decided by the name of the description.
    (end,) = (
        k
        for k, (name, arguments) in enumerate(journal.operations)
        if name == "rename" and arguments[1] == f"run/{JSON_NAME}"
    )
    rng = random.Random(6)
    t = tally("2 Power loss", "states of a disk on which a head of many blocks was replaced")
    for number in range(scale(8, 600)):
        length = rng.randint(0, len(journal.operations))
        tree = PowerLossModel(journal.start, journal.operations[:length]).after_power_loss(rng)
        with t.case(f"state {number}, after call {length}"):
            build_tree(tmp_path / "state", tree)
            found = answering(tmp_path / "state" / "run", heads)
            assert int(end + 1 < length) <= found <= int(end < length)
            undisturbed(lambda: save_head(tmp_path / "state" / "run", heads[2]))
            assert answering(tmp_path / "state" / "run", heads) == 2
            no_temporary_files(tmp_path / "state")
        shutil.rmtree(tmp_path / "state")


def test_a_disk_that_fills_at_any_block_leaves_the_old_head(
    tmp_path: Path, heads: list[TrainedHead], tally: NewTally, scale: Scale
) -> None:
    calls = calls_of_saving(tmp_path / "whole", heads)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    t = tally(
        "3 Disk full and write errors", "each write of saving a head of many blocks finds no room"
    )
    writes = [number for number, call in enumerate(calls) if call == "write"]
    for number in writes[:: scale(15, 1)]:
        folder = tmp_path / f"{number}"
        save_head(folder, heads[0])
        with t.case(f"no room at call {number}"):
            with use_disk(FaultyDisk(fail_at=number, fail_with=full, syncs=False)):
                with pytest.raises(StorageError, match="make room for at least") as caught:
                    save_head(folder, heads[1])
            assert caught.value.exit_code == 74
            assert answering(folder, heads) == 0
            no_temporary_files(folder)
            undisturbed(lambda folder=folder: save_head(folder, heads[1]))
            assert answering(folder, heads) == 1
        shutil.rmtree(folder)


def test_every_flipped_bit_and_every_cut_of_a_head_of_many_blocks_is_found(
    tmp_path: Path, heads: list[TrainedHead], tally: NewTally, scale: Scale
) -> None:
    path = save_head(tmp_path / "run", heads[0]) / TENSORS_NAME
    whole = path.read_bytes()
    rng = random.Random(7)
    flips = tally("4 Damage is found", "bits flipped in the tensors of a head of many blocks")
    cuts = tally("4 Damage is found", "tensors of a head of many blocks cut short or lengthened")
    for number in range(scale(40, 1500)):
        # Half of them where the file says what it holds.
        place = rng.randrange(1200 if number % 2 else len(whole))
        data = bytearray(whole)
        data[place] ^= 1 << rng.randrange(8)
        with flips.case(f"byte {place}"):
            path.write_bytes(bytes(data))
            with pytest.raises(DamageError, match="expected a whole head in"):
                load_head(path.parent)
    for size in {0, 1, 8, len(whole) - 1, *range(0, len(whole), len(whole) // scale(10, 150))}:
        with cuts.case(f"{size} of {len(whole)}"):
            path.write_bytes(whole[:size])
            with pytest.raises(DamageError, match="expected a whole head in"):
                load_head(path.parent)
    with cuts.case("a byte more"):
        path.write_bytes(whole + b"\0")
        with pytest.raises(DamageError, match="expected a whole head in"):
            load_head(path.parent)
    path.write_bytes(whole)
    assert answering(path.parent, heads) == 0


# Saves two heads in turn for ever, on a disk that dawdles before each block.
SAVING = """
import sys, time
from pathlib import Path
from featpipe.base import disk, tensor_files
from featpipe.runs.run import Run

tensor_files.BLOCK_BYTES = int(sys.argv[2])
disk._COLLECTED_BYTES = 1

class Dawdling(disk.Disk):
    def write(self, fd, data):
        time.sleep(0.001)
        return super().write(fd, data)

folder = Path(sys.argv[1])
heads = [Run(folder / name).load_head() for name in ("first", "second")]
Run(folder / "run").save_head(heads[1])
print("ready", flush=True)
with disk.use_disk(Dawdling()):
    while True:
        for head in heads:
            Run(folder / "run").save_head(head)
"""


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_a_process_killed_while_it_saves_leaves_a_whole_head(
    tmp_path: Path, heads: list[TrainedHead], tally: NewTally, scale: Scale
) -> None:
    for name, head in (("first", heads[0]), ("second", heads[1]), ("run", heads[2])):
        save_head(tmp_path / name, head)
    t = tally("1 Killed at any instant", "kills of a process that saves heads of many blocks")
    rng, found = random.Random(os.urandom(8)), []
    for number in range(scale(1, 60)):
        process = subprocess.Popen(
            [sys.executable, "-c", SAVING, str(tmp_path), str(tensor_files.BLOCK_BYTES)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n"
            delay = rng.uniform(0, 0.3)
            time.sleep(delay)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait(60)
            process.stdout.close()
        with t.case(f"kill {number} after {delay:.3f} s"):
            found.append(answering(tmp_path / "run", heads))
    assert set(found) <= {0, 1}
    undisturbed(lambda: save_head(tmp_path / "run", heads[2]))
    assert answering(tmp_path / "run", heads) == 2
    no_temporary_files(tmp_path)
