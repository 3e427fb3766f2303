"""Options of training: the kinds of heads, their hyper-parameters, and how to train."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, Self

from featpipe.base.choices import POOLINGS
from featpipe.base.errors import UsageError
from featpipe.specs.code import AllowCode
from featpipe.specs.fields import Label, flag, option, options_of, spec
from featpipe.specs.head_params import HEAD_PARAMS, HeadKind, check_names, check_params, params_of
from featpipe.specs.spaces import ALL, SpaceFields, SpaceQuery
from featpipe.specs.value_kinds import Choice, Flag, Folder, Number, Several, Text, Whole, Wholes
from featpipe.specs.views import ViewChoice

MAX_SEEDS = 1000
DEFAULT_TRIES = 10
SEEDS = 2**32
"""Seeds are smaller than this."""


@spec
class HeadSpec(AllowCode, SpaceFields, ViewChoice):
    """Everything that the training of a head can be told, besides the data set and the cache."""

    head: str = option(
        HeadKind(),
        "linear, mlp, logistic or knn; on maps also networks: suffix, the backbone's layers behind "
        "the tap, lenet, lenet3x3, mnist-cnn, simplecnn, or package.module:factory, a network of "
        "your own, whose code is then run.",
        default="linear",
    )
    sweep: bool = option(
        Flag(),
        "Train a whole grid and keep the best by validation loss; hyper-parameters that are given "
        "are not varied. linear, mlp: learning rate, weight decay, and mlp's dropout and width, "
        "all at once; logistic, knn: their path over C or k, as without; suffix: learning "
        "rate and backbone rate factor; other networks: learning rate, batch size and dropout, one "
        "network after another.",
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
    no_views: bool = option(
        Flag(),
        "Train on the pictures themselves alone, although the data set has views of them; without "
        "it, every epoch takes one of the views of each picture, the picture itself among them.",
        default=False,
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
        as_flags: bool = False,
    ) -> Self:
        """As :meth:`Spec.from_options`; names that are no options are hyper-parameters.

        With ``as_flags`` a message calls hyper-parameters as the command line does.
        """
        own = {name: value for name, value in given.items() if name in options_of(cls)}
        made = super().from_options(own, text=text, what=what, label=label)
        rest = {name: value for name, value in given.items() if name not in own}
        # A hyper-parameter of another kind may stand here as None: not given.
        known = {name for params in HEAD_PARAMS.values() for name in params.option_names()}
        named = [n for n, v in rest.items() if v is not None or n not in known]
        check_names(made.head, named, options_of(cls), as_flags=as_flags)
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
        self._check_views()
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

    def _check_views(self) -> None:
        asked = [name for name in ViewChoice.option_names() if getattr(self, name) is not None]
        if not asked:
            return
        name = flag(asked[0])
        if self.no_views:
            raise UsageError(f"expected {name} without --no-views, found both; leave one out")
        if self.view:
            raise UsageError(
                f"expected {name} only where view 0 is trained on, found it with --view "
                f"{self.view}, which is one view alone; leave one out"
            )
        if not params_of(self.head).draws_views:
            raise UsageError(
                f"expected {name} only for heads that are trained in epochs, found it for "
                f"'{self.head}', which is trained on the pictures themselves; leave it out"
            )

    @property
    def slug(self) -> str:
        """The kind of head as part of a folder's name."""
        return re.sub(r"[^A-Za-z0-9_-]+", "-", self.head)

    @property
    def own_code(self) -> tuple[str, ...]:
        """Code that whoever writes these options by hand permits: also what they name in them."""
        return (self.head, *([] if self.backbone is None else [self.backbone]), *self.allow_code)

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
    def takes_maps(self) -> bool:
        """Whether the head takes maps, and the options leave open how features are pooled."""
        is_open = self.pool is None and self.space is None
        return is_open and not params_of(self.head).joins_taps

    @property
    def all_tries(self) -> int:
        """How often pictures are chosen for each number of them."""
        return DEFAULT_TRIES if self.tries is None else self.tries
