"""Teachers that are trained once by the first command that needs them."""

import json
import os
import re
import signal
import time
from pathlib import Path

import pytest

from commands import QUICK, command, command_here, start
from funmatch.runs.directory import Run
from small import only_run

# A teacher of a few hundred steps.
MADE_BY = ("data=digits", "data.images_per_class=null", "model=digits_teacher", "steps=300")
MADE_BY += ("schedule.warmup_steps=20", "validate_every=50", "checkpoint_every=50")
TEACHER = f"teacher.made_by.overrides={json.dumps(MADE_BY)}"
STUDENT = ("steps=4", "schedule.warmup_steps=1", TEACHER, *QUICK)


def teacher(cwd: Path) -> Run:
    (directory,) = (cwd / "logs" / "teachers").glob("labels-s0-*")
    return Run(directory)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A teacher that one command made without trouble."""
    path = tmp_path_factory.mktemp("plain")
    assert command("train", *STUDENT, cwd=path).returncode == 0
    return teacher(path)


def test_concurrent_commands_train_the_teacher_once(tmp_path: Path, plain: Run) -> None:
    both = [start("train", *STUDENT, f"seed={seed}", cwd=tmp_path) for seed in (0, 1)]
    for process in both:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors
    assert teacher(tmp_path).student.read_bytes() == plain.student.read_bytes()
    rows = teacher(tmp_path).metrics.read_text().splitlines()
    assert len([row for row in rows if row.startswith("50,") and row.split(",")[1]]) == 1


def test_killed_teacher_training_is_resumed(tmp_path: Path, plain: Run) -> None:
    process = start("train", *STUDENT, cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "logs").glob("teachers/*/checkpoints/*.ckpt")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    assert not teacher(tmp_path).completed

    done = command("train", *STUDENT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert teacher(tmp_path).completed
    assert teacher(tmp_path).student.read_bytes() == plain.student.read_bytes()


ASSISTANT = ("student=digits", "data.images_per_class=null", "steps=60", "validate_every=30")
ASSISTANT += ("schedule.warmup_steps=5", "student.net.widths=[24,32]", TEACHER)


def test_distilled_teacher_trains_its_own_teacher_first(tmp_path: Path, plain: Run) -> None:
    overrides = json.dumps(ASSISTANT)
    made_by = ("teacher.made_by.command=train", f"teacher.made_by.overrides={overrides}")
    given = (*STUDENT[:2], "teacher.net.widths=[24,32]", *made_by, *QUICK)
    code, out, err = command_here("train", *given, cwd=tmp_path)
    assert (code, err) == (0, "")
    assert re.findall("teacher: (fine-tuning|distilling) it once", out) == [
        "distilling",
        "fine-tuning",
    ]
    assert teacher(tmp_path).student.read_bytes() == plain.student.read_bytes()
    (directory,) = (tmp_path / "logs" / "teachers").glob("function_matching-s0-*")
    student = only_run(tmp_path, "digits")
    score = student.result["teacher_test_top1"]
    assert score == pytest.approx(Run(directory).result["student_test_top1"])
    code, out, _ = command_here("train", *given, "seed=1", cwd=tmp_path)
    assert code == 0
    assert "it once" not in out


def test_circular_teacher_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "own" / "teacher" / "circular.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(
        "defaults: [/network/digits_student@_here_]\n"
        "head: keep\n"
        "made_by: {command: train, overrides: [teacher=circular]}\n"
    )
    given = ("--config-dir=own", "teacher=circular", "name=first", *QUICK)
    code, _, err = command_here("train", *given, cwd=tmp_path)
    assert code == 1
    assert err == (
        "error: teacher.made_by: train teacher=circular needs its own student as its teacher; "
        "give it another teacher\n"
    )


def test_unfit_teacher_weights_are_one_line(tmp_path: Path, plain: Run) -> None:
    wrong = f"teacher.weights={plain.student}", "teacher.net.widths=[16,64]"
    done = command("train", "steps=4", "schedule.warmup_steps=1", *QUICK, *wrong, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {plain.student}: the weights do not fit")
    assert done.stderr.count("\n") == 1


def test_weights_file_serves_as_teacher(tmp_path: Path, plain: Run) -> None:
    given = (*STUDENT[:2], *QUICK, f"teacher.weights={plain.student}")
    done = command("train", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "logs" / "teachers").exists()
    (summary,) = (tmp_path / "logs").glob("digits/*/summary.json")
    accuracy = Run(summary.parent).result["teacher_test_top1"]
    assert accuracy == pytest.approx(plain.result["student_test_top1"])
