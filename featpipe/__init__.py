"""featpipe: run a frozen network over pictures once, then train heads in seconds.

The commands are functions here, under the same names; nothing heavy is imported before one of
them is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from featpipe._version import __version__

if TYPE_CHECKING:
    from featpipe.api import (
        advise,
        audit,
        compare,
        evaluate,
        export,
        extract,
        list_runs,
        load_head,
        predict,
        relabel,
        run_recipe,
        train_head,
    )
    from featpipe.base.errors import FeatpipeError
    from featpipe.integrations.arrays import open_features
    from featpipe.integrations.sklearn import CachedFeatures
    from featpipe.integrations.tables import FeatureTable
    from featpipe.integrations.torch import FeatureDataset
    from featpipe.store.rows import FeatureRows

_HOMES = {
    "extract": "featpipe.api",
    "train_head": "featpipe.api",
    "evaluate": "featpipe.api",
    "predict": "featpipe.api",
    "load_head": "featpipe.api",
    "run_recipe": "featpipe.api",
    "list_runs": "featpipe.api",
    "compare": "featpipe.api",
    "export": "featpipe.api",
    "advise": "featpipe.api",
    "audit": "featpipe.api",
    "relabel": "featpipe.api",
    "open_features": "featpipe.integrations.arrays",
    "FeatureTable": "featpipe.integrations.tables",
    "FeatpipeError": "featpipe.base.errors",
    "FeatureRows": "featpipe.store.rows",
    "FeatureDataset": "featpipe.integrations.torch",
    "CachedFeatures": "featpipe.integrations.sklearn",
}

__all__ = [
    "CachedFeatures",
    "FeatpipeError",
    "FeatureDataset",
    "FeatureRows",
    "FeatureTable",
    "__version__",
    "advise",
    "audit",
    "compare",
    "evaluate",
    "export",
    "extract",
    "list_runs",
    "load_head",
    "open_features",
    "predict",
    "relabel",
    "run_recipe",
    "train_head",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'featpipe' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
