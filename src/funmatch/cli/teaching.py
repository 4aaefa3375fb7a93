"""From a configuration to a trained student: builds the parts and runs the trainer."""

import json
import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from hydra import compose
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from lightning.fabric import Fabric
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import nn

from funmatch import files, schema, targets
from funmatch.callbacks.best import BestStudent
from funmatch.callbacks.checkpoint import AtomicCheckpointIO, Latest
from funmatch.callbacks.progress import StepsLeft
from funmatch.callbacks.stopwatch import Stopwatch
from funmatch.cli import session
from funmatch.data.module import DataModule
from funmatch.data.source import Splits
from funmatch.distillation import Distillation
from funmatch.fidelity import Fidelity
from funmatch.learner import Learner
from funmatch.loggers.csv import CsvLogger
from funmatch.models import weights
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.recipes import Fixed, Recipe
from funmatch.runs import Run
from funmatch.schema import UserError
from funmatch.stream import EvaluationStream, Source
from funmatch.supervision import Supervision


def distil(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Teaches a student from a teacher; returns the figures of the run."""
    quiet()
    splits = _splits(cfg)
    recipe = build_recipe(cfg)
    objective = instantiate(cfg.objective)
    teacher = build_teacher(cfg, objective.teacher_features)
    seed_everything(cfg.seed, verbose=False)
    student = build_network(cfg.student, objective.student_features)

    sides = {"student": student.side}
    if isinstance(recipe, Fixed):
        words = _fixed_targets(cfg, teacher, splits.train, recipe)
    else:
        sides["teacher"] = teacher.side
        words = targets.Live(teacher)
    references = {
        "val": reference(cfg, teacher, splits.val),
        "test": reference(cfg, teacher, splits.test),
    }
    learner = Distillation(student, words, references, objective, **_learning(cfg))
    stopwatch = Stopwatch(cfg.batch_size, learner.teacher_clock)
    return _fit(cfg, run, learner, _stream(cfg, splits, recipe, sides, student), stopwatch)


def supervise(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Teaches a network from labels; returns the figures of the run."""
    quiet()
    splits = _splits(cfg)
    seed_everything(cfg.seed, verbose=False)
    student = build_network(cfg.model)
    learner = Supervision(student, **_learning(cfg))
    data = _stream(cfg, splits, build_recipe(cfg), {"student": student.side}, student)
    return _fit(cfg, run, learner, data, Stopwatch(cfg.batch_size))


def build_network(cfg: DictConfig, features: tuple[str, ...] = ()) -> Network:
    """A network as its config describes it, with the weights it starts from."""
    net: nn.Module = instantiate(cfg.net)
    return Network(
        net, mean=cfg.mean, std=cfg.std, side=cfg.side, resize=cfg.resize, features=features
    )


def build_teacher(cfg: DictConfig, features: tuple[str, ...] = ()) -> Frozen:
    """The frozen teacher; one that can be made here is made by the first who needs it."""
    network = build_network(cfg.teacher, features)
    weights.load(network.net, _teacher_weights(cfg))
    return Frozen(network)


def build_recipe(cfg: DictConfig) -> Recipe:
    """The recipe, on the data's terms."""
    settings = {key: cfg.recipe[key] for key in cfg.recipe if key != "paired"}
    return instantiate(settings, min_area=cfg.data.min_area, flip=cfg.data.flip)


def reference(cfg: DictConfig, teacher: Frozen, source: Source) -> targets.Targets:
    """The teacher's word on an evaluation split."""
    return targets.on_evaluation_views(
        teacher, source, store=_store(cfg), batch_size=cfg.batch_size, device=device(cfg)
    )


def device(cfg: DictConfig) -> torch.device:
    """Where this process computes."""
    return Fabric(accelerator=cfg.trainer.accelerator, devices=1).device


def measure(cfg: DictConfig, run: Run, split: str) -> dict[str, float]:
    """The fidelity of the student that a run has left, on one split."""
    quiet()
    source: Source = getattr(instantiate(cfg.data.splits), split)
    student = build_network(cfg.student if "student" in cfg else cfg.model)
    weights.load(student.net, run.student)
    words = None
    if "teacher" in cfg:
        words = reference(cfg, build_teacher(cfg), source)
    fidelity, frozen = Fidelity(), Frozen(student)
    resolution = {"student": (student.resize, student.side)}
    stream = EvaluationStream(source, resolution, batch_size=cfg.batch_size)
    for number in range(len(stream)):
        batch = stream[number].to(device(cfg))
        teacher = None if words is None else words(batch).logits
        fidelity.to(batch.index.device).update(
            frozen(batch.view("student")).logits, teacher, batch.label
        )
    return {columns(f"{split}/{name}"): float(mean) for name, mean in fidelity.compute().items()}


def quiet() -> None:
    """Silences what the frameworks say of themselves."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*is smaller than the logging interval.*",
    ):
        warnings.filterwarnings("ignore", message)


def _splits(cfg: DictConfig) -> Splits:
    splits: Splits = instantiate(cfg.data.splits)
    if len(splits.train) != cfg.data.train_size:  # by which epochs became steps
        raise UserError(
            f"data.train_size={cfg.data.train_size}: there are {len(splits.train)} training images"
        )
    return splits


def _fixed_targets(
    cfg: DictConfig, teacher: Frozen, source: Source, recipe: Fixed
) -> targets.Targets:
    return targets.on_fixed_views(
        teacher,
        source,
        recipe,
        seed=cfg.seed,
        store=_store(cfg),
        batch_size=cfg.batch_size,
        device=device(cfg),
    )


def _store(cfg: DictConfig) -> Path:
    return Path(cfg.paths.logs) / "targets"


def _learning(cfg: DictConfig) -> dict[str, Any]:
    return {
        "optimizer": instantiate(cfg.optimizer),
        "schedule": instantiate(cfg.schedule, total_steps=schema.total_steps(cfg)),
        "log_every": cfg.trainer.log_every,
    }


def _teacher_weights(cfg: DictConfig) -> Path:
    """The teacher's file; a teacher that can be made here is made by the first who needs it."""
    if cfg.teacher.weights is not None:
        return Path(cfg.teacher.weights)
    overrides = [*cfg.teacher.finetune, "name=teachers", "logger=none"]
    here = {"paths": cfg.paths, "trainer": cfg.trainer}
    making = OmegaConf.merge(compose("finetune", overrides), here)
    assert isinstance(making, DictConfig)
    schema.check(making)
    run = Run(schema.run_directory(making))
    if not run.completed:
        print(f"teacher: fine-tuning it once, into {run.directory}")
        session.complete(making, supervise, wait=True)
    return run.student


def _stream(
    cfg: DictConfig, splits: Splits, recipe: Recipe, sides: dict[str, int], student: Network
) -> DataModule:
    return DataModule(
        splits,
        recipe,
        sides=sides,
        resolution=(student.resize, student.side),
        batch_size=cfg.batch_size,
        steps=schema.total_steps(cfg),
        seed=cfg.seed,
        workers=cfg.trainer.workers,
    )


def _fit(
    cfg: DictConfig, run: Run, learner: Learner, data: DataModule, stopwatch: Stopwatch
) -> dict[str, Any]:
    """Trains from the last checkpoint to the last step, then measures val, and test once."""
    steps = schema.total_steps(cfg)
    files.write(run.model, _description(cfg))
    best = BestStudent(run.student)
    latest = Latest(run.checkpoint, every=cfg.checkpoint_every, validate_every=cfg.validate_every)
    bar = StepsLeft(run.directory.name, steps, Console())
    resumed = run.checkpoint.exists()
    loggers = _loggers(cfg, run)
    failed = True
    try:
        trainer = trainer_for(
            cfg,
            max_steps=steps,
            callbacks=[stopwatch, best, latest, bar, *instantiate(cfg.callbacks).values()],
            logger=loggers,
            val_check_interval=cfg.validate_every,
        )
        trainer.fit(learner, data, ckpt_path=str(run.checkpoint) if resumed else None)
        if steps % cfg.validate_every:  # the trainer validates at multiples only
            trainer.validate(learner, data, verbose=False)
        weights.load(learner.student.net, run.student)
        (test,) = trainer.test(learner, data, verbose=False)
        failed = False
    finally:
        for logger in loggers:
            close = getattr(logger, "close", None)
            if close is not None:
                close(failed=failed)
    figures = {columns(name): value for name, value in test.items() if name != "step"}
    return {
        "student_val_top1": best.score,
        **figures,
        **stopwatch.figures(),
        "best_step": best.step,
    }


def columns(metric: str) -> str:
    """The column of a metric: `test/student_top1` is `student_test_top1`."""
    split, name = metric.split("/")
    network, _, figure = name.partition("_")
    return f"{network}_{split}_{figure}" if figure == "top1" and network != "agreement" else name


def trainer_for(cfg: DictConfig, **settings: Any) -> Trainer:
    """A Lightning trainer for an endless stream of steps."""
    if cfg.trainer.threads is not None:
        torch.set_num_threads(cfg.trainer.threads)
    return Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=cfg.trainer.strategy,
        precision=cfg.trainer.precision,
        log_every_n_steps=cfg.trainer.log_every,
        gradient_clip_val=cfg.clip_norm,
        max_epochs=-1,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        enable_progress_bar="callbacks" in settings,
        enable_checkpointing="callbacks" in settings,
        plugins=[AtomicCheckpointIO()],
        **settings,
    )


def _loggers(cfg: DictConfig, run: Run) -> list[Logger]:
    """metrics.csv, and what the logger group names."""
    done = 0
    if run.checkpoint.exists():
        done = AtomicCheckpointIO().load_checkpoint(run.checkpoint)["global_step"]
    loggers: list[Logger] = [CsvLogger(run.metrics, step=done)]
    for logger in instantiate(cfg.logger).values():
        if isinstance(logger, partial):
            logger = logger(
                run.directory,
                config=OmegaConf.to_container(cfg, resolve=True),
                group=cfg.name,
                job_type=cfg.recipe.name,
            )
        loggers.append(logger)
    return loggers


def _description(cfg: DictConfig) -> str:
    """What is needed to build the student again, as JSON."""
    student = cfg.student if "student" in cfg else cfg.model
    return json.dumps(OmegaConf.to_container(student, resolve=True), indent=2) + "\n"
