"""Signals and max_time: runs save and exit on all ranks after the same step."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from commands import QUICK, command, start
from faults import inject
from forkserver import Process
from funmatch.runs.directory import Run

LONG = (*QUICK, "steps=100000", "checkpoint_every=100000", "trainer.log_every_n_steps=1")
CODES = {signal.SIGTERM: 75, signal.SIGUSR1: 75, signal.SIGINT: 130}


def logged(workplace: Path, name: str) -> int:
    """Rows of metrics."""
    paths = workplace.glob(f"logs/{name}/*/metrics.csv")
    return sum(len(path.read_text().splitlines()) for path in paths)


@contextmanager
def training(workplace: Path, name: str, *more: str) -> Iterator[Process]:
    """A command in the midst of its training; nothing of it is left in the end."""
    given = (*LONG, f"name={name}", *more)
    process = start("train", *given, cwd=workplace, stdout=subprocess.DEVNULL)
    before = logged(workplace, name)
    try:
        deadline = time.monotonic() + 120
        while logged(workplace, name) <= before + 3:
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.communicate(timeout=60)


def ranks(process: Process) -> list[int]:
    """The processes of the ranks, in their order."""
    pids = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"\nPPid:\t{process.pid}\n" in (folder / "status").read_text():
                variables = dict(
                    item.split(b"=", 1)
                    for item in (folder / "environ").read_bytes().split(b"\0")
                    if b"=" in item
                )
                pids[int(variables[b"RANK"])] = int(folder.name)
        except (OSError, KeyError):
            continue
    return [pids[rank] for rank in sorted(pids)]


def gone(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return not status.exists() or "State:\tZ" in status.read_text()


def saved_step(workplace: Path, name: str) -> int:
    return max(
        int(path.stem.removeprefix("step-"))
        for path in workplace.glob(f"logs/{name}/*/checkpoints/*.ckpt")
    )


def leaves_together(workplace: Path, number: signal.Signals, to: str) -> float:
    name = f"{number.name}-{to.replace(' ', '-')}"
    with training(workplace, name, "trainer.devices=2") as process:
        both = ranks(process)
        assert len(both) == 2
        targets = {
            "rank 0": both[:1],
            "rank 1": both[1:],
            "all": both,
            "the command": [process.pid],
        }
        began = time.monotonic()
        for pid in targets[to]:
            os.kill(pid, number)
        _, errors = process.communicate(timeout=30)
        seconds = time.monotonic() - began
    assert process.returncode == CODES[number]
    step = saved_step(workplace, name)
    match = re.fullmatch(
        r"interrupted by (.*): saved after step (\d+) of 100000; the same command resumes "
        rf"\(exit code {CODES[number]}\)\n",
        errors,
    )
    assert match, errors
    assert int(match[2]) == step
    assert all(map(gone, both))
    assert Run(next(workplace.glob(f"logs/{name}/*/"))).result["status"] == "running"
    return seconds


@pytest.mark.slow
@pytest.mark.fault(3)
def test_both_ranks_stop_after_the_same_step(workplace: Path, record_property) -> None:
    seconds = leaves_together(workplace, signal.SIGTERM, "rank 1")
    record_property("figures", f"{seconds:.1f} s")


@pytest.mark.slow
@pytest.mark.fault(3)
@pytest.mark.parametrize("to", ["rank 0", "rank 1", "all", "the command"])
@pytest.mark.parametrize("number", CODES)
def test_signal_to_one_rank_stops_all_ranks(
    workplace: Path, number: signal.Signals, to: str, record_property
) -> None:
    record_property("figures", f"{leaves_together(workplace, number, to):.1f} s")


@pytest.mark.fault(3)
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_workers_ignore_signals_to_their_process_group(
    workplace: Path, number: signal.Signals
) -> None:
    name = f"group-{number.name}"
    with training(workplace, name, "compute.workers=2") as process:
        os.killpg(process.pid, number)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == CODES[number]
    message = f"interrupted by {number.name}: saved after step {saved_step(workplace, name)} of"
    assert errors.startswith(message), errors
    assert errors.count("\n") == 1


@pytest.mark.slow
@pytest.mark.fault(3)
def test_ranks_save_when_their_command_is_killed(workplace: Path) -> None:
    with training(workplace, "fatherless", "trainer.devices=2") as process:
        both = ranks(process)
        process.kill()
        process.wait()
        deadline = time.monotonic() + 30
        while not all(map(gone, both)):
            assert time.monotonic() < deadline
            time.sleep(0.1)
    saved = saved_step(workplace, "fatherless")
    settings = ("name=fatherless", "trainer.devices=2")
    stop = inject("SignalAt", step=saved + 5, number=signal.SIGTERM.value)
    done = command("train", *LONG, *settings, *stop, cwd=workplace)
    assert done.returncode == 75, done.stderr
    assert f"resuming from step {saved} of 100000" in done.stdout


@pytest.mark.slow
@pytest.mark.fault(3)
def test_killed_rank_ends_the_run_in_one_line(workplace: Path) -> None:
    with training(workplace, "one-rank-less", "trainer.devices=2") as process:
        both = ranks(process)
        os.kill(both[1], signal.SIGKILL)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 1
    assert errors == "error: rank 1 was killed by SIGKILL; the same command resumes\n"
    assert all(map(gone, both))


@pytest.mark.fault(3)
def test_second_ctrl_c_exits_without_waiting(workplace: Path) -> None:
    with training(workplace, "impatient", *inject("Slow", seconds=60, after=9)) as process:
        time.sleep(1)  # it sleeps in a step
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - began < 30
    message = "what was saved is kept; the same command resumes (exit code 130)"
    assert errors == f"interrupted by SIGINT: {message}\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "seconds"), [(1, 15), pytest.param(2, 40, marks=pytest.mark.slow)]
)
def test_max_time_is_not_exceeded(workplace: Path, devices: int, seconds: int) -> None:
    name = f"timed-{devices}"
    given = (f"name={name}", f"max_time=0:00:{seconds}", f"trainer.devices={devices}")
    done = command("train", *LONG, *given, cwd=workplace)
    assert done.returncode == 75
    saved = f"saved after step {saved_step(workplace, name)} of 100000"
    pattern = rf"interrupted by max_time: {saved}; .*\n"
    assert re.fullmatch(pattern, done.stderr), done.stderr


@pytest.mark.slow
def test_max_time_may_expire_before_ranks_have_started(workplace: Path) -> None:
    given = ("name=early", "max_time=0:00:01", "trainer.devices=2")
    done = command("train", *LONG, *given, cwd=workplace)
    assert done.returncode == 75
    assert done.stderr.startswith("interrupted by max_time: ")


@pytest.mark.slow
def test_max_time_stops_the_whole_sweep(workplace: Path) -> None:
    arguments = ("-m", *LONG, "name=stopped-sweep", "seed=0,1", "max_time=0:00:12")
    done = command("train", *arguments, cwd=workplace)
    assert done.returncode == 75
    assert len(list(workplace.glob("logs/stopped-sweep/*/summary.json"))) == 1
