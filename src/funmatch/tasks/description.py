"""Description of a task: names and directions of its figures. Imports no torch.

`summary.json` contains the description of the run's task, so that tables, figures and reports read
runs of any task without importing it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Direction = Literal["max", "min"]

# Columns of every summary, before and after the columns of the task.
_RUN_COLUMNS = ("run", "recipe", "seed", "epochs", "steps")
_COST_COLUMNS = (
    "images_per_second",
    "teacher_seconds",
    "student_seconds",
    "wall_seconds",
    "status",
)


@dataclass(frozen=True)
class Figure:
    """A figure of merit.

    Attributes:
        metric: name in the log, without the split: "student_top1", "kl_to_teacher".
        title: label of an axis or a table: "accuracy".
        direction: "max" if more is better, "min" if less is better.
    """

    metric: str
    title: str
    direction: Direction

    @property
    def worst(self) -> float:
        """The value that every other value improves on."""
        return float("-inf") if self.direction == "max" else float("inf")

    def improves(self, value: float, on: float) -> bool:
        """Returns True if a value is at least as good as another."""
        return value >= on if self.direction == "max" else value <= on

    def rank(self, value: float) -> float:
        """The value as a sort key: negated if less is better."""
        return value if self.direction == "max" else -value


@dataclass(frozen=True)
class TaskDescription:
    """Names of a task and of its figures.

    Attributes:
        name: name of the task.
        model: noun for a network of this task: "image classifier".
        score: student against labels; selects the best student and comes first in every table.
        agreement: student against teacher; the score if the data has no labels.
        distance: distance from student to teacher, plotted beside the training loss.
        columns: columns of the table of runs, in order; see `column`.
        table: columns of a printed table, by their heads.
        note: units of these columns, in a sentence.
        bounds: lower and upper bound of the score; None: unbounded.
        pipeline_tag: task of a model card on the Hugging Face hub; None if it has no such tag.
    """

    name: str
    model: str
    score: Figure
    agreement: Figure
    distance: Figure
    columns: tuple[str, ...]
    table: Mapping[str, str]
    note: str
    bounds: tuple[float | None, float | None] = (None, None)
    pipeline_tag: str | None = None

    def student_score(self, split: str) -> str:
        """Column of the student's score on "val" or "test"."""
        return column(f"{split}/{self.score.metric}")

    @property
    def teacher_score(self) -> str:
        """Column of the teacher's score on test."""
        return column(f"test/{self.score.metric.replace('student_', 'teacher_', 1)}")

    def as_json(self) -> dict[str, Any]:
        """The description as plain values, for summary.json."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "TaskDescription":
        """The description in a summary, as written by `as_json`.

        Raises:
            KeyError, TypeError, ValueError: the summary is damaged.
        """
        given = dict(row["task"])
        for name in ("score", "agreement", "distance"):
            given[name] = Figure(**given[name])
        given["columns"] = tuple(given["columns"])
        low, high = given["bounds"]
        return cls(**{**given, "bounds": (low, high)})


def column(metric: str) -> str:
    """Column of a metric: `student_test_top1` for `test/student_top1`."""
    split, name = metric.split("/")
    network, _, figure = name.partition("_")
    return f"{network}_{split}_{figure}" if network in ("student", "teacher") else name


def columns(*tasks: TaskDescription) -> tuple[str, ...]:
    """Columns of a table over runs of some tasks, without duplicates."""
    own = dict.fromkeys(name for task in tasks for name in task.columns)
    return (*_RUN_COLUMNS, *own, *_COST_COLUMNS)
