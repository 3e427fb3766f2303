"""Heads learn what can be learned, keep their best state, and repeat themselves exactly."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from support.heads import MAP_KINDS, MAP_SHAPE, ROW_KINDS, made, overlapping, separable, toy

from featpipe.base.errors import DamageError, UsageError
from featpipe.heads import base, head_class, new_head
from featpipe.heads.base import Head, History, HistoryRow, blocks_of, mean_and_scale, softmax
from featpipe.heads.logistic_path import C_GRID
from featpipe.specs.head_params import HEAD_KINDS, params_of

LIGHT_KINDS = ("linear", "mlp")
GRADIENT_KINDS = (*LIGHT_KINDS, *MAP_KINDS)
AXES = {"logistic": "C", "knn": "k"}
"""What the rows of a history are, where they are no epochs."""
FAST: dict[str, dict[str, Any]] = {
    "linear": {"learning_rate": 0.01, "batch_size": 16, "epochs": 30},
    "mlp": {"hidden": 16, "learning_rate": 0.01, "batch_size": 16, "epochs": 30},
    "logistic": {},
    "knn": {},
    **{kind: {"learning_rate": 0.003, "batch_size": 16, "epochs": 12} for kind in MAP_KINDS},
}
"""Hyper-parameters that learn a toy problem in well under a second."""


def fit(
    kind: str,
    train: tuple[Any, np.ndarray],
    val: tuple[Any, np.ndarray],
    *,
    seed: int = 0,
    **params: Any,
) -> tuple[Head, History]:
    head = made(kind, {**FAST[kind], **params})
    head.classes_ = np.array([f"class {i}" for i in range(int(train[1].max()) + 1)])
    history = head.fit(*train, *val, seed=seed, device="cpu", tick=lambda row: None)
    return head, history


def shape_of(kind: str) -> tuple[int, ...]:
    return MAP_SHAPE if kind in MAP_KINDS else (8,)


def log_loss(head: Head, X: np.ndarray, y: np.ndarray) -> float:
    return float(-np.log(head.predict_proba(X)[np.arange(len(y)), y]).mean())


@pytest.mark.parametrize("shape", [(8,), (4, 2, 3)], ids=["flat", "map"])
@pytest.mark.parametrize("dtype", ["f2", "f4"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", ROW_KINDS)
def test_every_head_learns_what_is_separable(
    kind: str, classes: int, dtype: str, shape: tuple[int, ...]
) -> None:
    head, history = fit(
        kind, toy(120, classes, shape, dtype=dtype), toy(40, classes, shape, seed=1, dtype=dtype)
    )
    X, y = toy(80, classes, shape, seed=2, dtype=dtype)
    probabilities = head.predict_proba(X)
    assert probabilities.shape == (80, classes) and probabilities.dtype == np.float64
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert (probabilities.argmax(axis=1) == y).mean() >= 0.97
    assert list(head.predict(X[:classes])) == [f"class {i}" for i in range(classes)]
    assert history.rows[history.best].val_accuracy >= 0.95


@pytest.mark.parametrize("dtype", ["u1", "f2", "f4"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("kind", MAP_KINDS)
def test_every_network_learns_what_is_separable(kind: str, classes: int, dtype: str) -> None:
    head, history = fit(
        kind,
        separable(kind, 120, classes, dtype=dtype),
        separable(kind, 40, classes, seed=1, dtype=dtype),
    )
    X, y = separable(kind, 80, classes, seed=2, dtype=dtype)
    probabilities = head.predict_proba(X)
    assert probabilities.shape == (80, classes) and probabilities.dtype == np.float64
    assert np.allclose(probabilities.sum(axis=1), 1, atol=1e-12)
    assert (probabilities.argmax(axis=1) == y).mean() >= 0.97
    assert np.array_equal(head.predict_proba(X.reshape(80, -1)), probabilities)
    assert history.rows[history.best].val_accuracy >= 0.95


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_labels_that_mean_nothing_are_not_learned(kind: str) -> None:
    # A head that scored here would have seen what it should not.
    rng = np.random.default_rng(0)
    shape = shape_of(kind)
    X, X_val = rng.normal(size=(2, 200, *shape)).astype(np.float32)
    y, y_val = rng.integers(0, 2, (2, 200))
    head, _ = fit(kind, (X, y), (X_val, y_val))
    fresh = rng.normal(size=(1000, *shape)).astype(np.float32)
    truth = rng.integers(0, 2, 1000)
    assert abs((head.predict_proba(fresh).argmax(axis=1) == truth).mean() - 0.5) < 0.06


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_history_has_every_row_that_was_ticked(kind: str) -> None:
    head = made(kind, {**FAST[kind], **({} if kind in AXES else {"epochs": 4})})
    head.classes_ = np.array(["a", "b"])
    seen: list[HistoryRow] = []
    history = head.fit(
        *overlapping(60, 0, kind), *overlapping(40, 1, kind), seed=0, device="cpu", tick=seen.append
    )
    assert seen == history.rows
    axis = AXES.get(kind, "epoch")
    assert history.axis == axis
    wanted = {"C": list(C_GRID), "k": [1, 3, 5, 10, 20, 50], "epoch": [1, 2, 3, 4]}[axis]
    assert [row.at for row in history.rows] == wanted
    for row in history.rows:
        numbers = row.as_json(axis)
        assert set(numbers) == {axis, "train_loss", "train_accuracy", "val_loss", "val_accuracy"}
        assert all(np.isfinite(value) for value in numbers.values())
        assert 0 <= row.val_accuracy <= 1 and 0 <= row.train_accuracy <= 1


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_the_state_with_the_lowest_validation_loss_is_kept(kind: str) -> None:
    # Few samples, many epochs: the validation loss falls and rises again.
    options = {"epochs": 40, "patience": 40, "learning_rate": 0.01}
    if kind in AXES:
        options = {"vote_temperature": 10.0} if kind == "knn" else {}
    if kind in MAP_KINDS:
        options |= {"learning_rate": 0.0003 if kind == "suffix" else 0.001, "epochs": 15}
    val = overlapping(200, 1, kind)
    head, history = fit(
        kind, overlapping(24 if kind in LIGHT_KINDS else 60, 0, kind), val, **options
    )
    losses = [row.val_loss for row in history.rows]
    assert history.best == int(np.argmin(losses))
    assert 0 < history.best < len(losses) - 1, "the best is at an end: nothing was tested"
    assert log_loss(head, *val) == pytest.approx(min(losses), rel=1e-5)
    right = (head.predict_proba(val[0]).argmax(axis=1) == val[1]).mean()
    assert right == pytest.approx(history.rows[history.best].val_accuracy)
    assert log_loss(head, *val) < losses[-1] * 0.999


@pytest.mark.parametrize("kind", GRADIENT_KINDS)
def test_training_stops_when_patience_runs_out(kind: str) -> None:
    X_val, y_val = separable(kind, 40, seed=1)
    # The better the head, the worse it does on swapped labels: the first epoch is the best.
    _, history = fit(kind, separable(kind, 80), (X_val, 1 - y_val), epochs=50, patience=3)
    assert history.best == 0
    assert len(history.rows) == 4


@pytest.mark.parametrize("kind", GRADIENT_KINDS)
def test_training_goes_on_while_validation_improves(kind: str) -> None:
    options = {"epochs": 12, "patience": 1, "learning_rate": 1e-3, "batch_size": 80}
    rest = {"dropout": 0.0} if "dropout" in params_of(kind).option_names() else {}
    if kind in MAP_KINDS:
        options["learning_rate"] = 1e-4
    _, history = fit(kind, separable(kind, 80), separable(kind, 40, seed=1), **options, **rest)
    assert len(history.rows) == 12
    assert history.best == 11


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_one_seed_gives_one_head(kind: str) -> None:
    train, val = overlapping(60, 0, kind), overlapping(40, 1, kind)
    first, first_history = fit(kind, train, val, seed=7)
    # What happens elsewhere in the process must not matter.
    torch.manual_seed(12345)
    np.random.seed(12345)
    again, again_history = fit(kind, train, val, seed=7)
    assert first_history == again_history
    for name, tensor in first.tensors().items():
        assert tensor.tobytes() == again.tensors()[name].tobytes(), name


@pytest.mark.parametrize("kind", GRADIENT_KINDS)
def test_another_seed_gives_another_head(kind: str) -> None:
    train, val = overlapping(60, 0, kind), overlapping(40, 1, kind)
    (first, _), (other, _) = fit(kind, train, val, seed=7), fit(kind, train, val, seed=8)
    differing = [n for n in first.layers() if (first.layers()[n] != other.layers()[n]).any()]
    assert differing == list(first.layers())


@pytest.mark.parametrize("kind", GRADIENT_KINDS)
def test_training_leaves_the_random_state_of_others_alone(kind: str) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    fit(kind, separable(kind, 40), separable(kind, 20, seed=1), epochs=2)
    assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize("kind", [kind for kind in ROW_KINDS if kind != "knn"])
def test_standardisation_is_learned_from_train_alone(kind: str) -> None:
    train = overlapping(60, 0)
    X_val, y_val = overlapping(40, 1)
    here, _ = fit(kind, train, (X_val, y_val))
    elsewhere, _ = fit(kind, train, (100 + 50 * X_val, y_val))
    assert np.array_equal(here.mean_, elsewhere.mean_)
    assert np.array_equal(here.scale_, elsewhere.scale_)
    assert np.allclose(here.mean_, train[0].mean(axis=0), atol=1e-6)
    assert here.scale_[0] == pytest.approx(np.sqrt(train[0].var(axis=0).mean()), rel=1e-6)
    moved, _ = fit(kind, (train[0] + 5, train[1]), (X_val, y_val))
    assert not np.allclose(moved.mean_, here.mean_)


def test_a_suffix_takes_rows_as_they_are() -> None:
    train = overlapping(60, 0, "suffix")
    head, _ = fit("suffix", (train[0] + 7, train[1]), overlapping(40, 1, "suffix"), epochs=1)
    assert not head.mean_.any() and head.scale_.tolist() == [1]
    assert np.array_equal(head.standardise(train[0]), train[0])


@pytest.mark.parametrize("kind", [kind for kind in MAP_KINDS if kind != "suffix"])
def test_maps_have_a_mean_for_each_channel(kind: str) -> None:
    train, (X_val, y_val) = overlapping(60, 0, kind), overlapping(40, 1, kind)
    train[0][:, 1] += 7
    head, _ = fit(kind, train, (100 + 50 * X_val, y_val), epochs=1)
    means = train[0].mean(axis=(0, 2, 3), dtype=np.float64)
    assert np.allclose(head.mean_, means, atol=1e-6)
    spread = np.sqrt(((train[0] - means[:, None, None]) ** 2).mean())
    assert head.scale_ == pytest.approx([spread], rel=1e-5)
    standardised = head.standardise(train[0])
    assert standardised.mean() == pytest.approx(0, abs=1e-5)
    assert standardised.std() == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("kind", LIGHT_KINDS)
def test_probabilities_are_the_torch_modules_own(kind: str) -> None:
    shape = (4, 2, 3)
    head, _ = fit(kind, toy(80, 3, shape, dtype="f2"), toy(40, 3, shape, seed=1, dtype="f2"))
    X, _ = toy(50, 3, shape, seed=2, dtype="f2")
    layers = {name: torch.from_numpy(layer) for name, layer in head.layers().items()}
    first, last = torch.nn.Linear(24, 16), torch.nn.Linear(24 if kind == "linear" else 16, 3)
    if kind == "linear":
        module, names = torch.nn.Sequential(last), {"": "0."}
    else:
        module = torch.nn.Sequential(first, torch.nn.ReLU(), torch.nn.Dropout(0.5), last)
        names = {"hidden.": "0.", "output.": "3."}
    module.load_state_dict(
        {inner + part: layers[outer + part] for outer, inner in names.items()
         for part in ("weight", "bias")}
    )  # fmt: skip
    flat = torch.from_numpy(X).flatten(1).float()
    Z = (flat - torch.from_numpy(head.mean_)) / torch.from_numpy(head.scale_)
    with torch.inference_mode():
        expected = module.eval()(Z).double().softmax(dim=1).numpy()
    assert np.allclose(head.predict_proba(X), expected, rtol=1e-5, atol=1e-7)
    assert expected.std() > 0.1


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_head_as_a_module_gives_its_probabilities_from_raw_rows(kind: str) -> None:
    X, y = overlapping(60, 3, kind)
    head, _ = fit(kind, (X[:40] + 5, y[:40]), (X[40:] + 5, y[40:]))
    with torch.no_grad():
        logits = head.to_module(X.shape[1:])(torch.from_numpy(X[40:] + 5))
    expected = head.predict_proba(X[40:] + 5)
    np.testing.assert_allclose(softmax(logits.numpy()), expected, atol=1e-5)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_features_that_never_change_are_survived(kind: str) -> None:
    shape = MAP_SHAPE if kind in MAP_KINDS else (5,)
    X, y = np.full((20, *shape), 3.0, np.float16), np.arange(20) % 2
    head, _ = fit(kind, (X, y), (X, y))
    assert head.scale_.tolist() == [1.0]
    assert np.allclose(head.predict_proba(X), 0.5, atol=0.2)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_no_rows_have_no_probabilities(kind: str) -> None:
    head, _ = fit(kind, separable(kind, 40, 3), separable(kind, 20, 3, seed=1))
    assert head.predict_proba(np.empty((0, *shape_of(kind)), np.float16)).shape == (0, 3)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_rows_are_scored_alike_in_any_block(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, _ = fit(kind, separable(kind, 40, 3), separable(kind, 20, 3, seed=1))
    X, _ = separable(kind, 30, 3, seed=2)
    whole = head.predict_proba(X)
    monkeypatch.setattr(base, "_BLOCK_BYTES", 7 * X[0].nbytes)
    assert [len(block) for block in blocks_of(X)] == [7, 7, 7, 7, 2]
    # A convolution of another number of rows may add in another order.
    assert np.allclose(head.predict_proba(X), whole, rtol=1e-4 if kind in MAP_KINDS else 1e-6)
    mean, scale = mean_and_scale(X)
    assert np.allclose(mean, X.mean(axis=0).reshape(-1)) and scale[0] == pytest.approx(
        np.sqrt(X.var(axis=0).mean())
    )


def test_a_row_wider_than_a_block_is_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_BLOCK_BYTES", 16)
    assert [block.shape for block in blocks_of(np.zeros((3, 2, 5)))] == [(1, 2, 5)] * 3


@given(
    arrays.arrays(np.float32, (5, 3), elements=st.floats(-1e4, 1e4, width=32)),
    st.floats(-1e4, 1e4),
)
@settings(max_examples=60, deadline=None)
def test_softmax_is_torchs_and_ignores_a_common_shift(logits: np.ndarray, shift: float) -> None:
    wide = logits.astype(np.float64)
    expected = torch.from_numpy(wide).softmax(dim=1).numpy()
    assert np.allclose(softmax(logits), expected, atol=1e-12)
    assert np.allclose(softmax(wide + shift), expected, atol=1e-6)


def test_softmax_leaves_its_argument_alone() -> None:
    logits = np.array([[1.0, 2.0]])
    softmax(logits)
    assert logits.tolist() == [[1.0, 2.0]]


def test_a_head_of_no_known_kind_is_refused() -> None:
    with pytest.raises(
        UsageError, match=r"expected a head of linear, mlp, logistic, knn, lenet, .*, found 'svm'"
    ):
        head_class("svm")


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_hyper_parameter_of_another_head_is_refused(kind: str) -> None:
    foreign = "C" if kind != "logistic" else "hidden"
    with pytest.raises(UsageError, match=f"hyper-parameters of '{kind}' .*, found '{foreign}'"):
        new_head(kind, {foreign: 1})


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, field.name)
        for kind in HEAD_KINDS
        for field in dataclasses.fields(head_class(kind))  # type: ignore[arg-type]
        if field.name in ("learning_rate", "C", "vote_temperature")
    ],
)
def test_hyper_parameters_must_be_above_zero(kind: str, name: str, value: float) -> None:
    option = name.replace("_", "-")
    with pytest.raises(UsageError, match=f"expected --{option} above 0, found {value}"):
        new_head(kind, {name: value})


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (kind, field.name)
        for kind in HEAD_KINDS
        for field in dataclasses.fields(head_class(kind))  # type: ignore[arg-type]
        if field.name
        not in (
            *("dropout", "weight_decay", "learning_rate", "C"),
            *("class_weight", "vote_temperature", "solver"),
            *("optimizer", "momentum", "init", "schedule", "compute"),
            *("top", "backbone_rate_factor"),
        )
    ],
)
def test_counts_must_be_at_least_one(kind: str, name: str, value: float) -> None:
    with pytest.raises(UsageError) as caught:
        new_head(kind, {name: value})
    option, found = name.replace("_", "-"), str(caught.value)
    assert re.search(f"(whole number for --{option}|--{option} of .*[12].*), found {value}$", found)


@pytest.mark.parametrize("value", [-0.1, 1.0, 7, float("nan")])
def test_dropout_is_a_share_below_one(value: float) -> None:
    with pytest.raises(UsageError, match=r"expected --dropout of 0 to below 1, found"):
        new_head("mlp", {"dropout": value})
    assert new_head("mlp", {"dropout": 0}).params["dropout"] == 0


@pytest.mark.parametrize("kind", GRADIENT_KINDS)
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weight_decay_is_not_negative(kind: str, value: float) -> None:
    with pytest.raises(UsageError, match="weight-decay"):
        new_head(kind, {"weight_decay": value})


@pytest.mark.parametrize(
    ("kind", "name", "value"),
    [
        ("linear", "batch_size", 1.5),
        ("linear", "epochs", 2.5),
        ("linear", "epochs", "3"),
        ("linear", "learning_rate", None),
        ("lenet", "optimizer", "adam"),
        ("lenet", "init", "zero"),
        ("lenet", "momentum", 1.0),
        ("lenet", "schedule", "linear"),
        ("lenet", "compute", "fp16"),
        ("mlp", "hidden", 2.5),
        ("mlp", "dropout", "half"),
        ("logistic", "C", "large"),
        ("logistic", "max_iter", 1.5),
        ("knn", "k", 1.5),
        ("knn", "vote_temperature", "warm"),
    ],
)
def test_hyper_parameters_of_the_wrong_type_are_refused(kind: str, name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name.replace("_", "-")):
        fit(kind, toy(20), toy(20), **{name: value})


def test_a_weight_decay_of_zero_is_fine() -> None:
    head, _ = fit("linear", toy(40), toy(20, seed=1), weight_decay=0.0, epochs=2)
    assert head.params["weight_decay"] == 0.0


def test_weight_decay_makes_weights_smaller() -> None:
    norms = [
        float(
            np.abs(
                fit("linear", toy(40), toy(20, seed=1), weight_decay=decay)[0].layers()["weight"]
            ).sum()
        )
        for decay in (0.0, 30.0)
    ]
    assert norms[1] < 0.5 * norms[0]


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_head_becomes_another_through_its_tensors(kind: str) -> None:
    head, _ = fit(kind, separable(kind, 40, 3), separable(kind, 20, 3, seed=1))
    other = made(kind, head.params)
    other.set_tensors(head.tensors(), head.classes_.tolist(), shape_of(kind))
    X, _ = separable(kind, 10, 3, seed=2)
    assert np.array_equal(other.predict_proba(X), head.predict_proba(X))
    assert np.array_equal(other.predict(X), head.predict(X))


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_tensors_that_do_not_fit_are_damage(kind: str) -> None:
    head, _ = fit(kind, separable(kind, 40, 3), separable(kind, 20, 3, seed=1))
    tensors, classes, shape = head.tensors(), head.classes_.tolist(), shape_of(kind)
    for name in tensors:
        without = {key: value for key, value in tensors.items() if key != name}
        with pytest.raises(DamageError, match=f"'{kind}' head: '{name}'"):
            made(kind, {}).set_tensors(without, classes, shape)
    with pytest.raises(
        DamageError, match=r"expected a head for 2 classes, found 3|(output|last)\.weight"
    ):
        made(kind, {}).set_tensors(tensors, classes[:2], shape)
    with pytest.raises(DamageError):
        made(kind, {}).set_tensors({**tensors, "mean": tensors["mean"][:-1]}, classes, shape)
    with pytest.raises(DamageError):
        scales = np.ones(7, np.float32)
        made(kind, {}).set_tensors({**tensors, "scale": scales}, classes, shape)
    for other in ((9,), (3, *MAP_SHAPE[1:]), (2, 40, 40)):
        with pytest.raises(DamageError):
            made(kind, {}).set_tensors(tensors, classes, other)


def test_a_tensor_of_too_few_axes_is_damage() -> None:
    head, _ = fit("linear", toy(40, 3), toy(20, 3, seed=1))
    tensors = {**head.tensors(), "weight": head.layers()["weight"][0]}
    with pytest.raises(DamageError):
        new_head("linear", {}).set_tensors(tensors, head.classes_.tolist(), (8,))
