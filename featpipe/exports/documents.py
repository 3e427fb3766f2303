"""What is told of an export, as JSON: keys, spelled once."""

from __future__ import annotations

from typing import TypedDict


class CheckDocument(TypedDict):
    """How an exported network was compared.

    ``pictures`` says how many, ``source`` which: of a split, or made-up ones. ``max_difference``
    is the largest difference of a probability from the head on features in fp32;
    ``predict_max_difference`` and ``predict_labels_differ`` compare with ``predict``, whose
    features may be of another precision.
    """

    pictures: int
    source: str
    max_difference: float
    predict_max_difference: float
    predict_labels_differ: int
