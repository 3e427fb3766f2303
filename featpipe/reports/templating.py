"""Pages from Jinja2 templates: one offline file, with everything escaped that is not ours.

A template extends ``base.html``, which brings the style, light and dark, and the script that makes
tables of the class ``sortable`` sortable. The page may load nothing and run no other script: its
content security policy names the script's digest.
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
        become visible; only ``Markup`` is taken as it is.
    """
    script = _script()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
    policy = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
        f"script-src 'sha256-{digest}'"
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
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _visible(value: Any) -> Any:
    """Text from outside with characters that are not printable replaced by escapes."""
    return escape(value) if isinstance(value, str) and not isinstance(value, Markup) else value
