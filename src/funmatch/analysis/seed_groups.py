"""Seed groups: runs that differ only in their seed, as one measurement."""

import json
import math
import re
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from funmatch.analysis import summaries
from funmatch.tasks.description import TaskDescription

# The order in which the paper presents them.
_RECIPE_ORDER = ("labels", "fixed_teacher", "independent_noise", "consistent", "function_matching")


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ only in their seed.

    Attributes:
        recipe: name of the recipe.
        epochs: length of training.
        variant: other settings in which groups with this recipe differ, as key=value.
        rows: summaries of the runs, each with its `directory`.
    """

    recipe: str
    epochs: float
    variant: str
    rows: tuple[dict[str, Any], ...]

    @property
    def label(self) -> str:
        return f"{self.recipe} {self.variant}".strip()

    @property
    def task(self) -> TaskDescription:
        """Description of the task of the runs."""
        return TaskDescription.of(self.rows[0])

    @property
    def score(self) -> str:
        """The column of the student's score on test."""
        return self.task.student_score("test")

    @property
    def completed(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] == "completed"]

    def mean(self, column: str) -> float | None:
        """Mean over the completed seeds; None if no run has measured the column."""
        values = self._values(column)
        return statistics.fmean(values) if values else None

    def deviation(self, column: str) -> float | None:
        """Sample standard deviation (n - 1) over seeds; None for fewer than two."""
        values = self._values(column)
        return statistics.stdev(values) if len(values) > 1 else None

    def interval(self, column: str) -> tuple[float, float] | None:
        """95 % confidence interval of the mean (Student's t); None for fewer than two seeds."""
        from scipy import stats  # half a second, which only a report needs

        mean, deviation = self.mean(column), self.deviation(column)
        if mean is None or deviation is None:
            return None
        number = len(self._values(column))
        half_width = float(stats.t.ppf(0.975, number - 1)) * deviation / math.sqrt(number)
        return mean - half_width, mean + half_width

    def text(self, column: str, style: str) -> str:
        """Mean ± standard deviation."""
        mean, deviation = self.mean(column), self.deviation(column)
        if mean is None:
            return "–"
        return style.format(mean) + (f" ± {style.format(deviation)}" if deviation else "")

    def _values(self, column: str) -> list[float]:
        return [row[column] for row in self.completed if row.get(column) is not None]


def group_runs(directories: Iterable[Path]) -> list[SeedGroup]:
    """All runs in or below some directories, grouped over seeds."""
    runs: dict[str, dict[int, dict[str, Any]]] = {}
    for row in summaries.collect(directories):
        key = json.dumps({k: v for k, v in row["settings"].items() if k != "seed"}, sort_keys=True)
        seeds = runs.setdefault(key, {})
        # The same run under two names is one measurement, not two.
        if row["seed"] not in seeds or row["status"] == "completed":
            seeds[row["seed"]] = row
    settings = {key: dict(_flat(json.loads(key))) for key in runs}
    groups = [
        SeedGroup(
            settings[key]["recipe.name"],
            next(iter(seeds.values()))["epochs"],
            _variant(settings[key], settings.values()),
            tuple(seeds[seed] for seed in sorted(seeds)),
        )
        for key, seeds in runs.items()
    ]
    return sorted(groups, key=lambda g: (g.epochs, _rank(g.recipe), _natural(g.variant)))


def by_task(groups: Iterable[SeedGroup]) -> list[list[SeedGroup]]:
    """The groups of each task; figures of different tasks cannot be compared."""
    tasks: dict[str, list[SeedGroup]] = {}
    for group in groups:
        tasks.setdefault(group.task.name, []).append(group)
    return list(tasks.values())


def format_epochs(epochs: float) -> str:
    """Epochs as text, rounded: whole steps may end some images after a whole epoch."""
    return f"{epochs:.0f}" if epochs >= 10 else f"{epochs:.3g}"


def _natural(text: str) -> list[tuple[float, str]]:
    """Sort key that orders numbers in a text by value: 2 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [(float(p), "") if index % 2 else (0.0, p) for index, p in enumerate(parts)]


def _rank(recipe: str) -> tuple[int, str]:
    return (_RECIPE_ORDER.index(recipe) if recipe in _RECIPE_ORDER else len(_RECIPE_ORDER), recipe)


def _flat(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, node


def _variant(own: dict[str, Any], every: Iterable[dict[str, Any]]) -> str:
    """The settings in which runs of this recipe differ, other than the length of training."""
    same_recipe = [other for other in every if other["recipe.name"] == own["recipe.name"]]
    same_length = [other for other in same_recipe if other["steps"] == own["steps"]]
    varied = [
        key
        for key in own
        # The warm-up may depend on the length of training.
        if any(
            o.get(key) != own[key] for o in (same_length if key.endswith("steps") else same_recipe)
        )
    ]
    shown = {key.removesuffix("._target_"): str(own[key]) for key in varied}
    for key in (key for key in varied if key.endswith("._target_")):
        shown[key.removesuffix("._target_")] = own[key].rsplit(".", 1)[-1]
    last = [key.rsplit(".", 1)[-1] for key in shown]
    names = [n if last.count(n) == 1 else key for n, key in zip(last, shown, strict=True)]
    return " ".join(f"{name}={value}" for name, value in zip(names, shown.values(), strict=True))
