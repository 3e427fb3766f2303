"""Weights packed for oneDNN, and maps that stay in its own layout between convolutions.

A CPU's matrix units take blocks of a layout of their own. PyTorch's eager convolutions bring
weights and maps into it at every call; here weights are brought once, and maps where they enter and
leave a group of operations that oneDNN has.
"""

from __future__ import annotations

import logging
import operator
import time
import warnings
from collections.abc import Callable, Sequence

import torch
from torch import fx, nn

log = logging.getLogger("featpipe")

_ROUNDS = 3
_TOLERANCE = 2e-2
"""Largest relative difference (L2) of a tap that rounding to bf16 explains."""
_ADDITIONS = (operator.add, operator.iadd, torch.add)

Forward = Callable[[torch.Tensor], Sequence[torch.Tensor]]


def pack(module: fx.GraphModule, dtype: torch.dtype) -> fx.GraphModule:
    """The same network with packed weights; the given one stays as it is.

    Parameters
    ----------
    module : GraphModule
    dtype : torch.dtype
        Convolutions whose weights are of it are packed; others are computed as before.

    Raises
    ------
    RuntimeError
        This processor's oneDNN does not compute in the dtype.
    """
    graph = fx.Graph()
    result = graph.graph_copy(module.graph, {})
    graph.output(result)
    packed = fx.GraphModule(module, graph)
    inside: set[fx.Node] = set()
    for node in list(graph.nodes):
        if _fits(packed, node, dtype, inside):
            for source in node.all_input_nodes:
                if source not in inside:
                    with graph.inserting_before(node):
                        entry = graph.call_method("to_mkldnn", (source, dtype))
                    node.replace_input_with(source, entry)
            called = _called(packed, node)
            if isinstance(called, nn.Conv2d):
                packed.set_submodule(str(node.target), _packed(called, dtype))
            inside.add(node)
        else:
            for source in node.all_input_nodes:
                if source in inside:
                    with graph.inserting_before(node):
                        leaving = graph.call_method("to_dense", (source,))
                    node.replace_input_with(source, leaving)
    packed.recompile()
    return packed


def faster(
    plain: nn.Module, make_packed: Callable[[], nn.Module], images: torch.Tensor
) -> nn.Module:
    """Of two forms of a network the one that is faster here, if they agree.

    Parameters
    ----------
    plain : nn.Module
    make_packed : callable
        Returns the other form.
    images : Tensor, shape (n, 3, size, size)
        What to time them on, of the shape that is computed later.

    Returns
    -------
    nn.Module
        ``plain`` where the other one fails or gives other numbers, which is logged.
    """
    try:
        packed = make_packed()
        with torch.inference_mode():
            difference = _difference(packed(images), plain(images))
            if not difference <= _TOLERANCE:
                log.warning(
                    "packed weights are not used: expected the network's own numbers to %g, "
                    "found a difference of %.2g",
                    *(_TOLERANCE, difference),
                )
                return plain
            seconds = _seconds((plain, packed), images)
    except RuntimeError as error:
        log.warning("packed weights are not used: %s", " ".join(str(error).split())[:200])
        return plain
    log.debug("packed weights: %.2f times as fast", seconds[0] / seconds[1])
    return packed if seconds[1] < seconds[0] else plain


def _packed(convolution: nn.Conv2d, dtype: torch.dtype) -> nn.Module:
    with warnings.catch_warnings():
        # torch builds its own class with a decorator that it calls deprecated.
        warnings.filterwarnings("ignore", ".*script_method.*", FutureWarning)
        from torch.utils.mkldnn import to_mkldnn

        return to_mkldnn(convolution, dtype)  # type: ignore[no-any-return, no-untyped-call]


def _fits(module: fx.GraphModule, node: fx.Node, dtype: torch.dtype, inside: set[fx.Node]) -> bool:
    """Whether a node is computed in oneDNN's layout."""
    called = _called(module, node)
    if isinstance(called, nn.Conv2d):
        is_usual = called.padding_mode == "zeros" and not isinstance(called.padding, str)
        return is_usual and called.weight.dtype == dtype
    if isinstance(called, nn.ReLU | nn.MaxPool2d):
        return node.args[0] in inside
    if node.op == "call_function" and node.target in _ADDITIONS:
        return len(node.args) == 2 and all(term in inside for term in node.args)
    return False


def _called(module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _difference(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> float:
    """Largest relative difference (L2) of an output."""
    pairs = zip(found, expected, strict=True)
    return max(
        float((a.float() - b.float()).norm() / b.float().norm().clamp_min(1e-30)) for a, b in pairs
    )


def _seconds(forms: Sequence[Forward], images: torch.Tensor) -> list[float]:
    """Shortest time of each, in turns: other programs can only make a measurement longer.

    One thread computes, as in a pool with a thread per core.
    """
    shortest = [float("inf")] * len(forms)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(_ROUNDS):
            for number, form in enumerate(forms):
                started = time.perf_counter()
                form(images)
                shortest[number] = min(shortest[number], time.perf_counter() - started)
    finally:
        torch.set_num_threads(threads)
    return shortest
