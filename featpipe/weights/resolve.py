"""Opens the weights that ``--weights`` names: by published name, file, or random seed."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.catalog import BACKBONES, Backbone
from featpipe.base.errors import DamageError, UsageError, WeightsError
from featpipe.weights import catalog
from featpipe.weights.catalog import Normalisation
from featpipe.weights.providers import fetch_named, own_copy
from featpipe.weights.readers import SUFFIXES, read_weights_file
from featpipe.weights.tensors import (
    checked_tensors,
    random_tensors,
    tensor_names,
    tensors_digest,
)


@dataclass
class Weights:
    """Weights of one backbone, read on first use.

    Attributes
    ----------
    backbone : Backbone
    spec : str
        The value of ``--weights``; for a file, its absolute path.
    """

    backbone: Backbone
    spec: str
    _load: Callable[[int], tuple[dict[str, NDArray[np.float32]], Normalisation]]
    _pinned: tuple[str, ...] = ()
    _normalisation: Normalisation | None = None

    @cached_property
    def _all(self) -> tuple[dict[str, NDArray[np.float32]], Normalisation]:
        return self._load(sum(self.backbone.blocks))

    @property
    def normalisation(self) -> Normalisation:
        """How inputs were scaled when these weights were trained."""
        return self._normalisation or self._all[1]

    def digest(self, convolutions: int) -> str:
        """SHA-256 (hex) of the first ``convolutions``; a pinned digest needs no reading."""
        if self._pinned:
            return self._pinned[convolutions - 1]
        return tensors_digest(self.tensors(convolutions), self.backbone, convolutions)

    def tensors(self, convolutions: int) -> dict[str, NDArray[np.float32]]:
        """``features.N.weight`` and ``.bias`` of the first ``convolutions``, float32.

        Raises
        ------
        WeightsError
            The weights cannot be read, or hold fewer convolutions.
        """
        if self.spec.startswith("random:"):
            return self._load(convolutions)[0]
        names = tensor_names(self.backbone, convolutions)
        missing = [name for name in names if name not in self._all[0]]
        if missing:
            raise WeightsError(
                f"expected {len(names)} tensors of {self.backbone.name} in {self.spec}, found "
                f"them only up to {missing[0]}; choose an earlier --tap, or a whole file"
            )
        return {name: self._all[0][name] for name in names}


def fetch_weights(name: str, backbone: Backbone, cache: Path) -> tuple[Path, str]:
    """Put named weights into the cache, if they are missing, and check them.

    Returns
    -------
    path : Path
        The file in the cache.
    digest : str
        SHA-256 (hex) of all its tensors.

    Raises
    ------
    UsageError
        The backbone has no weights of that name.
    WeightsError
        No provider has them.
    DamageError
        The cache's file, or what a provider gave, has another digest than expected.
    """
    names = catalog.known_names(backbone)
    if name not in names:
        raise UsageError(f"expected weights {', '.join(names)} of {backbone.name}, found {name!r}")
    tensors = _named(name, backbone, cache)
    path = own_copy(cache, backbone, name)
    return path, tensors_digest(tensors, backbone, len(tensors) // 2)


def open_weights(spec: str, backbone: Backbone, cache: Path) -> Weights:
    """Open weights without reading them yet.

    Parameters
    ----------
    spec : str
        A published name (``IMAGENET1K_V1``), a file, or ``random:SEED``.
    backbone : Backbone
    cache : Path
        Cache folder, in which named weights are kept.

    Raises
    ------
    UsageError
        ``spec`` is none of these.
    """
    if spec in catalog.known_names(backbone):
        pinned = catalog.PREFIX_DIGESTS.get((backbone.name, spec), ())
        normalisation = catalog.named_normalisation(spec)
        return Weights(
            backbone,
            spec,
            lambda _: (_named(spec, backbone, cache), normalisation),
            pinned,
            normalisation,
        )
    match = re.fullmatch(r"random:(\d{1,9})", spec)
    if match:
        seed = int(match[1])
        return Weights(
            backbone,
            spec,
            functools.cache(
                lambda count: (random_tensors(backbone, seed, count), catalog.TORCHVISION)
            ),
            (),
            catalog.TORCHVISION,
        )
    path = Path(spec)
    if path.suffix.lower() not in SUFFIXES:
        names = ", ".join(catalog.known_names(backbone))
        raise UsageError(
            f"expected --weights {names}, random:SEED (up to 9 digits) or a file ending in "
            f"{', '.join(SUFFIXES)}, found {spec!r}"
        )
    return Weights(backbone, str(path.absolute()), lambda _: _from_file(path, backbone))


def _named(name: str, backbone: Backbone, cache: Path) -> dict[str, NDArray[np.float32]]:
    path = own_copy(cache, backbone, name)
    if not path.exists():
        fetch_named(name, backbone, cache)
    return _read_own_copy(path, name, backbone)


def check_kept_weights(cache: Path) -> Iterator[tuple[Path, str]]:
    """Yield each named weights file of a cache, and what is wrong with it (an empty text: nothing).

    Raises
    ------
    StorageError
        A file may not be read.
    """
    for backbone in BACKBONES.values():
        for name in catalog.known_names(backbone):
            path = own_copy(cache, backbone, name)
            problem = ""
            try:
                if path.exists():
                    _read_own_copy(path, name, backbone)
            except DamageError as error:
                problem = str(error)
            if path.exists():
                yield path, problem


def _read_own_copy(path: Path, name: str, backbone: Backbone) -> dict[str, NDArray[np.float32]]:
    advice = "delete it and run 'featpipe weights fetch'"
    try:
        tensors, metadata = read_weights_file(path)
        tensors = checked_tensors(tensors, backbone, str(path))
    except WeightsError as error:
        raise DamageError(f"{error}; {advice}") from error
    count = len(tensors) // 2
    pinned = catalog.PREFIX_DIGESTS.get((backbone.name, name))
    expected = pinned[-1] if pinned else metadata.get("featpipe.sha256", "")
    digest = tensors_digest(tensors, backbone, count)
    if digest != expected:
        raise DamageError(
            f"expected weights {name} of digest {expected[:12]}… in {path}, found "
            f"{digest[:12]}…: the file is damaged or altered; {advice}"
        )
    return tensors


def _from_file(
    path: Path, backbone: Backbone
) -> tuple[dict[str, NDArray[np.float32]], Normalisation]:
    """Tensors and normalisation of a user's file.

    If the file's metadata state a pinned name or a digest, the tensors must match it.
    """
    raw, metadata = read_weights_file(path)
    tensors = checked_tensors(raw, backbone, str(path))
    count = len(tensors) // 2
    digest = tensors_digest(tensors, backbone, count)
    claimed_name = metadata.get("weights")
    expected = metadata.get("featpipe.sha256", digest)
    for (owner, name), pinned in catalog.PREFIX_DIGESTS.items():
        if owner != backbone.name:
            continue
        # Tensors that match a pinned digest are these named weights, whatever the file's format.
        if digest == pinned[count - 1]:
            return tensors, catalog.named_normalisation(name)
        if claimed_name == name:
            expected = pinned[count - 1]
    if digest != expected:
        raise DamageError(
            f"expected weights of digest {expected[:12]}… in {path}, as it says of itself, found "
            f"{digest[:12]}…: the file is damaged or altered; fetch it again"
        )
    if claimed_name in catalog.known_names(backbone):
        return tensors, catalog.named_normalisation(claimed_name)
    if metadata.get("layout") == "keras":
        return tensors, catalog.CAFFE_BGR
    return tensors, catalog.TORCHVISION
