"""Views of pictures: damaged, noted wrongly in a head, and averaged over on a full disk."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.command import Run
from support.crash import flip
from support.library import train_head
from support.runs import rewrite
from support.samples import in_splits, small_space, stored_set
from support.tally import NewTally, Scale
from support.views import stored_views

from featpipe.base.space import FeatureSpace
from featpipe.base.views import views_in
from featpipe.store.feature_store import FeatureStore
from featpipe.store.segments import read_segment

ANYTHING = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([-1, 0, 1, 2, 2**70, 1.5, "light", "", "\x1b[31m", "\udce9"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
NOTED = {"policy": "light", "version": 1, "seed": 0, "number": 2}


@pytest.fixture
def views(tmp_path: Path, cache: Path) -> list[FeatureSpace]:
    """The spaces of two views of train and test; of them, a head in ``run/``."""
    dataset = stored_set(cache, in_splits(train=8, val=4, test=4))
    made = stored_views(cache, dataset, of=["train", "test"])
    train_head("set", cache=cache, out=tmp_path / "run", params={"epochs": 1}, device="cpu")
    return made


def test_a_damaged_row_of_a_view_is_refused(
    cache: Path, views: list[FeatureSpace], inside: Run, tally: NewTally, scale: Scale
) -> None:
    t = tally("4 Damage is found", "flipped rows of views: refused in training and evaluation")
    rng = np.random.default_rng(0)
    train = "train-head", "set", "--epochs", 1, "--out", "new", "--overwrite", "--device", "cpu"
    for number in range(scale(2, 60)):
        space = views[number % 2]
        (path,) = FeatureStore(cache, space).segments_folder.iterdir()
        segment, whole = read_segment(path, space), path.read_bytes()
        nbytes = small_space().shape[0] * np.dtype(space.dtype).itemsize
        row = int(rng.integers(len(segment.ids)))
        with t.case(f"view {space.view}, row {row}"):
            flip(path, segment.offset + row * nbytes + int(rng.integers(nbytes)))
            found = [
                inside(*command, "--cache", cache, "-q").returncode
                for command in (train, ("evaluate", "run", "--tta"))
            ]
            # The row is of train or of test.
            assert sorted(found) == [0, 13], f"found {found}"
            assert inside(*train, "--no-views", "--cache", cache, "-q").returncode == 0
            assert inside("evaluate", "run", "--cache", cache, "-q").returncode == 0
        path.write_bytes(whole)


def test_whatever_a_head_notes_of_views_it_is_used_or_refused(
    cache: Path,
    tmp_path: Path,
    views: list[FeatureSpace],
    inside: Run,
    tally: NewTally,
    scale: Scale,
) -> None:
    t = tally("10 Bad input", "heads that note any views, digest right")
    used = 0

    @settings(
        max_examples=scale(40, 1000),
        derandomize=True,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(ANYTHING | st.tuples(st.sampled_from([*NOTED, "x"]), ANYTHING))
    def each(value: Any) -> None:
        nonlocal used
        noted = {**NOTED, value[0]: value[1]} if isinstance(value, tuple) else value
        with t.case(ascii(noted)):
            found = views_in({"views": noted})
            assert found is None or json.loads(json.dumps(found)) == {
                name: noted[name] for name in NOTED
            }
            used += 1
            if used % scale(20, 20) == 0:
                rewrite(tmp_path / "run", lambda document: document["info"].update(views=noted))
                for command in (["evaluate", "run", "--tta"], ["runs", "."]):
                    done = inside(*command, *(["--cache", cache] if len(command) > 2 else []))
                    assert done.returncode == 0, done.stderr

    each()


def test_a_full_disk_leaves_the_plain_evaluation_as_it_is(
    cache: Path, tmp_path: Path, views: list[FeatureSpace], inside: Run, tally: NewTally
) -> None:
    t = tally("3 Disk full and write errors", "limits of file size: evaluate --tta")
    command = "evaluate", "run", "--cache", cache, "-q"
    assert inside(*command).returncode == 0
    before = {path: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    for limit in (0, 1500):
        with t.case(f"{limit} bytes"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
            try:
                done = inside(*command, "--tta")
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
            assert done.returncode == 74 and done.stderr.count("\n") == 1, done.stderr
            assert {p: d for p, d in before.items() if p.read_bytes() == d} == before
            for path in (tmp_path / "run").glob("*-tta*"):
                assert path.name == "predictions-tta.csv" or path.name == "metrics-tta.json"
    with t.case("room again"):
        assert inside(*command, "--tta").returncode == 0
        assert json.loads((tmp_path / "run" / "metrics-tta.json").read_text())["tta"]["views"] == 2
