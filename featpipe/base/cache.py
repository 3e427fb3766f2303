"""The default cache folder."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_CACHE = Path("cache")
CACHE_VARIABLE = "FEATPIPE_CACHE"


def default_cache() -> Path:
    """``$FEATPIPE_CACHE`` if set, else ``./cache``."""
    return Path(os.environ.get(CACHE_VARIABLE) or DEFAULT_CACHE)
