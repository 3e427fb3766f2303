"""Rules read facts alone; each fires on its side of its threshold, and names the numbers."""

from __future__ import annotations

from typing import Any

import pytest

from featpipe.advising import rules
from featpipe.advising.documents import FactsDocument


def tap(name: str, accuracy: float, **changes: Any) -> Any:
    found = {
        "space": "ab" * 32,
        "backbone": "vgg16",
        "size": 224,
        "tap": name,
        "pool": "avg",
        "rows": "stored",
        "numbers": 512,
        "depth": 0,
        "C": 0.1,
        "train_accuracy": 1.0,
        "val_accuracy": accuracy,
        "val_accuracy_ci95": [accuracy - 0.05, accuracy + 0.05],
        "val_log_loss": 1 - accuracy,
        "seconds": 0.1,
    }
    return {**found, **changes}


def comparison(accuracy: float, loss: float) -> Any:
    return {
        "deepest": "block5_pool",
        "earlier": "block4_pool",
        "accuracy_difference": accuracy,
        "only_deepest_right": 8,
        "only_earlier_right": 17,
        "p_value": 0.1,
        "log_loss_difference": loss,
        "log_loss_difference_ci95": [loss - 0.01, loss + 0.01],
    }


def facts(**changes: Any) -> FactsDocument:
    """Flowers as they were measured: little data, different content, overfitted."""
    found: Any = {
        "pictures": {},
        "classes": [],
        "class_sizes": {"smallest": 80, "median": 80.0, "largest": 80, "imbalance_ratio": 1.0},
        "baseline_accuracy": 0.2,
        "measured_on": {"train": 400, "val": 200},
        "smallest_provable_difference": 0.03,
        "taps": [tap("block4_pool", 0.86), tap("block5_pool", 0.815)],
        "tap_comparisons": [comparison(-0.045, 0.08)],
        "content": "different",
        "gap": {
            "tap": "block4_pool",
            "rows": "stored",
            "train_accuracy": 1.0,
            "val_accuracy": 0.86,
            "gap": 0.14,
            "mistakes": 28,
        },
        "learning_curve": [],
        "doubling_gain": {
            "accuracy": 0.017,
            "accuracy_ci95": [-0.015, 0.049],
            "log_loss": -0.103,
            "log_loss_ci95": [-0.155, -0.051],
        },
        "data": "little",
        "cached_views": 0,
        "suffix_passes": 3.0,
        "notes": [],
    }
    return {**found, **changes}


def judged(**changes: Any) -> tuple[dict[str, str], dict[str, str]]:
    """Why each is advised, and why each is not."""
    advised, against = rules.judge(facts(**changes), lambda what: [f"command of {what}"])
    assert all(one["commands"] == [f"command of {one['try']}"] for one in advised)
    return {a["try"]: a["why"] for a in advised}, {a["try"]: a["why"] for a in against}


def gap(train: float, val: float, mistakes: int = 28) -> Any:
    return {
        "tap": "block4_pool",
        "rows": "stored",
        "train_accuracy": train,
        "val_accuracy": val,
        "gap": train - val,
        "mistakes": mistakes,
    }


def disputed(p_value: float, loss: float, half_width: float) -> Any:
    low_high = [loss - half_width, loss + half_width]
    return comparison(-0.187, loss) | {"p_value": p_value, "log_loss_difference_ci95": low_high}


def test_what_differs_by_one_measure_alone_is_never_called_equal() -> None:
    one = disputed(0.0013, 0.208, 0.26)
    why = judged(tap_comparisons=[one], content="undecided")[0]["suffix"]
    assert "accuracy differs beyond chance, log-loss does not: undecided (block5_pool" in why
    one = disputed(0.1, 0.208, 0.1)
    why = judged(tap_comparisons=[one], content="different")[0]["suffix"]
    assert "log-loss +0.208; log-loss differs beyond chance, accuracy does not)" in why
    one = disputed(0.1, 0.208, 0.26)
    why = judged(tap_comparisons=[one], content="undecided")[0]["suffix"]
    assert "an earlier one are not told apart beyond chance (block5_pool against" in why


def test_little_overfitted_data_of_other_content() -> None:
    advised, against = judged()
    assert list(advised) == ["linear", "suffix", "views", "pictures"]
    assert "block4_pool (as stored): 86.0% of validation right (81.0% to 91.0%" in advised["linear"]
    assert "-4.5 points, log-loss +0.080" in advised["suffix"]
    assert advised["suffix"].endswith(
        "; it takes about as much as extracting 3 times; to be worth it, it must beat the 86.0% of "
        "advice 1"
    )
    assert advised["views"].endswith("; train the suffix again, now on views")
    assert "28 mistakes" in advised["suffix"] and "80 training pictures" in advised["suffix"]
    assert "100.0% against validation 86.0% is a gap of 14.0 points" in advised["views"]
    assert "+1.7 points and -0.103 in log-loss" in advised["pictures"]
    assert set(against) == {"mlp", "scratch"}
    assert "80 training pictures in the median class" in against["scratch"]


def test_where_nothing_can_be_gained_only_the_linear_head_is_advised() -> None:
    best = tap("block5_pool", 0.98, val_accuracy_ci95=[0.964, 0.993])
    advised, against = judged(
        taps=[tap("block4_pool", 0.967), best], gap=gap(1.0, 0.98, 6), content="similar"
    )
    assert list(advised) == ["linear"]
    assert set(against) == {"suffix", "views", "mlp", "pictures", "scratch"}
    assert "98.0% of validation right (96.4% to 99.3%, 6 mistakes)" in against["suffix"]


@pytest.mark.parametrize(("median", "is_advised"), [(19, False), (20, True)])
def test_a_suffix_needs_pictures(median: float, is_advised: bool) -> None:
    sizes = {"smallest": 1, "median": median, "largest": 99, "imbalance_ratio": 99.0}
    advised, against = judged(class_sizes=sizes)
    assert ("suffix" in advised) == is_advised
    assert f"{median} training pictures" in (advised | against)["suffix"]


@pytest.mark.parametrize(("val", "is_advised"), [(0.94, True), (0.96, False)])
def test_views_are_for_heads_that_overfit(val: float, is_advised: bool) -> None:
    advised, _ = judged(
        gap=gap(1.0, val), taps=[tap("block4_pool", val, val_accuracy_ci95=[0, 0.98])]
    )
    assert ("views" in advised) == is_advised


def test_views_that_are_cached_are_named() -> None:
    assert "(4 views cached already)" in judged(cached_views=4)[0]["views"]


@pytest.mark.parametrize(("train", "is_advised"), [(0.98, True), (0.99, False)])
def test_a_hidden_layer_is_for_heads_that_do_not_fit(train: float, is_advised: bool) -> None:
    assert ("mlp" in judged(gap=gap(train, 0.86))[0]) == is_advised


@pytest.mark.parametrize(
    ("data", "gain", "words"),
    [
        ("enough", 0.002, "less than one point"),
        ("undecided", 0.02, "not beyond chance"),
    ],
)
def test_more_pictures_are_for_curves_that_rise(data: str, gain: float, words: str) -> None:
    found = {
        "accuracy": gain,
        "accuracy_ci95": [-0.01, 0.02],
        "log_loss": -0.01,
        "log_loss_ci95": [-0.03, 0.01],
    }
    advised, against = judged(data=data, doubling_gain=found)
    assert "pictures" not in advised and words in against["pictures"]


def test_without_a_learning_curve_nothing_is_said_of_more_pictures() -> None:
    advised, against = judged(data="unknown", doubling_gain=None)
    assert "pictures" not in advised | against


def test_scratch_is_for_features_that_say_nothing_and_for_very_much_data() -> None:
    nothing = tap("block4_pool", 0.22, val_accuracy_ci95=[0.17, 0.28])
    why = judged(taps=[nothing], gap=gap(0.3, 0.22, 156))[0]["scratch"]
    assert "the largest class (20.0%)" in why and "22.0% (from 17.0%)" in why
    sizes = {"smallest": 1, "median": 5000.0, "largest": 9999, "imbalance_ratio": 1.0}
    assert "5000 training pictures" in judged(class_sizes=sizes)[0]["scratch"]
    done = tap("block4_pool", 0.99)
    assert "scratch" in judged(class_sizes=sizes, taps=[done], gap=gap(1, 0.99, 2))[1]


def test_few_pictures_or_unequal_classes_do_not_make_features_useless() -> None:
    nothing = {"taps": [tap("block4_pool", 0.22, val_accuracy_ci95=[0.17, 0.28])]}
    assert "scratch" in judged(**nothing)[0]
    assert "scratch" in judged(**nothing, smallest_provable_difference=0.2)[1]
    sizes = {"smallest": 8, "median": 80.0, "largest": 80, "imbalance_ratio": 10.0}
    assert "scratch" in judged(**nothing, class_sizes=sizes)[1]


def test_a_head_that_answers_the_largest_class_alone_is_at_no_ceiling() -> None:
    sizes = {"smallest": 80, "median": 80.0, "largest": 8000, "imbalance_ratio": 100.0}
    advised, _ = judged(
        taps=[tap("block4_pool", 0.99, val_accuracy_ci95=[0.985, 0.995])],
        gap=gap(1.0, 0.99, 2),
        baseline_accuracy=0.99,
        class_sizes=sizes,
    )
    assert "suffix" in advised
    assert "100.0 times the pictures" in advised["linear"]
    assert "--class-weight balanced" in advised["linear"]


def test_one_tap_alone_asks_for_another() -> None:
    advised, _ = judged(
        taps=[tap("block5_pool", 0.8)], tap_comparisons=[], content="unknown", gap=gap(1, 0.8)
    )
    assert list(advised)[:3] == ["linear", "taps", "suffix"]
    assert "only block5_pool is cached" in advised["taps"]
    assert "one tap alone does not say" in advised["suffix"]


@pytest.mark.parametrize("content", ["similar", "different", "undecided"])
def test_the_suffix_says_what_the_taps_say(content: str) -> None:
    assert "block5_pool against block4_pool" in judged(content=content)[0]["suffix"]


def test_pixels_alone_ask_for_features() -> None:
    advised, against = judged(taps=[], gap=None, tap_comparisons=[], content="unknown")
    assert list(advised) == ["extract"] and not against
    assert not rules.advises_suffix(facts(taps=[], gap=None))
