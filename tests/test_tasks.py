"""Tasks: metrics, descriptions, labels in views, and regression runs."""

import csv
import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score
from torch import Tensor

from commands import QUICK, command
from faults import inject
from funmatch.analysis import summaries
from funmatch.analysis.seed_groups import group_runs
from funmatch.core.geometry import View
from funmatch.data.datasets import digits
from funmatch.data.sources import ArraySource
from funmatch.runs.directory import Run
from funmatch.tasks.classification.description import DESCRIPTION as CLASSIFICATION
from funmatch.tasks.classification.task import Classification
from funmatch.tasks.description import TaskDescription, columns
from funmatch.tasks.regression.description import DESCRIPTION
from funmatch.tasks.regression.task import Regression
from funmatch.training.callbacks.best_student import step_of
from funmatch.views.evaluation_views import EvaluationStream, EvaluationViews
from funmatch.views.recipes import Shared
from toys import image_stream

TASKS = [Classification(7), Regression(), Regression(3)]


def predictions(task, rows: int = 11, seed: int = 0) -> Tensor:
    return torch.randn(rows, *task.prediction_shape, generator=torch.manual_seed(seed))


def labels(task, rows: int = 11) -> Tensor:
    generator = torch.manual_seed(9)
    if isinstance(task, Classification):
        return torch.randint(0, 7, (rows,), generator=generator)
    return torch.randn(rows, *task.prediction_shape, generator=generator)


# --- what holds of every task --------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_metrics_do_not_depend_on_batching(task) -> None:
    student, teacher, label = predictions(task), predictions(task, seed=1), labels(task)
    whole, parts = task.metrics(), task.metrics()
    whole.update(student, teacher, label)
    for rows in (slice(0, 1), slice(1, 8), slice(8, 11)):
        parts.update(student[rows], teacher[rows], label[rows])
    in_parts, expected = parts.compute(), whole.compute()
    assert in_parts.keys() == expected.keys()
    for name, value in expected.items():
        assert float(in_parts[name]) == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_description_names_measured_metrics(task) -> None:
    named = task.description
    metrics = task.metrics()
    metrics.update(predictions(task), predictions(task, seed=1), labels(task))
    measured = set(metrics.compute())
    assert {f.metric for f in (named.score, named.agreement, named.distance)} <= measured
    test_columns = {c.replace("_val_", "_").replace("_test_", "_") for c in named.columns}
    assert test_columns <= measured
    assert {*named.table.values(), named.student_score("val")} <= set(named.columns)
    assert {named.student_score("test"), named.teacher_score} <= set(named.columns)


@pytest.mark.parametrize("task", TASKS)
def test_metrics_without_labels_or_teacher_omit_the_others(task) -> None:
    unlabelled, untaught = task.metrics(), task.metrics()
    unlabelled.update(predictions(task), predictions(task, seed=1), None)
    untaught.update(predictions(task), None, labels(task))
    named = task.description
    assert named.agreement.metric in unlabelled.compute()
    assert named.score.metric not in unlabelled.compute()
    assert all(name.startswith("student_") for name in untaught.compute())
    assert named.score.metric in untaught.compute()


@pytest.mark.parametrize("task", TASKS)
def test_prediction_round_trips_through_rows(task) -> None:
    prediction = predictions(task)
    assert torch.equal(task.from_rows(task.to_rows(prediction)), prediction)
    assert task.relative_difference(task.to_rows(prediction), task.to_rows(prediction)) == 0
    other = predictions(task, seed=1)
    assert task.relative_difference(task.to_rows(prediction), task.to_rows(other)) > 0.5


@pytest.mark.parametrize("task", TASKS)
def test_mean_of_equal_predictions_is_the_prediction(task) -> None:
    same = predictions(task)
    for mean in task.means.values():
        combined = mean(torch.stack([same, same]), torch.tensor([1.0, 3.0]), temperature=2.0)
        shift = (combined - same)[:, :1] if isinstance(task, Classification) else 0.0
        torch.testing.assert_close(combined - shift, same)  # logits count up to a shift


@pytest.mark.parametrize("description", [CLASSIFICATION, DESCRIPTION])
def test_description_round_trips_through_json(description: TaskDescription) -> None:
    row = {"task": json.loads(json.dumps(description.as_json()))}
    assert TaskDescription.of(row) == description


def test_summary_without_task_is_classification(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"status": "completed", "seed": 0, "settings": {}}')
    for row in (Run(tmp_path).result, *summaries.collect([tmp_path])):
        assert TaskDescription.of(row) == CLASSIFICATION
    assert columns(CLASSIFICATION, CLASSIFICATION) == columns(CLASSIFICATION)


def test_figure_knows_which_direction_is_better() -> None:
    more, less = CLASSIFICATION.score, DESCRIPTION.score
    assert more.improves(0.9, on=0.8)
    assert less.improves(0.1, on=0.2)
    assert more.improves(0.8, on=0.8)  # of equals the later one
    assert less.improves(0.2, on=0.2)
    assert not more.improves(0.7, on=0.8)
    assert not less.improves(0.3, on=0.2)
    assert more.improves(-1e9, on=more.worst)
    assert less.improves(1e9, on=less.worst)
    assert max([0.3, 0.1, 0.2], key=less.rank) == 0.1


# --- the truth follows the view ------------------------------------------------------------------


def corner(label: Tensor, view: View, side: int) -> Tensor:
    """A point of an image, in pixels of its view."""
    top, left, height, width = torch.from_numpy(view.boxes).float().T
    scale = torch.stack([side / height, side / width], dim=1)
    return (label - torch.stack([top, left], dim=1)) * scale


def dots() -> ArraySource:
    """A white pixel somewhere in each image, and its centre as the label."""
    positions = torch.from_numpy(np.random.default_rng(0).integers(6, 10, (20, 2)))
    images = torch.zeros(20, 1, 16, 16, dtype=torch.uint8)
    images[torch.arange(20), 0, positions[:, 0], positions[:, 1]] = 255
    return ArraySource(images, positions.float() + 0.5, ())


def centre_of(views: Tensor) -> Tensor:
    weight = views[:, 0].float() / views[:, 0].float().sum(dim=(1, 2), keepdim=True)
    position = torch.arange(views.shape[-1]) + 0.5
    return torch.stack(
        [(weight.sum(2) * position).sum(1), (weight.sum(1) * position).sum(1)], dim=1
    )


def test_point_labels_follow_the_view() -> None:
    recipe = Shared(name="x", crop="mild", mild=(16, 12), flip=False)
    given = {"sides": {"student": 12}, "batch_size": 20, "seed": 0, "truth_in_view": corner}
    batch = image_stream(dots(), recipe, **given)[3].mixed()
    assert not torch.equal(batch.label, dots().labels(batch.index.numpy()))
    torch.testing.assert_close(batch.label, centre_of(batch.view("student")), rtol=0, atol=0.5)
    views = EvaluationViews(dots(), 16, 12, corner)
    seen = EvaluationStream(views, batch_size=20)[0]
    torch.testing.assert_close(seen.label, centre_of(seen.view("student")), rtol=0, atol=0.5)


# --- regression ----------------------------------------------------------------------------------


def test_regression_metrics_equal_scikit_learn() -> None:
    task = Regression()
    student, teacher, label = predictions(task), predictions(task, seed=1), labels(task)
    metrics = task.metrics()
    metrics.update(student, teacher, label[:, 0])
    values = {name: float(value) for name, value in metrics.compute().items()}
    assert values["student_mae"] == pytest.approx(mean_absolute_error(label, student), rel=1e-5)
    assert values["teacher_mae"] == pytest.approx(mean_absolute_error(label, teacher), rel=1e-5)
    assert values["student_r2"] == pytest.approx(r2_score(label, student), rel=1e-4)
    assert values["teacher_r2"] == pytest.approx(r2_score(label, teacher), rel=1e-4)
    rmse = math.sqrt(statistics.fmean(((student - teacher) ** 2).flatten().tolist()))
    assert values["rmse_to_teacher"] == pytest.approx(rmse, rel=1e-5)
    constant = task.metrics()
    constant.update(student, None, torch.ones(11))
    assert set(constant.compute()) == {"student_mae"}  # of no variance none is explained


def test_regression_loss_is_squared_error_with_its_gradient() -> None:
    task = Regression(3)
    prediction, label = predictions(task).requires_grad_(), labels(task)
    losses = task.example_loss(prediction, label)
    for i in range(11):
        by_hand = sum(
            (p - t) ** 2 for p, t in zip(prediction.tolist()[i], label.tolist()[i], strict=True)
        )
        assert losses.tolist()[i] == pytest.approx(by_hand, rel=1e-5)
    losses.mean().backward()
    torch.testing.assert_close(prediction.grad, 2 * (prediction.detach() - label) / 11)


def test_digits_ink_is_standardised_over_all_training_images() -> None:
    everything, few = digits.ink(), digits.ink(images_per_class=10)
    label = everything.train.labels(np.arange(1077))
    assert float(label.mean()) == pytest.approx(0, abs=1e-5)
    assert float(label.std()) == pytest.approx(1, abs=1e-5)
    assert len(few.train) == 100
    grey = torch.stack(list(everything.test.images(np.arange(360)))).float().mean(dim=(1, 2, 3))
    test = everything.test.labels(np.arange(360))
    assert float(np.corrcoef(grey, test)[0, 1]) == pytest.approx(1, abs=1e-5)
    assert torch.equal(few.test.labels(np.arange(360)), test)


INK = (*QUICK, "data=digits_ink", "teacher=digits_ink", "objective=mse")
SHORT = ("steps=120", "validate_every=40", "checkpoint_every=20", "schedule.warmup_steps=10")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over recipes and seeds, its teacher and a baseline from labels."""
    path = tmp_path_factory.mktemp("ink")
    for script, given in {
        "train": (
            "-m",
            *INK,
            *SHORT,
            "name=sweep",
            "recipe=fixed_teacher,consistent,function_matching",
            "seed=0,1",
        ),
        "finetune": (
            *QUICK,
            *SHORT,
            "data=digits_ink",
            "model=digits_student",
            "name=labels",
        ),
        "report": ("runs=logs/sweep",),
    }.items():
        done = command(script, *given, cwd=path)
        assert done.returncode == 0, done.stdout + done.stderr
    return path


def test_regression_sweep_writes_table_and_figures(home: Path) -> None:
    groups = group_runs([home / "logs" / "sweep"])
    assert [(g.recipe, len(g.completed)) for g in groups] == [
        ("fixed_teacher", 2),
        ("consistent", 2),
        ("function_matching", 2),
    ]
    for row in (row for g in groups for row in g.rows):
        assert TaskDescription.of(row) == DESCRIPTION
        # The mean of the labels would give an error of about 0.8 and an R² of 0.
        assert 0 < row["teacher_test_mae"] < 0.5
        assert 0 < row["student_test_mae"] < 0.75
        assert 0.2 < row["student_test_r2"] < 1
        assert 0 < row["rmse_to_teacher"] < 1
    with (home / "logs/sweep/summary.csv").open() as file:
        assert next(csv.reader(file)) == list(columns(DESCRIPTION))
    text = (home / "logs/sweep/summary.md").read_text()
    assert "| epochs | recipe | seeds | MAE | R² | RMSE | teacher |" in text
    best = min(groups, key=lambda g: g.mean("student_val_mae"))
    assert f"best on val ({best.mean('student_val_mae'):.3f}): {best.recipe}" in text
    page = (home / "logs/sweep/report.html").read_text()
    for name in ("comparison", "learning", "losses", "times"):
        assert (home / f"logs/sweep/{name}.png").stat().st_size > 1000
        assert f'id="{name}"' in page
    assert "MAE, 95 % interval" in page
    assert "accuracy" not in page.lower()
    assert not (home / "logs/sweep/calibration.png").exists()


def test_best_regressor_on_val_has_the_least_error(home: Path) -> None:
    for path in (home / "logs/sweep").glob("*/summary.json"):
        run = Run(path.parent)
        with run.metrics.open() as file:
            rows = [row for row in csv.DictReader(file) if row["val/student_mae"]]
        errors = {int(row["step"]): float(row["val/student_mae"]) for row in rows}
        assert len(errors) == 3
        assert run.result["student_val_mae"] == pytest.approx(min(errors.values()))
        assert errors[step_of(run.student)] == min(errors.values())


def test_regression_predictions_csv_agrees_with_the_summary(home: Path) -> None:
    run = Run(next((home / "logs/sweep").glob("consistent-s0-*")))
    with run.predictions.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["image", "label", "student", "teacher"]
    assert len(rows) == 360
    error = statistics.fmean(abs(float(r["student"]) - float(r["label"])) for r in rows)
    assert error == pytest.approx(run.result["student_test_mae"], rel=1e-4)


def test_regression_label_baseline_and_evaluate(home: Path) -> None:
    (row,) = (row for g in group_runs([home / "logs/labels"]) for row in g.rows)
    assert 0 < row["student_test_mae"] < 0.75
    assert row["teacher_test_mae"] is None
    run = next((home / "logs/sweep").glob("function_matching-s1-*"))
    done = command("evaluate", f"run={run}", "trainer.accelerator=cpu", cwd=home)
    assert done.returncode == 0, done.stderr
    assert f"student_test_mae   {Run(run).result['student_test_mae']:.4f}" in done.stdout


@pytest.mark.fault(1)
@pytest.mark.parametrize(
    "recipe", [pytest.param("fixed_teacher", marks=pytest.mark.slow), "function_matching"]
)
def test_killed_regression_run_resumes_exactly(home: Path, recipe: str) -> None:
    given = (*INK, *SHORT, f"recipe={recipe}", "name=killed")
    killed = command("train", *given, *inject("SignalAt", step=70), cwd=home)
    assert killed.returncode != 0
    done = command("train", *given, cwd=home)
    assert done.returncode == 0, done.stderr
    assert "resuming from step 60 of 120" in done.stdout
    whole, again = (
        Run(next((home / "logs" / name).glob(f"{recipe}-s0-*"))) for name in ("sweep", "killed")
    )
    assert again.student.read_bytes() == whole.student.read_bytes()
    assert again.metrics.read_bytes() == whole.metrics.read_bytes()


def test_objectives_and_teachers_of_another_task_are_refused(home: Path) -> None:
    for given, message in {
        ("data=digits_ink", "teacher=digits_ink"): "choose objective=mse",
        ("data=digits_ink", "objective=mse"): "teacher.classes=10: data=digits_ink has 1 classes",
    }.items():
        done = command("train", *QUICK, *SHORT, *given, "name=refused", cwd=home)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
