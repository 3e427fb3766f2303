"""Compare heads on the very same pictures: scores, paired tests, a page."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.catalog import get_backbone
from featpipe.base.errors import DataError, UsageError
from featpipe.base.joined_spaces import joined_words
from featpipe.base.numbers import is_finite
from featpipe.base.text import escape
from featpipe.reports.comparison import Curves, write_comparison
from featpipe.reports.documents import ComparedHead, ComparedPair, ComparisonDocument, Metrics
from featpipe.reports.metrics import score
from featpipe.reports.paired import holm, mcnemar
from featpipe.reports.variation import Compared, find_variation
from featpipe.runs.comparison_folder import ComparisonFolder
from featpipe.runs.run import Run
from featpipe.specs.compare import CompareSpec
from featpipe.stages.scoring import Scored, score_head


@dataclass(frozen=True)
class Comparison:
    """How heads did on the same pictures.

    Attributes
    ----------
    document : ComparisonDocument
        Scores of each head, the most accurate first, and the paired test of each two.
    report : Path
        The HTML page; ``comparison.json`` lies beside it.
    """

    document: ComparisonDocument
    report: Path

    def as_json(self) -> ComparisonDocument:
        """The result as the command prints it."""
        return self.document


@dataclass(frozen=True)
class _Contestant:
    """One head with its answers, pictures in the order of their ids."""

    name: str
    scored: Scored
    metrics: Metrics
    pictures: list[tuple[bytes, str]]
    """Image id and true class of each picture."""
    correct: NDArray[np.bool_]


def compare(heads: Sequence[Path], spec: CompareSpec, *, cache: Path) -> Comparison:
    """Score heads on one split and test each two of them on the very same pictures.

    Parameters
    ----------
    heads : sequence of Path
        At least two run folders.
    spec : CompareSpec
    cache : Path

    Raises
    ------
    UsageError
        Fewer than two heads, or one twice.
    DataError
        The heads' data sets have different pictures in the split, and ``on`` names none.
    NotFoundError, SpaceMismatchError, DamageError, StorageError
    """
    started = time.perf_counter()
    _check_heads(heads)
    scored = [score_head(head, on=spec.on, split=spec.split, cache=cache) for head in heads]
    return compare_scored(scored, spec.out, started=started)


def compare_scored(scored: Sequence[Scored], out: Path | None, *, started: float) -> Comparison:
    """As :func:`compare`, of at least two different heads that have been scored.

    Parameters
    ----------
    scored : sequence of Scored
    out : Path or None
        Folder for the page.
    started : float
        When scoring began, by ``time.perf_counter``.

    Raises
    ------
    DataError
        They were scored on different pictures.
    StorageError
    """
    found = [_contestant(one) for one in scored]
    _check_same_pictures(found)
    given = [contestant.name for contestant in found]
    found.sort(key=lambda c: (-c.metrics["accuracy"], c.metrics["log_loss"]))
    first = found[0].scored
    folder = ComparisonFolder.make(out, first.dataset.name)
    rows = [_row(contestant) for contestant in found]
    document: ComparisonDocument = {
        "dataset": first.dataset.name,
        "split": first.split,
        "n": len(first.y),
        "baseline_accuracy": found[0].metrics["baseline_accuracy"],
        "heads": rows,
        "pairs": _pairs(found),
        "notes": [*_notes(rows, len(first.y)), *_averaged_views(scored)],
        "report": str(folder.report_path),
        "seconds": round(time.perf_counter() - started, 3),
    }
    compared = [_compared(*pair) for pair in zip(found, rows, strict=True)]
    compared.sort(key=lambda one: given.index(one.row["head"]))
    variation = find_variation(_in_network_order(compared))
    write_comparison(folder.report_path, document, [_curves(c) for c in found], variation)
    folder.save(document)
    return Comparison(document, folder.report_path)


def _check_heads(heads: Sequence[Path]) -> None:
    if len(heads) < 2:
        raise UsageError(f"expected at least two heads to compare, found {len(heads)}")
    seen: set[Path] = set()
    for head in heads:
        folder = Run.at(head).folder.resolve()
        if folder in seen:
            raise UsageError(f"expected different heads to compare, found {head} twice")
        seen.add(folder)


def _contestant(scored: Scored) -> _Contestant:
    names = scored.classes
    ids = [row.tobytes() for row in scored.ids]
    pictures = [(ids[i], names[scored.y[i]]) for i in range(len(ids))]
    order = sorted(range(len(ids)), key=pictures.__getitem__)
    correct = scored.probabilities.argmax(axis=1) == scored.y
    return _Contestant(
        name=str(scored.run.folder),
        scored=scored,
        metrics=score(scored.y, scored.probabilities, names),
        pictures=[pictures[i] for i in order],
        correct=correct[order],
    )


def _check_same_pictures(found: Sequence[_Contestant]) -> None:
    first = found[0]
    for other in found[1:]:
        if other.pictures != first.pictures:
            raise DataError(
                f"expected heads with the same pictures and labels in split "
                f"'{first.scored.split}', found {_words(first)} and {_words(other)}; name one "
                "data set for all of them with --on"
            )


def _words(contestant: _Contestant) -> str:
    scored = contestant.scored
    return f"{len(scored.y)} of '{scored.dataset.name}' ({escape(contestant.name)})"


def _row(contestant: _Contestant) -> ComparedHead:
    trained, metrics = contestant.scored.trained, contestant.metrics
    seconds = trained.info.get("seconds")
    return {
        "head": contestant.name,
        "kind": trained.head.kind,
        "params": trained.head.params,
        "info": trained.info,
        "space": trained.spaces[0].id,
        "spaces": [space.id for space in trained.spaces],
        "features": joined_words(trained.spaces),
        "accuracy": metrics["accuracy"],
        "accuracy_ci95": metrics["accuracy_ci95"],
        "log_loss": metrics["log_loss"],
        "ece": metrics["ece"],
        "seconds": seconds if is_finite(seconds) else None,
        "seconds_per_epoch": _positive(trained.info.get("epoch_seconds")),
        "bytes": contestant.scored.run.head_bytes(),
        "trained_on": len(contestant.scored.trained_on()),
    }


def _positive(value: Any) -> float | None:
    """A duration, where a file holds one."""
    return value if is_finite(value) and value > 0 else None


def _compared(contestant: _Contestant, row: ComparedHead) -> Compared:
    trained = contestant.scored.trained
    digest = str(trained.dataset.get("train_sha256"))
    return Compared(row, trained.spaces, trained.weights_name, digest)


def _in_network_order(compared: list[Compared]) -> list[Compared]:
    """By the places of their taps in the network where it is known, else as they were given."""
    if len({one.tap for one in compared}) == 1:
        # To open some networks takes seconds.
        return compared
    try:
        order = list(get_backbone(compared[0].spaces[0].backbone).taps)
    except UsageError:
        return compared
    if any(space.tap not in order for one in compared for space in one.spaces):
        return compared
    return sorted(compared, key=lambda one: [order.index(space.tap) for space in one.spaces])


def _pairs(found: Sequence[_Contestant]) -> list[ComparedPair]:
    rows: list[ComparedPair] = []
    for a, b in itertools.combinations(found, 2):
        only_a, only_b = int((a.correct & ~b.correct).sum()), int((b.correct & ~a.correct).sum())
        rows.append(
            {
                "a": a.name,
                "b": b.name,
                "only_a_right": only_a,
                "only_b_right": only_b,
                "p_value": mcnemar(only_a, only_b),
                "p_value_holm": 1.0,
            }
        )
    for row, corrected in zip(rows, holm([row["p_value"] for row in rows]), strict=True):
        row["p_value_holm"] = corrected
    return rows


def _averaged_views(scored: Sequence[Scored]) -> list[str]:
    """That the scores are not those of the pictures alone, as a recipe may ask."""
    several = dict.fromkeys(str(one.views) for one in scored if one.views is not None)
    if not several:
        return []
    return [f"probabilities are averaged over each picture and its {' or '.join(several)}"]


def _notes(heads: Sequence[ComparedHead], n: int) -> list[str]:
    """What makes scores too high: pictures a head has seen."""
    seen = [(head["head"], head["trained_on"]) for head in heads]
    if all(count == n for _, count in seen):
        return [
            f"every head was trained on or validated with these {n} pictures: the scores are too "
            "high"
        ]
    return [
        f"{escape(name)} was trained on or validated with {count} of the {n} pictures: its scores "
        "are too high"
        for name, count in seen
        if count
    ]


def _curves(contestant: _Contestant) -> Curves:
    probabilities = contestant.scored.probabilities
    return Curves(
        name=contestant.name,
        history=contestant.scored.trained.history,
        bins=contestant.metrics["calibration"]["bins"],
        confidence=probabilities.max(axis=1),
        correct=probabilities.argmax(axis=1) == contestant.scored.y,
    )
