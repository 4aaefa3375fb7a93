"""Runs side by side: tables over recipes, budgets and seeds."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from funmatch.analysis import plots, summaries
from funmatch.analysis.seed_groups import SeedGroup, by_task, format_epochs, group_runs
from funmatch.runtime import atomic_files
from funmatch.tasks.description import TaskDescription

_STYLE = "{:.3f}"
_NOTE = "On test, mean ± sample standard deviation over seeds."

_RECIPE = 17  # columns of the terminal, for function_matching
_LEAST = 80  # that the table takes, with longer names in several lines


def print_table(groups: Sequence[SeedGroup]) -> None:
    """Prints the table that ends a sweep."""
    console = Console()
    console.width = max(console.width, _LEAST if console.is_terminal else 120)
    for own in by_task(groups):
        console.print(_table(own))
        if line := _best(own):
            print(line)


def _best(groups: Sequence[SeedGroup]) -> str:
    """Which settings to choose: test is no place to choose by."""
    task = groups[0].task
    scores = {place: g.mean(task.student_score("val")) for place, g in enumerate(groups)}
    known = {place: score for place, score in scores.items() if score is not None}
    if len(known) < 2:
        return ""
    place = max(known, key=lambda each: task.score.rank(known[each]))
    best = groups[place]
    return f"best on val ({known[place]:.3f}): {best.label}, {format_epochs(best.epochs)} epochs"


def head(task: TaskDescription) -> tuple[str, ...]:
    """The heads of a table over runs of a task."""
    return ("epochs", "recipe", "seeds", *task.table)


def _table(groups: Sequence[SeedGroup]) -> Table:
    table = Table(
        title="on test, mean ± standard deviation over seeds",
        box=None,
        pad_edge=False,
        collapse_padding=True,
        header_style="underline",
    )
    for title in head(groups[0].task):
        left = title in ("recipe", "seeds")
        fold = title == "recipe"  # numbers are never cut
        table.add_column(
            title,
            justify="left" if left else "right",
            no_wrap=not fold,
            overflow="fold",
            min_width=_RECIPE if fold else None,
        )
    before = None
    for g in groups:
        if before not in (None, g.epochs):
            table.add_row()
        before = g.epochs
        table.add_row(*row(g))
    return table


def row(g: SeedGroup) -> list[str]:
    """A row of the table: what stands below `head`."""
    others = [row["status"] for row in g.rows if row["status"] != "completed"]
    seeds = [f"{len(g.completed)} done" if others else str(len(g.completed))]
    seeds += [f"{others.count(status)} {status}" for status in sorted(set(others))]
    measured = [g.text(column, _STYLE) for column in g.task.table.values()]
    return [format_epochs(g.epochs), g.label, ", ".join(seeds), *measured]


def markdown(groups: Sequence[SeedGroup]) -> str:
    """summary.md: the same table, and what failed."""
    lines: list[str] = []
    for own in by_task(groups):
        heads = head(own[0].task)
        lines += [f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}"]
        lines += [f"| {' | '.join(row(g))} |" for g in own]
        lines += ["", f"{_NOTE} {own[0].task.note}", "", _best(own), ""]
    failures = [row for g in groups for row in g.rows if row["status"] == "failed"]
    lines += [*(f"- {row['run']} failed: {row.get('error', '')}" for row in failures)]
    return "\n".join(lines).rstrip() + "\n"


def write_and_print(directory: Path) -> None:
    """Ends a command: writes and prints what the runs of a directory have come to."""
    groups = group_runs([directory])
    write(directory, groups)
    print_table(groups)
    print(f"{directory}/summary.csv, summary.md, comparison.png")


def tables(directory: Path, groups: Sequence[SeedGroup]) -> list[Path]:
    """Writes summary.csv and summary.md; what was written."""
    found = {
        "summary.csv": summaries.table(row for g in groups for row in g.rows),
        "summary.md": markdown(groups),
    }
    for name, text in found.items():
        atomic_files.write(directory / name, text)
    return [directory / name for name in found]


def write(directory: Path, groups: Sequence[SeedGroup]) -> None:
    """Writes summary.csv, summary.md and comparison.png."""
    tables(directory, groups)
    for place, own in enumerate(by_task(groups)):
        path = directory / f"comparison{suffix(place, own)}.png"
        atomic_files.write_or_remove(path, plots.comparison(own))


def suffix(place: int, groups: Sequence[SeedGroup]) -> str:
    """What the file names of a task's figures end with, where there are several tasks."""
    return f"-{groups[0].task.name}" if place else ""
