"""Hydra options that follow from others: networks by role, transfer sets, rows of the paper.

A network, a data set and a row of the paper are described once; Hydra's ConfigStore gets a node for
each place where they can be chosen. A YAML of the same name in `conf/` replaces such a node.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hydra.core.config_store import ConfigStore

from funmatch.config.compose import config_directory

# What a role adds to the description of a network.
_ROLES: dict[str, dict[str, Any]] = {
    "student": {},
    "model": {},
    "teacher": {"head": "keep", "made_by": None},
}
# Columns of conf/paper.csv that set a key.
_KEYS = {
    "epochs": "epochs",
    "temperature": "objective.temperature",
    "lr": "optimizer.lr",
    "wd": "optimizer.wd",
}


@dataclass(frozen=True)
class Option:
    """One option of a group.

    Attributes:
        path: group and name, as in "student/bit_r50".
        node: its content, with a defaults list.
        package: where it goes; None for that of its group.
    """

    path: str
    node: dict[str, Any]
    package: str | None = None


def register(store: ConfigStore) -> None:
    """Makes the options known to Hydra.

    Hydra copies the whole store for each list of options and each composition, to read from the
    copy: 6 seconds of `--help`. It is told that the store is its own copy.
    """
    store.__deepcopy__ = lambda memo: store  # type: ignore[attr-defined]
    for option in options():
        group, _, name = option.path.rpartition("/")
        store.store(name, option.node, group, option.package)


def options() -> list[Option]:
    """Networks by role, transfer sets and rows of the paper that have no YAML of their own."""
    found = (*_networks(), *_transfer_sets(), *_experiments())
    return [option for option in found if not (config_directory() / f"{option.path}.yaml").exists()]


def paper() -> list[dict[str, str]]:
    """The rows of conf/paper.csv, one for each figure of the paper.

    `name` is the experiment; a row without one is the experiment `base` with other epochs. `base`
    is a table in conf/paper/, or another experiment, from which the row takes the keys it does not
    set. Empty figures are those of the base.
    """
    with (config_directory() / "paper.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _networks() -> Iterator[Option]:
    """`student=NAME`, `model=NAME` and `teacher=NAME` for each network in conf/network/.

    A network called NAME_student is the student NAME, and no teacher; likewise NAME_teacher.
    """
    for path in sorted((config_directory() / "network").glob("*.yaml")):
        base, _, only = path.stem.rpartition("_")
        for role, added in _ROLES.items():
            if only in ("student", "teacher") and role not in (only, "model"):
                continue
            name = base if role == only else path.stem
            defaults = [f"/network/{path.stem}@_here_", "_self_"]
            yield Option(f"{role}/{name}", {"defaults": defaults, **added})


def _transfer_sets() -> Iterator[Option]:
    """`transfer=NAME` for each data set in conf/data/."""
    for path in sorted((config_directory() / "data").glob("*.yaml")):
        node = {"defaults": [f"/data/{path.stem}@_here_"]}
        yield Option(f"transfer/{path.stem}", node, f"transfer.{path.stem}")


def _experiments() -> Iterator[Option]:
    """`experiment=NAME` for each row of the paper that has a name."""
    rows = [row for row in paper() if row["name"]]
    names = {row["name"] for row in rows}
    groups = {*_ROLES, *(path.name for path in config_directory().iterdir() if path.is_dir())}
    for row in rows:
        base = f"/experiment/{row['base']}" if row["base"] in names else f"/paper/{row['base']}"
        given = [f"{key}={row[column]}" for column, key in _KEYS.items() if row[column]]
        given += row["overrides"].split()
        node: dict[str, Any] = {"defaults": [base, "_self_"]}
        for key, _, value in (each.partition("=") for each in given):
            if key in groups:
                node["defaults"].append({f"override /{key}": value})
            else:
                *parents, last = key.split(".")
                branch = node
                for parent in parents:
                    branch = branch.setdefault(parent, {})
                branch[last] = _value(value)
        yield Option(f"experiment/{row['name']}", node, "_global_")


def _value(text: str) -> Any:
    """A number, null, true or false, or else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
