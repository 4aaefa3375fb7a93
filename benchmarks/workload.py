"""Workload of a benchmark: networks, data and optimiser of a configuration, without a trainer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import hydra
import torch
from torch import nn
from torch.utils.data import DataLoader

from funmatch.config import compose, resolvers, schema
from funmatch.data.batch import Batch
from funmatch.data.sources import Splits
from funmatch.experiment import build, teachers
from funmatch.models.network import Network
from funmatch.models.teacher import Teacher
from funmatch.objectives.base import Objective
from funmatch.runtime.allowlist import instantiate
from funmatch.views.recipes import Recipe
from funmatch.views.stream import Steps, Stream


@dataclass(frozen=True)
class Workload:
    """Components of a distillation.

    `plain` builds student and teacher again without optimisations: not folded, in the default
    memory format.
    """

    plain: Callable[[], tuple[Network, Network]]
    student: Network
    teacher: Teacher
    objective: Objective
    optimizer: Callable[[nn.Module], torch.optim.Optimizer]
    schedule: Callable[[int], float]
    clip_norm: float | None
    device: torch.device
    autocast: bool
    data: Splits
    recipe: Recipe
    batch_size: int
    seed: int
    steps: int
    workers: int

    def batches(self) -> Iterator[Batch]:
        """The training batches of the run, not yet mixed, on the host."""
        stream = Stream(
            self.data.train,
            self.recipe,
            sides={"student": self.student.side, **self.teacher.sides},
            batch_size=self.batch_size,
            seed=self.seed,
        )
        return iter(
            DataLoader(
                stream,
                batch_size=None,
                sampler=Steps(0, self.steps),
                num_workers=self.workers,
                persistent_workers=self.workers > 0,
                pin_memory=self.device.type == "cuda",
            )
        )


def workload(overrides: list[str]) -> Workload:
    """The workload of `src/train.py` with these overrides."""
    resolvers.register()
    with compose.compose_context():
        cfg = hydra.compose("train", overrides)
        if cfg.compute.threads is not None:
            torch.set_num_threads(cfg.compute.threads)
        torch.manual_seed(cfg.seed)
        learning = build.learning(cfg)

        def plain() -> tuple[Network, Network]:
            with compose.compose_context():
                return build.blank(cfg.student), teachers.load_member(cfg, cfg.teacher)

        return Workload(
            plain=plain,
            student=build.learner(cfg, "student"),
            teacher=teachers.load_teacher(cfg),
            objective=instantiate(cfg.objective),
            optimizer=learning.optimizer,
            schedule=learning.schedule,
            clip_norm=cfg.clip_norm,
            device=build.device(cfg),
            autocast=cfg.trainer.precision == "bf16-mixed",
            data=build.splits(cfg),
            recipe=build.recipe(cfg),
            batch_size=cfg.batch_size,
            seed=cfg.seed,
            steps=schema.total_steps(cfg),
            workers=cfg.compute.workers,
        )
