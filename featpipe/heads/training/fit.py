"""Fits heads that learn in epochs: holds or streams the rows, divides the heads into groups that
fit into memory, or takes networks one by one, and runs the epoch loop over each.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from featpipe.base.errors import DataError
from featpipe.base.hardware import free_memory
from featpipe.heads.base import Head, History, Tick, class_weights
from featpipe.heads.module_head import ModuleHead
from featpipe.heads.training.feature_rows import FeatureRowSet, feature_rows
from featpipe.heads.training.head_group import HeadGroup
from featpipe.heads.training.linear_group import LinearGroup
from featpipe.heads.training.loop import EpochLoop, OnEpoch, Plan, TrainedState
from featpipe.heads.training.memory import WORTH_SAYING, check_memory, in_mib, training_memory
from featpipe.heads.training.mlp_group import MLPGroup
from featpipe.heads.training.module_trainer import ModuleTrainer, random_numbers
from featpipe.heads.training.threads import threads_for
from featpipe.heads.training.trainer import Trainer

log = logging.getLogger("featpipe")

GROUP_MEMORY_SHARE = 0.25
"""Of the memory that is free, what a group may take; a larger one is trained in parts."""
_READING = 16
"""Cost of reading one number of a row (gather, convert, centre), in multiplications."""
_COPIES = 6
"""Copies of every learned number in memory: the number, its gradient, AdamW's two moments, the best
epoch's, and one while heads are dropped."""
_GROUPS: dict[str, type[HeadGroup]] = {"linear": LinearGroup, "mlp": MLPGroup}

Leaders = Callable[[Mapping[int, TrainedState]], Collection[int]]
"""Names those of the heads trained so far, by their numbers, whose layers may still be wanted."""


def train(
    head: Head,
    X: Any,
    y: np.ndarray,
    X_val: Any,
    y_val: np.ndarray,
    *,
    seed: int,
    device: str,
    tick: Tick,
) -> History:
    """Train one head; it ends in its best epoch's state.

    Raises
    ------
    DataError
        Training diverged.
    """
    (end,) = train_all(
        [head],
        [seed],
        X,
        y,
        X_val,
        y_val,
        seed=seed,
        device=device,
        on_epoch=lambda _, row: tick(row),
    )
    if end.diverged:
        raise DataError(end.diverged)
    head.set_layers(end.layers)
    return end.history


def train_all(
    heads: Sequence[Head],
    seeds: Sequence[int],
    X: Any,
    y: np.ndarray,
    X_val: Any,
    y_val: np.ndarray,
    *,
    seed: int,
    device: str,
    on_epoch: OnEpoch,
    leaders: Leaders | None = None,
) -> list[TrainedState]:
    """Train heads of one kind that differ in their seeds and hyper-parameters.

    Heads that are trained together see the same batches in the same order, drawn from ``seed``,
    and differ in learning rate, weight decay, dropout or width; a head's own seed decides its
    initial weights and its dropout. Module heads are trained one after another, and may differ in
    every hyper-parameter; each draws its batches from its own seed. This sets the heads' ``mean_``
    and ``scale_``; the caller sets their layers, which it finds in the result. The layers of all
    heads may not fit into memory: with ``leaders`` the result has the layers of those alone that
    it names among the heads that are done.
    """
    maps = [head.map_shape(X.shape[1:]) for head in heads if isinstance(head, ModuleHead)]
    reserved, level = _checked_memory(heads, maps[0], device) if maps else (0, logging.DEBUG)
    rows = feature_rows(X, y, device, reserved=reserved)
    val_rows = feature_rows(X_val, y_val, device, reserved=reserved)
    if reserved >= WORTH_SAYING:
        log.log(level, "rows of train: %s, %s", in_mib(rows.nbytes), rows.whereabouts)
    first = heads[0]
    if isinstance(first, ModuleHead) and not first.standardises:
        mean, scale = np.zeros(maps[0][0], np.float32), np.ones(1, np.float32)
    else:
        mean, scale = rows.mean_and_scale(maps[0][0] if maps else None)
    for head in heads:
        head.mean_, head.scale_ = mean, scale
        if isinstance(head, ModuleHead):
            head.row_shape_ = maps[0]
    # One scale divides products, which have fewer numbers than rows; scales by tap divide rows.
    is_common = len(scale) == 1
    for part in (rows, val_rows):
        part.centre_on(np.repeat(mean, rows.width // max(1, len(mean))))
        if not is_common:
            part.divide_by(scale)
    divisor = float(scale[0]) if is_common else 1.0
    weights = class_weights(y, len(heads[0].classes_), heads[0].params["class_weight"])
    ends: dict[int, TrainedState] = {}
    for numbers in _parts(heads, rows, device):
        these, own = [heads[i] for i in numbers], [seeds[i] for i in numbers]
        order = np.random.default_rng(own[0] if maps else seed)
        with _trainer(these, own, rows, y, divisor, weights, device) as trainer:
            loop = EpochLoop(trainer, _plan(these[0]), rows, val_rows, order, on_epoch)
            found = loop.run(only_best=leaders is not None)
        ends.update(zip(numbers, found, strict=True))
        kept = ends if leaders is None else leaders(ends)
        for i, end in ends.items():
            end.layers = end.layers if i in kept else {}
    return [ends[i] for i in range(len(heads))]


def _checked_memory(heads: Sequence[Any], shape: tuple[int, ...], device: str) -> tuple[int, int]:
    """Bytes that the largest of networks takes in training, and the level at which memory is
    spoken of; raises where it cannot fit.
    """
    needs = [training_memory(head, shape) for head in heads]
    number = max(range(len(heads)), key=lambda i: needs[i].total)
    level = check_memory(needs[number], heads[number], device)
    return needs[number].total, level


def lowest(ends: Mapping[int, TrainedState]) -> set[int]:
    """The :data:`Leaders` of a choice by loss alone: the head of the lowest."""
    return {min(ends, key=lambda i: (ends[i].lowest, i))}


def _plan(head: Any) -> Plan:
    if isinstance(head, ModuleHead):
        anneals = head.schedule != "constant"
        return Plan(head.batch_size, head.epochs, head.min_steps, head.tolerance, anneals=anneals)
    return Plan(head.batch_size, head.epochs, head.min_steps, head.patience)


@contextlib.contextmanager
def _trainer(
    heads: Sequence[Head],
    seeds: Sequence[int],
    rows: FeatureRowSet,
    y: NDArray[np.int64],
    scale: float,
    weights: NDArray[np.float64],
    device: str,
) -> Iterator[Trainer]:
    """What computes these heads in training, and the state of PyTorch that it needs."""
    head = heads[0]
    if isinstance(head, ModuleHead):
        with torch.no_grad(), random_numbers(seeds[0], device):
            trainer = ModuleTrainer(
                head,
                scale=scale,
                class_weights=weights,
                planned_steps=_plan(head).steps(len(rows)),
                device=device,
            )
            with threads_for(head.batch_size * trainer.multiplications):
                yield trainer
        return
    group = _GROUPS[head.kind](
        heads,
        seeds,
        width=rows.width,
        classes=len(head.classes_),
        scale=scale,
        class_weights=weights,
        log_prior=log_prior(y, weights),
        device=device,
    )
    learned = sum(group.parameter_count(one, group.width, group.classes) for one in heads)
    step = _plan(head).batch_size * (_READING * group.width + learned)
    with torch.inference_mode(), threads_for(step):
        yield group


def log_prior(y: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float32]:
    """Logits of the classes' weighted shares of the training rows: (classes,) float32, sum 0.

    A bias that starts there spares a head the thousands of steps that AdamW takes to reach it. A
    class without rows counts as one with a single row.
    """
    logits = np.log(np.maximum(weights * np.bincount(y, minlength=len(weights)), 1))
    return (logits - logits.mean()).astype(np.float32)


def _parts(heads: Sequence[Head], rows: FeatureRowSet, device: str) -> list[list[int]]:
    """Numbers of heads that are trained together: of one shape, and not too many for memory."""
    if not heads[0].trains_together:
        return [[i] for i in range(len(heads))]
    kind = _GROUPS[heads[0].kind]
    shapes: dict[tuple[Any, ...], list[int]] = {}
    for i, head in enumerate(heads):
        shapes.setdefault(kind.shape_of(head), []).append(i)
    budget = GROUP_MEMORY_SHARE * free_memory(device)
    classes = len(heads[0].classes_)
    parts = []
    for numbers in shapes.values():
        size = 4 * _COPIES * kind.parameter_count(heads[numbers[0]], rows.width, classes)
        step = max(1, int(budget / size))
        parts += [numbers[i : i + step] for i in range(0, len(numbers), step)]
    return parts
