"""Heads: what is trained on features. Each kind is imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featpipe.specs.heads import check_params, params_of

if TYPE_CHECKING:
    from featpipe.heads.base import Head

_CLASSES = {
    "linear": ("featpipe.heads.linear", "LinearHead"),
    "mlp": ("featpipe.heads.mlp", "MLPHead"),
    "logistic": ("featpipe.heads.logistic", "LogisticHead"),
    "knn": ("featpipe.heads.knn", "KNNHead"),
}


def head_class(kind: str) -> type[Head]:
    """The class of a kind of head.

    Raises
    ------
    UsageError
        There is no such kind.
    """
    params_of(kind)
    module, name = _CLASSES[kind]
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
    return head_class(kind)(**params)
