"""An experiment: everything that one run needs to know, as values. `build.build` makes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funmatch.experiment.specs import (
    Compute,
    Data,
    Factory,
    NetworkSpec,
    Paths,
    Targets,
    TeacherSpec,
)
from funmatch.runs.directory import Run


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What any command needs that measures networks on data.

    Attributes:
        data: the data set that is measured on.
        teacher: None where networks learn from labels.
        trainer: arguments of lightning.Trainer, resolved.
        compute: how a process computes.
        paths: where files are.
        ranks: number of processes that share a batch.
        needed_by: directories of the runs that wait for this one, which makes their teacher.
    """

    data: Data
    teacher: TeacherSpec | None
    trainer: Mapping[str, Any]
    compute: Compute
    paths: Paths
    ranks: int
    needed_by: tuple[Path, ...] = ()

    @property
    def precision(self) -> str:
        """Of the networks' arithmetic, as Lightning names it: "32-true", "bf16-mixed"."""
        return str(self.trainer["precision"])

    @property
    def pass_size(self) -> int | None:
        """Images that pass through a network of one process at a time, if that is fixed."""
        return self.compute.micro_batch

    @property
    def waiting(self) -> tuple[Path, ...]:
        """Directories of the runs that wait for what is made for this one, itself included."""
        return self.needed_by


@dataclass(frozen=True, kw_only=True)
class Experiment(Setup):
    """One run: distillation if it has an objective, else learning from labels.

    Attributes:
        run: its directory and what it leaves there.
        config: the whole resolved configuration, for config.yaml and loggers.
        identity: the part of it that decides the result.
        name: of the sweep or study that the run belongs to.
        training_sets: what is trained on: the data itself, or transfer sets.
        recipe_name: as in `recipe=name`.
        recipe: builds the `Recipe`, from the data's crops.
        student: the network that learns, whose key is "student" or "model".
        objective: builds the `Objective`; None for learning from labels.
        targets: where the teacher's predictions come from; None without a teacher.
        optimizer: builds the optimiser of parameters.
        schedule: builds the multiplier of the learning rate as a function of the step.
        callbacks: build the callbacks of the user by name; None leaves one out.
        loggers: build the loggers by name.
        seed: of the order of examples and of the views.
        init_seed: of the weights that learning starts from.
        steps: length in optimiser steps.
        batch_size: examples of a step, of all ranks together.
        validate_every: steps between two validations.
        checkpoint_every: steps between two checkpoints.
        checkpoint_keep: number of checkpoints that are kept.
        max_skipped: steps in a row whose loss or gradient may be no finite number.
        clip_norm: largest norm of the gradient; None: not clipped.
        resume: auto, never, or the run whose last state this one begins with.
        origin: digest of that state.
    """

    run: Run
    config: Mapping[str, Any]
    identity: Mapping[str, Any]
    name: str
    training_sets: tuple[Data, ...]
    recipe_name: str
    recipe: Factory
    student: NetworkSpec
    objective: Factory | None
    targets: Targets | None
    optimizer: Factory
    schedule: Factory
    callbacks: Factory
    loggers: Factory
    seed: int
    init_seed: int
    steps: int
    batch_size: int
    validate_every: int
    checkpoint_every: int
    checkpoint_keep: int
    max_skipped: int
    clip_norm: float | None
    resume: str
    origin: str | None

    @property
    def train_size(self) -> int:
        """Number of training examples."""
        return sum(data.train_size for data in self.training_sets)

    @property
    def epochs(self) -> float:
        """Length in passes over the training examples."""
        return self.steps * self.batch_size / self.train_size

    @property
    def rank_batch_size(self) -> int:
        """Examples of a step that one rank computes."""
        return self.batch_size // self.ranks

    @property
    def pass_size(self) -> int:
        return min(self.compute.micro_batch or self.rank_batch_size, self.rank_batch_size)

    @property
    def waiting(self) -> tuple[Path, ...]:
        return (*self.needed_by, self.run.directory)


Train = Callable[[Experiment], dict[str, Any]]  # trains a run to its end; returns its figures
