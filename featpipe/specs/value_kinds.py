"""The kinds of values that options take: each checks a value, and reads one from text."""

from __future__ import annotations

import difflib
import math
import numbers
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from featpipe.base.errors import UsageError

MAX_WHOLE = 2**31 - 1


class Kind(Protocol):
    """A kind of value."""

    @property
    def type_text(self) -> str:
        """Python type and range of the value, for docstrings."""

    def check(self, label: str, value: Any) -> Any:
        """The value in its one form.

        Raises
        ------
        UsageError
            It is not of this kind; the message calls the option ``label``.
        """

    def read(self, label: str, text: str) -> Any:
        """The value that a text stands for; raises as :meth:`check`."""

    def schema(self) -> dict[str, Any]:
        """JSON Schema of the value in a recipe."""


def meant(value: object, known: Iterable[str]) -> str:
    """``; did you mean 'light'?`` for a text that is near one of ``known``; else empty."""
    # fp16 is another precision than bf16, and no misspelt one.
    if not isinstance(value, str) or re.search("[0-9]", value):
        return ""
    near = difflib.get_close_matches(value, known, 1)
    return f"; did you mean '{near[0]}'?" if near else ""


class Text:
    """Any text."""

    type_text = "str"

    def check(self, label: str, value: Any) -> str:
        """See :class:`Kind`."""
        if not isinstance(value, str):
            raise UsageError(f"expected a text for {label}, found {value!r}")
        return value

    read = check

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        return {"type": "string"}


class Choice:
    """One of a few texts."""

    def __init__(self, choices: tuple[str, ...]) -> None:
        self.choices = choices

    @property
    def type_text(self) -> str:
        """See :class:`Kind`."""
        return "{" + ", ".join(map(repr, self.choices)) + "}"

    def check(self, label: str, value: Any) -> str:
        """See :class:`Kind`."""
        if not isinstance(value, str) or value not in self.choices:
            raise UsageError(
                f"expected {label} to be one of {', '.join(self.choices)}, found {value!r}"
                f"{meant(value, self.choices)}"
            )
        return value

    read = check

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        return {"enum": list(self.choices)}


class Flag:
    """True or false."""

    type_text = "bool"

    def check(self, label: str, value: Any) -> bool:
        """See :class:`Kind`."""
        if not isinstance(value, bool):
            raise UsageError(f"expected a truth value for {label}, found {value!r}")
        return value

    read = check

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        return {"type": "boolean"}


class Whole:
    """A whole number from ``low`` to ``high`` (None: any), or ``auto``, which is None."""

    def __init__(
        self, low: int = 1, high: int | None = MAX_WHOLE, unit: str = "", *, auto: bool = False
    ) -> None:
        self.low, self.high, self.unit, self.auto = low, high, unit, auto

    @property
    def type_text(self) -> str:
        """See :class:`Kind`."""
        return "int or 'auto'" if self.auto else "int"

    def check(self, label: str, value: Any) -> int | None:
        """See :class:`Kind`."""
        if self.auto and (value is None or (isinstance(value, str) and value == "auto")):
            return None
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not is_whole and not (isinstance(value, float) and value.is_integer()):
            raise self._refusal(label, value)
        number = int(value)
        if number < self.low or (self.high is not None and number > self.high):
            is_open = self.high in (None, MAX_WHOLE) and number < self.low
            bounds = f"at least {self.low}" if is_open else f"{self.low} to {self.high}"
            unit = f" {self.unit}" if self.unit else ""
            raise UsageError(f"expected {label} of {bounds}{unit}, found {number}")
        return number

    def read(self, label: str, text: str) -> int | None:
        """See :class:`Kind`."""
        if self.auto and text == "auto":
            return None
        # int() would also take underscores, blanks and the digits of other scripts.
        if not re.fullmatch(r"[+-]?[0-9]{1,30}", text):
            raise self._refusal(label, text)
        return self.check(label, int(text))

    def _refusal(self, label: str, value: object) -> UsageError:
        auto = " or 'auto'" if self.auto else ""
        return UsageError(f"expected a whole number{auto} for {label}, found {value!r}")

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        most = {} if self.high is None else {"maximum": self.high}
        whole = {"type": "integer", "minimum": self.low, **most}
        return {"anyOf": [whole, {"const": "auto"}]} if self.auto else whole


class Number:
    """A finite number of at least ``low`` (or above it) and below ``high``."""

    type_text = "float"

    def __init__(self, low: float = 0.0, high: float = math.inf, *, above: bool = False) -> None:
        self.low, self.high, self.above = low, high, above

    def check(self, label: str, value: Any) -> float:
        """See :class:`Kind`."""
        if not _is_number(value):
            raise UsageError(f"expected a number for {label}, found {value!r}")
        if not self.low <= value < self.high or (self.above and value == self.low):
            is_open = math.isinf(self.high)
            bounds = f"{'above' if self.above else 'of'} {self.low:g}"
            bounds += " or more" if is_open and not self.above else ""
            joint = "and" if self.above else "to"
            bounds += "" if is_open else f" {joint} below {self.high:g}"
            raise UsageError(f"expected {label} {bounds}, found {_shown(value)}")
        try:
            return float(value)
        except OverflowError:
            raise UsageError(
                f"expected a number for {label}, found one beyond all floats"
            ) from None

    def read(self, label: str, text: str) -> float:
        """See :class:`Kind`."""
        try:
            number = float(text)
        except ValueError:
            raise UsageError(f"expected a number for {label}, found {text!r}") from None
        return self.check(label, number)

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        least = {"exclusiveMinimum" if self.above else "minimum": self.low}
        most = {} if math.isinf(self.high) else {"exclusiveMaximum": self.high}
        return {"type": "number", **least, **most}


class Percentage:
    """A share of 0 to 1; as text a percentage: ``5%`` or ``5`` is 0.05."""

    type_text = "float, 0 to 1"

    def check(self, label: str, value: Any) -> float:
        """See :class:`Kind`."""
        if not _is_number(value):
            raise UsageError(f"expected a number for {label}, found {value!r}")
        if not 0 <= value <= 1:
            raise UsageError(f"expected a share of 0 to 1 for {label}, found {_shown(value)}")
        return float(value)

    def read(self, label: str, text: str) -> float:
        """See :class:`Kind`."""
        try:
            value = float(text.strip().removesuffix("%"))
        except ValueError:
            value = -1.0
        if not 0 <= value <= 100:
            raise UsageError(f"expected {label} of 0% to 100%, found {text!r}")
        return value / 100

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        return {"type": "number", "minimum": 0, "maximum": 1}


class Shares:
    """Shares of train, validation and test, which sum to 1."""

    type_text = "three floats that sum to 1"

    def check(self, label: str, value: Any) -> tuple[float, ...]:
        """See :class:`Kind`."""
        is_list = isinstance(value, Sequence) and not isinstance(value, str)
        if not is_list or not all(_is_number(share) for share in value):
            raise UsageError(f"expected a list of numbers for {label}, found {value!r}")
        if len(value) != 3:
            raise UsageError(f"expected three shares (train,val,test), found {len(value)}")
        check_sum(value)
        return tuple(float(share) for share in value)

    def read(self, label: str, text: str) -> tuple[float, ...]:
        """See :class:`Kind`."""
        try:
            shares = [float(part) for part in text.split(",")]
        except ValueError:
            raise UsageError(f"expected {label} like 0.7,0.15,0.15, found {text!r}") from None
        return self.check(label, shares)

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        share = {"type": "number", "minimum": 0, "maximum": 1}
        return {"type": "array", "items": share, "minItems": 3, "maxItems": 3}


def check_sum(shares: Sequence[float]) -> None:
    """Refuse shares that are negative or do not sum to 1.

    Raises
    ------
    UsageError
    """
    if len(shares) < 2 or not (min(shares) >= 0 and abs(sum(shares) - 1) <= 1e-9):
        raise UsageError(
            f"expected shares that are not negative and sum to 1, found "
            f"{','.join(f'{share:g}' for share in shares)}"
        )


class Several:
    """One value of another kind, or several, each once; kept as a tuple.

    A value that is repeated counts once, or is refused where ``refuse_repeated``.
    """

    def __init__(self, kind: Kind, *, refuse_repeated: bool = False) -> None:
        self.kind, self.refuse_repeated = kind, refuse_repeated

    @property
    def type_text(self) -> str:
        """See :class:`Kind`."""
        return f"{self.kind.type_text}, or a list of them"

    def check(self, label: str, value: Any) -> tuple[Any, ...]:
        """See :class:`Kind`."""
        several = [value] if isinstance(value, str) else value
        is_list = isinstance(several, list | tuple)
        if not is_list or not all(isinstance(item, str) for item in several):
            raise UsageError(f"expected one name or a list of names for {label}, found {value!r}")
        if not several:
            raise UsageError(f"expected at least one {label}, found none")
        checked = [self.kind.check(label, item) for item in several]
        for number, item in enumerate(checked):
            if self.refuse_repeated and item in checked[:number]:
                raise UsageError(f"expected each {label} once, found {item!r} twice; leave one out")
        return tuple(dict.fromkeys(checked))

    read = check

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        one = self.kind.schema()
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1}]}


class Wholes:
    """One whole number or several, each once; kept as a tuple, the smallest first."""

    def __init__(self, low: int = 1, high: int = MAX_WHOLE, *, most: int | None = None) -> None:
        self.kind, self.most = Whole(low, high), most

    type_text = "int, or a list of them"

    def check(self, label: str, value: Any) -> tuple[int, ...]:
        """See :class:`Kind`."""
        several = value if isinstance(value, list | tuple) else [value]
        if not several:
            raise UsageError(f"expected at least one whole number for {label}, found none")
        found = {number for item in several if (number := self.kind.check(label, item))}
        if self.most is not None and len(found) > self.most:
            raise UsageError(
                f"expected at most {self.most} numbers for {label}, found {len(found)}; leave out "
                "some of them"
            )
        return tuple(sorted(found))

    def read(self, label: str, text: str) -> tuple[int, ...]:
        """See :class:`Kind`; numbers are divided by commas."""
        return self.check(label, [self.kind.read(label, part) for part in text.split(",")])

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        one = self.kind.schema()
        several = {"type": "array", "items": one, "minItems": 1}
        if self.most is not None:
            several["maxItems"] = self.most
        return {"anyOf": [one, several]}


class Folder:
    """A path."""

    type_text = "path"
    what = "folder"

    def check(self, label: str, value: Any) -> Path:
        """See :class:`Kind`."""
        if not isinstance(value, str | os.PathLike):
            raise UsageError(f"expected a text for {label}, found {value!r}")
        # An unset shell variable gives an empty text, which pathlib takes for this folder.
        if not os.fspath(value):
            raise UsageError(f"expected a {self.what} for {label}, found an empty text")
        if "\0" in str(value):
            raise UsageError(f"expected a {self.what} for {label}, found {str(value)!r}")
        return Path(value)

    read = check

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        return {"type": "string"}


class File(Folder):
    """The path of a file."""

    what = "file"


def _is_number(value: object) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    return f"{float(value)}" if isinstance(value, float) else str(value)
