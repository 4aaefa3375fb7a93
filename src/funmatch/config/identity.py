"""The identity of a run: the part of its configuration that decides the result."""

import hashlib
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from funmatch.config import trainer_arguments
from funmatch.config.errors import UserError
from funmatch.config.schema import total_steps
from funmatch.runtime import allowlist, atomic_files

# What cannot change the result is no part of a run's identity.
_NOT_IDENTITY = (
    *("hydra", "trainer", "compute", "paths", "logger", "callbacks"),
    *("name", "resume", "checkpoint_every", "checkpoint_keep", "max_skipped", "max_time"),
    *("epochs", "dry_run", "save_as"),
)


# Nor is where the data lies, how it got there, where it is kept, and what it suggests for use
# elsewhere; what a table of labels says is in the digest of a folder.
_NOT_IDENTITY_OF_DATA = ("root", "download", "suggested", "v2", "real", "labels", "cache", "broken")


_IDENTITY_OF_TRANSFER = ("name", "splits", "train_size", "digest")  # it is cut as the data is


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The part of a configuration that decides the result, as plain values."""
    plain = {str(key): cfg[key] for key in cfg if key not in _NOT_IDENTITY}
    plain = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in plain.items()
    }
    # Epochs are another way to say steps.
    plain |= {"steps": total_steps(cfg), "precision": cfg.trainer.precision}
    plain |= trainer_arguments.identity(cfg.trainer)
    targets = plain.pop("targets", None) or {"mode": "live"}
    if targets["mode"] != "live" and "teacher_crop" not in plain["recipe"]:
        plain["targets"] = targets["form"]  # read or asked, the target is rounded as a record is
    if plain.get("init_seed") == plain["seed"]:
        del plain["init_seed"]
    if origin := plain.pop("origin", None):
        plain["origin"] = origin[:12]
    transfer = plain.get("transfer") or {}
    for name, data in transfer.items():
        transfer[name] = {key: data[key] for key in _IDENTITY_OF_TRANSFER if key in data}
    if plain["data"].get("decode") == "host":
        del plain["data"]["decode"]
    for data in (plain["data"], *transfer.values()):
        # What the splits are made with is said beside them, unless someone changed it there.
        said = [key for key, value in data["splits"].items() if data.get(key) == value]
        for key in said:
            del data["splits"][key]
        # A task of the data's own settings alone follows from the data.
        told = data.get("task", {})
        if all(key == "_target_" or data.get(key) == value for key, value in told.items()):
            data.pop("task", None)
        for place in (data, data["splits"]):
            for key in _NOT_IDENTITY_OF_DATA:
                place.pop(key, None)
    teacher = plain.get("teacher") or {}
    networks = (plain.get("student"), plain.get("model"), teacher)
    for network in filter(None, (*networks, *(teacher.get("members") or {}).values())):
        for key in ("name", "path", "trial_images"):  # the net tells it, or the weights
            network.pop(key, None)
        path = network["net"].get("path") if isinstance(network.get("net"), dict) else None
        if isinstance(path, str) and Path(path).is_file():
            network["net"]["path"] = "".join(
                _digest_of(part) for part in atomic_files.onnx_parts(Path(path))
            )
        weights = network.get("weights")
        if isinstance(weights, str) and Path(weights).is_file():  # the file counts, not its place
            network["weights"] = _digest_of(Path(weights))
    return _normal(plain)


def _normal(value: Any) -> Any:
    """Plain values in which 10 and 10.0 are the same."""
    if isinstance(value, dict):
        return {key: _normal(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_normal(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _digest_of(path: Path) -> str:
    stat = path.stat()
    return _digest(path, stat.st_size, stat.st_mtime_ns)


@lru_cache
def _digest(path: Path, size: int, changed: int) -> str:
    """Of a file's content; size and time of change only tell a new content from the old."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_id(cfg: DictConfig) -> str:
    """The name of a run's directory: <recipe>-s<seed>-<8 hex of the configuration>."""
    text = json.dumps(identity(cfg), sort_keys=True)
    return f"{cfg.recipe.name}-s{cfg.seed}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


def run_directory(cfg: DictConfig) -> Path:
    """The same for a single run, a job of a sweep and a requeued one."""
    return Path(cfg.paths.logs) / cfg.name / run_id(cfg)


def read(path: Path) -> DictConfig:
    """The configuration that a run has left.

    Raises:
        UserError: the file is damaged.
        ValueError: it would call what no configuration may.
    """
    try:
        cfg = OmegaConf.create(path.read_text())
        trainer_arguments.upgrade(cfg)  # type: ignore[arg-type]
        identity(cfg)  # type: ignore[arg-type]
    except Exception as error:  # whatever a parser makes of a damaged file
        raise UserError(
            f"{path}: damaged ({type(error).__name__}); remove it, the same command writes it again"
        ) from error
    assert isinstance(cfg, DictConfig)
    allowlist.check(cfg)
    return cfg


def differing_key(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first key, with its two values, in which two identities differ."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            if found := differing_key(before, after, f"{prefix}{key}."):
                return found
        elif before != after:
            return f"{prefix}{key} (there {before}, here {after})"
    return None
