"""``bench networks``: an epoch of a small network, beside a bare PyTorch loop."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.hardware import resolve_device
from featpipe.base.progress import Progress, no_progress
from featpipe.bench.measure import Report, Result
from featpipe.bench.peers import bare_loop
from featpipe.heads import new_head
from featpipe.heads.module_head import ModuleHead

CLASSES = 10
_VALIDATION = 1000
_LIMIT = 1.1


def bench_networks(
    *,
    kind: str,
    rows: int,
    side: int,
    channels: int,
    batch_size: int,
    optimizer: str,
    rounds: int,
    device: str = "auto",
    progress: Progress = no_progress,
) -> Report:
    """Measure one epoch of training on uint8 pixels in memory.

    Parameters
    ----------
    kind : str
        Kind of network.
    rows, side, channels : int
        Number of synthetic pictures, and their shape.
    batch_size : int
    optimizer : {"adamw", "sgd", "rmsprop"}
    rounds : int
        How often each contender is measured, in turns.
    device : str
        ``auto``, ``cpu``, ``cuda:0``, …
    progress : Progress
        Shows a progress bar.
    """
    device = resolve_device(device)
    X, y = made_up_pixels(rows + _VALIDATION, channels, side)
    head = _head(kind, batch_size, optimizer)
    ours, theirs = f"featpipe {kind}", "bare PyTorch loop"
    bare = bare_loop(
        lambda: head.new_module((channels, side, side)),
        X[:rows],
        y[:rows],
        batch_size=batch_size,
        optimizer=optimizer,
        rate=head.rate,
        decay=head.weight_decay,
        momentum=head.inertia,
        device=device,
    )

    def train() -> float:
        data: Any = (X[:rows], y[:rows], X[rows:], y[rows:])
        history = _head(kind, batch_size, optimizer).fit(
            *data, seed=0, device=device, tick=lambda _: None
        )
        return history.epoch_seconds[0]

    results = {name: Result(name) for name in (ours, theirs)}
    with progress("bench", 2 * rounds) as bar:
        for _ in range(rounds):
            # Each measures its own epoch: making rows and networks ready is not compared.
            for name, epoch in ((ours, train), (theirs, bare)):
                results[name].rates.append(rows / epoch())
                bar.advance()
    ratio = results[ours].rate / results[theirs].rate
    what = "pictures per second of training / the bare loop's"
    notes = [
        f"one epoch of {rows} pictures {channels} x {side} x {side} (uint8), {CLASSES} classes, "
        f"batches of {batch_size}, {optimizer}, {device}; without validation",
        "bare loop: the same network, tensors in memory, torch.optim, nothing kept of losses",
    ]
    return Report("networks", "pictures/s", results, [(what, ratio, 1 / _LIMIT)], notes)


def made_up_pixels(
    rows: int, channels: int, side: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Noise (rows, channels, side, side) with a brighter band by class, and labels (rows,)."""
    rng = np.random.default_rng(0)
    y = np.arange(rows) % CLASSES
    X = rng.integers(0, 200, (rows, channels, side, side), np.uint8)
    band = max(1, side // CLASSES)
    for label in range(CLASSES):
        X[y == label, :, label * band : (label + 1) * band] += 50
    return X, y


def _head(kind: str, batch_size: int, optimizer: str) -> ModuleHead:
    head = new_head(kind, {"epochs": 1, "batch_size": batch_size, "optimizer": optimizer})
    assert isinstance(head, ModuleHead)
    head.classes_ = np.array([str(i) for i in range(CLASSES)])
    return head
