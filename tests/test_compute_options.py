"""Micro-batches, folded kernels, dtypes, memory layouts and compilation."""

import copy
import csv
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from omegaconf import DictConfig
from timm.layers.std_conv import StdConv2d
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch._inductor import config as inductor
from torch._inductor.utils import fresh_cache
from torch.nn import functional as F

from commands import QUICK, answers, command, command_here
from funmatch.data.batch import Batch
from funmatch.experiment import datasets, networks
from funmatch.experiment.build import build
from funmatch.models import bit, conv, folding
from funmatch.models.compiled import Compiled
from funmatch.models.frozen import Frozen, _digest
from funmatch.models.network import Network
from funmatch.models.teacher import Teacher
from funmatch.objectives.function_matching import FunctionMatching
from funmatch.optim import sgd
from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files
from funmatch.targets import base, online, per_image
from funmatch.targets.base import Targets
from funmatch.targets.recorded import RecordedTargets
from funmatch.targets.store import LogitStore
from funmatch.training.distillation import Distillation
from funmatch.training.learner import Learner
from funmatch.training.supervised import Supervision
from funmatch.views.recipes import Fixed, Shared
from small import only_run
from toys import CLASSES, TASK, array_source, fit, image_stream, learning, network, teacher_of

MIXED = Shared(name="function_matching", crop="inception", mixing=True, min_area=0.3)
BATCH, STEPS, SIDE = 8, 3, 8
INPUT = {"mean": [0.5] * 3, "std": [0.25] * 3}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pixels(rows: int, side: int, seed: int = 0) -> Tensor:
    return torch.randint(
        0, 256, (rows, 3, side, side), dtype=torch.uint8, generator=generator(seed)
    )


def apart(one: Tensor, other: Tensor) -> float:
    """The size of a difference, as a share."""
    return float((one - other).norm() / other.norm())


@torch.no_grad()
def awake(net: nn.Module, seed: int = 0) -> nn.Module:
    """The network with all weights drawn anew: no head of zeros, behind which all are equal."""
    for parameter in net.parameters():
        parameter.copy_(torch.empty_like(parameter).normal_(std=0.1, generator=generator(seed)))
        parameter.add_(parameter.ndim == 1)  # scales of the norms
    return net


# --- a batch in pieces ---------------------------------------------------------------------------


def batch(recipe: Any = MIXED, sides: dict[str, int] | None = None) -> Batch:
    stream = image_stream(
        array_source(), recipe, sides=sides or {"student": SIDE}, batch_size=BATCH, seed=0
    )
    return replace(stream[4].mixed(), first=16)


@pytest.mark.parametrize(
    ("size", "rows"),
    [
        (None, [8]),
        (8, [8]),
        (9, [8]),
        (7, [7, 1]),
        (4, [4, 4]),
        (3, [3, 3, 2]),
        (1, [1] * 8),
    ],
)
def test_batch_pieces_concatenate_to_the_batch(size: int | None, rows: list[int]) -> None:
    whole = batch(sides={"student": SIDE, "teacher": 10})
    pieces = list(whole.pieces(size))
    assert [len(piece.index) for piece in pieces] == rows
    assert all(piece.counts["rows"] == 8 for piece in pieces)  # of the whole batch
    assert [piece.first for piece in pieces] == [16 + sum(rows[:n]) for n in range(len(rows))]
    assert {piece.step for piece in pieces} == {4}
    assert {piece.truth.coefficient for piece in pieces} == {whole.truth.coefficient}
    for take in (
        lambda b: b.index,
        lambda b: b.truth.label,
        lambda b: b.truth.partner,
        lambda b: b.view("student"),
        lambda b: b.view("teacher"),
    ):
        assert torch.equal(torch.cat([take(piece) for piece in pieces]), take(whole))


def test_pieces_of_unlabelled_batches_have_no_labels() -> None:
    whole = replace(batch(), truth=None)
    assert [p.label for p in whole.pieces(4)] == [None] * 2


class Exact:
    """Lessons of students in float64, in which pieces and wholes differ by all but nothing."""

    def __init__(
        self, micro_batch: int | None, *, lr: float = 1e-4, clip_norm: float | None = 1000.0
    ) -> None:
        self.learning = replace(
            learning(STEPS),
            # In SGD an update is the gradient: a scale that is lost is not made good for.
            optimizer=lambda module: sgd.sgd(module, lr=lr, wd=1e-3),
            clip_norm=clip_norm,
            micro_batch=micro_batch,
        )
        net = awake(conv.build((8, 16), side=SIDE, num_classes=CLASSES, channels=3))
        student = Network(net, side=SIDE, resize=SIDE, **INPUT)
        self.student = student.set_compute_options(dtype=torch.float64)

    def trained_weights(self, learner: Learner, recipe: Any = MIXED) -> dict[str, Tensor]:
        """The weights in the end."""
        sides = {"student": SIDE, "teacher": 10}
        budget = {"steps": STEPS, "batch_size": BATCH}
        fit(learner, array_source(), recipe, sides=sides, **budget)
        return self.weights()

    def weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.student.net.named_parameters()}

    def distilled(self, targets: Targets, recipe: Any = MIXED) -> dict[str, Tensor]:
        objective = FunctionMatching(300.0)
        return self.trained_weights(
            Distillation(self.student, targets, {}, objective, self.learning, TASK), recipe
        )


def close(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    # The teacher returns float32, and its last bit depends on the size of a batch.
    torch.testing.assert_close(weights, expected, rtol=1e-6, atol=1e-7)


def learned(weights: dict[str, Tensor]) -> float:
    """How far all weights have come."""
    start, end = (torch.cat([w.flatten() for w in each.values()]) for each in (FRESH, weights))
    return apart(end, start)


def live() -> Targets:
    return online.OnlineTargets(teacher_of(network(10, seed=2)))


FRESH = Exact(None).weights()
SIZES = pytest.mark.parametrize("size", [1, 3, 4, 7, 8, 99])


@SIZES
def test_micro_batch_does_not_change_a_distilled_student(size: int) -> None:
    whole = Exact(None).distilled(live())
    close(Exact(size).distilled(live()), whole)
    assert learned(whole) > 0.01


@SIZES
def test_micro_batch_does_not_change_a_supervised_student(size: int) -> None:
    """Also under mixup, whose partners are of other pieces."""
    taught = [Exact(each, lr=0.1, clip_norm=0.5) for each in (None, size)]
    whole, cut = (t.trained_weights(Supervision(t.student, t.learning, TASK)) for t in taught)
    close(cut, whole)
    assert learned(whole) > 0.01


def test_micro_batch_does_not_change_a_fixed_teacher_student(tmp_path: Path) -> None:
    recipe = Fixed(name="fixed_teacher", crop="whole", min_area=0.3)
    how = {"seed": 0, "store": tmp_path, "batch_size": 6, "device": torch.device("cpu")}
    teacher = teacher_of(network(10, seed=2))
    targets = [
        per_image.on_fixed_views(teacher, array_source(), recipe, TASK, **how) for _ in range(2)
    ]
    close(Exact(3).distilled(targets[0], recipe), Exact(None).distilled(targets[1], recipe))


@pytest.mark.parametrize(("recording", "reading"), [(None, 3), (3, None), (3, 5)])
def test_recorded_targets_serve_any_micro_batch(
    tmp_path: Path, recording: int | None, reading: int | None
) -> None:
    def recorded(net: Network) -> RecordedTargets:
        records = {"teacher": LogitStore(tmp_path, {"kind": "steps"}, "float32")}
        return RecordedTargets(teacher_of(net), records, TASK, batch_size=BATCH, keep=True)

    recording_net, replaying_net = network(10, seed=2), network(10, seed=2)
    first = Exact(recording).distilled(recorded(recording_net))
    again = Exact(reading).distilled(recorded(replaying_net))
    assert sum(map(len, recording_net.net.seen)) == STEPS * BATCH
    assert not replaying_net.net.seen
    close(again, first)
    close(again, Exact(None).distilled(live()))


# --- one step, by hand ---------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [None, 1000.0, 1e9])
@pytest.mark.parametrize("size", [None, 3])
def test_gradient_is_clipped_once_per_step_as_by_torch(
    clip: float | None, size: int | None
) -> None:
    taught, twin = Exact(size, clip_norm=clip), Exact(None)
    trained = taught.distilled(live())
    net, targets = twin.student, live()
    optimizer = sgd.sgd(net, lr=1e-4, wd=1e-3)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, twin.learning.schedule)
    stream = image_stream(
        array_source(), MIXED, sides={"student": 8, "teacher": 10}, batch_size=BATCH, seed=0
    )
    norms = []
    for step in range(STEPS):
        whole = stream[step].mixed()
        target, logits = (
            targets(whole).prediction / 300,
            net(whole.view("student")).prediction / 300,
        )
        loss = F.kl_div(logits.log_softmax(1), target.softmax(1), reduction="batchmean")
        optimizer.zero_grad()
        (300**2 * loss).backward()
        weights = list(net.parameters())
        norms.append(float(nn.utils.clip_grad_norm_(weights, clip or float("inf"))))
        optimizer.step()
        schedule.step()
    assert min(norms) > 1000  # so that one of the three cases clips, and two do not
    assert max(norms) < 1e9
    close(trained, twin.weights())


# --- folded kernels ------------------------------------------------------------------------------

SHAPES = [
    ((1,), {"width": 0.5}, 32),
    ((1, 1), {"width": 1, "root_padding": "zero"}, 33),
    ((2, 1, 1), {"width": 0.5}, 40),
    ((1, 1, 1, 1), {"width": 0.5, "root_padding": "zero"}, 47),
]


def resnet(depth: tuple[int, ...] = (1, 1), **settings: Any) -> nn.Module:
    settings = {"width": 0.5, "num_classes": CLASSES, **settings}
    return awake(bit.build(depth, **settings)).eval()


def wrapped(net: nn.Module, side: int = 32, features: tuple[str, ...] = ()) -> Network:
    return Network(net, side=side, resize=side, features=features, **INPUT)


@pytest.mark.parametrize(("depth", "settings", "side"), SHAPES)
def test_folded_network_output_is_bit_identical(
    depth: tuple[int, ...], settings: dict[str, Any], side: int
) -> None:
    net = resnet(depth, **settings)
    images = torch.randn(3, 3, side, side, generator=generator(0))
    with torch.no_grad():
        before = net(images)
        kernels = sum(isinstance(module, StdConv2d) for module in net.modules())
        folding.fold(net)
        assert torch.equal(net(images), before)
    assert kernels > 3
    assert not any(isinstance(module, StdConv2d) for module in net.modules())
    assert float(before.std()) > 1e-3  # they say something
    assert not torch.equal(before[0], before[1])


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": 1},
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": 3, "groups": 2, "dilation": 2},
        {"kernel_size": (3, 2), "padding": (1, 0), "bias": True},
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folded_convolution_has_the_standardised_kernel(
    settings: dict[str, Any], dtype: torch.dtype
) -> None:
    conv = awake(StdConv2d(4, 6, eps=1e-8, **settings)).to(dtype)
    net = nn.Sequential(nn.Sequential(nn.Identity(), conv), nn.ReLU())
    images = torch.randn(2, 4, 9, 9, dtype=dtype, generator=generator(1))
    expected = net(images)
    folding.fold(net)
    plain = net[0][1]
    assert type(plain) is nn.Conv2d
    assert plain.weight.dtype == dtype
    assert torch.equal(net(images), expected)
    assert not torch.equal(plain.weight, conv.weight)


def test_fold_ignores_other_convolutions() -> None:
    """Those of timm that standardise in another way, too."""

    class Own(StdConv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    net = nn.Sequential(nn.Conv2d(3, 4, 3), awake(Own(4, 4, 3)))
    layers = list(net)
    images = torch.randn(1, 3, 8, 8, generator=generator(0))
    expected = net(images)
    folding.fold(net)
    assert list(net) == layers
    assert torch.equal(net(images), expected)


def test_folded_convolutions_still_return_features() -> None:
    names = ("stages.0.blocks.0.conv2", "stages.1.blocks.0.downsample.conv", "norm")
    live, twin = (wrapped(resnet(), features=names) for _ in range(2))
    frozen = Frozen(twin)
    with torch.no_grad():
        expected = live.eval()(pixels(3, 32))
    for _ in range(2):  # none is left over from the first time
        output = frozen(pixels(3, 32))
        assert list(output.features) == list(expected.features)
        assert len(names) == len(output.features)
        for name in names:
            assert torch.equal(output.features[name], expected.features[name])
    assert type(dict(twin.net.named_modules())[names[0]]) is nn.Conv2d


def test_fingerprint_is_that_of_the_unmodified_network() -> None:
    net = resnet()
    plain = _digest(wrapped(copy.deepcopy(net)))
    ways: list[dict[str, Any]] = [{}, {"dtype": torch.bfloat16}, {"channels_last": True}]
    for way in ways:
        early, late = (Frozen(wrapped(copy.deepcopy(net)), **way) for _ in range(2))
        assert early.fingerprint() == plain
        for frozen in (early, late):  # it is changed at its first forward pass
            frozen(pixels(1, 32))
            assert frozen.fingerprint() == plain
    folded = copy.deepcopy(net)
    folding.fold(folded)
    assert _digest(wrapped(folded)) != plain  # or it would not matter


# --- dtype and layout ----------------------------------------------------------------------------


@pytest.mark.parametrize("channels_last", [False, True])
def test_bfloat16_teacher_returns_nearly_equal_float32_outputs(channels_last: bool) -> None:
    names = ("stages.0.blocks.0.conv2",)
    exact = Frozen(wrapped(resnet(), features=names))(pixels(4, 32))
    network = wrapped(resnet(), features=names)
    frozen = Frozen(network, dtype=torch.bfloat16, channels_last=channels_last)
    output = frozen(pixels(4, 32))
    for one, other in (
        (output.prediction, exact.prediction),
        (output.features[names[0]], exact.features[names[0]]),
    ):
        assert one.dtype == torch.float32
        assert 1e-5 < apart(one, other) < 0.05
    assert {weight.dtype for weight in network.net.parameters()} == {torch.bfloat16}
    assert {network.scale.dtype, network.shift.dtype} == {torch.float32}  # pixels are exact
    if channels_last:
        last = torch.channels_last
        for weight in network.net.parameters():
            assert weight.is_contiguous(
                memory_format=last if weight.ndim == 4 else torch.contiguous_format
            )
        assert output.features[names[0]].is_contiguous(memory_format=last)


@pytest.mark.parametrize("around", [torch.bfloat16, torch.float16])
def test_autocast_does_not_affect_a_bfloat16_teacher(around: torch.dtype) -> None:
    frozen = Frozen(wrapped(resnet()), dtype=torch.bfloat16)
    alone = frozen(pixels(4, 32)).prediction
    with torch.autocast("cpu", around):
        assert torch.equal(frozen(pixels(4, 32)).prediction, alone)
        assert torch.is_autocast_enabled("cpu")  # for the student
        reached = Frozen(wrapped(resnet()))(pixels(4, 32)).prediction  # as it must, in 16-mixed
    assert not torch.equal(reached.float(), Frozen(wrapped(resnet()))(pixels(4, 32)).prediction)


def test_store_metadata_contains_the_dtype() -> None:
    for dtype, name in ((torch.float32, "float32"), (torch.bfloat16, "bfloat16")):
        member = Frozen(wrapped(resnet((1,))), dtype=dtype)
        assert base.store_metadata(member, array_source())["dtype"] == name


@pytest.fixture
def configured(compose) -> Callable[..., DictConfig]:
    """Students of a second, by name of the network."""

    def call(student: str, *overrides: str) -> DictConfig:
        named = {
            "digits": [],
            "mobilenet": ["student=mobilenet_v3_small", "student.net.name=mobilenetv3_small_050"],
            "resnet": ["student=bit_tiny", "student.net.depth=[1]"],
        }
        return compose("trainer.accelerator=cpu", *named[student], *overrides)

    return call


def layouts(network: Network) -> set[torch.memory_format]:
    """Of the kernels whose strides tell it."""
    kernels = [w for w in network.parameters() if w.ndim == 4 and w.shape[1] > 1 < w.shape[2]]
    return {
        torch.contiguous_format if kernel.is_contiguous() else torch.channels_last
        for kernel in kernels
    }


@pytest.mark.parametrize(
    ("student", "overrides", "layout"),
    [
        ("digits", "", torch.contiguous_format),
        ("resnet", "", torch.contiguous_format),
        ("mobilenet", "", torch.contiguous_format),
        ("mobilenet", "student.net.norm=batch", torch.channels_last),
        (
            "mobilenet",
            "student.net.norm=batch compute.channels_last=false",
            torch.contiguous_format,
        ),
        ("digits", "compute.channels_last=true", torch.channels_last),
    ],
)
def test_channels_last_auto_excludes_group_norm_networks(
    configured, student: str, overrides: str, layout: torch.memory_format
) -> None:
    cfg = configured(student, *overrides.split())
    assert layouts(networks.build_student(build(cfg))) == {layout}
    cfg.teacher = {**cfg.student, "members": {}}
    teacher = untrained_teacher(cfg)
    (member,) = teacher.members.values()
    member(torch.zeros(1, len(cfg.student.mean), member.side, member.side))
    assert layouts(member._network) == {layout}


def untrained_teacher(cfg: DictConfig) -> Teacher:
    experiment = build(cfg)
    task = datasets.build_task(experiment.data)
    return networks.build_teacher(experiment, task, networks.build_network)


@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("training", [False, True])
def test_channels_last_does_not_change_logits(configured, norm: str, training: bool) -> None:
    cfg = configured("mobilenet", f"student.net.norm={norm}", "student.side=32")
    predictions = []
    for last in (False, True):
        torch.manual_seed(0)
        network = networks.build_network(build(cfg).student)
        nn.init.normal_(network.net.classifier.weight)
        network.train(training).set_compute_options(channels_last=last)
        activations: list[Tensor] = []
        stem = network.net.conv_stem
        stem.register_forward_hook(
            lambda *args, activations=activations: activations.extend((*args[1], args[2]))
        )
        predictions.append(network(pixels(4, 32)).prediction.detach())
        layout = torch.channels_last if last else torch.contiguous_format
        assert all(
            tensor.is_contiguous(memory_format=layout) for tensor in activations
        )  # into it and out
    torch.testing.assert_close(*predictions, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("precision", "dtype"),
    [
        ("32-true", torch.float32),
        ("bf16-mixed", torch.bfloat16),
        ("16-mixed", torch.float32),
    ],
)
def test_teacher_dtype_follows_trainer_precision(
    configured, precision: str, dtype: torch.dtype
) -> None:
    cfg = configured("digits", f"trainer.precision={precision}")
    (member,) = untrained_teacher(cfg).members.values()
    assert member.dtype == dtype


# --- compiled networks ---------------------------------------------------------------------------


def tiny() -> nn.Module:
    return awake(conv.build((8,), side=SIDE, num_classes=CLASSES, channels=3))


def gradients(net: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    grads = torch.autograd.grad(logits.square().sum(), list(net.parameters()))
    return dict(zip(dict(net.named_parameters()), grads, strict=True))


@pytest.fixture
def graphs() -> Callable[[], int]:
    """How many graphs torch has compiled since."""
    torch._dynamo.reset()
    counters.clear()
    return lambda: counters["stats"]["unique_graphs"]


@contextmanager
def without_compiler() -> Iterator[None]:
    """As on a machine that has none, and no kernels of earlier runs."""
    with fresh_cache(), inductor.patch({"cpp.cxx": ("/nonexistent",)}):
        yield


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_network_is_compiled_only_for_its_batch_size_and_mode(graphs, capsys) -> None:
    plain, net = tiny(), tiny()
    plain_network, network = (
        wrapped(plain, SIDE),
        wrapped(net, SIDE).set_compute_options(compiled=4),
    )
    for rows, training in ((3, True), (4, False)):  # not for these
        for each in (plain_network, network):
            each.train(training)
        images = pixels(rows, SIDE)
        assert torch.equal(network(images).prediction, plain_network(images).prediction)
    assert graphs() == 0

    compiled_logits, expected = (
        n.train()(pixels(4, SIDE)).prediction for n in (network, plain_network)
    )
    assert graphs() == 1
    torch.testing.assert_close(compiled_logits, expected)
    torch.testing.assert_close(gradients(net, compiled_logits), gradients(plain, expected))
    torch.testing.assert_close(
        network(pixels(4, SIDE, seed=1)).prediction,
        plain_network(pixels(4, SIDE, seed=1)).prediction,
    )
    network(pixels(5, SIDE))
    assert graphs() == 1
    assert capsys.readouterr().out == ""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_backward_pass_is_compiled_with_the_forward_pass(graphs) -> None:
    """Else a compiler that fails would be noticed too late to fall back to eager mode."""
    with fresh_cache():
        wrapped(tiny().train(), SIDE).set_compute_options(compiled=4)(pixels(4, SIDE))
    assert counters["inductor"]["fxgraph_cache_miss"] == 2


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler")
def test_more_than_eight_networks_are_compiled(graphs) -> None:
    """More than torch's own limit of eight for one function."""
    for width in range(1, 10):
        net = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIDE**2, width))
        wrapped(net, SIDE).set_compute_options(compiled=4)(pixels(4, SIDE))
    assert graphs() == 9


def test_network_with_requested_features_is_not_compiled(graphs, capsys) -> None:
    network = wrapped(tiny(), SIDE, features=("0",)).set_compute_options(compiled=4)
    reason = "its features are requested"
    assert (
        capsys.readouterr().out == f"  compile: Sequential runs without torch.compile ({reason})\n"
    )
    assert list(network(pixels(4, SIDE)).features) == ["0"]
    assert graphs() == 0


def test_compiled_network_raises_out_of_memory(graphs, monkeypatch) -> None:
    compiled = Compiled(tiny(), rows=4, training=True)

    def too_much(images: Tensor) -> Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(compiled, "_fast", too_much)
    with pytest.raises(torch.OutOfMemoryError):
        compiled(torch.zeros(4, 3, SIDE, SIDE))


def test_missing_compiler_is_reported_once_and_network_runs_eagerly(graphs, capsys) -> None:
    net = tiny()
    compiled = Compiled(net, rows=4, training=True)
    images = torch.randn(4, 3, SIDE, SIDE, generator=generator(0))
    with without_compiler():
        predictions = [compiled(images) for _ in range(3)]
    assert all(torch.equal(each, net(images)) for each in predictions)
    output = capsys.readouterr().out
    assert output.startswith("  compile: Sequential runs without torch.compile (")
    assert "/nonexistent" in output
    assert output.count("\n") == 1


def test_error_of_the_network_is_raised_without_compiler(graphs) -> None:
    """And no matter of the compiler."""
    compiled = Compiled(nn.Linear(3, 3), rows=4, training=True)
    with without_compiler(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        compiled(torch.zeros(4, 2))


@pytest.mark.parametrize(
    ("settings", "teacher", "student"),
    [
        ("compile=none", None, None),
        ("compile=teacher", 100, None),
        ("compile=student", None, 100),
        ("compile=both", 100, 100),
        ("compile=both micro_batch=30", 30, 30),
        ("compile=both micro_batch=300", 100, 100),
    ],
)
def test_compiled_batch_size_follows_compile_and_micro_batch(
    configured, settings: str, teacher: int | None, student: int | None
) -> None:
    cfg = configured("digits", *(f"compute.{each}" for each in settings.split()))
    experiment = build(cfg)
    assert experiment.teacher is not None
    specs = experiment.teacher.members["teacher"], experiment.student
    compiled = [
        networks._compute_options(experiment, wrapped(tiny()), spec)["compiled"] for spec in specs
    ]
    assert compiled == [teacher, student]


# --- real commands -------------------------------------------------------------------------------

SETTINGS = (
    *QUICK,
    *("steps=6", "schedule.warmup_steps=2", "validate_every=3", "trainer.log_every_n_steps=1"),
    *("batch_size=20", "teacher.weights=teacher.safetensors"),
)


def trained(home: Path, name: str, *overrides: str) -> tuple[Run, str]:
    """A successful run and the output of its command, which runs in this process."""
    torch.manual_seed(0)
    teacher = conv.build((32, 64), side=8, num_classes=10)
    nn.init.normal_(teacher[-1].weight, std=0.3)
    atomic_files.write(home / "teacher.safetensors", safetensors.torch.save(teacher.state_dict()))
    code, out, err = command_here("train", *SETTINGS, f"name={name}", *overrides, cwd=home)
    assert (code, err) == (0, "")
    return only_run(home, name), out


def losses(run: Run) -> list[float]:
    rows = csv.DictReader(run.metrics.read_text().splitlines())
    return [float(row["train/loss"]) for row in rows if row["train/loss"]]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return trained(tmp_path_factory.mktemp("home"), "plain")[0]


def normalised(**settings: Any) -> nn.Module:
    return nn.Sequential(nn.BatchNorm2d(1), conv.build(**settings))


def test_micro_batch_warns_of_batch_normalisation(configured, capsys) -> None:
    for net, warnings in (
        ("test_compute_options.normalised", 1),
        ("funmatch.models.conv.build", 0),
    ):
        cfg = configured("digits", "compute.micro_batch=30", f"student.net._target_={net}")
        networks.build_student(build(cfg))
        message = (
            "compute.micro_batch=30: BatchNorm of the student sees 30 images at a time, not 100"
        )
        assert capsys.readouterr().out == f"  {message}\n" * warnings


def test_run_with_micro_batch_has_the_same_losses(plain: Run, tmp_path: Path) -> None:
    pieces, _ = trained(tmp_path, "pieces", "compute.micro_batch=7")
    assert pieces.directory.name == plain.directory.name
    assert losses(pieces) == pytest.approx(losses(plain), rel=1e-3)


def test_run_in_mixed_precision_completes_with_close_losses(plain: Run, tmp_path: Path) -> None:
    mixed, _ = trained(tmp_path, "mixed", "trainer.precision=bf16-mixed", "targets=record")
    assert mixed.completed
    assert mixed.directory.name != plain.directory.name
    assert losses(mixed) == pytest.approx(losses(plain), rel=0.05)
    assert losses(mixed) != losses(plain)
    abouts = [json.loads(path.read_text()) for path in tmp_path.glob("logs/targets/*/about.json")]
    stored = sorted((about["kind"], about["dtype"]) for about in abouts)
    assert stored == [("evaluation", "bfloat16")] * 2 + [("steps", "bfloat16")]
    student = safetensors.torch.load_file(mixed.student)
    assert {weight.dtype for weight in student.values()} == {torch.float32}


@pytest.mark.slow
def test_run_without_compiler_falls_back_to_eager(plain: Run, tmp_path: Path) -> None:
    machine = {"CXX": "/nonexistent", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "kernels")}
    shutil.copy(plain.directory.parents[2] / "teacher.safetensors", tmp_path)
    settings = (*SETTINGS, "name=compiled", "compute.compile=both")
    done = command("train", *settings, cwd=tmp_path, **machine)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("  compile: Sequential runs without torch.compile (") == 2
    run = only_run(tmp_path, "compiled")
    assert run.directory.name == plain.directory.name
    assert run.student.read_bytes() == plain.student.read_bytes()
    assert run.metrics.read_bytes() == plain.metrics.read_bytes()


def test_wrong_compute_options_are_refused_in_one_line(tmp_path: Path) -> None:
    remedies = {
        "compute.micro_batch=0": "give a whole number from 1, or null",
        "compute.micro_batch=1.5": None,
        "compute.channels_last=maybe": "choose auto, true or false",
        "compute.compile=yes": "choose none, teacher, student or both",
        "trainer.precision=bf16": "choose 32-true, bf16-mixed or 16-mixed",
    }
    responses = answers([("train", mistake) for mistake in remedies], cwd=tmp_path)
    for mistake, remedy in remedies.items():
        code, out, err = responses["train", mistake]
        assert (code, out, err.count("\n")) == (1, "", 1)
        if remedy is not None:
            assert err == f"error: {mistake}: {remedy}\n"
