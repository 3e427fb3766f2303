"""Where a head comes from, in words: the table at the end of its page."""

from __future__ import annotations

from typing import Any

from featpipe.base.views import views_in, views_words
from featpipe.runs.trained_head import TrainedHead


def origin(trained: TrainedHead) -> dict[str, str]:
    """What a head was made of and how, by name."""
    space, prep = trained.space, trained.space.preprocessing
    history, kept = trained.history, trained.history.kept.at
    params = trained.head.params.items()
    return {
        "head": trained.head.kind,
        # What is None was left to training, which chose the kept row.
        "hyper-parameters": ", ".join(f"{k} = {v}" for k, v in params if v is not None),
        "kept": f"{history.axis} {kept:.3g}" if history.axis == "C" else f"{history.axis} {kept:g}",
        "trained on": f"{trained.dataset['name']}, list {trained.dataset['sha256'][:12]}",
        "validation": trained.dataset["val"],
        "backbone": f"{space.backbone}, weights {trained.weights_name} "
        f"({', '.join(one.weights[:12] for one in trained.spaces)})",
        "tap and pooling": "; ".join(
            f"{one.tap}, {one.pooling}, {list(one.shape)}" for one in trained.spaces
        ),
        "preprocessing": f"{prep.size} px, {prep.resize}, {prep.interpolation}",
        "precision": f"computed in {space.precision}, stored as {_dtypes(trained)}",
        "feature space": ", ".join(one.id for one in trained.spaces),
        **_training(trained),
    }


def _dtypes(trained: TrainedHead) -> str:
    return ", ".join(dict.fromkeys(space.dtype for space in trained.spaces))


def training_warnings(trained: TrainedHead) -> list[str]:
    """What cast doubt on the head when it was trained."""
    found = trained.info.get("warnings")
    return [str(text) for text in found] if isinstance(found, list) else []


def _training(trained: TrainedHead) -> dict[str, str]:
    """How it was trained, as its file notes it; what is not there is left out."""
    info = trained.info
    rows: dict[str, str] = {}
    if "seed" in info:
        rows["seed"] = f"{info['seed']}"
    if "seconds" in info:
        rows["training took"] = f"{info['seconds']} s"
    if sweep := _table(info, "sweep"):
        rows["chosen among"] = f"{sweep.get('trained')} heads; its seed is {sweep.get('seed')}"
    if shots := _table(info, "n_shot"):
        rows["pictures per class"] = f"{shots.get('n')}, drawn with seed {shots.get('seed')}"
    if views := views_in(info):
        words = f"{views_words(views)}, version {views['version']}"
        rows["views"] = f"{words}: each epoch took one of them, or the picture itself, at random"
    if trained.head.temperature_ != 1.0:
        rows["temperature"] = f"{trained.head.temperature_:.4g}, by calibration on validation"
    elif "calibration" in info:
        rows["temperature"] = "1: calibration changed nothing"
    # The rest are versions; a table among them is none that this page knows.
    told = ("seed", "seconds")
    versions = {k: v for k, v in info.items() if k not in told and isinstance(v, str | int | float)}
    rows["made with"] = ", ".join(f"{name} {version}" for name, version in versions.items())
    return rows


def _table(info: dict[str, Any], name: str) -> dict[str, Any]:
    found = info.get(name)
    return found if isinstance(found, dict) else {}
