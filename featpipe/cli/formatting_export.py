"""Exports as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featpipe.base.text import escape

if TYPE_CHECKING:
    # Each command imports only its own stage at run time.
    from featpipe.stages.documents import ModelExportDocument, TableExportDocument


def of_export(done: ModelExportDocument | TableExportDocument) -> str:
    """What was written, and how it was checked."""
    # A model says how it was checked; mypy cannot tell the two apart by that.
    lines = of_model(done) if "check" in done else of_table(done)  # type: ignore[arg-type]
    return "\n".join(lines)


def of_model(done: ModelExportDocument) -> list[str]:
    """The network, its input and outputs, and its difference from ``predict``."""
    size, check = done["size"], done["check"]
    sides = "height x width" if done["dense"] else f"{size} x {size}"
    scores = "score_map" if done["dense"] else "logits"
    lines = [
        f"{done['file']}: {done['kind']}, {len(done['classes'])} classes, "
        f"{done['bytes'] / 2**20:.1f} MiB",
        f"  image: float32, N x 3 x {sides}, RGB of 0 to 1; gives {scores} and probabilities",
        f"  checked on {check['pictures']} {check['source']}: same labels, probabilities within "
        f"{check['max_difference']:.1e}",
    ]
    if check["predict_max_difference"] != check["max_difference"]:
        lines.append(
            f"  features in fp32; 'featpipe predict' computes them in a lower precision: within "
            f"{check['predict_max_difference']:.1e}, {check['predict_labels_differ']} other labels"
        )
    return [*map(escape, lines), f"  card: {escape(done['card'])}"]


def of_table(done: TableExportDocument) -> list[str]:
    """The features, and how many pictures are in each split."""
    shape = " x ".join(map(str, done["shape"]))
    splits = ", ".join(f"{name} {n}" for name, n in done["splits"].items()) or "no splits"
    lines = [
        f"{done['file']}: {done['dataset']}, {done['tap']}, pooling {done['pool']}, "
        f"{done['bytes'] / 2**20:.1f} MiB",
        f"  features: {shape}, {done['dtype']}; {splits}",
    ]
    return list(map(escape, lines))
