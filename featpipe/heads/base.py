"""The base classes of heads: scikit-learn's conventions, standardisation, NumPy inference."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypedDict

import numpy as np
from numpy.typing import NDArray

from featpipe.base.errors import DamageError, DataError, OwnCodeError
from featpipe.base.numbers import is_finite
from featpipe.base.space import FeatureSpace

if TYPE_CHECKING:
    from torch import nn

_BLOCK_BYTES = 64 * 2**20
_LOWEST_TEMPERATURE = 1e-100
"""Logits of any float32 can be divided by it."""


@dataclass(frozen=True)
class HistoryRow:
    """Losses and accuracies after one epoch, or of the fit with one C or k.

    Attributes
    ----------
    at : float
        Number of the epoch, or value of C or k.
    train_loss, val_loss : float
        Mean cross-entropy, nats; weighted by class where the head has class weights.
    train_accuracy, val_accuracy : float
        Share of rows classified correctly, 0 to 1.
    cv_loss : float or None
        Mean cross-entropy over held-out folds, nats; None without folds.
    """

    at: float
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    cv_loss: float | None = None

    @property
    def selection_loss(self) -> float:
        """The loss that ranks rows: of held-out folds where there are any, else of validation."""
        return self.val_loss if self.cv_loss is None else self.cv_loss

    def as_json(self, axis: str) -> dict[str, float]:
        """The row as JSON; ``axis`` is the key of :attr:`at`."""
        numbers = {name: value for name, value in asdict(self).items() if value is not None}
        return {axis: numbers.pop("at"), **numbers}

    @classmethod
    def from_json(cls, document: dict[str, float], axis: str) -> HistoryRow:
        """Parse a row of :meth:`as_json`; raises ``KeyError``, ``TypeError`` or ``ValueError``."""
        numbers = {f.name: document[f.name] for f in fields(cls) if f.name not in ("at", "cv_loss")}
        row = cls(at=document[axis], cv_loss=document.get("cv_loss"), **numbers)
        optional = () if row.cv_loss is None else (row.cv_loss,)
        for number in (row.at, *numbers.values(), *optional):
            if not is_finite(number):
                raise ValueError("its history is not one of numbers")
        return row


Tick = Callable[[HistoryRow], None]
"""Callback that receives the history row of each epoch or fit."""


@dataclass
class History:
    """The history of one training.

    Attributes
    ----------
    axis : {"epoch", "C", "k"}
        Whether each row is an epoch or a value of C or k.
    rows : list of HistoryRow
        In the order of training.
    best : int
        Index of the kept row: the one with the lowest :attr:`HistoryRow.selection_loss`.
    warnings : list of str
        What casts doubt on the kept row; the head's file does not hold it here.
    untried : list of float
        Values that were meant to be tried, but could not win any more.
    epoch_seconds : list of float
        How long each epoch's training took, without validation; of all heads that were trained
        together. The head's file does not hold it here.
    """

    axis: str
    rows: list[HistoryRow] = field(default_factory=list)
    best: int = 0
    warnings: list[str] = field(default_factory=list, compare=False)
    untried: list[float] = field(default_factory=list)
    epoch_seconds: list[float] = field(default_factory=list, compare=False)

    @property
    def kept(self) -> HistoryRow:
        """The row of the state that was kept."""
        return self.rows[self.best]


class StartDocument(TypedDict):
    """What the training of a network started from: layers by their paths.

    ``top`` is ``own`` or ``linear``; ``pretrained`` layers started from the backbone's weights.
    """

    top: str
    pretrained: list[str]
    drawn: list[str]


class Head(ABC):
    """A classifier on feature rows of any shape.

    Fitted state ends in an underscore. ``mean_`` (d,) and ``scale_`` (1,) are statistics of the
    training features; the head standardises its input with them. ``scale_`` is (d,) where rows of
    several taps lie side by side. ``temperature_`` is 1 unless the head was calibrated.
    """

    kind: str
    sweep_grid: ClassVar[dict[str, tuple[Any, ...]]] = {}
    """Default grid of a sweep: values by hyper-parameter."""
    trains_together: ClassVar[bool] = True
    """Whether the heads of a sweep are trained as one computation, or one after another."""
    solves_path: ClassVar[bool] = False
    """Whether one :meth:`fit` tries several values and keeps the best; a sweep is then one fit."""
    classes_: NDArray[np.str_]
    mean_: NDArray[np.float32]
    scale_: NDArray[np.float32]
    temperature_ = 1.0
    """What the logits are divided by."""

    @property
    def start(self) -> StartDocument | None:
        """What training starts from, where that is a part of the backbone."""
        return None

    def attach(self, spaces: Sequence[FeatureSpace]) -> None:  # noqa: B027 - most need none
        """Tell the head the feature spaces of its rows, before it is trained or read.

        Raises
        ------
        UsageError
            It cannot be trained on such features.
        """

    @classmethod
    def param_names(cls) -> tuple[str, ...]:
        """Names of the hyper-parameters."""
        return tuple(f.name for f in fields(cls))  # type: ignore[arg-type]

    @classmethod
    def sweep_axes(cls, given: dict[str, Any]) -> dict[str, tuple[Any, ...]]:
        """What a sweep varies where these hyper-parameters are given: values by name."""
        return {name: values for name, values in cls.sweep_grid.items() if name not in given}

    @property
    def params(self) -> dict[str, Any]:
        """Hyper-parameters by name."""
        return {name: getattr(self, name) for name in self.param_names()}

    @property
    def progress_steps(self) -> int:
        """How often :meth:`fit` will call ``tick``; 0 if unknown."""
        return 0

    @abstractmethod
    def fit(
        self,
        X: Any,
        y: NDArray[np.int64],
        X_val: Any,
        y_val: NDArray[np.int64],
        *,
        seed: int,
        device: str,
        tick: Tick,
    ) -> History:
        """Train, and keep the state with the lowest validation loss.

        Parameters
        ----------
        X, X_val : array-like, shape (n, …)
            Feature rows of training and validation; read in blocks, so they may be memory-mapped.
        y, y_val : ndarray of int64, shape (n,)
            Class index of each row.
        seed : int
            Seed of all random numbers; a CPU run with the same seed gives the same bits.
        device : str
            ``cpu``, ``cuda:0``, …; only heads trained with PyTorch use it.
        tick : callable
            Called with the history row of each epoch or fit.
        """

    @abstractmethod
    def logits(self, Z: NDArray[np.float32]) -> np.ndarray:
        """Standardised rows (n, d) float32 → (n, classes)."""

    @abstractmethod
    def layers(self) -> dict[str, np.ndarray]:
        """The learned tensors other than ``mean_`` and ``scale_``."""

    @abstractmethod
    def set_layers(self, layers: dict[str, np.ndarray]) -> None:
        """Set the tensors that :meth:`layers` returns."""

    @abstractmethod
    def to_module(self, row_shape: tuple[int, ...]) -> nn.Module:
        """The trained head as a torch module, for export and score maps.

        Parameters
        ----------
        row_shape : tuple of int
            Shape of the rows it was trained on.

        Returns
        -------
        Module
            Rows (n, *row_shape) float32, not standardised → logits (n, classes), not divided by
            the temperature.
        """

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Class probabilities of feature rows (n, …): (n, classes) float64, rows sum to 1.

        Raises
        ------
        DataError
            The features or the head's numbers are such that probabilities are no numbers.
        """
        blocks = [self._probabilities(block) for block in blocks_of(X)]
        return np.concatenate(blocks) if blocks else np.empty((0, len(self.classes_)))

    def _probabilities(self, block: np.ndarray) -> NDArray[np.float64]:
        with np.errstate(over="ignore", invalid="ignore"):
            found = softmax(self.logits(self.standardise(block)) / self.temperature_)
        if not np.isfinite(found).all():
            raise DataError(
                "expected probabilities, found values that are no numbers: the features are not "
                "finite, or too large for this head; check them, or train it again"
            )
        return found

    def predict(self, X: Any) -> NDArray[np.str_]:
        """Most probable class name of feature rows (n, …): (n,) str."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def standardise(self, block: np.ndarray) -> NDArray[np.float32]:
        """Rows (n, …) of any dtype → (n, d) float32, centred and scaled."""
        flat = block.reshape(len(block), -1).astype(np.float32)
        flat -= self.mean_
        flat /= self.scale_
        return flat

    def tensors(self) -> dict[str, np.ndarray]:
        """All learned tensors by name, as the head file stores them."""
        tensors = {"mean": self.mean_, "scale": self.scale_, **self.layers()}
        if self.temperature_ != 1.0:
            tensors["temperature"] = np.array([self.temperature_])
        return tensors

    def set_tensors(
        self, tensors: dict[str, np.ndarray], classes: Sequence[str], row_shape: tuple[int, ...]
    ) -> None:
        """Set all learned tensors and the class names, as read from a head file.

        Parameters
        ----------
        tensors : dict of str to ndarray
        classes : sequence of str
        row_shape : tuple of int
            Shape of the feature rows it was trained on.

        Raises
        ------
        DamageError
            A tensor is missing, or the shapes do not fit together.
        OwnCodeError
            The head is a network of the user's own whose code is not permitted, or does not work.
        """
        for name, tensor in tensors.items():
            if not _all_finite(tensor):
                raise DamageError(f"expected finite numbers in the tensor {name!r}, found others")
        rest = dict(tensors)
        try:
            self.mean_, self.scale_ = rest.pop("mean"), rest.pop("scale")
            (self.temperature_,) = rest.pop("temperature", np.ones(1)).tolist()
            self.classes_ = np.array(list(classes), dtype=str)
            shape = self._shape_of_logits(rest, row_shape)
        except OwnCodeError:
            raise
        except (KeyError, ValueError, IndexError) as error:
            raise DamageError(f"expected the tensors of a '{self.kind}' head: {error}") from error
        if not _LOWEST_TEMPERATURE < self.temperature_ < 1 / _LOWEST_TEMPERATURE:
            raise DamageError(f"expected a temperature above 0, found {self.temperature_}")
        if self.scale_.dtype.kind != "f" or not (self.scale_ > 0).all():
            raise DamageError(f"expected a scale above 0, found {self.scale_}")
        is_scale = self.scale_.shape in ((1,), self.mean_.shape)
        if shape != (1, len(self.classes_)) or not is_scale:
            raise DamageError(
                f"expected a head for {len(self.classes_)} classes, found {shape[-1]}"
            )

    def _shape_of_logits(
        self, layers: dict[str, np.ndarray], row_shape: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Set the layers, and see what one row comes to."""
        self.set_layers(layers)
        shape = self.logits(np.zeros((1, len(self.mean_)), np.float32)).shape
        if len(self.mean_) != int(np.prod(row_shape)):
            raise DamageError(
                f"it takes {len(self.mean_)} features, its space has {tuple(row_shape)}"
            )
        return shape

    def _learn_scale(self, X: Any) -> None:
        self.mean_, self.scale_ = mean_and_scale(X)


class MatrixHead(Head):
    """A head whose logits are an affine function of the features, however it is trained."""

    weight_: np.ndarray
    bias_: np.ndarray

    def logits(self, Z: NDArray[np.float32]) -> np.ndarray:
        """See :meth:`Head.logits`."""
        return Z @ self.weight_.T + self.bias_

    def to_module(self, row_shape: tuple[int, ...]) -> nn.Module:
        """See :meth:`Head.to_module`."""
        from featpipe.heads.as_module import on_flat_rows

        return on_flat_rows([(self.weight_, self.bias_)], self.mean_, self.scale_)

    def layers(self) -> dict[str, np.ndarray]:
        """``weight`` (classes, d) and ``bias`` (classes,)."""
        return {"weight": self.weight_, "bias": self.bias_}

    def set_layers(self, layers: dict[str, np.ndarray]) -> None:
        """See :meth:`Head.set_layers`."""
        self.weight_, self.bias_ = layers["weight"], layers["bias"]


def _all_finite(tensor: np.ndarray) -> bool:
    """Whether all numbers are finite, without a copy of a large tensor."""
    flat = tensor.reshape(-1)
    step = _BLOCK_BYTES // 4
    return all(np.isfinite(flat[at : at + step]).all() for at in range(0, len(flat), step))


def softmax(logits: np.ndarray) -> NDArray[np.float64]:
    """Rows of logits → probabilities, float64."""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum(axis=1, keepdims=True)
    return logits


def class_weights(y: NDArray[np.int64], classes: int, class_weight: str) -> NDArray[np.float64]:
    """Weight of a sample of each class, (classes,); those of the samples average 1.

    Parameters
    ----------
    y : ndarray of int64, shape (n,)
        Class indices of the training samples.
    classes : int
    class_weight : {"none", "balanced"}
        ``balanced`` is n / (number of classes with samples * samples of the class), as in
        scikit-learn; a class without samples has weight 0.
    """
    if class_weight == "none":
        return np.ones(classes)
    counts = np.bincount(y, minlength=classes)
    present = counts > 0
    weights = np.zeros(classes)
    weights[present] = len(y) / (present.sum() * counts[present])
    return weights


def blocks_of(X: Any) -> Iterator[np.ndarray]:
    """Consecutive blocks of rows that take about 64 MiB as float32."""
    width = int(np.prod(X.shape[1:]))
    step = max(1, _BLOCK_BYTES // (4 * max(width, 1)))
    for start in range(0, len(X), step):
        yield np.asarray(X[start : start + step])


def widths_of(X: Any) -> tuple[int, ...]:
    """How many features of rows (n, …) come from each tap.

    Rows of several taps side by side say so in their attribute ``widths``.
    """
    widths: tuple[int, ...] = getattr(X, "widths", (int(np.prod(X.shape[1:])),))
    return widths


def views_of(X: Any) -> tuple[Any, ...]:
    """The same rows in their other views, arrays like X; none unless its attribute ``views`` says.

    X itself is view 0.
    """
    views: tuple[Any, ...] = getattr(X, "views", ())
    return views


def columns_of(widths: Sequence[int]) -> list[slice]:
    """Which features of flat rows come from each tap, by their numbers."""
    ends = np.cumsum(widths).tolist()
    return [slice(end - width, end) for end, width in zip(ends, widths, strict=True)]


def mean_and_scale(X: Any) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean of each feature, (d,) float32, and one common scale, (1,) float32.

    The scale is the square root of the features' mean variance. Dividing each feature by its own
    standard deviation would inflate those that a ReLU almost always sets to 0: on the digits, the
    linear head's validation loss becomes twenty times as large.

    Rows of several taps side by side have a scale for each tap, repeated for each of its features,
    (d,): else features of a tap with large values would drown those of the others.
    """
    widths = widths_of(X)
    total, squares = np.zeros(sum(widths)), np.zeros(sum(widths))
    for block in blocks_of(X):
        flat = block.reshape(len(block), -1).astype(np.float64)
        total += flat.sum(axis=0)
        squares += np.einsum("ij,ij->j", flat, flat)
    return side_by_side(
        [
            mean_and_scale_of(total[columns], float(squares[columns].sum()), len(X))
            for columns in columns_of(widths)
        ]
    )


def mean_and_scale_of(
    total: NDArray[np.float64], squares: float, n: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """:func:`mean_and_scale` of one tap: from each feature's sum over n rows, (d,), and the sum of
    squares.
    """
    mean = total / n
    variance = (squares / n - float(mean @ mean)) / max(1, len(mean))
    # Constant features have a variance of 0 up to rounding errors; they are not scaled.
    scale = np.sqrt(variance) if variance * n * len(mean) > 1e-13 * squares else 1.0
    return mean.astype(np.float32), np.array([scale], np.float32)


def side_by_side(
    taps: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and scale of several taps, (d,) each; those of one tap stay as they are."""
    if len(taps) == 1:
        return taps[0]
    mean = np.concatenate([mean for mean, _ in taps])
    return mean, np.concatenate([np.repeat(scale, len(mean)) for mean, scale in taps])
