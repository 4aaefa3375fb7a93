"""The teacher of a run: loaded, or trained first where it can be."""

import logging
import time
from pathlib import Path

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from funmatch.config import identity, schema, validation
from funmatch.experiment import (
    build,
    run_lifecycle,
)
from funmatch.experiment.supervise import supervise
from funmatch.models import load_weights, pretrained
from funmatch.models.network import Network
from funmatch.models.teacher import Teacher
from funmatch.runs.directory import Run
from funmatch.runtime import distributed

_log = logging.getLogger(__name__)


def load_teacher(cfg: DictConfig, features: tuple[str, ...] = ()) -> Teacher:
    """The teacher with its weights; it is made first where it can be and is not there."""
    return build.teacher(cfg, lambda part: load_member(cfg, part, features))


def is_available(cfg: DictConfig) -> bool:
    """Whether the weights of all that teach are here, to be neither made nor fetched."""
    for part in schema.teachers(cfg).values():
        if part.weights is None:
            if not Run(identity.run_directory(teacher_config(cfg, part))).completed:
                return False
        elif part.weights in pretrained.NAMES:
            if pretrained.locate(part.weights) is None:
                return False
        elif part.weights != "included" and not Path(part.weights).is_file():
            return False
    return True


def load_member(cfg: DictConfig, part: DictConfig, features: tuple[str, ...] = ()) -> Network:
    """One of the networks that teach, not frozen yet."""
    network = build.blank(part, features)
    load_weights.load(network.net, part.weights or _train_if_missing(cfg, part), head=part.head)
    return network


def teacher_config(cfg: DictConfig, teacher: DictConfig) -> DictConfig:
    """The configuration of the run that makes a teacher."""
    overrides = [*teacher.finetune, "name=teachers", "logger=none"]
    # One teacher serves all precisions and all numbers of devices.
    trainer = {key: cfg.trainer[key] for key in ("accelerator", "log_every_n_steps")}
    compute = {key: cfg.compute[key] for key in ("workers", "threads")}
    here = {"paths": cfg.paths, "trainer": trainer, "compute": compute}
    merged = OmegaConf.merge(compose("finetune", overrides), here)
    assert isinstance(merged, DictConfig)
    validation.check(merged)
    return merged


def _train_if_missing(cfg: DictConfig, teacher: DictConfig) -> Path:
    """The file of a teacher that can be made here, by the first who needs it."""
    own = teacher_config(cfg, teacher)
    run = Run(identity.run_directory(own))
    while distributed.rank() > 0 and not run.completed:
        time.sleep(0.5)  # rank 0 makes it
    if not run.completed:
        _log.info("teacher: fine-tuning it once, into %s", run.directory)
        run_lifecycle.run_to_completion(own, supervise, wait=True)
    return run.student
