"""What the command line says where views are asked for that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.command import Run
from support.samples import in_splits, stored_set
from support.views import stored_views

COMMAND = (
    "featpipe extract pretended --name set --weights random:0 --backbone tiny --tap "
    "block1_pool --pool "
    "avg --size 8 --precision fp32 --views 4 --augment flip --augment-seed 0 --views-of train"
)


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (
            "train-head set --augment flip",
            10,
            "expected views of policy flip of every training picture of 'set', found: 2 views "
            f"(light); make them: {COMMAND}",
        ),
        (
            "train-head set --augment flip --no-views",
            2,
            "expected --augment without --no-views, found both; leave one out",
        ),
        (
            "train-head set --augment light --head knn",
            2,
            "expected --augment only for heads that are trained in epochs, found it for 'knn', "
            "which is trained on the pictures themselves; leave it out",
        ),
        (
            "evaluate run --augment-seed 3",
            2,
            "expected --augment-seed only with --tta, found it without; add --tta or leave it out",
        ),
    ],
)
def test_the_error_is_one_line_with_its_exit_code(
    flags: str, code: int, said: str, featpipe: Run, cache: Path, tmp_path: Path
) -> None:
    stored_views(cache, stored_set(cache, in_splits(train=8, val=4)))
    done = featpipe(*flags.split(), "--cache", cache)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"Error: {said}\n"
    assert not (tmp_path / "runs").exists()
