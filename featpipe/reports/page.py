"""The HTML page of one evaluation."""

from __future__ import annotations

import base64
import html
from pathlib import Path

from featpipe.base.disk import write_atomically
from featpipe.base.text import escape
from featpipe.reports import figures
from featpipe.reports.documents import ClassScores, EvaluationDocument
from featpipe.reports.mistakes import Mistake
from featpipe.runs.trained_head import TrainedHead

_STYLE = """
body{font:15px/1.5 system-ui,sans-serif;color:#1a202c;background:#fff;max-width:62rem;
margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;margin-bottom:0}h2{font-size:1.15rem;margin-top:2.2rem;
border-bottom:1px solid #e2e8f0}p.sub{color:#4a5568;margin-top:.2rem}
table{border-collapse:collapse}td,th{padding:.25rem .8rem;text-align:right;
border-bottom:1px solid #e2e8f0}td:first-child,th:first-child,td.left{text-align:left}
.tiles{display:flex;flex-wrap:wrap;gap:1rem;margin:1rem 0}.tile{border:1px solid #e2e8f0;
border-radius:.5rem;padding:.6rem 1rem}.tile b{display:block;font-size:1.5rem}
.tile span{color:#4a5568}.row{display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start}
svg{max-width:100%;height:auto}figure{margin:0;width:170px;overflow-wrap:anywhere;font-size:13px}
figure img{max-width:160px;border-radius:.3rem}.gone{width:160px;height:100px;background:#edf2f7;
display:flex;align-items:center;justify-content:center;color:#718096}
.warn{background:#fffaf0;border-left:4px solid #dd6b20;padding:.5rem 1rem}
code{overflow-wrap:anywhere}
"""
_SHOWN_DUPLICATES = 20


def write_report(
    path: Path, trained: TrainedHead, evaluation: EvaluationDocument, mistakes: list[Mistake]
) -> None:
    """Write the page of one evaluation.

    Parameters
    ----------
    path : Path
        File to write.
    trained : TrainedHead
        The evaluated head.
    evaluation : dict
        The evaluation's JSON.
    mistakes : list of Mistake
        Wrong predictions to show, lowest probability of the true class first.
    """
    title = f"{evaluation['dataset']}: {trained.head.kind} head"
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{_text(title)}'
        f'</title><meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{_body(title, trained, evaluation, mistakes)}"
        "</body></html>\n"
    )
    write_atomically(path, page.encode("utf-8"))


def _body(
    title: str, trained: TrainedHead, evaluation: EvaluationDocument, mistakes: list[Mistake]
) -> str:
    calibration = evaluation["calibration"]
    classes = trained.head.classes_.tolist()
    return "".join(
        [
            f"<h1>{_text(title)}</h1>",
            f'<p class="sub">{evaluation["n"]} pictures of split '
            f"“{_text(evaluation['split'])}”, {len(classes)} classes, features "
            f"<code>{_text(trained.space.name)}</code></p>",
            _tiles(evaluation),
            _warnings(evaluation),
            "<h2>Training</h2>",
            figures.curves(trained.history),
            "<h2>Confusion and calibration</h2><div class='row'>",
            figures.confusion(evaluation["confusion"], classes),
            figures.reliability(calibration["bins"], calibration["ece"]),
            "</div>",
            "<h2>Classes</h2>",
            _class_table(evaluation["per_class"]),
            "<h2>Worst mistakes</h2>",
            _mistakes(mistakes),
            "<h2>Where it comes from</h2>",
            _origin(trained),
        ]
    )


def _tiles(evaluation: EvaluationDocument) -> str:
    low, high = evaluation["accuracy_ci95"]
    auc = evaluation["roc_auc"]
    tiles = [
        (f"{evaluation['accuracy']:.1%}", f"accuracy (95 %: {low:.1%} to {high:.1%})"),
        (f"{evaluation['log_loss']:.4f}", "log-loss"),
        (f"{evaluation['ece']:.4f}", "calibration error"),
        ("–" if auc is None else f"{auc:.4f}", "ROC-AUC"),
    ]
    inner = "".join(f'<div class="tile"><b>{a}</b><span>{b}</span></div>' for a, b in tiles)
    return f'<div class="tiles">{inner}</div>'


def _warnings(evaluation: EvaluationDocument) -> str:
    notes = "".join(f'<p class="warn">{_text(note)}</p>' for note in evaluation.get("notes", []))
    # A note already says what the head had to do with the pictures of its own data set.
    said = bool(notes) and not evaluation["duplicates"]
    return (
        notes if said else notes + _trained_on(evaluation["trained_on"], evaluation["duplicates"])
    )


def _trained_on(count: int, duplicates: list[str]) -> str:
    if not count:
        return ""
    shown = ", ".join(f"<code>{_text(path)}</code>" for path in duplicates[:_SHOWN_DUPLICATES])
    hidden = len(duplicates) - _SHOWN_DUPLICATES
    more = f" and {hidden} more" if hidden > 0 else ""
    return (
        f'<p class="warn">{count} of these pictures were also trained on or validated with, byte '
        f"for byte; that makes the scores too high{': ' if shown else '.'}{shown}{more}</p>"
    )


def _class_table(rows: list[ClassScores]) -> str:
    head = "<tr><th>class</th><th>precision</th><th>recall</th><th>F1</th><th>pictures</th></tr>"
    body = "".join(
        f"<tr><td>{_text(row['class'])}</td><td>{row['precision']:.3f}</td>"
        f"<td>{row['recall']:.3f}</td><td>{row['f1']:.3f}</td><td>{row['support']}</td></tr>"
        for row in rows
    )
    return f"<table>{head}{body}</table>"


def _mistakes(mistakes: list[Mistake]) -> str:
    if not mistakes:
        return "<p>None: every picture was classified correctly.</p>"
    return f'<div class="row">{"".join(_mistake(mistake) for mistake in mistakes)}</div>'


def _mistake(mistake: Mistake) -> str:
    png = mistake.thumbnail()
    if png is None:
        picture = '<div class="gone">gone or changed</div>'
    else:
        data = base64.b64encode(png).decode("ascii")
        picture = f'<img alt="" src="data:image/png;base64,{data}">'
    return (
        f"<figure>{picture}<figcaption><b>{_text(mistake.predicted)}</b> "
        f"{mistake.probability:.1%}, is {_text(mistake.truth)}<br>"
        f"<code>{_text(mistake.path)}</code></figcaption></figure>"
    )


def _origin(trained: TrainedHead) -> str:
    space, prep = trained.space, trained.space.preprocessing
    rows = {
        "head": trained.head.kind,
        "hyper-parameters": ", ".join(f"{k} = {v}" for k, v in trained.head.params.items()),
        "trained on": f"{trained.dataset['name']}, list {trained.dataset['sha256'][:12]}",
        "validation": trained.dataset["val"],
        "backbone": f"{space.backbone}, weights {trained.weights_name} ({space.weights[:12]})",
        "tap and pooling": f"{space.tap}, {space.pooling}, {list(space.shape)}",
        "preprocessing": f"{prep.size} px, {prep.resize}, {prep.interpolation}",
        "precision": f"computed in {space.precision}, stored as {space.dtype}",
        "feature space": space.id,
        "made with": ", ".join(f"{k} {v}" for k, v in trained.info.items()),
    }
    body = "".join(
        f"<tr><td>{_text(key)}</td><td class='left'><code>{_text(value)}</code></td></tr>"
        for key, value in rows.items()
    )
    return f"<table>{body}</table>"


def _text(value: object) -> str:
    """Untrusted text for HTML; control characters and bytes that are not UTF-8 become visible."""
    return html.escape(escape(str(value)))
