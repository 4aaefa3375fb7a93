"""The ways of teaching: from a teacher, or from labels; and measuring what was learned."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf

from funmatch import files, rules, runs, schema
from funmatch.callbacks.stopwatch import Stopwatch
from funmatch.cli import caching, fitting, parts, recording, session, trial
from funmatch.clock import Clock
from funmatch.data.source import Splits
from funmatch.distillation import Distillation
from funmatch.evaluation import EvaluationStream, EvaluationViews
from funmatch.fidelity import Fidelity
from funmatch.models import catalog, weights
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.models.teacher import Teacher
from funmatch.recipes import Recipe
from funmatch.runs import Run
from funmatch.samples import picture, samples
from funmatch.schema import UserError
from funmatch.stream import Batch
from funmatch.supervision import Supervision


def distil(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Trains a student on the outputs of a teacher; returns the figures of the run."""
    fitting.prepare(cfg)
    objective = instantiate(cfg.objective)
    splits, law = parts.splits(cfg), parts.recipe(cfg)
    teacher = loaded_teacher(cfg, objective.teacher_features)
    members = zip(schema.teachers(cfg).items(), teacher.members.values(), strict=True)
    for (key, part), network in members:
        trial.attempt(cfg, key, part, network, splits.val)
    if objective.teacher_features and len(teacher.members) > 1:
        raise UserError("teacher.members: an objective that matches features takes one teacher")
    if objective.teacher_features and cfg.targets.mode != "live":
        remedy = "records hold no features; choose targets=live"
        raise UserError(f"targets={cfg.targets.mode}: {remedy}")
    softened = teacher.softened(getattr(objective, "temperature", 1.0))
    clock, before = Clock(), Clock()
    stopwatch = Stopwatch(cfg.batch_size, clock, before)  # to make a teacher is no part of the run
    seed_everything(cfg.init_seed, verbose=False)
    student = parts.learner(cfg, "student", objective.student_features)
    trial.attempt(cfg, "student", cfg.student, student, splits.val)
    images, brings = caching.kept(cfg, splits, student)

    with before(parts.device(cfg)):
        words, needed = recording.training(cfg, softened, law, images.train)
    references = {
        "val": recording.reference(cfg, teacher, splits.val),
        "test": recording.reference(cfg, teacher, splits.test),
    }
    learner = Distillation(student, words, references, objective, parts.learning(cfg), clock)
    sides = {"student": student.side, **(teacher.sides if needed else {})}
    data = parts.stream(cfg, images, law, sides, brings)
    _draw(cfg, run, images, law, {"student": student.side, **teacher.sides})
    try:
        figures = fitting.fit(cfg, run, learner, data, stopwatch, splits.test.classes)
    finally:
        words.flush()
    return {**figures, "teacher_fingerprint": teacher.fingerprint()}


def supervise(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Teaches a network from labels; returns the figures of the run."""
    fitting.prepare(cfg)
    data = parts.splits(cfg)
    seed_everything(cfg.init_seed, verbose=False)
    student = parts.learner(cfg, "model")
    trial.attempt(cfg, "model", cfg.model, student, data.val)
    learner = Supervision(student, parts.learning(cfg))
    images, brings = caching.kept(cfg, data, student)
    sides = {"student": student.side}
    law = parts.recipe(cfg)
    stream = parts.stream(cfg, images, law, sides, brings)
    _draw(cfg, run, images, law, sides)
    return fitting.fit(cfg, run, learner, stream, Stopwatch(cfg.batch_size), data.test.classes)


def _draw(cfg: DictConfig, run: Run, data: Splits, law: Recipe, sides: dict[str, int]) -> None:
    """What each network sees in the first step, for whoever looks at the run later."""
    if runs.rank() == 0 and not run.views.exists():
        given = {"batch_size": cfg.batch_size, "seed": cfg.seed, "step": 0}
        files.write(run.views, picture(samples(data.train, law, sides=sides, **given)))


def measure(cfg: DictConfig, run: Run, split: str) -> dict[str, float]:
    """The fidelity of the student that a run has left, on one split."""
    fitting.prepare(cfg)
    source = parts.evaluation(cfg).part(split)
    student = parts.left(cfg, run)
    words = None
    if "teacher" in cfg:
        teacher = loaded_teacher(cfg)
        if run.result.get("teacher_fingerprint", teacher.fingerprint()) != teacher.fingerprint():
            raise UserError(f"{run.directory}: was taught by another teacher than the one at hand")
        words = recording.reference(cfg, teacher, source)
    place = parts.device(cfg)
    fidelity, frozen = Fidelity().to(place), Frozen(student)
    views = EvaluationViews(source, student.resize, student.side)
    stream = EvaluationStream(views, batch_size=cfg.batch_size)
    for number in range(len(stream)):
        batch = stream[number].to(place)
        said = None if words is None else words(batch).logits
        fidelity.update(frozen(batch.view("student")).logits, said, batch.label)
    return _columns(fidelity, split)


def appraise(cfg: DictConfig, split: str) -> dict[str, float]:
    """The accuracy of a teacher on one split."""
    fitting.prepare(cfg)
    source = parts.evaluation(cfg).part(split)
    index = np.arange(len(source))
    label = source.labels(index)
    if label is None:
        raise UserError(f"data={cfg.data.name}: has no labels to measure a teacher by")
    words = recording.reference(cfg, loaded_teacher(cfg), source)
    fidelity = Fidelity()
    views = {"student": torch.empty(0)}  # the teacher has spoken already
    said = words(Batch(torch.from_numpy(index), label, 0, views)).logits
    fidelity.update(said, said, label)
    found = _columns(fidelity, split)
    return {name: value for name, value in found.items() if name.startswith("teacher")}


def _columns(fidelity: Fidelity, split: str) -> dict[str, float]:
    found = fidelity.compute()
    return {fitting.column(f"{split}/{name}"): float(mean) for name, mean in found.items()}


def loaded_teacher(cfg: DictConfig, features: tuple[str, ...] = ()) -> Teacher:
    """The teacher with its weights; it is made first where it can be and is not there."""
    return parts.teacher(cfg, lambda part: member(cfg, part, features))


def at_hand(cfg: DictConfig) -> bool:
    """Whether the weights of all that teach are here, to be neither made nor fetched."""
    for part in schema.teachers(cfg).values():
        if part.weights is None:
            if not Run(schema.run_directory(making(cfg, part))).completed:
                return False
        elif part.weights in catalog.NAMES:
            if catalog.locate(part.weights) is None:
                return False
        elif part.weights != "included" and not Path(part.weights).is_file():
            return False
    return True


def member(cfg: DictConfig, part: DictConfig, features: tuple[str, ...] = ()) -> Network:
    """One of the networks that teach, not frozen yet."""
    network = parts.blank(part, features)
    weights.load(network.net, part.weights or _made_here(cfg, part), head=part.head)
    return network


def making(cfg: DictConfig, teacher: DictConfig) -> DictConfig:
    """The configuration of the run that makes a teacher."""
    overrides = [*teacher.finetune, "name=teachers", "logger=none"]
    # One teacher serves all precisions and all numbers of devices.
    place = {key: cfg.trainer[key] for key in ("accelerator", "workers", "threads", "log_every")}
    here = {"paths": cfg.paths, "trainer": place}
    merged = OmegaConf.merge(compose("finetune", overrides), here)
    assert isinstance(merged, DictConfig)
    rules.check(merged)
    return merged


def _made_here(cfg: DictConfig, teacher: DictConfig) -> Path:
    """The file of a teacher that can be made here, by the first who needs it."""
    own = making(cfg, teacher)
    run = Run(schema.run_directory(own))
    while runs.rank() > 0 and not run.completed:
        time.sleep(0.5)  # rank 0 makes it
    if not run.completed:
        print(f"teacher: fine-tuning it once, into {run.directory}")
        session.complete(own, supervise, wait=True)
    return run.student
