"""From a configuration to the parts of a run."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.fabric import Fabric
from omegaconf import DictConfig
from torch import nn

from funmatch import schema, targets
from funmatch.data.module import DataModule
from funmatch.data.source import Splits
from funmatch.learner import Learning
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.recipes import Fixed, Recipe
from funmatch.schema import UserError
from funmatch.stream import Source


def network(cfg: DictConfig, features: tuple[str, ...] = ()) -> Network:
    """A network as its config describes it, with the weights it starts from."""
    net: nn.Module = instantiate(cfg.net)
    return Network(
        net, mean=cfg.mean, std=cfg.std, side=cfg.side, resize=cfg.resize, features=features
    )


def splits(cfg: DictConfig) -> Splits:
    """The data, as large as the configuration says."""
    found: Splits = instantiate(cfg.data.splits)
    if len(found.train) != cfg.data.train_size:  # by which epochs became steps
        raise UserError(
            f"data.train_size={cfg.data.train_size}: there are {len(found.train)} training images"
        )
    return found


def recipe(cfg: DictConfig) -> Recipe:
    """The recipe, on the data's terms."""
    return instantiate(cfg.recipe, min_area=cfg.data.min_area, flip=cfg.data.flip)


def stream(
    cfg: DictConfig, data: Splits, law: Recipe, sides: dict[str, int], student: Network
) -> DataModule:
    """The data module of a run."""
    return DataModule(
        data,
        law,
        sides=sides,
        resolution=(student.resize, student.side),
        batch_size=cfg.batch_size,
        steps=schema.total_steps(cfg),
        seed=cfg.seed,
        workers=cfg.trainer.workers,
    )


def learning(cfg: DictConfig) -> Learning:
    """How a learner learns."""
    schedule = instantiate(cfg.schedule, total_steps=schema.total_steps(cfg))
    return Learning(
        optimizer=instantiate(cfg.optimizer),
        # Hydra's own partial checks its target at each call: 0.16 ms a step.
        schedule=partial(schedule.func, *schedule.args, **schedule.keywords),
        log_every=cfg.trainer.log_every,
    )


def training_targets(
    cfg: DictConfig, teacher: Frozen, law: Recipe, source: Source
) -> targets.Targets:
    """The teacher's word on training batches: kept where the recipe fixes its views, else live."""
    if not isinstance(law, Fixed):
        return targets.Live(teacher)
    return targets.on_fixed_views(teacher, source, law, seed=cfg.seed, **_asking(cfg))


def reference(cfg: DictConfig, teacher: Frozen, source: Source) -> targets.Targets:
    """The teacher's word on an evaluation split."""
    return targets.on_evaluation_views(teacher, source, **_asking(cfg))


def device(cfg: DictConfig) -> torch.device:
    """Where this process computes."""
    return Fabric(accelerator=cfg.trainer.accelerator, devices=1).device


def _asking(cfg: DictConfig) -> dict[str, Any]:
    store = Path(cfg.paths.logs) / "targets"
    # Always as many at a time: the last bits of logits depend on it.
    return {"store": store, "batch_size": 256, "device": device(cfg)}
