"""The engine: requests become spaces, tasks become committed rows, whatever interrupts."""

from __future__ import annotations

import dataclasses
import hashlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from support.library import plan_of, run_pass
from support.samples import image_ids, jpeg_bytes, small_space

from featpipe.backbones.catalog import get_backbone
from featpipe.base.errors import FeatpipeError, SpaceMismatchError, StorageError, UsageError
from featpipe.base.space import Preprocessing
from featpipe.decoding.worker_process import Task
from featpipe.engine import writer
from featpipe.engine.extractor import Extractor, default_batch_size
from featpipe.engine.outcome import Outcome, OutcomeKind, Timings
from featpipe.engine.plan import FeaturePlan, plan_for_spaces
from featpipe.engine.prefetch import prefetch
from featpipe.engine.writer import SegmentWriter
from featpipe.specs.extract import EngineOptions
from featpipe.store.feature_store import FeatureStore

ONE_WORKER = EngineOptions(workers=1, batch_size=4)


@pytest.fixture
def plan(tiny: dict[str, Any], cache: Path) -> FeaturePlan:
    return plan_of(tiny, cache)


def stores_of(plan: FeaturePlan, cache: Path) -> list[FeatureStore]:
    return [FeatureStore(cache, space) for space in plan.spaces]


def tasks(*seeds: int) -> list[Task]:
    return [Task(key, None, jpeg_bytes(seed)) for key, seed in enumerate(seeds)]


def ids(*contents: bytes) -> np.ndarray:
    digests = b"".join(hashlib.sha256(content).digest() for content in contents)
    return np.frombuffer(digests, np.uint8).reshape(-1, 32)


def segments(store: FeatureStore) -> int:
    return len(list(store.segments_folder.glob("*.h5")))


def test_a_request_resolves_to_one_space_per_tap_and_pooling(cache: Path) -> None:
    options = {
        "weights": "random:0",
        "tap": ("block1_pool", "block2_pool", "features.4"),
        "pool": ("none", "avg", "avg"),
        "size": 16,
        "precision": "fp32",
        "device": "cpu",
    }
    plan = plan_of(options, cache)
    assert [(space.tap, space.pooling, space.shape) for space in plan.spaces] == [
        ("block1_pool", "none", (64, 8, 8)),
        ("block1_pool", "avg", (64,)),
        ("block2_pool", "none", (128, 4, 4)),
        ("block2_pool", "avg", (128,)),
    ]
    # A tap's space knows the weights up to the tap: others may be retrained later.
    assert plan.spaces[0].weights == plan.spaces[1].weights != plan.spaces[2].weights
    assert not cache.exists()


def test_default_request_is_vgg16_as_torchvision_has_it(cache: Path) -> None:
    (space,) = plan_of({"precision": "fp32", "device": "cpu"}, cache).spaces
    assert (space.backbone, space.tap, space.pooling) == ("vgg16", "block5_pool", "none")
    assert (space.dtype, space.shape) == ("float16", (512, 7, 7))
    assert space.weights == "59f3df9a05b36959a8835d84c5342da0f144e6f8bf604837c3c403bfedefd5e9"
    assert space.preprocessing == Preprocessing(
        size=224, resize="crop", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)
    )


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("resize", "stretch", "expected --resize to be one of crop, squash, found 'stretch'"),
        ("dtype", "float64", "expected --dtype to be one of float16, float32, found 'float64'"),
        ("pool", ("mean",), "expected --pool to be one of none, avg, max, cls, found 'mean'"),
        (
            "precision",
            "fp8",
            "expected --precision to be one of auto, fp32, bf16, fp16, found 'fp8'",
        ),
        ("size", 0, "expected --size of 1 to 4096 pixels, found 0"),
        ("size", 4097, "found 4097"),
        ("size", 1, "expected --size of at least 2 for block1_pool, found 1"),
        ("tap", (), "at least one --tap"),
        ("pool", (), "at least one --pool"),
        ("tap", ("block6_pool",), "did you mean"),
        ("backbone", "alexne", "did you mean 'alexnet'"),
        ("weights", "random:x", "expected --weights"),
        ("device", "tpu", "found 'tpu'; use --device auto or cpu"),
        ("device", "cuda:99", "found 'cuda:99'"),
        ("device", "cuda:x", "found 'cuda:x'"),
    ],
)
def test_fields_that_cannot_be_meant_are_usage_errors(
    field: str, value: Any, message: str, tiny: dict[str, Any], cache: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        plan_of({**tiny, field: value}, cache)
    assert message in str(caught.value)


def test_engine_options_must_be_positive() -> None:
    for name in ("batch_size", "workers", "max_pixels"):
        option = name.replace("_", "-")
        bounds = "1 to 1024 processes" if name == "workers" else "at least 1"
        with pytest.raises(UsageError, match=f"expected --{option} of {bounds}, found 0"):
            EngineOptions(**{name: 0})


def test_a_plan_for_a_known_space_needs_its_weights(plan: FeaturePlan, cache: Path) -> None:
    (space,) = plan.spaces
    again = plan_for_spaces([space], "random:0", cache, device="cpu")
    assert again.spaces == [space]
    with pytest.raises(SpaceMismatchError, match="give the right ones with --weights"):
        plan_for_spaces([space], "random:1", cache, device="cpu")


def test_pixels_of_an_unknown_decoder_are_not_made_up(plan: FeaturePlan, cache: Path) -> None:
    (space,) = plan.spaces
    other = dataclasses.replace(space.preprocessing, decoder="from the future")
    with pytest.raises(SpaceMismatchError, match="expected a decoder of pillow, pillow-draft"):
        plan_for_spaces([dataclasses.replace(space, preprocessing=other)], "random:0", cache)


def test_every_task_has_one_outcome_and_every_picture_one_row(
    plan: FeaturePlan, cache: Path
) -> None:
    (store,) = stores_of(plan, cache)
    outcomes: list[Outcome] = []
    given = [*tasks(0, 1, 2, 1, 3, 4), Task(6, None, b"no picture")]
    run_pass(given, plan, [store], outcomes.append, ONE_WORKER)
    assert sorted(outcome.key for outcome in outcomes) == list(range(7))
    kind = {outcome.key: outcome.kind for outcome in outcomes}
    assert kind == {
        **dict.fromkeys((0, 1, 2, 4, 5), OutcomeKind.COMPUTED),
        3: OutcomeKind.KNOWN,
        6: OutcomeKind.BAD,
    }
    assert len(store.index.ids) == 5
    assert store.contains(ids(*(jpeg_bytes(seed) for seed in range(5)))).all()
    assert not store.contains(ids(b"no picture")).any()
    # The provenance says with what they were made.
    outcomes.clear()
    run_pass(given, plan, [store], outcomes.append, ONE_WORKER)
    assert {outcome.kind for outcome in outcomes if outcome.key != 6} == {OutcomeKind.KNOWN}
    assert segments(store) == 1


def test_a_store_that_lacks_rows_gets_only_those(tiny: dict[str, Any], cache: Path) -> None:
    both = plan_of({**tiny, "pool": ("avg", "max")}, cache)
    average, maximum = stores_of(both, cache)
    alone = FeaturePlan(both.spaces[:1], both.weights, both.device)
    run_pass(tasks(0, 1), alone, [average], lambda _: None, ONE_WORKER)
    run_pass(tasks(0, 1, 2), both, [average, maximum], lambda _: None, ONE_WORKER)
    assert len(average.index.ids) == len(maximum.index.ids) == 3
    rows = sum(counts for counts in average.index.counts)
    assert rows == 3, "no row is stored twice"


def test_a_raising_listener_stops_the_run_and_keeps_the_rows(
    plan: FeaturePlan, cache: Path
) -> None:
    (store,) = stores_of(plan, cache)
    seen: list[int] = []

    def stop(outcome: Outcome) -> None:
        seen.append(outcome.key)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_pass(tasks(*range(40)), plan, [store], stop, ONE_WORKER)
    assert len(seen) == 5
    assert 5 <= len(store.index.ids) < 40
    # Neither threads nor processes stay behind.
    names = {thread.name for thread in threading.enumerate()}
    assert not {name for name in names if name.startswith("featpipe")}


def test_an_error_in_the_tasks_ends_the_run_and_keeps_the_rows(
    plan: FeaturePlan, cache: Path
) -> None:
    (store,) = stores_of(plan, cache)

    def failing() -> Iterator[Task]:
        yield from tasks(*range(8))
        time.sleep(2)  # the rows before are computed by then
        raise StorageError("disk gone")

    with pytest.raises(StorageError, match="disk gone"):
        run_pass(failing(), plan, [store], lambda _: None, ONE_WORKER)
    assert len(store.index.ids) >= 4


def test_nothing_to_do_writes_no_segment(plan: FeaturePlan, cache: Path) -> None:
    (store,) = stores_of(plan, cache)
    timings = run_pass([], plan, [store], lambda _: None, ONE_WORKER)
    assert segments(store) == 0
    assert timings.backbone == 0


def test_timings_name_what_the_others_waited_for() -> None:
    assert Timings(waited_for_backbone=5, waited_for_pixels=1).bottleneck == "backbone"
    assert (
        Timings(waited_for_backbone=1, read=1, decode=3, waited_for_pixels=5).bottleneck == "decode"
    )
    assert (
        Timings(waited_for_backbone=1, read=3, decode=1, waited_for_pixels=5).bottleneck == "read"
    )
    assert Timings(waited_for_backbone=1, waited_for_writer=2).bottleneck == "write"
    assert Timings(read=0.12345).as_dict() == {
        "read": 0.123,
        "decode": 0,
        "backbone": 0,
        "write": 0,
    }


def test_batches_fit_the_device() -> None:
    assert default_batch_size("cpu", 224) == 2
    assert default_batch_size("cpu", 4096) == 1
    assert default_batch_size("cpu", 1) == 64
    assert default_batch_size("cuda", 224) == 256
    assert default_batch_size("cuda:1", 1) == 1024


def test_a_feeder_never_runs_far_ahead() -> None:
    taken: list[int] = []

    def numbers() -> Iterator[Any]:
        for number in range(100):
            taken.append(number)
            yield number

    with prefetch(numbers(), 3) as results:
        assert next(results) == 0
        time.sleep(0.3)
        # One handed out, three waiting, one in the feeder's hand.
        assert len(taken) <= 5
        assert [next(results) for _ in range(99)] == list(range(1, 100))


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_what_came_before_an_error_is_handed_out_first(limit: int) -> None:
    def numbers() -> Iterator[int | None]:
        yield from range(7)
        raise KeyError("mine")

    taken: list[int | None] = []
    with prefetch(numbers(), limit) as results, pytest.raises(KeyError, match="mine"):
        for result in results:
            taken.append(result)
    assert taken == list(range(7))


def test_items_are_handed_out_before_the_iterator_waits() -> None:
    go_on = threading.Event()

    def numbers() -> Iterator[int | None]:
        yield from range(7)
        yield None
        assert go_on.wait(10)

    with prefetch(numbers(), 100) as results:
        assert [next(results) for _ in range(7)] == list(range(7))
        go_on.set()


def add_rows(target: SegmentWriter, space: Any, *contents: bytes) -> None:
    for number, content in enumerate(contents):
        target.add(0, ids(content)[0].tobytes(), np.full(space.shape, number, np.float16))


def test_rows_are_committed_when_there_are_enough(
    plan: FeaturePlan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store,) = stores_of(plan, cache)
    row_bytes = 64 * 8 * 8 * 2
    monkeypatch.setattr(writer, "COMMIT_BYTES", 3 * row_bytes)
    target = SegmentWriter([store], {})
    add_rows(target, store.space, b"a", b"b")
    target.poll()
    add_rows(target, store.space, b"c")
    assert target.segments == 0
    target.poll()
    add_rows(target, store.space, b"d")
    target.poll()
    target.finish()
    assert target.segments == 2
    assert sorted(store.index.counts) == [1, 3]


def test_rows_are_committed_when_they_are_old_enough(
    plan: FeaturePlan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (store,) = stores_of(plan, cache)
    clock = [1000.0]
    monkeypatch.setattr(writer.time, "monotonic", lambda: clock[0])
    target = SegmentWriter([store], {})
    add_rows(target, store.space, b"a")
    clock[0] += writer.COMMIT_SECONDS - 1
    add_rows(target, store.space, b"b")
    target.poll()
    assert target._running is None
    clock[0] += 1
    target.poll()
    target.finish()
    assert target.segments == 1
    assert store.index.counts.tolist() == [2]


def test_a_failed_commit_is_not_lost_sight_of(
    plan: FeaturePlan, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise StorageError("no space left")

    monkeypatch.setattr(FeatureStore, "append", full)
    target = SegmentWriter(stores_of(plan, cache), {})
    add_rows(target, plan.spaces[0], b"a")
    with pytest.raises(StorageError, match="no space left"):
        target.finish()
    with pytest.raises(FeatpipeError, match="no space left"):
        run_pass(tasks(1), plan, stores_of(plan, cache), lambda _: None, ONE_WORKER)


def test_backbone_of_the_plan_is_the_requests(plan: FeaturePlan) -> None:
    assert plan.weights.backbone is get_backbone("vgg16")
    assert plan.device == "cpu"


def test_a_signal_at_any_line_of_the_writer_loses_no_row_it_had_taken(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A signal's exception may be raised between any two lines of the main thread.
    monkeypatch.setattr(writer, "COMMIT_BYTES", 3 * 8)
    lost = []

    def work(folder: Path, interrupt_at: int) -> int:
        lines = 0

        def local(frame: FrameType, event: str, _: Any) -> Any:
            nonlocal lines
            if event == "line":
                lines += 1
                if lines == interrupt_at:
                    sys.settrace(None)
                    raise KeyboardInterrupt(f"{frame.f_code.co_name}, line {frame.f_lineno}")
            return local

        def tracer(frame: FrameType, _: str, __: Any) -> Any:
            return local if frame.f_code.co_filename == writer.__file__ else None

        store = FeatureStore(folder, small_space())
        segments, taken = SegmentWriter([store], {}), list[int]()
        sys.settrace(tracer)
        try:
            try:
                for name in range(8):
                    segments.add(0, image_ids(name).tobytes(), np.full(4, name, np.float16))
                    taken.append(name)
                    segments.poll()
            finally:
                segments.finish()
        except KeyboardInterrupt as error:
            held = FeatureStore(folder, small_space()).contains(image_ids(*taken, "none"))
            if not held[:-1].all():
                lost.append(str(error))
        finally:
            sys.settrace(None)
        return lines

    for number in range(1, work(cache / "whole", 0) + 1):
        work(cache / str(number), number)
    # Only before the very first line of the end has begun is there nobody to try again.
    assert {where.split(",")[0] for where in lost} <= {"finish"}
    assert len(lost) <= 1


def test_an_extractor_whose_pass_failed_or_that_was_closed_computes_no_more(
    plan: FeaturePlan, cache: Path
) -> None:
    def fail(outcome: Outcome) -> None:
        raise ValueError("stop")

    with Extractor(plan, stores_of(plan, cache), ONE_WORKER) as extractor:
        with pytest.raises(ValueError, match="stop"):
            extractor.run(tasks(1, 2), fail)
        with pytest.raises(RuntimeError, match="computes no more"):
            extractor.run(tasks(3), lambda _: None)
    with pytest.raises(RuntimeError, match="computes no more"), extractor:
        pass
