"""Learning rate schedules: what the rate is multiplied by at each step."""

from __future__ import annotations

import math


def rate_share(schedule: str, step: int, steps: int) -> float:
    """What the learning rate is multiplied by at a step.

    Parameters
    ----------
    schedule : {"constant", "cosine"}
        ``cosine`` falls from 1 along half a period, as in Loshchilov and Hutter, "SGDR" (2017),
        without restarts, and would be 0 after the last step.
    step : int
        Number of the step, from 0.
    steps : int
        Steps of the whole training.
    """
    return 1.0 if schedule == "constant" else 0.5 * (1 + math.cos(math.pi * step / steps))
