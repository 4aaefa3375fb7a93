"""Runs on two ranks, compared with runs on one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

from commands import QUICK, ROOT, command, environment
from faults import inject, witnessed
from funmatch.runs.directory import Run
from funmatch.runtime import distributed, hardware

SETTINGS = ("steps=40", "batch_size=40", "schedule.warmup_steps=5", "validate_every=15", *QUICK)
TWO = ("trainer.devices=2",)


def run_of(workplace: Path, name: str) -> Run:
    (summary,) = (workplace / "logs" / name).glob("*/summary.json")
    return Run(summary.parent)


@pytest.fixture(scope="module")
def both(workplace: Path) -> dict[str, Run]:
    runs = {}
    for name, more in (("one", ()), ("two", TWO)):
        seen = inject("Witness", path=str(workplace / f"{name}-seen"))
        named = f"name={name}-rank"
        done = command("train", *SETTINGS, named, *more, *seen, cwd=workplace)
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        runs[name] = run_of(workplace, f"{name}-rank")
    return runs


def test_two_ranks_train_the_weights_of_one(both: dict[str, Run]) -> None:
    one, two = (safetensors.torch.load_file(run.student) for run in both.values())
    for name in one:  # but for the order in which gradients are summed
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)


def test_two_ranks_measure_the_metrics_of_one(both: dict[str, Run]) -> None:
    one, two = (run.result for run in both.values())
    for column in ("student_test_top1", "teacher_test_top1", "agreement_top1", "kl_to_teacher"):
        assert two[column] == pytest.approx(one[column], abs=0.01)
    # 360 test images in batches of 40 and shares of 20: each is counted once.
    for run in (one, two):
        assert run["teacher_test_top1"] == one["teacher_test_top1"]
        assert 360 * run["student_test_top1"] == pytest.approx(
            round(360 * run["student_test_top1"])
        )


def test_two_ranks_log_the_rows_of_one(both: dict[str, Run]) -> None:
    one, two = (run.metrics.read_text().splitlines() for run in both.values())
    assert len(one) == len(two)
    assert one[0] == two[0]


@pytest.mark.fault(7)
def test_two_ranks_see_the_views_of_one(
    workplace: Path, both: dict[str, Run], record_property
) -> None:
    """Row by row: the image, its row in the batch, and the pixels of its mixed view."""
    expected = witnessed(workplace / "one-seen", "views")
    assert len(expected) == 40 * 40
    assert witnessed(workplace / "two-seen", "views") == expected
    record_property("figures", f"{len(expected)} views compared")


@pytest.mark.slow
@pytest.mark.fault(7)
def test_resuming_with_other_rank_counts_sees_the_same_views(
    workplace: Path, both: dict[str, Run], record_property
) -> None:
    seen = inject("Witness", path=str(workplace / "changing-seen"))
    for step, more in ((13, TWO), (26, ("compute.workers=2",)), (40, (*TWO, "compute.workers=4"))):
        stop = inject("SignalAt", step=step, number=15) if step < 40 else []
        given = (*SETTINGS, "name=changing", *more, *seen, *stop)
        done = command("train", *given, cwd=workplace)
        assert done.returncode == (75 if stop else 0), done.stderr
    expected = witnessed(workplace / "one-seen", "views")
    views = witnessed(workplace / "changing-seen", "views")
    left = [int(row[0]) for row in views]
    assert views == expected, sorted(set(left))
    record_property("figures", f"{len(expected)} views compared")


@pytest.mark.fault(7)
@pytest.mark.fault(8)
def test_ranks_have_the_same_weights_after_every_step(
    workplace: Path, both: dict[str, Run]
) -> None:
    first, second = (witnessed(workplace / "two-seen", "weights", rank) for rank in (0, 1))
    assert [step for step, _ in first] == list(range(1, 41))
    assert first == second


@pytest.mark.slow
@pytest.mark.fault(8)
def test_nonfinite_step_on_one_rank_is_skipped_by_both(workplace: Path, record_property) -> None:
    seen = inject("Witness", path=str(workplace / "nan-seen"))
    fault = inject("NoNumber", steps="[7,8,21]", rank=1)
    given = ("name=nan", "trainer.log_every_n_steps=1", *TWO, *seen, *fault)
    done = command("train", *SETTINGS, *given, cwd=workplace)
    assert (done.returncode, done.stderr) == (0, "")
    for step, number in ((7, 1), (8, 2), (21, 3)):
        message = f"  step {step}: loss or gradient is not finite; skipped ({number})\n"
        assert done.stdout.count(message) == 1
    first, second = (dict(witnessed(workplace / "nan-seen", "weights", rank)) for rank in (0, 1))
    assert first == second
    unchanged = [step for step in range(2, 41) if first[step] == first[step - 1]]
    assert unchanged == [7, 8, 21]
    run = run_of(workplace, "nan")
    assert run.result["skipped_steps"] == 3
    rows = run.metrics.read_text().splitlines()
    assert "train/skipped" in rows[0]
    assert len({row.partition(",")[0] for row in rows}) == len(rows)
    record_property("injected", 3)


@pytest.mark.slow
@pytest.mark.fault(8)
def test_too_many_skipped_steps_end_both_ranks(workplace: Path, record_property) -> None:
    fault = inject("NoNumber", steps="[5,7,8,9,10,11]", rank=1)
    given = ("name=nans", "max_skipped=3", "checkpoint_every=6", *TWO, *fault)
    done = command("train", *SETTINGS, *given, cwd=workplace)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    message = "max_skipped=3: at step 10 loss or gradient is not finite, as in the 3 steps before; "
    assert done.stderr.startswith(f"error: rank 0: {message}") or done.stderr.startswith(
        f"error: rank 1: {message}"
    )
    # What was skipped is remembered: the same command ends at the same step.
    again = command("train", *SETTINGS, *given, cwd=workplace)
    assert "resuming from step 6 of 40" in again.stdout
    assert message in again.stderr
    record_property("injected", 5)


@pytest.mark.slow
@pytest.mark.fault(11)
@pytest.mark.parametrize("rank", [0, 1])
def test_job_failing_on_one_rank_does_not_affect_other_jobs(
    workplace: Path, both: dict[str, Run], rank: int
) -> None:
    name, fault = f"failing-rank{rank}", inject("FailAt", seed=1, rank=rank)
    given = ("-m", "seed=0,1,2", *SETTINGS, f"name={name}", *TWO, *fault)
    done = command("train", *given, cwd=workplace)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: rank {rank}: RuntimeError: a fault was injected")
    assert done.stderr.count("\n") == 1
    runs = {
        run.result["seed"]: run
        for run in (Run(path.parent) for path in (workplace / "logs" / name).glob("*/summ*.json"))
    }
    assert [runs[seed].result["status"] for seed in (0, 1, 2)] == [
        "completed",
        "failed",
        "completed",
    ]
    assert "2 done, 1 failed" in done.stdout
    assert runs[0].student.read_bytes() == both["two"].student.read_bytes()
    assert runs[0].metrics.read_text() == both["two"].metrics.read_text()
    if rank == 0:
        return
    alone = command("train", "seed=2", *SETTINGS, "name=third-alone", *TWO, cwd=workplace)
    assert alone.returncode == 0
    third = run_of(workplace, "third-alone").student
    assert third.read_bytes() == runs[2].student.read_bytes()


@pytest.mark.slow
@pytest.mark.fault(11)
def test_failed_teacher_training_ends_all_ranks(tmp_path: Path) -> None:
    """Rank 0 makes it, rank 1 waits for it."""
    settings = ("data=digits", "model=digits_teacher", "steps=20", "optimizer.lr=1e30")
    making = ",".join(f"'{setting}'" for setting in (*settings, "schedule.warmup_steps=1"))
    given = (*SETTINGS, *TWO, "name=untaught", f"teacher.made_by.overrides=[{making}]")
    done = command("train", *given, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: rank 0: ")
    assert done.stderr.count("\n") == 1


def test_process_count_other_than_devices_is_refused(tmp_path: Path) -> None:
    given = (*SETTINGS, *TWO, "name=three")
    done = command("train", *given, cwd=tmp_path, RANK="0", WORLD_SIZE="3")
    assert done.returncode == 1
    message = "trainer.devices=2: 3 processes were started, not 2 (trainer.num_nodes=1); "
    assert done.stderr == f"error: {message}start as many, or change these keys\n"


def test_sweep_started_by_rank_is_refused(workplace: Path) -> None:
    done = command("train", "-m", "seed=0,1", *SETTINGS, cwd=workplace, RANK="0", WORLD_SIZE="2")
    assert done.returncode == 1
    message = "error: -m: a sweep starts the ranks of each job itself; start it once, not by rank\n"
    assert done.stderr == message


@pytest.mark.slow
def test_torchrun_ranks_train_the_same_weights(workplace: Path, both: dict[str, Run]) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    script = [str(ROOT / "src" / "train.py"), *SETTINGS, *TWO, "name=torchrun"]
    done = subprocess.run(
        [*launcher, *script], cwd=workplace, env=environment(workplace), capture_output=True
    )
    assert done.returncode == 0, done.stderr
    assert run_of(workplace, "torchrun").student.read_bytes() == both["two"].student.read_bytes()
    again = subprocess.run(
        [*launcher, *script], cwd=workplace, env=environment(workplace), capture_output=True
    )
    assert again.returncode == 0  # finished before: no rank waits for another
    assert b"finished before" in again.stdout


def test_subprocess_imports_this_package() -> None:
    first = hardware.subprocess_environment()["PYTHONPATH"].split(os.pathsep)[0]
    assert (Path(first) / "funmatch" / "__init__.py").is_file()


def test_torchrun_started_by_srun_gives_the_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = {"SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    for name, value in {**tasks, "SLURM_LOCALID": "0"}.items():
        monkeypatch.setenv(name, value)
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (1, 0, 2)
    ranks = {"TORCHELASTIC_RUN_ID": "x", "RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    assert (distributed.rank(), distributed.local_rank(), distributed.world_size()) == (5, 1, 8)
