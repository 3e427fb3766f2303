"""Results as text for people."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from featpipe.base.csv_rows import CsvWriter
from featpipe.base.text import escape, some_of
from featpipe.base.views import counted_views, views_words
from featpipe.cli import probes
from featpipe.cli.comparing import of_compared_heads, of_pairs_of_heads
from featpipe.cli.tables import aligned

if TYPE_CHECKING:
    # Each command imports only its own stage at run time.
    from featpipe.heads.base import StartDocument
    from featpipe.stages.dry_run import DryRun, PlannedViews
    from featpipe.stages.evaluate import Evaluation
    from featpipe.stages.extract_result import ExtractResult, ViewsResult
    from featpipe.stages.predict import Prediction
    from featpipe.stages.recipe import RecipeResult
    from featpipe.stages.sweep_result import SweepResult
    from featpipe.stages.train_result import TrainResult

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
    elif done.views is None or not done.views.computed:
        lines.append("  nothing to compute: no picture was decoded, the backbone did not run")
    for space in done.spaces:
        shape = " x ".join(map(str, space.shape))
        lines.append(
            f"  {space.name}: {space.tap}, pooling {space.pooling}, {shape}, {space.dtype}"
        )
    if done.views is not None:
        lines.append(f"  {_views(done.views)}")
    if done.splits:
        lines.append("  " + ", ".join(f"{name} {n}" for name, n in done.splits.items()))
    if done.classes:
        lines.append("  " + class_list(done.classes))
    return "\n".join(lines + _bad(done))


def _views(done: ViewsResult) -> str:
    """What the second pass did: ``views 1 to 4 (light, seed 0) of train: …``."""
    text = (
        f"{_numbers(done.number)} ({done.augmentation}) of {', '.join(done.of)}: "
        f"{counted(done.pictures, 'picture')}, {counted(done.computed, 'view')} computed, "
        f"{done.reused} reused, {done.seconds:.1f} s"
    )
    return text if done.is_complete else text + "; views of other shards are missing"


def class_list(classes: Sequence[str]) -> str:
    """``classes: cat, dog``; of many, the first."""
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
    splits = {
        "given": "as DATA gives them: ",
        "content": "by content, ",
        "none": "none, as no picture has a label",
    }[plan.split_by]
    if plan.splits:
        splits += _counted(plan.splits)
    elif plan.split_by == "content":
        splits += f"so not known before the {plan.to_read} pictures are read"
    return "\n".join(
        [
            f"{plan.dataset}: {plan.images} pictures: {plan.unchanged} unchanged and cached, "
            f"{plan.to_read} to read (what turns out to be known is not decoded), "
            f"{plan.quarantined} quarantined before; nothing was done",
            f"  classes: {_counted(plan.classes) or 'none'}",
            f"  splits: {splits}",
            *([] if plan.views is None else [f"  {_planned_views(plan.views)}"]),
        ]
    )


def _planned_views(plan: PlannedViews) -> str:
    what = f"{_numbers(plan.number)} ({plan.augmentation}) of {', '.join(plan.of)}"
    if plan.to_compute is None:
        return f"{what}: how many to compute is not known before the pictures are read"
    return f"{what}: {plan.to_compute} to compute"


def _numbers(count: int) -> str:
    """``view 1``, ``views 1 to 4``."""
    return "view 1" if count == 1 else f"views 1 to {count}"


def _counted(counts: dict[str, int]) -> str:
    """``cat 20, dog 30``."""
    shown = [f"{escape(name)} {n}" for name, n in counts.items()]
    more = [f"… ({len(shown)} in all)"] if len(shown) > _SHOWN_CLASSES else []
    return ", ".join(shown[:_SHOWN_CLASSES] + more)


def of_training(done: TrainResult) -> str:
    """What a training gave; of a sweep, the best combinations first."""
    lines = [] if done.sweep is None else [*_sweep_table(done.sweep), ""]
    with_views = "" if done.views is None else f", with {views_words(done.views)}"
    if done.n_shot is not None:
        lines += [*probes.shot_table(done.n_shot), ""]
    lines += [
        f"{done.kind} head in {done.seconds:.1f} s{with_views}: validation accuracy "
        f"{done.val['accuracy']:.2%} (loss {done.val['loss']:.4f}, {done.axis} "
        f"{done.best.at:g} kept), train {done.train['accuracy']:.2%}",
        *_start(done.start),
        *probes.over_seeds(done.sweep),
        *probes.calibrated(done.calibration),
        f"  {done.head}",
    ]
    return "\n".join(lines)


def _start(start: StartDocument | None) -> list[str]:
    """Which layers of a suffix started from the backbone's weights."""
    if start is None:
        return []
    pretrained, drawn = some_of(start["pretrained"]), some_of(start["drawn"])
    return [f"{start['top']} top; pretrained: {pretrained or 'none'}; drawn: {drawn}"]


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
    every = len(sweep.rows)
    sweep = _best_of_each_space(sweep)
    if len(sweep.by_seed) > 1:
        return [*probes.seeds_table(sweep), *_edges(sweep)]
    shown: list[dict[str, Any]] = [{**row} for row in sweep.rows[:_SHOWN_TRIALS]]
    titles = [name.replace("_", "-") for name in sweep.varied]
    columns = [name for name in _MEASURES if any(row.get(name) is not None for row in shown)]
    table = [[*titles, *(_MEASURES[name] for name in columns)]]
    for row in shown:
        values = {**row["params"], "seed": row["seed"]}
        scores = ["diverged"]
        if not row["diverged"]:
            scores = [_score(name, row[name]) for name in columns]
        table.append([*(probes.value_text(values[name]) for name in sweep.varied), *scores])
    lines = aligned(table, gap=" ", least=8)
    if every > len(shown):
        lines.append(f"… and {every - len(shown)} more in {sweep.table}")
    return lines + _edges(sweep)


def _best_of_each_space(sweep: SweepResult) -> SweepResult:
    """The best combination of each feature space alone, where a sweep ranges over several."""
    ranging = [name for name in ("tap", "pool") if name in sweep.varied]
    if not ranging:
        return sweep

    def best_of_each(rows: Sequence[Any]) -> list[Any]:
        best: dict[tuple[Any, ...], Any] = {}
        for row in rows:
            best.setdefault(tuple(row["params"][name] for name in ranging), row)
        return list(best.values())

    return dataclasses.replace(
        sweep, rows=best_of_each(sweep.rows), by_seed=best_of_each(sweep.by_seed)
    )


def _edges(sweep: SweepResult) -> list[str]:
    """Advice on hyper-parameters whose best value is the first or the last that was tried."""
    lines = []
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
        f"  balanced accuracy {m['balanced_accuracy']:.2%}, macro F1 {m['macro_f1']:.4f}; always "
        f"answering the largest class: {m['baseline_accuracy']:.2%}",
        f"  log-loss {m['log_loss']:.4f}, calibration error {m['ece']:.4f}{auc}",
    ]
    lines += [f"  {escape(note)}" for note in (*_averages(done), *done.notes)]
    if done.duplicates:
        shown = ", ".join(map(escape, done.duplicates[:3]))
        lines.append(
            f"  warning: {done.trained_on} of them were also trained on or validated with: {shown}"
        )
    return "\n".join([*lines, f"  predictions: {done.predictions}", f"  report: {done.report}"])


def _averages(done: Evaluation) -> list[str]:
    """What the scores are averages over, as sentences."""
    if (tta := done.tta) is not None:
        views = counted_views(tta["views"], tta["policy"], tta["seed"])
        return [f"probabilities averaged over each picture and its {views}"]
    if not done.scales:
        return []
    shown = ", ".join(f"{row['size']} px ({row['accuracy']:.2%})" for row in done.scales)
    shown = f"whole pictures of {shown}" if done.frame == "whole" else shown
    return [f"logits averaged over {shown}" if len(done.scales) > 1 else f"scored at {shown}"]


def of_recipe(done: RecipeResult) -> str:
    """What a recipe gave, with a table of its heads."""
    lines = [*map(of_extraction, done.extracts), "", *_heads_table(done)]
    lines += _notes_by_head(done)
    if done.comparison is not None:
        lines += ["", *of_pairs_of_heads(done.comparison.document)]
    return "\n".join(lines)


def _heads_table(done: RecipeResult) -> list[str]:
    """A line per head, which says of its features and parameters what tells the heads apart."""
    evaluated = _evaluated_split(done)
    # Where val itself was evaluated, its accuracy stands there once.
    splits = ["val"] if evaluated == "val" else ["val", evaluated]
    compared = {} if done.comparison is None else of_compared_heads(done.comparison.document)
    kinds = [trained.kind for trained, _ in done.heads]
    features = len({trained.space for trained, _ in done.heads}) > 1
    rows = [["head", *(["features"] if features else []), *splits]]
    for trained, scored in done.heads:
        words, space = compared.get(str(trained.head), (trained.kind, ""))
        name = trained.kind if kinds.count(trained.kind) == 1 else words
        accuracies = [trained.val["accuracy"], scored.metrics["accuracy"]][-len(splits) :]
        shown = [f"{accuracy:.2%}" for accuracy in accuracies]
        rows.append([name, *([space] if features else []), *shown])
    reports = ["report", *(str(scored.report) for _, scored in done.heads)]
    table = aligned(rows, left=1 + features, least=8)
    return [f"{line}  {report}" for line, report in zip(table, reports, strict=True)]


def _notes_by_head(done: RecipeResult) -> list[str]:
    """Each note of the evaluations, and what is averaged, once: after its heads unless for all."""
    kinds = [trained.kind for trained, _ in done.heads]
    heads_of: dict[str, list[str]] = {}
    for trained, scored in done.heads:
        # Of two heads of a kind, the folders tell which.
        name = trained.kind if kinds.count(trained.kind) == 1 else trained.head.name
        for note in (*_averages(scored), *scored.notes):
            heads_of.setdefault(note, []).append(name)
    return [
        "  " + escape(note if len(names) == len(kinds) else f"{', '.join(names)}: {note}")
        for note, names in heads_of.items()
    ]


def _evaluated_split(done: RecipeResult) -> str:
    """What all heads of a recipe were evaluated on: ``val``; of another data set ``NAME/val``."""
    scored = done.heads[0][1]
    own = scored.dataset == done.extract.dataset
    return scored.split if own else escape(f"{scored.dataset}/{scored.split}")


def of_pairs(pairs: dict[str, Any]) -> str:
    """Names and values, aligned."""
    width = max(map(len, pairs), default=0)
    return "\n".join(f"{name:<{width}}  {_plain(value)}" for name, value in pairs.items())


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    if isinstance(value, list):
        return ", ".join(escape(str(inner)) for inner in value)
    return str(value)


def write_csv(
    predictions: Iterable[Prediction],
    stream: TextIO,
    *,
    all_classes: bool,
    with_maps: bool = False,
) -> int:
    """Write predictions as CSV with a header; returns how many had an error."""
    table = CsvWriter(stream)
    errors, has_header = 0, False
    classes: list[str] = []
    header = ["path", "label", "probability", "error", *(["map"] if with_maps else [])]
    for prediction in predictions:
        if not has_header:
            has_header = True
            classes = prediction.classes if all_classes else []
            table.write([*header, *classes])
        every = prediction.probabilities or {}
        probability = "" if prediction.probability is None else f"{prediction.probability:.6f}"
        extra = [f"{every[name]:.6f}" if name in every else "" for name in classes]
        errors += prediction.error is not None
        if with_maps:
            extra.insert(0, "" if prediction.map is None else str(prediction.map))
        table.write(
            [prediction.path, prediction.label or "", probability, prediction.error or "", *extra]
        )
    if not has_header:
        table.write(header)
    return errors


def write_json_lines(
    predictions: Iterable[Prediction],
    stream: TextIO,
    *,
    all_classes: bool,
    with_maps: bool = False,
) -> int:
    """Write predictions as JSON lines; returns how many had an error."""
    errors = 0
    for prediction in predictions:
        errors += prediction.error is not None
        line = prediction.as_json(all_classes=all_classes, with_map=with_maps)
        stream.write(json.dumps(line) + "\n")
    return errors
