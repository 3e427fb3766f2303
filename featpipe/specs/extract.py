"""Options of extraction: which features, from which pictures, and how to run."""

from __future__ import annotations

from pathlib import Path

from featpipe.base.choices import DECODERS, DTYPES, POOLINGS, PRECISIONS, RESIZES
from featpipe.base.dataset_names import check_dataset_name
from featpipe.specs.fields import Spec, option, required, spec
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
DEFAULT_WEIGHTS = "IMAGENET1K_V1"
DEFAULT_TAP = "block5_pool"
DEFAULT_SPLIT = (0.7, 0.15, 0.15)
"""Shares of train, validation and test."""
DEFAULT_MAX_PIXELS = 50_000_000


@spec
class EngineOptions(Spec):
    """How a pass over pictures runs. None of these options changes the features."""

    device: str = option(Text(), "auto, cpu, cuda, cuda:N or mps.", default="auto")
    batch_size: int | None = option(
        Whole(auto=True),
        "Pictures per pass of the backbone; halved when memory runs out.",
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
    weights: str = option(
        Text(),
        "IMAGENET1K_V1, IMAGENET1K_FEATURES, random:SEED, or a .safetensors, .pth or Keras .h5 "
        "file.",
        default=DEFAULT_WEIGHTS,
    )
    tap: tuple[str, ...] = option(
        Several(Text()), "Where features are taken; may be repeated.", default=(DEFAULT_TAP,)
    )
    pool: tuple[str, ...] = option(
        Several(Choice(POOLINGS)),
        "none keeps the map, avg and max give one number per channel; may be repeated.",
        default=("none",),
    )
    size: int = option(
        Whole(high=MAX_SIZE, unit="pixels"), "Side of the input, pixels.", default=224
    )
    resize: str = option(
        Choice(RESIZES),
        "crop: the shorter side to 256/224 of the size, then the central square of the size; "
        "squash: both sides to the size.",
        default="crop",
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
        Choice(DTYPES), "float16 or float32: how features are stored.", default="float16"
    )

    def _check_together(self) -> None:
        # Not at the top: the help of a command needs no catalogue.
        from featpipe.backbones.catalog import get_backbone

        backbone = get_backbone(self.backbone)
        for tap in self.tap:
            backbone.output_shape(tap, "none", self.size)


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
