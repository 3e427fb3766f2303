"""The folder of a comparison: ``comparison.html`` and ``comparison.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featpipe.base.disk import write_atomically
from featpipe.base.errors import StorageError
from featpipe.runs.numbered import next_free

COMPARISON_SCHEMA = 1
DEFAULT_COMPARISONS = Path("comparisons")
"""Not among the runs, so that ``runs/pets-*`` names heads only."""


@dataclass(frozen=True)
class ComparisonFolder:
    """One folder; an earlier comparison in it is replaced.

    Attributes
    ----------
    folder : Path
    """

    folder: Path

    @classmethod
    def make(cls, out: Path | None, dataset: str) -> ComparisonFolder:
        """Make the folder asked for, or the next free ``comparisons/<dataset>-<number>``.

        Raises
        ------
        StorageError
        """
        if out is None:
            return cls(next_free(DEFAULT_COMPARISONS, dataset))
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(
                f"expected to make the folder {out}, but: {error.strerror}; name a writable one "
                "with --out"
            ) from error
        return cls(out)

    @property
    def report_path(self) -> Path:
        """The page."""
        return self.folder / "comparison.html"

    def save(self, document: Mapping[str, Any]) -> None:
        """Write the comparison as JSON.

        Raises
        ------
        StorageError
        """
        text = json.dumps({"schema": COMPARISON_SCHEMA, **document}, indent=2, ensure_ascii=True)
        write_atomically(self.folder / "comparison.json", text.encode("ascii") + b"\n")
