"""A saved view of a W&B project: recipes side by side, patience, fidelity, what was seen."""

import wandb
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

from funmatch.tasks.description import CLASSIFICATION, TaskDescription
from funmatch.training.loggers.wandb import STEP

_RECIPE = Config("recipe.name")


def write(
    project: str,
    *,
    entity: str | None,
    group: str | None,
    view: str | None,
    task: TaskDescription = CLASSIFICATION,
) -> str:
    """Saves the view; returns its address.

    Args:
        project: of the runs, in W&B.
        entity: user or team; None: as the key or WANDB_ENTITY says.
        group: of the runs that it shows at first; None: all.
        view: that is written over: what follows nw= in its address; None: a new one.
        task: of the runs.

    Raises:
        wandb.errors.Error: W&B cannot be reached, or refuses the key.
    """
    api = wandb.Api()
    place = entity or api.settings["entity"] or api.default_entity  # the second is WANDB_ENTITY
    if view is None:
        workspace = Workspace(entity=str(place), project=project)
    else:
        workspace = Workspace.from_url(f"{api.settings['base_url']}/{place}/{project}?nw={view}")
    workspace.name = f"funmatch: {group or 'all runs'}"
    workspace.sections = sections(task)
    chosen = [Metric("Group") == group] if group else []
    shown = (task.student_score("test"), task.teacher_score, *_distances(task), "epochs")
    columns = [f"summary:{column}" for column in shown]
    workspace.runset_settings = RunsetSettings(filters=chosen, pinned_columns=columns)
    workspace.save()  # type: ignore[no-untyped-call]
    return str(workspace.url)


def sections(task: TaskDescription = CLASSIFICATION) -> list[Section]:
    """The panels, each over all runs that are shown; they show the figures of a task."""
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
                _course(f"{title} on val", f"val/{score.metric}", f"val/{of_teacher}"),
                _course("Loss on training views", "train/loss"),
            ],
        ),
        Section(
            name="Patience",
            is_open=True,
            panels=[
                _against_length(f"{_capital(name)} against the length of training", column)
                for column, name in lengths.items()
            ],
        ),
        Section(
            name="Fidelity",
            is_open=True,
            panels=[
                *(
                    _course(f"{_capital(name)} on val", f"val/{metric}")
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
            name="What the networks saw, and predicted",
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
    """Titles of agreement with the teacher and distance to it, by metric; they may be one."""
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


def _course(title: str, *metrics: str) -> LinePlot:
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


def _against_length(title: str, column: str) -> ScatterPlot:
    return ScatterPlot(title=title, x=SummaryMetric("epochs"), y=SummaryMetric(column), log_x=True)
