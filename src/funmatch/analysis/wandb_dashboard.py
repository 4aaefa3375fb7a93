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

from funmatch.training.loggers.wandb import STEP

_RECIPE = Config("recipe.name")
_COLUMNS = ("student_test_top1", "teacher_test_top1", "agreement_top1", "kl_to_teacher", "epochs")


def write(project: str, *, entity: str | None, group: str | None, view: str | None) -> str:
    """Saves the view; returns its address.

    Args:
        project: of the runs, in W&B.
        entity: user or team; None: as the key or WANDB_ENTITY says.
        group: of the runs that it shows at first; None: all.
        view: that is written over: what follows nw= in its address; None: a new one.

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
    workspace.sections = sections()
    chosen = [Metric("Group") == group] if group else []
    columns = [f"summary:{column}" for column in _COLUMNS]
    workspace.runset_settings = RunsetSettings(filters=chosen, pinned_columns=columns)
    workspace.save()  # type: ignore[no-untyped-call]
    return str(workspace.url)


def sections() -> list[Section]:
    """The panels, each over all runs that are shown."""
    return [
        Section(
            name="Recipes",
            is_open=True,
            panels=[
                _bars("Accuracy on test", "student_test_top1", "teacher_test_top1"),
                _bars("Agreement with the teacher on test", "agreement_top1"),
                _course("Accuracy on val", "val/student_top1", "val/teacher_top1"),
                _course("Loss on training views", "train/loss"),
            ],
        ),
        Section(
            name="Patience",
            is_open=True,
            panels=[
                _against_length("Accuracy against the length of training", "student_test_top1"),
                _against_length("Agreement against the length of training", "agreement_top1"),
                _against_length("Divergence against the length of training", "kl_to_teacher"),
            ],
        ),
        Section(
            name="Fidelity",
            is_open=True,
            panels=[
                _course("Agreement on val", "val/agreement_top1"),
                _course("Divergence from the teacher on val, nats", "val/kl_to_teacher"),
                ScatterPlot(
                    title="Accuracy against agreement, on test",
                    x=SummaryMetric("agreement_top1"),
                    y=SummaryMetric("student_test_top1"),
                ),
            ],
        ),
        Section(
            name="What the networks saw, and said",
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
