"""Policies of augmentation: which transform a view of a picture has.

It is a pure function of policy, version, seed, number of the view and image id: nothing else
enters the draw, so a view has the same pixels in every run, process and data set. Change what a
policy draws, or how :mod:`featpipe.decoding.views` applies it, and its version in
:data:`POLICIES` must change too.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from featpipe.base.space import Augmentation

MAX_DEGREES = 15.0
ZOOM = (0.9, 1.2)
"""``light`` enlarges a picture by a factor of this range."""
CROP_SHARE = (0.25, 1.0)
"""``standard`` cuts out a share of a picture's area of this range."""
CROP_RATIO = (3 / 4, 4 / 3)
"""Width by height of that part, as torchvision's RandomResizedCrop has it."""
JITTER = 0.2
"""``standard`` changes brightness, contrast and saturation by at most this share."""
_DRAWN = 16
"""Random numbers a transform may use."""


@dataclass(frozen=True)
class Transform:
    """What is done to a picture; the default is nothing.

    Attributes
    ----------
    flip : bool
        Mirror left and right.
    degrees : float
        Rotation, counter-clockwise.
    zoom : float
        Enlargement about the centre.
    crop : tuple of float, optional
        Share of the area, width by height, and position from 0 to 1 across and down of the part
        that is cut out.
    colours : tuple of float
        Factors of brightness, contrast and saturation, applied in this order.
    """

    flip: bool = False
    degrees: float = 0.0
    zoom: float = 1.0
    crop: tuple[float, float, float, float] | None = None
    colours: tuple[float, float, float] = (1.0, 1.0, 1.0)


@dataclass(frozen=True)
class Policy:
    """A way of drawing transforms.

    Attributes
    ----------
    version : int
    draw : callable
        The transform, from the number of a view and numbers from 0 to 1.
    detail : float
        By how much a transform enlarges a picture at most: ``pillow-draft`` decodes that much more.
    """

    version: int
    draw: Callable[[int, Sequence[float]], Transform]
    detail: float


def _flip(view: int, _: Sequence[float]) -> Transform:
    # A mirror image has no second version. Drawn by chance, half of the views would be wasted.
    return Transform(flip=view % 2 == 1)


def _light(_: int, uniform: Sequence[float]) -> Transform:
    return Transform(
        flip=uniform[0] < 0.5,
        degrees=_between((-MAX_DEGREES, MAX_DEGREES), uniform[1]),
        zoom=_between_factors(ZOOM, uniform[2]),
    )


def _standard(_: int, uniform: Sequence[float]) -> Transform:
    share = _between(CROP_SHARE, uniform[1])
    ratio = _between_factors(CROP_RATIO, uniform[2])
    brightness, contrast, saturation = (
        _between((1 - JITTER, 1 + JITTER), number) for number in uniform[5:8]
    )
    return Transform(
        flip=uniform[0] < 0.5,
        crop=(share, ratio, uniform[3], uniform[4]),
        colours=(brightness, contrast, saturation),
    )


def _between(ends: tuple[float, float], number: float) -> float:
    low, high = ends
    return low + (high - low) * number


def _between_factors(ends: tuple[float, float], number: float) -> float:
    """A factor of a range, uniform in its logarithm."""
    low, high = ends
    return math.exp(_between((math.log(low), math.log(high)), number))


POLICIES = {
    "flip": Policy(1, _flip, 1.0),
    "light": Policy(1, _light, ZOOM[1]),
    # The longer side of the smallest part is the one that loses most.
    "standard": Policy(1, _standard, 1 / math.sqrt(CROP_SHARE[0] * CROP_RATIO[0])),
}
"""Every policy by its name, one of :data:`featpipe.base.choices.AUGMENTATIONS`."""


def augmentation(policy: str, seed: int) -> Augmentation:
    """A policy as this featpipe draws it."""
    return Augmentation(policy=policy, version=POLICIES[policy].version, seed=seed)


def is_known(augmentation: Augmentation) -> bool:
    """Whether this featpipe makes the same views."""
    policy = POLICIES.get(augmentation.policy)
    return policy is not None and policy.version == augmentation.version


def draw(augmentation: Augmentation, view: int, image_id: bytes) -> Transform:
    """The transform of a view of a picture.

    Parameters
    ----------
    augmentation : Augmentation
    view : int
        1 or more.
    image_id : bytes
        SHA-256 of the image file.
    """
    said = f"{augmentation.policy} {augmentation.version} {augmentation.seed} {view} "
    digest = hashlib.sha256(b"featpipe:view:" + said.encode("ascii") + image_id).digest()
    # Raw bits of Philox are the same in every NumPy; its distributions may change.
    bits = np.random.Philox(key=np.frombuffer(digest[:16], "<u8").astype(np.uint64))
    uniform = [(int(raw) >> 11) * 2.0**-53 for raw in bits.random_raw(_DRAWN)]
    return POLICIES[augmentation.policy].draw(view, uniform)
