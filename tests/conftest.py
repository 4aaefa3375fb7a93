import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from omegaconf import DictConfig

from commands import QUICK, command
from funmatch import resolvers
from funmatch.cli import app

os.environ.setdefault("OMP_NUM_THREADS", "1")  # many tests share the machine


@pytest.fixture(scope="session", autouse=True)
def _resolvers() -> None:
    resolvers.register()


@pytest.fixture(scope="session", autouse=True)
def _trust() -> None:
    """What the configurations of the tests may call."""
    os.environ["FUNMATCH_ALLOW"] = "toys,faults,metronome,test_computing"


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """Ctrl-C is heard by what tests start, also where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


FAULTS = {
    1: "stopped and gone on with",
    2: "SIGKILL at random moments",
    3: "SIGTERM, SIGUSR1, SIGINT to any rank",
    4: "preempted and requeued by SLURM",
    5: "damaged checkpoint",
    6: "full disk",
    7: "other numbers of ranks and workers",
    8: "loss that is no number on one rank",
    9: "broken and odd images",
    10: "killed worker",
    11: "failing job of a sweep",
    12: "teacher that would learn or be saved",
    13: "foreign code in checkpoints, weights, configurations",
    14: "secrets in the environment",
    15: "tracker out of reach",
    16: "wrong configurations",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark in item.iter_markers("fault"):
            item.user_properties.append(("fault", mark.args[0]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of faults that were injected, where any was."""
    rows: dict[int, list[dict[str, Any]]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            if outcome == "passed" and report.when != "call":
                continue
            said = getattr(report, "user_properties", ())  # not of a file that is no test
            told = {"outcome": outcome, "injected": 1, **dict(said)}
            for number in {value for key, value in said if key == "fault"}:
                rows.setdefault(number, []).append(told)
    if not rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("faults")
    write(f"{'#':>2}  {'fault':52} {'injected':>8} {'survived':>8}")
    for number, tests in sorted(rows.items()):
        tried = [told for told in tests if told["outcome"] != "skipped"]
        injected = sum(told["injected"] for told in tried)
        survived = sum(told["injected"] for told in tried if told["outcome"] == "passed")
        note = "" if tried else "  skipped"
        write(f"{number:>2}  {FAULTS[number]:52} {injected:>8} {survived:>8}{note}")
        for told in tried:
            if "figures" in told:
                write(f"{'':6}{told['figures']}")


@pytest.fixture
def compose() -> Callable[..., DictConfig]:
    """Composes a configuration as a command would."""

    def call(*overrides: str, name: str = "train") -> DictConfig:
        with hydra.initialize_config_dir(str(app.conf()), version_base="1.3"):
            return hydra.compose(name, list(overrides))

    return call


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose logs hold a teacher, made once by a command that needed it."""
    path = tmp_path_factory.mktemp("workplace")
    done = command("train", "steps=4", "schedule.warmup_steps=1", "name=first", *QUICK, cwd=path)
    assert done.returncode == 0, done.stderr
    return path
