"""A run that was cut off goes on exactly."""

import csv
from pathlib import Path

import pytest

from commands import QUICK, command
from funmatch.runs import Run

SETTINGS = (
    *QUICK,
    "steps=90",
    "checkpoint_every=10",
    "validate_every=25",
    "trainer.log_every=5",
    "schedule.warmup_steps=20",
    "student.net._target_=toys.forgetful",
)


def run_of(workplace: Path, name: str) -> Run:
    (summary,) = (workplace / "logs" / name).glob("*/summary.json")
    return Run(summary.parent)


@pytest.fixture(scope="module")
def uninterrupted(workplace: Path) -> Run:
    done = command("train", *SETTINGS, "name=uninterrupted", cwd=workplace)
    assert done.returncode == 0, done.stderr
    return run_of(workplace, "uninterrupted")


def test_killed_at_a_third_and_at_two_thirds(workplace: Path, uninterrupted: Run) -> None:
    for step in (37, 51, 64):  # 50 is a step of both a checkpoint and a validation
        fault = ("+callbacks.fault._target_=faults.KillAt", f"+callbacks.fault.step={step}")
        killed = command("train", *SETTINGS, "name=killed", *fault, cwd=workplace)
        assert killed.returncode == -9
    assert run_of(workplace, "killed").result["status"] == "running"

    done = command("train", *SETTINGS, "name=killed", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "going on from step 60 of 90" in done.stdout
    resumed = run_of(workplace, "killed")
    assert resumed.student.read_bytes() == uninterrupted.student.read_bytes()
    assert resumed.metrics.read_text() == uninterrupted.metrics.read_text()
    for column in ("student_val_top1", "student_test_top1", "kl_to_teacher", "best_step"):
        assert resumed.result[column] == uninterrupted.result[column]


def test_every_step_is_logged_once(uninterrupted: Run) -> None:
    rows = list(csv.DictReader(uninterrupted.metrics.read_text().splitlines()))
    trained = [int(row["step"]) for row in rows if row["train/loss"]]
    validated = [int(row["step"]) for row in rows if row["val/student_top1"]]
    assert trained == list(range(5, 91, 5))
    assert validated == [25, 50, 75, 90]  # and after the last step


def test_the_same_command_again_gives_the_same_weights(workplace: Path, uninterrupted: Run) -> None:
    before = uninterrupted.student.read_bytes()
    uninterrupted.student.write_bytes(b"gone")
    done = command("train", *SETTINGS, "name=uninterrupted", "resume=never", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert uninterrupted.student.read_bytes() == before


def test_workers_change_nothing(workplace: Path, uninterrupted: Run) -> None:
    done = command("train", *SETTINGS, "name=workers", "trainer.workers=2", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    other = run_of(workplace, "workers")
    assert other.student.read_bytes() == uninterrupted.student.read_bytes()
    assert other.metrics.read_text() == uninterrupted.metrics.read_text()
