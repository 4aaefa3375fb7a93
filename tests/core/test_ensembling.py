"""Probability and logit means of several teachers."""

import math

import pytest
import torch

from funmatch.core.ensembling import logit_mean, probability_mean

K, B, C = 3, 4, 6
WEIGHTS = [0.5, 3.0, 1.25]
temperatures = pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 10.0])
means = pytest.mark.parametrize("mean", [probability_mean, logit_mean])


@pytest.fixture
def logits() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 5 * torch.randn(K, B, C, dtype=torch.float64, generator=generator)


def softened(row: list[float], temperature: float) -> list[float]:
    """softmax(z/T) in plain numbers."""
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


@temperatures
def test_probability_mean_is_the_weighted_mean_of_softened_distributions(
    logits: torch.Tensor, temperature: float
) -> None:
    mean = probability_mean(logits, torch.tensor(WEIGHTS), temperature=temperature)
    assert mean.shape == (B, C)
    for b in range(B):
        each = [softened(logits[k, b].tolist(), temperature) for k in range(K)]
        for c in range(C):
            expected = sum(w * p[c] for w, p in zip(WEIGHTS, each, strict=True)) / sum(WEIGHTS)
            probability = (mean[b] / temperature).softmax(dim=-1)[c].item()
            assert probability == pytest.approx(expected, rel=1e-6)


@temperatures
def test_probability_mean_depends_on_the_temperature(
    logits: torch.Tensor, temperature: float
) -> None:
    """Averaged at T and read at 1, it is another distribution: T must be the objective's."""
    at_one = probability_mean(logits, torch.tensor(WEIGHTS)).softmax(dim=-1)
    mean = probability_mean(logits, torch.tensor(WEIGHTS), temperature=temperature)
    same = torch.allclose(mean.softmax(dim=-1), at_one, rtol=1e-3)
    assert same == (temperature == 1)


@temperatures
def test_logit_mean_is_the_weighted_mean_at_every_temperature(
    logits: torch.Tensor, temperature: float
) -> None:
    mean = logit_mean(logits, torch.tensor(WEIGHTS), temperature=temperature)
    for b in range(B):
        for c in range(C):
            expected = sum(w * logits[k, b, c].item() for k, w in enumerate(WEIGHTS))
            assert mean[b, c].item() == pytest.approx(expected / sum(WEIGHTS), rel=1e-6)


@temperatures
def test_softened_logit_mean_is_the_renormalised_geometric_mean(
    logits: torch.Tensor, temperature: float
) -> None:
    probabilities = (logit_mean(logits, torch.tensor(WEIGHTS)) / temperature).softmax(dim=-1)
    for b in range(B):
        each = [softened(logits[k, b].tolist(), temperature) for k in range(K)]
        products = [
            math.prod(p[c] ** (w / sum(WEIGHTS)) for w, p in zip(WEIGHTS, each, strict=True))
            for c in range(C)
        ]
        expected = [product / sum(products) for product in products]
        assert probabilities[b].tolist() == pytest.approx(expected, rel=1e-6)


@means
def test_mean_depends_only_on_the_ratios_of_the_weights(mean, logits: torch.Tensor) -> None:
    weights = torch.tensor(WEIGHTS)
    torch.testing.assert_close(
        mean(logits, 8 * weights, temperature=2.0), mean(logits, weights, temperature=2.0)
    )
    assert not torch.allclose(
        mean(logits, weights.flip(0), temperature=2.0), mean(logits, weights, temperature=2.0)
    )


@means
def test_mean_of_one_teacher_is_its_distribution(mean, logits: torch.Tensor) -> None:
    combined = mean(logits[:1], torch.tensor([0.3]), temperature=2.0)
    torch.testing.assert_close(combined.softmax(dim=-1), logits[0].softmax(dim=-1))


@means
def test_mean_of_equal_teachers_is_their_distribution(mean, logits: torch.Tensor) -> None:
    twice = torch.stack([logits[0], logits[0]])
    combined = mean(twice, torch.tensor([1.0, 4.0]), temperature=3.0)
    torch.testing.assert_close(combined.softmax(dim=-1), logits[0].softmax(dim=-1))


@means
def test_mean_of_extreme_logits_is_finite(mean) -> None:
    """exp(1000) overflows: the mean is taken among logarithms."""
    extreme = torch.tensor([[[1000.0, 0.0, -1000.0]], [[0.0, 1000.0, -1000.0]]])
    probabilities = mean(extreme, torch.tensor([1.0, 1.0])).softmax(dim=-1)
    torch.testing.assert_close(probabilities, torch.tensor([[0.5, 0.5, 0.0]]))


@means
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_mean_has_the_dtype_of_the_logits(mean, dtype: torch.dtype) -> None:
    weights = torch.tensor([1.0, 2.0], dtype=torch.float32)
    assert mean(torch.randn(2, B, C, dtype=dtype), weights).dtype == dtype
