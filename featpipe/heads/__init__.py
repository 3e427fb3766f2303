"""Heads: what is trained on features. Each kind is imported only when it is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featpipe.base.errors import UsageError

if TYPE_CHECKING:
    from featpipe.heads.base import Head

_CLASSES = {
    "linear": ("featpipe.heads.linear", "LinearHead"),
    "mlp": ("featpipe.heads.mlp", "MLPHead"),
    "logistic": ("featpipe.heads.logistic", "LogisticHead"),
}
HEAD_KINDS = tuple(_CLASSES)


def head_class(kind: str) -> type[Head]:
    """The class of a kind of head.

    Raises
    ------
    UsageError
        There is no such kind.
    """
    if kind not in _CLASSES:
        raise UsageError(f"expected a head of {', '.join(_CLASSES)}, found {kind!r}")
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
    chosen = head_class(kind)
    known = chosen.param_names()
    unknown = sorted(set(params) - set(known))
    if unknown:
        raise UsageError(
            f"expected hyper-parameters of '{kind}' ({', '.join(known)}), found {unknown[0]!r}"
        )
    return chosen(**params)
