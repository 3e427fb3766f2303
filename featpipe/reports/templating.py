"""Pages from Jinja2 templates: one offline file, with everything escaped that is not ours.

A template extends ``base.html``, which brings the style, light and dark, and the one script; what
elements can be given by it is listed at its top. The page may load nothing and run no other script:
its content security policy names the script's digest. Numbers for the script go into a block
``<script type="application/json">{{ numbers|tojson }}</script>``, which is data and does not run.
"""

from __future__ import annotations

import base64
import functools
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from featpipe.base.text import escape

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, *, title: str, **values: Any) -> bytes:
    """One page as UTF-8.

    Parameters
    ----------
    template : str
        File name of a template in ``reports/templates``.
    title : str
    **values
        What the template names. Text is escaped for HTML, and characters that are not printable
        become visible; only ``Markup`` is taken as it is. ``|percent`` and ``|fixed(4)`` write
        numbers.
    """
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; "
        f"style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    )
    page = (
        _environment()
        .get_template(template)
        .render(
            title=title,
            policy=policy,
            style=Markup((TEMPLATES / "page.css").read_text("utf-8")),
            script=Markup(script),
            **values,
        )
    )
    return page.encode("utf-8")


def _script() -> str:
    return (TEMPLATES / "page.js").read_text("utf-8")


@functools.cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":")}
    environment.filters["percent"] = lambda share: f"{share:.1%}"
    environment.filters["fixed"] = lambda value, digits: f"{value:.{digits}f}"
    return environment


def _visible(value: Any) -> Any:
    """Text from outside with characters that are not printable replaced by escapes."""
    if isinstance(value, Markup) or not isinstance(value, str) or value.isprintable():
        return value
    return escape(value)
