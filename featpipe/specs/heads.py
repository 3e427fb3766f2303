"""Options of training: the kinds of heads, their hyper-parameters, and how to train."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

from featpipe.base.choices import POOLINGS
from featpipe.base.errors import UsageError
from featpipe.specs.fields import (
    Label,
    Spec,
    default_of,
    did_you_mean,
    flag,
    option,
    options_of,
    spec,
)
from featpipe.specs.spaces import ALL, SpaceFields, SpaceQuery
from featpipe.specs.value_kinds import Choice, Flag, Folder, Number, Several, Text, Whole, Wholes

MAX_HIDDEN = 65_536
MAX_SEEDS = 1000
DEFAULT_TRIES = 10
CLASS_WEIGHTS = ("none", "balanced")
LOGISTIC_SOLVERS = ("featpipe", "sklearn")
SEEDS = 2**32
"""Seeds are smaller than this."""
_EPOCHS = "Largest number of epochs; an epoch passes over train until it has made 5 steps."


@dataclass
class HeadParams(Spec):
    """Hyper-parameters of every kind of head.

    Attributes
    ----------
    draws_numbers : bool
        Whether a seed changes what is trained.
    joins_taps : bool
        Whether it is trained on flat rows, so that those of several taps can lie side by side.
    """

    draws_numbers: ClassVar[bool] = True
    joins_taps: ClassVar[bool] = True

    class_weight: str = option(
        Choice(CLASS_WEIGHTS),
        "none, or balanced: a picture counts in inverse proportion to the size of its class.",
        default="none",
    )


@dataclass
class GradientParams(HeadParams):
    """Hyper-parameters of every head that is trained by gradients."""

    learning_rate: float = option(Number(above=True), "Learning rate of AdamW.", default=0.0003)
    weight_decay: float = option(
        Number(), "Decoupled weight decay of AdamW; biases are not decayed.", default=0.01
    )
    batch_size: int = option(Whole(), "Rows per step.", default=128)
    epochs: int = option(Whole(), _EPOCHS, default=200)
    patience: int = option(
        Whole(), "Epochs without a lower validation loss before training stops.", default=10
    )


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

    k: int | None = option(
        Whole(), "Neighbours that vote.", default_text="the best of 8 from 1 to 200", default=None
    )
    vote_temperature: float = option(
        Number(above=True),
        "A neighbour of cosine similarity s has exp(s / temperature) votes.",
        default=0.07,
    )


HEAD_PARAMS: dict[str, type[HeadParams]] = {
    "linear": LinearParams,
    "mlp": MLPParams,
    "logistic": LogisticParams,
    "knn": KNNParams,
}
"""Hyper-parameters of every kind of head."""
HEAD_KINDS = tuple(HEAD_PARAMS)


def params_of(kind: str) -> type[HeadParams]:
    """Hyper-parameters of a kind of head.

    Raises
    ------
    UsageError
        There is no such kind.
    """
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
    _check_names(kind, given)
    params_of(kind)(**given)


def _check_names(kind: str, given: Iterable[str]) -> None:
    known = params_of(kind).option_names()
    for name in given:
        if name not in known:
            owners = [other for other in HEAD_KINDS if name in params_of(other).option_names()]
            hint = f"it is for {', '.join(map(repr, owners))}"
            if not owners:
                everything = {n for params in HEAD_PARAMS.values() for n in params.option_names()}
                hint = did_you_mean(name, everything | set(options_of(HeadSpec)))
            raise UsageError(
                f"expected hyper-parameters of '{kind}' ({', '.join(known)}), found {name!r}; "
                f"{hint}"
            )


@spec
class HeadSpec(SpaceFields):
    """Everything that the training of a head can be told, besides the data set and the cache."""

    head: str = option(Choice(HEAD_KINDS), "linear, mlp, logistic or knn.", default="linear")
    sweep: bool = option(
        Flag(),
        "Train a whole grid at once and keep the best by validation loss; hyper-parameters that "
        "are given are not varied. linear, mlp: learning rate, weight decay, and mlp's dropout "
        "and width; logistic, knn: their path over C or k, as without.",
        default=False,
    )
    tap: tuple[str, ...] | None = option(
        Several(Text(), refuse_repeated=True),
        "Which tap, where there are several; repeated: their features side by side; all with "
        "--sweep: each that is cached.",
        default=None,
    )
    pool: str | None = option(
        Choice((*POOLINGS, ALL)),
        "Which pooling, where there are several; all with --sweep: each that is cached.",
        default=None,
    )
    seeds: int = option(
        Whole(high=MAX_SEEDS),
        "Heads that differ in their seed alone, counted from --seed; with a sweep, of each "
        "combination. Their mean and standard deviation are told, and the best one is kept.",
        default=1,
    )
    n_shot: tuple[int, ...] | None = option(
        Wholes(),
        "Train on so many pictures per class, as 1,5,10, several times each, and tell mean and "
        "standard deviation; the best head of the largest number is kept.",
        default=None,
    )
    tries: int | None = option(
        Whole(high=MAX_SEEDS),
        "With --n-shot: how often pictures are chosen, each time by another seed from --seed on.",
        default_text=str(DEFAULT_TRIES),
        default=None,
    )
    calibrate: bool = option(
        Flag(),
        "Divide the logits by the temperature of the lowest validation loss.",
        default=False,
    )
    seed: int = option(Whole(low=0, high=SEEDS - 1), "Makes a CPU run repeat exactly.", default=0)
    val: float = option(
        Number(high=1.0, above=True),
        "Share of train to validate on, where the data set has no val.",
        default=0.2,
    )
    out: Path | None = option(
        Folder(), "Run folder.", default_text="runs/NAME-HEAD-NUMBER", default=None
    )
    overwrite: bool = option(
        Flag(), "Replace a head that the run folder already holds.", default=False
    )
    device: str = option(Text(), "auto, cpu, cuda, cuda:N or mps.", default="auto")
    params: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_options(
        cls,
        given: Mapping[str, Any],
        *,
        text: bool = True,
        what: str = "option",
        label: Label = flag,
    ) -> Self:
        """As :meth:`Spec.from_options`; names that are no options are hyper-parameters."""
        own = {name: value for name, value in given.items() if name in options_of(cls)}
        made = super().from_options(own, text=text, what=what, label=label)
        rest = {name: value for name, value in given.items() if name not in own}
        # A hyper-parameter of another kind may stand here as None: not given.
        known = {name for params in HEAD_PARAMS.values() for name in params.option_names()}
        _check_names(made.head, [n for n, v in rest.items() if v is not None or n not in known])
        rest = {name: value for name, value in rest.items() if value is not None}
        params = params_of(made.head).from_options(rest, text=text, label=label)
        return dataclasses.replace(made, params={name: getattr(params, name) for name in rest})

    def _check_together(self) -> None:
        check_params(self.head, self.params)
        if self.seeds > 1 and not params_of(self.head).draws_numbers:
            raise UsageError(
                f"expected --seeds only for heads that draw numbers, found it for '{self.head}', "
                "which comes out the same with every seed"
            )
        self._check_taps()
        self._check_shots()
        number, name = (self.seeds, "seeds") if self.n_shot is None else (self.all_tries, "tries")
        if self.seed + number > SEEDS:
            raise UsageError(
                f"expected the last of --{name} to be at most {SEEDS - 1}, found "
                f"{self.seed + number - 1} ({number} from --seed {self.seed} on)"
            )

    def _check_taps(self) -> None:
        for name in self.ranging:
            if not self.sweep:
                raise UsageError(
                    f"expected --{name} all only with --sweep, found it without; add --sweep or "
                    f"name one {name}"
                )
        taps = self.tap or ()
        if len(taps) < 2:
            return
        if ALL in taps:
            raise UsageError(
                f"expected --tap all alone, found it with {len(taps) - 1} more; name the taps that "
                "are to lie side by side"
            )
        if self.space is not None:
            raise UsageError(
                f"expected one --tap with --space, which is one feature space, found {len(taps)}; "
                "leave out --space"
            )
        if not params_of(self.head).joins_taps:
            raise UsageError(
                f"expected one --tap for '{self.head}', which is trained on maps, found "
                f"{len(taps)}; name one of them"
            )

    def _check_shots(self) -> None:
        if self.n_shot is None and self.tries is not None:
            raise UsageError(
                f"expected --tries only with --n-shot, found --tries {self.tries} without it"
            )
        if self.n_shot is not None and (self.sweep or self.seeds > 1):
            other = "--sweep" if self.sweep else f"--seeds {self.seeds}"
            raise UsageError(
                f"expected --n-shot alone, found it with {other}; its --tries differ by seed, and "
                "hyper-parameters are given"
            )

    @property
    def ranging(self) -> tuple[str, ...]:
        """Which of ``tap`` and ``pool`` are ``all``: a sweep tries each of their values."""
        return tuple(
            name
            for name, value in (("tap", self.tap), ("pool", self.pool))
            if value in (ALL, (ALL,))
        )

    @property
    def queries(self) -> tuple[SpaceQuery, ...]:
        """What it asks of each of its feature spaces; what a sweep ranges over is left open."""
        fields = {name: getattr(self, name) for name in SpaceFields.option_names()}
        pool = None if "pool" in self.ranging else self.pool
        taps = (None,) if self.tap is None or "tap" in self.ranging else self.tap
        return tuple(SpaceQuery(**fields, tap=tap, pool=pool) for tap in taps)

    @property
    def all_tries(self) -> int:
        """How often pictures are chosen for each number of them."""
        return DEFAULT_TRIES if self.tries is None else self.tries
