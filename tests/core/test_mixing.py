"""Mixup of a batch and the distribution of its coefficient."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy import special, stats

from funmatch.core import mixing


def test_mix_equals_the_released_code(reference: Callable) -> None:
    stored = reference("mixup.npz")
    mixed = mixing.mix(torch.from_numpy(stored["images"]), float(stored["coefficient"]))
    torch.testing.assert_close(mixed, torch.from_numpy(stored["mixed"]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_mix_partner_is_the_previous_image(batch: int) -> None:
    """Image i is the i-th unit vector, so that row i of the result shows its weights.

    A reversed batch would mix the middle one of five with itself.
    """
    weights = mixing.mix(torch.eye(batch, dtype=torch.float64), 0.7)
    expected = torch.zeros(batch, batch, dtype=torch.float64)
    for i in range(batch):
        expected[i, i] += 0.7
        expected[i, (i - 1) % batch] += 0.3
    torch.testing.assert_close(weights, expected)


def test_mix_rolls_only_the_batch_dimension() -> None:
    images = torch.arange(48.0).reshape(2, 3, 2, 4)
    torch.testing.assert_close(mixing.mix(images, 0.0), images[[1, 0]], rtol=0, atol=0)
    torch.testing.assert_close(mixing.mix(images, 1.0), images, rtol=0, atol=0)


def test_mix_converts_integers_to_floats() -> None:
    """In uint8 the weights would be cut to 0 and the sum would wrap around."""
    mixed = mixing.mix(torch.tensor([[255], [254]], dtype=torch.uint8), 0.75)
    assert mixed.dtype == torch.float32
    assert mixed.tolist() == [[254.75], [254.25]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_mix_keeps_float_dtypes(dtype: torch.dtype) -> None:
    assert mixing.mix(torch.ones(2, 3, dtype=dtype), 0.5).dtype == dtype


def test_mix_gradient_reaches_both_partners() -> None:
    images = torch.zeros(3, 1, requires_grad=True)
    mixing.mix(images, 0.75)[0].sum().backward()
    assert images.grad.flatten().tolist() == [0.75, 0.0, 0.25]


def test_folded_uniform_is_one_folded_uniform_draw() -> None:
    for seed in range(50):
        a = np.random.default_rng(seed).random()
        folded = mixing.folded_uniform(np.random.default_rng(seed))
        assert type(folded) is float
        assert folded == (a if a > 0.5 else 1 - a)


def test_folded_uniform_has_the_moments_of_the_released_code(reference: Callable) -> None:
    stored = reference("mixup.npz")
    rng = np.random.default_rng(0)
    draws = [mixing.folded_uniform(rng) for _ in range(20_000)]
    assert np.mean(draws) == pytest.approx(stored["coefficient_mean"], abs=5e-3)
    assert min(draws) == pytest.approx(stored["coefficient_min"], abs=1e-3)
    assert max(draws) == pytest.approx(stored["coefficient_max"], abs=1e-3)
    assert np.quantile(draws, [0.25, 0.75]) == pytest.approx([0.625, 0.875], abs=5e-3)


# --- other distributions of the coefficient ------------------------------------------------------


def test_folded_beta_of_alpha_one_equals_folded_uniform() -> None:
    """To the bit, and no number more: runs of function matching must not change."""
    one, other = np.random.default_rng(3), np.random.default_rng(3)
    for _ in range(50):
        assert mixing.folded_beta(one, 1.0) == mixing.folded_uniform(other)
    assert one.random() == other.random()


@pytest.mark.parametrize("alpha", [0.1, 0.4, 2.0])
def test_folded_beta_has_the_moments_of_a_folded_beta_distribution(alpha: float) -> None:
    """max(a, 1-a) = 1/2 + |a - 1/2|; moments and quantiles of Beta(alpha, alpha) in closed form."""
    rng = np.random.default_rng(0)
    draws = np.array([mixing.folded_beta(rng, alpha) for _ in range(40_000)])
    assert draws.min() >= 0.5
    assert draws.max() <= 1
    mean = 0.5 + 4**-alpha / (alpha * special.beta(alpha, alpha))
    assert draws.mean() == pytest.approx(mean, abs=3e-3)
    # The variance of a itself: 1 / (4 (2 alpha + 1)).
    assert np.mean((draws - 0.5) ** 2) == pytest.approx(0.25 / (2 * alpha + 1), abs=3e-3)
    shares = [0.25, 0.5, 0.75]
    folded = [stats.beta(alpha, alpha).ppf(0.5 + share / 2) for share in shares]
    assert np.quantile(draws, shares) == pytest.approx(folded, abs=1e-2)


def test_folded_beta_of_small_alpha_is_mostly_near_one() -> None:
    rng = np.random.default_rng(1)
    draws = [mixing.folded_beta(rng, 0.1) for _ in range(4000)]
    assert np.mean([draw > 0.95 for draw in draws]) > 0.7  # of the uniform distribution 0.1


@pytest.mark.parametrize("alpha", [0, 0.0, -1.0, float("nan")])
def test_folded_beta_alpha_must_be_positive(alpha: float) -> None:
    with pytest.raises(ValueError, match=f"alpha must be positive, got {alpha}"):
        mixing.folded_beta(np.random.default_rng(0), alpha)
