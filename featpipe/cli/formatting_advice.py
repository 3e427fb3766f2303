"""Advice as text for people: the facts as tables, then what to try next."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featpipe.base.text import escape
from featpipe.cli.formatting import counted
from featpipe.cli.tables import aligned

if TYPE_CHECKING:
    # Each command imports only its own stage at run time.
    from featpipe.advising.documents import AdviseDocument, FactsDocument

_SHOWN_CLASSES = 10


def of_advice(done: AdviseDocument) -> str:
    """Facts, advice with its commands, and what is not advised."""
    facts = done["facts"]
    lines = [
        f"{done['dataset']}: facts ({done['seconds']:.1f} s)",
        *_pictures(facts),
        *_taps(facts),
        *_comparisons(facts),
        *_curve(facts),
        *_cost(facts),
        *(f"  note: {escape(note)}" for note in facts["notes"]),
        "",
        "What to try next",
    ]
    for number, one in enumerate(done["advice"], 1):
        lines.append(f"  {number}. {one['try']}: {one['why']}")
        lines += [f"       {escape(command)}" for command in one["commands"]]
    if done["not_advised"]:
        lines += ["", "Not now"]
        lines += [f"  {names}: {why}" for why, names in _by_reason(done).items()]
    return "\n".join(lines)


def _by_reason(done: AdviseDocument) -> dict[str, str]:
    """What is not advised, by why: ``suffix, views, mlp``."""
    names: dict[str, str] = {}
    for one in done["not_advised"]:
        before = names.get(one["why"])
        names[one["why"]] = one["try"] if before is None else f"{before}, {one['try']}"
    return names


def _pictures(facts: FactsDocument) -> list[str]:
    n, sizes = facts["pictures"], facts["class_sizes"]
    more = [f", {n[key]} {key}" for key in ("unlabelled", "quarantined") if n[key]]
    lines = [
        f"  {counted(n['train'], 'training picture')}, {n['val']} to validate with "
        f"({n['val_from']}), {n['test']} test{''.join(more)}",
        f"  {len(facts['classes'])} classes of {sizes['smallest']} to {sizes['largest']} training "
        f"pictures, median {sizes['median']:g}: imbalance {sizes['imbalance_ratio']:.1f}",
        f"  always answering the largest class: {facts['baseline_accuracy']:.1%} of validation",
    ]
    measured = facts["measured_on"]
    if measured["train"] < n["train"] or measured["val"] < n["val"]:
        lines.append(
            f"  measured on {measured['train']} training and {measured['val']} validation pictures"
        )
    table = [["class", "train", "val", "test", "quarantined"]]
    for one in sorted(facts["classes"], key=lambda one: one["train"])[:_SHOWN_CLASSES]:
        counts = (one["train"], one["val"], one["test"], one["quarantined"])
        table.append([escape(one["class"]), *map(str, counts)])
    lines += [f"    {line}" for line in aligned(table, left=1)]
    if len(facts["classes"]) > _SHOWN_CLASSES:
        lines.append(f"    … the smallest of {len(facts['classes'])}; --json lists them all")
    return lines


def _taps(facts: FactsDocument) -> list[str]:
    if not facts["taps"]:
        return ["  no features of a network are cached"]
    table = [["linear head on", "rows", "numbers", "train", "val", "95 % interval", "log-loss"]]
    several = len({(tap["backbone"], tap["size"]) for tap in facts["taps"]}) > 1
    for tap in facts["taps"]:
        low, high = tap["val_accuracy_ci95"]
        name = f"{tap['backbone']} {tap['size']}px {tap['tap']}" if several else tap["tap"]
        rows = tap["pool"] if tap["rows"] == "stored" else tap["rows"]
        table.append(
            [
                escape(name),
                rows,
                str(tap["numbers"]),
                f"{tap['train_accuracy']:.1%}",
                f"{tap['val_accuracy']:.1%}",
                f"{low:.1%} to {high:.1%}",
                f"{tap['val_log_loss']:.3f}",
            ]
        )
    provable = 100 * facts["smallest_provable_difference"]
    return [
        *(f"  {line}" for line in aligned(table, left=2)),
        f"  differences below {provable:.1f} points mean nothing on "
        f"{counted(facts['measured_on']['val'], 'validation picture')}",
    ]


def _comparisons(facts: FactsDocument) -> list[str]:
    from featpipe.advising.documents import deciding, half_proved

    lines = []
    for one in facts["tap_comparisons"]:
        low, high = one["log_loss_difference_ci95"]
        lines.append(
            f"  {one['deepest']} against {one['earlier']}: "
            f"{100 * one['accuracy_difference']:+.1f} points (right alone: "
            f"{one['only_deepest_right']} and {one['only_earlier_right']}, p = "
            f"{one['p_value']:.2g}), log-loss {one['log_loss_difference']:+.3f} "
            f"({low:+.3f} to {high:+.3f})"
        )
    said = {
        "similar": "the deepest tap is the best: similar content",
        "different": "an earlier tap is better than the deepest: different content",
        "undecided": "no tap is better beyond chance: similar and different content are not told "
        "apart",
        "unknown": "",
    }[facts["content"]]
    if not said:
        return lines
    half = half_proved(deciding(facts["tap_comparisons"]))
    if half:
        said = f"{half}: undecided" if facts["content"] == "undecided" else f"{said} ({half})"
    return [*lines, f"  {said}"]


def _cost(facts: FactsDocument) -> list[str]:
    passes = facts["suffix_passes"]
    if passes is None:
        return []
    return [
        f"  a suffix takes about as much as extracting the training pictures {passes:g} times, by "
        "multiplications"
    ]


def _curve(facts: FactsDocument) -> list[str]:
    gap, gain = facts["gap"], facts["doubling_gain"]
    if gap is None:
        return []
    lines = [
        f"  gap: {gap['train_accuracy']:.1%} on training, {gap['val_accuracy']:.1%} on validation "
        f"pictures: {100 * gap['gap']:.1f} points, {counted(gap['mistakes'], 'mistake')}"
    ]
    points = ", ".join(
        f"{p['val_accuracy']:.1%} with {p['pictures']}" for p in facts["learning_curve"]
    )
    lines.append(f"  learning curve: {points}")
    if gain is not None:
        low, high = gain["accuracy_ci95"]
        loss_low, loss_high = gain["log_loss_ci95"]
        said = {
            "little": "little data: more pictures help",
            "enough": "enough data: the curve is flat",
            "undecided": "not beyond chance",
            "unknown": "",
        }[facts["data"]]
        lines.append(
            f"  the second half of the pictures brought {100 * gain['accuracy']:+.1f} points "
            f"({100 * low:+.1f} to {100 * high:+.1f}), log-loss {gain['log_loss']:+.3f} "
            f"({loss_low:+.3f} to {loss_high:+.3f}): {said}"
        )
    return lines
