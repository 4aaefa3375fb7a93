import math
from collections.abc import Callable

import pytest

from funmatch.schedules import warmup_cosine


@pytest.mark.parametrize("case", range(3))
def test_equals_the_released_code(reference: Callable, case: int) -> None:
    stored = reference("cosine_schedule.json")[case]
    lengths = {"total_steps": stored["total_steps"], "warmup_steps": stored["warmup_steps"]}
    found = [warmup_cosine(step, **lengths) for step in stored["steps"]]
    assert found == pytest.approx(stored["multiplier"], abs=1e-6)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0), (7, 0), (7, 1), (60, 20), (60, 59)])
def test_equals_the_formula(total: int, warmup: int) -> None:
    """The cosine in its half-angle form; the warm-up as a case of its own, as cosine(0) is 1."""
    for step in range(total + 1):
        if step < warmup:
            expected = step / warmup
        else:
            expected = math.cos(math.pi / 2 * (step - warmup) / (total - warmup)) ** 2
        found = warmup_cosine(step, total_steps=total, warmup_steps=warmup)
        assert found == pytest.approx(expected, abs=1e-12)


def test_first_update_is_null_only_under_a_warmup() -> None:
    assert warmup_cosine(0, total_steps=10, warmup_steps=3) == 0
    assert warmup_cosine(0, total_steps=10, warmup_steps=0) == 1


@pytest.mark.parametrize("step", [10, 11, 20, 1000])
def test_stays_at_zero_beyond_the_end(step: int) -> None:
    """The cosine alone would rise again: a run that goes on too long must not start to learn."""
    assert warmup_cosine(step, total_steps=10, warmup_steps=3) == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_warmup_must_be_shorter_than_the_schedule(warmup: int) -> None:
    with pytest.raises(ValueError, match=rf"must lie in \[0, 10\), got {warmup}"):
        warmup_cosine(0, total_steps=10, warmup_steps=warmup)
