"""The HTML page of an audit."""

from __future__ import annotations

import functools
from collections.abc import Callable

from featpipe.reports.documents import AuditDocument
from featpipe.reports.templating import render
from featpipe.reports.thumbnails import Thumbnail

SHOWN = 60
"""Findings of each sort that are shown with their pictures."""
_LISTED = 1000
"""Rows of the longest table."""


def audit_page(audit: AuditDocument, thumbnail: Callable[[str], Thumbnail | None]) -> bytes:
    """The page of an audit as UTF-8.

    Parameters
    ----------
    audit : AuditDocument
    thumbnail : callable
        A small picture for a path; None where there is none.
    """
    splits = list(audit["tiny_classes"][0]["splits"]) if audit["tiny_classes"] else []
    return render(
        "audit.html",
        title=f"{audit['dataset']}: audit",
        audit=audit,
        thumbnail=functools.cache(thumbnail),
        splits=splits,
        shown=SHOWN,
        listed=_LISTED,
    )
