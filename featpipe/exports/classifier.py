"""From a picture's pixels to probabilities as one torch module: what ``predict`` does behind the
decoder.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import nn

from featpipe.backbones.base import Backbone, Tensors
from featpipe.backbones.network import Normalise, stored
from featpipe.backbones.pixels import GREY_WEIGHTS
from featpipe.base.joined_spaces import joined_shape
from featpipe.base.preprocessing import WHITE
from featpipe.base.space import FeatureSpace
from featpipe.heads.base import Head
from featpipe.heads.dense import dense_head


class PictureClassifier(nn.Module):
    """Normalisation, backbone, pooling and head.

    Parameters
    ----------
    rows : nn.Module
        Pictures → a list of rows of each feature space.
    head : nn.Module
        Rows → logits; see :meth:`featpipe.heads.base.Head.to_module`.
    temperature : float
        What the logits are divided by.
    """

    def __init__(self, rows: nn.Module, head: nn.Module, temperature: float) -> None:
        super().__init__()
        self.rows, self.head, self.temperature = rows, head, temperature

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify pictures.

        Parameters
        ----------
        image : Tensor of float32, shape (N, 3, size, size)
            RGB, 0..1.

        Returns
        -------
        logits, probabilities : Tensor of float32, shape (N, classes)
        """
        parts = [part.float() for part in self.rows(image)]
        rows = parts[0]
        if len(parts) > 1:
            rows = torch.cat([part.flatten(1) for part in parts], dim=1)
        logits = self.head(rows) / self.temperature
        return logits, logits.softmax(dim=1)


class ScoreMapClassifier(nn.Module):
    """Normalisation, backbone and a head as convolutions: pictures of any height and width.

    Parameters
    ----------
    rows : nn.Module
        Pictures → a list of one batch of maps.
    head : nn.Module
        Maps → scores; see :class:`featpipe.heads.dense.DenseHead`.
    is_class_map, temperature : bool and float
        See there.
    """

    def __init__(
        self, rows: nn.Module, head: nn.Module, *, is_class_map: bool, temperature: float
    ) -> None:
        super().__init__()
        self.rows, self.head = rows, head
        self.is_class_map, self.temperature = is_class_map, temperature

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Classify pictures and their places.

        Parameters
        ----------
        image : Tensor of float32, shape (N, 3, height, width)
            RGB, 0..1; at least as large as in training.

        Returns
        -------
        score_map : Tensor of float32, shape (N, classes, rows, columns)
        probabilities : Tensor of float32, shape (N, classes)
            The softmax of the scores' mean over a class map, else of each class's best window.
        """
        (maps,) = self.rows(image)
        scores = self.head(maps.float()) / self.temperature
        places = (2, 3)
        logits = scores.mean(dim=places) if self.is_class_map else scores.amax(dim=places)
        return scores, logits.softmax(dim=1)


class BackboneRows(nn.Module):
    """A frozen network's rows of some feature spaces, computed in float32.

    Parameters
    ----------
    backbone : Backbone
    tensors : mapping of str to ndarray
    spaces : sequence of FeatureSpace
        Of one pass; rows are rounded to the dtype that they are stored in.
    """

    def __init__(
        self, backbone: Backbone, tensors: Tensors, spaces: Sequence[FeatureSpace]
    ) -> None:
        super().__init__()
        preprocessing = spaces[0].preprocessing
        size = preprocessing.size
        self._spaces = list(spaces)
        self._taps = list(dict.fromkeys(space.tap for space in spaces))
        self._axes = {tap: tuple(backbone.pooled_axes(tap, size)) for tap in self._taps}
        self.normalise = Normalise(preprocessing)
        # The plain form: fast forms of some hardware are no part of what a network computes.
        self.backbone = backbone.build(tensors, self._taps, size)

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Pictures (N, 3, size, size) → rows (N, *space.shape) of each space."""
        # Not through __call__: torch's GraphModule would print errors.
        found = dict(zip(self._taps, self.backbone.forward(self.normalise(image)), strict=True))
        return [stored(found[s.tap], s, self._axes[s.tap]) for s in self._spaces]


class PixelRows(nn.Module):
    """Rows of the backbone ``pixels``: whole numbers of 0 to 255.

    Parameters
    ----------
    is_grey : bool
        Whether rows have the one channel of luma.
    """

    def __init__(self, is_grey: bool) -> None:
        super().__init__()
        self._is_grey = is_grey

    def forward(self, image: torch.Tensor) -> list[torch.Tensor]:
        """Pictures (N, 3, size, size) of 0..1 → the rows (N, channels, size, size)."""
        pixels = (image * WHITE).round().clamp(0, WHITE)
        if self._is_grey:
            red, green, blue = GREY_WEIGHTS
            # Whole numbers below 2**24, which float32 holds exactly.
            weighted = red * pixels[:, :1] + green * pixels[:, 1:2] + blue * pixels[:, 2:]
            pixels = ((weighted + 2**15) / 2**16).floor()
        return [pixels]


def picture_classifier(
    backbone: Backbone, tensors: Tensors, spaces: Sequence[FeatureSpace], head: Head
) -> PictureClassifier:
    """The module of a trained head and its backbone, in float32 on the CPU, in eval mode.

    Parameters
    ----------
    backbone : Backbone
    tensors : mapping of str to ndarray
        At least those that the head's taps depend on.
    spaces : sequence of FeatureSpace
        Those of the head.
    head : Head
    """
    module = head.to_module(joined_shape(spaces))
    whole = PictureClassifier(_rows(backbone, tensors, spaces), module, float(head.temperature_))
    return whole.eval().requires_grad_(False)


def score_map_classifier(
    backbone: Backbone, tensors: Tensors, spaces: Sequence[FeatureSpace], head: Head
) -> ScoreMapClassifier:
    """As :func:`picture_classifier`, for pictures of any height and width.

    Raises
    ------
    UsageError
        The head is not on one map or its average, or cannot be moved over larger ones.
    """
    dense = dense_head(head, spaces)
    # Of averages, only the average was rounded in training.
    is_map = spaces[0].pooling == "none"
    maps = dense.space if is_map else dataclasses.replace(dense.space, dtype="float32")
    rows = _rows(backbone, tensors, [maps])
    return ScoreMapClassifier(
        rows, dense.module, is_class_map=dense.is_class_map, temperature=dense.temperature
    ).eval()


def _rows(backbone: Backbone, tensors: Tensors, spaces: Sequence[FeatureSpace]) -> nn.Module:
    if backbone.has_weights:
        return BackboneRows(backbone, tensors, spaces)
    return PixelRows(spaces[0].preprocessing.channels == "grey")
