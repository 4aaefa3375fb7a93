"""What the figures of a task are called and which way is better: plain data, without torch.

`summary.json` contains the description of the run's task, so that tables, figures and reports read
runs of any task without importing it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Direction = Literal["max", "min"]

# Columns of every summary, before and after those of the task.
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
    """One figure of merit.

    Attributes:
        metric: its name in the log, without the split: "student_top1", "kl_to_teacher".
        title: what an axis or a table calls it: "accuracy".
        direction: "max" where more is better, "min" where less is.
    """

    metric: str
    title: str
    direction: Direction

    @property
    def worst(self) -> float:
        """A value that every other one improves on."""
        return float("-inf") if self.direction == "max" else float("inf")

    def improves(self, value: float, on: float) -> bool:
        """Whether a value is at least as good as another."""
        return value >= on if self.direction == "max" else value <= on

    def rank(self, value: float) -> float:
        """The value with a sign such that more is always better."""
        return value if self.direction == "max" else -value


@dataclass(frozen=True)
class TaskDescription:
    """The names of a task and of its figures.

    Attributes:
        name: of the task.
        model: what a network of this task is called: "image classifier".
        score: the student against the truth: chooses the best student and leads every table.
        agreement: the student against its teacher; the score where there are no labels.
        distance: from the student to its teacher, drawn beside the training loss.
        columns: of the table of runs, in order; see `column`.
        table: the columns that a printed table shows, by their heads.
        note: units of these columns, in a sentence.
        bounds: of the score; None: there is none on this side.
        pipeline_tag: of a model card; None where the hub has no name for the task.
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
        """The column of the student's score on "val" or "test"."""
        return column(f"{split}/{self.score.metric}")

    @property
    def teacher_score(self) -> str:
        """The column of the teacher's score on test."""
        return column(f"test/{self.score.metric.replace('student_', 'teacher_', 1)}")

    def as_json(self) -> dict[str, Any]:
        """Plain values, as summary.json holds them."""
        return asdict(self)

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> "TaskDescription":
        """The description in the summary of a run: the inverse of `as_json`.

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
    """The column of a metric: `test/student_top1` is `student_test_top1`."""
    split, name = metric.split("/")
    network, _, figure = name.partition("_")
    return f"{network}_{split}_{figure}" if network in ("student", "teacher") else name


def columns(*tasks: TaskDescription) -> tuple[str, ...]:
    """The columns of a table over runs of some tasks, each once."""
    own = dict.fromkeys(name for task in tasks for name in task.columns)
    return (*_RUN_COLUMNS, *own, *_COST_COLUMNS)
