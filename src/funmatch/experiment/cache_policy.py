"""Whether decoded images are cached: on disk, on the device too, or not at all."""

import logging
from dataclasses import replace

import torch

from funmatch.config.errors import UserError
from funmatch.data import decoded_cache, image_files
from funmatch.data.sources import ArraySource, Source, Splits
from funmatch.experiment.device import device
from funmatch.experiment.experiment import Experiment
from funmatch.models.network import Network
from funmatch.runtime import hardware
from funmatch.tasks.base import Task
from funmatch.views.evaluation_views import EvaluationViews
from funmatch.views.image_views import Placement

_log = logging.getLogger(__name__)

_MAX_FREE_FRACTION = 1 / 4  # of the free space that auto takes at most
_SIZE_SAMPLE = 64  # images from whose sizes auto estimates the size of all


def apply_cache(
    experiment: Experiment, data: Splits, student: Network, task: Task
) -> tuple[Splits, Placement]:
    """Applies `data.cache`: wraps the splits and chooses where to decode and render.

    Returns:
        Images to train on and the student's evaluation views of val and test, decoded once where
        `data.cache` says so; and where training images are decoded and rendered.

    Raises:
        UserError: there is no room for what `data.cache` asks for, or no decoder for what
            `data.decode` asks for.
    """
    steps, train = experiment.steps, data.train
    val, test = (
        EvaluationViews(data.part(part), student.resize, student.side, task.truth_in_view)
        for part in ("val", "test")
    )
    decoded_there = experiment.data.decode == "device"
    if not isinstance(train, ArraySource) and not decoded_there:
        train = _decoded_once(experiment, train, steps * experiment.batch_size / len(train))
    if isinstance(data.val, ArraySource):
        seen: Source = ArraySource.of(val)
    else:
        seen = _decoded_once(experiment, val, steps / experiment.validate_every)
    views = replace(data, train=train, val=seen, test=test)
    if decoded_there:
        _check_decoder(train)
        return views, Placement("device", decode_on="device")
    return views, Placement("device" if _on_device(experiment, train) else "worker")


def _check_decoder(train: Source) -> None:
    if image_files.codec is None:
        remedy = "install torchcodec (the extra funmatch[torchcodec]), or choose host"
        raise UserError(f"data.decode=device: torchcodec is not installed; {remedy}")
    if not isinstance(train, image_files.ImageFiles):
        raise UserError("data.decode=device: not with transfer sets; choose data.decode=host")


def _decoded_once(experiment: Experiment, source: Source, visits: float) -> Source:
    """The source, cached on disk if that is configured, or worth it for so many visits."""
    if not _on_disk(experiment, source, visits):
        return source
    try:
        return decoded_cache.cached(source, experiment.paths.cache)
    except OSError as error:
        why = f"{experiment.paths.cache}: {error.strerror}"
        if experiment.data.cache == "auto":
            _log.warning("  cache: %s; the run continues without it", why)
            return source
        remedy = "give another paths.cache, or data.cache=none"
        raise UserError(f"data.cache={experiment.data.cache}: {why}; {remedy}") from error


def _on_disk(experiment: Experiment, source: Source, visits: float) -> bool:
    if experiment.data.cache == "none":
        return False
    if decoded_cache.is_cached(source, experiment.paths.cache):
        return True
    free = hardware.free_disk_space(experiment.paths.cache)
    if experiment.data.cache == "auto":
        return visits >= 2 and decoded_cache.size(source, _SIZE_SAMPLE) <= free * _MAX_FREE_FRACTION
    if (size := decoded_cache.size(source)) <= free:
        return True
    raise UserError(
        f"data.cache={experiment.data.cache}: needs {size / 1e9:.3g} GB in "
        f"{experiment.paths.cache}, where {free / 1e9:.3g} GB are free; give another paths.cache, "
        "or data.cache=none"
    )


def _on_device(experiment: Experiment, train: Source) -> bool:
    current, mode = device(experiment), experiment.data.cache
    if mode == "device" and current.type != "cuda":
        return True
    if current.type != "cuda" or mode in ("none", "disk"):
        return False
    if mode == "auto" and not isinstance(train, ArraySource | decoded_cache.Cached):
        return False
    free, _ = torch.cuda.mem_get_info(current)
    size = decoded_cache.size(train)
    if mode == "auto":
        return size <= free * _MAX_FREE_FRACTION
    if size <= free:
        return True
    raise UserError(
        f"data.cache=device: needs {size / 1e9:.3g} GB, {free / 1e9:.3g} GB of the device are "
        "free; give data.cache=disk"
    )
