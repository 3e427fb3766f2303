"""From the text of ``--weights`` to tensors: a published name, a file, or a random seed."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from numpy.typing import NDArray

from featpipe.backbones.base import OWN_WEIGHTS, Backbone, NetworkInput, Tensors, tensors_digest
from featpipe.backbones.catalog import get_backbone
from featpipe.base.errors import DamageError, UsageError, WeightsError
from featpipe.base.text import some_of
from featpipe.weights.providers import fetch_named, kept_files, own_copy, pinned_digest
from featpipe.weights.readers import SUFFIXES, read_weights_file
from featpipe.weights.tensors import FoundTensors, find_tensors

log = logging.getLogger("featpipe")

NO_WEIGHTS = "none"
"""How the weights of a backbone without any are called."""
_DIGEST = "featpipe.sha256"
"""Key of a safetensors file's metadata: digest of its tensors."""
Load = Callable[[Sequence[str]], FoundTensors]
"""Names of the tensors that are needed → those and perhaps more."""


@dataclass
class Weights:
    """Weights of one backbone, read on first use.

    Attributes
    ----------
    backbone : Backbone
    spec : str
        The value of ``--weights``; for a file, its absolute path.
    are_random : bool
        Whether they are drawn from a seed.
    """

    backbone: Backbone
    spec: str
    _load: Load
    _input: Callable[[], NetworkInput]
    are_random: bool = False

    @cached_property
    def input(self) -> NetworkInput:
        """The pictures that these weights were trained on."""
        return self._input()

    def digest(self, tap: str) -> str:
        """SHA-256 (hex) of the tensors that a tap depends on; a known one needs no reading."""
        name = self.backbone.tap(tap).name
        known = self.backbone.published.get(self.spec)
        if known is not None and name in known.digests:
            return known.digests[name]
        return self.backbone.digest(self.tensors([name]), name)

    def tensors(self, taps: Sequence[str]) -> dict[str, NDArray]:
        """The tensors that some taps depend on, by name.

        Raises
        ------
        WeightsError
            The weights cannot be read, or lack some of them.
        """
        wanted = {name for tap in taps for name in self.backbone.parameters(tap)}
        return self.named([name for name in self.backbone.tensor_shapes if name in wanted])

    def named(self, names: Sequence[str], *, also: Sequence[str] = ()) -> dict[str, NDArray]:
        """Tensors by name.

        Parameters
        ----------
        names : sequence of str
            Those that are needed.
        also : sequence of str
            Those that come too, as far as they are kept here; nothing is fetched for them.

        Raises
        ------
        WeightsError
            The weights cannot be read, or lack some that are needed.
        """
        loaded = self._load(names)
        found = loaded.tensors
        missing = [name for name in names if name not in found]
        if missing and missing[0] in loaded.misfits:
            raise WeightsError(loaded.misfits[missing[0]])
        if missing:
            raise WeightsError(
                f"expected {len(names)} tensors of {self.backbone.name} in {self.spec}, found "
                f"{len(names) - len(missing)}, without {missing[0]}; choose an earlier --tap, or a "
                "whole file"
            )
        return {name: found[name] for name in (*names, *also) if name in found}


def fetch_weights(name: str | None, backbone: Backbone, cache: Path) -> tuple[Path, str]:
    """Put published weights into the cache, if they are missing, and check them.

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
    name = backbone.weights_called(name or backbone.default_weights)
    if name not in backbone.published:
        names = ", ".join(backbone.published) or "of no published name"
        raise UsageError(f"expected weights {names} of {backbone.name}, found {name!r}")
    tensors = _named(name, backbone, cache, ()).tensors
    return own_copy(cache, backbone, name), tensors_digest(tensors, list(tensors))


def open_weights(spec: str | None, backbone: Backbone, cache: Path) -> Weights:
    """Open weights without reading them yet.

    Parameters
    ----------
    spec : str or None
        A published name (``IMAGENET1K_V1``), ``DEFAULT``, a file, or ``random:SEED``; None for the
        backbone's default.
    backbone : Backbone
    cache : Path
        Cache folder, in which published weights are kept.

    Raises
    ------
    UsageError
        ``spec`` is none of these.
    """
    if not backbone.has_weights:
        if spec not in (None, NO_WEIGHTS):
            raise UsageError(
                f"expected no --weights for {backbone.name}, which has none, found {spec!r}"
            )
        return Weights(backbone, NO_WEIGHTS, _constant({}), lambda: backbone.input_of(NO_WEIGHTS))
    spec = backbone.weights_called(spec or backbone.default_weights)
    if spec in backbone.published:
        load = _Named(spec, backbone, cache)
        return Weights(backbone, spec, load, lambda: backbone.input_of(spec))
    own = backbone.own_tensors()
    if spec == OWN_WEIGHTS and own is not None:
        return Weights(backbone, spec, _constant(own), lambda: backbone.input_of(spec))
    match = re.fullmatch(r"random:(\d{1,9})", spec)
    if match:
        seed = int(match[1])
        return Weights(
            backbone,
            spec,
            lambda names: FoundTensors(backbone.random_tensors(seed, names)),
            lambda: backbone.input_of(spec),
            are_random=True,
        )
    path = Path(spec)
    if path.suffix.lower() not in SUFFIXES:
        known = [*backbone.published, *([OWN_WEIGHTS] if own is not None else [])]
        names = "".join(f"{name}, " for name in known)
        raise UsageError(
            f"expected --weights {names}random:SEED (up to 9 digits) or a file ending in "
            f"{', '.join(SUFFIXES)}, found {spec!r}"
        )
    read = functools.cache(lambda: _from_file(path, backbone))
    return Weights(backbone, str(path.absolute()), lambda _: read()[0], lambda: read()[1])


def _constant(tensors: Tensors) -> Load:
    return lambda _: FoundTensors(dict(tensors))


class _Named:
    """Published weights, from the cache's own copy or else from a provider."""

    def __init__(self, name: str, backbone: Backbone, cache: Path) -> None:
        self._name, self._backbone, self._cache = name, backbone, cache
        self._read: FoundTensors | None = None

    def __call__(self, names: Sequence[str]) -> FoundTensors:
        if self._read is None or any(name not in self._read.tensors for name in names):
            self._read = _named(self._name, self._backbone, self._cache, names)
        return self._read


def _named(name: str, backbone: Backbone, cache: Path, needed: Sequence[str]) -> FoundTensors:
    path = own_copy(cache, backbone, name)
    if path.exists():
        kept = _read_own_copy(path, name, backbone)
        # A provider may have had fewer tensors than the network has.
        if all(tensor in kept.tensors for tensor in needed):
            return kept
    fetch_named(name, backbone, cache, needed)
    return _read_own_copy(path, name, backbone)


def check_kept_weights(cache: Path) -> Iterator[tuple[Path, str]]:
    """Yield each published weights file of a cache, and what is wrong with it (empty: nothing).

    Raises
    ------
    StorageError
        A file may not be read.
    """
    for path, owner, name in kept_files(cache):
        problem = ""
        try:
            _read_own_copy(path, name, get_backbone(owner))
        except (DamageError, UsageError) as error:
            problem = str(error)
        yield path, problem


def _read_own_copy(path: Path, name: str, backbone: Backbone) -> FoundTensors:
    advice = "delete it and run 'featpipe weights fetch'"
    try:
        raw, metadata = read_weights_file(path)
        found = find_tensors(raw, backbone, str(path))
    except WeightsError as error:
        raise DamageError(f"{error}; {advice}") from error
    tensors = found.tensors
    pinned = pinned_digest(name, backbone, tensors)
    claims = [] if pinned is None else [pinned]
    if pinned is None or _DIGEST in metadata:
        claims.append((metadata.get(_DIGEST, ""), tensors_digest(tensors, list(tensors))))
    for expected, digest in claims:
        if digest != expected:
            raise DamageError(
                f"expected weights {name} of digest {expected[:12]}… in {path}, found "
                f"{digest[:12]}…: the file is damaged or altered; {advice}"
            )
    return found


def _from_file(path: Path, backbone: Backbone) -> tuple[FoundTensors, NetworkInput]:
    """Tensors and input of a user's file.

    If the file's metadata state a published name or a digest, the tensors must match it.
    """
    raw, metadata = read_weights_file(path)
    found = find_tensors(raw, backbone, str(path))
    if found.unused:
        log.warning(
            "%d tensors of %s are none of %s and are not used (%s): is it a file of this network?",
            *(len(found.unused), path, backbone.name, some_of(found.unused)),
        )
    tensors = found.tensors
    digest = tensors_digest(tensors, list(tensors))
    claimed_name, expected = metadata.get("weights"), metadata.get(_DIGEST, digest)
    for name in backbone.published:
        pinned = pinned_digest(name, backbone, tensors)
        if pinned is None:
            continue
        # Tensors that match a pinned digest are these named weights, whatever the file's format.
        if pinned[0] == pinned[1]:
            return found, backbone.input_of(name)
        if claimed_name == name:
            expected, digest = pinned
    if digest != expected:
        raise DamageError(
            f"expected weights of digest {expected[:12]}… in {path}, as it says of itself, found "
            f"{digest[:12]}…: the file is damaged or altered; fetch it again"
        )
    return found, backbone.input_of(claimed_name or str(path), metadata.get("layout", ""))
