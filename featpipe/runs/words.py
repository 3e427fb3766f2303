"""Heads in a few words, for tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from featpipe.base.views import views_in
from featpipe.specs.head_params import params_given


def head_words(kind: str, params: Mapping[str, Any], info: Mapping[str, Any]) -> str:
    """A kind of head with what was asked for beyond the defaults, and how it was chosen.

    Parameters
    ----------
    kind : str
    params : mapping
        Hyper-parameters.
    info : mapping
        See :class:`featpipe.runs.trained_head.TrainedHead`.
    """
    words = [f"{name}={_short(value)}" for name, value in params_given(kind, params).items()]
    if isinstance(shot := info.get("n_shot"), dict):
        words.append(f"n-shot={shot.get('n')}")
    if views := views_in(info):
        words.append(f"views={views['number']} {views['policy']}")
    words += [word for word in ("sweep", "calibration") if word in info]
    return " ".join([kind, *words])


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
