"""The learning rate as a function of the step alone: nothing to store, and nothing that a resume could get wrong."""

from __future__ import annotations

import math


def share(step: int, steps: int, warmup: float) -> float:
    """The share of the highest rate at ``step`` of ``steps``, above 0 and at most 1.

    It rises evenly over the first ``warmup`` (a share, 0 … 1) of the steps (Goyal et al. 2017, "Accurate, Large
    Minibatch SGD", section 2.2), then falls towards 0 as half a cosine (Loshchilov & Hutter 2017, "SGDR", equation 5
    without restarts).
    """
    rising = round(warmup * steps)
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))
