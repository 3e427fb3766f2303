"""Which head to try next: rules on measured facts, each with its threshold and where that is from.

The four cases of the transfer-learning courses (CS231n; Keras' guide to transfer learning) are
little or much data times similar or different content. Here both are measured: the learning curve
says whether data is little, the taps whether content is similar.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from featpipe.advising.documents import (
    AdviceDocument,
    AgainstDocument,
    FactsDocument,
    GapFact,
    TapFact,
    Try,
    advice,
    against,
    deciding,
    half_proved,
)
from featpipe.advising.findings import FEWEST_PROVABLE

CEILING = 0.99
"""Where the 95 % interval of the best linear head reaches this, there is nothing to gain that these
validation pictures could show. Cats and dogs on VGG16 end there (docs/guide.md)."""
SUFFIX_PER_CLASS = 20
"""Training pictures of the median class from which on a suffix is advised. It was measured to win
with 80 per class of the sample flowers; below a few dozen, fixed features are the usual advice
(CS231n: little data, a linear classifier)."""
OVERFIT_GAP = 0.05
"""Training accuracy above validation accuracy from which on a head counts as overfitted."""
UNDERFIT = 0.99
"""Training accuracy below which a linear head leaves something that a hidden layer could fit."""
UNEQUAL = 10.0
"""Largest by smallest class from which on accuracy says little of the small classes."""
COARSEST = 0.1
"""Smallest provable difference beyond which features are not called useless: 60 pictures."""
SCRATCH_PER_CLASS = 5000
"""Pictures per class with which supervised networks reach acceptable performance from scratch
(Goodfellow, Bengio, Courville 2016, section 1.2.3)."""


@dataclass(frozen=True)
class Verdict:
    """What a rule says.

    Attributes
    ----------
    is_advised : bool
    why : str
        One sentence with the numbers that it is tied to.
    """

    is_advised: bool
    why: str


Rule = Callable[[FactsDocument, TapFact, GapFact], Verdict | None]
"""Facts, the best rows and their gap → a verdict; None where there is nothing to say."""


def judge(
    facts: FactsDocument, commands: Callable[[Try], list[str]]
) -> tuple[list[AdviceDocument], list[AgainstDocument]]:
    """What to try next, the most promising first, and what not to try now.

    Parameters
    ----------
    facts : FactsDocument
    commands : callable
        Gives the commands to copy of an advice; it is asked for those that are advised alone.
    """
    best, gap = best_tap(facts), facts["gap"]
    if best is None or gap is None:
        why = "only pixels are cached: frozen features of a pretrained network come first"
        return [advice("extract", why, commands("extract"))], []
    advised, not_advised = [], []
    for what, rule in RULES:
        verdict = rule(facts, best, gap)
        if verdict is None:
            continue
        if verdict.is_advised:
            advised.append(advice(what, verdict.why, commands(what)))
        else:
            not_advised.append(against(what, verdict.why))
    return advised, not_advised


def best_tap(facts: FactsDocument) -> TapFact | None:
    """The rows of a network whose linear head has the lowest validation loss."""
    return min(facts["taps"], key=lambda tap: tap["val_log_loss"], default=None)


def advises_suffix(facts: FactsDocument) -> bool:
    """Whether a suffix is advised: views are then views of its maps."""
    best, gap = best_tap(facts), facts["gap"]
    return best is not None and gap is not None and suffix(facts, best, gap).is_advised


def is_at_ceiling(facts: FactsDocument, best: TapFact) -> bool:
    """Whether the best linear head may be as good as any head can be.

    One that is no better than the largest class is not, however large that is.
    """
    low, high = best["val_accuracy_ci95"]
    return high >= CEILING and low > facts["baseline_accuracy"]


def _ceiling(best: TapFact, gap: GapFact) -> str:
    low, high = best["val_accuracy_ci95"]
    return (
        f"the linear head on {best['tap']} has {best['val_accuracy']:.1%} of validation right "
        f"({low:.1%} to {high:.1%}, {_count(gap['mistakes'], 'mistake')}): what is left to gain "
        "is too little for these pictures to show"
    )


def linear(facts: FactsDocument, best: TapFact, gap: GapFact) -> Verdict:
    """The best of the measured heads, to begin with and to compare others with."""
    low, high = best["val_accuracy_ci95"]
    why = (
        f"the best of {_count(len(facts['taps']), 'linear head')} is on {best['tap']} "
        f"({_ROWS[best['rows']]}): {best['val_accuracy']:.1%} of validation right "
        f"({low:.1%} to {high:.1%}; the largest class: {facts['baseline_accuracy']:.1%})"
    )
    ratio = facts["class_sizes"]["imbalance_ratio"]
    if ratio >= UNEQUAL:
        why += (
            f"; the largest class has {ratio:.1f} times the pictures of the smallest: if small "
            "ones matter as much, add --class-weight balanced"
        )
    return Verdict(True, why)


def taps(facts: FactsDocument, best: TapFact, gap: GapFact) -> Verdict | None:
    """One tap alone cannot tell similar from different content."""
    if facts["content"] != "unknown" or is_at_ceiling(facts, best):
        return None
    return Verdict(
        True,
        f"only {best['tap']} is cached: an earlier tap beside it says whether these pictures are "
        "like those that the network was trained on",
    )


def suffix(facts: FactsDocument, best: TapFact, gap: GapFact) -> Verdict:
    """Retrain the end of the network, where there is something to gain and data to do it with."""
    if is_at_ceiling(facts, best):
        return Verdict(False, _ceiling(best, gap))
    median = facts["class_sizes"]["median"]
    if median < SUFFIX_PER_CLASS:
        return Verdict(
            False,
            f"the median class has {_count(median, 'training picture')}, fewer than "
            f"{SUFFIX_PER_CLASS}: too few to retrain layers of the network",
        )
    passes = facts["suffix_passes"]
    cost = f"; it takes about as much as extracting {passes:g} times" if passes else ""
    return Verdict(
        True,
        f"{_content_words(facts)}, {gap['val_accuracy']:.1%} leaves "
        f"{_count(gap['mistakes'], 'mistake')}, and {_count(median, 'training picture')} in the "
        f"median class can retrain the layers behind the map{cost}; to be worth it, it must beat "
        f"the {best['val_accuracy']:.1%} of advice 1",
    )


def views(facts: FactsDocument, best: TapFact, gap: GapFact) -> Verdict:
    """More training pictures out of those that are there, where a head overfits."""
    if is_at_ceiling(facts, best):
        return Verdict(False, _ceiling(best, gap))
    numbers = (
        f"training {gap['train_accuracy']:.1%} against validation {gap['val_accuracy']:.1%} is a "
        f"gap of {100 * gap['gap']:.1f} points"
    )
    if gap["gap"] < OVERFIT_GAP:
        return Verdict(False, f"{numbers}, below {100 * OVERFIT_GAP:g}: the head overfits little")
    cached = facts["cached_views"]
    have = f" ({_count(cached, 'view')} cached already)" if cached else ""
    return Verdict(
        True,
        f"{numbers}: the head overfits, and augmented views{have} are more pictures to train on"
        + ("; train the suffix again, now on views" if advises_suffix(facts) else ""),
    )


def mlp(facts: FactsDocument, best: TapFact, gap: GapFact) -> Verdict:
    """A hidden layer, where a plane cannot even separate the training pictures."""
    if is_at_ceiling(facts, best):
        return Verdict(False, _ceiling(best, gap))
    fitted = f"the linear head has {gap['train_accuracy']:.1%} of its training pictures right"
    if gap["train_accuracy"] < UNDERFIT:
        return Verdict(True, f"{fitted}, below {UNDERFIT:.0%}: a hidden layer can fit the others")
    return Verdict(False, f"{fitted}: a hidden layer has nothing left to fit")


def pictures(facts: FactsDocument, best: TapFact, gap: GapFact) -> Verdict | None:
    """More data, where the learning curve still rises."""
    gain = facts["doubling_gain"]
    if gain is None:
        return None
    low, high = gain["log_loss_ci95"]
    numbers = (
        f"the second half of train brought {100 * gain['accuracy']:+.1f} points and "
        f"{gain['log_loss']:+.3f} in log-loss ({low:+.3f} to {high:+.3f})"
    )
    if facts["data"] == "enough":
        return Verdict(False, f"{numbers}, less than one point: the learning curve is flat")
    if is_at_ceiling(facts, best):
        return Verdict(False, _ceiling(best, gap))
    if facts["data"] == "undecided":
        return Verdict(False, f"{numbers}: not beyond chance")
    return Verdict(True, f"{numbers}: the learning curve still rises, so more pictures help")


def scratch(facts: FactsDocument, best: TapFact, gap: GapFact) -> Verdict:
    """A small network on the pixels, where pretraining has nothing to give."""
    baseline, low = facts["baseline_accuracy"], best["val_accuracy_ci95"][0]
    # Few pictures, or very unequal classes, never put an interval above the baseline.
    can_tell = (
        facts["smallest_provable_difference"] <= COARSEST
        and facts["class_sizes"]["imbalance_ratio"] < UNEQUAL
    )
    if low <= baseline and can_tell:
        return Verdict(
            True,
            f"no cached features are better than the largest class ({baseline:.1%}) beyond chance: "
            f"the best has {best['val_accuracy']:.1%} (from {low:.1%}), so what the network "
            "learned may not help",
        )
    median = facts["class_sizes"]["median"]
    numbers = f"{_count(median, 'training picture')} in the median class"
    if median >= SCRATCH_PER_CLASS and not is_at_ceiling(facts, best):
        return Verdict(True, f"{numbers} are enough to train a network from nothing")
    if median >= SCRATCH_PER_CLASS:
        return Verdict(False, _ceiling(best, gap))
    return Verdict(
        False, f"{numbers} are too few to train from nothing (from {SCRATCH_PER_CLASS} on)"
    )


RULES: tuple[tuple[Try, Rule], ...] = (
    ("linear", linear),
    ("taps", taps),
    ("suffix", suffix),
    ("views", views),
    ("mlp", mlp),
    ("pictures", pictures),
    ("scratch", scratch),
)
"""In the order in which they are worth trying: each costs more than the last, or gains less."""

_ROWS = {
    "stored": "as stored",
    "mean over places": "mean over places",
    "flattened": "whole map",
}


def _content_words(facts: FactsDocument) -> str:
    """What the taps say of the content, with the numbers of the best earlier one."""
    if facts["content"] == "unknown":
        return "one tap alone does not say how similar the content is"
    one = deciding(facts["tap_comparisons"])
    numbers = (
        f"{one['deepest']} against {one['earlier']}: {100 * one['accuracy_difference']:+.1f} "
        f"points, log-loss {one['log_loss_difference']:+.3f}"
    )
    half = half_proved(one)
    if half and facts["content"] == "undecided":
        return f"of the deepest tap and an earlier one {half}: undecided ({numbers})"
    said = {
        "similar": "the deepest tap is the best, as where content is similar",
        "different": "an earlier tap is better than the deepest, as where content is different",
        "undecided": "the deepest tap and an earlier one are not told apart beyond chance",
    }[facts["content"]]
    return f"{said} ({numbers}{'; ' if half else ''}{half})"


def provable(facts: FactsDocument) -> str:
    """Which differences these validation pictures cannot show."""
    return (
        f"differences below {100 * facts['smallest_provable_difference']:.1f} points "
        f"({FEWEST_PROVABLE} of {facts['measured_on']['val']} validation pictures) mean nothing"
    )


def _count(number: float, noun: str) -> str:
    return f"{number:g} {noun}{'' if number == 1 else 's'}"
