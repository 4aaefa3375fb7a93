"""A dry run: the networks, arithmetic, time and disk that a run needs, and what is missing."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from funmatch.config.errors import UserError
from funmatch.data import decoded_cache
from funmatch.data.sources import ArraySource
from funmatch.experiment import datasets, networks, target_policy
from funmatch.experiment.build import build_teacher_experiment
from funmatch.experiment.device import configure_torch, device
from funmatch.experiment.experiment import Experiment
from funmatch.experiment.specs import NetworkSpec
from funmatch.models import pretrained, timm_models
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.runtime import hardware
from funmatch.tasks.base import Task
from funmatch.views.recipes import Fixed

_TIMING_S = 5.0  # for each network, beyond its first batch
_MAX_BATCH = 16  # images of a timed batch


@dataclass(frozen=True)
class Cost:
    """Compute cost of one network.

    Attributes:
        side: of its views, pixels.
        parameters: trainable numbers.
        flop: floating-point operations for one image (a multiply-add is two).
        seconds: for one image on this machine.
    """

    side: int
    parameters: int
    flop: int
    seconds: float


def dry_run(experiment: Experiment) -> None:
    """Prints what a run needs, and what of it is missing."""
    configure_torch(experiment)
    current = device(experiment)
    steps, images = experiment.steps, experiment.train_size
    batch_size, epochs = experiment.batch_size, experiment.epochs
    data, seed = experiment.data.name, experiment.seed
    print(f"  recipe    {experiment.recipe_name}, data {data}, seed {seed}")
    print(f"  steps     {steps:,} of {batch_size} images ({epochs:,.0f} epochs of {images:,})")

    learns = experiment.student.key
    task = datasets.build_task(experiment.data)
    costs = {spec.key: _cost(experiment, spec, task, current) for spec in _networks(experiment)}
    width = max(9, *map(len, costs))
    for key, cost in costs.items():
        way = "forward and backward" if key == learns else "forward"
        print(
            f"  {key:{width}} {_number(cost.parameters)} parameters, "
            f"{_number(cost.flop, 'FLOP')} an image of {cost.side} px ({way}), "
            f"{1 / cost.seconds:,.1f} images/s"
        )

    shown = dict.fromkeys(costs, steps * batch_size)
    recipe = datasets.build_recipe(experiment)
    if isinstance(recipe, Fixed):  # the teacher sees each image once, or once in each of its views
        views = recipe.ensemble if recipe.random_teacher_views else 1
        shown |= {key: images * views for key in costs if key != learns}
    flop = sum(costs[key].flop * shown[key] for key in costs)
    seconds = sum(costs[key].seconds * shown[key] for key in costs) / experiment.ranks
    print(f"  compute   {_number(flop, 'FLOP')}")
    machine = _machine(current, experiment)
    print(f"  time      {_duration(seconds)} on {machine}, data and validation aside")
    _print_disk(experiment, costs[learns].parameters, isinstance(recipe, Fixed))
    _print_cache(experiment)
    missing = list(_missing(experiment))
    for line in missing:
        print(f"  missing   {line}")
    print("  not ready: see what is missing" if missing else "  ready")


def _networks(experiment: Experiment) -> list[NetworkSpec]:
    """The student and the teachers."""
    teacher = experiment.teacher
    return [experiment.student, *(teacher.members.values() if teacher else ())]


def _cost(experiment: Experiment, spec: NetworkSpec, task: Task, current: torch.device) -> Cost:
    with torch.device("meta"):
        sketch = networks.build_network(spec).train(not spec.is_teacher)
        pair = task.example(sketch, 2)  # for BatchNorm learns nothing from one
    # What torch counts for the gradient of a kernel is that of an ungrouped convolution.
    corrected = {torch.ops.aten.convolution_backward: _backward}
    with FlopCounterMode(display=False, custom_mapping=corrected) as counter:
        _pass(sketch, pair)
    parameters = sum(p.numel() for p in sketch.parameters())
    network = networks.build_network(spec)
    built: Network | Frozen
    if spec.is_teacher:
        built = networks.freeze(experiment, network, spec)
    else:
        built = networks.with_compute_options(experiment, network, spec).to(current)
    mixed = experiment.precision != "32-true"

    def time_pass(images: int) -> float:
        views = task.example(network, images).to(current)
        start = time.perf_counter()
        with torch.autocast(current.type, torch.bfloat16, enabled=mixed):
            _pass(built, views)
        if current.type == "cuda":
            torch.cuda.synchronize(current)
        return time.perf_counter() - start

    return Cost(
        sketch.side, parameters, counter.get_total_flops() // 2, _seconds_per_image(time_pass)
    )


def _backward(
    grad_out: list[int], images: list[int], kernel: list[int], *rest: Any, **_: object
) -> int:
    """FLOPs of the gradients of a convolution, from shapes: each as much as the convolution."""
    *_rest, transposed, _padding, _groups, wanted = rest
    positions = images if transposed else grad_out
    return 2 * math.prod(positions) * math.prod(kernel[1:]) * sum(wanted[:2])


def _pass(network: Network | Frozen, views: Tensor) -> None:
    learns = isinstance(network, Network) and network.training
    with torch.set_grad_enabled(learns):
        prediction = network(views).prediction
    if learns:
        prediction.float().mean().backward()


def _seconds_per_image(time_pass: Callable[[int], float]) -> float:
    """The best of several batches, after one that warms up."""
    once = time_pass(2) / 2
    images = max(2, min(_MAX_BATCH, int(_TIMING_S / 3 / max(once, 1e-9))))
    first = time_pass(images)
    repeats = min(5, int(_TIMING_S / max(first, 1e-9)))
    return min([first, *(time_pass(images) for _ in range(repeats))]) / images


def _print_disk(experiment: Experiment, parameters: int, fixed_teacher: bool) -> None:
    state = 3 * 4 * parameters  # weights and two moments
    states = experiment.checkpoint_keep + 1  # old ones stay until the new one is whole
    targets = 0
    if experiment.teacher is not None and fixed_teacher:
        values = experiment.data.classes * len(experiment.teacher.members)
        targets = 4 * experiment.train_size * values
    elif experiment.targets is not None and experiment.targets.mode in ("auto", "record"):
        targets = target_policy.store_size(experiment, experiment.steps)
    logs = experiment.paths.logs
    print(
        f"  disk      about {_number(states * state + 4 * parameters + targets, 'B')} in {logs}; "
        f"{_number(hardware.free_disk_space(logs), 'B')} are free"
    )


def _print_cache(experiment: Experiment) -> None:
    with suppress(UserError, ValueError):  # `_missing` reports it
        train = datasets.load_splits(_without_download(experiment)).train
        if experiment.data.cache != "none" and not isinstance(train, ArraySource):
            size = decoded_cache.size(train, sample=64)
            print(f"  cache     about {_number(size, 'B')} decoded, in {experiment.paths.cache}")


def _missing(experiment: Experiment) -> Iterator[str]:
    try:
        datasets.load_splits(_without_download(experiment))
    except (UserError, ValueError) as error:
        yield str(error)
    for spec in _networks(experiment):
        key, name = spec.key, spec.weights
        if name in pretrained.WEIGHTS and pretrained.locate(name) is None:
            yield f"{key}.weights={name}: not on this machine yet; the run fetches it"
        if name == "hub" and not timm_models.is_available(networks.build_network(spec)):
            yield f"{key}.weights=hub: not on this machine yet; the run fetches it"
        if name is None and spec.made_by is not None:
            making = build_teacher_experiment(spec, experiment)
            if not making.run.completed:
                verb = "distils" if making.objective is not None else "fine-tunes"
                yield f"{key}: not made yet; the run {verb} it first, {making.steps:,} steps"


def _without_download(experiment: Experiment) -> Experiment:
    return replace(
        experiment,
        data=experiment.data.without_download(),
        training_sets=tuple(data.without_download() for data in experiment.training_sets),
    )


def _machine(current: torch.device, experiment: Experiment) -> str:
    if current.type == "cuda":
        name = torch.cuda.get_device_name(current)
    else:
        name = f"{current.type} with {torch.get_num_threads()} threads"
    return f"{experiment.ranks} x {name}"


def _number(value: float, unit: str = "") -> str:
    """1.2e9 as "1.2 G", and of bytes as "1.2 GB"."""
    value = float(f"{value:.3g}")  # 999,600 are 1 M
    power = min(6, max(0, int(math.log10(max(value, 1)) // 3)))
    return f"{value / 1000**power:,.3g} {['', 'k', 'M', 'G', 'T', 'P', 'E'][power]}{unit}".rstrip()


def _duration(seconds: float) -> str:
    for unit, length in (("years", 365 * 86400), ("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:,.0f} seconds"
