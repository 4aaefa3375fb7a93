"""Distillation, supervision, frozen networks and fidelity metrics."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from funmatch.data.batch import Batch
from funmatch.models import bit
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network, Output
from funmatch.objectives.function_matching import FunctionMatching
from funmatch.targets import online, per_image
from funmatch.tasks.classification.metrics import Fidelity
from funmatch.training.distillation import Distillation
from funmatch.training.supervised import Supervision
from funmatch.views.recipes import Shared
from toys import CLASSES, TASK, array_source, fit, image_stream, learning, network, teacher_of

MIXED = Shared(name="function_matching", crop="inception", mixing=True, min_area=0.3)
SIDES = {"student": 8, "teacher": 8}


def distillation(steps: int = 5, **how: object) -> tuple[Distillation, Network]:
    teacher = network(8, seed=2)
    targets = online.OnlineTargets(teacher_of(teacher))
    learns = replace(learning(steps), **how)
    return Distillation(
        network(8, seed=1), targets, {}, FunctionMatching(1.0), learns, TASK
    ), teacher


@pytest.mark.fault(12)
def test_teacher_is_not_trained_optimised_or_saved(tmp_path: Path) -> None:
    learner, teacher = distillation()
    before = Frozen(teacher).fingerprint()
    student = learner.student.net.linear.weight.detach().clone()
    trainer = fit(
        learner, array_source(), MIXED, sides=SIDES, steps=5, batch_size=8, folder=tmp_path
    )
    assert Frozen(teacher).fingerprint() == before
    assert not teacher.training
    assert not torch.equal(learner.student.net.linear.weight, student)

    mine = {id(p) for p in teacher.parameters()}
    assert mine.isdisjoint(id(p) for p in learner.parameters())
    (optimizer,) = trainer.optimizers
    assert mine.isdisjoint(id(p) for group in optimizer.param_groups for p in group["params"])
    saved = torch.load(tmp_path / "state.ckpt", weights_only=True)  # plain types only
    assert set(saved["state_dict"]) == {"student.net.linear.weight", "student.net.linear.bias"}


def test_fused_optimizer_equals_the_unfused_one() -> None:
    weights = []
    for fused in (False, True):
        learner, _ = distillation(fused=fused)
        trainer = fit(learner, array_source(), MIXED, sides=SIDES, steps=5, batch_size=8)
        (optimizer,) = trainer.optimizers
        assert [bool(group["fused"]) for group in optimizer.param_groups] == [fused] * 2
        weights.append(learner.student.net.linear.weight)
    torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)


def test_distillation_steps_equal_a_manual_loop() -> None:
    """The trainer's step equals one written by hand from the same views."""
    learner, teacher = distillation(steps=2)
    source = array_source()
    by_hand = network(8, seed=1)
    optimizer = learning(2).optimizer(by_hand)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, learning(2).schedule)
    stream = image_stream(source, MIXED, sides=SIDES, batch_size=8, seed=0)
    for step in range(2):
        batch = stream[step].mixed()
        logits, target = (
            by_hand(batch.view("student")).prediction,
            teacher(batch.view("teacher")).prediction,
        )
        loss = F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    fit(learner, source, MIXED, sides=SIDES, steps=2, batch_size=8)
    torch.testing.assert_close(learner.student.net.linear.weight, by_hand.net.linear.weight)


@pytest.mark.fault(12)
def test_frozen_network_records_no_gradient() -> None:
    frozen = Frozen(network(8))
    out = frozen(torch.rand(2, 3, 8, 8, requires_grad=True))
    assert not out.prediction.requires_grad
    assert not isinstance(frozen, torch.nn.Module)


def test_fingerprint_depends_on_weights_normalisation_and_padding() -> None:
    plain = network(8, seed=1)
    other = Network(plain.net, mean=[0.5] * 3, std=[0.5] * 3, side=8, resize=8)
    prints = {Frozen(n).fingerprint() for n in (network(8, seed=1), network(8, seed=2), other)}
    paddings = [
        bit.build((1,), width=0.5, num_classes=2, root_padding=p) for p in ("zero", "infinite")
    ]
    paddings[1].load_state_dict(paddings[0].state_dict())  # the same weights, another function
    input_ = {"mean": [0.5] * 3, "std": [0.5] * 3, "side": 8, "resize": 8}
    prints |= {Frozen(Network(net, **input_)).fingerprint() for net in paddings}
    assert len(prints) == 5
    assert Frozen(network(8, seed=1)).fingerprint() in prints


def test_network_normalises_and_returns_requested_features() -> None:
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4), torch.nn.ReLU())
    wrapped = Network(
        net, mean=[0.1, 0.2, 0.3], std=[0.5, 0.25, 0.2], side=2, resize=2, features=["1"]
    )
    pixels = torch.randint(0, 256, (5, 3, 2, 2), dtype=torch.uint8)
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.5, 0.25, 0.2])
    expected = net((pixels / 255 - mean[:, None, None]) / std[:, None, None])
    out = wrapped(pixels)
    torch.testing.assert_close(out.prediction, expected)
    torch.testing.assert_close(out.features["1"].relu(), out.prediction)
    with pytest.raises(ValueError, match="feature 'nope' is not a submodule of Sequential"):
        Network(net, mean=[0], std=[1], side=2, resize=2, features=["nope"])


def test_function_matching_refuses_zero_temperature() -> None:
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        FunctionMatching(0)


def test_supervision_weights_the_loss_of_mixing_partners() -> None:
    learner = Supervision(network(8, seed=1), learning(2), TASK)
    rendered = image_stream(array_source(), MIXED, sides={"student": 8}, batch_size=8, seed=0)[0]
    batch = rendered.mixed()
    loss, _ = learner.loss(batch)
    logp = learner.student(batch.view("student")).prediction.log_softmax(1)
    a = rendered.coefficient
    by_hand = [
        -(a * logp[i, batch.truth.label[i]] + (1 - a) * logp[i, batch.truth.partner[i]])
        for i in range(8)
    ]
    torch.testing.assert_close(loss, torch.stack(by_hand).mean())


def test_supervision_without_labels_is_refused() -> None:
    learner = Supervision(network(8), learning(2), TASK)
    batch = Batch(torch.arange(2), None, 0, {"student": torch.rand(2, 3, 8, 8)})
    with pytest.raises(ValueError, match="labels are needed"):
        learner.loss(batch)


def test_per_image_targets_look_up_rows_by_index() -> None:
    table = torch.randn(20, CLASSES)
    stream = image_stream(array_source(), MIXED, sides={"student": 8}, batch_size=8, seed=0)
    batch = stream[0].mixed()
    out = per_image.PerImageTargets(teacher_of(network(8)), table[None])(batch)
    assert isinstance(out, Output)
    assert torch.equal(out.prediction, table[batch.index])


def test_fidelity_is_the_mean_over_examples_of_uneven_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 11, CLASSES, generator=generator)
    label = torch.randint(0, CLASSES, (11,), generator=generator)
    fidelity = Fidelity()
    for rows in (slice(0, 4), slice(4, 8), slice(8, 11)):
        fidelity.update(student[rows], teacher[rows], label[rows])
    metrics = {name: float(value) for name, value in fidelity.compute().items()}

    kl = sum(
        float(p * (p / q).log())
        for t, s in zip(teacher.double().softmax(1), student.double().softmax(1), strict=True)
        for p, q in zip(t, s, strict=True)
    )
    best, teacher_top1 = student.argsort(1, descending=True), teacher.argmax(1)
    assert metrics["student_top1"] == pytest.approx(sum(best[:, 0] == label) / 11)
    assert metrics["teacher_top1"] == pytest.approx(sum(teacher_top1 == label) / 11)
    assert metrics["agreement_top1"] == pytest.approx(sum(best[:, 0] == teacher_top1) / 11)
    inside = sum(int(teacher_top1[i]) in best[i, :5].tolist() for i in range(11))
    assert metrics["agreement_top5"] == pytest.approx(inside / 11)
    assert metrics["kl_to_teacher"] == pytest.approx(kl / 11, rel=1e-5)


def test_fidelity_omits_metrics_without_labels_or_teacher() -> None:
    logits = torch.randn(3, CLASSES)
    unlabelled, untaught = Fidelity(), Fidelity()
    unlabelled.update(logits, logits, None)
    untaught.update(logits, None, torch.zeros(3, dtype=torch.int64))
    assert set(unlabelled.compute()) == {"agreement_top1", "agreement_top5", "kl_to_teacher"}
    assert set(untaught.compute()) == {"student_top1"}
