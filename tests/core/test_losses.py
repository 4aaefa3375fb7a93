"""Distances between predictions: reference, formula, gradient and refusals."""

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from funmatch.core import losses

DISTANCES = {
    "kl": losses.kl_divergence,
    "kl_t4": partial(losses.kl_divergence, temperature=4.0),
    "euclidean": losses.euclidean,
    "squared_l2": losses.squared_l2,
    "hard": losses.hard,
    "log_softmax_euclidean": losses.log_softmax_euclidean,
}
every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES.keys())


@pytest.fixture
def logits() -> tuple[Tensor, Tensor]:
    """Student and teacher, float64 so that identities hold to rounding; 7 classes."""
    rng = torch.Generator().manual_seed(0)
    student, teacher = 3 * torch.randn(2, 5, 7, generator=rng, dtype=torch.float64)
    return student.requires_grad_(), teacher


# --- the reference -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "distance"),
    [
        *((f"kl_t{t}", partial(losses.kl_divergence, temperature=t)) for t in (1, 2, 5, 10)),
        ("euclidean", losses.euclidean),
        ("l2", losses.squared_l2),
        ("hard", losses.hard),
        ("logsoftmax_euclidean", losses.log_softmax_euclidean),
        *((f"agree_top{k}", partial(losses.agreement, k=k)) for k in (1, 5)),
    ],
)
def test_distance_equals_the_released_code(
    reference: Callable, key: str, distance: Callable
) -> None:
    stored = reference("distances.npz")
    loss = distance(torch.from_numpy(stored["student"]), torch.from_numpy(stored["teacher"]))
    torch.testing.assert_close(loss, torch.from_numpy(stored[key]).float(), rtol=1e-5, atol=0)


# --- the formulas, as loops over plain numbers ---------------------------------------------------


def softmax(row: list[float], temperature: float = 1.0) -> list[float]:
    powers = [math.exp(z / temperature) for z in row]
    return [power / sum(powers) for power in powers]


def kl_loop(z: list[float], v: list[float], temperature: float = 1.0) -> float:
    q, p = softmax(z, temperature), softmax(v, temperature)
    nats = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
    return temperature**2 * nats


def log_softmax_euclidean_loop(z: list[float], v: list[float]) -> float:
    return math.dist([math.log(q) for q in softmax(z)], [math.log(p) for p in softmax(v)])


LOOPS = {
    "kl": kl_loop,
    "kl_t4": partial(kl_loop, temperature=4.0),
    "euclidean": math.dist,
    "squared_l2": lambda z, v: sum((a - b) ** 2 for a, b in zip(z, v, strict=True)),
    "hard": lambda z, v: -math.log(softmax(z)[v.index(max(v))]),
    "log_softmax_euclidean": log_softmax_euclidean_loop,
}


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_equals_its_formula_for_each_example(
    name: str, logits: tuple[Tensor, Tensor]
) -> None:
    student, teacher = logits
    pairs = zip(student.tolist(), teacher.tolist(), strict=True)
    expected = torch.tensor([LOOPS[name](z, v) for z, v in pairs], dtype=torch.float64)
    torch.testing.assert_close(DISTANCES[name](student, teacher).detach(), expected)


@pytest.mark.parametrize("k", range(1, 8))
def test_agreement_is_membership_among_the_k_largest(k: int, logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    expected = []
    for z, v in zip(student.tolist(), teacher.tolist(), strict=True):
        ranked = sorted(range(7), key=lambda c: -z[c])
        expected.append(float(v.index(max(v)) in ranked[:k]))
    agreements = losses.agreement(student, teacher, k=k)
    assert agreements.tolist() == expected
    assert agreements.dtype == torch.float32
    assert not agreements.requires_grad


def test_agreement_counts_the_teachers_top1_in_the_students_top_k() -> None:
    """Not the other way round: the two differ here."""
    student, teacher = torch.tensor([[3.0, 2.0, 1.0]]), torch.tensor([[1.0, 3.0, 2.0]])
    assert losses.agreement(student, teacher, k=2).item() == 1
    assert losses.agreement(teacher, student, k=2).item() == 0


# --- the gradients -------------------------------------------------------------------------------


def kl_gradient(z: Tensor, v: Tensor, temperature: float = 1.0) -> Tensor:
    return temperature * ((z / temperature).softmax(-1) - (v / temperature).softmax(-1))


def log_softmax_euclidean_gradient(z: Tensor, v: Tensor) -> Tensor:
    gap = z.log_softmax(-1) - v.log_softmax(-1)
    return (gap - z.softmax(-1) * gap.sum(-1, keepdim=True)) / gap.norm(dim=-1, keepdim=True)


GRADIENTS = {
    "kl": kl_gradient,
    "kl_t4": partial(kl_gradient, temperature=4.0),
    "euclidean": lambda z, v: (z - v) / (z - v).norm(dim=-1, keepdim=True),
    "squared_l2": lambda z, v: 2 * (z - v),
    "hard": lambda z, v: z.softmax(-1) - one_hot(v.argmax(-1), z.shape[-1]),
    "log_softmax_euclidean": log_softmax_euclidean_gradient,
}


@pytest.mark.parametrize("name", DISTANCES)
def test_distance_has_its_analytic_gradient(name: str, logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    DISTANCES[name](student, teacher).sum().backward()
    torch.testing.assert_close(student.grad, GRADIENTS[name](student.detach(), teacher))


@every_distance
def test_teacher_receives_no_gradient(distance: Callable, logits: tuple[Tensor, Tensor]) -> None:
    student, teacher = logits
    teacher.requires_grad_()
    distance(student, teacher).sum().backward()
    assert teacher.grad is None
    assert student.grad.abs().sum() > 0


@pytest.mark.parametrize("name", [name for name in DISTANCES if name != "hard"])
def test_equal_logits_give_zero_loss_and_gradient(name: str) -> None:
    """The root of a euclidean distance has an infinite slope at 0: a student may start there."""
    student = torch.tensor([[1.0, -2.0, 0.5]], requires_grad=True)
    loss = DISTANCES[name](student, student.detach().clone())
    loss.sum().backward()
    assert loss.item() == pytest.approx(0, abs=2e-6)
    torch.testing.assert_close(student.grad, torch.zeros(1, 3), rtol=0, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kl_ignores_classes_of_zero_teacher_probability(temperature: float) -> None:
    """A masked class (logit -inf) adds nothing to the loss, and pushes the student's logit down."""
    student = torch.tensor([[0.5, -1.0, 2.0, 0.0]], dtype=torch.float64, requires_grad=True)
    teacher = torch.tensor([[1.0, -math.inf, 0.0, -math.inf]], dtype=torch.float64)
    loss = losses.kl_divergence(student, teacher, temperature=temperature)
    loss.sum().backward()
    expected = kl_loop(student[0].tolist(), teacher[0].tolist(), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(student.grad, kl_gradient(student.detach(), teacher, temperature))


# --- invariances and refusals --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["kl", "kl_t4", "hard", "log_softmax_euclidean"])
def test_distance_is_invariant_to_a_shift_of_the_logits(
    name: str, logits: tuple[Tensor, Tensor]
) -> None:
    student, teacher = logits
    shift = torch.linspace(-50, 1000, 5, dtype=torch.float64)[:, None]
    shifted = DISTANCES[name](student + shift, teacher - shift)
    torch.testing.assert_close(shifted, DISTANCES[name](student, teacher))


@pytest.mark.parametrize("temperature", [0, -1.0, math.nan, math.inf])
def test_kl_temperature_must_be_positive(temperature: float, logits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=f"temperature must be positive, got {temperature}"):
        losses.kl_divergence(*logits, temperature=temperature)


@pytest.mark.parametrize("k", [-1, 0, 8])
def test_agreement_k_must_lie_within_the_classes(k: int, logits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=f"between 1 and the 7 classes, got {k}"):
        losses.agreement(*logits, k=k)


@pytest.mark.parametrize("smoothing", [0.1, 0.5])
def test_hard_spreads_smoothing_over_all_other_classes(
    smoothing: float, logits: tuple[Tensor, Tensor]
) -> None:
    student, teacher = logits
    classes = student.shape[1]
    for row, (z, v) in enumerate(zip(student, teacher, strict=True)):
        q, top = softmax(z.tolist()), int(v.argmax())
        target = [1 - smoothing if c == top else smoothing / (classes - 1) for c in range(classes)]
        nats = sum(p * math.log(p / q[c]) for c, p in enumerate(target))
        loss = losses.hard(student, teacher, smoothing=smoothing)[row]
        assert loss.item() == pytest.approx(nats, rel=1e-4)


def test_hard_smoothing_must_be_below_one(logits: tuple[Tensor, Tensor]) -> None:
    with pytest.raises(ValueError, match=r"smoothing must lie in \[0, 1\), got 1"):
        losses.hard(*logits, smoothing=1)
