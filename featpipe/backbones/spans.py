"""What the values of a tensor see of the picture, along its two axes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum

ALL = "all"
"""Size of a field that is the whole picture."""


class Reach(IntEnum):
    """What is known of a field along an axis; the larger prevails where branches meet."""

    KNOWN = 0
    UNKNOWN = 1
    WHOLE = 2


@dataclass(frozen=True)
class Span:
    """What positions see along one axis of the picture.

    Attributes
    ----------
    start, end : int
        First and last pixel that position 0 sees, if ``reach`` is known; negative: padding.
    stride : int or None
        Pixels from one position to the next; None where there are no regular positions.
    reach : Reach
    """

    start: int = 0
    end: int = 0
    stride: int | None = 1
    reach: Reach = Reach.KNOWN

    def windowed(self, kernel: int, stride: int, padding: int, dilation: int = 1) -> Span:
        """Behind a convolution or pooling."""
        more = (kernel - 1) * dilation
        if self.stride is None:
            return self if more == padding == 0 else self.doubtful()
        return Span(
            self.start - padding * self.stride,
            self.end + (more - padding) * self.stride,
            self.stride * stride,
            self.reach,
        )

    def joined(self, other: Span) -> Span:
        """Of a value that two others decide, each at the same position."""
        reach = max(self.reach, other.reach)
        if self.stride is None or other.stride is None:
            placed = other if self.stride is None else self
            return replace(placed, reach=reach).doubtful()
        if self.stride != other.stride:
            return Span(stride=None, reach=reach).doubtful()
        return Span(min(self.start, other.start), max(self.end, other.end), self.stride, reach)

    def sliced(self, index: tuple[int, int, int] | None) -> Span:
        """Of positions start, start + step, …; None: of one of them alone."""
        if index is None or self.stride is None:
            return self.unplaced()
        moved = index[0] * self.stride
        return Span(self.start + moved, self.end + moved, self.stride * index[2], self.reach)

    def unplaced(self) -> Span:
        """Without the order of its positions."""
        return replace(self, stride=None)

    def doubtful(self) -> Span:
        """Not known, unless it is the whole picture in any case."""
        return replace(self, reach=max(self.reach, Reach.UNKNOWN))

    def whole(self) -> Span:
        """With all positions mixed; what is not known may leave pixels out even then."""
        return self if self.reach is Reach.UNKNOWN else replace(self, reach=Reach.WHOLE)


@dataclass(frozen=True)
class Field:
    """What the values of a tensor see.

    Attributes
    ----------
    layout : str
        A letter per axis of the tensor: ``c`` has no position (pictures of the batch, channels),
        ``h`` and ``w`` run down and across the picture, ``m`` mixes positions (tokens, flattened
        maps), ``?`` is not known.
    rows, columns : Span
        Down and across the picture.
    """

    layout: str
    rows: Span = Span()
    columns: Span = Span()

    @property
    def size(self) -> int | str | None:
        """Side of the field, pixels, along its longer axis; ``all``; None where not known."""
        _, span = self._longest
        if span.reach is Reach.KNOWN:
            return span.end - span.start + 1
        return ALL if span.reach is Reach.WHOLE else None

    @property
    def stride(self) -> int | None:
        """Pixels from one position to the next; None where there are no regular positions."""
        letter, span = self._longest
        return span.stride if letter in self.layout else None

    @property
    def padding(self) -> int | None:
        """By how many pixels the first position's field begins before the picture."""
        letter, span = self._longest
        is_known = span.reach is Reach.KNOWN and letter in self.layout and span.stride is not None
        return -span.start if is_known else None

    @property
    def _longest(self) -> tuple[str, Span]:
        axes = (("h", self.rows), ("w", self.columns))
        return max(axes, key=lambda axis: (axis[1].reach, axis[1].end - axis[1].start))

    def laid_out(self, layout: str) -> Field:
        """With other axes; where positions are mixed, their order counts no more."""
        field = replace(self, layout=layout)
        return field.unplaced() if "m" in layout else field

    def unplaced(self) -> Field:
        """Without the order of its positions."""
        return Field(self.layout, self.rows.unplaced(), self.columns.unplaced())

    def doubtful(self) -> Field:
        """Not known, unless it is the whole picture in any case."""
        return Field(self.layout, self.rows.doubtful(), self.columns.doubtful())

    def unknown(self, axes: int) -> Field:
        """Behind a function without a rule."""
        return Field("?" * axes, self.rows, self.columns).unplaced().doubtful()

    def mixed(self, axes: Iterable[int]) -> Field:
        """Behind something in which every value along these axes decides every other."""
        letters = {self.layout[axis] for axis in axes}
        field = self.doubtful() if "?" in letters else self
        return Field(
            self.layout,
            field.rows.whole() if letters & {"h", "m"} else field.rows,
            field.columns.whole() if letters & {"w", "m"} else field.columns,
        )

    def sliced(self, letter: str, index: tuple[int, int, int] | None) -> Field:
        """Of some positions along an axis of this letter, see :meth:`Span.sliced`."""
        if letter == "?":
            return self.doubtful()
        return Field(
            self.layout,
            self.rows.sliced(index) if letter == "h" else self.rows,
            self.columns.sliced(index) if letter == "w" else self.columns,
        )


def joined(first: Field, second: Field) -> Field:
    """Of values that two tensors decide, each at the same place; axes fit from the last one."""
    pairs = itertools.zip_longest(first.layout[::-1], second.layout[::-1], fillvalue="c")
    letters = [a if b in (a, "c") else b if a == "c" else "?" for a, b in pairs]
    field = Field(
        "".join(reversed(letters)),
        first.rows.joined(second.rows),
        first.columns.joined(second.columns),
    )
    fits = "?" not in field.layout or "?" in first.layout + second.layout
    return field if fits else field.doubtful()
