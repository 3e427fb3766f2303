"""What only heads on pictures themselves can do, and heads on one augmented view cannot."""

from __future__ import annotations

from featpipe.base.errors import UsageError
from featpipe.runs.trained_head import TrainedHead


def require_own_pictures(trained: TrainedHead, use: str) -> None:
    """Refuse a head on one view where the view's transform would be left out.

    ``predict`` transforms every new picture as its bytes say; a network alone cannot, and a
    picture of another size or shape has no such view.

    Parameters
    ----------
    trained : TrainedHead
    use : str
        What the head is asked for, in words: ``--format onnx``.

    Raises
    ------
    UsageError
        The head was trained with ``--view``.
    """
    viewed = next((space for space in trained.spaces if space.view), None)
    if viewed is None:
        return
    drawn = viewed.augmentation
    of_policy = "" if drawn is None else f" of '{drawn.policy}', seed {drawn.seed}"
    raise UsageError(
        f"expected a head trained on the pictures themselves for {use}, found one of "
        f"view {viewed.view}{of_policy}; such a transform depends on the file's bytes and is no "
        "part of a network: train without --view"
    )
