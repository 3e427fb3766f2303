"""Which of a data set's views are meant."""

from __future__ import annotations

from featpipe.base.choices import AUGMENTATIONS
from featpipe.specs.fields import Spec, option, spec
from featpipe.specs.value_kinds import Choice, Whole


@spec
class ViewChoice(Spec):
    """What an augmentation must have; None leaves it open."""

    augment: str | None = option(
        Choice(AUGMENTATIONS),
        f"Which policy's views, where there are several: {', '.join(AUGMENTATIONS)}.",
        default=None,
    )
    augment_seed: int | None = option(
        Whole(low=0), "Which seed's views, where there are several.", default=None
    )

    @property
    def is_open(self) -> bool:
        """Whether nothing is asked for."""
        return self.augment is None and self.augment_seed is None
