"""Parts of a list of pictures, for several jobs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from featpipe.base.errors import UsageError


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``count``: one of several jobs' share of a list.

    Raises
    ------
    UsageError
        There is no such part.
    """

    number: int
    count: int

    MAX_SHARDS = 10_000

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count <= self.MAX_SHARDS:
            raise UsageError(
                f"expected --shard i/n with i from 1 to n (at most {self.MAX_SHARDS}), found {self}"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    @property
    def slice(self) -> slice:
        """Which records of the whole list are this part's: every ``count``-th."""
        return slice(self.number - 1, None, self.count)


class ShardText:
    """``i/n``: the i-th of n parts."""

    type_text = "str, 'i/n'"

    def check(self, label: str, value: Any) -> Shard:
        """See :class:`Kind`."""
        if isinstance(value, Shard):
            return value
        match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", value) if isinstance(value, str) else None
        if not match:
            raise UsageError(f"expected {label} i/n, like 2/8, found {value!r}")
        return Shard(int(match[1]), int(match[2]))

    read = check

    def schema(self) -> dict[str, Any]:
        """See :class:`Kind`."""
        return {"type": "string", "pattern": "^[0-9]{1,6}/[0-9]{1,6}$"}
