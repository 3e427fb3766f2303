"""``linear`` with balanced class weights gives up no large class for a small one."""

from __future__ import annotations

import numpy as np
import pytest

from featpipe.heads import new_head
from featpipe.heads.base import Head


def unequal(rng: np.random.Generator, counts: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Rows that vary along a few axes, among them one for each class."""
    y = np.repeat(np.arange(len(counts)), counts)
    latent = rng.normal(size=(len(y), 10))
    latent[np.arange(len(y)), y] += 5
    axes = np.random.default_rng(9).normal(size=(10, 2000))
    return (latent @ axes).astype(np.float16), y


def trained(counts: list[int], class_weight: str) -> Head:
    rng = np.random.default_rng(0)
    head = new_head("linear", {"class_weight": class_weight})
    head.classes_ = np.arange(len(counts)).astype(str)
    few = [max(5, n // 4) for n in counts]
    data = (*unequal(rng, counts), *unequal(rng, few))
    head.fit(*data, seed=0, device="cpu", tick=lambda row: None)
    return head


@pytest.mark.parametrize("counts", [[400, 20], [300, 20, 20]])
def test_a_balanced_head_keeps_the_large_class(counts: list[int]) -> None:
    head = trained(counts, "balanced")
    X, y = unequal(np.random.default_rng(1), [200] * len(counts))
    right = head.predict(X) == y.astype(str)
    recalls = [float(right[y == label].mean()) for label in range(len(counts))]
    assert min(recalls) > 0.9


def test_equal_classes_are_trained_alike_with_and_without_weights() -> None:
    none, balanced = (trained([60, 60], name) for name in ("none", "balanced"))
    for name, tensor in none.layers().items():
        assert tensor.tobytes() == balanced.layers()[name].tobytes()
