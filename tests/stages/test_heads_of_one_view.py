"""A head on one view predicts on that view; what would leave the view out is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.command import TINY_FLAGS, Run
from support.library import evaluate, extract, predict, train_head

import featpipe
from featpipe.base.errors import UsageError

REFUSED = (
    "expected a head trained on the pictures themselves for {}, found one of view 1 of 'flip', "
    "seed 0; such a transform depends on the file's bytes and is no part of a network: train "
    "without --view"
)


@pytest.fixture
def head(own_workspace: Path) -> Path:
    """A head on view 1 of the pictures of ``workspace``."""
    pairs = zip(TINY_FLAGS[::2], TINY_FLAGS[1::2], strict=True)
    tiny: dict[str, Any] = {name.removeprefix("--"): value for name, value in pairs}
    views = {"views": 1, "augment": "flip", "views_of": "all"}
    cache = own_workspace / "cache"
    extract(own_workspace / "photos", name="colours", cache=cache, **tiny, **views)
    out = own_workspace / "viewed"
    train_head("colours", cache=cache, out=out, epochs=2, device="cpu", view=1)
    return out


def test_what_would_leave_out_the_view_is_refused(
    head: Path, own_workspace: Path, inside: Run
) -> None:
    cache, out = own_workspace / "cache", own_workspace / "there" / "model.pt2"
    for dense in (False, True):
        with pytest.raises(UsageError) as caught:
            featpipe.export(head, cache=cache, format="torch", out=out, dense=dense)
        assert str(caught.value) == REFUSED.format("--format torch")
    assert not out.parent.exists()
    for options in ({"scales": "16"}, {"scales": "16,22", "frame": "whole"}):
        with pytest.raises(UsageError) as caught:
            evaluate(head, cache=cache, **options)
        assert str(caught.value) == REFUSED.format("--scales")
    done = inside("predict", head, own_workspace / "photos", "--maps", "maps", cwd=own_workspace)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"Error: {REFUSED.format('score maps')}\n"
    assert not (own_workspace / "maps").exists()
    assert evaluate(head, cache=cache, split="val").metrics["n"] == 9
    found = list(predict(head, [own_workspace / "photos" / "red"], cache=cache, device="cpu"))
    assert len(found) == 20 and all(one.label for one in found)
