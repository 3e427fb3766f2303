"""Code of the user's own, named as ``package.module:factory``: imported only where it is permitted.

A head, a cache or a recipe may come from elsewhere, and any function can stand for a factory
(``os:system``). So a name that is read from a file is never imported by itself. The commands and
functions permit the names that the person wrote on that very command line or call, and nothing
else; the permission ends with the call.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterable, Iterator
from contextvars import ContextVar
from typing import Any

from featpipe.base.errors import OwnCodeError
from featpipe.base.text import one_line

_NAME = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_permitted: ContextVar[frozenset[str]] = ContextVar("permitted", default=frozenset())


def is_own_code(name: str) -> bool:
    """Whether a name has the form ``package.module:factory``."""
    return _NAME.fullmatch(name) is not None


@contextlib.contextmanager
def permitted(names: Iterable[object]) -> Iterator[None]:
    """Permit, while the block runs, to import the code of names; other values are ignored."""
    own = {name for name in names if isinstance(name, str) and is_own_code(name)}
    token = _permitted.set(_permitted.get() | own)
    try:
        yield
    finally:
        _permitted.reset(token)


def load_factory(name: str, *, what: str) -> Callable[..., Any]:
    """The function of a name, imported if the user permits it.

    Parameters
    ----------
    name : str
        ``package.module:factory``.
    what : str
        What names it, for messages: ``backbone`` or ``head``.

    Raises
    ------
    OwnCodeError
        The name is not permitted, or the module cannot be imported, or lacks the function.
    """
    if name not in _permitted.get():
        raise OwnCodeError(
            f"expected a {what} that comes with featpipe, found {name!r}, which is code to be run; "
            f"if you trust it, name it yourself: --allow-code {name} "
            f"(in Python: allow_code={name!r})"
        )
    module_name, _, function = name.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise OwnCodeError(
            f"expected to import {module_name!r} for the {what} {name!r}, but: "
            f"{one_line(error)}; start featpipe where Python finds it, or set "
            "PYTHONPATH"
        ) from error
    factory = getattr(module, function, None)
    if not callable(factory):
        raise OwnCodeError(
            f"expected a function {function!r} in {module_name!r} for the {what} {name!r}, found "
            f"{'none' if factory is None else type(factory).__name__}; correct the name"
        )
    return factory  # type: ignore[no-any-return]
