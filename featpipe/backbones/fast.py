"""Makes a built network fast on its device, without changing what it computes beyond rounding."""

from __future__ import annotations

import torch
from torch import fx, nn

from featpipe.backbones import packed, winograd
from featpipe.backbones.policies import DTYPES, POLICIES, Autocast

_FRESH = (nn.Conv2d, nn.BatchNorm2d, nn.Linear, winograd.WinogradConv)
"""Modules whose output is never their input."""
_TIMED_IMAGES = 2
"""Pictures on which forms of a network are timed: a batch on a CPU at the usual size."""


def optimised(
    module: fx.GraphModule, *, policy: str, precision: str, device: torch.device
) -> nn.Module:
    """The network on its device, in its precision, in the form that is fastest there.

    Parameters
    ----------
    module : GraphModule
        As :meth:`featpipe.backbones.base.Backbone.build` returns it; it is used up.
    policy : str
        Name of the precision policy.
    precision : {"fp32", "bf16", "fp16"}
    device : torch.device
    """
    fold_batch_norms(module)
    module.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision == "fp32" and device.type == "cpu":
        use_winograd(module)
    reuse_inputs(module)
    module.recompile()
    if precision == "fp32":
        return module
    size = next(n.meta["shape"][-1] for n in module.graph.nodes if n.op == "placeholder")
    network = POLICIES[policy](module, precision)
    if precision == "bf16" and device.type == "cpu" and packs_bf16():
        return with_packed_weights(network, DTYPES[precision], size)
    return network


def packs_bf16() -> bool:
    """Whether this CPU's library computes in bf16 with packed weights."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return bool(available) and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def with_packed_weights(network: nn.Module, dtype: torch.dtype, size: int) -> nn.Module:
    """The network with packed weights if these are faster here, else as it is.

    Parameters
    ----------
    network : nn.Module
        What a policy returned.
    dtype : torch.dtype
    size : int
        Side of the pictures, pixels.
    """
    inner = network.module if isinstance(network, Autocast) else network
    assert isinstance(inner, fx.GraphModule)

    def packed_network() -> nn.Module:
        made = packed.pack(inner, dtype)
        return network.around(made) if isinstance(network, Autocast) else made

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(_TIMED_IMAGES, 3, size, size, generator=generator)
    images = images.to(memory_format=torch.channels_last)
    return packed.faster(network, packed_network, images)


def fold_batch_norms(module: fx.GraphModule) -> None:
    """Put each batch normalisation into the convolution before it, where nobody else reads that."""
    for node in list(module.graph.nodes):
        norm = _called(module, node)
        if not isinstance(norm, nn.BatchNorm2d) or not norm.track_running_stats:
            continue
        before = node.args[0]
        convolution = _called(module, before)
        if isinstance(convolution, nn.Conv2d) and _is_read_once(module, before):
            folded = nn.utils.fusion.fuse_conv_bn_eval(convolution, norm)
            module.set_submodule(before.target, folded)
            node.replace_all_uses_with(before)
            module.graph.erase_node(node)


def use_winograd(module: fx.GraphModule) -> None:
    """Replace each convolution that Winograd makes faster, with the ReLU behind it, if any."""
    for node in list(module.graph.nodes):
        convolution = _called(module, node)
        if not isinstance(convolution, nn.Conv2d) or _calls(module, node.target) > 1:
            continue
        if not winograd.pays(convolution, min(node.args[0].meta["shape"][2:])):
            continue
        relu = next(iter(node.users))
        has_relu = len(node.users) == 1 and isinstance(_called(module, relu), nn.ReLU)
        module.set_submodule(node.target, winograd.WinogradConv(convolution, relu=has_relu))
        if has_relu:
            relu.replace_all_uses_with(node)
            module.graph.erase_node(relu)


def reuse_inputs(module: fx.GraphModule) -> None:
    """Let a ReLU overwrite its input where nobody else reads that."""
    in_place: dict[str, bool] = {}
    for node in module.graph.nodes:
        if isinstance(_called(module, node), nn.ReLU):
            before = node.args[0]
            # Other modules, such as dropout, may return their input itself, which others read.
            may = isinstance(_called(module, before), _FRESH) and _is_read_once(module, before)
            in_place[node.target] = in_place.get(node.target, True) and may
    for target, may in in_place.items():
        module.get_submodule(target).inplace = may  # type: ignore[assignment]


def _called(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _calls(module: fx.GraphModule, target: object) -> int:
    return sum(n.op == "call_module" and n.target == target for n in module.graph.nodes)


def _is_read_once(module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a module's output goes to one place, and the module is called at one place."""
    return node.op == "call_module" and len(node.users) == 1 and _calls(module, node.target) == 1
