"""Options of evaluation."""

from __future__ import annotations

from featpipe.base.errors import UsageError
from featpipe.specs.code import AllowCode
from featpipe.specs.extract import MAX_SIZE, EngineOptions
from featpipe.specs.fields import called, option, spec
from featpipe.specs.value_kinds import Choice, Flag, Text, Wholes
from featpipe.specs.views import ViewChoice

FRAMES = ("own", "whole")
MAX_SCALES = 16
"""The names of an evaluation's files have all sizes in them."""


@spec
class EvaluateSpec(AllowCode, ViewChoice, EngineOptions):
    """Which pictures a head is scored on, at which sizes, and in which views."""

    on: str | None = option(
        Text(), "Data set.", default_text="the one that the head was trained on", default=None
    )
    split: str | None = option(
        Text(), "test, val, train or all.", default_text="test, else val", default=None
    )
    tta: bool = option(
        Flag(),
        "Average the probabilities over each picture and its views (test-time augmentation), "
        "which extract --views N --views-of test makes.",
        default=False,
    )
    scales: tuple[int, ...] | None = option(
        Wholes(high=MAX_SIZE, most=MAX_SCALES),
        "Sizes of the pictures in pixels, such as 180,224,288: scores each of them, and the "
        "average of their logits.",
        default_text="that of training alone",
        default=None,
    )
    frame: str = option(
        Choice(FRAMES),
        "own: pictures of --scales are cropped or squashed as in training; whole: all of a "
        "picture, its shorter side the size; nothing of it is cached.",
        default="own",
    )
    maps: bool = option(
        Flag(),
        "Show score maps over the worst mistakes in the report: where the picture looks like the "
        "class it was given.",
        default=False,
    )
    weights: str | None = option(
        Text(),
        "For --scales and --maps: where the backbone's weights are now, if not where they were in "
        "training.",
        default=None,
    )

    @property
    def averaged_views(self) -> ViewChoice | None:
        """What the views must have that are averaged over; None without ``tta``."""
        if not self.tta:
            return None
        return ViewChoice(augment=self.augment, augment_seed=self.augment_seed)

    def _check_together(self) -> None:
        for name in ViewChoice.option_names():
            if getattr(self, name) is not None and not self.tta:
                raise UsageError(
                    f"expected {called(name)} only with {called('tta')}, found it without; add "
                    f"{called('tta')} or leave it out"
                )
        if self.tta and self.scales is not None:
            raise UsageError(
                f"expected {called('tta')} or {called('scales')}, found both; views have the size "
                "of training alone: leave out one of the two"
            )
        if self.frame == "whole" and self.scales is None:
            raise UsageError(
                f"expected {called('frame')} whole only with {called('scales')}, found it without; "
                f"add {called('scales')}, such as 224,288, or leave it out"
            )
