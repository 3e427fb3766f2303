"""Audits and relabellings as text for people."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from featpipe.base.text import escape
from featpipe.cli.formatting import class_list, counted

if TYPE_CHECKING:
    # Each command imports only its own stage at run time.
    from featpipe.reports.documents import AuditDocument
    from featpipe.stages.relabel import RelabelResult

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
        lines.append(f"  tiny {class_list(names)}")
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
        lines.append(f"  new {class_list(done.new_classes)}")
    if done.lost_classes:
        lines.append(f"  no longer there, {class_list(done.lost_classes)}")
    if done.conflicting:
        lines.append(
            f"  warning: {counted(done.conflicting, 'content')} in several files under different "
            "labels; fix every one of the files"
        )
    if done.data is not None:
        command = (
            f"featpipe extract {shlex.quote(str(done.data))} --root {shlex.quote(done.root)} "
            f"--name {done.dataset}"
        )
        lines.append("  from now on, to add pictures, extract from the new list:")
        lines += [f"    {command} {options}".rstrip() for options in done.extract_options]
    return "\n".join(lines)
