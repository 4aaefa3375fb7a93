"""Where decoded images are kept: on disk, on the device too, or nowhere."""

import logging
from dataclasses import replace
from pathlib import Path

import torch
from omegaconf import DictConfig

from funmatch.config import schema
from funmatch.config.errors import UserError
from funmatch.data import decoded_cache, image_files
from funmatch.data.sources import ArraySource, Source, Splits
from funmatch.experiment import build
from funmatch.models.network import Network
from funmatch.runtime import hardware
from funmatch.tasks.base import Task
from funmatch.views.evaluation_views import EvaluationViews
from funmatch.views.image_views import Placement

_log = logging.getLogger(__name__)

_SHARE = 4  # auto takes at most one part in so many of what is free
_SAMPLE = 64  # images by whose sizes auto estimates those of all


def apply_cache(
    cfg: DictConfig, data: Splits, student: Network, task: Task
) -> tuple[Splits, Placement]:
    """What a run reads its images from.

    Returns:
        Images to train on and the student's evaluation views of val and test, decoded once where
        `data.cache` says so; and where training images are decoded and rendered.

    Raises:
        UserError: there is no room for what `data.cache` asks for, or no decoder for what
            `data.decode` asks for.
    """
    steps, train = schema.total_steps(cfg), data.train
    val, test = (
        EvaluationViews(data.part(part), student.resize, student.side, task.truth_in_view)
        for part in ("val", "test")
    )
    decoded_there = cfg.data.get("decode") == "device"
    if not isinstance(train, ArraySource) and not decoded_there:
        train = _decoded_once(cfg, train, steps * cfg.batch_size / len(train))
    if isinstance(data.val, ArraySource):
        seen: Source = ArraySource.of(val)
    else:
        seen = _decoded_once(cfg, val, steps / cfg.validate_every)
    found = replace(data, train=train, val=seen, test=test)
    if decoded_there:
        _check_decoder(train)
        return found, Placement("device", decode_on="device")
    return found, Placement("device" if _on_device(cfg, train) else "worker")


def _check_decoder(train: Source) -> None:
    if image_files.codec is None:
        remedy = "install torchcodec (the extra funmatch[torchcodec]), or choose host"
        raise UserError(f"data.decode=device: torchcodec is not there; {remedy}")
    if not isinstance(train, image_files.ImageFiles):
        raise UserError("data.decode=device: several sets are taught on; choose host")


def _decoded_once(cfg: DictConfig, source: Source, visits: float) -> Source:
    """The source, from a cache on disk if that is asked for, or worth it for so many visits."""
    if not _on_disk(cfg, source, visits):
        return source
    try:
        return decoded_cache.cached(source, _store(cfg))
    except OSError as error:
        why = f"{_store(cfg)}: {error.strerror}"
        if cfg.data.cache == "auto":
            _log.warning("  cache: %s; the run goes on without it", why)
            return source
        remedy = "give another paths.cache, or data.cache=none"
        raise UserError(f"data.cache={cfg.data.cache}: {why}; {remedy}") from error


def _store(cfg: DictConfig) -> Path:
    return Path(cfg.paths.cache)


def _on_disk(cfg: DictConfig, source: Source, visits: float) -> bool:
    if cfg.data.cache == "none":
        return False
    if decoded_cache.is_cached(source, _store(cfg)):
        return True
    free = hardware.free_disk_space(_store(cfg))
    if cfg.data.cache == "auto":
        return visits >= 2 and decoded_cache.size(source, _SAMPLE) <= free / _SHARE
    if (size := decoded_cache.size(source)) <= free:
        return True
    raise UserError(
        f"data.cache={cfg.data.cache}: needs {size / 1e9:.3g} GB in {_store(cfg)}, where "
        f"{free / 1e9:.3g} GB are free; give another paths.cache, or data.cache=none"
    )


def _on_device(cfg: DictConfig, train: Source) -> bool:
    place, mode = build.device(cfg), cfg.data.cache
    if mode == "device" and place.type != "cuda":
        return True
    if place.type != "cuda" or mode in ("none", "disk"):
        return False
    if mode == "auto" and not isinstance(train, ArraySource | decoded_cache.Cached):
        return False
    free, _ = torch.cuda.mem_get_info(place)
    size = decoded_cache.size(train)
    if mode == "auto":
        return size <= free / _SHARE
    if size <= free:
        return True
    raise UserError(
        f"data.cache=device: needs {size / 1e9:.3g} GB, {free / 1e9:.3g} GB of the device are "
        "free; give data.cache=disk"
    )
