"""Runs the trainer over a run, from its last checkpoint to its summary."""

import json
import logging
import os
import warnings
from functools import partial
from typing import Any

import torch
from hydra.utils import instantiate
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from rich.progress import Progress

from funmatch import files, runs, schema
from funmatch.callbacks.best import BestStudent
from funmatch.callbacks.checkpoint import AtomicCheckpointIO, Latest
from funmatch.callbacks.progress import StepsLeft
from funmatch.callbacks.stopwatch import Stopwatch
from funmatch.learner import Learner
from funmatch.loggers.csv import CsvLogger
from funmatch.models import weights
from funmatch.runs import Run


def fit(
    cfg: DictConfig,
    run: Run,
    learner: Learner,
    data: LightningDataModule,
    stopwatch: Stopwatch,
    bars: Progress,
) -> dict[str, Any]:
    """Trains to the last step, then measures val, and test once with the best student."""
    steps = schema.total_steps(cfg)
    if runs.rank() == 0:
        files.write(run.model, _description(cfg))
    best = BestStudent(run.student)
    latest = Latest(run.checkpoint, every=cfg.checkpoint_every, validate_every=cfg.validate_every)
    bar = StepsLeft(run.directory.name.removeprefix(f"{cfg.recipe.name}-"), steps, bars)
    callbacks = [stopwatch, best, latest, bar, *instantiate(cfg.callbacks).values()]
    resumed = run.checkpoint.exists()
    done = _steps_done(run) if resumed else 0
    if resumed and runs.rank() == 0:
        print(f"  going on from step {done} of {steps}", flush=True)
    loggers: list[Logger] = []
    failed = True
    try:
        loggers += _loggers(cfg, run, done)
        trainer = _trainer(cfg, steps, callbacks, loggers)
        trainer.fit(learner, data, ckpt_path=str(run.checkpoint) if resumed else None)
        if steps % cfg.validate_every:  # the trainer validates at multiples only
            trainer.validate(learner, data, verbose=False)
        trainer.strategy.barrier()  # rank 0 has written the best student
        weights.load(learner.student.net, run.student)
        (test,) = trainer.test(learner, data, verbose=False)
        failed = False
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # which Lightning makes an exit of
            raise KeyboardInterrupt from stop
        raise
    finally:
        for logger in loggers:
            close = getattr(logger, "close", None)
            if close is not None:
                close(failed=failed)
    return {
        "student_val_top1": best.score,
        **{column(name): value for name, value in test.items() if name != "step"},
        **stopwatch.figures(),
        "best_step": best.step,
    }


def column(metric: str) -> str:
    """The column of a metric: `test/student_top1` is `student_test_top1`."""
    split, name = metric.split("/")
    network, _, figure = name.partition("_")
    return f"{network}_{split}_{figure}" if network in ("student", "teacher") else name


def quiet() -> None:
    """Silences what the frameworks say of themselves."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for message in (
        ".*does not have many workers.*",
        ".*isinstance.treespec, LeafSpec.*",
        ".*is smaller than the logging interval.*",
        ".*resuming from a checkpoint that ended.*",  # the stream begins at the restored step
        ".*sync_dist=True.*",  # our metrics are means over all ranks already
    ):
        warnings.filterwarnings("ignore", message)


def _trainer(
    cfg: DictConfig, steps: int, callbacks: list[Callback], loggers: list[Logger]
) -> Trainer:
    if cfg.trainer.threads is not None:
        torch.set_num_threads(cfg.trainer.threads)
    trainer = Trainer(
        accelerator=cfg.trainer.accelerator,
        devices=cfg.trainer.devices,
        num_nodes=cfg.trainer.num_nodes,
        strategy=cfg.trainer.strategy,
        precision=cfg.trainer.precision,
        log_every_n_steps=cfg.trainer.log_every,
        max_steps=steps,
        max_epochs=-1,
        val_check_interval=cfg.validate_every,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_model_summary=False,
        enable_progress_bar=False,  # ours is a callback
        callbacks=callbacks,
        logger=loggers,
        plugins=[AtomicCheckpointIO()],
    )
    if trainer.strategy.root_device.type != "cuda":
        # Lightning's way to look for a GPU, for which an optimiser looks in each step: 0.05 ms.
        os.environ.pop("PYTORCH_NVML_BASED_CUDA_CHECK", None)
    return trainer


def _steps_done(run: Run) -> int:
    return int(AtomicCheckpointIO().load_checkpoint(run.checkpoint)["global_step"])


def _loggers(cfg: DictConfig, run: Run, done: int) -> list[Logger]:
    """metrics.csv, and what the logger group names; for rank 0."""
    if runs.rank() != 0:
        return []
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
