"""Learning-rate schedules: cosine, quadratic, staircase and the BiT-HyperRule."""

import math
from collections.abc import Callable

import pytest

from funmatch.optim.schedules import (
    bit_hyperrule,
    warmup_cosine,
    warmup_quadratic,
    warmup_staircase,
)


@pytest.mark.parametrize("case", range(3))
def test_warmup_cosine_equals_the_released_code(reference: Callable, case: int) -> None:
    stored = reference("cosine_schedule.json")[case]
    lengths = {"total_steps": stored["total_steps"], "warmup_steps": stored["warmup_steps"]}
    multipliers = [warmup_cosine(step, **lengths) for step in stored["steps"]]
    assert multipliers == pytest.approx(stored["multiplier"], abs=1e-6)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (7, 0), (7, 1), (60, 20), (60, 59)])
def test_warmup_cosine_equals_the_formula(total: int, warmup: int) -> None:
    """The cosine in its half-angle form; the warm-up as a case of its own, as cosine(0) is 1."""
    for step in range(total + 1):
        if step < warmup:
            expected = step / warmup
        else:
            expected = math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2
        multiplier = warmup_cosine(step, total_steps=total, warmup_steps=warmup)
        assert multiplier == pytest.approx(expected, abs=1e-12)


def test_warmup_cosine_starts_at_zero_only_with_warmup() -> None:
    assert warmup_cosine(0, total_steps=10, warmup_steps=3) == 0
    assert warmup_cosine(0, total_steps=10, warmup_steps=0) == 1


@pytest.mark.parametrize("step", [10, 11, 20, 1000])
def test_warmup_cosine_stays_at_zero_after_the_end(step: int) -> None:
    """The cosine alone would rise again: a run past its last step must not start to learn."""
    assert warmup_cosine(step, total_steps=10, warmup_steps=3) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_cosine_warmup_must_be_shorter_than_the_schedule(warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \[0, 10\), got {warmup}"):
        warmup_cosine(0, total_steps=10, warmup_steps=warmup)


# --- quadratic, for Shampoo ----------------------------------------------------------------------


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (7, 0), (7, 1), (60, 20), (60, 59)])
def test_quadratic_equals_the_formula(total: int, warmup: int) -> None:
    for step in range(total + 1):
        expected = step / warmup if step < warmup else ((total - step) / (total - warmup)) ** 2
        multiplier = warmup_quadratic(step, total_steps=total, warmup_steps=warmup)
        assert multiplier == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("step", [10, 11, 20, 1000])
def test_quadratic_stays_at_zero_after_the_end(step: int) -> None:
    """The square alone would rise again."""
    assert warmup_quadratic(step, total_steps=10, warmup_steps=3) == 0


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_quadratic_warmup_must_be_shorter_than_the_schedule(warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \[0, 10\), got {warmup}"):
        warmup_quadratic(0, total_steps=10, warmup_steps=warmup)


# --- staircase, for BiT --------------------------------------------------------------------------


def test_staircase_equals_the_released_rule_of_bit() -> None:
    """Transcribed from `get_lr` of their released code, which begins at base_lr = 0.003.

    The supports are the end of the warm-up, the milestones, and the end of training.
    """

    def released(step: int, supports: list[int], rate: float = 0.003) -> float | None:
        if step < supports[0]:
            return rate * step / supports[0]
        if step >= supports[-1]:
            return None  # it stops
        for s in supports[1:]:
            if s < step:
                rate /= 10
        return rate

    for supports in ([100, 200, 300, 400, 500], [500, 3000, 6000, 9000, 10_000]):
        warmup, *milestones, total = supports
        for step in [*range(0, total + 50, 7), *(s + d for s in supports for d in (-1, 0, 1))]:
            multiplier = warmup_staircase(
                step, total_steps=total, warmup_steps=warmup, milestones=milestones
            )
            assert 0.003 * multiplier == pytest.approx(released(step, supports) or 0.0, rel=1e-12)


@pytest.mark.parametrize(
    ("step", "expected"),
    [(0, 0.0), (1, 0.5), (2, 1.0), (5, 1.0), (6, 0.5), (8, 0.5), (9, 0.25), (11, 0.25), (12, 0.0)],
)
def test_staircase_drops_one_step_after_a_milestone(step: int, expected: float) -> None:
    multiplier = warmup_staircase(
        step, total_steps=12, warmup_steps=2, milestones=[5, 8], factor=0.5
    )
    assert multiplier == pytest.approx(expected)


def test_staircase_without_warmup_begins_at_one() -> None:
    assert warmup_staircase(0, total_steps=9, warmup_steps=0, milestones=[4]) == 1


@pytest.mark.parametrize("step", [500, 501, 10_000])
def test_staircase_stays_at_zero_from_the_end(step: int) -> None:
    assert warmup_staircase(step, total_steps=500, warmup_steps=100, milestones=[200]) == 0


@pytest.mark.parametrize("milestones", [[5, 5], [7, 5], [2, 5], [1], [5, 12], [13]])
def test_staircase_milestones_must_increase_between_warmup_and_end(milestones: list[int]) -> None:
    with pytest.raises(ValueError, match="must increase between warmup_steps=2 and 12") as caught:
        warmup_staircase(0, total_steps=12, warmup_steps=2, milestones=milestones)
    assert str(caught.value).endswith(f"got {milestones}")


@pytest.mark.parametrize("warmup", [-1, 12])
def test_staircase_warmup_must_be_shorter_than_the_schedule(warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \[0, 12\), got {warmup}"):
        warmup_staircase(0, total_steps=12, warmup_steps=warmup, milestones=[5])


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (1, (100, 200, 300, 400, 500)),
        (19_999, (100, 200, 300, 400, 500)),
        (20_000, (500, 3000, 6000, 9000, 10_000)),
        (499_999, (500, 3000, 6000, 9000, 10_000)),
        (500_000, (500, 6000, 12_000, 18_000, 20_000)),
        (1_281_167, (500, 6000, 12_000, 18_000, 20_000)),
    ],
)
def test_bit_hyperrule_depends_on_the_number_of_images(
    images: int, expected: tuple[int, ...]
) -> None:
    assert bit_hyperrule(images) == expected
