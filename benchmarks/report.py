"""Report of a benchmark: table, JSON and plot."""

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from funmatch.runtime import atomic_files

matplotlib.use("Agg")
from matplotlib import pyplot as plt

_PACKAGES = ("torch", "torchvision", "lightning", "timm", "torchdistill", "torchcodec")
_HEAD = ("figure", "pair", "what", "value", "quartiles", "target", "")


@dataclass(frozen=True)
class Row:
    """One measured ratio.

    Attributes:
        figure: name of the figure.
        pair: pair of networks.
        what: description of the ratio.
        value: median.
        low: lower quartile.
        high: upper quartile.
        target: lower bound of the goal, or upper bound if `most`.
        most: True if the target is an upper bound.
        detail: the underlying measurements.
    """

    figure: str
    pair: str
    what: str
    value: float | None
    low: float | None = None
    high: float | None = None
    target: float | None = None
    most: bool = False
    detail: str = ""

    @property
    def holds(self) -> bool | None:
        """Returns True if the target is met; None without a measurement or a target."""
        if self.value is None or self.target is None:
            return None
        return self.value <= self.target if self.most else self.value >= self.target


def say(row: Row) -> None:
    """One row at once: the whole takes minutes."""
    figure, pair, what, value, _, target, holds = _cells(row)
    print(f"{figure}: {pair}: {what} {value} ({target}) {holds} {row.detail}", flush=True)


def show(rows: Sequence[Row]) -> None:
    """The table in the terminal."""
    table = Table(box=SIMPLE_HEAD, title=_machine())
    for name in _HEAD:
        table.add_column(name)
    for row in rows:
        table.add_row(*_cells(row))
    Console().print(table)


def write(folder: Path, rows: Sequence[Row]) -> None:
    """benchmark.json, benchmark.md and benchmark.png."""
    facts = {"machine": _machine(), "versions": _versions()}
    content = {**facts, "rows": [{**asdict(row), "holds": row.holds} for row in rows]}
    atomic_files.write(folder / "benchmark.json", json.dumps(content, indent=2) + "\n")
    lines = [" | ".join(("", *_HEAD, "detail", "")).strip(), "|" + " --- |" * (len(_HEAD) + 1)]
    lines += [" | ".join(("", *_cells(row), row.detail, "")).strip() for row in rows]
    versions = ", ".join(f"{name} {number}" for name, number in _versions().items())
    text = "\n".join((f"{_machine()}; {versions}.", "", *lines, ""))
    atomic_files.write(folder / "benchmark.md", text)
    _draw(folder / "benchmark.png", [row for row in rows if row.value is not None and row.target])


def _draw(path: Path, rows: Sequence[Row]) -> None:
    """Speeds above, costs below, each in units of its target, with quartiles."""
    panels = [
        ("measured / target: right of the line is better", [r for r in rows if not r.most]),
        ("measured / target: left of the line is better", [r for r in rows if r.most]),
    ]
    panels = [(title, shown) for title, shown in panels if shown]
    heights = [0.6 + 0.32 * len(shown) for _, shown in panels]
    figure, axes = plt.subplots(
        len(panels),
        figsize=(10, 1 + sum(heights)),
        squeeze=False,
        gridspec_kw={"height_ratios": heights},
        layout="constrained",
    )
    for panel, (title, shown) in zip(axes[:, 0], panels, strict=True):
        for index, row in enumerate(reversed(shown)):
            assert row.value is not None
            assert row.target
            low, high = (row.value if edge is None else edge for edge in (row.low, row.high))
            bounds = [[(row.value - low) / row.target], [(high - row.value) / row.target]]
            marker, colour = ("o", "tab:blue") if row.holds else ("X", "tab:orange")
            panel.errorbar(row.value / row.target, index, xerr=bounds, fmt=marker, color=colour)
        panel.axvline(1, color="grey", linestyle="--")
        bound = "at most" if shown[0].most else "at least"
        names = [f"{row.pair}: {row.what} {bound} {row.target:g}" for row in shown]
        panel.set_yticks(range(len(shown)), names[::-1], fontsize=8)
        panel.set_xlabel(f"{title} (o met, x missed; bars are quartiles)", fontsize=8)
        if shown[0].most:  # a cost of nothing may be measured below it
            panel.set_xlim(-2, max(4.0, *(1.1 * row.value / row.target for row in shown)))
    axes[0, 0].set_title(_machine(), fontsize=9)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _cells(row: Row) -> tuple[str, ...]:
    value = "–" if row.value is None else f"{row.value:.3f}"
    spread = "" if row.low is None or row.high is None else f"{row.low:.3f} to {row.high:.3f}"
    target = "" if row.target is None else f"{'at most' if row.most else 'at least'} {row.target:g}"
    holds = {None: "open", True: "met", False: "missed"}[row.holds] if row.target else ""
    return row.figure, row.pair, row.what, value, spread, target, holds


def _machine() -> str:
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {os.cpu_count()} cores"


def _versions() -> dict[str, str]:
    packages: dict[str, Any] = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            packages[package] = version(package)
        except PackageNotFoundError:
            continue
    return packages
