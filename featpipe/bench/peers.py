"""Alternatives to featpipe, used as their own documentation shows."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

BATCH = 32


def unusable(package: str) -> str:
    """Why a peer cannot be measured on this machine; empty if it can.

    OpenVINO is tried in a process of its own, because it crashes on some processors.
    """
    if importlib.util.find_spec(package) is None:
        return "not installed"
    if package == "openvino":
        trial = (
            "import numpy as np; from featpipe.bench import peers; "
            "peers.openvino_backbone(np.zeros((1, 64, 64, 3), np.uint8), batch=1)()"
        )
        code = subprocess.run([sys.executable, "-c", trial], capture_output=True).returncode
        if code:
            return f"ends its process here ({'signal' if code < 0 else 'exit'} {abs(code)})"
    return ""


def tutorial_loop(files: list[Path], out: Path, *, device: str) -> Callable[[], float]:
    """The usual tutorial loop: fp32, one process, batches of 32, features appended to HDF5."""
    import h5py
    import torch
    import torchvision
    from PIL import Image
    from torchvision import transforms

    model = torchvision.models.vgg16(weights=None).features.eval().to(device)
    prepare = transforms.Compose(
        [
            transforms.Resize(256),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )

    def run() -> float:
        with h5py.File(out, "w") as file, torch.no_grad():
            shape, longest = (0, 512, 7, 7), (None, 512, 7, 7)
            rows = file.create_dataset("features", shape, "f4", maxshape=longest)
            for start in range(0, len(files), BATCH):
                pictures = [Image.open(f).convert("RGB") for f in files[start : start + BATCH]]
                batch = torch.stack([prepare(picture) for picture in pictures]).to(device)
                features = model(batch).cpu()
                rows.resize(start + len(pictures), axis=0)
                rows[start:] = features.numpy()
        return float(len(files))

    return run


def has_network(name: str) -> bool:
    """Whether torchvision has the network."""
    from torchvision import models

    return name in models.list_models(module=models)


def torch_backbone(
    name: str, node: str, pixels: NDArray[np.uint8], *, bf16: bool, batch: int, device: str
) -> Callable[[], float]:
    """torchvision's network up to a node, channels_last, on input already on the device."""
    import torch
    from torchvision import models
    from torchvision.models.feature_extraction import create_feature_extractor

    dtype = torch.bfloat16 if bf16 else torch.float32
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some networks announce a future default of theirs
        model = create_feature_extractor(models.get_model(name, weights=None).eval(), [node])
    model = model.to(device, dtype, memory_format=torch.channels_last)
    tensors = _normalised(pixels).to(device, dtype, memory_format=torch.channels_last)

    def run() -> float:
        with torch.inference_mode():
            for start in range(0, len(tensors), batch):
                model(tensors[start : start + batch])
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
        return float(len(tensors))

    return run


def matrix_products(flop: float, *, precision: str, device: str) -> Callable[[], float]:
    """Large matrix products, counted in pictures of ``flop`` operations each."""
    import torch

    side, times = (8192, 100) if device.startswith("cuda") else (2048, 8)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}[precision]
    left, right = (torch.rand(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)

    def run() -> float:
        for _ in range(times):
            torch.mm(left, right, out=out)
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)
        return times * 2 * side**3 / flop

    return run


def openvino_backbone(pixels: NDArray[np.uint8], *, batch: int) -> Callable[[], float]:
    """VGG16's conv base in OpenVINO, bf16, with its throughput hint."""
    import openvino
    import torchvision

    model = torchvision.models.vgg16(weights=None).features.eval()
    tensors = _normalised(pixels)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        converted = openvino.convert_model(model, example_input=tensors[:batch])
    converted.reshape([batch, *tensors.shape[1:]])
    settings = {"INFERENCE_PRECISION_HINT": "bf16", "PERFORMANCE_HINT": "THROUGHPUT"}
    compiled = openvino.Core().compile_model(converted, "CPU", settings)
    queue = openvino.AsyncInferQueue(compiled)
    batches = [
        np.ascontiguousarray(tensors[start : start + batch].numpy())
        for start in range(0, len(tensors) - batch + 1, batch)
    ]

    def run() -> float:
        for item in batches:
            queue.start_async({0: item})
        queue.wait_all()
        return float(len(batches) * batch)

    return run


def keras_backbone(files: list[Path]) -> Callable[[], float]:
    """Keras' own pipeline: load_img, preprocess_input, predict in batches of 32."""
    import keras

    model: Any = keras.applications.VGG16(weights=None, include_top=False)
    preprocess = keras.applications.vgg16.preprocess_input

    def run() -> float:
        for start in range(0, len(files), BATCH):
            pictures = [
                keras.utils.img_to_array(keras.utils.load_img(f, target_size=(224, 224)))
                for f in files[start : start + BATCH]
            ]
            model.predict(preprocess(np.stack(pictures)), verbose=0)
        return float(len(files))

    return run


def _normalised(pixels: NDArray[np.uint8]) -> Any:
    import torch

    mean = torch.tensor((0.485, 0.456, 0.406)).view(1, 3, 1, 1)
    std = torch.tensor((0.229, 0.224, 0.225)).view(1, 3, 1, 1)
    image = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255.0  # N H W C → N C H W
    return (image - mean) / std


def bare_loop(
    build: Callable[[], Any],
    X: NDArray[Any],
    y: NDArray[np.int64],
    *,
    batch_size: int,
    optimizer: str,
    rate: float,
    decay: float,
    momentum: float,
    device: str,
    factors: Mapping[str, float] = MappingProxyType({}),
    standardises: bool = True,
    in_bf16: bool = False,
) -> Callable[[], float]:
    """One epoch of the shortest loop that trains a network on rows held on its device.

    Parameters
    ----------
    build : callable
        Makes the network.
    X, y : ndarray
        Rows in their stored dtype, and class indices.
    batch_size : int
    optimizer : {"adamw", "sgd", "rmsprop"}
    rate, decay, momentum : float
    device : str
    factors : mapping of str to float
        What the rate is multiplied by, by names of parameters; 1 for others.
    standardises : bool
        Whether rows are centred and scaled.
    in_bf16 : bool
        Whether products are computed in bf16, by autocast.

    Returns
    -------
    callable
        Trains a new network for an epoch; gives the seconds that took.
    """
    import torch

    rows, labels = torch.from_numpy(X).to(device), torch.from_numpy(y).to(device)
    mean, scale = (X[:1000].mean(), X[:1000].std()) if standardises else (0.0, 1.0)

    def optimizer_of(module: Any) -> torch.optim.Optimizer:
        by_factor: dict[float, list[Any]] = {}
        for name, parameter in module.named_parameters():
            by_factor.setdefault(factors.get(name, 1.0), []).append(parameter)
        groups: Any = [{"params": p, "lr": rate * factor} for factor, p in by_factor.items()]
        if optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)
        if optimizer == "sgd":
            return torch.optim.SGD(groups, lr=rate, momentum=momentum, fused=True)
        return torch.optim.RMSprop(groups, lr=rate, momentum=momentum)

    def run() -> float:
        module = build().to(device)
        step = optimizer_of(module)
        started = time.perf_counter()
        order = torch.randperm(len(rows)).to(device)
        for start in range(0, len(rows), batch_size):
            batch = order[start : start + batch_size]
            given = rows[batch].float()
            if standardises:
                given = (given - float(mean)) / float(scale)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=in_bf16):
                logits = module(given)
            loss = torch.nn.functional.cross_entropy(logits, labels[batch])
            step.zero_grad(set_to_none=True)
            torch.autograd.backward(loss)
            step.step()
        float(loss.detach())  # waits for the device
        return time.perf_counter() - started

    return run
