"""The option that permits code of the user's own."""

from __future__ import annotations

from typing import Any

from featpipe.base.errors import UsageError
from featpipe.base.own_code import is_own_code
from featpipe.specs.fields import Spec, option, spec
from featpipe.specs.value_kinds import Several


class CodeName:
    """``package.module:factory``."""

    type_text = "str"

    def check(self, label: str, value: Any) -> str:
        """See :class:`featpipe.specs.value_kinds.Kind`."""
        if not isinstance(value, str) or not is_own_code(value):
            raise UsageError(f"expected package.module:factory for {label}, found {value!r}")
        return value

    read = check

    def schema(self) -> dict[str, Any]:
        """See :class:`featpipe.specs.value_kinds.Kind`."""
        return {"type": "string", "pattern": ":"}


@spec
class AllowCode(Spec):
    """Which code of the user's own may be imported during one command or call."""

    allow_code: tuple[str, ...] = option(
        Several(CodeName()),
        "Code that a head, a cache or a recipe names, as package.module:factory, and that may be "
        "run; may be repeated.",
        default=(),
    )
