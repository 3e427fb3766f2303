"""The card of an exported network: what it is, how good it is, how to feed it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from featpipe._version import __version__
from featpipe.base.joined_spaces import joined_poolings, joined_taps
from featpipe.base.preprocessing import MAX_ASPECT, short_side
from featpipe.base.space import FeatureSpace, Preprocessing
from featpipe.base.text import escape
from featpipe.base.views import counted_views, views_in, views_words
from featpipe.exports.comparison import MADE_UP
from featpipe.exports.documents import CheckDocument
from featpipe.exports.snippet import snippet
from featpipe.runs.trained_head import TrainedHead

_PUNCTUATION = re.compile(r"([\\`*_\[\]<>|~&$])")
_BEGINNING = "<!-- featpipe: model card of "
_FIRST_LINE = _BEGINNING + "{name} -->"
_LISTED_CLASSES = 200
PROGRAM_NAME = "classify.py"
"""What a card says its program be saved as."""


@dataclass(frozen=True)
class CardFacts:
    """What a card tells besides what the head itself says.

    Attributes
    ----------
    file : str
        Name of the exported file.
    format : {"onnx", "torch"}
    title : str
        The format in words.
    sha256 : str
        Of the file.
    size : int
        Of the file, bytes.
    check : CheckDocument
    libraries : mapping of str to str
        Versions by name.
    evaluations : sequence of mapping
        Metrics of the head on its own test pictures (of val where there are none): the plain ones
        first, then those averaged over views or sizes.
    dense : bool
    """

    file: str
    format: str
    title: str
    sha256: str
    size: int
    check: CheckDocument
    libraries: Mapping[str, str]
    evaluations: Sequence[Mapping[str, Any]] = ()
    dense: bool = field(default=False, kw_only=True)


def is_card(text: str) -> bool:
    """Whether a README is the card of some exported file."""
    return text.startswith(_BEGINNING)


def is_card_of(text: str, file: str) -> bool:
    """Whether a README is the card of a file of this name, so that it may be replaced."""
    return text.startswith(_FIRST_LINE.format(name=_named(file)) + "\n")


def model_card(trained: TrainedHead, facts: CardFacts) -> str:
    """The card as Markdown."""
    parts = [
        _FIRST_LINE.format(name=_named(facts.file)),
        f"# {plain(facts.file)}",
        _opening(trained, facts),
        "## Classes",
        _classes(trained.classes_.tolist()),
        "## How good it is",
        _scores(trained, facts.evaluations),
        "## How to feed it",
        *_feeding(trained.spaces[0].preprocessing, facts),
        "## What it computes",
        _computation(trained, facts.dense),
        "## How it was trained",
        _training(trained),
        "## How it was checked",
        _checked(trained, facts.check),
        "## Limits",
        _limits(trained, facts),
        "## Versions",
        _table(
            ("what", "which"),
            [
                ("file, SHA-256", f"`{facts.sha256}`"),
                ("head, SHA-256 of head.json", f"`{trained.digest}`"),
                ("featpipe", __version__),
                *((name, plain(version)) for name, version in facts.libraries.items()),
            ],
        ),
    ]
    return "\n\n".join(parts) + "\n"


def plain(text: str) -> str:
    """A text from outside as Markdown that shows just it."""
    # What means something only where a line begins is never there.
    return _PUNCTUATION.sub(r"\\\1", escape(text))


def _named(file: str) -> str:
    """A file's name within a comment, which two hyphens could end."""
    return escape(file).replace("--", "-\\-").replace(">", "\\>")


def _opening(trained: TrainedHead, facts: CardFacts) -> str:
    space = trained.space
    return (
        f"A classifier of pictures into {len(trained.classes_)} classes, as one {facts.title} "
        f"({facts.size / 2**20:.1f} MiB): "
        f"a '{plain(trained.head.kind)}' head on {plain(joined_taps(trained.spaces))} of "
        f"{plain(space.backbone)}, trained on the data set {plain(str(trained.dataset['name']))}. "
        "Nothing of featpipe is needed to run it."
    )


def _classes(classes: Sequence[str]) -> str:
    listed = [f"{i}: {plain(name)}" for i, name in enumerate(classes[:_LISTED_CLASSES])]
    more = len(classes) - len(listed)
    rest = f"; and {more} more, which the file itself names" if more else ""
    return "Columns of `probabilities`, in order: " + ", ".join(listed) + rest + "."


def _scores(trained: TrainedHead, evaluations: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (split, str(scores["n"]), f"{scores['accuracy']:.2%}", f"{scores['loss']:.4f}")
        for split, scores in trained.metrics.items()
    ]
    for evaluation in evaluations:
        low, high = evaluation["accuracy_ci95"]
        rows.append(
            (
                f"{plain(evaluation['split'])}, evaluated{plain(averaged_words(evaluation))}",
                str(evaluation["n"]),
                f"{evaluation['accuracy']:.2%} (95 %: {low:.2%} to {high:.2%})",
                f"{evaluation['log_loss']:.4f}",
            )
        )
    text = _table(("split", "pictures", "accuracy", "log-loss, nats"), rows)
    if not evaluations:
        text += "\n\nIt was not evaluated on test pictures; `val` chose the head, and flatters it."
    elif all(map(averaged_words, evaluations)):
        text += (
            "\n\nIt was not evaluated plainly, on each picture once at the size of training, which "
            "is what this file answers; `val` chose the head, and flatters it."
        )
    return text


def averaged_words(evaluation: Mapping[str, Any]) -> str:
    """What the probabilities of an evaluation were averaged over; empty for a plain one.

    Raises
    ------
    LookupError, TypeError, ValueError
        They are no metrics of an evaluation.
    """
    if (tta := evaluation.get("tta")) is not None:
        views = counted_views(int(tta["views"]), str(tta["policy"]), int(tta["seed"]))
        return f", averaged over the picture and {views}"
    if scales := evaluation.get("scales"):
        sizes = ", ".join(str(int(row["size"])) for row in scales)
        whole = ", whole pictures" if evaluation["frame"] == "whole" else ""
        return f", at sizes {sizes}{whole}"
    return ""


def _feeding(preprocessing: Preprocessing, facts: CardFacts) -> list[str]:
    size = preprocessing.size
    sides = "height × width" if facts.dense else f"{size} × {size}"
    words = (
        f"Input `image`: float32, N × 3 × {sides}, RGB, 0 to 1 (the pixels' bytes divided by 255); "
        "any N. Mean, standard deviation and the order of channels are part of the file."
    )
    return [
        words,
        "From a picture's file to this input: " + _steps(preprocessing, dense=facts.dense),
        f"Save this program as `{PROGRAM_NAME}` beside {plain(facts.file)}, and run "
        f"`python {PROGRAM_NAME} PICTURE …`; it prints path, label and probability of each:",
        f"```python\n{snippet(facts.file, facts.format, preprocessing, dense=facts.dense)}```",
    ]


def _steps(preprocessing: Preprocessing, *, dense: bool) -> str:
    size, side = preprocessing.size, short_side(preprocessing)
    steps = "turn it as its EXIF orientation says; lay transparent parts on white; make it RGB; "
    if preprocessing.resize == "squash":
        steps += f"resize it to {size} × {size}, whatever its shape"
    else:
        steps += (
            f"resize it so that its shorter side is {side} pixels (the longer one rounded down)"
        )
        if not dense:
            steps += f"; cut out the central {size} × {size}"
    steps += f". The filter is {preprocessing.interpolation}, with antialiasing, as in Pillow."
    if preprocessing.decoder == "pillow-draft":
        steps += f" JPEGs are decoded at 1/2, 1/4 or 1/8 where both sides stay at least {side}."
    return steps


def _computation(trained: TrainedHead, dense: bool) -> str:
    space = trained.space
    rows = [
        ("backbone", plain(space.backbone)),
        ("weights", plain(trained.weights_name)),
        *((f"weights up to {plain(s.tap)}, SHA-256", f"`{s.weights}`") for s in trained.spaces),
        ("tap", plain(joined_taps(trained.spaces))),
        ("pooling", plain(joined_poolings(trained.spaces))),
        ("features", " + ".join(_shape(s) for s in trained.spaces)),
        ("feature space", ", ".join(f"`{s.id}`" for s in trained.spaces)),
        ("head", plain(trained.head.kind)),
    ]
    if dense:
        outputs = (
            "Outputs: `score_map` (N × classes × rows × columns: logits at every place, divided by "
            "the temperature) and `probabilities` (N × classes: the softmax of their mean, or of "
            "each class's best place where a place is an answer for a window)."
        )
    else:
        outputs = (
            "Outputs: `logits` (N × classes, divided by the temperature of a calibrated head) and "
            "`probabilities` (N × classes: their softmax)."
        )
    return f"{_table(('what', 'which'), rows)}\n\n{outputs}"


def _shape(space: FeatureSpace) -> str:
    return f"{' × '.join(map(str, space.shape))} {space.dtype}"


def _training(trained: TrainedHead) -> str:
    info, views = trained.info, views_in(trained.info)
    dataset = trained.dataset
    rows = [
        ("data set", plain(str(dataset["name"]))),
        *(
            (f"{what}, SHA-256", plain(str(dataset[key])))  # type: ignore[literal-required]
            for what, key in (
                ("list", "sha256"),
                ("train", "train_sha256"),
                ("validation", "val_sha256"),
            )
            if key in dataset
        ),
        ("validation pictures", plain(str(dataset.get("val", "")))),
        *((plain(name), plain(str(value))) for name, value in trained.head.params.items()),
        ("views", "none" if views is None else plain(views_words(views))),
        ("temperature", f"{trained.head.temperature_:g}"),
        *((name, plain(str(info[name]))) for name in ("seed", "seconds") if name in info),
    ]
    warnings = "".join(f"\n- {plain(str(text))}" for text in info.get("warnings", ()))
    said = f"\n\nWarnings of the training:\n{warnings}" if warnings else ""
    return _table(("option", "value"), rows) + said


def _checked(trained: TrainedHead, check: CheckDocument) -> str:
    words = (
        f"Before the file got its name, it was compared on {check['pictures']} "
        f"{plain(check['source'])} with the head on features that featpipe computed in fp32: the "
        "same labels, and "
        f"probabilities that differ by at most {check['max_difference']:.1e}."
    )
    if check["source"] == MADE_UP:
        words += " No real picture of its data set was there."
    if trained.space.precision != "fp32":
        words += (
            f" `featpipe predict` computes this head's features in {trained.space.precision}; this "
            "file computes them in fp32. From `featpipe predict` its probabilities differ by at "
            f"most {check['predict_max_difference']:.1e}, in {check['predict_labels_differ']} of "
            "these pictures with another label."
        )
    return words


def _limits(trained: TrainedHead, facts: CardFacts) -> str:
    space = trained.space
    limits = [
        "It answers with one of its classes, whatever the picture shows.",
        "Pixels are those of Pillow: another JPEG decoder or another resizing changes "
        "probabilities in the third digit or more.",
        "The snippet is for pictures of 8 bits per channel"
        + (
            f", at most {MAX_ASPECT} times as long as wide"
            if space.preprocessing.resize == "crop"
            else ""
        )
        + "; `featpipe predict` also scales 16-bit grey, and takes its cut of longer pictures.",
    ]
    if space.dtype == "float16":
        limits.append(
            "Features are rounded to float16, as in training; where one exceeds 65504, "
            "probabilities are no numbers (`featpipe predict` says so)."
        )
    if facts.dense:
        limits.append("Pictures must be at least as large as those it was trained on.")
    return "\n".join(f"- {text}" for text in limits)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
