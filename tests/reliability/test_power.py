"""Power loss: every state a disk may be left in gives right rows, or refuses.

What is done is recorded call by call, and from every beginning of that record states are
derived by what POSIX promises and no more; see :class:`support.faulty_disk.PowerLossModel`.
"""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support.crash import (
    BATCH,
    NAMED,
    NAMED_ROWS,
    PIECES,
    SPACES,
    ReadOnlyDisk,
    assert_collected,
    assert_nothing_named_is_lost,
    assert_repaired,
    assert_rows_are_handed_out,
    assert_space_is_there_or_not_listed,
    cache_with_garbage,
    collect,
    damaged_cache,
    damages,
    dataset_of,
    dataset_of_pictures,
    extract,
    no_temporary_files,
    remove_again,
    remove_space,
    row_of,
    undisturbed,
    whole_rows_of,
)
from support.faulty_disk import (
    JournalDisk,
    PowerLoss,
    PowerLossModel,
    Tree,
    build_tree,
    named,
    tree_of,
)
from support.runs import load_head, save_head, trained_head
from support.samples import image_ids
from support.tally import NewTally, Scale

from featpipe.base.disk import use_disk
from featpipe.base.errors import DamageError, NotFoundError
from featpipe.datasets.files import load_dataset, save_dataset
from featpipe.engine import writer
from featpipe.runs.trained_head import TrainedHead
from featpipe.stages.maintain import repair, verify
from featpipe.store.feature_store import FeatureStore

PROMISE = "2 Power loss"


@pytest.fixture(autouse=True)
def every_batch_is_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "COMMIT_BYTES", 1)


def recorded(root: Path, *steps: Callable[[], object], forgets: Sequence[str] = ()) -> JournalDisk:
    """The journal of some steps, below ``root``."""
    disk = JournalDisk(root, forgets=forgets, bytes_a_write=PIECES)
    with use_disk(disk):
        for step in steps:
            step()
    return disk


def states(journal: JournalDisk, count: int, seed: int) -> Iterator[tuple[str, int, Tree]]:
    """States after a power loss: at every length of the journal in turn, in random order."""
    rng = random.Random(seed)
    lengths: list[int] = []
    for number in range(count):
        if not lengths:
            lengths = [*range(len(journal.operations) + 1)]
            rng.shuffle(lengths)
            # The first one tried is that of an end in peace.
            lengths.append(len(journal.operations))
        length = lengths.pop()
        model = PowerLossModel(journal.start, journal.operations[:length])
        yield f"state {number}, after call {length}", length, model.after_power_loss(rng)


def acknowledged(journal: JournalDisk, length: int, suffix: str) -> set[str]:
    """Files that a program may rely on: fsynced, renamed, and their folder fsynced, in order."""
    numbers: dict[str, int] = {}
    fsynced: set[int] = set()
    renamed: set[str] = set()
    found: set[str] = set()
    for name, arguments in journal.operations[:length]:
        if name == "open":
            numbers[arguments[0]] = arguments[1]
        elif name == "write":
            fsynced.discard(arguments[0])
        elif name == "fsync":
            fsynced.add(arguments[0])
        elif name == "rename" and arguments[1].endswith(suffix):
            if numbers.get(arguments[0]) in fsynced:
                renamed.add(arguments[1])
        elif name == "fsync_folder":
            found |= {path for path in renamed if str(Path(path).parent) == arguments[0]}
    return found


@dataclass
class Written:
    """A journal of an extraction, and what each file held at any time."""

    journal: JournalDisk
    batches: int
    versions: dict[str, set[bytes]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        open_files: dict[int, bytes] = {}
        names: dict[str, int] = {}
        for name, arguments in self.journal.operations:
            if name == "open":
                names[arguments[0]], open_files[arguments[1]] = arguments[1], b""
            elif name == "write":
                open_files[arguments[0]] += arguments[1]
            elif name == "rename" and arguments[0] in names:
                data = open_files[names[arguments[0]]]
                self.versions.setdefault(arguments[1], set()).add(data)


def check_cache(written: Written, length: int, tree: Tree, cache: Path) -> int:
    """Look at a state as a reader, verify it, mend it, go on; returns how many files were hurt."""
    files = {p: data for p, data in named(tree).items() if data is not None}
    hurt = {p for p, data in files.items() if data not in written.versions[p]}
    for path in acknowledged(written.journal, length, ".h5"):
        assert path in files, f"{path} was promised and is gone"
    if length == len(written.journal.operations):
        assert files.keys() == written.versions.keys(), "a file is gone although all was done"
    assert_right_or_refused(cache)
    found = damages(cache)
    told = {str(damage.path.relative_to(cache.parent)) for damage in found}
    # Where nothing says what a store holds, it is damaged as one.
    unknown = {d.path.parent for d in found if d.path.name == "space.json" and d.space is None}
    assert told <= hurt, "a whole file is called damaged"
    for path in hurt - told:
        assert unknown & {*(cache.parent / path).parents}, f"{path} is hurt and not told"
    before = {p for p in files if Path(p).parent.name == "segments"} - hurt
    if (cache / "spaces").is_dir() or (cache / "datasets").is_dir():
        undisturbed(lambda: repair(cache))
        assert verify(cache)[1] == []
    whole = {path for path in before if (cache.parent / path).exists()}
    assert whole == before, "mending lost a whole segment"
    undisturbed(lambda: extract(cache, written.batches))
    every = {(kind, name) for kind in (0, 1) for name in range(written.batches * BATCH)}
    assert_rows_are_handed_out(cache, every)
    assert load_dataset(cache, "set").digest() == dataset_of(written.batches).digest()
    assert verify(cache)[1] == []
    no_temporary_files(cache / "spaces")
    no_temporary_files(cache / "datasets")
    return len(hurt)


def assert_right_or_refused(cache: Path) -> None:
    """Every row that is handed out is right; what is not is refused by name."""
    with use_disk(ReadOnlyDisk()):
        _assert_right_or_refused(cache)


def _assert_right_or_refused(cache: Path) -> None:
    for kind, space in enumerate(SPACES):
        store = FeatureStore(cache, space)
        for name in range(30):
            try:
                row = store.rows(image_ids(name))[0]
            except (DamageError, NotFoundError):
                continue
            assert row.tobytes() == row_of(kind, name).tobytes(), "a wrong row"
    try:
        dataset = load_dataset(cache, "set")
    except (DamageError, NotFoundError):
        return
    assert dataset.digest() == dataset_of(len(dataset) // BATCH).digest()


def written(root: Path, forgets: Sequence[str] = ()) -> Written:
    """Rows written in two runs, the second replacing index and data set."""
    root.mkdir()
    cache = root / "cache"
    journal = recorded(root, lambda: extract(cache, 2), lambda: extract(cache, 4), forgets=forgets)
    return Written(journal, 4)


def count_hurt(source: Written, folder: Path, count: int, seed: int) -> int:
    hurt = 0
    for _, length, tree in states(source.journal, count, seed):
        build_tree(folder, tree)
        hurt += check_cache(source, length, tree, folder / "cache")
        shutil.rmtree(folder)
    return hurt


def test_the_model_agrees_with_the_disk(tmp_path: Path) -> None:
    journal = written(tmp_path / "recorded").journal
    model = PowerLossModel(journal.start, journal.operations)
    assert model.seen() == tree_of(journal.root)
    # Everything was asked to be durable, so nothing is left to chance.
    assert model.after_power_loss(random.Random(0)) == tree_of(journal.root)


def test_rows_survive_a_power_loss_at_any_instant(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    source = written(tmp_path / "recorded")
    t = tally(PROMISE, "states of a disk on which rows were written")
    for label, length, tree in states(source.journal, scale(12, 1200), 1):
        with t.case(label):
            build_tree(tmp_path / "state", tree)
            hurt = check_cache(source, length, tree, tmp_path / "state" / "cache")
            assert hurt == 0, "a file that has its name is not whole"
        shutil.rmtree(tmp_path / "state")


def test_a_killed_writer_and_then_a_power_loss(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    # What the dead process has not made durable, the next one relies on.
    whole = written(tmp_path / "whole")
    t = tally(PROMISE, "states after a kill, going on, and a power loss")
    for number in range(3, len(whole.journal.calls) // 2, scale(30, 1)):
        root = tmp_path / f"killed{number}"
        root.mkdir()
        disk = JournalDisk(root, bytes_a_write=PIECES, lose_power_after=number)
        with use_disk(disk):
            with pytest.raises(PowerLoss):
                extract(root / "cache", 4)
            disk.come_back()
            extract(root / "cache", 4)
        source = Written(disk, 4)
        for label, length, tree in states(disk, scale(2, 12), number):
            with t.case(f"kill {number}, {label}"):
                build_tree(tmp_path / "state", tree)
                assert check_cache(source, length, tree, tmp_path / "state" / "cache") == 0
            shutil.rmtree(tmp_path / "state")


@pytest.mark.parametrize("forgotten", ["fsync", "fsync_folder"])
def test_without_fsync_rows_would_be_lost(forgotten: str, tmp_path: Path) -> None:
    # The model has teeth: a disk that is not asked to keep a file may not keep it. Then too,
    # no wrong row is handed out, and verify names every file that is hurt.
    source = written(tmp_path / "recorded", forgets=[forgotten])
    if forgotten == "fsync":
        assert count_hurt(source, tmp_path / "state", 6, seed=3) > 2
        return
    # The journal of an honest disk tells what had been promised.
    promised = written(tmp_path / "honest").journal
    segments = acknowledged(promised, len(promised.operations), ".h5")
    lost = 0
    for _, _, tree in states(source.journal, 15, seed=3):
        lost += len(segments - set(tree))
    assert lost > 5


@pytest.mark.parametrize("what", ["rows", "a head", "a repair", "a collection of garbage"])
def test_every_name_is_given_to_a_durable_file_and_made_durable(
    what: str, tmp_path: Path, heads: list[TrainedHead]
) -> None:
    root = tmp_path / "recorded"
    if what == "rows":
        journal = written(root).journal
    elif what == "a head":
        save_head(root / "run", heads[0])
        journal = recorded(root, lambda: save_head(root / "run", heads[1]))
    elif what == "a collection of garbage":
        cache_with_garbage(root / "cache")
        journal = recorded(root, lambda: collect(root / "cache"))
    else:
        damaged_cache(root / "cache")
        journal = recorded(root, lambda: repair(root / "cache"))
    operations = journal.operations
    numbers = {arguments[0]: arguments[1] for name, arguments in operations if name == "open"}
    given = 0
    for k, (name, arguments) in enumerate(operations):
        if name not in ("rename", "link"):
            continue
        source, target = arguments
        given += 1
        if source in numbers and name == "rename":
            number = numbers[source]
            writes = [i for i, (n, a) in enumerate(operations) if n == "write" and a[0] == number]
            fsyncs = [i for i, (n, a) in enumerate(operations) if n == "fsync" and a[0] == number]
            assert fsyncs and max(writes) < fsyncs[-1] < k, f"{target} had its name too early"
        following = operations[k + 1 :]
        parents = {str(Path(target).parent)} | ({str(Path(source).parent)} - {"."})
        for parent in parents:
            durable = following.index(("fsync_folder", (parent,)))
            # No other name is given before this one is sure to last.
            between = {n for n, _ in following[:durable]}
            assert not between & {"rename", "link", "open", "write"}, f"{target} may go again"
    assert given >= 2


@pytest.fixture(scope="module")
def heads() -> list[TrainedHead]:
    return [trained_head("linear", seed) for seed in range(3)]


def test_a_head_survives_a_power_loss_at_any_instant(
    tmp_path: Path, heads: list[TrainedHead], tally: NewTally, scale: Scale
) -> None:
    root = tmp_path / "recorded"
    save_head(root / "run", heads[0])
    journal = recorded(
        root, lambda: save_head(root / "run", heads[1]), lambda: save_head(root / "run", heads[2])
    )
    # From which call on a head is sure to have been replaced.
    ends = [
        k
        for k, operation in enumerate(journal.operations)
        if operation == ("rename", (operation[1][0], "run/head.json"))
    ]
    t = tally(PROMISE, "states of a disk on which a head was replaced, twice")
    for label, length, tree in states(journal, scale(25, 1000), 4):
        with t.case(label):
            build_tree(tmp_path / "state", tree)
            found = load_head(tmp_path / "state" / "run")
            number = found.info["seed"]
            begun = sum(end < length for end in ends)
            done = sum(end + 1 < length for end in ends)
            assert done <= number <= begun
            assert found.head.mean_.tobytes() == heads[number].head.mean_.tobytes()
            undisturbed(lambda: save_head(tmp_path / "state" / "run", heads[0]))
            assert load_head(tmp_path / "state" / "run").info["seed"] == 0
            no_temporary_files(tmp_path / "state")
        shutil.rmtree(tmp_path / "state")


def test_saving_a_head_is_killed_and_then_a_power_loss(
    tmp_path: Path, heads: list[TrainedHead], tally: NewTally, scale: Scale
) -> None:
    t = tally(PROMISE, "states after a kill while a head was replaced, another try, a power loss")
    for number in itertools.count():
        root = tmp_path / f"killed{number}"
        save_head(root / "run", heads[0])
        disk = JournalDisk(root, lose_power_after=number)
        with use_disk(disk):
            try:
                save_head(root / "run", heads[1])
            except PowerLoss:
                disk.come_back()
            else:
                break
            save_head(root / "run", heads[2])
        for label, _, tree in states(disk, scale(3, 100), number):
            with t.case(f"kill {number}, {label}"):
                build_tree(tmp_path / "state", tree)
                found = load_head(tmp_path / "state" / "run")
                assert found.head.mean_.tobytes() == heads[found.info["seed"]].head.mean_.tobytes()
            shutil.rmtree(tmp_path / "state")


def test_a_repair_survives_a_power_loss_at_any_instant(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    root = tmp_path / "recorded"
    damaged = damaged_cache(root / "cache")
    rows = whole_rows_of(root / "cache")
    journal = recorded(root, lambda: repair(root / "cache"))
    t = tally(PROMISE, "states of a disk on which a cache was repaired")
    for label, _, tree in states(journal, scale(8, 400), 5):
        with t.case(label):
            build_tree(tmp_path / "state", tree)
            cache = tmp_path / "state" / "cache"
            assert whole_rows_of(cache) >= rows, "a whole row was lost"
            everywhere = {data for data in tree.values() if data is not None}
            assert damaged <= everywhere, "a damaged file is gone"
            undisturbed(lambda cache=cache: repair(cache))
            assert_repaired(cache, rows, damaged)
        shutil.rmtree(tmp_path / "state")


def test_a_collection_of_garbage_survives_a_power_loss_at_any_instant(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    root = tmp_path / "recorded"
    cache_with_garbage(root / "cache")
    journal = recorded(root, lambda: collect(root / "cache"))
    t = tally(PROMISE, "states of a disk on which garbage was collected")
    for label, length, tree in states(journal, scale(15, 400), 6):
        with t.case(label):
            build_tree(tmp_path / "state", tree)
            cache = tmp_path / "state" / "cache"
            assert_nothing_named_is_lost(cache)
            if length == len(journal.operations):
                assert whole_rows_of(cache) == NAMED_ROWS, "garbage came back"
            undisturbed(lambda cache=cache: collect(cache))
            assert_collected(cache)
        shutil.rmtree(tmp_path / "state")


def test_a_collection_is_killed_and_the_next_one_meets_a_power_loss(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    # What the dead process has not made durable, the next one relies on.
    cache_with_garbage(tmp_path / "whole" / "cache")
    calls = recorded(tmp_path / "whole", lambda: collect(tmp_path / "whole" / "cache")).calls
    t = tally(PROMISE, "states after a kill, collecting on, and a power loss")
    for number in range(len(calls) // 4, len(calls), scale(len(calls) // 2, 1)):
        root = tmp_path / f"killed{number}"
        cache_with_garbage(root / "cache")
        disk = JournalDisk(root, bytes_a_write=PIECES, lose_power_after=number)
        with use_disk(disk):
            with pytest.raises(PowerLoss):
                collect(root / "cache")
            disk.come_back()
            collect(root / "cache")
        for label, _, tree in states(disk, scale(3, 12), number):
            with t.case(f"kill {number}, {label}"):
                build_tree(tmp_path / "state", tree)
                assert_nothing_named_is_lost(tmp_path / "state" / "cache")
            shutil.rmtree(tmp_path / "state")


def test_a_list_that_a_power_loss_may_bring_back_keeps_its_rows(tmp_path: Path) -> None:
    # An extraction is killed before its new list is durable; then garbage is collected.
    root = tmp_path / "recorded"
    undisturbed(lambda: extract(root / "cache", 4))
    disk = JournalDisk(root, forgets=["fsync_folder"])
    with use_disk(disk):
        save_dataset(root / "cache", dataset_of_pictures(NAMED))
    disk.forget_nothing()
    with use_disk(disk):
        collect(root / "cache")
    for _, _, tree in states(disk, 40, seed=7):
        build_tree(tmp_path / "state", tree)
        named = load_dataset(tmp_path / "state" / "cache", "set")
        for space in SPACES:
            rows = FeatureStore(tmp_path / "state" / "cache", space).rows(named.image_sha256)
            assert len(rows) == len(named)
        shutil.rmtree(tmp_path / "state")


def test_the_removal_of_a_space_survives_a_power_loss_at_any_instant(
    tmp_path: Path, tally: NewTally, scale: Scale
) -> None:
    root = tmp_path / "recorded"
    undisturbed(lambda: extract(root / "cache", 4))
    journal = recorded(root, lambda: remove_space(root / "cache"))
    gone = named(tree_of(root / "cache"))
    t = tally(PROMISE, "states of a disk on which a feature space was removed")
    for label, _, tree in states(journal, scale(15, 400), 8):
        with t.case(label):
            build_tree(tmp_path / "state", tree)
            cache = tmp_path / "state" / "cache"
            assert_space_is_there_or_not_listed(cache)
            remove_again(cache)
            # A temporary file goes with the next file that is written beside it.
            assert named(tree_of(cache)) == gone
        shutil.rmtree(tmp_path / "state")
