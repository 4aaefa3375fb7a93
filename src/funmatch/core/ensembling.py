"""Ensembling: means of the predictions of several teachers.

Source: Hinton et al. 2014, sec. 2 (arithmetic and geometric mean); Beyer et al. 2022, table 1.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def probability_mean(logits: Tensor, weights: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Arithmetic mean of softened class distributions, as logits.

    Args:
        logits: [K, B, C], logits of K teachers.
        weights: [K], positive; only their proportions matter.
        temperature: T > 0 at which the distributions are averaged.

    Returns:
        [B, C], z with softmax(z/T) = weighted mean of softmax(logits/T).
    """
    terms = (logits / temperature).log_softmax(dim=-1) + _normalised(weights, logits).log()
    return temperature * terms.logsumexp(dim=0)


def logit_mean(logits: Tensor, weights: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Weighted mean of logits: the renormalised geometric mean of the class distributions.

    Args:
        logits: [K, B, C], logits of K teachers.
        weights: [K], positive; only their proportions matter.
        temperature: has no effect, since the geometric mean is the same at every temperature.

    Returns:
        [B, C], logits.
    """
    return (logits * _normalised(weights, logits)).sum(dim=0)


def _normalised(weights: Tensor, logits: Tensor) -> Tensor:
    """Weights [K, 1, 1] that sum to 1, in the dtype and on the device of the logits."""
    weights = torch.as_tensor(weights, dtype=logits.dtype, device=logits.device)
    return (weights / weights.sum())[:, None, None]


# Of classifiers, by name; the first is what several teachers stand for where distances are summed:
# to sum the divergences from each is, up to a constant, to match the mean of their probabilities.
MEANS: Mapping[str, Callable[..., Tensor]] = {
    "probability": probability_mean,
    "logit": logit_mean,
}
