"""Jobs on a temporary SLURM cluster: preempted, requeued, arrays."""

import csv
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import cluster
from cluster import Cluster
from commands import ROOT, environment
from funmatch.runs.directory import Run

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.fault(4),
    pytest.mark.skipif(cluster.missing() is not None, reason=str(cluster.missing())),
    pytest.mark.timeout(900),
]
QUICK = (
    "trainer.accelerator=cpu",
    "compute.threads=1",
    "validate_every=50",
    "trainer.log_every_n_steps=5",
)
SLOW = ("+callbacks.slow._target_=faults.Slow", "+callbacks.slow.seconds=0.05")


@pytest.fixture(scope="module")
def slurm() -> Iterator[Cluster]:
    with cluster.running() as running_cluster:
        yield running_cluster


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout, in which a teacher was made already."""
    path = tmp_path_factory.mktemp("checkout")
    for name in ("src", "conf", "slurm"):
        shutil.copytree(ROOT / name, path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "Makefile", path)
    train(path, "name=first", "steps=4", "schedule.warmup_steps=1", "logger=none")
    return path


def train(tree: Path, *overrides: str) -> None:
    """Without SLURM."""
    command = [sys.executable, "src/train.py", *overrides, *QUICK]
    done = subprocess.run(command, cwd=tree, env=environment(tree), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def submit(slurm: Cluster, tree: Path, target: str, *overrides: str, **more: str) -> str:
    """As a user does; the number of the job."""
    given = {"SLURM_GPUS": "0", "SLURM_CPUS": "1", "SLURM_PYTHON": sys.executable, **more}
    variables = [f"{name}={value}" for name, value in given.items()]
    done = subprocess.run(
        ["make", target, f"ARGS={' '.join([*overrides, *QUICK])}", *variables],
        cwd=tree,
        env={**environment(tree), **slurm.environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()[-1]


def run_of(tree: Path, name: str) -> Run:
    (summary,) = (tree / "logs" / name).glob("*/summary.json")
    return Run(summary.parent)


def preempt(slurm: Cluster, tree: Path, job: str) -> None:
    """By a job of a partition with priority."""
    script = tree / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    options = ("--partition=high", "--exclusive", "--output=/dev/null")
    urgent = slurm.call("sbatch", *options, str(script)).split()[-1]
    slurm.wait(urgent, "COMPLETED")
    assert slurm.show(job)["JobState"] in ("PENDING", "RUNNING")


def logged(run: Run) -> list[int]:
    with run.metrics.open() as file:
        return [int(row["step"]) for row in csv.DictReader(file)]


def equal(one: Run, other: Run) -> bool:
    return (
        one.student.read_bytes() == other.student.read_bytes()
        and one.metrics.read_text() == other.metrics.read_text()
    )


def test_preempted_job_equals_an_uninterrupted_run(
    slurm: Cluster, tree: Path, record_property
) -> None:
    settings = ("steps=400", "checkpoint_every=100000")  # only what is saved on leaving
    train(tree, "name=calm", *settings, "logger=none")
    # Asked for once, it is not done again at each return.
    job = submit(slurm, tree, "slurm-train", "name=preempted", *settings, *SLOW, "resume=never")
    for wanted in (10, 100, 200):
        slurm.wait(job, "RUNNING")
        deadline = time.monotonic() + 120
        while (rows := list(tree.glob("logs/preempted/*/metrics.csv"))) == [] or (
            max(logged(Run(rows[0].parent)), default=0) < wanted
        ):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        preempt(slurm, tree, job)
    ended = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED")
    output = (tree / f"logs/slurm/{job}.out").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "3"), output
    saved = [int(step) for step in re.findall(r"saved after step (\d+) of 400", output)]
    assert [int(step) for step in re.findall(r"resuming from step (\d+) of 400", output)] == saved
    assert len(saved) == 3
    assert equal(run_of(tree, "preempted"), run_of(tree, "calm"))
    assert logged(run_of(tree, "preempted")) == list(range(5, 401, 5))
    offline = list(run_of(tree, "preempted").directory.glob("wandb/offline-run-*"))
    assert len(offline) == 4  # one folder for each stay, one run in the tracker
    assert {path.name.rpartition("-")[2] for path in offline} == {
        run_of(tree, "preempted").tracker_id.read_text()
    }
    record_property("injected", 3)
    record_property("figures", f"left after steps {saved}, the same weights to the last bit")


def test_two_ranks_stop_before_the_time_limit_and_are_requeued(slurm: Cluster, tree: Path) -> None:
    settings = ("steps=900", "checkpoint_every=100000", "logger=none")
    train(tree, "name=two-calm", *settings, "trainer.devices=2")
    job = submit(
        *(slurm, tree, "slurm-train", "name=two", *settings, *SLOW),
        **{"SLURM_RANKS": "2", "SLURM_TIME": "2", "SLURM_OPTIONS": "--signal=B:USR1@80"},
    )
    ended = slurm.wait(job, "COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", patience=600)
    output = (tree / f"logs/slurm/{job}.out").read_text()
    assert ended["JobState"] == "COMPLETED", f"{output}\n{ended}\n{slurm.log}"
    assert int(ended["Restarts"]) >= 1
    assert "interrupted by SIGUSR1: saved after step" in output
    assert equal(run_of(tree, "two"), run_of(tree, "two-calm"))


def test_array_runs_one_recipe_per_index_despite_a_failure(slurm: Cluster, tree: Path) -> None:
    settings = ("steps=20", "schedule.warmup_steps=2", "logger=none")
    recipes = "fixed_teacher,nonsense,consistent"
    given = ("name=array", "seed=0,1", *settings)
    job = submit(slurm, tree, "slurm-sweep", *given, RECIPES=recipes)
    states = {}
    for index in range(3):
        state = slurm.wait(f"{job}_{index}", "COMPLETED", "FAILED")
        states[index] = (state["JobState"], state["ExitCode"])
    assert states == {0: ("COMPLETED", "0:0"), 1: ("FAILED", "1:0"), 2: ("COMPLETED", "0:0")}
    output = (tree / f"logs/slurm/{job}_1.out").read_text()
    assert "error: recipe=nonsense: no such recipe; choose" in output
    with (tree / "logs/array/summary.csv").open() as file:
        rows = [(row["recipe"], row["seed"], row["status"]) for row in csv.DictReader(file)]
    assert sorted(rows) == [
        (recipe, seed, "completed") for recipe in ("consistent", "fixed_teacher") for seed in "01"
    ]
    train(tree, "recipe=consistent", "seed=1", "name=alone", *settings)
    alone = run_of(tree, "alone")
    assert equal(Run(tree / "logs/array" / alone.directory.name), alone)


def test_installed_package_submits_from_any_directory(
    slurm: Cluster, tree: Path, tmp_path: Path
) -> None:
    site, home = tmp_path / "site", tmp_path / "home"
    shutil.copytree(tree / "src/funmatch", site / "funmatch")
    for name in ("conf", "slurm"):  # where the wheel has them
        shutil.copytree(tree / name, site / "funmatch" / name)
    (home / "src").mkdir(parents=True)
    (home / "src/train.py").write_text("raise SystemExit('of another project')")
    given = ("name=installed", "steps=4", "schedule.warmup_steps=1", "logger=none", *QUICK)
    done = subprocess.run(
        [sys.executable, "-m", "funmatch", "submit", *given],
        cwd=home,
        env={
            **environment(home, PYTHONPATH=str(site), SLURM_GPUS="0", SLURM_CPUS="1"),
            **slurm.environment,
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    job = done.stdout.split()[-1]
    ended = slurm.wait(job, "COMPLETED", "FAILED")
    assert ended["JobState"] == "COMPLETED", (home / f"logs/slurm/{job}.out").read_text()
    assert Run(next(home.glob("logs/installed/*/"))).completed


def test_killed_rank_fails_the_job(slurm: Cluster, tree: Path) -> None:
    settings = ("steps=5000", "checkpoint_every=20", "logger=none")
    job = submit(*(slurm, tree, "slurm-train", "name=killed", *settings, *SLOW), SLURM_RANKS="2")
    slurm.wait(job, "RUNNING")
    deadline = time.monotonic() + 120
    while not list(tree.glob("logs/killed/*/checkpoints/*.ckpt")):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    ranks = subprocess.run(["pgrep", "-f", "train.py.*name=killed"], capture_output=True, text=True)
    for pid in map(int, ranks.stdout.split()):
        stat = Path(f"/proc/{pid}/environ")
        if b"SLURM_PROCID=1\0" in stat.read_bytes() and b"SLURM_STEP_ID" in stat.read_bytes():
            os.kill(pid, 9)
    began = time.monotonic()
    assert slurm.wait(job, "COMPLETED", "FAILED", patience=90)["JobState"] == "FAILED"
    assert time.monotonic() - began < 60


def test_make_slurm_status_lists_jobs(slurm: Cluster, tree: Path) -> None:
    environ = {**environment(tree), **slurm.environment}
    done = subprocess.run(
        ["make", "slurm-status"], cwd=tree, env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("JOBID")
