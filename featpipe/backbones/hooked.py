"""A network whose graph cannot be traced: taps are its modules, and hooks take their outputs."""

from __future__ import annotations

import contextlib
import copy
import operator
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from featpipe.backbones import fingerprint
from featpipe.backbones.base import Tensors
from featpipe.backbones.graph import set_state
from featpipe.base.errors import UsageError

OUTPUT = "output"
"""The tap that the network itself gives."""


class Hooked:
    """A network, described by what its modules give.

    A tap is a call of a module: it has the module's path, and from its second call on a number, as
    nodes of a graph have (``relu``, ``relu_1``). The network's own output is called ``output``.

    Parameters
    ----------
    root : nn.Module
        The network on the CPU.
    size : int
        Side of the pictures from which it is learnt which modules run when, pixels.
    """

    last_nodes: dict[str, str] = {}  # noqa: RUF012 - no path has another name

    def __init__(self, root: nn.Module, size: int) -> None:
        self.root, self._size = root.eval().requires_grad_(False), size
        for part in root.modules():
            if getattr(part, "inplace", False) is True:
                part.inplace = False  # type: ignore[assignment]

    @cached_property
    def one_by_one(self) -> bool:
        """Whether it may do other things for other pictures, so that each must come alone.

        Stand-ins without content refuse to decide an ``if``.
        """
        return bool(self._run(1, self._size, fake=True).reason)

    def outputs(self, batch: int, size: int) -> tuple[dict[str, torch.Tensor], list[str]]:
        """What modules give for pictures of no content, or of noise where that decides something.

        See :meth:`featpipe.backbones.graph.Traced.outputs`.
        """
        if not self.one_by_one:
            run = self._run(batch, size, fake=True)
        else:
            run = self._run(1, size, fake=False)
            several = {n: [output] * batch for n, output in run.outputs.items() if output.dim()}
            run.outputs = {name: torch.cat(outputs) for name, outputs in several.items()}
        return run.outputs, [run.reason] if run.reason else []

    def tensors(self, name: str) -> set[str]:
        """Names of all parameters and buffers but those of modules that run only after a tap."""
        later = self._later(name)
        return {n for n in self.root.state_dict() if n.rpartition(".")[0] not in later}

    def build(self, names: Sequence[str], size: int, tensors: Tensors) -> fx.GraphModule:
        """A graph of one node, the network with hooks; and one for each tap it gives."""
        run = self._sample if size == self._size else self._run(1, size, fake=not self.one_by_one)
        shapes = {name: tuple(output.shape) for name, output in run.outputs.items()}
        if any(name not in shapes for name in names):
            raise UsageError(
                f"expected a --size that the network takes, found {size}: {run.reason}"
            )
        graph = fx.Graph()
        all_taps = graph.call_module("hooked", (graph.placeholder("pictures"),))
        all_taps.meta["shape"] = max(shapes.values(), key=lambda shape: torch.Size(shape).numel())
        graph.output(
            tuple(graph.call_function(operator.getitem, (all_taps, i)) for i in range(len(names)))
        )
        network = copy.deepcopy(self.root)
        set_state(network, tensors)
        hooked = HookedPass(network, names, one_by_one=self.one_by_one)
        return fx.GraphModule({"hooked": hooked}, graph)

    def fingerprint(self, name: str) -> str:
        """See :meth:`featpipe.backbones.graph.Traced.fingerprint`."""
        return fingerprint.of_modules(self.root, self._later(name))

    def _later(self, name: str) -> set[str]:
        run = self._sample
        started = run.started_by[name]
        return set(run.started[started:]) - set(run.started[:started])

    @cached_property
    def _sample(self) -> _Run:
        return self._run(1, self._size, fake=not self.one_by_one)

    def _run(self, batch: int, size: int, *, fake: bool) -> _Run:
        """Run a copy: the network may change itself."""
        run = _Run(None)
        network = copy.deepcopy(self.root)
        _listen(network, lambda: run)
        try:
            with torch.no_grad():
                if fake:
                    with FakeTensorMode(allow_non_fake_inputs=True):
                        network(torch.empty(batch, 3, size, size))
                else:
                    noise = torch.Generator().manual_seed(0)
                    network(torch.randn(batch, 3, size, size, generator=noise))
        except Exception as error:
            run.reason = " ".join(str(error).split())[:200] or type(error).__name__
        return run


class HookedPass(nn.Module):
    """Pictures (N, 3, size, size) → a tuple with the outputs of calls; stops after the last one.

    Parameters
    ----------
    network : nn.Module
        It gets the hooks.
    names : sequence of str
        Of the calls.
    one_by_one : bool
        Whether each picture must come alone.
    """

    def __init__(self, network: nn.Module, names: Sequence[str], *, one_by_one: bool) -> None:
        super().__init__()
        self.network, self._names, self._one_by_one = network, tuple(names), one_by_one
        # Several threads call one network, each with pictures of its own.
        self._local = threading.local()
        _listen(network, lambda: self._local.run)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """See the class."""
        if not self._one_by_one:
            return self._outputs(images)
        each = [self._outputs(image) for image in images[:, None]]
        return tuple(torch.cat(outputs) for outputs in zip(*each, strict=True))

    def _outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._local.run = run = _Run(frozenset(self._names))
        with contextlib.suppress(_Stop):
            self.network(images)
        lacking = [name for name in self._names if name not in run.outputs]
        if lacking:
            raise UsageError(
                f"expected {lacking[0]} to run for every picture, found one for which the network "
                "does without; choose another --tap"
            )
        return tuple(run.outputs[name] for name in self._names)


class _Stop(BaseException):
    """Ends a pass after the deepest tap; no ``except Exception`` of the network's catches it."""


@dataclass
class _Run:
    """What happens in one pass.

    Attributes
    ----------
    wanted : frozenset of str or None
        The calls whose outputs are kept; None keeps all.
    outputs : dict of str to Tensor
        In the order in which calls end.
    started : list of str
        Paths of the modules, in the order in which calls begin.
    started_by : dict of str to int
        How many calls had begun when a call ended.
    reason : str
        Why it ended early; empty where it did not.
    """

    wanted: frozenset[str] | None
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    started: list[str] = field(default_factory=list)
    started_by: dict[str, int] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    reason: str = ""

    def end(self, path: str, output: Any, paths: set[str]) -> None:
        """Take note of the end of a call."""
        number = self.calls[path]
        self.calls[path] += 1
        name = (path or OUTPUT) + (f"_{number}" if number else "")
        if name != path and name in paths:
            return  # another module has this name
        if not isinstance(output, torch.Tensor) or (self.wanted and name not in self.wanted):
            return
        # What follows may work in place.
        self.outputs[name] = output.clone()
        self.started_by[name] = len(self.started)
        if self.wanted and len(self.outputs) == len(self.wanted):
            raise _Stop


def _listen(network: nn.Module, run: Any) -> None:
    """Tell a run, made or found by ``run()``, of the beginnings and ends of all calls."""
    paths = {path for path, _ in network.named_modules()}
    for path, module in network.named_modules():

        def begin(_: nn.Module, __: Any, path: str = path) -> None:
            run().started.append(path)

        def end(_: nn.Module, __: Any, output: Any, path: str = path) -> None:
            run().end(path, output, paths)

        module.register_forward_pre_hook(begin)
        module.register_forward_hook(end)
