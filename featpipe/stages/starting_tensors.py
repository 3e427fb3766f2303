"""What the training of a suffix starts from: the tensors of the backbone that made its rows."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from featpipe.base.errors import WeightsError
from featpipe.base.space import FeatureSpace
from featpipe.engine.plan import plan_for_spaces
from featpipe.heads.base import Head
from featpipe.heads.suffix import SuffixHead
from featpipe.specs.head_params import LINEAR, OWN
from featpipe.weights import Weights

log = logging.getLogger("featpipe")


class StartingTensors:
    """Tensors for the heads of one training, read once.

    Parameters
    ----------
    spaces : sequence of FeatureSpace
        Of the rows that the heads are trained on.
    weights_name : str
        How the backbone's weights were named when the rows were made.
    cache : Path
    """

    def __init__(self, spaces: Sequence[FeatureSpace], weights_name: str, cache: Path) -> None:
        self.spaces, self.weights_name, self.cache = spaces, weights_name, cache
        self._weights: Weights | None = None
        self._has_warned = False

    def give(self, head: Head) -> None:
        """Tell a head its feature spaces; a suffix also what it starts from.

        Raises
        ------
        UsageError
            The head cannot be trained on such features.
        WeightsError
            The weights are not there any more, or lack tensors that are needed.
        SpaceMismatchError
            They are not those that the rows were made with.
        """
        head.attach(self.spaces)
        if not isinstance(head, SuffixHead):
            return
        body = head.body
        if head.top == LINEAR and not body:
            head.start_from({}, pretrained=False)
        else:
            weights = self._open()
            # Random tensors are drawn anew where no rows depend on them: each seed has its own.
            wants_more = not weights.are_random and head.top != LINEAR and head.has_own_top
            tensors = weights.named(body, also=head.tail if wants_more else ())
            head.start_from(tensors, pretrained=not weights.are_random)
            if wants_more and head.top == OWN:
                self._warn_of_drawn(head, lacking=len(set(head.tail) - tensors.keys()))

    def _warn_of_drawn(self, head: SuffixHead, *, lacking: int) -> None:
        if lacking and not self._has_warned:
            self._has_warned = True
            log.warning(
                "expected pretrained tensors of the own top of %s in %s, found %d of %d missing: "
                "these layers are drawn; for pretrained ones extract with a whole file of weights, "
                "or take --top linear",
                *(head.backbone.name, self.weights_name, lacking, len(head.tail)),
            )

    def _open(self) -> Weights:
        if self._weights is None:
            try:
                self._weights = plan_for_spaces(
                    self.spaces, self.weights_name, self.cache, device="cpu"
                ).weights
            except WeightsError as error:
                raise WeightsError(
                    f"expected the weights that the features were made with, to start the layers "
                    f"behind {self.spaces[0].tap} from, but: {error}; put the file back, or "
                    "extract again with --weights"
                ) from error
        return self._weights
