"""The ways of teaching: from a teacher, or from labels; and measuring what was learned."""

from pathlib import Path
from typing import Any

from hydra import compose
from hydra.utils import instantiate
from lightning import seed_everything
from omegaconf import DictConfig, OmegaConf

from funmatch import rules, schema
from funmatch.callbacks.stopwatch import Stopwatch
from funmatch.cli import fitting, parts, session
from funmatch.clock import Clock
from funmatch.distillation import Distillation
from funmatch.fidelity import Fidelity
from funmatch.models import weights
from funmatch.models.frozen import Frozen
from funmatch.recipes import Fixed
from funmatch.runs import Run
from funmatch.schema import UserError
from funmatch.stream import EvaluationStream, Source
from funmatch.supervision import Supervision


def distil(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Teaches a student from a teacher; returns the figures of the run."""
    fitting.quiet()
    objective = instantiate(cfg.objective)
    teacher = _teacher(cfg, objective.teacher_features)  # to make one is no part of the run
    teacher_clock = Clock()
    stopwatch = Stopwatch(cfg.batch_size, teacher_clock)
    data, law = parts.splits(cfg), parts.recipe(cfg)
    seed_everything(cfg.seed, verbose=False)
    student = parts.network(cfg.student, objective.student_features)

    with teacher_clock(parts.device(cfg)):
        words = parts.training_targets(cfg, teacher, law, data.train)
    references = {
        "val": parts.reference(cfg, teacher, data.val),
        "test": parts.reference(cfg, teacher, data.test),
    }
    learner = Distillation(
        student, words, references, objective, parts.learning(cfg), teacher_clock
    )
    sides = {"student": student.side, "teacher": teacher.side}
    if isinstance(law, Fixed):  # the teacher has spoken already
        del sides["teacher"]
    stream = parts.stream(cfg, data, law, sides, student)
    figures = fitting.fit(cfg, run, learner, stream, stopwatch)
    return {**figures, "teacher_fingerprint": teacher.fingerprint()}


def supervise(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Teaches a network from labels; returns the figures of the run."""
    fitting.quiet()
    data = parts.splits(cfg)
    seed_everything(cfg.seed, verbose=False)
    student = parts.network(cfg.model)
    learner = Supervision(student, parts.learning(cfg))
    stream = parts.stream(cfg, data, parts.recipe(cfg), {"student": student.side}, student)
    return fitting.fit(cfg, run, learner, stream, Stopwatch(cfg.batch_size))


def measure(cfg: DictConfig, run: Run, split: str) -> dict[str, float]:
    """The fidelity of the student that a run has left, on one split."""
    fitting.quiet()
    source: Source = getattr(parts.splits(cfg), split)
    student = parts.network(cfg.student if "student" in cfg else cfg.model)
    weights.load(student.net, run.student)
    words = None
    if "teacher" in cfg:
        teacher = _teacher(cfg)
        if run.result.get("teacher_fingerprint", teacher.fingerprint()) != teacher.fingerprint():
            raise UserError(f"{run.directory}: was taught by another teacher than the one at hand")
        words = parts.reference(cfg, teacher, source)
    place = parts.device(cfg)
    fidelity, frozen = Fidelity().to(place), Frozen(student)
    resolution = {"student": (student.resize, student.side)}
    stream = EvaluationStream(source, resolution, batch_size=cfg.batch_size)
    for number in range(len(stream)):
        batch = stream[number].to(place)
        said = None if words is None else words(batch).logits
        fidelity.update(frozen(batch.view("student")).logits, said, batch.label)
    found = fidelity.compute()
    return {fitting.column(f"{split}/{name}"): float(mean) for name, mean in found.items()}


def _teacher(cfg: DictConfig, features: tuple[str, ...] = ()) -> Frozen:
    network = parts.network(cfg.teacher, features)
    weights.load(network.net, _teacher_weights(cfg))
    return Frozen(network)


def _teacher_weights(cfg: DictConfig) -> Path:
    """The teacher's file; a teacher that can be made here is made by the first who needs it."""
    if cfg.teacher.weights is not None:
        return Path(cfg.teacher.weights)
    overrides = [*cfg.teacher.finetune, "name=teachers", "logger=none"]
    # One teacher serves all precisions and all numbers of devices.
    place = {key: cfg.trainer[key] for key in ("accelerator", "workers", "threads", "log_every")}
    here = {"paths": cfg.paths, "trainer": place}
    making = OmegaConf.merge(compose("finetune", overrides), here)
    assert isinstance(making, DictConfig)
    rules.check(making)
    run = Run(schema.run_directory(making))
    if not run.completed:
        print(f"teacher: fine-tuning it once, into {run.directory}")
        session.complete(making, supervise, wait=True)
    return run.student
