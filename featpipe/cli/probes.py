"""Text of trainings that are repeated by seed or by number of pictures, and of calibration."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featpipe.base.text import escape
from featpipe.cli.tables import aligned

if TYPE_CHECKING:
    from featpipe.heads.spread import Spread
    from featpipe.stages.documents import CalibrationDocument, ShotDocument
    from featpipe.stages.n_shot import NShotResult
    from featpipe.stages.sweep_result import SweepResult

_SHOWN_COMBINATIONS = 10
_SHOWN_CLASSES = 5


def over_seeds(sweep: SweepResult | None) -> list[str]:
    """Mean and standard deviation over the seeds of the best combination, if there were several."""
    if sweep is None or not sweep.by_seed:
        return []
    best = sweep.by_seed[0]
    if best["val_accuracy"] is None or best["val_loss"] is None:
        return []
    diverged = f", {best['diverged']} diverged" if best["diverged"] else ""
    return [
        f"  {best['seeds']} seeds{diverged}: validation accuracy {_share(best['val_accuracy'])}, "
        f"loss {_loss(best['val_loss'])} (mean ± standard deviation); the best is kept"
    ]


def seeds_table(sweep: SweepResult) -> list[str]:
    """The combinations of the lowest mean loss as a table, each over its seeds."""
    varied = [name for name in sweep.varied if name != "seed"]
    table = [[*(name.replace("_", "-") for name in varied), "val loss", "val", "diverged"]]
    for row in sweep.by_seed[:_SHOWN_COMBINATIONS]:
        loss, accuracy = row["val_loss"], row["val_accuracy"]
        scores = ["", ""] if loss is None or accuracy is None else [_loss(loss), _share(accuracy)]
        table.append([*(value_text(row["params"][name]) for name in varied), *scores])
        table[-1].append(str(row["diverged"]))
    if not any(row["diverged"] for row in sweep.by_seed):
        table = [row[:-1] for row in table]
    lines = aligned(table, gap=" ", least=8)
    if len(sweep.by_seed) > _SHOWN_COMBINATIONS:
        more = len(sweep.by_seed) - _SHOWN_COMBINATIONS
        lines.append(f"… and {more} more in {sweep.table}")
    return lines


def shot_table(done: NShotResult) -> list[str]:
    """Validation scores by number of pictures per class; then which classes have fewer."""
    table = [["pictures per class", "in all", "tries", "val", "val loss"]]
    for shot in done.shots:
        counts = [str(shot["n"]), str(shot["pictures"]), str(len(shot["tries"]))]
        table.append([*counts, _share(shot["val_accuracy"]), _loss(shot["val_loss"])])
    lines = [
        *aligned(table, gap=" ", least=8),
        f"mean ± standard deviation over the tries; all are in {done.table}",
    ]
    return lines + [_fewer(shot) for shot in done.shots if shot["fewer"]]


def _fewer(shot: ShotDocument) -> str:
    classes = list(shot["fewer"].items())
    shown = ", ".join(f"{escape(name)} {count}" for name, count in classes[:_SHOWN_CLASSES])
    more = f", … ({len(classes)} in all)" if len(classes) > _SHOWN_CLASSES else ""
    return f"classes with fewer than {shot['n']} pictures, all of which were used: {shown}{more}"


def calibrated(done: CalibrationDocument | None) -> list[str]:
    """The temperature, and what it changes on validation, if anything."""
    if done is None or done["before"] == done["after"]:
        return []
    before, after = done["before"], done["after"]
    return [
        f"  calibrated on validation: temperature {done['temperature']:.4g}, log-loss "
        f"{before['log_loss']:.4f} -> {after['log_loss']:.4f}, calibration error "
        f"{before['ece']:.4f} -> {after['ece']:.4f}"
    ]


def _share(spread: Spread) -> str:
    return f"{spread['mean']:.2%}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.2%}")


def _loss(spread: Spread) -> str:
    return f"{spread['mean']:.4f}" + ("" if spread["sd"] is None else f" ± {spread['sd']:.4f}")


def value_text(value: Any) -> str:
    """A value of a hyper-parameter, or the name of a tap or pooling."""
    return value if isinstance(value, str) else f"{value:g}"
