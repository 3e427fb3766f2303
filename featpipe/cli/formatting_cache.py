"""What a cache holds, and what was removed from it, as text for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from featpipe.base.text import escape
from featpipe.cli.formatting import counted, of_pairs
from featpipe.cli.tables import aligned

if TYPE_CHECKING:
    from featpipe.stages.documents import GarbageDocument
    from featpipe.stages.removal import Removal
    from featpipe.store.summary import DatasetSummary, StoreSummary

_SHOWN_CLASSES = 100
_SHOWN_REASONS = 20


def size_text(size: int) -> str:
    """``812 bytes``, ``1.2 MiB``."""
    if size < 2**10:
        return counted(size, "byte")
    power = min((size.bit_length() - 1) // 10, 4)
    return f"{size / 2 ** (10 * power):.1f} {' KMGT'[power]}iB"


def of_contents(datasets: list[DatasetSummary], stores: list[StoreSummary]) -> str:
    """A line for every data set and for every feature store, then what they take together."""
    lines = [f"data set  {_dataset(d)}" for d in datasets] + [
        f"store     {_store(s)}" for s in stores
    ]
    if not lines:
        return "empty"
    total = sum(d.bytes for d in datasets) + sum(s.bytes for s in stores)
    lines.append(f"in all    {size_text(total)}")
    if any(store.unnamed for store in stores):
        lines.append("'featpipe cache gc' deletes rows that no data set names")
    return "\n".join(lines)


def _dataset(found: DatasetSummary) -> str:
    name = escape(found.name)
    if found.problem is not None:
        return f"{name}: damaged, see 'featpipe cache verify'; {size_text(found.bytes)}"
    parts = [
        counted(found.pictures or 0, "picture"),
        *([f"{found.quarantined} quarantined"] if found.quarantined else []),
        f"{found.classes} class{'' if found.classes == 1 else 'es'}",
        counted(len(found.spaces), "feature space"),
        *([counted(found.shards, "part")] if found.shards else []),
        size_text(found.bytes),
    ]
    return f"{name}: {', '.join(parts)}"


def _store(found: StoreSummary) -> str:
    shape = " x ".join(map(str, found.shape))
    parts = [
        counted(found.rows, "row"),
        counted(found.segments, "segment"),
        size_text(found.bytes),
        f"{found.size} px, pooling {found.pool}, {shape} {found.dtype}",
        *([f"view {found.view} ({escape(found.augmentation)})"] if found.view else []),
        f"of {', '.join(map(escape, found.datasets))}" if found.datasets else "of no data set",
        *([f"{counted(found.unnamed, 'row')} unnamed"] if found.unnamed else []),
    ]
    return f"{found.name}: {', '.join(parts)}"


def of_dataset(found: dict[str, Any]) -> str:
    """A data set: its figures, its pictures by class and split, its quarantine by reason."""
    pairs = {k: v for k, v in found.items() if k not in ("classes", "class_counts", "reasons")}
    pairs["classes"] = len(found["classes"])
    return "\n".join([of_pairs(pairs), *_classes(found), *_reasons(found["reasons"])])


def _classes(found: dict[str, Any]) -> list[str]:
    counts = found["class_counts"]
    if not counts:
        return []
    splits = list(found["splits"])
    table = [["class", *splits, "pictures"]]
    for row in counts[:_SHOWN_CLASSES]:
        name = "(no label)" if row["class"] is None else escape(row["class"])
        table.append([name, *(str(row["splits"][s]) for s in splits), str(row["pictures"])])
    lines = aligned(table, left=1)
    if len(counts) > _SHOWN_CLASSES:
        lines.append(f"… and {len(counts) - _SHOWN_CLASSES} more; --json lists them all")
    return ["", *lines]


def _reasons(groups: list[dict[str, Any]]) -> list[str]:
    if not groups:
        return []
    lines = [
        f"{group['count']:>8}  {group['stage']}: {escape(group['reason'])}"
        f" ({'such as ' if group['count'] > 1 else ''}{escape(group['example'])})"
        for group in groups[:_SHOWN_REASONS]
    ]
    if len(groups) > _SHOWN_REASONS:
        lines.append(f"… and {len(groups) - _SHOWN_REASONS} more reasons; --json lists them all")
    return ["", "quarantined", *lines]


def of_removal(found: Removal) -> str:
    """What is to be removed, or was."""
    files = f"{size_text(found.bytes)}, {counted(len(found.paths), 'file')}"
    if found.kind == "dataset":
        return f"data set {found.name} ({files}; its rows stay until 'featpipe cache gc')"
    listed = ", ".join(map(escape, found.datasets)) or "no data set"
    return f"feature space {found.name} ({size_text(found.bytes)} of rows; listed by {listed})"


def of_garbage(found: GarbageDocument) -> str:
    """What the collection of garbage did, or would do."""
    lines = [
        f"{store['name']}: {counted(store['rows'], 'row')} of no data set, {store['kept']} stay, "
        f"{size_text(store['bytes'])}"
        for store in found["stores"]
        if store["rows"]
    ]
    would = "would go; nothing was done" if found["dry_run"] else "deleted"
    lines.append(f"{counted(found['rows'], 'row')}, {size_text(found['bytes'])} {would}")
    young = sum(store["young"] for store in found["stores"])
    if young:
        lines.append(f"{counted(young, 'row')} of no data set are young and stay; see --grace")
    return "\n".join(lines)
