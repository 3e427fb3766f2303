"""Results as text for people."""

from __future__ import annotations

import csv
import itertools
import json
import shlex
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from featpipe.base.text import escape

if TYPE_CHECKING:
    # Each command imports only its own stage at run time.
    from featpipe.backbones.catalog import Backbone
    from featpipe.reports.documents import AuditDocument
    from featpipe.stages.evaluate import Evaluation
    from featpipe.stages.extract import DryRun, ExtractResult
    from featpipe.stages.predict import Prediction
    from featpipe.stages.recipe import RecipeResult
    from featpipe.stages.relabel import RelabelResult
    from featpipe.stages.train import SweepResult, TrainResult

_SHOWN_BAD = 10
_SHOWN_CLASSES = 10
_SHOWN_TRIALS = 10


def counted(number: int, noun: str) -> str:
    """``1 row``, ``2 rows``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def of_extraction(done: ExtractResult) -> str:
    """What an extraction did: counts, times, feature spaces, splits, classes, quarantine."""
    lines = [
        f"{done.dataset}: {done.images} pictures: {done.computed} computed, {done.reused} reused, "
        f"{done.duplicates} duplicates, {done.quarantined} quarantined"
    ]
    if done.computed:
        stages = ", ".join(f"{k} {v:.1f} s" for k, v in done.stage_seconds.items())
        lines.append(
            f"  {done.seconds:.1f} s, {done.images_per_second:.1f} pictures/s; "
            f"bottleneck: {done.bottleneck} ({stages})"
        )
    else:
        lines.append("  nothing to compute: no picture was decoded, the backbone did not run")
    for space in done.spaces:
        shape = " x ".join(map(str, space.shape))
        lines.append(
            f"  {space.name}: {space.tap}, pooling {space.pooling}, {shape}, {space.dtype}"
        )
    if done.splits:
        lines.append("  " + ", ".join(f"{name} {n}" for name, n in done.splits.items()))
    if done.classes:
        lines.append("  " + _classes(done.classes))
    return "\n".join(lines + _bad(done))


def _classes(classes: Sequence[str]) -> str:
    shown = ", ".join(map(escape, classes[:_SHOWN_CLASSES]))
    more = f", … ({len(classes)} in all)" if len(classes) > _SHOWN_CLASSES else ""
    return f"classes: {shown}{more}"


def _bad(done: ExtractResult) -> list[str]:
    lines = [f"  quarantined {escape(p)}: {stage}: {why}" for p, stage, why in done.bad]
    if len(lines) > _SHOWN_BAD:
        more = len(lines) - _SHOWN_BAD
        lines = [*lines[:_SHOWN_BAD], f"  … and {more} more; --json lists them all"]
    return lines


def of_plan(plan: DryRun) -> str:
    """What an extraction would do."""
    return (
        f"{plan.dataset}: {plan.images} pictures: {plan.unchanged} unchanged and cached, "
        f"{plan.to_read} to read (what turns out to be known is not decoded), {plan.quarantined} "
        "quarantined before; nothing was done"
    )


def of_training(done: TrainResult) -> str:
    """What a training gave; of a sweep, the best combinations first."""
    lines = [] if done.sweep is None else [*_sweep_table(done.sweep), ""]
    lines += [
        f"{done.kind} head in {done.seconds:.1f} s: validation accuracy "
        f"{done.val['accuracy']:.2%} (loss {done.val['loss']:.4f}, {done.axis} "
        f"{done.best.at:g} kept), train {done.train['accuracy']:.2%}",
        f"  {done.head}",
    ]
    return "\n".join(lines)


_MEASURES = {
    "best_epoch": "epoch",
    "cv_loss": "cv loss",
    "val_loss": "val loss",
    "val_accuracy": "val",
    "train_accuracy": "train",
}
"""Columns of the table of a sweep, and their titles."""


def _sweep_table(sweep: SweepResult) -> list[str]:
    """The best combinations as a table: what they differ in, their scores; then advice."""
    shown: list[dict[str, Any]] = [{**row} for row in sweep.rows[:_SHOWN_TRIALS]]
    titles = [name.replace("_", "-") for name in sweep.varied]
    columns = [name for name in _MEASURES if any(row.get(name) is not None for row in shown)]
    table = [[*titles, *(_MEASURES[name] for name in columns)]]
    for row in shown:
        values = {**row["params"], "seed": row["seed"]}
        scores = ["diverged"]
        if not row["diverged"]:
            scores = [_score(name, row[name]) for name in columns]
        table.append([*(f"{values[name]:g}" for name in sweep.varied), *scores])
    widths = [max(8, *map(len, c)) for c in itertools.zip_longest(*table, fillvalue="")]
    lines = [" ".join(map(str.rjust, row, widths)) for row in table]
    if len(sweep.rows) > _SHOWN_TRIALS:
        lines.append(f"… and {len(sweep.rows) - _SHOWN_TRIALS} more in {sweep.table}")
    best = sweep.rows[0]["params"]
    for name, edge in sweep.at_edge.items():
        beyond = {"smallest": "smaller", "largest": "larger"}[edge]
        lines.append(
            f"the best {name.replace('_', '-')}, {best[name]:g}, is the {edge} tried: "
            f"a {beyond} one may do better"
        )
    return lines


def _score(name: str, value: float) -> str:
    if name == "best_epoch":
        return str(value)
    return f"{value:.2%}" if name.endswith("accuracy") else f"{value:.4f}"


def of_evaluation(done: Evaluation) -> str:
    """The scores of a head."""
    m = done.metrics
    low, high = m["accuracy_ci95"]
    auc = "" if m["roc_auc"] is None else f", ROC-AUC {m['roc_auc']:.4f}"
    lines = [
        f"accuracy {m['accuracy']:.2%} (95 %: {low:.2%} to {high:.2%}) on {m['n']} pictures of "
        f"{done.dataset}/{done.split}",
        f"  log-loss {m['log_loss']:.4f}, calibration error {m['ece']:.4f}{auc}",
    ]
    if done.trained_on:
        shown = ", ".join(map(escape, done.duplicates[:3]))
        lines.append(
            f"  warning: {done.trained_on} of them were also trained on or validated with"
            f"{': ' if shown else ''}{shown}"
        )
    return "\n".join([*lines, f"  report: {done.report}"])


def of_recipe(done: RecipeResult) -> str:
    """What a recipe gave, with a table of its heads."""
    lines = [of_extraction(done.extract), "", f"{'head':<10} {'val':>8} {'test':>8}  report"]
    for trained, scored in done.heads:
        lines.append(
            f"{trained.kind:<10} {trained.val['accuracy']:>8.2%} "
            f"{scored.metrics['accuracy']:>8.2%}  {scored.report}"
        )
    return "\n".join(lines)


def tap_rows(backbone: Backbone, size: int) -> list[dict[str, Any]]:
    """The taps of a backbone with their shapes."""
    return [
        {
            "tap": tap.name,
            "node": tap.node,
            "shape": [tap.channels, size // tap.stride, size // tap.stride],
        }
        for tap in backbone.taps.values()
    ]


def of_taps(rows: list[dict[str, Any]]) -> str:
    """A table of taps."""
    lines = [f"{'tap':<14} {'node':<12} shape"]
    for row in rows:
        shape = " x ".join(map(str, row["shape"]))
        lines.append(f"{row['tap']:<14} {row['node']:<12} {shape}")
    return "\n".join(lines)


def of_pairs(pairs: dict[str, Any]) -> str:
    """Names and values, aligned."""
    width = max(map(len, pairs), default=0)
    return "\n".join(f"{name:<{width}}  {_plain(value)}" for name, value in pairs.items())


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(escape(str(inner)) for inner in value)
    return str(value)


def write_csv(predictions: Iterable[Prediction], stream: TextIO, *, all_classes: bool) -> int:
    """Write predictions as CSV with a header; returns how many had an error."""
    plain = csv.writer(stream, lineterminator="\n")
    # The csv module does not quote a lone carriage return, which readers take for a line's end.
    quoted = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
    errors, has_header = 0, False
    classes: list[str] = []
    header = ["path", "label", "probability", "error"]
    for prediction in predictions:
        if not has_header:
            has_header = True
            classes = prediction.classes if all_classes else []
            plain.writerow([*header, *classes])
        every = prediction.probabilities or {}
        probability = "" if prediction.probability is None else f"{prediction.probability:.6f}"
        extra = [f"{every[name]:.6f}" if name in every else "" for name in classes]
        errors += prediction.error is not None
        (quoted if "\r" in prediction.path else plain).writerow(
            [prediction.path, prediction.label or "", probability, prediction.error or "", *extra]
        )
    if not has_header:
        plain.writerow(header)
    return errors


def write_json_lines(
    predictions: Iterable[Prediction], stream: TextIO, *, all_classes: bool
) -> int:
    """Write predictions as JSON lines; returns how many had an error."""
    errors = 0
    for prediction in predictions:
        errors += prediction.error is not None
        stream.write(json.dumps(prediction.as_json(all_classes=all_classes)) + "\n")
    return errors


_SHOWN_FINDINGS = 5


def of_audit(done: AuditDocument) -> str:
    """What an audit found, the gravest of each sort."""
    errors, pairs, check = done["label_errors"], done["near_duplicates"], done["label_check"]
    lines = [f"{done['dataset']}: {done['pictures']} pictures in {done['seconds']:.1f} s"]
    if check["skipped"]:
        lines.append(f"  label errors: not searched for: {check['skipped']}")
    else:
        lines.append(f"  {counted(len(errors), 'probable label error')}")
    for error in errors[:_SHOWN_FINDINGS]:
        lines.append(
            f"    {escape(error['path'])}: labelled {escape(error['label'])}, looks like "
            f"{escape(error['suggested'])} ({error['probability']:.1%})"
        )
    lines.append(
        f"  {counted(done['near_duplicates_found'], 'pair')} of near duplicates, "
        f"{done['near_duplicates_across_splits']} across splits"
    )
    for pair in pairs[:_SHOWN_FINDINGS]:
        a, b = (split or "no split" for split in pair["splits"])
        lines.append(
            f"    {escape(pair['a'])} ({a}), {escape(pair['b'])} ({b}): {pair['similarity']:.4f}"
        )
    lines += [
        f"  {counted(len(done['exact_duplicates']), 'content')} in several files",
        f"  {counted(len(done['outliers']), 'outlier')}",
    ]
    if done["tiny_classes"]:
        names = [tiny["class"] for tiny in done["tiny_classes"]]
        lines.append(f"  tiny {_classes(names)}")
    lines += [
        f"  report: {done['report']}",
        f"  to act on: edit {done['fixes']}, then: featpipe relabel {done['dataset']} "
        f"{shlex.quote(done['fixes'])}",
    ]
    return "\n".join(lines)


def of_relabelling(done: RelabelResult) -> str:
    """What a new list holds, and how its labels become the source's."""
    lines = [
        f"{done.dataset}: {done.pictures} pictures of {done.made_from}: {done.relabelled} "
        f"relabelled, {done.removed} removed; nothing was computed"
    ]
    if done.new_classes:
        lines.append(f"  new {_classes(done.new_classes)}")
    if done.lost_classes:
        lines.append(f"  no longer there, {_classes(done.lost_classes)}")
    if done.conflicting:
        lines.append(
            f"  warning: {counted(done.conflicting, 'content')} in several files under different "
            "labels; fix every one of the files"
        )
    if done.data is not None:
        lines.append(
            f"  to add pictures or features: featpipe extract {shlex.quote(str(done.data))} "
            f"--root {shlex.quote(done.root)} --name {done.dataset} …"
        )
    return "\n".join(lines)
