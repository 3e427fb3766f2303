"""``knn``: the training rows that are most similar to a row vote for its class."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import UsageError
from featpipe.heads.base import (
    Head,
    History,
    HistoryRow,
    Tick,
    blocks_of,
    class_weights,
    columns_of,
    widths_of,
)
from featpipe.specs.head_params import KNNParams

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("featpipe")

K_GRID = (1, 3, 5, 10, 20, 50, 100, 200)
"""Values of k that are tried if none is given; the lowest validation loss wins."""
SMOOTHING = 0.02
"""Votes that all classes share equally besides those of the neighbours; the nearest one has 1."""
_TRAIN_SCORED = 5000
"""Training rows that are scored, each among all others; their cost grows with rows squared."""
_QUERIES = 4096
_SIMILARITIES = 2**22
"""Rows that are compared at once, and the similarities of them that are held at once."""
_ROW_NUMBERS = 2**24
"""Numbers of the training rows that are held as float32 at once."""
_LARGE_BYTES = 2**30
"""Size of the rows above which a warning names it."""

Neighbours = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Cosine similarities (q, k), the highest first, and the numbers of these training rows (q, k)."""


class KNNHead(KNNParams, Head):
    """Weighted k nearest neighbours (Wu et al. 2018), as in DINO's evaluation.

    Each of the k training rows of highest cosine similarity s votes for its class with
    v = exp((s - s of the nearest) / ``vote_temperature``), times the weight of its class. Of all
    votes V and K classes, a class with votes v has the probability
    (v + ``SMOOTHING`` / K) / (V + ``SMOOTHING``), so that no class is impossible.

    Rows are compared as they are, as published: ``mean_`` is 0 and ``scale_`` is 1. Centred rows
    were right less often on digits, flowers, and dogs and cats (by up to 3.5 percentage points).
    Where rows of several taps lie side by side, ``scale_`` (d,) is the root of the mean squared
    norm of each tap's rows, so that no tap decides alone which rows are similar.

    The head holds the training rows themselves, divided by their norm: as float16 if the features
    are float16, else as float32. ``fit`` chooses k with the rows as they are kept. Parameters: see
    ``KNNParams``.
    """

    kind = "knn"
    solves_path = True
    rows_: np.ndarray
    labels_: NDArray[np.int64]
    vote_weight_: NDArray[np.float64]
    k_: int

    def fit(
        self,
        X: Any,
        y: NDArray[np.int64],
        X_val: Any,
        y_val: NDArray[np.int64],
        *,
        seed: int,
        device: str,
        tick: Tick,
    ) -> History:
        """See :meth:`Head.fit`; the history has a row for each k.

        A training row would be its own nearest neighbour. So the training loss and accuracy are
        those of single rows (at most 5000, evenly spaced) among all the others.

        Raises
        ------
        UsageError
            There are fewer training rows than k.
        """
        if self.k is not None and self.k > len(y):
            raise UsageError(
                f"expected --k of at most {len(y)}, the pictures trained on, found {self.k}"
            )
        self.mean_, self.scale_ = np.zeros(sum(widths_of(X)), np.float32), _norms(X)
        self._keep_rows(X)
        self.labels_ = y.astype(np.int64)
        self.vote_weight_ = class_weights(y, len(self.classes_), self.class_weight)
        grid = [k for k in K_GRID if k <= len(y)] if self.k is None else [self.k]
        scored = np.linspace(0, len(y) - 1, min(len(y), _TRAIN_SCORED)).astype(np.int64)
        train_scores = self._scores(self._training_rows(scored), y[scored], grid)
        val_scores = self._scores(self._rows_of(X_val), y_val, grid)
        rows = [
            HistoryRow(k, *train, *val)
            for k, train, val in zip(grid, train_scores, val_scores, strict=True)
        ]
        for row in rows:
            tick(row)
        best = int(np.argmin([row.selection_loss for row in rows]))
        self.k_ = grid[best]
        return History("k", rows, best)

    def logits(self, Z: NDArray[np.float32]) -> NDArray[np.float64]:
        """Logarithms of the class probabilities; see :meth:`Head.logits`."""
        found = np.empty((len(Z), len(self.vote_weight_)))
        for start in range(0, len(Z), _QUERIES):
            queries = _unit(Z[start : start + _QUERIES])
            (found[start : start + _QUERIES],) = self._log_shares(
                self._nearest(queries, self.k_), [self.k_]
            )
        return found

    def layers(self) -> dict[str, np.ndarray]:
        """``rows`` (n, d) of norm 1, ``labels`` (n,), ``vote_weight`` (classes,), ``k`` (1,)."""
        return {
            "rows": self.rows_,
            "labels": self.labels_,
            "vote_weight": self.vote_weight_,
            "k": np.array([self.k_]),
        }

    def set_layers(self, layers: dict[str, np.ndarray]) -> None:
        """See :meth:`Head.set_layers`; raises ``ValueError`` for rows without a class."""
        rows, labels = layers["rows"], layers["labels"]
        weight, k = layers["vote_weight"], layers["k"]
        if not len(rows) or labels.shape != (len(rows),) or weight.ndim != 1:
            raise ValueError(f"{len(rows)} rows, but labels {labels.shape}")
        if labels.dtype.kind != "i" or labels.min() < 0 or labels.max() >= len(weight):
            raise ValueError(f"labels that are no numbers of {len(weight)} classes")
        if not (weight >= 0).all() or not (weight > 0).any():
            raise ValueError(f"weights of votes that are not above 0: {weight.tolist()}")
        if k.dtype.kind != "i" or k.shape != (1,) or not 1 <= k[0] <= len(rows):
            raise ValueError(f"k = {k.tolist()} for {len(rows)} rows")
        self.rows_, self.labels_, self.vote_weight_, self.k_ = rows, labels, weight, int(k[0])

    def to_module(self, row_shape: tuple[int, ...]) -> nn.Module:
        """See :meth:`Head.to_module`; where training rows are equally similar to a row, another one
        of them may be the last to vote.
        """
        from featpipe.heads.as_module import Neighbours

        votes = np.zeros((len(self.rows_), len(self.vote_weight_)))
        votes[np.arange(len(votes)), self.labels_] = self.vote_weight_[self.labels_]
        return Neighbours(
            self.rows_,
            votes,
            self.scale_,
            k=self.k_,
            vote_temperature=self.vote_temperature,
            smoothing=SMOOTHING,
        ).eval()

    def _keep_rows(self, X: Any) -> None:
        shape = (len(X), len(self.mean_))
        self.rows_ = np.empty(shape, np.float16 if X.dtype == np.float16 else np.float32)
        if self.rows_.nbytes > _LARGE_BYTES:
            log.warning(
                "this head holds all %d training rows: %.1f GiB; features with --pool avg are "
                "smaller",
                len(X),
                self.rows_.nbytes / 2**30,
            )
        start = 0
        for block in blocks_of(X):
            self.rows_[start : start + len(block)] = _unit(self.standardise(block))
            start += len(block)

    def _training_rows(self, numbers: NDArray[np.int64]) -> Iterator[_Queries]:
        """These training rows, a block at a time, with their numbers."""
        for start in range(0, len(numbers), _QUERIES):
            part = numbers[start : start + _QUERIES]
            yield self.rows_[part].astype(np.float32), part

    def _rows_of(self, X: Any) -> Iterator[_Queries]:
        """Rows of norm 1, a block at a time; none of them is a training row."""
        for block in blocks_of(X):
            for start in range(0, len(block), _QUERIES):
                yield _unit(self.standardise(block[start : start + _QUERIES])), None

    def _scores(
        self, blocks: Iterator[_Queries], y: NDArray[np.int64], grid: Sequence[int]
    ) -> list[tuple[float, float]]:
        """Loss and accuracy with each k, in one pass over the rows."""
        loss, correct, start = np.zeros(len(grid)), np.zeros(len(grid)), 0
        for queries, own in blocks:
            truth = y[start : start + len(queries)]
            start += len(queries)
            shares = self._log_shares(self._nearest(queries, grid[-1], own), grid)
            for i, log_share in enumerate(shares):
                loss[i] -= log_share[np.arange(len(truth)), truth].sum()
                correct[i] += (log_share.argmax(axis=1) == truth).sum()
        return list(zip((loss / len(y)).tolist(), (correct / len(y)).tolist(), strict=True))

    def _nearest(
        self, queries: NDArray[np.float32], k: int, own: NDArray[np.int64] | None = None
    ) -> Neighbours:
        """The k most similar training rows of each query (q, d), besides its ``own`` (q,)."""
        similarity = np.full((len(queries), k), -np.inf, np.float32)
        number = np.zeros((len(queries), k), np.int64)
        step = max(1, min(_SIMILARITIES // len(queries), _ROW_NUMBERS // queries.shape[1]))
        for start in range(0, len(self.rows_), step):
            part = self.rows_[start : start + step].astype(np.float32, copy=False)
            found = queries @ part.T
            if own is not None:
                here = (own >= start) & (own < start + len(part))
                found[here, own[here] - start] = -np.inf
            similarity, number = _merged(similarity, number, found, start)
        order = np.argsort(-similarity, axis=1, kind="stable")
        ordered = np.take_along_axis(similarity, order, axis=1).astype(np.float64)
        return ordered, np.take_along_axis(number, order, axis=1)

    def _log_shares(
        self, neighbours: Neighbours, grid: Sequence[int]
    ) -> Iterator[NDArray[np.float64]]:
        """Log-probabilities (q, classes) by the first k neighbours, for each k, ascending."""
        similarity, number = neighbours
        label, classes = self.labels_[number], len(self.vote_weight_)
        vote = np.exp((similarity - similarity[:, :1]) / self.vote_temperature)
        vote *= self.vote_weight_[label]
        cell = label + classes * np.arange(len(label))[:, None]
        votes, before = np.full((len(label), classes), SMOOTHING / classes), 0
        for k in grid:
            new = (slice(None), slice(before, k))
            votes += np.bincount(
                cell[new].reshape(-1), vote[new].reshape(-1), minlength=votes.size
            ).reshape(votes.shape)
            before = k
            yield np.log(votes / votes.sum(axis=1, keepdims=True))


_Queries = tuple[NDArray[np.float32], NDArray[np.int64] | None]
"""Rows of norm 1, (q, d), and their numbers among the training rows if they are such rows."""


def _unit(Z: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows divided by their norm; rows of zeros stay."""
    norm = np.linalg.norm(Z, axis=1, keepdims=True)
    norm[norm == 0] = 1
    unit: NDArray[np.float32] = Z / norm
    return unit


def _norms(X: Any) -> NDArray[np.float32]:
    """Root of the mean squared norm of each tap's rows, (d,); of one tap alone 1, (1,)."""
    widths = widths_of(X)
    if len(widths) == 1:
        return np.ones(1, np.float32)
    squares = np.zeros(len(widths))
    for block in blocks_of(X):
        flat = block.reshape(len(block), -1).astype(np.float64)
        squares += [np.square(flat[:, columns]).sum() for columns in columns_of(widths)]
    norms = np.sqrt(squares / len(X))
    return np.repeat(np.where(norms > 0, norms, 1.0).astype(np.float32), widths)


def _merged(
    similarity: NDArray[np.float32],
    number: NDArray[np.int64],
    found: NDArray[np.float32],
    start: int,
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The k highest similarities (q, k) and their numbers, of those so far and of a block (q, b).

    Only what is above the lowest so far is looked at: after the first blocks that is little, and
    selecting from whole blocks takes longer than their products.
    """
    k = similarity.shape[1]
    query, column = np.nonzero(found > similarity.min(axis=1, keepdims=True))
    if not len(query):
        return similarity, number
    counts = np.bincount(query, minlength=len(found))
    place = k + np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    # Shorter rows are filled up with what is never among the k highest.
    more = ((0, 0), (0, int(counts.max())))
    similarity = np.pad(similarity, more, constant_values=-np.inf)
    number = np.pad(number, more)
    similarity[query, place] = found[query, column]
    number[query, place] = start + column
    best = np.argpartition(similarity, -k, axis=1)[:, -k:]
    return np.take_along_axis(similarity, best, axis=1), np.take_along_axis(number, best, axis=1)
