"""How large random weights are, so that pictures still differ at a deep network's last tap.

He's variance of 2 / fan in before a ReLU (He et al., "Delving Deep into Rectifiers", ICCV 2015); 3
before smoother activations, which shrink small values more. Shortcuts add up, so what is added to
one of L shortcuts has 1 / L (as in De and Smith, "Batch Normalization Biases Residual Blocks",
NeurIPS 2020).
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx, nn

_ACTIVATIONS = {
    **dict.fromkeys(("relu", "relu6", "leakyrelu"), 2.0),
    **dict.fromkeys(("silu", "swish", "hardswish", "gelu", "mish", "elu", "selu"), 3.0),
}
_KEEP_THE_SCALE = (
    *("batchnorm", "batchnorm1d", "batchnorm2d", "batchnorm3d"),
    *("dropout", "dropout2d", "stochasticdepth", "droppath", "identity"),
)
_ADDITIONS = ("add", "iadd")


def variances(root: nn.Module, graph: fx.Graph) -> dict[str, float]:
    """Variance times fan in, by name of the module with the weights; 1 for those left out.

    It depends on the graph alone: on no number that processors round differently.
    """
    found: dict[str, float] = {}
    added: list[str] = []
    for node in graph.nodes:
        if _has_weights(root, node):
            users = [_behind(root, user) for user in node.users]
            kinds = [_kind(root, user) for user in users]
            if kinds and kinds[0] in _ACTIVATIONS:
                found[str(node.target)] = _ACTIVATIONS[kinds[0]]
            elif kinds and kinds[0] in _ADDITIONS and _has_shortcut(root, users[0]):
                added.append(str(node.target))
    return found | dict.fromkeys(added, 1 / max(1, len(added)))


def _behind(root: nn.Module, node: fx.Node) -> fx.Node:
    """The first node, from this one on, that changes the scale."""
    while _kind(root, node) in _KEEP_THE_SCALE and len(node.users) == 1:
        node = next(iter(node.users))
    return node


def _has_shortcut(root: nn.Module, addition: fx.Node) -> bool:
    """Whether not all that is added comes from weights."""
    return not all(_has_weights(root, term) for term in _terms(root, addition))


def _terms(root: nn.Module, addition: fx.Node) -> Iterator[fx.Node]:
    for term in addition.all_input_nodes:
        while _kind(root, term) in _KEEP_THE_SCALE:
            term = term.all_input_nodes[0]
        yield term


def _has_weights(root: nn.Module, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    weight = getattr(root.get_submodule(str(node.target)), "weight", None)
    return weight is not None and weight.dim() > 1


def _kind(root: nn.Module, node: fx.Node) -> str:
    """Name of a module's class, of a function or of a method, spelt alike."""
    if node.op == "call_module":
        name = type(root.get_submodule(str(node.target))).__name__
    elif node.op == "call_function":
        name = node.target.__name__  # type: ignore[union-attr]
    else:
        name = str(node.target)
    return name.lower().replace("_", "")
