"""Hyper-parameters of every kind of head."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from featpipe.base.errors import UsageError
from featpipe.base.own_code import is_own_code
from featpipe.specs.fields import Spec, default_of, did_you_mean, flag, option
from featpipe.specs.value_kinds import Choice, Number, Whole, meant

MAX_HIDDEN = 65_536
CLASS_WEIGHTS = ("none", "balanced")
SCHEDULES = ("constant", "cosine")
COMPUTES = ("auto", "fp32", "bf16")
OPTIMIZERS = ("adamw", "sgd", "rmsprop")
INITS = ("default", "xavier", "kaiming", "normal")
LOGISTIC_SOLVERS = ("featpipe", "sklearn")
_SCHEDULE = (
    "Learning rate over the steps of --epochs: constant, or cosine, from --learning-rate to 0."
)
_COMPUTE = (
    "Precision of the arithmetic in training: fp32; bf16, with fp32 weights, gradients and "
    "validation; auto: bf16 where this hardware is faster in it."
)
OWN, LINEAR = TOPS = ("own", "linear")
_EPOCHS = "Largest number of epochs; an epoch passes over train until it has made 5 steps."
_SUFFIX_EPOCHS = _EPOCHS.replace("5 steps", "25 steps")
_PATIENCE = "Epochs without a lower validation loss before training stops."


@dataclass
class HeadParams(Spec):
    """Hyper-parameters of every kind of head.

    Attributes
    ----------
    draws_numbers : bool
        Whether a seed changes what is trained.
    joins_taps : bool
        Whether it is trained on flat rows, so that those of several taps can lie side by side.
    draws_views : bool
        Whether it is trained in epochs, each of which takes one of the views of every picture.
    """

    draws_numbers: ClassVar[bool] = True
    joins_taps: ClassVar[bool] = True
    draws_views: ClassVar[bool] = True

    class_weight: str = option(
        Choice(CLASS_WEIGHTS),
        "none, or balanced: a picture counts in inverse proportion to the size of its class.",
        default="none",
    )


@dataclass
class GradientParams(HeadParams):
    """Hyper-parameters of every head that is trained by gradients."""

    learning_rate: float = option(Number(above=True), "Learning rate.", default=0.0003)
    weight_decay: float = option(
        Number(), "Decoupled weight decay; biases are not decayed.", default=0.01
    )
    batch_size: int = option(Whole(), "Rows per step.", default=128)
    epochs: int = option(Whole(), _EPOCHS, default=200)
    patience: int = option(Whole(), _PATIENCE, default=10)


@dataclass
class LinearParams(GradientParams):
    """Hyper-parameters of ``linear``: softmax regression by AdamW with early stopping."""


@dataclass
class MLPParams(GradientParams):
    """Hyper-parameters of ``mlp``: linear, ReLU, dropout, linear; by AdamW."""

    epochs: int = option(Whole(), _EPOCHS, default=100)
    hidden: int = option(Whole(high=MAX_HIDDEN), "Width of the hidden layer.", default=256)
    dropout: float = option(
        Number(high=1.0), "Share of hidden units that are silenced in training.", default=0.5
    )


@dataclass
class LogisticParams(HeadParams):
    """Hyper-parameters of ``logistic``: exact L2-regularised logistic regression."""

    draws_numbers = False
    draws_views = False

    C: float | None = option(
        Number(above=True),
        "Inverse strength of the regularisation.",
        default_text="the best of 13 from 1e-6 to 1, or beyond while that is better",
        default=None,
    )
    max_iter: int = option(Whole(), "Largest number of iterations.", default=1000)
    folds: int | None = option(
        Whole(low=2),
        "Choose C by that many folds of train instead of the validation pictures.",
        default_text="by validation",
        default=None,
    )
    solver: str = option(
        Choice(LOGISTIC_SOLVERS),
        "featpipe, or sklearn: scikit-learn's LogisticRegression (lbfgs, tol 1e-6).",
        default="featpipe",
    )

    def _check_together(self) -> None:
        if self.folds is not None and self.C is not None:
            raise UsageError(
                f"expected --folds only where they have a C to choose, found it with "
                f"--C {self.C:g}; leave out one of the two"
            )


@dataclass
class KNNParams(HeadParams):
    """Hyper-parameters of ``knn``: weighted k nearest neighbours by cosine similarity."""

    draws_numbers = False
    draws_views = False

    k: int | None = option(
        Whole(), "Neighbours that vote.", default_text="the best of 8 from 1 to 200", default=None
    )
    vote_temperature: float = option(
        Number(above=True),
        "A neighbour of cosine similarity s has exp(s / temperature) votes.",
        default=0.07,
    )


@dataclass
class ModuleParams(GradientParams):
    """Hyper-parameters of every torch module that is trained on maps."""

    joins_taps = False

    learning_rate: float | None = option(  # type: ignore[assignment]
        Number(above=True),
        "Learning rate.",
        default_text="0.001, with sgd 0.01",
        default=None,
    )
    epochs: int = option(Whole(), _EPOCHS, default=50)
    patience: int | None = option(  # type: ignore[assignment]
        Whole(),
        _PATIENCE,
        default_text="5, with --schedule cosine none: all epochs are made",
        default=None,
    )
    schedule: str = option(
        Choice(SCHEDULES),
        _SCHEDULE,
        default="constant",
    )
    compute: str = option(
        Choice(COMPUTES),
        _COMPUTE,
        default="fp32",
    )
    optimizer: str = option(Choice(OPTIMIZERS), "adamw, sgd or rmsprop.", default="adamw")
    momentum: float | None = option(
        Number(high=1.0),
        "Momentum of sgd and rmsprop.",
        default_text="0.9 for sgd, 0 for rmsprop",
        default=None,
    )
    init: str = option(
        Choice(INITS),
        "Initial weights of convolutions and dense layers: PyTorch's own, xavier (uniform), "
        "kaiming (normal) or normal (of standard deviation 0.05).",
        default="default",
    )

    def _check_together(self) -> None:
        if self.momentum is not None and self.optimizer == "adamw":
            raise UsageError(
                f"expected --momentum only with --optimizer sgd or rmsprop, found --momentum "
                f"{self.momentum:g} with adamw, which has its own; leave it out or name another "
                "optimizer"
            )


@dataclass
class DropoutParams(ModuleParams):
    """Hyper-parameters of networks with dropout."""

    dropout: float = option(
        Number(high=1.0), "Share of hidden units that are silenced in training.", default=0.5
    )


@dataclass
class LeNetParams(ModuleParams):
    """Hyper-parameters of ``lenet``: two 5 x 5 convolutions with pooling, three dense layers."""


@dataclass
class LeNet3x3Params(ModuleParams):
    """Hyper-parameters of ``lenet3x3``: lenet with each 5 x 5 convolution as two of 3 x 3."""


@dataclass
class MNISTCNNParams(DropoutParams):
    """Hyper-parameters of ``mnist-cnn``: 10 and 20 channels of 5 x 5, dropout, 50 units."""

    dropout: float = option(
        Number(high=1.0), "Share of hidden units that are silenced in training.", default=0.25
    )


@dataclass
class SimpleCNNParams(DropoutParams):
    """Hyper-parameters of ``simplecnn``: 32, 64, 128 channels of 3 x 3, 512 and 64 units."""


@dataclass
class SuffixParams(ModuleParams):
    """Hyper-parameters of ``suffix``: the backbone's layers behind a tap, from its weights."""

    batch_size: int = option(Whole(), "Rows per step.", default=32)
    epochs: int = option(Whole(), _SUFFIX_EPOCHS, default=10)
    schedule: str = option(Choice(SCHEDULES), _SCHEDULE, default="cosine")
    compute: str = option(Choice(COMPUTES), _COMPUTE, default="auto")
    top: str | None = option(
        Choice(TOPS),
        "own: the network's own layers behind its last map, the last one replaced; linear: the "
        "average over the places of that map, and one matrix.",
        default_text="own where the pretrained tensors of these layers are there, else linear",
        default=None,
    )
    dropout: float | None = option(
        Number(high=1.0),
        "Share of hidden units that are silenced in training.",
        default_text="the network's own, with --top linear 0",
        default=None,
    )
    backbone_rate_factor: float = option(
        Number(),
        "Learning rate of pretrained layers, as a multiple of that of new ones; 0 freezes them.",
        default=0.03,
    )


@dataclass
class OwnNetworkParams(ModuleParams):
    """Hyper-parameters of a network of the user's own, ``package.module:factory``."""


HEAD_PARAMS: dict[str, type[HeadParams]] = {
    "linear": LinearParams,
    "mlp": MLPParams,
    "logistic": LogisticParams,
    "knn": KNNParams,
    "lenet": LeNetParams,
    "lenet3x3": LeNet3x3Params,
    "mnist-cnn": MNISTCNNParams,
    "simplecnn": SimpleCNNParams,
    "suffix": SuffixParams,
}
"""Hyper-parameters of every kind of head that comes with featpipe."""
HEAD_KINDS = tuple(HEAD_PARAMS)
NETWORKS = tuple(kind for kind, params in HEAD_PARAMS.items() if issubclass(params, ModuleParams))
"""Kinds of heads that are torch modules on maps; messages and help call all of them networks."""


class HeadKind:
    """A kind of head that comes with featpipe, or ``package.module:factory``."""

    type_text = "{" + ", ".join(map(repr, HEAD_KINDS)) + "} or 'package.module:factory'"

    def check(self, label: str, value: Any) -> str:
        """See :class:`featpipe.specs.value_kinds.Kind`."""
        if not isinstance(value, str) or not (value in HEAD_KINDS or is_own_code(value)):
            raise UsageError(
                f"expected {label} to be one of {', '.join(HEAD_KINDS)} or "
                f"package.module:factory, found {value!r}{meant(value, HEAD_KINDS)}"
            )
        return value

    read = check

    def schema(self) -> dict[str, Any]:
        """See :class:`featpipe.specs.value_kinds.Kind`."""
        return {"anyOf": [{"enum": list(HEAD_KINDS)}, {"type": "string", "pattern": ":"}]}


def params_of(kind: str) -> type[HeadParams]:
    """Hyper-parameters of a kind of head; nothing is imported.

    Raises
    ------
    UsageError
        There is no such kind.
    """
    if isinstance(kind, str) and is_own_code(kind):
        return OwnNetworkParams
    if kind not in HEAD_PARAMS:
        raise UsageError(f"expected a head of {', '.join(HEAD_PARAMS)}, found {kind!r}")
    return HEAD_PARAMS[kind]


def params_given(kind: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The hyper-parameters that differ from the defaults of their kind of head."""
    known = params_of(kind)
    names = set(known.option_names())
    return {
        name: value
        for name, value in params.items()
        if name not in names or value != default_of(known, name)
    }


def check_params(kind: str, given: Mapping[str, Any]) -> None:
    """Refuse hyper-parameters that a kind of head does not have, or that have impossible values.

    Raises
    ------
    UsageError
    """
    check_names(kind, given)
    params_of(kind)(**given)


def check_names(
    kind: str, given: Iterable[str], others: Iterable[str] = (), *, as_flags: bool = False
) -> None:
    """Refuse names that are no hyper-parameters of a kind of head.

    Parameters
    ----------
    kind : str
    given : iterable of str
    others : iterable of str
        What else may have been meant, to propose it.
    as_flags : bool
        Whether the message calls them as the command line does.

    Raises
    ------
    UsageError
    """
    known = params_of(kind).option_names()
    for name in given:
        if name not in known:
            owners = [other for other in HEAD_KINDS if name in params_of(other).option_names()]
            hint = f"it is for {', '.join(map(repr, owners))}"
            if not owners:
                everything = {n for params in HEAD_PARAMS.values() for n in params.option_names()}
                hint = did_you_mean(name, everything | set(others))
            names, found = ", ".join(known), repr(name)
            if as_flags:
                names, found = ", ".join(map(flag, known)), flag(name)
            if as_flags and owners:
                several = ", ".join(owners[:-1]) + " or " if len(owners) > 1 else ""
                hint = f"leave {found} out, or use --head {several}{owners[-1]}"
            raise UsageError(
                f"expected hyper-parameters of '{kind}' ({names}), found {found}; {hint}"
            )
