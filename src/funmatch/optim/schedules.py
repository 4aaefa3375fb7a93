"""Learning-rate schedules: multipliers of the learning rate as functions of the step."""

import math
from collections.abc import Sequence
from itertools import pairwise


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Linear warm-up from 0, times a cosine from 1 at the end of the warm-up to 0 at the last step.

    Args:
        step: optimiser steps done so far; the first update has step 0 and therefore multiplier 0.
        total_steps: length of the schedule; beyond it the multiplier stays 0.
        warmup_steps: 0 for none; less than total_steps.

    Returns:
        The multiplier, in [0, 1].

    Raises:
        ValueError: warmup_steps is negative or not below total_steps.

    Source: the released code of Beyer et al. 2022.
    """
    cosine = 0.5 * (1.0 + math.cos(math.pi * _progress(step, total_steps, warmup_steps)))
    return cosine * _warmup(step, warmup_steps)


def warmup_quadratic(step: int, *, total_steps: int, warmup_steps: int) -> float:
    """Linear warm-up from 0 to 1, then (1 - progress)² down to 0 at the last step.

    Args:
        step: optimiser steps done so far.
        total_steps: length of the schedule; beyond it the multiplier stays 0.
        warmup_steps: 0 for none; less than total_steps.

    Returns:
        The multiplier, in [0, 1].

    Raises:
        ValueError: warmup_steps is negative or not below total_steps.

    Source: Beyer et al. 2022, appendix D (Shampoo).
    """
    remaining = 1.0 - _progress(step, total_steps, warmup_steps)
    return remaining**2 * _warmup(step, warmup_steps)


def warmup_staircase(
    step: int,
    *,
    total_steps: int,
    warmup_steps: int,
    milestones: Sequence[int],
    factor: float = 0.1,
) -> float:
    """Staircase: linear warm-up from 0 to 1, then a decay by `factor` at each milestone.

    Args:
        step: optimiser steps done so far.
        total_steps: length of the schedule; beyond it the multiplier stays 0.
        warmup_steps: 0 for none; less than total_steps.
        milestones: steps, increasing; after each the multiplier is multiplied by `factor`.
        factor: decay at one milestone, in (0, 1).

    Returns:
        The multiplier, in [0, 1].

    Raises:
        ValueError: warmup_steps is out of bounds, or the milestones do not increase within
            (warmup_steps, total_steps).

    Source: Kolesnikov et al. 2020, the BiT-HyperRule.
    """
    _progress(step, total_steps, warmup_steps)
    bounds = [warmup_steps, *milestones, total_steps]
    if any(later <= earlier for earlier, later in pairwise(bounds)):
        raise ValueError(
            f"milestones must increase between warmup_steps={warmup_steps} and {total_steps}, "
            f"got {list(milestones)}"
        )
    if step >= total_steps:
        return 0.0
    return factor ** sum(m < step for m in milestones) * _warmup(step, warmup_steps)


def _progress(step: int, total_steps: int, warmup_steps: int) -> float:
    """Progress from the end of the warm-up to the last step, in [0, 1]."""
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_steps must lie in [0, {total_steps}), got {warmup_steps}")
    return min(max((step - warmup_steps) / (total_steps - warmup_steps), 0.0), 1.0)


def _warmup(step: int, warmup_steps: int) -> float:
    return min(1.0, step / warmup_steps) if warmup_steps else 1.0


def bit_hyperrule(train_size: int) -> tuple[int, ...]:
    """Steps of the BiT-HyperRule schedule, by the number of training images.

    Returns:
        The end of the warm-up, three milestones, and the end of training, in optimiser steps.

    Source: Kolesnikov et al. 2020, sec. 3.3 and their released code.
    """
    if train_size < 20_000:
        return (100, 200, 300, 400, 500)
    if train_size < 500_000:
        return (500, 3000, 6000, 9000, 10_000)
    return (500, 6000, 12_000, 18_000, 20_000)
