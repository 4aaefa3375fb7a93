"""Losses: distances between the predictions of a student and a teacher, one number per example.

The gradient flows into the student; the teacher's logits are constants.

Source: Beyer et al. 2022, sec. 3 and the released code (`big_vision`, `distance.py`).
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

# Under the square root, so that the gradient is finite where student and teacher coincide.
_EPSILON = 1e-12


def kl_divergence(student: Tensor, teacher: Tensor, *, temperature: float = 1.0) -> Tensor:
    """KL(teacher || student) of the softened class distributions.

    Args:
        student: logits [B, C], receives the gradient.
        teacher: logits [B, C] on the same views, detached here.
        temperature: T > 0; 1 compares the plain distributions.

    Returns:
        [B], nats per example, scaled by T² so that the gradient keeps its size:
        d/dz = T (softmax(z/T) - softmax(v/T)).

    Raises:
        ValueError: the temperature is not positive.

    Source: Beyer et al. 2022, sec. 3; Hinton et al. 2014, sec. 2.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be positive, got {temperature}")
    log_p = F.log_softmax(teacher.detach() / temperature, dim=-1)
    log_q = F.log_softmax(student / temperature, dim=-1)
    # A class that the teacher rules out (logit -inf) adds 0, not 0 * inf.
    terms = torch.where(log_p.isneginf(), 0.0, log_p.exp() * (log_p - log_q))
    return temperature**2 * terms.sum(dim=-1)


def euclidean(student: Tensor, teacher: Tensor) -> Tensor:
    """Euclidean distance of the logits [B, C]: [B]. The gradient flows into the student."""
    return (squared_l2(student, teacher) + _EPSILON).sqrt()


def squared_l2(student: Tensor, teacher: Tensor) -> Tensor:
    """Squared euclidean distance of the logits [B, C]: [B]. The gradient flows into the student."""
    return (student - teacher.detach()).square().sum(dim=-1)


def hard(student: Tensor, teacher: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """KL divergence to the teacher's most likely class with label smoothing over the other classes.

    Args:
        student: logits [B, C], receives the gradient.
        teacher: logits [B, C].
        smoothing: in [0, 1); 0 is the cross-entropy to the class.

    Returns:
        [B], nats.

    Raises:
        ValueError: smoothing is not in [0, 1).
    """
    if not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must lie in [0, 1), got {smoothing}")
    # PyTorch's own label smoothing spreads over all classes, the most likely one included.
    target = torch.full_like(student, smoothing / max(student.shape[-1] - 1, 1))
    target.scatter_(-1, teacher.argmax(dim=-1, keepdim=True), 1.0 - smoothing)
    return F.kl_div(F.log_softmax(student, dim=-1), target, reduction="none").sum(dim=-1)


def log_softmax_euclidean(student: Tensor, teacher: Tensor) -> Tensor:
    """Euclidean distance of the log-probabilities that follow from the logits [B, C]: [B]."""
    return euclidean(F.log_softmax(student, dim=-1), F.log_softmax(teacher, dim=-1))


def agreement(student: Tensor, teacher: Tensor, *, k: int = 1) -> Tensor:
    """Top-k agreement: 1 if the teacher's most likely class is among the student's top k, else 0.

    Args:
        student: logits [B, C].
        teacher: logits [B, C].
        k: from 1 to C.

    Returns:
        [B], float; no gradient.

    Raises:
        ValueError: k is not between 1 and C.
    """
    if not 1 <= k <= student.shape[-1]:
        raise ValueError(f"k must lie between 1 and the {student.shape[-1]} classes, got {k}")
    top = student.topk(k, dim=-1).indices
    return (top == teacher.argmax(dim=-1, keepdim=True)).any(dim=-1).float()
