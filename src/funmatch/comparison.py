"""Runs side by side: tables and figures over recipes, budgets and seeds."""

import json
import re
import statistics
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from funmatch import files, runs

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# The order in which the paper tells the story.
_STORY = ("labels", "fixed_teacher", "independent_noise", "consistent", "function_matching")
_MEASURED = {
    "accuracy": ("student_test_top1", "{:.3f}"),
    "agreement": ("agreement_top1", "{:.3f}"),
    "KL": ("kl_to_teacher", "{:.3f}"),
    "teacher": ("teacher_test_top1", "{:.3f}"),
}
_MARKERS = "osD^vP*X"
_HEAD = ("epochs", "recipe", "seeds", *_MEASURED)

_NOTE = (
    "On test, mean ± sample standard deviation over seeds. Accuracy of the student and of its "
    "teacher and their agreement are fractions; KL to the teacher is in nats."
)


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed only.

    Attributes:
        recipe: of all of them.
        epochs: of all of them.
        variant: what else sets the group apart from others with this recipe, as key=value.
        rows: their summaries.
    """

    recipe: str
    epochs: float
    variant: str
    rows: tuple[dict[str, Any], ...]

    @property
    def label(self) -> str:
        return f"{self.recipe} {self.variant}".strip()

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

    def text(self, column: str, style: str) -> str:
        """Mean ± standard deviation."""
        mean, deviation = self.mean(column), self.deviation(column)
        if mean is None:
            return "–"
        return style.format(mean) + (f" ± {style.format(deviation)}" if deviation else "")

    def _values(self, column: str) -> list[float]:
        return [row[column] for row in self.completed if row[column] is not None]


def group(directories: Iterable[Path]) -> list[Group]:
    """All runs in or below some directories, grouped over seeds."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for row in runs.collect(directories):
        key = json.dumps({k: v for k, v in row["settings"].items() if k != "seed"}, sort_keys=True)
        seeds = found.setdefault(key, {})
        # A run that was made under two names is one measurement, not two.
        if row["seed"] not in seeds or row["status"] == "completed":
            seeds[row["seed"]] = row
    settings = {key: dict(_flat(json.loads(key))) for key in found}
    groups = [
        Group(
            settings[key]["recipe.name"],
            next(iter(seeds.values()))["epochs"],
            _variant(settings[key], settings.values()),
            tuple(seeds[seed] for seed in sorted(seeds)),
        )
        for key, seeds in found.items()
    ]
    return sorted(groups, key=lambda g: (g.epochs, _rank(g.recipe), _natural(g.variant)))


def _budget(epochs: float) -> str:
    """Whole epochs; a run of whole steps may end some images later."""
    return f"{epochs:.0f}" if epochs >= 10 else f"{epochs:.3g}"


def _natural(text: str) -> list[tuple[float, str]]:
    """Sorts 2 before 10."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e[-+]?\d+)?)", text)
    return [(float(p), "") if place % 2 else (0.0, p) for place, p in enumerate(parts)]


def _rank(recipe: str) -> tuple[int, str]:
    return (_STORY.index(recipe) if recipe in _STORY else len(_STORY), recipe)


def _flat(node: Any, prefix: str = "") -> Iterable[tuple[str, Any]]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, node


def _variant(own: dict[str, Any], every: Iterable[dict[str, Any]]) -> str:
    """The settings in which runs of this recipe differ, budgets apart."""
    alike = [other for other in every if other["recipe.name"] == own["recipe.name"]]
    varied = [
        key
        for key in own
        if not key.endswith(("steps", "_target_")) and any(o.get(key) != own[key] for o in alike)
    ]
    last = [key.rsplit(".", 1)[-1] for key in varied]
    names = [n if last.count(n) == 1 else key for n, key in zip(last, varied, strict=True)]
    return " ".join(f"{name}={own[key]}" for name, key in zip(names, varied, strict=True))


def show(groups: Sequence[Group]) -> None:
    """Prints the table that ends a sweep."""
    console = Console()
    Console(width=None if console.is_terminal else 120).print(_table(groups))
    if line := _best(groups):
        print(line)


def _best(groups: Sequence[Group]) -> str:
    """Which settings to choose: test is no place to choose by."""
    scores = {place: g.mean("student_val_top1") for place, g in enumerate(groups)}
    known = {place: score for place, score in scores.items() if score is not None}
    if len(known) < 2:
        return ""
    place = max(known, key=known.__getitem__)
    best = groups[place]
    return f"best on val ({known[place]:.3f}): {best.label}, {_budget(best.epochs)} epochs"


def _table(groups: Sequence[Group]) -> Table:
    table = Table(title="on test, mean ± standard deviation over seeds", box=SIMPLE_HEAD)
    for title in _HEAD:
        left = title in ("recipe", "seeds")
        fold = title == "recipe"  # numbers are never cut
        table.add_column(
            title, justify="left" if left else "right", no_wrap=not fold, overflow="fold"
        )
    before = None
    for g in groups:
        if before not in (None, g.epochs):
            table.add_section()
        before = g.epochs
        table.add_row(*_cells(g))
    return table


def _cells(g: Group) -> list[str]:
    others = [row["status"] for row in g.rows if row["status"] != "completed"]
    seeds = [f"{len(g.completed)} done" if others else str(len(g.completed))]
    seeds += [f"{others.count(status)} {status}" for status in sorted(set(others))]
    measured = [g.text(column, style) for column, style in _MEASURED.values()]
    return [_budget(g.epochs), g.label, ", ".join(seeds), *measured]


def markdown(groups: Sequence[Group]) -> str:
    """summary.md: the same table, and what failed."""
    lines = [f"| {' | '.join(_HEAD)} |", f"|{' --- |' * len(_HEAD)}"]
    lines += [f"| {' | '.join(_cells(g))} |" for g in groups]
    lines += ["", _NOTE, "", _best(groups)]
    failures = [row for g in groups for row in g.rows if row["status"] == "failed"]
    lines += ["", *(f"- {row['run']} failed: {row.get('error', '')}" for row in failures)]
    return "\n".join(lines).rstrip() + "\n"


def figure(groups: Sequence[Group], path: Path) -> None:
    """comparison.png: accuracy and agreement per recipe, and accuracy against epochs."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    groups = [g for g in groups if g.completed]
    if not groups:
        path.unlink(missing_ok=True)
        return
    labels = list(dict.fromkeys(g.label for g in groups))
    budgets = sorted({g.epochs for g in groups})
    columns = {"student_test_top1": "test accuracy", "agreement_top1": "agreement with the teacher"}
    columns = {
        c: title for c, title in columns.items() if any(g.mean(c) is not None for g in groups)
    }
    panels = len(columns) + (len(budgets) > 1)
    names = [textwrap.fill(label, 40) for label in labels]
    longest = max(len(line) for name in names for line in name.splitlines())
    size = (4.4 * panels + 0.09 * longest, 0.45 * len(labels) + 2.6)
    drawing, grid = plt.subplots(
        1, panels, figsize=size, dpi=120, layout="constrained", squeeze=False
    )
    axes = list(grid[0])
    for place, (axis, (column, title)) in enumerate(zip(axes, columns.items(), strict=False)):
        _dots(axis, groups, labels, budgets, column)
        axis.set_title(title)
        axis.set_yticks(range(len(labels)), [""] * len(labels) if place else names)
    curves = axes[-1] if len(budgets) > 1 else None
    if curves is not None:
        _curves(curves, groups, labels, budgets)
    for teacher in {g.mean("teacher_test_top1") for g in groups} - {None}:
        axes[0].axvline(teacher, color="black", linestyle="--", linewidth=1, label="teacher")
        if curves is not None:
            curves.axhline(teacher, color="black", linestyle="--", linewidth=1)
    if curves is not None:
        curves.legend(fontsize="small", loc="best")
    handles, texts = axes[0].get_legend_handles_labels()
    known = dict(zip(texts, handles, strict=True))  # several teachers share one entry
    drawing.legend(
        known.values(), known.keys(), loc="outside lower center", ncols=len(known), frameon=False
    )
    files.write(path, lambda file: drawing.savefig(file, format="png"))
    plt.close(drawing)


def _dots(
    axis: "Axes",
    groups: Sequence[Group],
    labels: Sequence[str],
    budgets: Sequence[float],
    column: str,
) -> None:
    """Means with standard deviations, a row per recipe, a mark per budget."""
    for place, epochs in enumerate(budgets):
        shown = [g for g in groups if g.epochs == epochs and g.mean(column) is not None]
        shift = 0.22 * (place - (len(budgets) - 1) / 2)
        axis.errorbar(
            [g.mean(column) or 0.0 for g in shown],
            [labels.index(g.label) + shift for g in shown],
            xerr=[g.deviation(column) or 0.0 for g in shown],
            fmt=_MARKERS[place % len(_MARKERS)],
            color=f"C{place}",
            capsize=3,
            label=f"{_budget(epochs)} epochs",
        )
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(alpha=0.3)


def _curves(
    axis: "Axes", groups: Sequence[Group], labels: Sequence[str], budgets: Sequence[float]
) -> None:
    """Accuracy against the length of training; points side by side so that none hides another."""
    column = "student_test_top1"
    for place, label in enumerate(labels):
        own = [g for g in groups if g.label == label]
        nudge = 1.04 ** (place - (len(labels) - 1) / 2)
        axis.errorbar(
            [g.epochs * nudge for g in own],
            [g.mean(column) or 0.0 for g in own],
            yerr=[g.deviation(column) or 0.0 for g in own],
            marker=_MARKERS[place % len(_MARKERS)],
            color=f"C{place + len(budgets)}",
            capsize=3,
            label=label,
        )
    axis.set_xscale("log")
    axis.set_xticks(budgets, [*map(_budget, budgets)])
    axis.minorticks_off()
    axis.set_xlabel("epochs")
    axis.set_title("test accuracy against patience")
    axis.grid(alpha=0.3)


def write(directory: Path, roots: Sequence[Path]) -> list[Group]:
    """Writes summary.csv, summary.md and comparison.png of all runs below some directories."""
    groups = group(roots)
    files.write(directory / "summary.csv", runs.table(row for g in groups for row in g.rows))
    files.write(directory / "summary.md", markdown(groups))
    figure(groups, directory / "comparison.png")
    return groups
