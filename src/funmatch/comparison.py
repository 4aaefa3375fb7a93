"""Runs side by side: tables and figures over recipes, budgets and seeds."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from funmatch import files, runs, schema

# The order in which the paper tells the story.
_STORY = ("labels", "fixed_teacher", "independent_noise", "consistent", "function_matching")
_MEASURED = {
    "accuracy": ("student_test_top1", "{:.3f}"),
    "agreement": ("agreement_top1", "{:.3f}"),
    "KL": ("kl_to_teacher", "{:.3f}"),
    "teacher": ("teacher_test_top1", "{:.3f}"),
}
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
    """All runs below some directories, grouped over seeds."""
    found: dict[str, list[dict[str, Any]]] = {}
    settings: dict[str, dict[str, Any]] = {}
    for path, row in runs.collect(directories):
        config = path / "config.yaml"
        if not config.exists():
            continue
        identity = schema.identity(schema.read(config))
        identity.pop("seed")
        key = json.dumps(identity, sort_keys=True)
        settings[key] = dict(_flat(identity))
        found.setdefault(key, []).append(row)
    groups = [
        Group(
            rows[0]["recipe"],
            rows[0]["epochs"],
            _variant(settings[key], settings.values()),
            tuple(rows),
        )
        for key, rows in found.items()
    ]
    return sorted(groups, key=lambda g: (g.epochs, _rank(g.recipe), g.variant))


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
    skipped = ("epochs", "steps", "_target_")
    varied = [
        key
        for key in own
        if not key.endswith(skipped) and any(other.get(key) != own[key] for other in alike)
    ]
    return " ".join(f"{key.rsplit('.', 1)[-1]}={own[key]}" for key in varied)


def show(groups: Sequence[Group]) -> None:
    """Prints the table that ends a sweep."""
    console = Console()
    Console(width=None if console.is_terminal else 120).print(_table(groups))


def _table(groups: Sequence[Group]) -> Table:
    table = Table(title="on test, mean ± standard deviation over seeds", box=SIMPLE_HEAD)
    for title in _HEAD:
        left = title in ("recipe", "seeds")
        table.add_column(title, justify="left" if left else "right", no_wrap=True)
    before = None
    for g in groups:
        if before not in (None, g.epochs):
            table.add_section()
        before = g.epochs
        table.add_row(*_cells(g))
    return table


def _cells(g: Group) -> list[str]:
    others = [row["status"] for row in g.rows if row["status"] != "completed"]
    seeds = [str(len(g.completed)), *(f"{others.count(s)} {s}" for s in sorted(set(others)))]
    measured = [g.text(column, style) for column, style in _MEASURED.values()]
    return [f"{g.epochs:g}", g.label, ", ".join(seeds), *measured]


def markdown(groups: Sequence[Group]) -> str:
    """summary.md: the same table, and what failed."""
    lines = [f"| {' | '.join(_HEAD)} |", f"|{' --- |' * len(_HEAD)}"]
    lines += [f"| {' | '.join(_cells(g))} |" for g in groups]
    lines += ["", _NOTE]
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
        return
    labels = list(dict.fromkeys(g.label for g in groups))
    budgets = sorted({g.epochs for g in groups})
    panels = 3 if len(budgets) > 1 else 2
    drawing, axes = plt.subplots(1, panels, figsize=(5 * panels, 0.5 * len(labels) + 3), dpi=120)
    shades = plt.get_cmap("viridis")(
        [0.75 - 0.6 * i / max(len(budgets) - 1, 1) for i in range(len(budgets))]
    )
    columns = (
        ("student_test_top1", "test accuracy"),
        ("agreement_top1", "agreement with the teacher"),
    )
    for axis, (column, title) in zip(axes, columns, strict=False):
        _bars(axis, groups, labels, budgets, shades, column)
        axis.set_title(title)
    teacher = [g.mean("teacher_test_top1") for g in groups]
    lines = [value for value in teacher if value is not None]
    if lines:
        axes[0].axvline(lines[0], color="black", linestyle="--", linewidth=1, label="teacher")
    handles, names = axes[0].get_legend_handles_labels()
    drawing.legend(handles, names, loc="lower left", ncols=len(names), frameon=False)
    axes[1].set_yticklabels([])
    if panels == 3:
        _curves(axes[2], groups, labels, lines)
    drawing.tight_layout(rect=(0, 0.07, 1, 1))
    files.write(path, lambda file: drawing.savefig(file, format="png"))
    plt.close(drawing)


def _bars(
    axis: Any,
    groups: Sequence[Group],
    labels: Sequence[str],
    budgets: Sequence[float],
    shades: Any,
    column: str,
) -> None:
    height = 0.8 / len(budgets)
    values = []
    for place, epochs in enumerate(budgets):
        shown = [g for g in groups if g.epochs == epochs and g.mean(column) is not None]
        means = [g.mean(column) or 0.0 for g in shown]
        rows = [labels.index(g.label) + (place - (len(budgets) - 1) / 2) * height for g in shown]
        errors = [g.deviation(column) or 0.0 for g in shown]
        axis.barh(
            rows,
            means,
            height,
            xerr=errors,
            color=shades[place],
            label=f"{epochs:g} epochs",
            capsize=3,
        )
        values += [m - e for m, e in zip(means, errors, strict=True)]
    axis.set_yticks(range(len(labels)), labels)
    axis.invert_yaxis()
    low = min(values, default=0.0)
    axis.set_xlim(max(0.0, low - 0.25 * (1 - low)), 1.0)
    axis.grid(axis="x", alpha=0.3)
    axis.set_axisbelow(True)


def _curves(
    axis: Any, groups: Sequence[Group], labels: Sequence[str], teacher: Sequence[float]
) -> None:
    column, markers = "student_test_top1", "osD^vPX*"
    for place, label in enumerate(labels):
        own = [g for g in groups if g.label == label]
        axis.errorbar(
            [g.epochs for g in own],
            [g.mean(column) for g in own],
            [g.deviation(column) or 0.0 for g in own],
            marker=markers[place % len(markers)],
            capsize=3,
            label=label,
        )
    if teacher:
        axis.axhline(teacher[0], color="black", linestyle="--", linewidth=1)
    axis.set_xscale("log")
    budgets = sorted({g.epochs for g in groups})
    axis.set_xticks(budgets, [f"{epochs:g}" for epochs in budgets])
    axis.minorticks_off()
    axis.set_xlabel("epochs")
    axis.set_title("test accuracy against patience")
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def write(directory: Path, roots: Sequence[Path]) -> list[Group]:
    """Writes summary.csv, summary.md and comparison.png of all runs below some directories."""
    groups = group(roots)
    files.write(directory / "summary.csv", runs.table(row for g in groups for row in g.rows))
    files.write(directory / "summary.md", markdown(groups))
    figure(groups, directory / "comparison.png")
    return groups
