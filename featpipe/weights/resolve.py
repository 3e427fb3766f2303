"""From what ``--weights`` says to tensors: a name, a file, or a seed."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

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
    """Weights of one backbone; tensors are read on first use.

    Attributes
    ----------
    backbone : Backbone
    spec : str
        What ``--weights`` said; a file's absolute path.
    """

    backbone: Backbone
    spec: str
    _load: Callable[[int], tuple[dict[str, np.ndarray], Normalisation]]
    _pinned: tuple[str, ...] = ()
    _normalisation: Normalisation | None = None

    @cached_property
    def _all(self) -> tuple[dict[str, np.ndarray], Normalisation]:
        return self._load(sum(self.backbone.blocks))

    @property
    def normalisation(self) -> Normalisation:
        """The input these weights were trained on."""
        return self._normalisation or self._all[1]

    def digest(self, convolutions: int) -> str:
        """SHA-256 (hex) of the first convolutions; pinned ones are known without reading."""
        if self._pinned:
            return self._pinned[convolutions - 1]
        return tensors_digest(self.tensors(convolutions), self.backbone, convolutions)

    def tensors(self, convolutions: int) -> dict[str, np.ndarray]:
        """The first convolutions' ``features.N.weight`` and ``.bias``, float32.

        Raises
        ------
        WeightsError
            They cannot be had, or end before that.
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
    """Make sure that named weights are in the cache and whole: their path and digest.

    Raises
    ------
    UsageError
        The backbone has no weights of that name.
    WeightsError, DamageError
    """
    names = catalog.known_names(backbone)
    if name not in names:
        raise UsageError(f"expected weights {', '.join(names)} of {backbone.name}, found {name!r}")
    tensors = _named(name, backbone, cache)
    path = own_copy(cache, backbone, name)
    return path, tensors_digest(tensors, backbone, len(tensors) // 2)


def open_weights(spec: str, backbone: Backbone, cache: Path) -> Weights:
    """Weights by name (``IMAGENET1K_V1``), file, or ``random:SEED``; nothing is read yet.

    Raises
    ------
    UsageError
        It is none of these.
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


def _named(name: str, backbone: Backbone, cache: Path) -> dict[str, np.ndarray]:
    path = own_copy(cache, backbone, name)
    if not path.exists():
        fetch_named(name, backbone, cache)
    return _read_own_copy(path, name, backbone)


def check_kept_weights(cache: Path) -> Iterator[tuple[Path, str]]:
    """Every file of named weights in a cache, and what is wrong with it (empty: nothing).

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


def _read_own_copy(path: Path, name: str, backbone: Backbone) -> dict[str, np.ndarray]:
    advice = "delete it and run 'featpipe weights fetch'"
    try:
        tensors, metadata = read_weights_file(path)
        tensors = checked_tensors(tensors, backbone, str(path))
    except WeightsError as error:
        raise DamageError(f"{error}; {advice}") from error
    count = len(tensors) // 2
    pinned = catalog.PREFIX_DIGESTS.get((backbone.name, name))
    expected = pinned[-1] if pinned else metadata.get("featpipe.sha256", "")
    found = tensors_digest(tensors, backbone, count)
    if found != expected:
        raise DamageError(
            f"expected weights {name} of digest {expected[:12]}… in {path}, found "
            f"{found[:12]}…: the file is damaged or altered; {advice}"
        )
    return tensors


def _from_file(path: Path, backbone: Backbone) -> tuple[dict[str, np.ndarray], Normalisation]:
    """A user's file. A file that names itself must be what it says; others are taken as found."""
    raw, metadata = read_weights_file(path)
    tensors = checked_tensors(raw, backbone, str(path))
    count = len(tensors) // 2
    found = tensors_digest(tensors, backbone, count)
    claimed = metadata.get("weights")
    expected = metadata.get("featpipe.sha256", found)
    for (owner, name), pinned in catalog.PREFIX_DIGESTS.items():
        if owner != backbone.name:
            continue
        # Equal tensors mean equal weights, whatever container they came in.
        if found == pinned[count - 1]:
            return tensors, catalog.named_normalisation(name)
        if claimed == name:
            expected = pinned[count - 1]
    if found != expected:
        raise DamageError(
            f"expected weights of digest {expected[:12]}… in {path}, as it says of itself, found "
            f"{found[:12]}…: the file is damaged or altered; fetch it again"
        )
    if claimed in catalog.known_names(backbone):
        return tensors, catalog.named_normalisation(claimed)
    if metadata.get("layout") == "keras":
        return tensors, catalog.CAFFE_BGR
    return tensors, catalog.TORCHVISION
