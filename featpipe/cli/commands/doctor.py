"""``featpipe doctor``: facts about this machine, in the words of the other commands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from featpipe.cli.console import Console, reporting_errors
from featpipe.cli.options import AsJson, Cache, Quiet, Verbose, cache_root, command_app

_PACKAGES = ("featpipe", "torch", "torchvision", "h5py", "numpy", "scikit-learn", "pillow")


app = command_app()


@app.command()
def doctor(
    cache: Cache = None, as_json: AsJson = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Say what this machine offers and what is ready.

    Example: featpipe doctor
    """
    console = Console(as_json=as_json, quiet=quiet, verbose=verbose)
    with reporting_errors(console):
        from featpipe.cli import formatting

        facts = _facts(cache_root(cache))
        console.result(facts, formatting.of_pairs(facts))


def _facts(cache: Path) -> dict[str, Any]:
    """Versions, device, precision, cores, weights and room on the cache's disk."""
    import importlib.metadata
    import platform
    import shutil

    from featpipe.backbones.catalog import get_backbone
    from featpipe.base.hardware import cpu_count, resolve_device
    from featpipe.engine.precision import choose_precision
    from featpipe.specs.extract import DEFAULT_BACKBONE
    from featpipe.weights.providers import own_copy

    device = resolve_device()
    backbone = get_backbone(DEFAULT_BACKBONE)
    weights = own_copy(cache, backbone, backbone.default_weights)
    nearest = next(p for p in (cache, *cache.absolute().parents) if p.exists())
    return {
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "device": device,
        "precision": choose_precision("auto", device, cache, remember=False),
        "cores": cpu_count(),
        "cache": str(cache),
        "cache_free_gib": round(shutil.disk_usage(nearest).free / 2**30, 1),
        "weights": str(weights) if weights.exists() else "not here yet: fetched on first use",
    }
