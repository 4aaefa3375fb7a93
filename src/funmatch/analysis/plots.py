"""Plots over runs as PNG images, legible without colour too."""

import io
import math
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from funmatch.analysis.seed_groups import SeedGroup, format_epochs
from funmatch.analysis.training_curves import mean_curve, reliability_diagrams

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MIN_BIN_IMAGES = 10  # the accuracy of a bin with fewer images is mostly noise
_MARKERS = "osD^vP*X"
_LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
# The colour-blind safe palette of Okabe and Ito, from dark to light.
_COLOURS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def comparison(groups: Sequence[SeedGroup]) -> bytes | None:
    """Score and agreement per recipe, and score against epochs, of completed runs of one task."""
    groups = [g for g in groups if g.completed]
    if not groups:
        return None
    labels = list(dict.fromkeys(g.label for g in groups))
    budgets = sorted({g.epochs for g in groups})
    task = groups[0].task
    columns = {
        groups[0].score: f"test {task.score.title}",
        task.agreement.metric: task.agreement.title,
    }
    columns = {
        c: title for c, title in columns.items() if any(g.mean(c) is not None for g in groups)
    }
    names = [textwrap.fill(label, 40) for label in labels]
    longest = max(len(line) for name in names for line in name.splitlines())
    width = 4.4 * (len(columns) + (len(budgets) > 1)) + 0.09 * longest
    drawing, axes = _sheet(len(columns) + (len(budgets) > 1), width, 0.45 * len(labels) + 2.6)
    for index, (axis, (column, title)) in enumerate(zip(axes, columns.items(), strict=False)):
        _dots(axis, groups, labels, budgets, column)
        axis.set_title(title)
        axis.set_yticks(range(len(labels)), [""] * len(labels) if index else names)
    if len(budgets) > 1:
        _against_budget(axes[-1], groups)
        axes[-1].legend(fontsize="small", loc="best")
    for teacher in _teachers(groups):
        axes[0].axvline(teacher, color="black", linestyle="--", linewidth=1, label="teacher")
    handles, texts = axes[0].get_legend_handles_labels()
    entries = dict(zip(texts, handles, strict=True))  # several teachers share one entry
    drawing.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=len(entries),
        frameon=False,
    )
    return _png(drawing)


def patience(groups: Sequence[SeedGroup]) -> bytes | None:
    """Test score of student and teacher against the length of training; None for a single length.

    Source: Beyer et al. 2022, fig. 4.
    """
    groups = [g for g in groups if g.mean(g.score) is not None]
    if len({g.epochs for g in groups}) < 2:
        return None
    drawing, (axis,) = _sheet(1, 7.5, 4.5)
    _against_budget(axis, groups)
    for teacher in _teachers(groups):
        axis.axhline(teacher, color="black", linestyle="--", linewidth=1, label="teacher")
    axis.set_ylabel(f"test {groups[0].task.score.title}")
    _legend(drawing, axis)
    return _png(drawing)


def learning(groups: Sequence[SeedGroup]) -> bytes | None:
    """Training curves: score on val, of the longest runs of each recipe.

    Source: Beyer et al. 2022, fig. 3.
    """
    score = groups[0].task.score
    return _curves(_longest(groups), {f"val/{score.metric}": f"val {score.title}"})


def losses(groups: Sequence[SeedGroup]) -> bytes | None:
    """Training loss, and the distance to the teacher on val."""
    distance = groups[0].task.distance
    columns = {
        "train/loss": "loss on training views",
        f"val/{distance.metric}": f"{distance.title} on val",
    }
    return _curves(_longest(groups), columns, log=True)


def calibration(groups: Sequence[SeedGroup]) -> bytes | None:
    """Reliability diagram: accuracy of students against their confidence, on test."""
    diagrams = {g.label: seeds for g in _longest(groups) if (seeds := reliability_diagrams(g))}
    if not diagrams:
        return None
    drawing, (axis,) = _sheet(1, 6.5, 5)
    axis.plot([0, 1], [0, 1], color="0.7", linewidth=1, label="perfectly calibrated")
    for index, (label, seeds) in enumerate(diagrams.items()):
        confidence, correct, count = np.sum(seeds, axis=0)
        shown = count >= _MIN_BIN_IMAGES
        mean = confidence[shown] / count[shown], correct[shown] / count[shown]
        axis.plot(*mean, **_style(index), label=label)
    axis.set_xlabel("confidence of the student")
    axis.set_ylabel("accuracy")
    axis.set_aspect("equal")
    _legend(drawing, axis)
    return _png(drawing)


def times(groups: Sequence[SeedGroup]) -> bytes | None:
    """Seconds of a run spent in the teacher, in the student and elsewhere."""
    groups = [g for g in groups if g.mean("wall_seconds")]
    if not groups:
        return None
    drawing, (axis,) = _sheet(1, 8, 0.4 * len(groups) + 1.6)
    rows, left = np.arange(len(groups)), np.zeros(len(groups))
    wall = np.array([g.mean("wall_seconds") or 0.0 for g in groups])
    parts = {
        name: np.array([g.mean(f"{name}_seconds") or 0.0 for g in groups])
        for name in ("teacher", "student")
    }
    parts["data, validation and the rest"] = np.maximum(wall - sum(parts.values()), 0)
    for (name, seconds), colour, hatch in zip(
        parts.items(), ("0.25", "0.6", "0.9"), ("", "///", ""), strict=True
    ):
        axis.barh(
            rows, seconds, left=left, color=colour, hatch=hatch, edgecolor="black", label=name
        )
        left = left + seconds
    axis.set_yticks(
        rows, [textwrap.fill(f"{g.label}, {format_epochs(g.epochs)} epochs", 40) for g in groups]
    )
    axis.invert_yaxis()
    axis.set_xlabel("seconds")
    _legend(drawing, axis)
    return _png(drawing)


def _longest(groups: Iterable[SeedGroup]) -> list[SeedGroup]:
    """The group with the most epochs for each label."""
    longest: dict[str, SeedGroup] = {}
    for g in groups:
        if g.label not in longest or g.epochs > longest[g.label].epochs:
            longest[g.label] = g
    return list(longest.values())


def _teachers(groups: Iterable[SeedGroup]) -> set[float]:
    return {mean for g in groups if (mean := g.mean(g.task.teacher_score)) is not None}


def _curves(
    groups: Sequence[SeedGroup], columns: dict[str, str], log: bool = False
) -> bytes | None:
    """One panel of training curves, means over seeds, for each column that metrics.csv has."""
    panels = {
        column: {g.label: curve for g in groups if (curve := mean_curve(g, column))}
        for column in columns
    }
    panels = {column: curves for column, curves in panels.items() if curves}
    if not panels:
        return None
    drawing, axes = _sheet(len(panels), 5.5 * len(panels) + 1.5, 4.2)
    labels = [g.label for g in groups]
    for axis, (column, curves) in zip(axes, panels.items(), strict=True):
        for label, (epochs, values) in curves.items():
            axis.plot(
                epochs, values, **{**_style(labels.index(label)), "markevery": 0.2}, label=label
            )
        if log:
            axis.set_yscale("log")
        axis.set_xlabel("epochs")
        axis.set_title(columns[column])
        axis.grid(alpha=0.3)
    _legend(drawing, max(axes, key=lambda axis: len(axis.get_lines())))
    return _png(drawing)


def _dots(
    axis: "Axes",
    groups: Sequence[SeedGroup],
    labels: Sequence[str],
    budgets: Sequence[float],
    column: str,
) -> None:
    """Means with standard deviations: a row per recipe, a marker per length of training."""
    for index, epochs in enumerate(budgets):
        shown = [g for g in groups if g.epochs == epochs and g.mean(column) is not None]
        shift = 0.22 * (index - (len(budgets) - 1) / 2)
        axis.errorbar(
            [g.mean(column) or 0.0 for g in shown],
            [labels.index(g.label) + shift for g in shown],
            xerr=[g.deviation(column) or 0.0 for g in shown],
            **{**_style(index), "linestyle": "none"},
            capsize=3,
            label=f"{format_epochs(epochs)} epochs",
        )
    axis.set_ylim(len(labels) - 0.5, -0.5)
    axis.locator_params(axis="x", nbins=6)
    axis.grid(alpha=0.3)


def _against_budget(axis: "Axes", groups: Sequence[SeedGroup]) -> None:
    """Test score against the length of training; points are shifted so that none hides another."""
    labels = list(dict.fromkeys(g.label for g in groups))
    budgets = sorted({g.epochs for g in groups})
    for index, label in enumerate(labels):
        own = [g for g in groups if g.label == label and g.mean(g.score) is not None]
        nudge = 1.04 ** (index - (len(labels) - 1) / 2)
        axis.errorbar(
            [g.epochs * nudge for g in own],
            [g.mean(g.score) or 0.0 for g in own],
            yerr=[g.deviation(g.score) or 0.0 for g in own],
            **_style(index),
            capsize=3,
            label=label,
        )
    axis.set_xscale("log")
    axis.set_xticks(budgets, [*map(format_epochs, budgets)])
    axis.minorticks_off()
    axis.set_xlabel("epochs")
    axis.set_title(f"test {groups[0].task.score.title} against length of training")
    axis.grid(alpha=0.3)


def _style(index: int) -> dict[str, Any]:
    return {
        "marker": _MARKERS[index % len(_MARKERS)],
        "linestyle": _LINES[index % len(_LINES)],
        "color": _COLOURS[index % len(_COLOURS)],
        "markersize": 5,
    }


def _sheet(panels: int, width: float, height: float) -> tuple["Figure", list["Axes"]]:
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    drawing, grid = plt.subplots(
        1, panels, figsize=(width, height), dpi=120, layout="constrained", squeeze=False
    )
    return drawing, list(grid[0])


def _legend(drawing: "Figure", axis: "Axes") -> None:
    handles, texts = axis.get_legend_handles_labels()
    entries = {textwrap.fill(t, 60): h for t, h in zip(texts, handles, strict=True)}
    columns = max(1, min(3, len(entries), math.floor(110 / max(map(len, entries)))))
    drawing.legend(
        entries.values(),
        entries.keys(),
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize="small",
    )


def _png(drawing: "Figure") -> bytes:
    from matplotlib import pyplot as plt

    file = io.BytesIO()
    drawing.savefig(file, format="png")
    plt.close(drawing)
    return file.getvalue()
