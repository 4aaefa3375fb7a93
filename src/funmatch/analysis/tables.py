"""Tables that compare runs: recipes, lengths of training and seeds."""

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

_MIN_RECIPE_WIDTH = 17  # characters, for function_matching
_MIN_WIDTH = 80  # characters of the table; longer names are wrapped


def print_table(groups: Sequence[SeedGroup]) -> None:
    """Prints the table that ends a sweep."""
    console = Console()
    console.width = max(console.width, _MIN_WIDTH if console.is_terminal else 120)
    for own in by_task(groups):
        console.print(_table(own))
        if line := _best(own):
            print(line)


def _best(groups: Sequence[SeedGroup]) -> str:
    """The best settings on val, as a line of text; they are never chosen on test."""
    task = groups[0].task
    means = [(g.mean(task.student_score("val")), g) for g in groups]
    scores = [(score, g) for score, g in means if score is not None]
    if len(scores) < 2:
        return ""
    score, best = max(scores, key=lambda pair: task.score.rank(pair[0]))
    return f"best on val ({score:.3f}): {best.label}, {format_epochs(best.epochs)} epochs"


def head(task: TaskDescription) -> tuple[str, ...]:
    """The column heads of a table over runs of a task."""
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
        fold = title == "recipe"  # numbers are never wrapped
        table.add_column(
            title,
            justify="left" if left else "right",
            no_wrap=not fold,
            overflow="fold",
            min_width=_MIN_RECIPE_WIDTH if fold else None,
        )
    previous = None
    for g in groups:
        if previous not in (None, g.epochs):
            table.add_row()
        previous = g.epochs
        table.add_row(*row(g))
    return table


def row(g: SeedGroup) -> list[str]:
    """A row of the table: the cells below `head`."""
    others = [row["status"] for row in g.rows if row["status"] != "completed"]
    seeds = [f"{len(g.completed)} done" if others else str(len(g.completed))]
    seeds += [f"{others.count(status)} {status}" for status in sorted(set(others))]
    measured = [g.text(column, _STYLE) for column in g.task.table.values()]
    return [format_epochs(g.epochs), g.label, ", ".join(seeds), *measured]


def markdown(groups: Sequence[SeedGroup]) -> str:
    """The content of summary.md: the same table, then the failed runs."""
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
    """Writes and prints the tables over the runs of a directory, at the end of a command."""
    groups = group_runs([directory])
    write(directory, groups)
    print_table(groups)
    print(f"{directory}/summary.csv, summary.md, comparison.png")


def tables(directory: Path, groups: Sequence[SeedGroup]) -> list[Path]:
    """Writes summary.csv and summary.md; returns their paths."""
    texts = {
        "summary.csv": summaries.table(row for g in groups for row in g.rows),
        "summary.md": markdown(groups),
    }
    for name, text in texts.items():
        atomic_files.write(directory / name, text)
    return [directory / name for name in texts]


def write(directory: Path, groups: Sequence[SeedGroup]) -> None:
    """Writes summary.csv, summary.md and comparison.png."""
    tables(directory, groups)
    for index, task_groups in enumerate(by_task(groups)):
        path = directory / f"comparison{suffix(index, task_groups)}.png"
        atomic_files.write_or_remove(path, plots.comparison(task_groups))


def suffix(index: int, groups: Sequence[SeedGroup]) -> str:
    """Suffix of the file names of a task's figures: the name of every task but the first."""
    return f"-{groups[0].task.name}" if index else ""
