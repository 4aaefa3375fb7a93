"""What a run will need, before it starts: models, arithmetic, time, disk, what is missing."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from funmatch.config import identity, schema
from funmatch.config.errors import UserError
from funmatch.data import decoded_cache
from funmatch.data.sources import ArraySource
from funmatch.experiment import build, fitting, target_policy, teachers
from funmatch.models import pretrained, timm_models
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.runs.directory import Run
from funmatch.runtime import hardware

_PATIENCE = 5.0  # seconds to time a network for, beyond its first batch
_LIMIT = 16  # images of a timed batch


@dataclass(frozen=True)
class Cost:
    """Of one network.

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


def dry_run(cfg: DictConfig) -> None:
    """Prints what the run of a configuration needs, and what of it is not there."""
    fitting.prepare(cfg)
    place = build.device(cfg)
    steps = schema.total_steps(cfg)
    images = schema.train_size(cfg)
    epochs = steps * cfg.batch_size / images
    print(f"  recipe    {cfg.recipe.name}, data {cfg.data.name}, seed {cfg.seed}")
    print(f"  steps     {steps:,} of {cfg.batch_size} images ({epochs:,.0f} epochs of {images:,})")

    learns = "student" if "student" in cfg else "model"
    costs = {learns: _cost(cfg, cfg[learns], place, learns)}
    if "teacher" in cfg:
        for key, part in schema.teachers(cfg).items():
            costs[key] = _cost(cfg, part, place, "teacher")
    width = max(9, *map(len, costs))
    for key, cost in costs.items():
        way = "forward and backward" if key == learns else "forward"
        print(
            f"  {key:{width}} {_number(cost.parameters)} parameters, "
            f"{_number(cost.flop, 'FLOP')} an image of {cost.side} px ({way}), "
            f"{1 / cost.seconds:,.1f} images/s"
        )

    shown = dict.fromkeys(costs, steps * cfg.batch_size)
    if "teacher_crop" in cfg.recipe:  # asked once per image, and view
        views = cfg.recipe.ensemble if cfg.recipe.teacher_crop == "inception_ensemble" else 1
        shown |= {key: images * views for key in costs if key != learns}
    flop = sum(costs[key].flop * shown[key] for key in costs)
    seconds = sum(costs[key].seconds * shown[key] for key in costs) / schema.rank_count(cfg)
    print(f"  compute   {_number(flop, 'FLOP')}")
    print(f"  time      {_duration(seconds)} on {_machine(place, cfg)}, data and validation aside")
    _print_disk(cfg, costs[learns].parameters, steps)
    _print_cache(cfg)
    missing = list(_missing(cfg))
    for line in missing:
        print(f"  missing   {line}")
    print("  not ready: see what is missing" if missing else "  ready")


def _cost(cfg: DictConfig, part: DictConfig, place: torch.device, role: str) -> Cost:
    teaches = role == "teacher"
    with torch.device("meta"):
        sketch = build.blank(part).train(not teaches)
    channels = len(part.mean or (0, 0, 0))
    # What torch counts for the gradient of a kernel is that of an ungrouped convolution.
    corrected = {torch.ops.aten.convolution_backward: _backward}
    with FlopCounterMode(display=False, custom_mapping=corrected) as counter:
        # Two, for BatchNorm learns nothing from one.
        _pass(sketch, torch.empty(2, channels, sketch.side, sketch.side, device="meta"))
    parameters = sum(p.numel() for p in sketch.parameters())
    network = build.blank(part)
    asked = build.frozen(cfg, network) if teaches else build.tuned(cfg, network, role).to(place)
    mixed = cfg.trainer.precision != "32-true"

    def go(images: int) -> float:
        views = torch.rand(images, channels, network.side, network.side, device=place) * 255
        start = time.perf_counter()
        with torch.autocast(place.type, torch.bfloat16, enabled=mixed):
            _pass(asked, views)
        if place.type == "cuda":
            torch.cuda.synchronize(place)
        return time.perf_counter() - start

    return Cost(sketch.side, parameters, counter.get_total_flops() // 2, _seconds_per_image(go))


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
        logits = network(views).prediction
    if learns:
        logits.float().logsumexp(dim=-1).mean().backward()


def _seconds_per_image(go: Callable[[int], float]) -> float:
    """The best of several batches, after one that warms up."""
    once = go(2) / 2
    images = max(2, min(_LIMIT, int(_PATIENCE / 3 / max(once, 1e-9))))
    first = go(images)
    repeats = min(5, int(_PATIENCE / max(first, 1e-9)))
    return min([first, *(go(images) for _ in range(repeats))]) / images


def _print_disk(cfg: DictConfig, parameters: int, steps: int) -> None:
    state = 3 * 4 * parameters  # weights and two moments
    states = cfg.checkpoint_keep + 1  # old ones stay until the new one is whole
    targets = 0
    if "teacher" in cfg and "teacher_crop" in cfg.recipe:
        targets = 4 * schema.train_size(cfg) * cfg.data.classes * len(schema.teachers(cfg))
    elif "teacher" in cfg and cfg.targets.mode in ("auto", "record"):
        targets = target_policy.store_size(cfg, steps)
    logs = Path(cfg.paths.logs)
    print(
        f"  disk      about {_number(states * state + 4 * parameters + targets, 'B')} in {logs}; "
        f"{_number(hardware.free_disk_space(logs), 'B')} are free"
    )


def _print_cache(cfg: DictConfig) -> None:
    with suppress(UserError, ValueError):  # what is missing is said elsewhere
        train = build.splits(_without_download(cfg)).train
        if cfg.data.cache != "none" and not isinstance(train, ArraySource):
            size = decoded_cache.size(train, sample=64)
            print(f"  cache     about {_number(size, 'B')} decoded, in {cfg.paths.cache}")


def _missing(cfg: DictConfig) -> Iterator[str]:
    try:
        build.splits(_without_download(cfg))
    except (UserError, ValueError) as error:
        yield str(error)
    networks = {key: cfg[key] for key in ("student", "model") if key in cfg}
    if "teacher" in cfg:
        networks |= schema.teachers(cfg)
    for key, network in networks.items():
        name = network.get("weights")
        if name in pretrained.WEIGHTS and pretrained.locate(name) is None:
            yield f"{key}.weights={name}: not on this machine yet; the run fetches it"
        if name == "hub" and not timm_models.is_available(build.blank(network)):
            yield f"{key}.weights=hub: not on this machine yet; the run fetches it"
        if name is None and network.get("finetune"):
            making = teachers.teacher_config(cfg, network)
            if not Run(identity.run_directory(making)).completed:
                steps = schema.total_steps(making)
                yield f"{key}: not made yet; the run fine-tunes it first, {steps:,} steps"


def _without_download(cfg: DictConfig) -> DictConfig:
    cfg = cfg.copy()
    for data in (cfg.data, *(cfg.get("transfer") or {}).values()):
        if "download" in data:
            data.download = False
    return cfg


def _machine(place: torch.device, cfg: DictConfig) -> str:
    if place.type == "cuda":
        name = torch.cuda.get_device_name(place)
    else:
        name = f"{place.type} with {torch.get_num_threads()} threads"
    return f"{schema.rank_count(cfg)} x {name}"


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
