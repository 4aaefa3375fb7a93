"""Workload of a benchmark: networks, data and optimiser of a configuration, without a trainer."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import hydra
import torch
from torch import nn
from torch.utils.data import DataLoader

from funmatch.config import compose, resolvers
from funmatch.data.batch import RenderedBatch
from funmatch.data.sources import Splits
from funmatch.experiment import datasets, fitting, networks, teachers
from funmatch.experiment.build import build
from funmatch.experiment.device import configure_torch, device
from funmatch.experiment.train_here import train_here
from funmatch.models.network import Network
from funmatch.models.teacher import Teacher
from funmatch.objectives.base import Objective
from funmatch.views.image_views import ImageViews
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

    def batches(self) -> Iterator[RenderedBatch]:
        """The training batches of the run, not yet mixed, on the host."""
        sides = {"student": self.student.side, **self.teacher.sides}
        views = ImageViews(self.data.train, self.recipe, sides=sides)
        stream = Stream(views, batch_size=self.batch_size, seed=self.seed)
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
        experiment = build(hydra.compose("train", overrides))
        teacher, objective = experiment.teacher, experiment.objective
        assert teacher is not None
        assert objective is not None
        configure_torch(experiment)
        torch.manual_seed(experiment.seed)
        learning, task = fitting.build_learning(experiment), datasets.build_task(experiment.data)

        def plain() -> tuple[Network, Network]:
            with compose.compose_context():
                (member,) = teacher.members.values()
                return (
                    networks.build_network(experiment.student),
                    teachers.load_member(experiment, member, train_here),
                )

        return Workload(
            plain=plain,
            student=networks.build_student(experiment),
            teacher=teachers.load_teacher(experiment, task, train_here),
            objective=objective(),
            optimizer=learning.optimizer,
            schedule=learning.schedule,
            clip_norm=experiment.clip_norm,
            device=device(experiment),
            autocast=experiment.precision == "bf16-mixed",
            data=datasets.load_splits(experiment),
            recipe=datasets.build_recipe(experiment),
            batch_size=experiment.batch_size,
            seed=experiment.seed,
            steps=experiment.steps,
            workers=experiment.compute.workers,
        )
