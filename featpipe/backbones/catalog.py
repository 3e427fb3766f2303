"""From a name to a backbone: one line per family."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from featpipe.backbones import vgg
from featpipe.backbones.base import Backbone
from featpipe.backbones.pixels import PIXELS, Pixels
from featpipe.base.errors import UsageError
from featpipe.base.own_code import is_own_code, load_factory


@dataclass(frozen=True)
class Family:
    """Backbones of one kind.

    Attributes
    ----------
    title : str
        What it is, for people.
    names : callable
        Returns the names of its members, where they can be listed.
    has : callable
        Whether a name may be a member's. Those of a family that is expensive to ask come last.
    open : callable
        Returns the member of a name.
    """

    title: str
    names: Callable[[], tuple[str, ...]]
    has: Callable[[str], bool]
    open: Callable[[str], Backbone]


def _torchvision_names() -> tuple[str, ...]:
    from featpipe.backbones.torchvision_networks import names

    return tuple(name for name in names() if name not in vgg.FAMILY)


@functools.cache
def _torchvision_network(name: str) -> Backbone:
    from featpipe.backbones.torchvision_networks import torchvision_network

    return torchvision_network(name)


@functools.cache
def _timm_network(name: str) -> Backbone:
    from featpipe.backbones.timm_networks import timm_network

    return timm_network(name)


def _own_network(name: str) -> Backbone:
    # First, and every time: the permission ends with the call that gave it.
    factory = load_factory(name, what="backbone")

    from featpipe.backbones.own_network import own_network

    return own_network(name, factory)


FAMILIES = (
    Family("VGG", lambda: tuple(vgg.FAMILY), vgg.FAMILY.__contains__, vgg.FAMILY.__getitem__),
    Family(
        "pixels: no network; caches the decoded, resized pictures",
        lambda: (PIXELS,),
        lambda name: name == PIXELS,
        functools.cache(lambda _: Pixels()),
    ),
    Family(
        "package.module:factory: a network of your own",
        lambda: (),
        is_own_code,
        _own_network,
    ),
    Family(
        "timm/NAME: networks of timm, if it is installed; its list_models() names them",
        lambda: (),  # more than a thousand
        lambda name: name.startswith("timm/"),
        _timm_network,
    ),
    Family(
        "other networks of torchvision",
        _torchvision_names,
        lambda name: name in _torchvision_names(),
        _torchvision_network,
    ),
)


def get_backbone(name: str) -> Backbone:
    """The backbone of that name.

    Raises
    ------
    UsageError
        There is no such backbone; the message suggests the most similar name.
    OwnCodeError
        It is code of the user's own, and is not permitted or does not work.
    """
    for family in FAMILIES:
        if family.has(name):
            return family.open(name)
    raise UsageError(
        f"expected a backbone, found {name!r}; did you mean '{_nearest(name)}'? "
        "'featpipe backbones' lists them"
    )


def _nearest(name: str) -> str:
    import difflib

    known = [known for family in FAMILIES for known in family.names()]
    return difflib.get_close_matches(name, known, 1, 0.0)[0]
