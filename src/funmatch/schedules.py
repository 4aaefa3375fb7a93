"""Multipliers of the learning rate, as functions of the step."""

import math


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Linear warm-up from 0, times a cosine from 1 at the end of the warm-up to 0 at the last step.

    Args:
        step: optimiser steps done so far; the first update has step 0 and so multiplier 0.
        total_steps: length of the schedule; beyond it the multiplier stays 0.
        warmup_steps: 0 for none; less than total_steps.

    Returns:
        The multiplier, in [0, 1].

    Raises:
        ValueError: warmup_steps is negative or not below total_steps.

    Source: the released code of Beyer et al. 2022.
    """
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps must lie in [0, {total_steps}), got {warmup_steps}")
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))
    return cosine * min(1.0, step / warmup_steps) if warmup_steps else cosine
