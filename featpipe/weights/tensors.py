"""The tensors of a file, matched with those that a backbone has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import COUNTER, Backbone
from featpipe.base.errors import WeightsError


@dataclass(frozen=True)
class FoundTensors:
    """What of a backbone's tensors a file has.

    Attributes
    ----------
    tensors : dict of str to ndarray
        In network order, floating ones as float32.
    misfits : dict of str to str
        Why others do not fit, such as a classifier for other classes.
    unused : list of str
        Tensors of the file that are none of the backbone's.
    """

    tensors: dict[str, NDArray]
    misfits: dict[str, str] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)


def find_tensors(
    tensors: Mapping[str, np.ndarray], backbone: Backbone, origin: str
) -> FoundTensors:
    """Pick the backbone's tensors, and check their shapes.

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
        None of them fits.
    """
    found = FoundTensors({})
    unused = dict.fromkeys(name for name in tensors if not name.endswith(COUNTER))
    for name, shape in backbone.tensor_shapes.items():
        spelling = next((s for s in backbone.spellings(name) if s in tensors), None)
        if spelling is None:
            continue
        tensor = tensors[spelling]
        unused.pop(spelling, None)
        kinds = "iub" if name in backbone.whole_numbers else "f"
        if tensor.shape != shape or tensor.dtype.kind not in kinds:
            found.misfits[name] = (
                f"expected {name} of shape {list(shape)}, found {list(tensor.shape)} "
                f"{tensor.dtype} in {origin}; these are not weights of {backbone.name}"
            )
        else:
            dtype = np.float32 if tensor.dtype.kind == "f" else None
            found.tensors[name] = np.asarray(tensor, dtype)
    if not found.tensors:
        expected = ", ".join(list(backbone.tensor_shapes)[:2])
        nothing = (
            f"expected the tensors of {backbone.name} ({expected}, …), found "
            f"{', '.join(list(tensors)[:4]) or 'nothing'} in {origin}"
        )
        raise WeightsError(next(iter(found.misfits.values()), nothing))
    found.unused.extend(unused)
    return found
