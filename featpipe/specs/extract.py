"""Options of extraction: which features, from which pictures, and how to run."""

from __future__ import annotations

from pathlib import Path

from featpipe.base.choices import (
    AUGMENTATIONS,
    CHANNELS,
    DECODERS,
    FLOAT_DTYPES,
    POOLINGS,
    PRECISIONS,
    RESIZES,
)
from featpipe.base.dataset_names import check_dataset_name
from featpipe.base.errors import UsageError
from featpipe.specs.fields import Spec, called, default_of, option, required, spec
from featpipe.specs.shards import Shard, ShardText
from featpipe.specs.value_kinds import (
    Choice,
    Flag,
    Folder,
    Percentage,
    Several,
    Shares,
    Text,
    Whole,
)

MAX_SIZE = 4096
MAX_WORKERS = 1024
DEFAULT_BACKBONE = "vgg16"
DEFAULT_TAPS = {"vgg16": "block5_pool", "pixels": "input"}
"""Where features are taken if nothing is said; of other backbones a tap must be named."""
DEFAULT_SPLIT = (0.7, 0.15, 0.15)
"""Shares of train, validation and test."""
DEFAULT_MAX_PIXELS = 50_000_000
DEFAULT_AUGMENT = "light"
MAX_VIEWS = 1000
ALL_PICTURES = "all"
"""Stands for every usable picture, also those without a split."""


@spec
class EngineOptions(Spec):
    """How a pass over pictures runs. None of these options changes the features."""

    device: str = option(Text(), "auto, cpu, cuda, cuda:N or mps.", default="auto")
    batch_size: int | None = option(
        Whole(auto=True),
        "Pictures handed to the backbone at once.",
        default_text="auto",
        default=None,
    )
    workers: int | None = option(
        Whole(high=MAX_WORKERS, unit="processes", auto=True),
        "Decoding processes.",
        default_text="auto",
        default=None,
    )
    max_pixels: int = option(
        Whole(high=None), "Larger pictures are quarantined.", default=DEFAULT_MAX_PIXELS
    )


@spec
class FeatureOptions(EngineOptions):
    """Which features are computed, and how."""

    backbone: str = option(
        Text(), "The frozen network; 'featpipe backbones' lists them.", default=DEFAULT_BACKBONE
    )
    weights: str | None = option(
        Text(),
        "A published name (IMAGENET1K_V1, DEFAULT, …), random:SEED, or a .safetensors, .pth or "
        "Keras .h5 file.",
        default_text="DEFAULT; of your own network: own",
        default=None,
    )
    tap: tuple[str, ...] | None = option(
        Several(Text()),
        "Where features are taken; may be repeated. 'featpipe backbones NAME' lists the taps.",
        default_text="vgg16: block5_pool; pixels: input",
        default=None,
    )
    pool: tuple[str, ...] = option(
        Several(Choice(POOLINGS)),
        "none keeps the map or the tokens; avg and max give one number per channel, over all "
        "places or tokens; cls takes the class token. May be repeated.",
        default=("none",),
    )
    size: int | None = option(
        Whole(high=MAX_SIZE, unit="pixels"),
        "Side of the input, pixels.",
        default_text="that of the weights: mostly 224",
        default=None,
    )
    resize: str = option(
        Choice(RESIZES),
        "crop: the shorter side a little longer than the size (as the weights were trained, mostly "
        "256/224), then the central square; squash: both sides to the size.",
        default="crop",
    )
    channels: str = option(
        Choice(CHANNELS), "rgb, or grey for the backbone 'pixels'.", default="rgb"
    )
    decoder: str = option(
        Choice(DECODERS),
        "pillow, or pillow-draft: large JPEGs are scaled down while they are decoded.",
        default="pillow",
    )
    precision: str = option(
        Choice(("auto", *PRECISIONS)),
        "auto, fp32, bf16 or fp16: what the backbone computes in.",
        default="auto",
    )
    dtype: str = option(
        Choice(FLOAT_DTYPES),
        "float16 or float32: how features are stored; pixels are uint8.",
        default="float16",
    )

    def _check_together(self) -> None:
        # Not at the top: the help of a command needs no catalogue.
        from featpipe.backbones.catalog import get_backbone

        backbone = get_backbone(self.backbone)
        backbone.check_channels(self.channels)
        size = self.size or backbone.default_size
        if not size:
            raise UsageError(
                f"expected --size for --backbone {self.backbone}, found none; name the side in "
                "pixels, such as 28 for MNIST or 128 for photographs"
            )
        for tap in self.taps:
            for pool in self.pool:
                backbone.output_shape(tap, pool, size)

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps, or the backbone's usual one.

        Raises
        ------
        UsageError
            None is given, and the backbone has no usual one.
        """
        if self.tap is not None:
            return self.tap
        if self.backbone in DEFAULT_TAPS:
            return (DEFAULT_TAPS[self.backbone],)
        raise UsageError(
            f"expected --tap for --backbone {self.backbone}, found none; 'featpipe backbones "
            f"{self.backbone}' lists its taps"
        )


class DatasetName(Text):
    """A name that a data set can have."""

    def check(self, label: str, value: object) -> str:
        """See :class:`featpipe.specs.value_kinds.Kind`."""
        name = super().check(label, value)
        check_dataset_name(name)
        return name

    read = check


@spec
class ExtractSpec(FeatureOptions):
    """Everything that an extraction can be told, besides the pictures and the cache."""

    name: str = required(DatasetName(), "Name of the data set.")
    views: int = option(
        Whole(low=0, high=MAX_VIEWS),
        "Augmented versions of each picture, which are cached beside it.",
        default=0,
    )
    augment: str | None = option(
        Choice(AUGMENTATIONS),
        "What makes the views. flip: mirrored; light: mirrored by chance, turned up to 15 degrees, "
        "a little larger or smaller; standard: a random part, mirrored by chance, other colours.",
        default_text=DEFAULT_AUGMENT,
        default=None,
    )
    augment_seed: int = option(
        Whole(low=0), "Other seeds give other views of the same pictures.", default=0
    )
    views_of: tuple[str, ...] = option(
        Several(Choice(("train", "val", "test", ALL_PICTURES))),
        "The splits whose pictures have views: train, val, test or all. May be repeated.",
        default=("train",),
    )
    split: tuple[float, float, float] = option(
        Shares(), "Shares of train, val and test where DATA has no splits.", default=DEFAULT_SPLIT
    )
    root: Path | None = option(
        Folder(),
        "For a list: the folder that its paths count from and may not leave.",
        default=None,
    )
    follow_links: bool = option(
        Flag(), "For a list: links may lead its paths out of that folder.", default=False
    )
    max_bad: float = option(
        Percentage(),
        "Largest share of unreadable pictures before the extraction fails.",
        default_text="100%",
        default=1.0,
    )
    retry_quarantined: bool = option(
        Flag(),
        "Try unreadable pictures again although their files have not changed.",
        default=False,
    )
    rehash: bool = option(
        Flag(), "Read also the files whose size and times have not changed.", default=False
    )
    shard: Shard | None = option(
        ShardText(),
        "Extract only part i of n, as i/n; the last of the n jobs merges.",
        default=None,
    )

    @property
    def policy(self) -> str:
        """The augmentation that makes the views."""
        return self.augment or DEFAULT_AUGMENT

    def _check_together(self) -> None:
        super()._check_together()
        for name in ("augment", "augment_seed", "views_of"):
            if not self.views and getattr(self, name) != default_of(ExtractSpec, name):
                raise UsageError(
                    f"expected {called('views')} together with {called(name)}, found none; say how "
                    "many views each picture shall have, such as 4"
                )
