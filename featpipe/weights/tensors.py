"""The tensors of a file, matched with those that a backbone has."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import Backbone
from featpipe.base.errors import WeightsError


def checked_tensors(
    tensors: Mapping[str, np.ndarray], backbone: Backbone, origin: str
) -> dict[str, NDArray]:
    """Pick the backbone's tensors in network order, floating ones as float32; check their shapes.

    Parameters
    ----------
    tensors : mapping of str to ndarray
        May hold other tensors too, and lack some, such as those of the classifier.
    backbone : Backbone
        Says how its tensors may be spelt.
    origin : str
        Where the tensors come from, for error messages.

    Raises
    ------
    WeightsError
        None is the backbone's, or one has an unexpected shape or type.
    """
    checked: dict[str, NDArray] = {}
    for name, shape in backbone.tensor_shapes.items():
        tensor = next((tensors[s] for s in backbone.spellings(name) if s in tensors), None)
        if tensor is None:
            continue
        kinds = "iub" if name in backbone.whole_numbers else "f"
        if tensor.shape != shape or tensor.dtype.kind not in kinds:
            raise WeightsError(
                f"expected {name} of shape {list(shape)}, found {list(tensor.shape)} "
                f"{tensor.dtype} in {origin}; these are not weights of {backbone.name}"
            )
        checked[name] = np.asarray(tensor, np.float32 if tensor.dtype.kind == "f" else None)
    if not checked:
        expected = ", ".join(list(backbone.tensor_shapes)[:2])
        raise WeightsError(
            f"expected the tensors of {backbone.name} ({expected}, …), found "
            f"{', '.join(list(tensors)[:4]) or 'nothing'} in {origin}"
        )
    return checked
