"""Seed groups, tables and plots over several runs."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib import image

from funmatch.analysis import tables
from funmatch.analysis.seed_groups import group_runs
from funmatch.analysis.training_curves import mean_curve
from funmatch.config import identity
from funmatch.runs.directory import Run
from funmatch.tasks.classification.description import DESCRIPTION as CLASSIFICATION
from funmatch.tasks.description import columns


@pytest.fixture
def leave(compose: Callable, tmp_path: Path) -> Callable[..., Path]:
    """Leaves the directory of a run as a finished command would."""

    def call(*overrides: str, **figures: object) -> Path:
        cfg = compose(*overrides)
        directory = tmp_path / identity.run_id(cfg)
        directory.mkdir()
        facts = {"recipe": cfg.recipe.name, "seed": cfg.seed, "epochs": float(cfg.epochs)}
        facts |= {"steps": cfg.epochs, "settings": identity.identity(cfg), "status": "completed"}
        facts["task"] = CLASSIFICATION.as_json()
        Run(directory).write_summary({**facts, **figures})
        return directory

    return call


def test_seed_group_has_mean_and_sample_standard_deviation(leave, tmp_path: Path) -> None:
    for seed, accuracy in enumerate((0.90, 0.92, 0.97)):
        leave(
            f"seed={seed}", student_test_top1=accuracy, agreement_top1=0.5, teacher_test_top1=0.99
        )
    (group,) = group_runs([tmp_path])
    mean = (0.90 + 0.92 + 0.97) / 3
    spread = math.sqrt(sum((x - mean) ** 2 for x in (0.90, 0.92, 0.97)) / 2)  # n - 1
    assert group.mean("student_test_top1") == pytest.approx(mean)
    assert group.deviation("student_test_top1") == pytest.approx(spread)
    assert group.text("student_test_top1", "{:.3f}") == "0.930 ± 0.036"
    assert group.text("kl_to_teacher", "{:.3f}") == "–"


def test_runs_with_other_settings_form_separate_named_groups(leave, tmp_path: Path) -> None:
    leave("optimizer.lr=0.01", student_test_top1=0.9)
    leave("optimizer.lr=0.02", student_test_top1=0.8)
    leave("recipe=consistent", student_test_top1=0.7)
    labels = [g.label for g in group_runs([tmp_path])]
    assert labels == ["consistent", "function_matching lr=0.01", "function_matching lr=0.02"]


def test_groups_are_sorted_by_length_and_recipe_order_of_the_paper(leave, tmp_path: Path) -> None:
    for recipe in ("function_matching", "consistent", "fixed_teacher", "independent_noise"):
        for epochs in (300, 100):
            leave(f"recipe={recipe}", f"epochs={epochs}", student_test_top1=0.9)
    order = ["fixed_teacher", "independent_noise", "consistent", "function_matching"]
    groups = [(g.epochs, g.recipe) for g in group_runs([tmp_path])]
    assert groups == [(epochs, recipe) for epochs in (100.0, 300.0) for recipe in order]


def test_failed_run_is_listed_with_empty_figures(leave, tmp_path: Path) -> None:
    leave("seed=0", student_test_top1=0.9, agreement_top1=0.8)
    leave("seed=1", status="failed", error="RuntimeError: boom")
    tables.write(tmp_path, group_runs([tmp_path]))
    rows = list(csv.DictReader((tmp_path / "summary.csv").read_text().splitlines()))
    assert list(rows[0]) == list(columns(CLASSIFICATION))
    assert [row["status"] for row in rows] == ["completed", "failed"]
    assert rows[1]["student_test_top1"] == ""
    text = (tmp_path / "summary.md").read_text()
    assert "1 done, 1 failed" in text
    assert "RuntimeError: boom" in text
    (group,) = group_runs([tmp_path])
    assert group.mean("student_test_top1") == 0.9


def test_plot_has_a_patience_panel_for_different_lengths(leave, tmp_path: Path) -> None:
    figures = {"student_test_top1": 0.9, "agreement_top1": 0.8, "teacher_test_top1": 0.95}
    leave("epochs=100", **figures)
    tables.write(tmp_path, group_runs([tmp_path]))
    narrow = image.imread(tmp_path / "comparison.png").shape
    leave("epochs=300", **figures)
    tables.write(tmp_path, group_runs([tmp_path]))
    wide = image.imread(tmp_path / "comparison.png").shape
    assert wide[1] > 1.3 * narrow[1]


def test_summary_json_has_the_columns_of_the_table(leave) -> None:
    summary = json.loads((leave("seed=4", student_test_top1=0.5) / "summary.json").read_text())
    assert list(summary)[: len(columns(CLASSIFICATION))] == list(columns(CLASSIFICATION))
    assert summary["seed"] == 4
    assert summary["kl_to_teacher"] is None


def test_copies_of_a_run_are_counted_once(leave, tmp_path: Path) -> None:
    figures = {"student_test_top1": 0.9}
    one = leave("seed=0", **figures)
    other = tmp_path / "again" / one.name
    other.mkdir(parents=True)
    (other / "summary.json").write_text((one / "summary.json").read_text())
    leave("seed=1", student_test_top1=0.8)
    (group,) = group_runs([tmp_path])
    assert [row["seed"] for row in group.rows] == [0, 1]


def test_damaged_summary_is_skipped_and_named(leave, tmp_path: Path, capsys) -> None:
    leave("seed=0", student_test_top1=0.9)
    broken = leave("seed=1", student_test_top1=0.8) / "summary.json"
    broken.write_text('{"run": ')
    (group,) = group_runs([tmp_path])
    assert len(group.rows) == 1
    assert capsys.readouterr().err == f"skipped {broken}: damaged (JSONDecodeError)\n"


def test_different_settings_give_different_variant_names(leave, tmp_path: Path) -> None:
    for schedule in ("warmup_cosine", "warmup_quadratic"):
        leave(f"schedule={schedule}", student_test_top1=0.9)
    leave("schedule.warmup_steps=7", student_test_top1=0.9)
    variants = {g.variant for g in group_runs([tmp_path])}
    assert len(variants) == 3
    assert any("warmup_quadratic" in variant for variant in variants)
    assert any("warmup_steps=7" in variant for variant in variants)


def test_failed_run_does_not_shorten_the_mean_curve(leave, tmp_path: Path) -> None:
    for seed, (last, status) in enumerate(((100, "completed"), (100, "completed"), (5, "failed"))):
        directory = leave(f"seed={seed}", student_test_top1=0.9, status=status)
        lines = [f"{step},{step / 100}" for step in range(1, last + 1)]
        (directory / "metrics.csv").write_text("\n".join(["step,val/student_top1", *lines]))
    (group,) = group_runs([tmp_path])
    epochs, values = mean_curve(group, "val/student_top1")
    assert (values[0], values[-1]) == pytest.approx((0.01, 1.0))
    assert epochs[-1] == pytest.approx(100 * group.epochs / group.rows[0]["steps"])


def test_variants_are_sorted_numerically(leave, tmp_path: Path) -> None:
    for temperature in (10, 2, 1):
        leave(f"objective.temperature={temperature}", student_test_top1=0.9)
    variants = [g.variant for g in group_runs([tmp_path])]
    assert variants == ["temperature=1", "temperature=2", "temperature=10"]
    # Without a teacher there is no panel of agreement.
    tables.write(tmp_path, group_runs([tmp_path]))
    assert (tmp_path / "comparison.png").exists()
