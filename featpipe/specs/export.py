"""Options of an export."""

from __future__ import annotations

from pathlib import Path

from featpipe.base.errors import UsageError
from featpipe.specs.code import AllowCode
from featpipe.specs.fields import default_of, flag, option, required, spec
from featpipe.specs.spaces import SpaceQuery
from featpipe.specs.value_kinds import Choice, File, Flag, Text

MODEL_FORMATS = ("onnx", "torch")
"""What a head and its backbone are written as."""
TABLE_FORMATS = ("npz", "parquet")
"""What the features of a data set are written as."""


@spec
class ExportSpec(AllowCode, SpaceQuery):
    """What is written for people without featpipe, and where."""

    format: str = required(
        Choice((*MODEL_FORMATS, *TABLE_FORMATS)),
        "onnx or torch for a head with its backbone, npz or parquet for the features of a data "
        "set.",
        remedy="give onnx or torch for a head, npz or parquet for a data set",
    )
    out: Path = required(
        File(),
        "File to write; a model's card is written beside it.",
        remedy="give the file to write, such as --out model/model.onnx",
    )
    overwrite: bool = option(Flag(), "Replace the file.", default=False)
    dense: bool = option(
        Flag(),
        "Of a head on maps: pictures of any height and width, and a map of scores.",
        default=False,
    )
    weights: str | None = option(
        Text(),
        "Of a head: where the backbone's weights are now, if not where they were in training. Of a "
        "data set: which weights, where there are several.",
        default=None,
    )

    @property
    def is_model(self) -> bool:
        """Whether a head is exported, and not a data set."""
        return self.format in MODEL_FORMATS

    def _check_together(self) -> None:
        if not self.is_model:
            if self.dense:
                raise UsageError(
                    f"expected --dense with --format {' or '.join(MODEL_FORMATS)}, found "
                    f"{self.format}; leave it out"
                )
            return
        for name in SpaceQuery.option_names():
            if name != "weights" and getattr(self, name) != default_of(SpaceQuery, name):
                raise UsageError(
                    f"expected {flag(name)} with --format {' or '.join(TABLE_FORMATS)}, found "
                    f"{self.format}; leave it out, a head names its own features"
                )
