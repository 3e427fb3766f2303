"""Lists of runs and comparisons as text for people."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from featpipe.base.joined_spaces import joined_words
from featpipe.base.text import escape
from featpipe.cli.tables import aligned
from featpipe.reports.documents import ComparisonDocument
from featpipe.runs.words import head_words

if TYPE_CHECKING:
    from featpipe.runs.listing import RunSummary
    from featpipe.stages.list_runs import ListedRuns

_SHOWN_PAIRS = 10
_AGES = ((86_400.0, "d"), (3600.0, "h"), (60.0, "min"))


def of_runs(listed: ListedRuns) -> str:
    """A table of runs."""
    if not listed.found.runs:
        return f"no runs in {escape(str(listed.folder))}; 'featpipe train-head NAME' makes one"
    header = ["run", "data set", "head", "features", "val", "test", "95 %", "age"]
    return "\n".join(aligned([header, *map(_run_row, listed.found.runs)], left=4))


def _run_row(run: RunSummary) -> list[str]:
    test = run.test
    interval = "" if test is None else "{:.1%} to {:.1%}".format(*test.accuracy_ci95)
    return [
        escape(str(run.folder)),
        escape(run.head.dataset["name"]),
        escape(head_words(run.head.kind, run.head.params, run.head.info)),
        escape(joined_words(run.head.spaces)),
        f"{run.head.metrics['val']['accuracy']:.2%}",
        "–" if test is None else f"{test.accuracy:.2%}",
        interval,
        _age(time.time() - run.trained_at),
    ]


def _age(seconds: float) -> str:
    for unit, name in _AGES:
        if seconds >= unit:
            return f"{seconds / unit:.0f} {name}"
    return "now"


def of_comparison(document: ComparisonDocument) -> str:
    """Two tables: the heads, and each two of them."""
    lines = [
        f"{document['dataset']}/{document['split']}: {document['n']} pictures, the same for every "
        f"head; always the largest class: {document['baseline_accuracy']:.2%}",
        "",
        _heads_table(document),
        "",
        *of_pairs_of_heads(document),
    ]
    return "\n".join([*lines, *(f"warning: {note}" for note in document["notes"])])


def _heads_table(document: ComparisonDocument) -> str:
    columns = ["accuracy", "95 %", "log-loss", "ece", "trained in", "MiB"]
    header = ["head", "kind", "features", *columns]
    words = of_compared_heads(document)
    rows = [
        [
            escape(head["head"]),
            *words[head["head"]],
            f"{head['accuracy']:.2%}",
            "{:.1%} to {:.1%}".format(*head["accuracy_ci95"]),
            f"{head['log_loss']:.4f}",
            f"{head['ece']:.4f}",
            "–" if head["seconds"] is None else f"{head['seconds']:.1f} s",
            f"{head['bytes'] / 2**20:.2f}",
        ]
        for head in document["heads"]
    ]
    return "\n".join(aligned([header, *rows], left=3))


def of_compared_heads(document: ComparisonDocument) -> dict[str, tuple[str, str]]:
    """By run folder, each head and its features in words."""
    return {
        head["head"]: (
            escape(head_words(head["kind"], head["params"], head["info"])),
            escape(head["features"]),
        )
        for head in document["heads"]
    }


def of_pairs_of_heads(document: ComparisonDocument) -> list[str]:
    """A table of pairs of heads, the surest difference first, and where the page is."""
    pairs = sorted(document["pairs"], key=lambda pair: pair["p_value"])
    header = ["a", "b", "only a right", "only b right", "p", "p, corrected"]
    rows = [
        [
            escape(pair["a"]),
            escape(pair["b"]),
            str(pair["only_a_right"]),
            str(pair["only_b_right"]),
            f"{pair['p_value']:.3g}",
            f"{pair['p_value_holm']:.3g}{' *' if pair['p_value_holm'] < 0.05 else ''}",
        ]
        for pair in pairs[:_SHOWN_PAIRS]
    ]
    lines = aligned([header, *rows], left=2)
    if len(pairs) > _SHOWN_PAIRS:
        lines.append(f"… and {len(pairs) - _SHOWN_PAIRS} more pairs in the report")
    return [
        *lines,
        "McNemar's exact test; corrected for their number by Holm; * below 0.05",
        f"comparison: {document['report']}",
    ]
