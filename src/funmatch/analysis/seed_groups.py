"""Runs that differ in their seed only, as one measurement."""

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

# The order in which the paper tells the story.
_RECIPE_ORDER = ("labels", "fixed_teacher", "independent_noise", "consistent", "function_matching")


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in their seed only.

    Attributes:
        recipe: of all of them.
        epochs: of all of them.
        variant: what else sets the group apart from others with this recipe, as key=value.
        rows: their summaries, each with its `directory`.
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
        """The names of its figures."""
        return TaskDescription.of(self.rows[0])

    @property
    def score(self) -> str:
        """The column of the student's score on test."""
        return self.task.student_score("test")

    @property
    def completed(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if row["status"] == "completed"]

    def mean(self, column: str) -> float | None:
        """Over the seeds that completed, or None."""
        values = self._values(column)
        return statistics.fmean(values) if values else None

    def deviation(self, column: str) -> float | None:
        """Sample standard deviation (n - 1) over seeds; None for fewer than two."""
        values = self._values(column)
        return statistics.stdev(values) if len(values) > 1 else None

    def interval(self, column: str) -> tuple[float, float] | None:
        """Where the mean lies with 95 %, by Student's law; None for fewer than two seeds."""
        from scipy import stats  # half a second, which only a report needs

        mean, deviation = self.mean(column), self.deviation(column)
        if mean is None or deviation is None:
            return None
        number = len(self._values(column))
        reach = float(stats.t.ppf(0.975, number - 1)) * deviation / math.sqrt(number)
        return mean - reach, mean + reach

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
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in summaries.collect(directories):
        key = json.dumps({k: v for k, v in row["settings"].items() if k != "seed"}, sort_keys=True)
        seeds = found.setdefault(key, {})
        # A run that was made under two names is one measurement, not two.
        if row["seed"] not in seeds or row["status"] == "completed":
            seeds[row["seed"]] = row
    settings = {key: dict(_flat(json.loads(key))) for key in found}
    groups = [
        SeedGroup(
            settings[key]["recipe.name"],
            next(iter(seeds.values()))["epochs"],
            _variant(settings[key], settings.values()),
            tuple(seeds[seed] for seed in sorted(seeds)),
        )
        for key, seeds in found.items()
    ]
    return sorted(groups, key=lambda g: (g.epochs, _rank(g.recipe), _natural(g.variant)))


def by_task(groups: Iterable[SeedGroup]) -> list[list[SeedGroup]]:
    """The groups of each task, whose figures cannot be compared with those of another."""
    found: dict[str, list[SeedGroup]] = {}
    for group in groups:
        found.setdefault(group.task.name, []).append(group)
    return list(found.values())


def format_epochs(epochs: float) -> str:
    """Whole epochs; a run of whole steps may end some images later."""
    return f"{epochs:.0f}" if epochs >= 10 else f"{epochs:.3g}"


def _natural(text: str) -> list[tuple[float, str]]:
    """Sorts 2 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [(float(p), "") if place % 2 else (0.0, p) for place, p in enumerate(parts)]


def _rank(recipe: str) -> tuple[int, str]:
    return (_RECIPE_ORDER.index(recipe) if recipe in _RECIPE_ORDER else len(_RECIPE_ORDER), recipe)


def _flat(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, node


def _variant(own: dict[str, Any], every: Iterable[dict[str, Any]]) -> str:
    """The settings in which runs of this recipe differ, budgets apart."""
    alike = [other for other in every if other["recipe.name"] == own["recipe.name"]]
    as_long = [other for other in alike if other["steps"] == own["steps"]]
    varied = [
        key
        for key in own
        # A warm-up may follow from the budget.
        if any(o.get(key) != own[key] for o in (as_long if key.endswith("steps") else alike))
    ]
    shown = {key.removesuffix("._target_"): str(own[key]) for key in varied}
    for key in (key for key in varied if key.endswith("._target_")):
        shown[key.removesuffix("._target_")] = own[key].rsplit(".", 1)[-1]
    last = [key.rsplit(".", 1)[-1] for key in shown]
    names = [n if last.count(n) == 1 else key for n, key in zip(last, shown, strict=True)]
    return " ".join(f"{name}={value}" for name, value in zip(names, shown.values(), strict=True))
