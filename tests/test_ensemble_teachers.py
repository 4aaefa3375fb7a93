"""Ensemble teachers: combined outputs, losses, stored targets and views."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from funmatch.core import ensembling, geometry, mixing
from funmatch.core.geometry import Purpose
from funmatch.core.losses import kl_divergence
from funmatch.core.render import render
from funmatch.data.batch import Batch
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network, Output
from funmatch.models.teacher import Teacher
from funmatch.objectives.function_matching import FunctionMatching
from funmatch.targets import online, per_image
from funmatch.training.distillation import Distillation
from funmatch.views.recipes import Fixed, Shared
from funmatch.views.stream import EpochPermutations
from toys import CLASSES, TASK, MixedSizes, array_source, fit, image_stream, learning, network

SEED, STEPS, BATCH, MIN_AREA = 5, 4, 6, 0.3
WEIGHTS = (0.5, 2.0)
combinations = pytest.mark.parametrize("combine", ["probability", "logit", "sum"])


@pytest.fixture
def pair() -> dict[str, Network]:
    """Two networks of different sides."""
    return {"teacher.large": network(10, seed=2), "teacher.small": network(6, seed=3)}


def ensemble(nets: dict[str, Network], **how: object) -> Teacher:
    return Teacher({name: Frozen(net) for name, net in nets.items()}, means=TASK.means, **how)


def pixels(side: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, (BATCH, 3, side, side), generator=torch.manual_seed(seed)).float()


@pytest.fixture
def batch() -> Batch:
    views = {"student": pixels(8), "teacher.large": pixels(10), "teacher.small": pixels(6)}
    return Batch(torch.arange(BATCH), None, 0, views)


@pytest.fixture
def member_logits(pair: dict[str, Network], batch: Batch) -> Tensor:
    """Logits of each network: [2, B, C]. Toy weights are large: T must be, too."""
    with torch.no_grad():
        return torch.stack([net(batch.views[name]).prediction for name, net in pair.items()])


# --- outputs -------------------------------------------------------------------------------------


def test_single_teacher_passes_its_output_through() -> None:
    net = Network(
        network(8).net, mean=[0.0] * 3, std=[1 / 255] * 3, side=8, resize=8, features=["linear"]
    )
    output = Teacher({"teacher": Frozen(net)})({"teacher": pixels(8)}.__getitem__)
    assert torch.equal(output.prediction, net(pixels(8)).prediction)
    assert torch.equal(output.features["linear"], output.prediction)  # as the objective requested
    assert not output.members
    assert output.summed(lambda prediction: prediction.sum()) == output.prediction.sum()


def test_single_teacher_ignores_combination_and_temperature() -> None:
    frozen = Frozen(network(8))
    plain = Teacher({"teacher": frozen})
    other = Teacher({"teacher": frozen}, combine="logit", weights=(3.0,)).at_temperature(7.0)
    views = {"teacher": pixels(8)}.__getitem__
    assert torch.equal(plain(views).prediction, other(views).prediction)
    assert plain.fingerprint() == other.fingerprint() == frozen.fingerprint()


@pytest.mark.parametrize("temperature", [1.0, 300.0])
@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_combined_prediction_is_the_named_mean(
    pair, batch, member_logits, weights, temperature
) -> None:
    given = torch.tensor(weights or (1.0, 1.0))
    for combine, mean in (
        ("probability", ensembling.probability_mean),
        ("logit", ensembling.logit_mean),
        ("sum", ensembling.probability_mean),
    ):
        teacher = ensemble(pair, combine=combine, weights=weights).at_temperature(temperature)
        combined = teacher(batch.view).prediction
        torch.testing.assert_close(combined, mean(member_logits, given, temperature=temperature))


def test_probability_and_logit_means_differ(pair, batch) -> None:
    def probabilities(combine: str) -> Tensor:
        output = ensemble(pair, combine=combine).at_temperature(300.0)(batch.view)
        return (output.prediction / 300).softmax(dim=-1)

    assert not torch.allclose(probabilities("probability"), probabilities("logit"), atol=1e-3)


def test_at_temperature_does_not_change_the_teacher(pair) -> None:
    teacher = ensemble(pair, weights=WEIGHTS)
    assert teacher.at_temperature(4.0).temperature == 4
    assert teacher.temperature == 1


@pytest.mark.parametrize("combine", ["probability", "logit"])
def test_mean_combination_has_a_single_target(pair, batch, combine: str) -> None:
    output = ensemble(pair, combine=combine, weights=WEIGHTS)(batch.view)
    assert not output.members
    assert output.summed(lambda prediction: prediction.sum()) == output.prediction.sum()


def test_unknown_combination_and_wrong_shares_are_refused(pair) -> None:
    with pytest.raises(ValueError, match=r"teacher\.combine must be one of .*, got 'median'"):
        ensemble(pair, combine="median")
    for weights in ((1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, 1.0, 1.0), (1.0, math.nan)):
        with pytest.raises(ValueError, match=r"teacher\.shares must be 2 positive numbers, got"):
            ensemble(pair, weights=weights)


# --- losses --------------------------------------------------------------------------------------


def matched(target: Output, batch: Batch, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """Student's logits, loss, and its gradient."""
    student = 200 * torch.randn(BATCH, CLASSES, generator=torch.manual_seed(9))
    student.requires_grad_()
    loss = FunctionMatching(temperature)(Output(student), target, batch).total
    loss.backward()
    return student.detach(), loss.detach(), student.grad


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("temperature", [50.0, 300.0])
def test_sum_loss_is_the_weighted_sum_of_member_divergences(
    pair, batch, member_logits, temperature: float, weights
) -> None:
    target = ensemble(pair, combine="sum", weights=weights).at_temperature(temperature)(batch.view)
    student, loss, _ = matched(target, batch, temperature)
    expected = 0.0
    for weight, logits in zip(weights or (1.0, 1.0), member_logits, strict=True):
        expected += weight * kl_divergence(student, logits, temperature=temperature).mean()
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("temperature", [50.0, 300.0])
def test_sum_gradient_equals_scaled_probability_mean_gradient(
    pair, batch, temperature: float, weights
) -> None:
    """sum_k w_k T (q - p_k) = W T (q - mean p): up to a constant they are one objective."""
    sides = [
        matched(
            ensemble(pair, combine=combine, weights=weights).at_temperature(temperature)(
                batch.view
            ),
            batch,
            temperature,
        )
        for combine in ("sum", "probability")
    ]
    (_, loss, gradient), (_, other, towards_mean) = sides
    total = sum(weights or (1.0, 1.0))
    torch.testing.assert_close(gradient, total * towards_mean, rtol=1e-4, atol=1e-5)
    assert loss > total * other  # by the constant, which the teachers' disagreement is


def test_logit_mean_gradient_differs_from_probability_mean(pair, batch) -> None:
    gradients = [
        matched(ensemble(pair, combine=combine).at_temperature(300.0)(batch.view), batch, 300.0)[2]
        for combine in ("probability", "logit")
    ]
    assert not torch.allclose(*gradients, rtol=0.05)


# --- identity and stored targets -----------------------------------------------------------------


def test_fingerprint_depends_on_combination_weights_and_member_order(pair) -> None:
    swapped = dict(reversed(pair.items()))
    teachers = [
        ensemble(pair),
        ensemble(pair, combine="logit"),
        ensemble(pair, combine="sum"),
        ensemble(pair, weights=WEIGHTS),
        ensemble(pair, weights=tuple(reversed(WEIGHTS))),
        ensemble({**pair, "teacher.small": network(6, seed=4)}),
        Teacher({"teacher": Frozen(pair["teacher.large"])}),
    ]
    assert len({teacher.fingerprint() for teacher in teachers}) == len(teachers)
    assert ensemble(pair).fingerprint() == teachers[0].fingerprint()
    assert ensemble(swapped, weights=WEIGHTS).fingerprint() != teachers[3].fingerprint()


@combinations
def test_stored_ensemble_targets_equal_online_targets(combine: str, pair, tmp_path: Path) -> None:
    """A fixed teacher that saw whole images, evaluated again on the whole images of a batch."""
    source, recipe = MixedSizes(), Fixed(name="fixed_teacher", teacher_crop="resize")
    teacher = ensemble(pair, combine=combine, weights=WEIGHTS).at_temperature(200.0)
    device = torch.device("cpu")
    stored = per_image.on_fixed_views(
        teacher, source, recipe, TASK, seed=SEED, store=tmp_path, batch_size=4, device=device
    )
    sides = {"student": 8, **teacher.sides}
    stream = image_stream(source, recipe, sides=sides, batch_size=BATCH, seed=SEED)
    for step in range(3):
        batch = stream[step].mixed()
        output, live = stored(batch), online.OnlineTargets(teacher)(batch)
        # Of hundreds of pixels; other numbers of rows are summed in another order.
        close = {"rtol": 1e-4, "atol": 1e-2}
        torch.testing.assert_close(output.prediction, live.prediction, **close)
        for (weight, logits), (same, expected) in zip(output.members, live.members, strict=True):
            assert weight == same
            torch.testing.assert_close(logits, expected, **close)


def test_members_are_evaluated_and_stored_separately(pair, tmp_path: Path) -> None:
    """Another combination of the same networks evaluates none of them again."""
    arguments = {"store": tmp_path, "batch_size": 4, "device": torch.device("cpu")}
    per_image.on_evaluation_views(ensemble(pair), array_source(), TASK, **arguments)
    evaluations = [len(net.net.seen) for net in pair.values()]
    assert evaluations == [5, 5]
    other = ensemble(pair, combine="logit", weights=WEIGHTS)
    per_image.on_evaluation_views(other, array_source(), TASK, **arguments)
    single = Teacher({"teacher": Frozen(pair["teacher.small"])})
    per_image.on_evaluation_views(single, array_source(), TASK, **arguments)
    assert [len(net.net.seen) for net in pair.values()] == evaluations


# --- views ---------------------------------------------------------------------------------------


def crops(source, step: int, side: int) -> Tensor:
    """The crops of a step at a side, drawn again from (seed, step) with the pure functions."""
    indices = EpochPermutations(len(source), BATCH, SEED).indices(step)
    rng = geometry.generator(SEED, step, Purpose.STUDENT_BOXES)
    boxes = geometry.inception(*source.sizes(indices), rng=rng, area=(MIN_AREA, 1.0))
    flips = geometry.flips(BATCH, rng=geometry.generator(SEED, step, Purpose.STUDENT_FLIPS))
    rows = zip(source.images(indices), boxes, flips, strict=True)
    return torch.stack([render(i, box, side, flip=bool(f)) for i, box, f in rows]).float()


def mixed(views: Tensor, step: int) -> Tensor:
    a = mixing.folded_uniform(geometry.generator(SEED, step, Purpose.MIXING))
    return torch.stack([a * views[i] + (1 - a) * views[i - 1] for i in range(BATCH)])


def teach(student: Network, teacher: Teacher, source) -> None:
    """A real training run of function matching."""
    recipe = Shared(name="function_matching", crop="inception", mixing=True, min_area=MIN_AREA)
    learner = Distillation(
        student, online.OnlineTargets(teacher), {}, FunctionMatching(2.0), learning(STEPS), TASK
    )
    sides = {"student": student.side, **teacher.sides}
    fit(learner, source, recipe, sides=sides, steps=STEPS, batch_size=BATCH, seed=SEED)


@pytest.fixture(params=[array_source, MixedSizes], ids=["one size", "mixed sizes"])
def source(request: pytest.FixtureRequest):
    return request.param()


@combinations
def test_members_see_the_students_mixed_crop_at_their_own_size(source, combine: str, pair) -> None:
    student = network(8, seed=1)
    teach(student, ensemble(pair, combine=combine), source)
    for net in (student, *pair.values()):
        assert len(net.net.seen) == STEPS
        for step, seen in enumerate(net.net.seen):
            expected = mixed(crops(source, step, net.side), step)
            torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(("teacher_side", "student_side"), [(12, 7), (7, 5)])
def test_single_teacher_sees_the_students_mixed_crop_at_its_own_size(
    source, teacher_side: int, student_side: int
) -> None:
    """The proportions of T384 -> S224 and of T224 -> S160."""
    student, net = network(student_side, seed=1), network(teacher_side, seed=2)
    teach(student, Teacher({"teacher": Frozen(net)}), source)
    for one in (student, net):
        assert len(one.net.seen) == STEPS
        for step, seen in enumerate(one.net.seen):
            expected = mixed(crops(source, step, one.side), step)
            torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-3)


def test_members_of_the_students_side_share_its_view() -> None:
    """No view is rendered twice."""
    recipe = Shared(name="consistent", crop="inception", min_area=MIN_AREA)
    sides = {"student": 8, "teacher.same": 8, "teacher.other": 6}
    batch = image_stream(array_source(), recipe, sides=sides, batch_size=BATCH, seed=SEED)[0]
    assert batch.views["teacher.same"] is batch.views["student"]
    assert batch.views["teacher.other"].shape[-1] == 6
