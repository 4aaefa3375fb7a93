"""Several teachers as one: means of their predictions.

Source: Hinton et al. 2014, sec. 2 (arithmetic and geometric mean); Beyer et al. 2022, table 1.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def probability_mean(logits: Tensor, weights: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The arithmetic mean of softened distributions, as logits.

    Args:
        logits: [K, B, C], of K teachers.
        weights: [K], positive; only their proportions count.
        temperature: T > 0, at which the distributions are averaged.

    Returns:
        [B, C], z with softmax(z/T) = mean of softmax(logits/T).
    """
    parts = (logits / temperature).log_softmax(dim=-1) + _shares(weights, logits).log()
    return temperature * parts.logsumexp(dim=0)


def logit_mean(logits: Tensor, weights: Tensor, *, temperature: float = 1.0) -> Tensor:
    """The geometric mean of the distributions, renormalised: the mean of the logits [K, B, C].

    It is the same at every temperature.
    """
    return (logits * _shares(weights, logits)).sum(dim=0)


def _shares(weights: Tensor, logits: Tensor) -> Tensor:
    weights = torch.as_tensor(weights, dtype=logits.dtype, device=logits.device)
    return (weights / weights.sum())[:, None, None]


# Of classifiers, by name; the first is what several teachers stand for where distances are summed:
# to sum the divergences from each is, up to a constant, to match the mean of their probabilities.
MEANS: Mapping[str, Callable[..., Tensor]] = {
    "probability": probability_mean,
    "logit": logit_mean,
}
