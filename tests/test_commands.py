"""The commands train, finetune, evaluate and report, run as real processes."""

import csv
import json
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from matplotlib import image

from commands import QUICK, command, new_process, start
from faults import inject
from funmatch.analysis.seed_groups import group_runs
from funmatch.runs.directory import Run
from funmatch.tasks.classification.description import DESCRIPTION as CLASSIFICATION
from funmatch.tasks.description import columns

BUDGET = ("steps=6", "schedule.warmup_steps=2", "validate_every=3")
SWEEP = ("-m", "recipe=fixed_teacher,consistent,function_matching")


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def swept(workplace: Path) -> subprocess.CompletedProcess[str]:
    return new_process("train", *SWEEP, *BUDGET, "name=swept", *QUICK, cwd=workplace)


def test_readme_sweep_writes_summary_and_figure(swept, workplace: Path) -> None:
    assert swept.returncode == 0, swept.stderr
    assert swept.stderr == ""  # no framework prints anything
    for recipe in ("fixed_teacher", "consistent", "function_matching"):
        assert f"logs/swept/{recipe}-s0-" in swept.stdout
        assert recipe in swept.stdout.split("on test, mean")[1]  # the table
    logs = workplace / "logs" / "swept"
    summary = rows(logs / "summary.csv")
    assert list(summary[0]) == list(columns(CLASSIFICATION))
    assert [row["recipe"] for row in summary] == [
        "fixed_teacher",
        "consistent",
        "function_matching",
    ]
    for row in summary:
        assert row["status"] == "completed"
        assert row["steps"] == "6"
        assert float(row["epochs"]) == 6
        for fraction in (
            "student_test_top1",
            "student_val_top1",
            "agreement_top1",
            "agreement_top5",
        ):
            assert 0 <= float(row[fraction]) <= 1
        assert float(row["teacher_test_top1"]) > 0.9
        assert float(row["images_per_second"]) > 0
        assert float(row["wall_seconds"]) > 0
    assert image.imread(logs / "comparison.png").ndim == 3
    assert "fixed_teacher" in (logs / "summary.md").read_text()


def test_run_directory_holds_its_files(swept, workplace: Path) -> None:
    (directory,) = (workplace / "logs" / "swept").glob("consistent-s0-*")
    left = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    assert left >= {
        ".hydra/config.yaml",
        "config.yaml",
        "metrics.csv",
        "checkpoints/step-00000006.ckpt",
        "student.safetensors",
        "model.json",
        "summary.json",
    }
    assert json.loads((directory / "model.json").read_text())["net"]["widths"] == [16, 24]
    header = (directory / "metrics.csv").read_text().splitlines()[0].split(",")
    assert header[0] == "step"
    assert "val/student_top1" in header


def test_finished_runs_are_skipped_and_summarised(swept, workplace: Path) -> None:
    again = command("train", *SWEEP, *BUDGET, "name=swept", *QUICK, cwd=workplace)
    assert again.returncode == 0
    assert again.stdout.count("finished before") == 3
    assert again.stdout.split("on test")[1] == swept.stdout.split("on test")[1]


def test_single_run_and_sweep_job_share_directory_and_weights(swept, workplace: Path) -> None:
    single = ("recipe=consistent", *BUDGET, *QUICK)
    skipped = command("train", *single, "name=swept", cwd=workplace)
    assert "finished before" in skipped.stdout
    done = command("train", *single, "name=single", cwd=workplace)
    assert done.returncode == 0, done.stderr
    (one,) = (workplace / "logs" / "swept").glob("consistent-s0-*")
    other = workplace / "logs" / "single" / one.name
    assert Run(one).student.read_bytes() == Run(other).student.read_bytes()


@pytest.mark.fault(11)
def test_failed_job_does_not_stop_the_sweep(workplace: Path) -> None:
    fault = inject("FailAt", seed=1)
    arguments = ("-m", "recipe=consistent", "seed=0,1,2", *BUDGET, "name=failing", *QUICK)
    done = command("train", *arguments, *fault, cwd=workplace)
    assert done.returncode == 1
    assert done.stderr.startswith("error: RuntimeError: a fault was injected")
    assert done.stderr.count("\n") == 1
    summary = rows(workplace / "logs" / "failing" / "summary.csv")
    assert [(row["seed"], row["status"]) for row in summary] == [
        ("0", "completed"),
        ("1", "failed"),
        ("2", "completed"),
    ]
    assert summary[1]["student_test_top1"] == ""
    assert "2 done, 1 failed" in done.stdout.split("on test")[1]

    # The failed one alone is made good, and as it would have been without the failure.
    again = command("train", *arguments, cwd=workplace)
    assert again.returncode == 0
    assert again.stdout.count("finished before") == 2
    plain = command(
        "train", "recipe=consistent", "seed=1", *BUDGET, "name=plain", *QUICK, cwd=workplace
    )
    assert plain.returncode == 0
    weights = {
        path.read_bytes() for path in (workplace / "logs").glob("*/consistent-s1-*/*.safetensors")
    }
    assert len(weights) == 1


def test_evaluate_repeats_the_figures_of_the_run(swept, workplace: Path) -> None:
    (directory,) = (workplace / "logs" / "swept").glob("function_matching-s0-*")
    done = command("evaluate", f"run={directory}", cwd=workplace)
    assert done.returncode == 0, done.stderr
    figures = dict(line.split() for line in done.stdout.splitlines()[1:])
    summary = Run(directory).result
    for name, value in figures.items():
        assert float(value) == pytest.approx(summary[name], abs=1e-4)
    assert {"student_test_top1", "teacher_test_top1", "kl_to_teacher"} <= set(figures)


def test_evaluate_resolves_the_teacher_from_any_directory(
    swept, workplace: Path, tmp_path: Path
) -> None:
    (directory,) = (workplace / "logs" / "swept").glob("function_matching-s0-*")
    done = command("evaluate", f"run={directory}", "split=val", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fine-tuning" not in done.stdout
    assert not (tmp_path / "logs").exists()


def test_report_accepts_several_directories(swept, workplace: Path) -> None:
    logs = workplace / "logs"
    done = command(
        "report", f"runs=[{logs}/swept,{logs}/first]", f"out={workplace}/both", cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    assert len(rows(workplace / "both" / "summary.csv")) == 4


@pytest.mark.parametrize(
    ("script", "wrong", "line"),
    [
        ("report", "runs=nowhere", "runs=nowhere: no such directory"),
        ("report", "out=x", "runs=???: give it a value: runs=..."),
        ("evaluate", "run=nowhere", "run=nowhere: holds no config.yaml"),
    ],
)
def test_report_and_evaluate_errors_are_one_line(
    script: str, wrong: str, line: str, tmp_path: Path
) -> None:
    done = command(script, wrong, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {line}")
    assert done.stderr.count("\n") == 1


def test_finetune_trains_a_label_baseline(workplace: Path) -> None:
    done = command(
        "finetune", "model=digits_student", *BUDGET, "name=labels", *QUICK, cwd=workplace
    )
    assert done.returncode == 0, done.stderr
    (row,) = rows(workplace / "logs" / "labels" / "summary.csv")
    assert row["recipe"] == "labels"
    assert row["teacher_test_top1"] == ""
    assert float(row["student_test_top1"]) > 0


def test_second_process_on_a_run_is_refused(workplace: Path) -> None:
    arguments = ("steps=100000", "name=busy", *QUICK)
    quiet = subprocess.DEVNULL
    first = start("train", *arguments, cwd=workplace, stdout=quiet, stderr=quiet)
    try:
        deadline = time.monotonic() + 120
        while not list((workplace / "logs").glob("busy/*/metrics.csv")):
            assert first.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        second = command("train", *arguments, cwd=workplace)
        assert second.returncode == 1
        assert "another process works on this run" in second.stderr
    finally:
        first.send_signal(signal.SIGKILL)
        first.wait()


def test_two_processes_share_a_sweep(workplace: Path) -> None:
    given = ("-m", "seed=0,1,2,3", "steps=150", "schedule.warmup_steps=1", "if_running=later")
    arguments = (*given, "name=shared", *QUICK)
    processes = [start("train", *arguments, cwd=workplace) for _ in range(2)]
    outputs = []
    for process in processes:
        output, errors = process.communicate(timeout=240)
        assert (process.returncode, errors) == (0, "")
        outputs.append(output)
    assert any("another process works on this run; its result is awaited" in o for o in outputs)
    rows = group_runs([workplace / "logs" / "shared"])
    assert [len(group.completed) for group in rows] == [4]
    for run in map(Run, (workplace / "logs" / "shared").glob("*/")):
        if run.completed:  # trained once
            steps = [line.partition(",")[0] for line in run.metrics.read_text().splitlines()[1:]]
            assert len(steps) == len(set(steps))
            assert (run.directory / "run.log").read_text().count("measured: ") == 1
    for output in outputs:  # the whole table
        assert re.search(r"150 function_matching\s+4 ", output), output


def test_directory_of_another_configuration_is_refused(workplace: Path, swept) -> None:
    (directory,) = (workplace / "logs" / "swept").glob("consistent-s0-*")
    config = directory / "config.yaml"
    before = config.read_text()
    config.write_text(before.replace("lr: 0.01", "lr: 0.5"))
    done = command("train", "recipe=consistent", *BUDGET, "name=swept", *QUICK, cwd=workplace)
    afresh = command(
        *("train", "recipe=consistent", *BUDGET, "name=swept", "resume=never", *QUICK),
        cwd=workplace,
    )
    config.write_text(before)
    assert afresh.returncode == 1
    assert Run(directory).completed  # nothing was cleared
    assert done.returncode == 1
    assert "optimizer.lr (recorded: 0.01, now: 0.5); it was edited" in done.stderr


def test_ctrl_c_stops_a_sweep_and_names_the_resume_command(workplace: Path) -> None:
    arguments = ("-m", "steps=100000,100001", "name=interrupted", *QUICK)
    process = start("train", *arguments, cwd=workplace, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    metrics = (workplace / "logs").glob("interrupted/*/metrics.csv")
    while not any("train" in path.read_text() for path in metrics):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.2)
        metrics = (workplace / "logs").glob("interrupted/*/metrics.csv")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    pattern = (
        r"interrupted by SIGINT: saved after step (\d+) of 100000; the same command resumes .*\n"
    )
    match = re.fullmatch(pattern, errors)
    assert match, errors
    (saved,) = (workplace / "logs").glob("interrupted/*/checkpoints/*")
    assert saved.name == f"step-{int(match[1]):08}.ckpt"
    assert len(list((workplace / "logs").glob("interrupted/*/summary.json"))) == 1


def test_damaged_run_files_are_named_with_a_remedy(swept, workplace: Path) -> None:
    (directory,) = (workplace / "logs" / "swept").glob("consistent-s0-*")
    run, again = Run(directory), ("recipe=consistent", *BUDGET, "name=swept", *QUICK)
    summary, (state, *_) = run.summary.read_text(), run.checkpoints.all()
    checkpoint = state.read_bytes()
    config = (directory / "config.yaml").read_text()
    try:
        run.summary.unlink()
        state.write_bytes(checkpoint[:1000])
        for _ in range(2):  # nor does it begin anew unasked
            done = command("train", *again, cwd=workplace)
            assert done.returncode == 1
            assert "checkpoints: all checkpoints are damaged; restart the run with" in done.stderr
        (directory / "config.yaml").write_text("[")
        done = command("train", *again, cwd=workplace)
        assert done.stderr.startswith(
            f"error: {directory.relative_to(workplace)}/config.yaml: damaged"
        )
        assert done.stderr.count("\n") == 1
    finally:
        run.summary.write_text(summary)
        state.write_bytes(checkpoint)
        (directory / "config.yaml").write_text(config)


def test_diverging_student_fails_with_max_skipped(workplace: Path) -> None:
    arguments = (*BUDGET, *QUICK, "optimizer.lr=1e38", "clip_norm=1e30")
    more = ("max_skipped=1", "validate_every=6", "name=diverged")
    done = command("train", *arguments, *more, cwd=workplace)
    assert done.returncode == 1
    assert "max_skipped=1: at step " in done.stderr
    assert "loss or gradient is not finite, as in the 1 steps before; lower optim" in done.stderr
    (row,) = rows(workplace / "logs" / "diverged" / "summary.csv")
    assert row["status"] == "failed"
