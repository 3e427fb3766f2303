"""Measure what a data set's cached features say, and advise what to try next.

No picture is opened and nothing is written.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path

from featpipe.advising import findings, rules
from featpipe.advising.command_writer import CommandWriter
from featpipe.advising.commands import Commands, suffix_passes
from featpipe.advising.counts import baseline_of, class_facts, picture_facts, sizes_of
from featpipe.advising.documents import (
    AdviseDocument,
    CurvePoint,
    DoublingGain,
    FactsDocument,
    TapComparison,
    TapFact,
)
from featpipe.advising.linear_probe import (
    CURVE_DRAWS,
    CURVE_SHARES,
    LabelledRows,
    Probe,
    at_most,
    probe,
    share_of,
)
from featpipe.advising.tap_rows import TapRows, rows_to_measure
from featpipe.base.errors import DataError
from featpipe.base.progress import Bar, Progress, no_progress
from featpipe.base.space import FeatureSpace
from featpipe.datasets.files import load_dataset
from featpipe.datasets.spaces import choose_space, spaces_of
from featpipe.datasets.training_split import (
    classes_in,
    renumbered_labels,
    too_few_to_validate,
    training_rows,
)
from featpipe.reports.metrics import bootstrap_interval
from featpipe.specs.advise import AdviseSpec
from featpipe.specs.spaces import SpaceQuery
from featpipe.store.feature_store import FeatureStore

log = logging.getLogger("featpipe")


def advise(
    name: str, spec: AdviseSpec, *, cache: Path, progress: Progress = no_progress
) -> AdviseDocument:
    """Measure linear heads on every cached tap, and say from these facts what to try next.

    Parameters
    ----------
    name : str
        Data set.
    spec : AdviseSpec
    cache : Path
    progress : Progress

    Returns
    -------
    AdviseDocument
        Facts, advice with commands to copy, and what is not advised.

    Raises
    ------
    NotFoundError, UsageError, DataError, DamageError, StorageError
    """
    started = time.perf_counter()
    work = _Measuring(name, spec, cache)
    facts = work.measure(progress)
    best = None if work.best is None else work.best.rows
    write, suffix = CommandWriter(work.dataset, cache, work.train), rules.advises_suffix(facts)
    if suffix and best is not None:
        facts["suffix_passes"] = suffix_passes(write, best, work.measured)
    commands = Commands(write, best, work.measured, suffix=suffix)
    advised, not_advised = rules.judge(facts, commands)
    return {
        "dataset": name,
        "facts": facts,
        "advice": advised,
        "not_advised": not_advised,
        "seconds": round(time.perf_counter() - started, 3),
    }


class _Best:
    """The rows whose linear head is the best so far, held for the learning curve."""

    def __init__(self, rows: TapRows, fact: TapFact, found: Probe, data: LabelledRows) -> None:
        self.rows, self.fact, self.found, self.data = rows, fact, found, data


class _Measuring:
    """One measurement; making it reads the list of pictures."""

    def __init__(self, name: str, spec: AdviseSpec, cache: Path) -> None:
        self.spec, self.cache = spec, cache
        self.dataset = load_dataset(cache, name)
        spaces = [(s, w) for s, w in spaces_of(self.dataset) if s.view == 0]
        if not spaces:
            choose_space(self.dataset, SpaceQuery())  # says that there are none
        self.train, self.val = training_rows(self.dataset, spec.val)
        self.classes = classes_in(self.dataset, self.train)
        label = renumbered_labels(self.dataset, self.classes)
        # Validation pictures of classes that train lacks could only ever be wrong.
        self.val = self.val[label[self.val] >= 0]
        if not len(self.val):
            raise DataError(too_few_to_validate(self.dataset))
        ids, limit = self.dataset.image_sha256, spec.max_pictures
        # Rows that are measured: all, unless they are very many.
        self.rows, self.val_rows = (
            part[at_most(ids[part], label[part], limit, spec.seed)]
            for part in (self.train, self.val)
        )
        self.y, self.y_val = label[self.rows], label[self.val_rows]
        self.y_train = label[self.train]
        self.measured, self.notes = rows_to_measure(spaces, len(self.rows))
        self.best: _Best | None = None

    def measure(self, progress: Progress) -> FactsDocument:
        """Count, fit and compare."""
        shares = len(CURVE_SHARES) * CURVE_DRAWS if self.measured else 0
        if self.measured:
            log.info(
                "%s: fits %d linear heads on cached rows and %d more for the learning curve, on %d "
                "training and %d validation pictures; opens no picture",
                self.dataset.name,
                len(self.measured),
                shares,
                len(self.rows),
                len(self.val_rows),
            )
        with progress("advise", len(self.measured) + shares) as bar:
            probes = self._probe_taps(bar)
            curve, gain = self._learning_curve(bar)
        best = self.best
        comparisons = [] if best is None else self._compare(best, probes)
        n = len(self.val_rows)
        return {
            "pictures": picture_facts(self.dataset, self.train, self.val, self.spec.val),
            "classes": class_facts(self.dataset, self.train, self.val),
            "class_sizes": sizes_of(self.y_train),
            "baseline_accuracy": baseline_of(self.y_val),
            "measured_on": {"train": len(self.rows), "val": n},
            "smallest_provable_difference": findings.FEWEST_PROVABLE / n,
            "taps": [fact for fact, _ in probes.values()],
            "tap_comparisons": comparisons,
            "content": findings.content_of(comparisons),
            "gap": None if best is None else findings.gap_of(best.fact, best.found),
            "learning_curve": curve,
            "doubling_gain": gain,
            "data": findings.amount_of(gain),
            "cached_views": len({s.view for s, _ in spaces_of(self.dataset)} - {0}),
            "suffix_passes": None,
            "notes": list(dict.fromkeys(self.notes)),
        }

    def _probe_taps(self, bar: Bar) -> dict[TapRows, tuple[TapFact, Probe]]:
        found: dict[TapRows, tuple[TapFact, Probe]] = {}
        for rows in self.measured:
            data = self._open(rows)
            one = probe(data, len(self.classes))
            fact = _tap_fact(rows, one)
            found[rows] = fact, one
            self.notes += [f"{rows.space.tap}: {text}" for text in one.warnings]
            if self.best is None or fact["val_log_loss"] < self.best.fact["val_log_loss"]:
                self.best = _Best(rows, fact, one, data)
            bar.advance(tap=rows.space.tap, val_accuracy=f"{fact['val_accuracy']:.2%}")
        return found

    def _open(self, rows: TapRows) -> LabelledRows:
        store = FeatureStore(self.cache, rows.space)
        ids = self.dataset.image_sha256
        X, X_val = (rows.of(store.rows(ids[part])) for part in (self.rows, self.val_rows))
        return LabelledRows(X, self.y, X_val, self.y_val)

    def _learning_curve(self, bar: Bar) -> tuple[list[CurvePoint], DoublingGain | None]:
        best = self.best
        if best is None:
            return [], None
        ids, pictures = self.dataset.image_sha256[self.rows], len(self.rows)
        curve: list[CurvePoint] = []
        half: list[Probe] = []
        for share in CURVE_SHARES:
            parts = [
                share_of(ids, self.y, share, self.spec.seed + draw) for draw in range(CURVE_DRAWS)
            ]
            half = []
            for part in parts:
                half.append(probe(best.data, len(self.classes), part))
                bar.advance(share=f"{share:.0%}")
            curve.append(findings.curve_point(share, len(parts[0]), half))
        curve.append(findings.curve_point(1.0, pictures, [best.found]))
        # One picture per class is all that any share has.
        gain = findings.gain_of(half, best.found) if curve[-2]["pictures"] < pictures else None
        return curve, gain

    def _compare(
        self, best: _Best, probes: dict[TapRows, tuple[TapFact, Probe]]
    ) -> list[TapComparison]:
        """The deepest tap of the best network against each earlier one, each with its best rows."""
        taps: dict[int, TapRows] = {}
        for depth in sorted({rows.depth for rows in probes}):
            own = {
                rows: fact
                for rows, (fact, _) in probes.items()
                if rows.depth == depth and rows.network == best.rows.network
            }
            if own:
                taps[depth] = findings.best_of(own)
        deepest = taps.pop(max(taps))
        return [
            findings.compare_taps(
                deepest.space.tap, rows.space.tap, probes[deepest][1], probes[rows][1]
            )
            for rows in taps.values()
        ]


def _tap_fact(rows: TapRows, found: Probe) -> TapFact:
    space: FeatureSpace = rows.space
    return {
        "space": space.id,
        "backbone": space.backbone,
        "size": space.preprocessing.size,
        "tap": space.tap,
        "pool": space.pooling,
        "rows": rows.how,
        "numbers": rows.numbers,
        "depth": rows.depth,
        "C": found.C,
        "train_accuracy": found.train_accuracy,
        "val_accuracy": float(found.correct.mean()),
        "val_accuracy_ci95": bootstrap_interval(found.correct),
        "val_log_loss": float(found.loss.mean()),
        "seconds": round(found.seconds, 3),
    }
