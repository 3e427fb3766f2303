"""What of a network is computed in which precision.

The name of a policy is part of a feature space, because it decides the values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import fx, nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Policy = Callable[[fx.GraphModule, str], nn.Module]
"""A float32 network and a precision → the network that computes in it."""


def all_but_first(module: fx.GraphModule, precision: str) -> nn.Module:
    """The first convolution in fp32, everything after it in the precision.

    Rounding the inputs and weights of VGG's first convolution to bf16 would cost more accuracy
    than all other layers together, and it is under 1 % of the work.
    """
    dtype = DTYPES[precision]
    first = next(n for n in module.graph.nodes if n.op == "call_module")
    for name, part in module.named_modules():
        if name != first.target and not list(part.children()):
            part.to(dtype)
    with module.graph.inserting_after(first):
        cast = module.graph.call_method("to", (first, dtype))
    cast.meta["shape"] = first.meta["shape"]
    first.replace_all_uses_with(cast, delete_user_cb=lambda user: user is not cast)
    module.recompile()
    return module


class Autocast(nn.Module):
    """PyTorch's automatic mixed precision: products in the precision, what is delicate in fp32.

    The weights of convolutions, linear layers and attention are converted once, not at every call.
    """

    def __init__(self, module: nn.Module, precision: str) -> None:
        super().__init__()
        self.module, self._precision, self._dtype = module, precision, DTYPES[precision]
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Linear | nn.MultiheadAttention):
                part.to(self._dtype)

    def around(self, module: nn.Module) -> Autocast:
        """The same policy for another form of the network."""
        return Autocast(module, self._precision)

    def forward(self, images: torch.Tensor) -> Sequence[torch.Tensor]:
        """Normalised pictures (N, 3, size, size) float32 → outputs of the taps."""
        with torch.autocast(images.device.type, self._dtype):
            # See Network: torch's GraphModule would print errors.
            return self.module.forward(images)  # type: ignore[no-any-return]


POLICIES: dict[str, Policy] = {"": all_but_first, "autocast": Autocast}
"""By name; fp32 needs none."""
