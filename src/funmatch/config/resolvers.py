"""OmegaConf resolvers, `${name:...}`: lengths, sizes and facts about files and folders.

Like `schema`, this module does not import torch.
"""

import json
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from funmatch.config import groups
from funmatch.config.errors import UserError
from funmatch.config.identity import run_id
from funmatch.config.schema import Finetune, Train, total_steps
from funmatch.data.datasets import image_folder
from funmatch.models import pretrained
from funmatch.optim import schedules
from funmatch.runs import checkpoint_files
from funmatch.runtime import hardware, hydra_versions


@cache
def register() -> None:
    """Registers schemas, derived config groups and resolvers with Hydra."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=Train)
    store.store(name="finetune_schema", node=Finetune)
    groups.register(store)
    for name, resolver in RESOLVERS.items():
        hydra_versions.register_resolver(name, resolver)


def _scaled(side: int, resize: int, reference: int) -> int:
    """The shorter side before the central crop, in the proportions of the data set."""
    return round(side * resize / reference)


def _warmup(most: int, *, _root_: DictConfig) -> int:
    """Warm-up steps: at most `most`, and at most a tenth of the run."""
    return min(most, total_steps(_root_) // 10)


def _hyperrule(key: str, images: int) -> Any:
    """A setting of the BiT-HyperRule for a training set of this many images."""
    warmup, *milestones, steps = schedules.bit_hyperrule(images)
    mixing = images >= 20_000
    return {"warmup": warmup, "milestones": milestones, "steps": steps, "mixing": mixing}[key]


def _folder(
    key: str,
    root: str,
    labels: str,
    column: str | None,
    split: Sequence[float] | None,
    *,
    _parent_: DictConfig,
    _root_: DictConfig,
) -> Any:
    """A fact about the user's image folder; without labels, the teacher gives `classes`."""
    node = _parent_._get_full_key(None)
    try:
        fact = image_folder.facts(root, labels, column, split)[key]
    except ValueError as error:
        raise UserError(f"{node}.{error}") from error
    if key != "classes" or node != "data" or (labels == "auto" and fact is not None):
        return fact
    if "teacher" not in _root_ and fact is None and "model" in _root_:
        raise UserError(f"data.root={root}: has no labels to learn from; name them by data.labels=")
    teacher = OmegaConf.to_container(_root_).get("teacher") or {}  # type: ignore[union-attr]
    if teacher.get("classes") in (None, "${data.classes}"):  # the latter refers to this value
        if fact is None:
            raise UserError(
                "data.classes=null: unknown, since there are no labels; give data.classes=NUMBER"
            )
        return fact
    return max(fact or 0, _root_.teacher.classes)


def _saved(key: str, name: str, logs: str) -> Any:
    """Weights of a saved network, or an entry of its model.json."""
    home = Path(logs) / "teachers"
    directory = home / name if (home / name).is_dir() else Path(name)
    weights, description = directory / "student.safetensors", directory / "model.json"
    if not (weights.is_file() and description.is_file()):
        known = sorted(path.parent.name for path in home.glob("*/student.safetensors"))
        raise UserError(
            f"teacher.name={name}: no such network in {home}; give the directory of a run"
            + (f", or {' or '.join(known)}" if known else "")
        )
    return str(weights.resolve()) if key == "weights" else json.loads(description.read_text())[key]


def _origin(resume: str) -> str | None:
    """Digest of the checkpoint of another run from which this run starts, if any."""
    return (
        None
        if resume in ("auto", "never")
        else checkpoint_files.digest(checkpoint_files.resolve_checkpoint(Path(resume)))
    )


def scratch() -> Path:
    """Temporary directory for Hydra in sweeps that leave no files."""
    return Path(tempfile.gettempdir()) / f"funmatch-{os.getpid()}"


RESOLVERS: dict[str, Callable[..., Any]] = {
    # One core remains for the training process.
    "workers": lambda most: max(1, min(most, hardware.available_cores() - 1)),
    "called": hardware.invocation,
    "scratch": lambda: str(scratch()),
    "choose": lambda condition, yes, no: yes if condition else no,
    "unless": lambda given, default: default if given is None else None,
    "subset": lambda each, classes, full: full if each is None else each * classes,
    "at_most": min,
    "scaled": _scaled,
    "warmup": _warmup,
    "hyperrule": _hyperrule,
    "folder": _folder,
    "released_teacher": pretrained.teacher_of,
    "saved": _saved,
    "origin": _origin,
    "run_id": lambda *, _root_: run_id(_root_),
}
