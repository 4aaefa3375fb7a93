"""Objectives: gradients for split batches, setup, heads, memories and priors."""

import importlib
import math
import pkgutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor, distributed, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import funmatch.objectives
from funmatch.config.compose import config_directory
from funmatch.core.losses import kl_divergence
from funmatch.data.batch import Batch, Truth
from funmatch.experiment.objective_setup import set_up
from funmatch.models import conv
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network, Output
from funmatch.models.teacher import Teacher
from funmatch.objectives.base import Context, Loss, Objective, heads_lr, refuse_split
from funmatch.objectives.function_matching import FunctionMatching
from funmatch.objectives.memory import Memory
from funmatch.objectives.mse import SquaredError
from funmatch.optim import adam, sgd
from funmatch.targets import online, per_image
from funmatch.tasks.regression.task import Regression
from funmatch.training.distillation import Distillation
from funmatch.training.supervised import Supervision
from funmatch.views.recipes import Fixed, Recipe, Shared
from toys import CLASSES, TASK, array_source, fit, image_stream, learning, network, teacher_of

BATCH, SIDE, STEP = 8, 8, 3
MIXED = Shared(name="function_matching", crop="inception", mixing=True, min_area=0.3)
INPUT = {"mean": [0.5] * 3, "std": [0.5] * 3, "side": SIDE, "resize": SIDE}


def classes() -> dict[str, type[Objective]]:
    """Every objective in the package, by its path."""
    kinds = {}
    for module in pkgutil.walk_packages(funmatch.objectives.__path__, "funmatch.objectives."):
        for kind in vars(importlib.import_module(module.name)).values():
            if isinstance(kind, type) and issubclass(kind, Objective) and kind is not Objective:
                kinds[f"{kind.__module__}.{kind.__qualname__}"] = kind
    return kinds


def settings() -> dict[str, Path]:
    """Every configuration of an objective, by the path of its class."""
    paths = sorted((config_directory() / "objective").glob("*.yaml"))
    return {OmegaConf.load(path)["_target_"]: path for path in paths}


def recipes() -> dict[str, Recipe]:
    """Every recipe of the configuration tree."""
    loaded = {}
    for path in sorted((config_directory() / "recipe").glob("*.yaml")):
        loaded[path.stem] = instantiate(
            OmegaConf.load(path), min_area=0.3, mild=(12, SIDE), flip=True
        )
    return loaded


def student_of(objective: Objective | None) -> Network:
    """A float64 student: what rounding leaves between the sums of pieces is then below 1e-12."""
    torch.manual_seed(3)
    net = conv.build((8, 16), side=SIDE, num_classes=CLASSES, channels=3)
    nn.init.normal_(list(net.modules())[-1].weight)
    features = () if objective is None else objective.student_features
    return Network(net, **INPUT, features=features).set_compute_options(dtype=torch.float64)


def frozen_of(objective: Objective) -> Teacher:
    torch.manual_seed(4)
    net = conv.build((16, 32), side=SIDE, num_classes=CLASSES, channels=3)
    nn.init.normal_(list(net.modules())[-1].weight)
    network = Network(net, **INPUT, features=objective.teacher_features)
    return Teacher({"teacher": Frozen(network, dtype=torch.float64)})


def made(path: str) -> tuple[Objective, Network, Teacher]:
    objective: Objective = instantiate(OmegaConf.load(settings()[path]))
    student, teacher = student_of(objective), frozen_of(objective)
    total = {"total_steps": 10, "seed": 0, "device": torch.device("cpu")}
    set_up(objective, TASK, student, teacher, array_source(), **total)
    return objective.double(), student, teacher


def batches(recipe: Recipe, ranks: int) -> list[Batch]:
    """The shares of all ranks in one step."""
    how = {"sides": {"student": SIDE, "teacher": SIDE}, "batch_size": BATCH, "seed": 0}
    if isinstance(recipe, Fixed):
        how["sides"] = {"student": SIDE}
    streams = [
        image_stream(array_source(), recipe, **how, rank=rank, ranks=ranks) for rank in range(ranks)
    ]
    return [stream[STEP].mixed() for stream in streams]


def gradient(
    network: nn.Module, loss: Callable[[Batch], Tensor], shares: list[Batch], size: int | None
) -> tuple[float, Tensor]:
    """Loss and gradient of a step: pieces add up, ranks are averaged, as DDP does."""
    network.zero_grad()
    total = 0.0
    for share in shares:
        for piece in share.pieces(size):
            value = loss(piece) / len(shares)
            value.backward()
            total += float(value.detach())
    return total, torch.cat([p.grad.flatten().clone() for p in network.parameters()])


SPLITS = pytest.mark.parametrize(("size", "ranks"), [(1, 1), (3, 1), (7, 1), (None, 2), (3, 2)])


@SPLITS
@pytest.mark.parametrize("name", list(recipes()))
@pytest.mark.parametrize("path", list(classes()))
def test_objective_gradient_is_equal_for_any_split(
    path: str, name: str, size: int | None, ranks: int, tmp_path: Path
) -> None:
    objective, student, teacher = made(path)
    if objective.couples_rows:
        rows = BATCH // ranks
        split = {"micro_batch": size, "rows": rows, "ranks": ranks}
        if (size or rows) < rows or not objective.gathers_rows:
            with pytest.raises(ValueError, match=r"trainer\.(micro_batch|devices)"):
                refuse_split(objective, **split)
        return
    recipe = recipes()[name]
    targets = online.OnlineTargets(teacher)
    if isinstance(recipe, Fixed):
        how = {"seed": 0, "store": tmp_path, "batch_size": 6, "device": torch.device("cpu")}
        targets = per_image.on_fixed_views(teacher, array_source(), recipe, TASK, **how)
    both = nn.ModuleList([student.net, objective])

    def loss(piece: Batch) -> Tensor:
        return objective(student(piece.view("student")), targets(piece), piece).total

    whole, expected = gradient(both, loss, batches(recipe, 1), None)
    value, split_gradient = gradient(both, loss, batches(recipe, ranks), size)
    assert expected.abs().max() > 1e-3
    assert value == pytest.approx(whole, rel=1e-6)
    # The teacher's float32 logits may differ in the last bit with the size of its batch.
    torch.testing.assert_close(split_gradient, expected, rtol=1e-5, atol=1e-7)


@SPLITS
@pytest.mark.parametrize("mixing", [False, True])
def test_supervision_gradient_is_equal_for_any_split(
    mixing: bool, size: int | None, ranks: int
) -> None:
    recipe = replace(MIXED, mixing=mixing)
    student = student_of(None)
    learner = Supervision(student, learning(2), TASK)

    def loss(piece: Batch) -> Tensor:
        return learner.loss(piece)[0]

    whole, expected = gradient(student.net, loss, batches(recipe, 1), None)
    value, split_gradient = gradient(student.net, loss, batches(recipe, ranks), size)
    assert value == pytest.approx(whole, rel=1e-12)
    torch.testing.assert_close(split_gradient, expected, rtol=1e-10, atol=1e-12)


def test_objectives_and_configurations_correspond() -> None:
    assert set(classes()) == set(settings())
    assert all(get_class(path) is kind for path, kind in classes().items())


def _one_of_two(rank: int, folder: str) -> None:
    """A rank of a real process group: its share in uneven pieces, the gradient averaged by DDP."""
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    objective, student, teacher = made(f"{FunctionMatching.__module__}.FunctionMatching")
    wrapped = DistributedDataParallel(student)
    share = batches(MIXED, 2)[rank]
    pieces = list(share.pieces(3))
    for number, piece in enumerate(pieces):
        wrapped.require_backward_grad_sync = number == len(pieces) - 1
        target = teacher(piece.view)
        objective(wrapped(piece.view("student")), target, piece).total.backward()
    if rank == 0:
        grads = torch.cat([p.grad.flatten() for p in student.net.parameters()])
        torch.save(grads, f"{folder}/gradient.pt")
    distributed.destroy_process_group()


@pytest.mark.slow
def test_ddp_gradient_of_two_processes_equals_one(tmp_path: Path) -> None:
    mp.spawn(_one_of_two, (str(tmp_path),), nprocs=2)
    objective, student, teacher = made(f"{FunctionMatching.__module__}.FunctionMatching")

    def loss(piece: Batch) -> Tensor:
        return objective(student(piece.view("student")), teacher(piece.view), piece).total

    _, expected = gradient(student.net, loss, batches(MIXED, 1), None)
    torch.testing.assert_close(torch.load(tmp_path / "gradient.pt"), expected, rtol=1e-5, atol=1e-7)


# --- means over counts, and the truth of mixed batches -------------------------------------------


def plain(truth: Truth | None = None, **counts: float) -> Batch:
    return Batch(torch.arange(4), truth, 0, {"student": torch.zeros(4, 1)}, counts=counts)


def test_batch_mean_divides_by_global_counts() -> None:
    values = torch.tensor([1.0, 2.0, 3.0, 10.0])
    assert plain().mean(values) == values.mean()
    assert plain(rows=16).mean(values) == 1
    assert plain(masked=5).mean(values[:2], of="masked") == pytest.approx(3 / 5)
    assert plain(rows=3).mean(values, mask=torch.tensor([True, True, True, False])) == 2
    nothing = plain(masked=0).mean(torch.zeros(0, requires_grad=True), of="masked")
    assert nothing == 0  # not NaN
    with pytest.raises(ValueError, match="of='tokens': this batch counts rows, masked"):
        plain(masked=5).mean(values, of="tokens")


def test_label_of_a_mixed_batch_is_refused() -> None:
    batch = batches(MIXED, 1)[0]
    with pytest.raises(ValueError, match=r"task\.label_loss\(prediction, batch\.truth\)"):
        _ = batch.label
    whole = batches(replace(MIXED, mixing=False), 1)[0]
    assert torch.equal(whole.label, batch.truth.label)
    assert replace(batch, truth=None).label is None


def test_label_loss_weights_both_mixing_partners() -> None:
    batch = batches(MIXED, 1)[0]
    logits = torch.randn(BATCH, CLASSES, generator=torch.manual_seed(0), requires_grad=True)
    losses = TASK.label_loss(logits, batch.truth)
    c, own, partner = batch.truth.coefficient, batch.truth.label, batch.truth.partner
    log_p = logits.log_softmax(1)
    for i in range(BATCH):
        by_hand = -c * log_p[i, own[i]] - (1 - c) * log_p[i, partner[i]]
        assert float(losses[i].detach()) == pytest.approx(float(by_hand.detach()), rel=1e-5)
    batch.mean(losses).backward()
    target = c * F.one_hot(own, CLASSES) + (1 - c) * F.one_hot(partner, CLASSES)
    torch.testing.assert_close(logits.grad, (logits.softmax(1) - target) / BATCH)
    with pytest.raises(ValueError, match="labels are needed"):
        TASK.label_loss(logits, None)


# --- the objectives themselves -------------------------------------------------------------------


def test_squared_error_equals_the_formula_and_gradient() -> None:
    generator = torch.manual_seed(0)
    student = torch.randn(4, 3, generator=generator, requires_grad=True)
    teacher = torch.randn(4, 3, generator=generator)
    loss = SquaredError()(Output(student), Output(teacher), plain()).total
    by_hand = (
        sum(math.dist(s, t) ** 2 for s, t in zip(student.tolist(), teacher.tolist(), strict=True))
        / 4
    )
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-6)
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * (student.detach() - teacher) / 4)
    several = Output(teacher, members=((1.0, teacher), (3.0, teacher + 1)))
    summed = SquaredError()(Output(student), several, plain()).total
    other = SquaredError()(Output(student), Output(teacher + 1), plain()).total
    torch.testing.assert_close(summed, loss + 3 * other)


def context(task: object = TASK) -> Context:
    return Context(task, 20, None, {}, {}, 10, 0, dict)


def test_function_matching_refuses_regression() -> None:
    with pytest.raises(ValueError, match="regression predicts numbers; choose objective=mse"):
        FunctionMatching(1.0).setup(context(Regression()))


class Coupled(FunctionMatching):
    """A loss that compares examples with each other."""

    couples_rows = True


@pytest.mark.parametrize(
    ("split", "message"),
    [
        (
            {"micro_batch": 4},
            r"^compute\.micro_batch=4: Coupled compares .*; choose compute\.micro_batch=null$",
        ),
        (
            {"ranks": 2},
            r"^trainer\.devices: Coupled compares .*, and 2 ranks .*; choose trainer\.devices=1$",
        ),
    ],
)
def test_objective_that_couples_rows_refuses_splits(split: dict[str, int], message: str) -> None:
    given = {"micro_batch": None, "rows": 8, "ranks": 1, **split}
    with pytest.raises(ValueError, match=message):
        refuse_split(Coupled(1.0), **given)
    refuse_split(FunctionMatching(1.0), **given)
    refuse_split(Coupled(1.0), micro_batch=8, rows=8, ranks=1)
    gathering = Coupled(1.0)
    gathering.gathers_rows = True
    refuse_split(gathering, micro_batch=None, rows=8, ranks=2)


# --- heads, memories, priors ---------------------------------------------------------------------


class WithAll(Objective):
    """A head with a learning rate of its own, a memory of all examples, a prior on the weights."""

    student_features = ("linear",)
    teacher_features = ("linear",)
    lr_factors = {"head": 0.5}  # noqa: RUF012

    def setup(self, context: Context) -> None:
        super().setup(context)
        (width,), (teachers,) = context.student_shapes["linear"], context.teacher_shapes["linear"]
        self.head = nn.Linear(width, teachers)
        self.bank = Memory(torch.zeros(context.train_size, teachers))
        self.pending: list[tuple[Tensor, Tensor]] = []
        self.facts = context

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Loss:
        self.pending.append((batch.index, teacher.features["linear"]))
        distance = self.head(student.features["linear"]) - teacher.features["linear"]
        hint = batch.mean(distance.square().sum(1))
        soft = batch.mean(kl_divergence(student.prediction, teacher.prediction, temperature=300.0))
        return Loss(soft + 1e-6 * hint, {"hint": hint})

    def prior(self, student: Network, step: int) -> Loss:
        size = sum(p.square().sum() for p in student.net.parameters())
        return Loss(0.5 * size, {"prior": 0.5 * size})

    def after_step(self) -> None:
        for index, feature in self.pending:
            self.bank.value[index] = feature
        self.pending.clear()


def with_features(seed: int) -> Network:
    return Network(
        network(SIDE, seed).net,
        **{**INPUT, "mean": [0.0] * 3, "std": [1 / 255] * 3},
        features=["linear"],
    )


def with_all(steps: int, micro_batch: int | None = None) -> Distillation:
    objective, student, teacher = WithAll(), with_features(1), teacher_of(with_features(2))
    total = {"total_steps": steps, "seed": 5, "device": torch.device("cpu")}
    state, weights = torch.get_rng_state(), teacher.copy_weights()
    set_up(objective, TASK, student, teacher, array_source(), **total, weights=weights)
    assert torch.equal(torch.get_rng_state(), state)  # no other draw of the run changes by it
    how = replace(learning(steps), micro_batch=micro_batch)
    return Distillation(student, online.OnlineTargets(teacher), {}, objective, how, TASK)


def taught(steps: int, **how: object) -> Distillation:
    learner = with_all(10)
    fit(
        learner,
        array_source(),
        MIXED,
        sides={"student": SIDE, "teacher": SIDE},
        steps=steps,
        batch_size=BATCH,
        **how,
    )
    return learner


def test_objective_setup_receives_facts_of_the_run() -> None:
    facts = with_all(10).objective.facts
    assert (facts.train_size, facts.total_steps, facts.seed) == (20, 10, 5)
    assert facts.task is TASK
    assert torch.equal(facts.labels, array_source().labels(torch.arange(20).numpy()))
    assert facts.student_shapes == facts.teacher_shapes == {"linear": (CLASSES,)}
    weights = facts.teacher_weights["teacher.linear.weight"]
    assert torch.equal(weights, network(SIDE, 2).net.linear.weight)


def test_objective_heads_depend_only_on_the_seed() -> None:
    torch.manual_seed(99)
    one = with_all(10).objective.head.weight
    torch.manual_seed(98)
    assert torch.equal(with_all(10).objective.head.weight, one)


@pytest.mark.parametrize("make", [adam.adam, sgd.sgd])
def test_objective_head_has_its_own_learning_rate(make: Callable) -> None:
    learner = with_all(10)
    factors = learner.lr_factors()
    assert factors == {"objective.head": 0.5}
    optimizer = make(learner, lr=0.1, wd=0.01, lr_factors=factors)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    head = {id(p) for p in learner.objective.head.parameters()}
    assert {rates[each] for each in head} == {0.05}
    assert {rate for each, rate in rates.items() if each not in head} == {0.1}
    assert len(rates) == len(list(learner.parameters()))
    # A step without gradient takes the share wd off a weight, whatever its learning rate.
    before = learner.objective.head.weight.detach().clone()
    for parameter in learner.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.testing.assert_close(learner.objective.head.weight, before * 0.99)


def test_wrong_lr_factors_of_heads_are_refused() -> None:
    objective = with_all(10).objective
    objective.lr_factors = {"heat": 1.0}
    with pytest.raises(ValueError, match="WithAll has no submodule 'heat'"):
        heads_lr(objective, "objective")
    objective.lr_factors = {"head": 0.0}
    with pytest.raises(ValueError, match="head must be positive, got 0"):
        heads_lr(objective, "objective")


def test_memory_is_saved_as_extra_state_and_restored_exactly(tmp_path: Path) -> None:
    whole = taught(6)
    part = taught(3, folder=tmp_path)
    assert not torch.equal(part.objective.bank.value, whole.objective.bank.value)
    names = {name for name, _ in (*whole.named_buffers(), *whole.named_parameters())}
    assert not any("bank" in name for name in names)
    saved = torch.load(tmp_path / "state.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(saved["objective.bank._extra_state"], part.objective.bank.value)
    resumed = with_all(10)
    resumed.load_state_dict(saved)
    assert torch.equal(resumed.objective.bank.value, part.objective.bank.value)
    assert resumed.to("meta").objective.bank.value.device.type == "meta"
    with pytest.raises(ValueError, match=r"shape \[3\] cannot be restored from one of \[2\]"):
        Memory(torch.zeros(3)).set_extra_state(torch.zeros(2))


@pytest.mark.parametrize("size", [None, 3])
def test_prior_counts_once_per_step(size: int | None) -> None:
    """By the gradient of one step of SGD: that of the loss, and the weights themselves."""
    weights = {}
    for prior in (False, True):
        learner = with_all(2, size)
        how = {"optimizer": lambda module, lr_factors: sgd.sgd(module, lr=1e-3), "clip_norm": None}
        learner._learning = replace(learner._learning, **how, schedule=lambda step: 1.0)
        before = learner.student.net.linear.weight.detach().clone()
        if not prior:
            learner.objective.prior = lambda student, step: None
        sides = {"student": SIDE, "teacher": SIDE}
        fit(learner, array_source(), MIXED, sides=sides, steps=1, batch_size=BATCH)
        weights[prior] = learner.student.net.linear.weight.detach()
    torch.testing.assert_close(weights[True], weights[False] - 1e-3 * before, rtol=1e-5, atol=1e-7)


def test_skipped_step_does_not_update_the_memory() -> None:
    learner = with_all(10)
    forward = learner.objective.forward

    def broken(student: Output, teacher: Output, batch: Batch) -> Loss:
        loss = forward(student, teacher, batch)
        learner.objective.pending[-1][1].fill_(7.0)
        return Loss(loss.total * torch.nan)

    learner.objective.forward = broken
    learner._learning = replace(learner._learning, max_skipped=5)
    sides = {"student": SIDE, "teacher": SIDE}
    fit(learner, array_source(), MIXED, sides=sides, steps=1, batch_size=BATCH)
    assert learner.skipped == 1
    assert not learner.objective.bank.value.any()
