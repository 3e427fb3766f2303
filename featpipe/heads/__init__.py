"""Heads: what is trained on features. Each kind is imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featpipe.base.own_code import is_own_code
from featpipe.specs.head_params import check_params, params_of

if TYPE_CHECKING:
    from featpipe.heads.base import Head

_CLASSES = {
    "linear": ("featpipe.heads.linear", "LinearHead"),
    "mlp": ("featpipe.heads.mlp", "MLPHead"),
    "logistic": ("featpipe.heads.logistic", "LogisticHead"),
    "knn": ("featpipe.heads.knn", "KNNHead"),
    "lenet": ("featpipe.heads.lenet", "LeNetHead"),
    "lenet3x3": ("featpipe.heads.lenet", "LeNet3x3Head"),
    "mnist-cnn": ("featpipe.heads.mnist_cnn", "MNISTCNNHead"),
    "simplecnn": ("featpipe.heads.simple_cnn", "SimpleCNNHead"),
    "suffix": ("featpipe.heads.suffix", "SuffixHead"),
}
_OWN = ("featpipe.heads.own_network", "OwnNetworkHead")


def head_class(kind: str) -> type[Head]:
    """The class of a kind of head; code of the user's own is not imported.

    Raises
    ------
    UsageError
        There is no such kind.
    """
    params_of(kind)
    module, name = _OWN if is_own_code(kind) else _CLASSES[kind]
    found: type[Head] = getattr(importlib.import_module(module), name)
    return found


def new_head(kind: str, params: dict[str, Any]) -> Head:
    """An untrained head.

    Raises
    ------
    UsageError
        The kind has no such hyper-parameter, or it has an impossible value.
    """
    check_params(kind, params)
    head = head_class(kind)(**params)
    head.kind = kind
    return head
