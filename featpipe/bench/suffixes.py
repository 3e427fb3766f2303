"""``bench suffix``: an epoch of a suffix on cached maps, beside a bare PyTorch loop."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.catalog import get_backbone
from featpipe.base.hardware import resolve_device
from featpipe.base.progress import Progress, no_progress
from featpipe.base.space import FeatureSpace, Preprocessing
from featpipe.bench.measure import Report, Result
from featpipe.bench.peers import bare_loop
from featpipe.engine.precision import choose_compute
from featpipe.heads import new_head
from featpipe.heads.suffix import SuffixHead

CLASSES = 5
_VALIDATION = 8
_LIMIT = 1.15


def bench_suffix(
    cache: Path,
    *,
    backbone: str,
    tap: str,
    size: int,
    top: str,
    compute: str,
    rows: int,
    batch_size: int,
    rounds: int,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Report:
    """Measure one epoch of training on made-up float16 maps in memory.

    Parameters
    ----------
    cache : Path
        Where the choice of ``compute`` is kept.
    backbone, tap : str
    size : int
        Side of the pictures that the maps would come from, pixels.
    top : {"own", "linear"}
    compute : {"auto", "fp32", "bf16"}
    rows, batch_size : int
    rounds : int
        How often each contender is measured, in turns.
    device : str
        ``auto``, ``cpu``, ``cuda:0``, …
    progress : Progress
        Shows a progress bar.
    """
    from featpipe.heads.training.loop import Plan

    device = resolve_device(device)
    space = _space(backbone, tap, size)
    X, y = made_up_maps(rows + _VALIDATION, space.shape)
    head = _head(space, top, compute, batch_size)
    layer = head.main_layer(space.shape)
    head.compute = compute = choose_compute(compute, device, cache, layer=layer)
    ours, theirs = f"featpipe suffix of {backbone}", "bare PyTorch loop"

    def build() -> Any:
        module = head.new_module(space.shape)
        head.begin(module)
        return module

    bare = bare_loop(
        build,
        X[:rows],
        y[:rows],
        batch_size=batch_size,
        optimizer=head.optimizer,
        rate=head.rate,
        decay=head.weight_decay,
        momentum=head.inertia,
        factors=head.rate_factors(head.blank_module(space.shape)),
        standardises=False,
        in_bf16=compute == "bf16",
        device=device,
    )

    def train() -> float:
        data: Any = (X[:rows], y[:rows], X[rows:], y[rows:])
        one = _head(space, top, compute, batch_size)
        return one.fit(*data, seed=0, device=device, tick=lambda _: None).epoch_seconds[0]

    results = {name: Result(name) for name in (ours, theirs)}
    with progress("bench", 2 * rounds) as bar:
        for _ in range(rounds):
            for name, epoch in ((ours, train), (theirs, bare)):
                # Of few rows, an epoch of ours makes several passes.
                passes = (
                    Plan(batch_size, 1, SuffixHead.min_steps, 1).passes(rows) if name == ours else 1
                )
                results[name].rates.append(passes * rows / epoch())
                bar.advance()
    ratio = results[ours].rate / results[theirs].rate
    notes = [
        f"one epoch of {rows} maps {' x '.join(map(str, space.shape))} (float16) at {tap}, "
        f"{size} px, top {top}, {CLASSES} classes, batches of {batch_size}, {head.optimizer}, "
        f"{compute}, {device}; without validation",
        "bare loop: the same network, rates and tensors in memory, torch.optim, nothing kept of "
        "losses",
    ]
    what = "rows per second of training / the bare loop's"
    return Report("suffix", "rows/s", results, [(what, ratio, 1 / _LIMIT)], notes)


def made_up_maps(
    rows: int, shape: tuple[int, ...]
) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
    """Maps (rows, …) with zeros like those of a ReLU, and labels (rows,)."""
    rng = np.random.default_rng(0)
    X = rng.normal(-0.5, 1, (rows, *shape)).astype(np.float16)
    return np.maximum(X, 0, out=X), np.arange(rows) % CLASSES


def _space(backbone: str, tap: str, size: int) -> FeatureSpace:
    network = get_backbone(backbone)
    tap = network.tap(tap).name
    return FeatureSpace(
        backbone=network.name,
        weights="0" * 64,
        tap=tap,
        pooling="none",
        preprocessing=Preprocessing(size=size, resize="squash", mean=(0.0,) * 3, std=(1.0,) * 3),
        precision="fp32",
        dtype="float16",
        shape=network.output_shape(tap, "none", size),
    )


def _head(space: FeatureSpace, top: str, compute: str, batch_size: int) -> SuffixHead:
    params = {"epochs": 1, "batch_size": batch_size, "top": top, "compute": compute}
    head = new_head("suffix", params)
    assert isinstance(head, SuffixHead)
    head.classes_ = np.array([str(i) for i in range(CLASSES)])
    head.attach([space])
    # Random tensors in the place of pretrained ones: both rates are in use.
    head.start_from(head.backbone.random_tensors(0, head.body), pretrained=True)
    return head
