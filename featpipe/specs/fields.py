"""Options as dataclass fields: each carries its default, its check and its help.

A spec is a frozen dataclass whose fields are made by :func:`option`. The command line, recipes and
Python all build specs through :meth:`Spec.from_options`, so an option has one name and one check.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any, Self, TypeVar, dataclass_transform

from featpipe.base.errors import UsageError
from featpipe.specs.value_kinds import Kind

_KEY = "featpipe.option"
Label = Callable[[str], str]
"""How messages call an option, given its name."""


@dataclasses.dataclass(frozen=True)
class Option:
    """What is known of an option besides its name and its default.

    Attributes
    ----------
    kind : Kind
        What values it takes.
    help : str
        One or two sentences for ``--help``, docs and docstrings; without the default.
    default_text : str
        How ``--help`` shows the default, where its value says too little.
    remedy : str
        Of one that must be given: what to give, for the message where it is missing.
    """

    kind: Kind
    help: str
    default_text: str = ""
    remedy: str = ""


def option(kind: Kind, help: str, *, default: Any, default_text: str = "") -> Any:
    """A field of a spec.

    Parameters
    ----------
    kind : Kind
    help : str
    default : object
        Value where the option is not given.
    default_text : str
        How ``--help`` shows the default, where its value says too little.
    """
    metadata = {_KEY: Option(kind, help, default_text)}
    return dataclasses.field(default=default, metadata=metadata)


def required(kind: Kind, help: str, *, remedy: str = "") -> Any:
    """A field of a spec that has no default; the message where it is missing says the remedy."""
    return dataclasses.field(metadata={_KEY: Option(kind, help, remedy=remedy)})


def flag(name: str) -> str:
    """How the command line spells an option: ``batch_size`` → ``--batch-size``."""
    return "--" + name.replace("_", "-")


_label: ContextVar[Label] = ContextVar("label", default=flag)
"""How messages of the spec that is being built call its options."""


def called(name: str) -> str:
    """What whoever builds a spec calls an option: a flag, or in a recipe a key of a section.

    For messages of :meth:`Spec._check_together`.
    """
    return _label.get()(name)


def options_of(spec: type) -> dict[str, Option]:
    """The options of a spec by name, in the order in which they are declared."""
    return {f.name: f.metadata[_KEY] for f in dataclasses.fields(spec) if _KEY in f.metadata}


def default_of(spec: type, name: str) -> Any:
    """Default of an option; ``dataclasses.MISSING`` where it must be given."""
    return next(f.default for f in dataclasses.fields(spec) if f.name == name)


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Message for a name that does not exist, with the nearest one that does."""
    return f"expected a known {what}, found {name!r}; {did_you_mean(name, known)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question that proposes the nearest name that exists."""
    return f"did you mean '{difflib.get_close_matches(name, sorted(known), 1, 0.0)[0]}'?"


class Spec:
    """Base of all specs: checks every field, and builds itself from options by name."""

    def __post_init__(self) -> None:
        for name, known in options_of(type(self)).items():
            value = getattr(self, name)
            if not _is_default(type(self), name, value):
                object.__setattr__(self, name, known.kind.check(flag(name), value))
        self._check_together()

    def _check_together(self) -> None:
        """Refuse values that are good alone and impossible together."""

    @classmethod
    def option_names(cls) -> tuple[str, ...]:
        """Names of the options."""
        return tuple(options_of(cls))

    @classmethod
    def from_options(
        cls,
        given: Mapping[str, Any],
        *,
        text: bool = True,
        what: str = "option",
        label: Label = flag,
    ) -> Self:
        """Build a spec from options by name; None means the default.

        Parameters
        ----------
        given : mapping of str to object
        text : bool
            Whether a text may stand for a value of another kind, as on a command line: ``"64"``.
        what : str
            What a message calls an option that does not exist.
        label : callable
            How a message calls an option.

        Raises
        ------
        UsageError
            An option does not exist (the nearest one is named), is missing, or has a value that
            it cannot have.
        """
        known = options_of(cls)
        values: dict[str, Any] = {}
        for name, value in given.items():
            if name not in known:
                raise UsageError(unknown_name(what, name, known))
            if value is not None:
                kind = known[name].kind
                read = kind.read if text and isinstance(value, str) else kind.check
                values[name] = read(label(name), value)
        for name in known:
            if name not in values and default_of(cls, name) is dataclasses.MISSING:
                remedy = f"; {known[name].remedy}" if known[name].remedy else ""
                raise UsageError(f"expected {label(name)}, found none{remedy}")
        before = _label.set(label)
        try:
            return cls(**values)
        finally:
            _label.reset(before)


SpecT = TypeVar("SpecT")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(option, required))
def spec(cls: type[SpecT]) -> type[SpecT]:
    """Make a class a frozen dataclass of options, and list them in its docstring."""
    made: type[SpecT] = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    made.__doc__ = f"{cls.__doc__ or ''}\n\n    Attributes\n    ----------\n" + "\n".join(
        f"    {name} : {known.kind.type_text}{_default_words(made, name)}\n        {known.help}"
        for name, known in options_of(made).items()
    )
    return made


def _default_words(cls: type, name: str) -> str:
    default = default_of(cls, name)
    return "" if default is dataclasses.MISSING else f", default {default!r}"


def _is_default(cls: type, name: str, value: object) -> bool:
    default = default_of(cls, name)
    return value is default or (type(value) is type(default) and value == default)
