"""The identity of a run: the part of its configuration that decides the result."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from funmatch.config import schema, trainer_arguments
from funmatch.config.errors import UserError
from funmatch.runtime import allowlist, atomic_files

_VERSION = 2  # of what counts and how it is written; a run of another version is not read
_NOT_IDENTITY = {"hydra", *schema.non_identity_keys(schema.Base, schema.Train, schema.Finetune)}
_NOT_IDENTITY_OF_DATA = schema.non_identity_keys(schema.Data)
_NOT_IDENTITY_OF_NETWORK = schema.non_identity_keys(schema.Network)
_IDENTITY_OF_TRANSFER = [each.name for each in fields(schema.TransferSet)]
_DIRECTORY = re.compile(r".*-s\d+-([0-9a-f]{8})")


def identity(cfg: DictConfig) -> dict[str, Any]:
    """The part of a configuration that decides the result, as plain values."""
    plain = {str(key): cfg[key] for key in cfg if key not in _NOT_IDENTITY}
    plain = {
        key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
        for key, value in plain.items()
    }
    # Epochs are another way to say steps.
    plain |= {"steps": schema.total_steps(cfg), "precision": cfg.trainer.precision}
    plain["version"] = _VERSION
    plain |= trainer_arguments.identity(cfg.trainer)
    targets = plain.pop("targets", None) or {"mode": "live"}
    if targets["mode"] != "live" and "teacher_crop" not in plain["recipe"]:
        plain["targets"] = targets["form"]  # read or computed, the target is rounded as a record is
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
        # The arguments of the splits stand beside them too, unless someone changed them there.
        repeated = [key for key, value in data["splits"].items() if data.get(key) == value]
        for key in repeated:
            del data["splits"][key]
        # A task of the data's own settings alone follows from the data.
        task = data.get("task", {})
        if all(key == "_target_" or data.get(key) == value for key, value in task.items()):
            data.pop("task", None)
        for part in (data, data["splits"]):
            for key in _NOT_IDENTITY_OF_DATA:
                part.pop(key, None)
    teacher = plain.get("teacher") or {}
    networks = (plain.get("student"), plain.get("model"), teacher)
    for network in filter(None, (*networks, *(teacher.get("members") or {}).values())):
        for key in _NOT_IDENTITY_OF_NETWORK:
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
    """Normalises integral floats to int."""
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
    """SHA-256 of a file; size and time of change are the cache key."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_id(cfg: DictConfig, settings: Mapping[str, Any] | None = None) -> str:
    """The name of a run's directory: <recipe>-s<seed>-<8 hex of its identity>.

    Args:
        cfg: its configuration.
        settings: its identity, if that is known already.
    """
    return f"{cfg.recipe.name}-s{cfg.seed}-{_hash(settings or identity(cfg))}"


def _hash(settings: Mapping[str, Any]) -> str:
    text = json.dumps(settings, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_directory(cfg: DictConfig, settings: Mapping[str, Any] | None = None) -> Path:
    """The same for a single run, a job of a sweep and a requeued one; see `run_id`."""
    return Path(cfg.paths.logs) / cfg.name / run_id(cfg, settings)


def read(path: Path) -> DictConfig:
    """The configuration that a run has left.

    Raises:
        UserError: the file is damaged, or is not the one by which its directory is named.
        ValueError: it would call what no configuration may.
    """
    try:
        cfg = OmegaConf.create(path.read_text())
        assert isinstance(cfg, DictConfig)
        settings = identity(cfg)
    except PermissionError:  # of a file of weights
        raise
    except Exception as error:  # whatever a parser makes of a damaged file
        raise UserError(
            f"{path}: damaged ({type(error).__name__}); remove it, the same command writes it again"
        ) from error
    allowlist.check(cfg)
    name = _DIRECTORY.fullmatch(path.parent.name)
    if name and name[1] != _hash(settings):
        recorded = _recorded(path, name[1])
        difference = differing_key(_with_lost(recorded, settings), settings) if recorded else ""
        if difference is not None:
            raise UserError(
                f"{path}: is not the configuration by which its directory is named"
                f"{difference and f': {difference}'}; it was edited, or made by another version of "
                "funmatch: read it with that version, or train again"
            )
    return cfg


def _recorded(path: Path, digest: str) -> dict[str, Any]:
    """The identity in the summary of a run, if it is the one that named the directory."""
    try:
        recorded = json.loads(path.with_name("summary.json").read_text())["settings"]
        return dict(recorded) if _hash(recorded) == digest else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _with_lost(recorded: Any, settings: Any) -> Any:
    """Recorded settings, with the paths of files that are lost in place of their digests."""
    if isinstance(recorded, dict) and isinstance(settings, Mapping):
        return {key: _with_lost(value, settings.get(key)) for key, value in recorded.items()}
    digest = isinstance(recorded, str) and re.fullmatch(r"([0-9a-f]{64})+", recorded)
    return settings if digest and isinstance(settings, str) else recorded


def differing_key(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> str | None:
    """The first key, with its two values, in which two identities differ."""
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            if found := differing_key(before, after, f"{prefix}{key}."):
                return found
        elif before != after:
            return f"{prefix}{key} (recorded: {before}, now: {after})"
    return None
