"""Where the teacher's word comes from: the teacher, a record of what it said, or both."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig

from funmatch.config import schema
from funmatch.config.errors import UserError
from funmatch.data.sources import Source
from funmatch.experiment import build
from funmatch.models.teacher import Teacher
from funmatch.runtime import distributed, hardware
from funmatch.targets import base, online, per_image, recorded, store
from funmatch.targets.store import LogitStore
from funmatch.tasks.base import Task
from funmatch.views.recipes import Fixed, Recipe

_log = logging.getLogger(__name__)

_BLOCK = 4096  # steps whose rows are looked for at a time
_SHARE = 4  # auto takes at most one part in so many of what is free


def training_targets(
    cfg: DictConfig, teacher: Teacher, law: Recipe, source: Source, task: Task
) -> tuple[base.Targets, bool]:
    """The teacher's word on training batches, and whether it must see their views for it.

    Args:
        cfg: of the run.
        teacher: with the temperature of the run.
        law: which views it gets.
        source: the images.
        task: what a prediction means.

    Raises:
        UserError: there is no record to replay, or no room for one.
    """
    if isinstance(law, Fixed):
        if cfg.targets.mode != "live":
            _say(f"targets={cfg.targets.mode} changes nothing: a fixed teacher is always recorded")
        asking = _asking(cfg, teacher)
        return per_image.on_fixed_views(teacher, source, law, task, seed=cfg.seed, **asking), False
    if cfg.targets.mode == "live":
        return online.OnlineTargets(teacher), True
    about = {
        "kind": "steps",
        **law.view_settings(cfg.seed),
        "batch_size": cfg.batch_size,
        "precision": cfg.trainer.precision,
    }
    kept = {
        name: LogitStore(
            _store(cfg), {**base.store_metadata(member, source), **about}, cfg.targets.form
        )
        for name, member in teacher.members.items()
    }
    steps = schema.total_steps(cfg)
    there = _recorded(kept.values(), steps, cfg.batch_size)
    keep = _keeps(cfg, next(iter(kept.values())), steps, int(there.sum()))
    rng = np.random.default_rng(cfg.seed)
    verify = rng.permutation(np.flatnonzero(there))[: cfg.targets.verify].tolist()
    needed = bool(verify) or not there.all()
    words = recorded.RecordedTargets(
        teacher,
        kept,
        task,
        batch_size=cfg.batch_size,
        complete=not needed,
        keep=keep,
        verify=frozenset(verify),
    )
    return words, needed


def evaluation_targets(
    cfg: DictConfig, teacher: Teacher, source: Source, task: Task
) -> base.Targets:
    """The teacher's word on an evaluation split."""
    return per_image.on_evaluation_views(teacher, source, task, **_asking(cfg, teacher))


def store_size(cfg: DictConfig, steps: int) -> int:
    """Bytes of the record of so many steps."""
    row = store.encoding(cfg.targets.form).width(cfg.data.classes) + 4
    return steps * cfg.batch_size * row * len(schema.teachers(cfg))


def _recorded(kept: Iterable[LogitStore], steps: int, batch_size: int) -> NDArray[np.bool_]:
    """The steps [steps] of which every record has all rows."""
    found = np.ones(steps, dtype=bool)
    for record in kept:
        end = min(steps, len(record) // batch_size)
        found[end:] = False
        for first in range(0, end, _BLOCK):
            last = min(first + _BLOCK, end)
            rows = record.is_stored(slice(first * batch_size, last * batch_size))
            found[first:last] &= rows.reshape(-1, batch_size).all(axis=1)
    return found


def _keeps(cfg: DictConfig, record: LogitStore, steps: int, there: int) -> bool:
    """Whether what is asked is recorded; says so, or why it cannot be."""
    store, mode = _store(cfg), cfg.targets.mode
    have = f"{there:,} of {steps:,} steps are in {record.folder}"
    if there == steps:
        checked = min(cfg.targets.verify, steps)
        _say(
            f"{have}: the teacher is asked about {checked} to verify them"
            if checked
            else f"{have}: the teacher is not asked"
        )
        return False
    if mode == "replay":
        if there:
            raise UserError(f"targets=replay: {have}; targets=auto asks the teacher for the others")
        near = record.closest_mismatch()
        near = f"the nearest record differs in {near}" if near else "there is no record"
        raise UserError(
            f"targets=replay: nothing is recorded of these views in {store}, {near}; "
            "targets=record makes it"
        )
    need, free = store_size(cfg, steps - there), hardware.free_disk_space(store)
    text = f"{have}; {need / 1e6:,.3g} MB ({cfg.targets.form})"
    if mode == "auto" and need > free / _SHARE:
        _say(
            f"{text} more are too much for {free / 1e9:,.3g} GB that are free: nothing is recorded"
        )
        return False
    if need > free:
        raise UserError(
            f"targets=record: needs {need / 1e9:.3g} GB in {store}, where {free / 1e9:.3g} GB are "
            "free; choose targets.form=top10, or targets=live"
        )
    _say(f"{text} are recorded")
    return True


def _say(text: str) -> None:
    if distributed.rank() == 0:
        _log.info("  targets: %s", text)


def _asking(cfg: DictConfig, teacher: Teacher) -> dict[str, Any]:
    place = build.device(cfg)
    # Always as many at a time: the last bits of logits depend on it. And no more than a step takes:
    # 64 images of 128 px were the peak of a run's memory.
    most, pixels = (256, 2**24) if place.type == "cuda" else (64, 2**18)
    side = max(member.side for member in teacher.members.values())
    batch_size = max(1, min(most, pixels // side**2))
    return {"store": _store(cfg), "batch_size": batch_size, "device": place}


def _store(cfg: DictConfig) -> Path:
    return Path(cfg.paths.logs) / "targets"
