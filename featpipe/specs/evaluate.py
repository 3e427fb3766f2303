"""Options of evaluation."""

from __future__ import annotations

from featpipe.base.errors import UsageError
from featpipe.specs.code import AllowCode
from featpipe.specs.fields import flag, option, spec
from featpipe.specs.value_kinds import Flag, Text
from featpipe.specs.views import ViewChoice


@spec
class EvaluateSpec(AllowCode, ViewChoice):
    """Which pictures a head is scored on."""

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
                    f"expected {flag(name)} only with --tta, found it without; add --tta or leave "
                    "it out"
                )
