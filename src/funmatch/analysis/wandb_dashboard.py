"""Saved view (workspace) of a W&B project: panels that compare recipes in the figures of a task."""

from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Any

import wandb
from omegaconf import OmegaConf
from wandb_workspaces.reports.v2.interface import (
    BarPlot,
    Config,
    LinePlot,
    MediaBrowser,
    ScatterPlot,
    SummaryMetric,
    WeavePanelSummaryTable,
)
from wandb_workspaces.workspaces import Metric, RunsetSettings, Section, Workspace

from funmatch.runtime import allowlist
from funmatch.tasks.base import Task
from funmatch.tasks.classification.description import DESCRIPTION as CLASSIFICATION
from funmatch.tasks.description import TaskDescription
from funmatch.training.loggers.wandb import STEP

_RECIPE = Config("recipe.name")
_MAX_RUNS_READ = 50  # the newest, one page of the server's answer


def write(project: str, *, entity: str | None, group: str | None, view: str | None) -> str:
    """Saves a workspace view of a W&B project and returns its URL.

    Args:
        project: name of the W&B project.
        entity: user or team; None: the one that WANDB_ENTITY or the API key names.
        group: W&B group that the view is filtered by; None: all runs.
        view: ID of a view to overwrite, as after nw= in its URL; None: a new view.

    Raises:
        wandb.errors.Error: W&B cannot be reached or refuses the key.
        ValueError: the project does not exist, or its runs name a task that is not allowed.
    """
    api = wandb.Api()
    owner = entity or api.settings["entity"] or api.default_entity  # the second is WANDB_ENTITY
    filters = {"group": group} if group else {}
    runs = api.runs(f"{owner}/{project}", filters=filters, order="-created_at", lazy=False)
    task = _task(islice(runs, _MAX_RUNS_READ))
    if view is None:
        workspace = Workspace(entity=str(owner), project=project)
    else:
        workspace = Workspace.from_url(f"{api.settings['base_url']}/{owner}/{project}?nw={view}")
    workspace.name = f"funmatch: {group or 'all runs'}"
    workspace.sections = _sections(task)
    shown = (task.student_score("test"), task.teacher_score, *_distances(task), "epochs")
    workspace.runset_settings = RunsetSettings(
        filters=[Metric("Group") == group] if group else [],
        pinned_columns=[f"summary:{column}" for column in shown],
    )
    workspace.save()  # type: ignore[no-untyped-call]
    return str(workspace.url)


def _task(runs: Iterable[Any]) -> TaskDescription:
    """The task of the first W&B run whose configuration names one; classification if none does.

    Raises:
        ValueError: the task is not on the allowlist.
    """
    for run in runs:
        data = run.config.get("data")
        if isinstance(data, Mapping) and data.get("task"):
            cfg = OmegaConf.create({"data": {"task": data["task"]}})
            allowlist.check(cfg)  # the configuration comes from a server
            task: Task = allowlist.instantiate(cfg.data.task, "data.task")
            return task.description
    return CLASSIFICATION


def _sections(task: TaskDescription) -> list[Section]:
    """Sections of panels that show the figures of a task, over all runs of the view."""
    score, test, teacher = task.score, task.student_score("test"), task.teacher_score
    title = _capital(score.title)
    agreement = task.agreement
    of_teacher = score.metric.replace("student_", "teacher_", 1)
    lengths = {test: score.title, **_distances(task)}
    return [
        Section(
            name="Recipes",
            is_open=True,
            panels=[
                _bars(f"{title} on test", test, teacher),
                _bars(f"{_capital(agreement.title)} on test", agreement.metric),
                _curve(f"{title} on val", f"val/{score.metric}", f"val/{of_teacher}"),
                _curve("Loss on training views", "train/loss"),
            ],
        ),
        Section(
            name="Patience",
            is_open=True,
            panels=[
                _over_epochs(f"{_capital(name)} against the length of training", column)
                for column, name in lengths.items()
            ],
        ),
        Section(
            name="Fidelity",
            is_open=True,
            panels=[
                *(
                    _curve(f"{_capital(name)} on val", f"val/{metric}")
                    for metric, name in _distances(task).items()
                ),
                ScatterPlot(
                    title=f"{title} against {agreement.title}, on test",
                    x=SummaryMetric(agreement.metric),
                    y=SummaryMetric(test),
                ),
            ],
        ),
        Section(
            name="Views and predictions",
            is_open=True,
            panels=[
                MediaBrowser(title="Views of the first step", media_keys=["views"]),
                WeavePanelSummaryTable(table_name="test/predictions"),
            ],
        ),
        Section(
            name="Time",
            panels=[
                _bars("Seconds of the networks", "teacher_seconds", "student_seconds"),
                _bars("Images per second", "images_per_second"),
            ],
        ),
    ]


def _distances(task: TaskDescription) -> dict[str, str]:
    """Titles of agreement with the teacher and distance to it, by metric; they may be the same."""
    return {figure.metric: figure.title for figure in (task.agreement, task.distance)}


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _bars(title: str, *columns: str) -> BarPlot:
    return BarPlot(
        title=title,
        metrics=list(columns),
        groupby=_RECIPE,
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
    )


def _curve(title: str, *metrics: str) -> LinePlot:
    return LinePlot(
        title=title,
        x=STEP,
        y=list(metrics),
        title_x="steps",
        groupby=_RECIPE,
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        max_runs_to_show=100,
    )


def _over_epochs(title: str, column: str) -> ScatterPlot:
    return ScatterPlot(title=title, x=SummaryMetric("epochs"), y=SummaryMetric(column), log_x=True)
