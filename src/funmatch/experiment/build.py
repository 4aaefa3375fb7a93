"""From a configuration to the parts of a run."""

import logging
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from omegaconf import DictConfig, ListConfig
from torch import nn

from funmatch.config import schema
from funmatch.config.errors import UserError
from funmatch.data import corrupt_images
from funmatch.data.file_list import DataNotFoundError
from funmatch.data.sources import ConcatSource, Source, Splits
from funmatch.models import load_weights, timm_models
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.models.teacher import NAME, Teacher
from funmatch.runs.directory import Run
from funmatch.runtime import distributed
from funmatch.runtime.allowlist import instantiate
from funmatch.tasks.base import Task
from funmatch.tasks.classification.task import Classification
from funmatch.training.datamodule import DataModule
from funmatch.training.learner import Learning
from funmatch.views.image_views import ImageViews, Placement
from funmatch.views.recipes import Recipe

_log = logging.getLogger(__name__)


def say(text: str) -> None:
    """For whoever watches; once, not by every rank."""
    if distributed.rank() == 0:
        _log.info("  %s", text)


def task(cfg: DictConfig) -> Task:
    """The task of the data; classification for data that name none, as all did once."""
    found = cfg.data.get("task")
    return Classification(cfg.data.classes) if found is None else instantiate(found)


def learner(cfg: DictConfig, role: str, features: tuple[str, ...] = ()) -> Network:
    """The network that learns, `cfg.student` or `cfg.model`, with the weights it starts from."""
    part = cfg[role]
    bare = blank(part, features)
    if part.weights is not None:
        load_weights.load(bare.net, part.weights, head=part.head)
    note_batch_norms(cfg, bare, role)
    return tuned(cfg, bare, role)


def note_batch_norms(cfg: DictConfig, module: nn.Module, role: str) -> None:
    """Says that BatchNorm normalises over fewer images where a batch is cut into micro-batches."""
    share, piece = cfg.batch_size // schema.rank_count(cfg), _rows(cfg)
    norms = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules())
    if norms and piece < share:
        told = f"BatchNorm of the {role} sees {piece} images at a time, not {share}"
        say(f"compute.micro_batch={piece}: {told}")


def left(cfg: DictConfig, run: Run) -> Network:
    """The student that a run has left."""
    network = blank(schema.student(cfg))
    load_weights.load(network.net, run.student)
    return network


def blank(cfg: DictConfig, features: tuple[str, ...] = ()) -> Network:
    """A network as its config describes it, with fresh weights."""
    try:
        net: nn.Module = instantiate(cfg.net)
        inputs = timm_models.resolve_input_spec(
            net, mean=cfg.mean, std=cfg.std, side=cfg.side, resize=cfg.resize
        )
    except ValueError as error:
        if re.match(r"\w+=", str(error)):  # it names a key of the network, but not whose
            raise UserError(f"{cfg._get_full_key(None)}.{error}") from error
        raise
    return Network(net, **inputs, features=features)


def teacher(cfg: DictConfig, load: Callable[[DictConfig], Network]) -> Teacher:
    """The teacher, of one network or several, each made by `load` from its config."""
    networks = {
        key.rpartition(".")[2]: frozen(cfg, load(part))
        for key, part in schema.teachers(cfg).items()
    }
    if not cfg.teacher.get("members"):
        return Teacher({NAME: networks["teacher"]})
    shares = cfg.teacher.shares
    return Teacher(
        {f"{NAME}.{name}": network for name, network in networks.items()},
        combine=cfg.teacher.combine,
        weights=None if shares is None else tuple(float(shares[name]) for name in networks),
        means=task(cfg).means,
    )


def frozen(cfg: DictConfig, network: Network) -> Frozen:
    """A network that teaches, as the run computes it."""
    dtype = torch.bfloat16 if cfg.trainer.precision == "bf16-mixed" else torch.float32
    return Frozen(network, dtype=dtype, **_tuning(cfg, network, "teacher"))


def tuned(cfg: DictConfig, network: Network, role: str) -> Network:
    """A network that learns, as the run computes it."""
    return network.set_compute_options(**_tuning(cfg, network, role))


def _tuning(cfg: DictConfig, network: Network, role: str) -> dict[str, Any]:
    """How a network computes: its memory layout, and whether it is compiled."""
    channels_last = cfg.compute.channels_last
    if channels_last == "auto":
        # On a CPU GroupNorm is slower in this layout, all else is faster.
        channels_last = not any(isinstance(m, nn.GroupNorm) for m in network.modules())
    asked = {"none": (), "teacher": ("teacher",), "student": ("student", "model")}
    rows = None
    if role in asked.get(cfg.compute.compile, (role,)):
        rows = _rows(cfg)
    return {"channels_last": channels_last, "compiled": rows}


def _rows(cfg: DictConfig) -> int:
    """Images that pass through the networks of a process at a time."""
    share = int(cfg.batch_size) // schema.rank_count(cfg)
    return min(cfg.compute.micro_batch or share, share)


def splits(cfg: DictConfig) -> Splits:
    """The data, as large as the configuration says: what is taught on may be other data."""
    found = evaluation(cfg)
    parts = schema.training_sets(cfg)
    if "data" in parts:
        taught = found.train
        _expect("data", cfg.data, taught)
    else:
        sources = [_read(cfg, key, part).train for key, part in parts.items()]
        for (key, part), source in zip(parts.items(), sources, strict=True):
            _expect(key, part, source)
        taught = ConcatSource(sources)
    return replace(found, train=taught)


def evaluation(cfg: DictConfig) -> Splits:
    """The data that is measured on, of any size."""
    return _read(cfg, "data", cfg.data)


def _read(cfg: DictConfig, key: str, part: DictConfig) -> Splits:
    try:
        found = instantiate(part.splits)
        if part.get("broken") == "skip":
            return corrupt_images.without_corrupt_images(found, Path(cfg.paths.cache), say)
        return found
    except DataNotFoundError as error:
        raise UserError(f"{key}.{error}") from error


def _expect(key: str, cfg: DictConfig, source: Source) -> None:
    if len(source) != cfg.train_size:  # by which epochs became steps
        raise UserError(
            f"{key}.train_size={cfg.train_size}: there are {len(source)} training images; complete "
            f"them, or give {key}.train_size={len(source)} to take them as they are"
        )


def recipe(cfg: DictConfig) -> Recipe:
    """The recipe, on the data's terms."""
    data = cfg.data
    return instantiate(cfg.recipe, min_area=data.min_area, mild=tuple(data.mild), flip=data.flip)


def stream(
    cfg: DictConfig,
    data: Splits,
    recipe: Recipe,
    sides: dict[str, int],
    placement: Placement,
    task: Task,
) -> DataModule:
    """The data module of a run, over images to train on and views to measure on."""
    views = ImageViews(
        data.train, recipe, sides=sides, placement=placement, truth_in_view=task.truth_in_view
    )
    return DataModule(
        data,
        views,
        batch_size=cfg.batch_size,
        steps=schema.total_steps(cfg),
        seed=cfg.seed,
        workers=cfg.compute.workers,
        repeat=cfg.trainer.get("overfit_batches"),
    )


def learning(cfg: DictConfig) -> Learning:
    """How a learner learns."""
    return Learning(
        optimizer=instantiate(cfg.optimizer),
        schedule=schedule(cfg),
        log_every=cfg.trainer.log_every_n_steps,
        seed=cfg.init_seed,
        clip_norm=cfg.clip_norm,
        max_skipped=cfg.max_skipped,
        micro_batch=cfg.compute.micro_batch,
        fused=device(cfg).type == "cuda" if cfg.compute.fused == "auto" else cfg.compute.fused,
    )


def schedule(cfg: DictConfig) -> Callable[[int], float]:
    """Multiplier of the learning rate at a step."""
    found = instantiate(cfg.schedule, total_steps=schema.total_steps(cfg))
    # Hydra's own partial checks its target at each call: 0.16 ms a step.
    return partial(found.func, *found.args, **found.keywords)


def device(cfg: DictConfig) -> torch.device:
    """Where this process computes."""
    fabric = Fabric(
        accelerator=cfg.trainer.accelerator, devices=1, plugins=[LightningEnvironment()]
    )
    if fabric.device.type != "cuda":
        return fabric.device
    given, number = cfg.trainer.devices, distributed.local_rank()
    return torch.device("cuda", given[number] if isinstance(given, ListConfig) else number)
