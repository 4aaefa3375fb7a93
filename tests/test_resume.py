"""Resuming of stopped and killed runs, damaged checkpoints and full disks."""

import csv
import hashlib
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from commands import QUICK, ROOT, command, environment
from faults import inject
from funmatch.runs import checkpoint_files
from funmatch.runs.checkpoint_files import Checkpoints
from funmatch.runs.directory import Run
from funmatch.training.callbacks.best_student import step_of

SETTINGS = (
    *QUICK,
    "steps=90",
    "batch_size=40",  # of 100 images: most steps are in the midst of an epoch
    "checkpoint_every=10",
    "validate_every=25",
    "trainer.log_every_n_steps=5",
    "schedule.warmup_steps=20",
    "student.net._target_=toys.forgetful",
)


def run_of(workplace: Path, name: str) -> Run:
    (summary,) = (workplace / "logs" / name).glob("*/summary.json")
    return Run(summary.parent)


def digests(run: Run) -> dict[str, str]:
    """Of all that a run ends with."""
    state = torch.load(run.checkpoints.all()[0], weights_only=True)
    contents = {key: state[key] for key in ("state_dict", "optimizer_states", "lr_schedulers")}
    contents |= {"best": run.student.read_bytes(), "rows": run.metrics.read_bytes()}
    return {key: hashlib.sha256(_bytes(value)).hexdigest() for key, value in contents.items()}


def _bytes(value: Any) -> bytes:
    if isinstance(value, torch.Tensor):
        return value.contiguous().numpy().tobytes()
    if isinstance(value, dict):
        return b"".join(repr(key).encode() + _bytes(part) for key, part in value.items())
    if isinstance(value, list):
        return b"".join(map(_bytes, value))
    return value if isinstance(value, bytes) else repr(value).encode()


@pytest.fixture(scope="module")
def uninterrupted(workplace: Path) -> Run:
    done = command("train", *SETTINGS, "name=uninterrupted", cwd=workplace)
    assert done.returncode == 0, done.stderr
    return run_of(workplace, "uninterrupted")


@pytest.mark.fault(1)
@pytest.mark.parametrize("steps", [(73,), pytest.param((1, 50, 73), marks=pytest.mark.slow)])
def test_run_resumed_after_sigterm_equals_an_uninterrupted_run(
    workplace: Path, uninterrupted: Run, steps: tuple[int, ...], record_property
) -> None:
    """After the first step, after one of a validation, in the midst of an epoch."""
    given = (*SETTINGS, f"name=stopped-{len(steps)}")
    for step in steps:
        fault = inject("SignalAt", step=step, number=15)
        stopped = command("train", *given, *fault, cwd=workplace)
        assert stopped.returncode == 75
        message = f"interrupted by SIGTERM: saved after step {step} of 90; the same command resumes"
        assert stopped.stderr == f"{message} (exit code 75)\n"
    assert run_of(workplace, f"stopped-{len(steps)}").result["status"] == "running"
    done = command("train", *given, cwd=workplace)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming from step 73 of 90" in done.stdout
    assert digests(run_of(workplace, f"stopped-{len(steps)}")) == digests(uninterrupted)
    record_property("injected", len(steps))


@pytest.mark.fault(1)
@pytest.mark.parametrize("steps", [(64,), pytest.param((37, 51, 64), marks=pytest.mark.slow)])
def test_run_resumed_after_sigkill_equals_an_uninterrupted_run(
    workplace: Path, uninterrupted: Run, steps: tuple[int, ...], record_property
) -> None:
    given = (*SETTINGS, f"name=killed-{len(steps)}")
    for step in steps:  # 50 is a step of both a checkpoint and a validation
        killed = command("train", *given, *inject("SignalAt", step=step), cwd=workplace)
        assert killed.returncode == -9
    assert run_of(workplace, f"killed-{len(steps)}").result["status"] == "running"

    done = command("train", *given, cwd=workplace)
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming from step 60 of 90" in done.stdout
    resumed = run_of(workplace, f"killed-{len(steps)}")
    assert digests(resumed) == digests(uninterrupted)
    for column in ("student_val_top1", "student_test_top1", "kl_to_teacher", "best_step"):
        assert resumed.result[column] == uninterrupted.result[column]
    record_property("injected", len(steps))


def test_requeued_job_restarts_each_run_once_with_resume_never(workplace: Path) -> None:
    given = (*QUICK, "steps=4", "schedule.warmup_steps=1", "name=requeued", "resume=never")
    requeued = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "1"}
    # Finished by another job; not reached yet by this one, which was requeued; finished by it.
    for environ, known in (({}, False), (requeued, False), (requeued, True)):
        done = command("train", *given, cwd=workplace, **environ)
        assert (done.returncode, done.stderr) == (0, "")
        assert ("finished before" in done.stdout) == known


def test_two_newest_checkpoints_remain(uninterrupted: Run) -> None:
    assert [checkpoint_files.step(path) for path in uninterrupted.checkpoints.all()] == [90, 80]


@pytest.mark.fault(12)
def test_checkpoint_contains_no_teacher_and_only_plain_values(uninterrupted: Run) -> None:
    state = torch.load(uninterrupted.checkpoints.all()[0], weights_only=True)
    assert {key.partition(".")[0] for key in state["state_dict"]} == {"student"}
    learned = sum(key.startswith("student.") for key in state["state_dict"])
    (optimizer,) = state["optimizer_states"]
    assert len(optimizer["state"]) <= learned


@pytest.mark.fault(1)
def test_each_step_is_logged_once(uninterrupted: Run) -> None:
    rows = list(csv.DictReader(uninterrupted.metrics.read_text().splitlines()))
    trained = [int(row["step"]) for row in rows if row["train/loss"]]
    validated = [int(row["step"]) for row in rows if row["val/student_top1"]]
    assert trained == list(range(5, 91, 5))
    assert validated == [25, 50, 75, 90]  # and after the last step


def test_repeated_command_trains_the_same_weights(workplace: Path, uninterrupted: Run) -> None:
    before = digests(uninterrupted)
    uninterrupted.student.write_bytes(b"gone")
    done = command("train", *SETTINGS, "name=uninterrupted", "resume=never", cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert digests(uninterrupted) == before


@pytest.mark.fault(7)
@pytest.mark.parametrize("workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_number_of_workers_does_not_change_the_run(
    workplace: Path, uninterrupted: Run, workers: int
) -> None:
    name, number = f"name=workers{workers}", f"compute.workers={workers}"
    done = command("train", *SETTINGS, name, number, cwd=workplace)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "" or workers > 2  # torch warns of more workers than cores
    assert digests(run_of(workplace, f"workers{workers}")) == digests(uninterrupted)


@pytest.mark.fault(5)
@pytest.mark.parametrize(
    "damage",
    ["one bit flipped", *(pytest.param(d, marks=pytest.mark.slow) for d in ("truncated", "empty"))],
)
def test_resume_skips_a_damaged_checkpoint(
    workplace: Path, uninterrupted: Run, damage: str
) -> None:
    name = damage.replace(" ", "-")
    fault = inject("SignalAt", step=64)
    command("train", *SETTINGS, f"name={name}", *fault, cwd=workplace)
    run = run_of(workplace, name)
    newest, before = run.checkpoints.all()
    content = bytearray(newest.read_bytes())
    content[len(content) // 3] ^= 4
    newest.write_bytes({"truncated": content[:-1000], "empty": b""}.get(damage, content))

    done = command("train", *SETTINGS, f"name={name}", cwd=workplace)
    assert (done.returncode, done.stderr) == (0, "")
    relative = run.checkpoints.folder.relative_to(workplace)
    damaged = f"  {relative}/{newest.name} is damaged (its checksum differs)"
    assert f"{damaged}; using {relative}/{before.name}" in done.stdout
    assert "resuming from step 50 of 90" in done.stdout
    assert digests(run_of(workplace, name)) == digests(uninterrupted)


def test_longer_run_resumes_from_a_finished_run(workplace: Path, uninterrupted: Run) -> None:
    source = uninterrupted.directory.relative_to(workplace)
    longer = ("steps=150", "name=longer", f"resume={source}")
    before = digests(uninterrupted)
    done = command("train", *SETTINGS, *longer, cwd=workplace)
    assert (done.returncode, done.stderr) == (0, "")
    # 1/2 (1 + cos(pi (90 - 20) / (150 - 20))) = 0.440
    assert (
        f"  resuming from step 90 of {source}: the schedule is now that of 150 steps, so the "
        "learning rate goes from 0 to 0.44 of its peak; a run of 150 steps from the beginning "
        "would not end the same\n"
    ) in done.stdout
    run = run_of(workplace, "longer")
    assert digests(uninterrupted) == before
    rows = list(csv.DictReader(run.metrics.read_text().splitlines()))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(5, 151, 5))
    assert run.directory.name != uninterrupted.directory.name
    state = torch.load(run.checkpoints.all()[0], weights_only=True)
    assert state["global_step"] == 150
    (schedule,), (optimizer,) = state["lr_schedulers"], state["optimizer_states"]
    assert schedule["last_epoch"] == 150
    assert [group["lr"] for group in optimizer["param_groups"]] == [0.0] * len(
        optimizer["param_groups"]
    )
    assert 0 <= step_of(run.student) <= 150

    # It is a run like others: it may be killed, and another run may resume from its source.
    shutil.rmtree(run.directory)
    killed = command("train", *SETTINGS, *longer, *inject("SignalAt", step=113), cwd=workplace)
    assert killed.returncode == -9
    again = command("train", *SETTINGS, *longer, cwd=workplace)
    assert "resuming from step 110 of 150" in again.stdout
    (resumed,) = (workplace / "logs" / "longer").glob("*/summary.json")
    assert (
        torch.load(Run(resumed.parent).checkpoints.all()[0], weights_only=True)["global_step"]
        == 150
    )
    assert (
        Run(resumed.parent).metrics.read_text().splitlines()[1:-1]
        == [",".join(row.values()) for row in rows][:-1]
    )


def test_resume_from_earlier_checkpoint_drops_later_best_student(
    workplace: Path, uninterrupted: Run
) -> None:
    source = workplace / "logs" / "copied" / "run"
    shutil.copytree(uninterrupted.directory, source)
    weights = safetensors.torch.load_file(Run(source).student)
    safetensors.torch.save_file(weights, Run(source).student, {"step": "90"})  # as if it had won
    longer = ("steps=100", "name=from-eighty", f"resume={Run(source).checkpoints.path(80)}")
    done = command("train", *SETTINGS, *longer, cwd=workplace)
    shutil.rmtree(source.parent)
    assert (done.returncode, done.stderr) == (0, "")
    assert "is missing; the best student is searched from this step on" in done.stdout
    assert step_of(run_of(workplace, "from-eighty").student) > 80


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            ("steps=150", "objective.temperature=2"),
            "objective.temperature (recorded: 5, now: 2); only",
        ),
        (("steps=90",), "is at step 90 already and this run has 90; give more epochs"),
    ],
)
def test_resume_from_a_run_refuses_other_settings_than_the_length(
    workplace: Path, uninterrupted: Run, changed: tuple[str, ...], message: str
) -> None:
    source = f"resume={uninterrupted.directory}"
    done = command("train", *SETTINGS, *changed, "name=refused", source, cwd=workplace)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {source}: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (workplace / "logs" / "refused").exists()


def on_a_small_disk(
    workplace: Path, disk: Path, size: str, script: str
) -> subprocess.CompletedProcess[str]:
    """Runs a script on a small file system of its own, which ends with it."""
    disk.mkdir()
    alone = ["unshare", "--map-root-user", "--mount"]
    probe = [*alone, "mount", "-t", "tmpfs", "tmpfs", str(disk)]
    if subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    begin = f"mount -t tmpfs -o size={size} tmpfs {disk} && mkdir {disk}/logs && "
    begin += f"cp -r {workplace}/logs/teachers {disk}/logs/\n"
    return subprocess.run(
        [*alone, "bash", "-c", begin + script],
        cwd=workplace,
        env=environment(workplace),
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
@pytest.mark.fault(6)
def test_full_disk_leaves_the_last_checkpoint_intact(workplace: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    arguments = [*SETTINGS, "name=full", f"paths.logs={disk}/logs", "checkpoint_every=1"]
    train = f"{sys.executable} {ROOT}/src/train.py {' '.join(arguments)}"
    script = f"""
{train} {" ".join(inject("Slow", seconds=0.1))} & train=$!
until ls {disk}/logs/full/*/checkpoints/step-00000003.ckpt 2> /dev/null; do sleep 0.02; done
head -c 9m /dev/zero > {disk}/filled
wait $train
echo "exit $?" && cp -r {disk}/logs/full {tmp_path}/left && rm {disk}/filled
{train}
echo "exit $?" && cp -r {disk}/logs/full {tmp_path}/after
"""
    done = on_a_small_disk(workplace, disk, "3m", script)
    exits = [line for line in done.stdout.splitlines() if line.startswith("exit")]
    assert exits == ["exit 1", "exit 0"], done.stdout + done.stderr
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in error or "could not be written" in error
    (left,) = (tmp_path / "left").glob("*/checkpoints")
    assert Checkpoints(left).newest(pytest.fail) is not None
    (after,) = (tmp_path / "after").glob("*/summary.json")
    assert Run(after.parent).completed


@pytest.mark.slow
@pytest.mark.fault(6)
def test_run_without_space_for_checkpoints_is_refused(workplace: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    arguments = [*SETTINGS, "name=small", f"paths.logs={disk}/logs", "checkpoint_keep=20"]
    script = f"{sys.executable} {ROOT}/src/train.py {' '.join(arguments)}"
    done = on_a_small_disk(workplace, disk, "900k", script)
    assert done.returncode == 1
    assert done.stderr.startswith("error: paths.logs: 21 checkpoints take about ")
    assert done.stderr.count("\n") == 1


def killed_at_random(workplace: Path, home: Path, kills: int, steps: int) -> tuple[int, int]:
    """Kills one command again and again, then lets it end; how often in a save, most steps lost."""
    settings = [*SETTINGS, f"steps={steps}", "name=often", f"paths.logs={home}/logs"]
    settings += ["checkpoint_every=2", "trainer.log_every_n_steps=1", "validate_every=500"]
    shutil.copytree(workplace / "logs" / "teachers", home / "logs" / "teachers")
    elsewhere = Path("/dev/shm")
    other = {"TMPDIR": str(elsewhere)} if elsewhere.is_dir() else {}
    in_a_save, lost = 0, 0
    for _ in range(kills):
        killed = command("train", *settings, *inject("KillSoon", seconds=0.6), cwd=home, **other)
        assert killed.returncode == -9, killed.stdout + killed.stderr
        (folder,) = home.glob("logs/often/*/checkpoints")
        in_a_save += bool(list(folder.glob(".*.tmp")))
        newest = Checkpoints(folder).newest(pytest.fail)  # called for damaged ones
        rows = (folder.parent / "metrics.csv").read_text().splitlines()
        logged = int(rows[-1].partition(",")[0] or 0) if len(rows) > 1 else 0
        saved = 0 if newest is None else checkpoint_files.step(newest)
        lost = max(lost, logged - saved)
        assert logged - saved <= 2
    done = command("train", *settings, cwd=home)
    assert (done.returncode, done.stderr) == (0, "")
    done = command("train", *settings, "name=calm", cwd=home)
    assert (done.returncode, done.stderr) == (0, "")
    often, calm = run_of(home, "often"), run_of(home, "calm")
    assert digests(often) == digests(calm)
    assert not list(often.directory.rglob(".*.tmp"))
    return in_a_save, lost


@pytest.mark.slow
@pytest.mark.fault(2)
def test_run_killed_at_a_random_moment_resumes_exactly(
    workplace: Path, tmp_path: Path, record_property
) -> None:
    in_a_save, lost = killed_at_random(workplace, tmp_path, kills=1, steps=400)
    record_property("injected", 1)
    record_property("figures", f"{in_a_save} within a save, at most {lost} steps lost")


@pytest.mark.slow
@pytest.mark.fault(2)
@pytest.mark.timeout(1800)
def test_run_killed_at_fifty_random_moments_resumes_exactly(
    workplace: Path, tmp_path: Path, record_property
) -> None:
    in_a_save, lost = killed_at_random(workplace, tmp_path, kills=50, steps=6000)
    assert in_a_save >= 5
    record_property("injected", 50)
    record_property("figures", f"{in_a_save} within a save, at most {lost} steps lost")


@pytest.mark.slow
@pytest.mark.fault(1)
@pytest.mark.timeout(900)
def test_resume_time_does_not_depend_on_step(workplace: Path, record_property) -> None:
    """Reports the time; what it rests on is that no step but the next is drawn."""
    durations = {}
    for step in (100, 20_000):
        settings = [*QUICK, "steps=40000", f"name=late{step}", "checkpoint_every=100000"]
        settings += ["validate_every=100000"]
        fault = inject("SignalAt", step=step, number=15)
        assert command("train", *settings, *fault, cwd=workplace).returncode == 75
        began = time.monotonic()
        fault = inject("SignalAt", step=step + 1, number=15)
        assert command("train", *settings, *fault, cwd=workplace).returncode == 75
        durations[step] = time.monotonic() - began
    figures = ", ".join(f"from step {step}: {seconds:.1f} s" for step, seconds in durations.items())
    record_property("figures", figures)
