"""Where the teacher's predictions come from: the teacher itself, recorded targets, or both."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from funmatch.config.errors import UserError
from funmatch.data.sources import Source
from funmatch.experiment.device import device
from funmatch.experiment.experiment import Experiment, Setup
from funmatch.experiment.specs import Targets
from funmatch.models.teacher import Teacher
from funmatch.runtime import hardware, log
from funmatch.targets import base, online, per_image, recorded, store
from funmatch.targets.store import LogitStore
from funmatch.tasks.base import Task
from funmatch.views.recipes import Fixed, Recipe

_log = logging.getLogger(__name__)

_BLOCK_STEPS = 4096  # whose rows are looked up at a time
_MAX_FREE_FRACTION = 1 / 4  # of the free space that auto takes at most


def training_targets(
    experiment: Experiment, teacher: Teacher, recipe: Recipe, source: Source, task: Task
) -> tuple[base.Targets, bool]:
    """The teacher's predictions on training batches, and whether it needs their views for them.

    Args:
        experiment: the run.
        teacher: with the temperature of the run.
        recipe: which views it gets.
        source: the images.
        task: what a prediction means.

    Raises:
        UserError: there are no recorded targets to replay, or no room to record them.
    """
    options = experiment.targets
    assert options is not None
    if isinstance(recipe, Fixed):
        if options.mode != "live":
            _info(f"targets={options.mode} changes nothing: a fixed teacher is always recorded")
        passes = _passes(experiment, teacher)
        views = {"seed": experiment.seed, **passes}
        return per_image.on_fixed_views(teacher, source, recipe, task, **views), False
    if options.mode == "live":
        return online.OnlineTargets(teacher), True
    about = {
        "kind": "steps",
        **recipe.view_settings(experiment.seed),
        "batch_size": experiment.batch_size,
        "precision": experiment.precision,
    }
    stores = {
        name: LogitStore(
            _folder(experiment), {**base.store_metadata(member, source), **about}, options.form
        )
        for name, member in teacher.members.items()
    }
    steps, batch_size = experiment.steps, experiment.batch_size
    complete = _complete_steps(stores.values(), steps, batch_size)
    keep = _should_record(experiment, options, next(iter(stores.values())), int(complete.sum()))
    rng = np.random.default_rng(experiment.seed)
    verify = rng.permutation(np.flatnonzero(complete))[: options.verify].tolist()
    needs_views = bool(verify) or not complete.all()
    targets = recorded.RecordedTargets(
        teacher,
        stores,
        task,
        batch_size=batch_size,
        complete=not needs_views,
        keep=keep,
        verify=frozenset(verify),
    )
    return targets, needs_views


def evaluation_targets(setup: Setup, teacher: Teacher, source: Source, task: Task) -> base.Targets:
    """The teacher's predictions on an evaluation split."""
    return per_image.on_evaluation_views(teacher, source, task, **_passes(setup, teacher))


def store_size(experiment: Experiment, steps: int) -> int:
    """Bytes of the recorded targets of so many steps."""
    assert experiment.targets is not None
    assert experiment.teacher is not None
    row = store.encoding(experiment.targets.form).width(experiment.data.classes) + 4
    return steps * experiment.batch_size * row * len(experiment.teacher.members)


def _complete_steps(stores: Iterable[LogitStore], steps: int, batch_size: int) -> NDArray[np.bool_]:
    """The steps, bool [steps], of which every store has all rows."""
    complete = np.ones(steps, dtype=bool)
    for each in stores:
        end = min(steps, len(each) // batch_size)
        complete[end:] = False
        for first in range(0, end, _BLOCK_STEPS):
            last = min(first + _BLOCK_STEPS, end)
            rows = each.is_stored(slice(first * batch_size, last * batch_size))
            complete[first:last] &= rows.reshape(-1, batch_size).all(axis=1)
    return complete


def _should_record(
    experiment: Experiment, options: Targets, record: LogitStore, recorded_steps: int
) -> bool:
    """Whether predictions are recorded; reports it, or why they cannot be."""
    folder, mode, steps = _folder(experiment), options.mode, experiment.steps
    have = f"{recorded_steps:,} of {steps:,} steps are in {record.folder}"
    if recorded_steps == steps:
        checked = min(options.verify, steps)
        _info(
            f"{have}: the teacher computes {checked} of them again to verify them"
            if checked
            else f"{have}: the teacher is not needed"
        )
        return False
    if mode == "replay":
        if recorded_steps:
            raise UserError(f"targets=replay: {have}; targets=auto computes the others")
        near = record.closest_mismatch()
        near = f"the nearest record differs in {near}" if near else "there is no record at all"
        raise UserError(
            f"targets=replay: nothing is recorded of these views in {folder}, {near}; "
            "targets=record makes it"
        )
    need = store_size(experiment, steps - recorded_steps)
    free = hardware.free_disk_space(folder)
    text = f"{have}; {need / 1e6:,.3g} MB ({options.form})"
    if mode == "auto" and need > free * _MAX_FREE_FRACTION:
        _info(
            f"{text} more are too much for {free / 1e9:,.3g} GB that are free: nothing is recorded"
        )
        return False
    if need > free:
        raise UserError(
            f"targets=record: needs {need / 1e9:.3g} GB in {folder}, where {free / 1e9:.3g} GB are "
            "free; choose targets.form=top10, or targets=live"
        )
    _info(f"{text} are recorded")
    return True


def _info(text: str) -> None:
    log.rank_zero_info(_log, f"targets: {text}")


def _passes(setup: Setup, teacher: Teacher) -> dict[str, Any]:
    """Batch size, device and store of per-image teacher targets."""
    current = device(setup)
    # Always as many at a time: the last bits of logits depend on it. And no more than a step takes:
    # 64 images of 128 px were the peak of a run's memory.
    most, pixels = (256, 2**24) if current.type == "cuda" else (64, 2**18)
    side = max(member.side for member in teacher.members.values())
    batch_size = max(1, min(most, pixels // side**2))
    return {"store": _folder(setup), "batch_size": batch_size, "device": current}


def _folder(setup: Setup) -> Path:
    return setup.paths.logs / "targets"
