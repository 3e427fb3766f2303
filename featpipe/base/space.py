"""The feature space: everything that determines the values of a feature, and its hash.

A feature space is a pure function from image bytes to one tensor. Its canonical JSON is
hashed; the hash names its store and ties a head to the features it was trained on.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from featpipe.base.choices import DTYPES
from featpipe.base.errors import DamageError

FORMAT_VERSION = 1


_NOT_IN_SLUGS = re.compile(r"[^A-Za-z0-9_]+")
_MAX_SLUG = 64
_MAX_SIDE = 2**31
SHORT_ID = 12
"""Digits of the id in the name of a store's folder."""
MIN_ID_BEGINNING = 4
_ID_BEGINNING = re.compile(rf"[0-9a-f]{{{MIN_ID_BEGINNING},64}}")
_FOLDER_NAME = re.compile(rf"[A-Za-z0-9_]+-[A-Za-z0-9_]+-[0-9a-f]{{{SHORT_ID}}}")


def is_id_beginning(text: str) -> bool:
    """Whether a text is long enough a beginning of a feature space's id, in lower case."""
    return _ID_BEGINNING.fullmatch(text) is not None


def may_call_a_space(text: str) -> bool:
    """Whether :meth:`FeatureSpace.is_called` can be true of a text."""
    return is_id_beginning(text) or _FOLDER_NAME.fullmatch(text) is not None


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How image bytes become a float tensor: decode, EXIF rotation, RGB, resize, crop, normalise.

    Attributes
    ----------
    size : int
        Side of the square given to the backbone, pixels.
    resize : {"crop", "squash"}
        ``crop``: shorter side to ``resize_to``, then the central square of side ``size``.
        ``squash``: both sides to ``size``, ignoring the aspect ratio.
        :mod:`featpipe.base.preprocessing` has the constants.
    mean, std : tuple of float
        Per channel, in ``channels`` order, for values scaled to 0..1.
    channels : {"rgb", "bgr", "grey"}
        The channels that the backbone expects, in their order.
    decoder : {"pillow", "pillow-draft"}
        The decoder that defines the pixels. ``pillow-draft``: JPEGs are scaled by 1/2, 1/4 or
        1/8 during decoding, as long as they stay larger than the backbone's input.
    interpolation : {"bilinear", "bicubic"}
        Resampling filter (always antialiased).
    resize_to : int or None
        Shorter side before the crop, pixels; None is ``size * 256 / 224``, torchvision's preset of
        most ImageNet networks.
    version : int
        Incremented whenever a code change gives other pixels for the same image bytes.
    """

    size: int
    resize: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    channels: str = "rgb"
    decoder: str = "pillow"
    interpolation: str = "bilinear"
    version: int = 1
    resize_to: int | None = None


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """A named way of drawing random transforms of pictures.

    With the number of a view and the picture's id it decides one transform, so that a view has the
    same pixels in every run: see :mod:`featpipe.decoding.augmentation`.

    Attributes
    ----------
    policy : str
        A name of :data:`featpipe.base.choices.AUGMENTATIONS`.
    version : int
        Incremented whenever a code change gives other pixels for the same picture.
    seed : int
    """

    policy: str
    version: int
    seed: int = 0

    def __str__(self) -> str:
        return f"{self.policy}, seed {self.seed}"


@dataclass(frozen=True, kw_only=True)
class FeatureSpace:
    """One way of turning image bytes into a tensor.

    Attributes
    ----------
    backbone : str
        Name of the frozen network, for example ``vgg16``.
    weights : str
        SHA-256 (hex) of the tensors up to the tap.
    tap : str
        Layer of the backbone whose output is stored, for example ``block5_pool``.
    pooling : {"none", "avg", "max", "cls"}
        ``none`` keeps what the tap gives, such as a map (C, H, W) or tokens (T, C); the others
        reduce it to (C,): over all places or tokens, or to the class token.
    preprocessing : Preprocessing
    view : int
        0 is the image itself; v ≥ 1 is its v-th augmented version.
    precision : {"fp32", "bf16", "fp16"}
        Compute precision of the backbone.
    dtype : {"float16", "float32", "uint8"}
        Stored dtype; uint8 for pixels.
    shape : tuple of int
        Shape of one row; follows from the fields above.
    format : int
        Format version of the JSON.
    policy : str
        What of the backbone is computed in a precision other than fp32; empty for fp32, and for
        VGG, whose first convolution stays in fp32.
    augmentation : Augmentation or None
        What makes the views; None for view 0.
    """

    backbone: str
    weights: str
    tap: str
    pooling: str
    preprocessing: Preprocessing
    precision: str
    dtype: str
    shape: tuple[int, ...]
    view: int = 0
    format: int = FORMAT_VERSION
    policy: str = ""
    augmentation: Augmentation | None = None

    @cached_property
    def canonical_json(self) -> str:
        """The JSON of this space that is hashed: sorted keys, no spaces, ASCII.

        A field added after the first release is omitted while it has its default value, so
        that older ids stay the same.
        """
        return json.dumps(_document(self), sort_keys=True, separators=(",", ":"))

    @cached_property
    def id(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(self.canonical_json.encode("ascii")).hexdigest()

    @property
    def words(self) -> str:
        """What tells it apart at a glance; not unique, see :attr:`name`."""
        return f"{self.backbone} {self.tap} {self.pooling} {self.preprocessing.size}px"

    @property
    def name(self) -> str:
        """Folder name of the store: ``<backbone>-<tap>-<12 hex>``.

        Backbone and tap are slugs: other characters than letters, digits and underscores are
        replaced by an underscore (``layer4.2.relu_2`` → ``layer4_2_relu_2``). The hex digits
        of the id distinguish spaces whose slugs are equal.

        Raises
        ------
        DamageError
            The backbone or tap gives an empty slug, or the dtype is unknown.
        """
        names = _slug(self.backbone), _slug(self.tap)
        if not all(names):
            problem = f"{self.backbone!r} and {self.tap!r}"
        elif self.dtype not in DTYPES:
            problem = f"dtype {self.dtype!r}"
        else:
            return f"{names[0]}-{names[1]}-{self.id[:SHORT_ID]}"
        raise DamageError(
            f"expected a feature space with a backbone, a tap and one of {', '.join(DTYPES)}, "
            f"found {problem}; remove the file it came from and make it anew"
        )

    @property
    def original(self) -> FeatureSpace:
        """The space of the pictures themselves, view 0, that this one is a view of."""
        return dataclasses.replace(self, view=0, augmentation=None)

    def is_called(self, text: str) -> bool:
        """Whether a text is the name of this space's folder, or the beginning of its id."""
        return text == self.name or (is_id_beginning(text) and self.id.startswith(text))

    @classmethod
    def from_json(cls, text: str) -> FeatureSpace:
        """Parse a space written by :attr:`canonical_json` (key order does not matter).

        Raises
        ------
        DamageError
            The text is not a feature space of a format version this featpipe knows.
        """
        try:
            fields: dict[str, Any] = json.loads(text)
            version = fields.get("format")
            if version != FORMAT_VERSION:
                raise DamageError(_other_format(version))
            prep = dict(fields.pop("preprocessing"))
            prep.update(mean=tuple(prep["mean"]), std=tuple(prep["std"]))
            shape = tuple(fields.pop("shape"))
            drawn = fields.pop("augmentation", None)
            augmentation = None if drawn is None else Augmentation(**drawn)
            space = cls(
                preprocessing=Preprocessing(**prep),
                shape=shape,
                augmentation=augmentation,
                **fields,
            )
            _check_fields(space)
            return space
        except (
            KeyError,
            TypeError,
            ValueError,
            AttributeError,
            ArithmeticError,
            RecursionError,
        ) as error:
            raise DamageError(
                f"expected the JSON of a feature space, found something else ({error}); "
                "remove the file it came from and make it anew"
            ) from error

    def differences(self, other: FeatureSpace) -> list[str]:
        """Fields in which two spaces differ, each as ``field: value, not other's value``."""
        return _differences(dataclasses.asdict(self), dataclasses.asdict(other), "")


_ALWAYS_WRITTEN = frozenset(
    "backbone weights tap pooling preprocessing precision dtype shape view format "
    "size resize mean std channels decoder interpolation version seed".split()
)
"""Fields of the first release, and of what has been added since, that JSON always contains."""


def _document(part: FeatureSpace | Preprocessing | Augmentation) -> dict[str, Any]:
    """The fields of a space or a part of it that its JSON contains."""
    document = {}
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name in _ALWAYS_WRITTEN or value != field.default:
            is_part = isinstance(value, Preprocessing | Augmentation)
            document[field.name] = _document(value) if is_part else value
    return document


def _slug(name: str) -> str:
    """A name in a form fit for a folder name; empty if only underscores would remain."""
    slug = _NOT_IN_SLUGS.sub("_", name)[:_MAX_SLUG]
    return slug if slug.strip("_") else ""


def _other_format(found: object) -> str:
    newer = isinstance(found, int) and found > FORMAT_VERSION
    written, advice = ("a newer", "update featpipe") if newer else ("another", "make it anew")
    return (
        f"expected feature space format {FORMAT_VERSION}, found {found!r}; this featpipe reads "
        f"{FORMAT_VERSION}: it was written by {written} version; {advice}"
    )


def _check_fields(space: FeatureSpace) -> None:
    """Refuse values of a wrong type or range, which would fail later with a less clear error."""
    prep = space.preprocessing
    texts = [space.backbone, space.weights, space.tap, space.pooling, space.precision, space.dtype]
    texts += [space.policy, prep.resize, prep.channels, prep.decoder, prep.interpolation]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a field is no text")
    drawn = space.augmentation
    whole = (space.view, prep.version, *((drawn.version, drawn.seed) if drawn else ()))
    if not all(type(n) is int and n >= 0 for n in whole):
        raise ValueError("a field is no whole number")
    if drawn is not None and (space.view == 0 or not isinstance(drawn.policy, str)):
        raise ValueError("its augmentation has no view or no policy")
    sides = (prep.size, *space.shape, *([] if prep.resize_to is None else [prep.resize_to]))
    if not all(type(n) is int and 0 <= n < _MAX_SIDE for n in sides):
        raise ValueError(f"size {prep.size!r}, shape {space.shape!r}")
    numbers = (*prep.mean, *prep.std)
    if len(numbers) != 6 or not all(type(n) in (int, float) for n in numbers):
        raise ValueError("mean and std are not three numbers each")
    if not all(abs(n) < math.inf for n in numbers):
        raise ValueError("mean and std are not finite")


def _differences(fields: dict[str, Any], others: dict[str, Any], prefix: str) -> list[str]:
    differences = []
    for key, value in fields.items():
        other = others[key]
        if isinstance(value, dict) and isinstance(other, dict):
            differences += _differences(value, other, f"{prefix}{key}.")
        elif value != other:
            differences.append(f"{prefix}{key}: {_short(value)}, not {_short(other)}")
    return differences


def _short(value: object) -> str:
    """A value as text; a hexadecimal SHA-256 is abbreviated."""
    if isinstance(value, dict):
        return str(Augmentation(**value))
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text
