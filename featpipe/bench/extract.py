"""``bench extract``: pictures per second end to end, of each stage, and of alternatives."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from featpipe.backbones.catalog import get_backbone
from featpipe.backbones.compute_batch import default_batch_size
from featpipe.base.errors import UsageError
from featpipe.base.hardware import cpu_claims
from featpipe.base.progress import Progress, no_progress
from featpipe.bench import peers
from featpipe.bench.measure import Contender, Report, in_turns
from featpipe.bench.pictures import write_pictures
from featpipe.decoding.pool import DecodePool
from featpipe.decoding.worker_process import Task
from featpipe.engine.extractor import batch_bytes, default_workers
from featpipe.engine.plan import FeaturePlan, plan_features
from featpipe.sources import list_pictures
from featpipe.specs.extract import DEFAULT_BACKBONE, ExtractSpec
from featpipe.stages.extract import extract

_SEED = 0
"""Seed of the weights: they are random, because speed does not depend on their values."""
_END_TO_END = "featpipe: files to committed rows"
_DECODING, _BACKBONE = "featpipe: decoding alone", "featpipe: backbone alone"
_PRODUCTS = "large matrix products of as many operations"
_TORCH_FP32, _TORCH_BF16 = "torch fp32, eager", "torch bf16, eager"
_DECODED, _BATCHES = 64, 8
"""Different pictures, and the least number of batches, with which the backbone is measured."""
_TUTORIAL_PICTURES = 2_000
"""Pictures for the tutorial loop, which is too slow for more."""
_NO_KNOWN_IDS = np.empty((0, 32), np.uint8)


def bench_extract(
    folder: Path,
    *,
    count: int | None,
    rounds: int,
    device: str = "auto",
    data: Path | None = None,
    backbone: str = DEFAULT_BACKBONE,
    tap: str | None = None,
    progress: Progress = no_progress,
) -> Report:
    """Measure extraction with a backbone at its usual size.

    Parameters
    ----------
    folder : Path
        Where pictures, weights and caches are written.
    count : int, optional
        Pictures per round; default: enough for ten seconds or more.
    rounds : int
        How often each contender is measured.
    device : str
        ``auto``, ``cpu``, ``cuda:0``, …
    data : Path, optional
        Folder whose first ``count`` pictures are used instead of synthetic ones.
    backbone : str
    tap : str, optional
        Where features are taken; default: the backbone's usual tap, if it has one.
    progress : Progress
        Shows a progress bar.

    Raises
    ------
    UsageError
        The backbone has no network, or no usual tap and none is named.
    """
    if not get_backbone(backbone).has_weights:
        raise UsageError(
            f"expected a --backbone with weights, found {backbone!r}; 'featpipe backbones' lists "
            "them"
        )
    spec = ExtractSpec(
        name="bench",
        backbone=backbone,
        tap=None if tap is None else (tap,),
        device=device,
        root=Path("/"),
    )
    spec = dataclasses.replace(spec, weights=str(_weights(folder, spec)))
    plan = plan_features(spec, folder / "cache")
    count = count or (480 if plan.device == "cpu" else 20_000)
    if data is None:
        data = folder / "pictures"
        write_pictures(data, count)
    files = [data / path for path in list_pictures(data)[0][:count]]
    # Every round starts with an empty cache; a fixed precision avoids choosing it again each time.
    spec = dataclasses.replace(spec, precision=plan.spaces[0].precision)
    listing = folder / "list.csv"
    listing.write_text("path\n" + "".join(f'"{file}"\n' for file in files), encoding="utf-8")
    pixels = _pixels(files, plan)
    absent = _absent(plan)
    contenders = [
        Contender(_END_TO_END, _end_to_end(listing, folder, spec, count)),
        Contender(_DECODING, _decoding(files, plan)),
        Contender(_BACKBONE, _backbone(pixels, plan)),
        *_peers(files, pixels, folder, plan, absent),
    ]
    results = in_turns(contenders, rounds, progress)
    ratios = _ratios({name: result.rate for name, result in results.items()}, plan.device)
    space = plan.spaces[0]
    notes = [
        f"{space.backbone} up to {space.tap} at {space.preprocessing.size} px, {space.precision} "
        f"on {plan.device}, {count} pictures a round"
    ]
    notes += [f"{peer} was not measured: {why}" for peer, why in absent.items()]
    return Report("extract", "images/s", results, ratios, notes)


def _ratios(rate: dict[str, float], device: str) -> list[tuple[str, float, float | None]]:
    """Ratios of rates, by what they compare, with targets."""
    end_to_end, backbone, decoding = rate[_END_TO_END], rate[_BACKBONE], rate[_DECODING]
    if device == "cpu":
        # Decoding and backbone share the cores: their times add up.
        bound, what = 1 / (1 / decoding + 1 / backbone), "decoding and backbone one after the other"
    else:
        bound, what = min(backbone, decoding), "slower of decoding and backbone"
    ratios: list[tuple[str, float, float | None]] = [
        (f"end to end / {what}", end_to_end / bound, 0.95),
        (
            f"backbone / {_PRODUCTS}",
            backbone / rate[_PRODUCTS],
            None if device == "cpu" else 0.6,
        ),
    ]
    for name, own_rate, target in (
        (_TORCH_BF16, backbone, 1.15),
        ("OpenVINO bf16", backbone, 0.95),
        (_TORCH_FP32, backbone, None),
        ("tutorial loop", end_to_end, 3.0),
        ("Keras", end_to_end, 1.8),
    ):
        if name in rate:
            what = "backbone" if own_rate is backbone else "end to end"
            ratios.append((f"{what} / {name}", own_rate / rate[name], target))
    return ratios


def _weights(folder: Path, spec: ExtractSpec) -> Path:
    """Write random weights to a file: reading it is faster than drawing them in every round."""
    backbone = get_backbone(spec.backbone)
    (tap,) = spec.taps
    tensors = backbone.random_tensors(_SEED, backbone.parameters(tap))
    save_file(tensors, folder / "weights.safetensors")
    return folder / "weights.safetensors"


def _absent(plan: FeaturePlan) -> dict[str, str]:
    """Peers that are not measured, and why."""
    name = plan.weights.backbone.name
    absent = {peer: why for peer in ("openvino", "keras") if (why := peers.unusable(peer))}
    if name != DEFAULT_BACKBONE:
        why = f"its script is for {DEFAULT_BACKBONE}"
        absent |= dict.fromkeys(("openvino", "keras", "tutorial loop"), why)
    if not peers.has_network(name):
        absent["torch"] = "torchvision has no such network"
    return absent


def _pixels(files: list[Path], plan: FeaturePlan) -> NDArray[np.uint8]:
    """Decoded pictures (n, size, size, 3), repeated until they fill enough batches."""
    preprocessing = plan.spaces[0].preprocessing
    tasks = [Task(key, str(file)) for key, file in enumerate(files[:_DECODED])]
    with DecodePool(preprocessing, workers=1, known=_NO_KNOWN_IDS) as pool:
        decoded = [done.pixels for done in pool.decode(tasks) if done is not None]
    different = np.concatenate([pixels for pixels in decoded if pixels is not None])
    wanted = max(len(different), _BATCHES * default_batch_size(plan.device, preprocessing.size))
    return different[np.arange(wanted) % len(different)]


def _end_to_end(listing: Path, folder: Path, spec: ExtractSpec, count: int) -> Callable[[], float]:
    def run() -> float:
        cache = folder / "cache"
        shutil.rmtree(cache, ignore_errors=True)
        done = extract(listing, spec, cache=cache)
        assert done.computed == count, "a picture was not computed"
        return float(count)

    return run


def _decoding(files: list[Path], plan: FeaturePlan) -> Callable[[], float]:
    def run() -> float:
        tasks = [Task(key, str(file)) for key, file in enumerate(files)]
        preprocessing = plan.spaces[0].preprocessing
        workers = default_workers(plan.device)
        with DecodePool(preprocessing, workers=workers, known=_NO_KNOWN_IDS) as pool:
            return float(sum(done is not None for done in pool.decode(tasks)))

    return run


def _backbone(pixels: NDArray[np.uint8], plan: FeaturePlan) -> Callable[[], float]:
    from featpipe.engine.inference_pool import InferencePool

    batch_size = default_batch_size(plan.device, pixels.shape[1])
    backbone = plan.weights.backbone
    tensors = plan.weights.tensors([space.tap for space in plan.spaces])
    network: Any = backbone.network(tensors, plan.spaces, device=plan.device, batch_size=batch_size)

    def run() -> float:
        with InferencePool[None](
            network, device=plan.device, batch_bytes=batch_bytes(network)
        ) as pool:
            for start in range(0, len(pixels), batch_size):
                pool.submit(pixels[start : start + batch_size], None)
                for _ in pool.results():
                    pass
            for _ in pool.results(leave=0):
                pass
        return float(len(pixels))

    return run


def _peers(
    files: list[Path],
    pixels: NDArray[np.uint8],
    folder: Path,
    plan: FeaturePlan,
    absent: dict[str, str],
) -> list[Contender]:
    device = plan.device
    batch = peers.BATCH if device == "cpu" else default_batch_size(device, pixels.shape[1])
    precision = plan.spaces[0].precision
    has_bf16 = bool(cpu_claims()) if device == "cpu" else precision == "bf16"
    products = peers.matrix_products(_flop(plan), precision=precision, device=device)
    contenders = [Contender(_PRODUCTS, products)]
    if "torch" not in absent:
        backbone = plan.weights.backbone
        node = backbone.tap(plan.spaces[0].tap).node
        for name, bf16 in ((_TORCH_FP32, False), (_TORCH_BF16, True)):
            if has_bf16 or not bf16:
                run = peers.torch_backbone(
                    backbone.name, node, pixels, bf16=bf16, batch=batch, device=device
                )
                contenders.append(Contender(name, run))
    if "tutorial loop" not in absent:
        out = folder / "tutorial.h5"
        loop = peers.tutorial_loop(files[:_TUTORIAL_PICTURES], out, device=device)
        contenders.append(Contender("tutorial loop", loop))
    if device == "cpu":
        if has_bf16 and "openvino" not in absent:
            contenders.append(Contender("OpenVINO bf16", peers.openvino_backbone(pixels, batch=1)))
        if "keras" not in absent:
            contenders.append(Contender("Keras", peers.keras_backbone(files)))
    return contenders


def _flop(plan: FeaturePlan) -> float:
    """Floating-point operations of all matrix products and convolutions for one picture.

    Counted as PyTorch counts them: convolutions by the direct sum.
    """
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    taps, size = [space.tap for space in plan.spaces], plan.spaces[0].preprocessing.size
    network = plan.weights.backbone.build(plan.weights.tensors(taps), taps, size)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 3, size, size))
    return float(counter.get_total_flops())
