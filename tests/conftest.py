import copy
import functools
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import pytest
from filelock import FileLock
from omegaconf import DictConfig

from commands import QUICK, command
from funmatch.config import resolvers
from funmatch.config.compose import compose_context

os.environ.setdefault("OMP_NUM_THREADS", "1")  # many tests share the machine


resolvers.register()  # before tests are collected: some have the options of groups as parameters


@pytest.fixture(scope="session", autouse=True)
def _trust() -> None:
    """What the configurations of the tests may call."""
    os.environ["FUNMATCH_ALLOW"] = "toys,faults,step_server,test_compute_options"


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """Ctrl-C is heard by what tests start, also where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


FAULTS = {
    1: "stopped and resumed",
    2: "SIGKILL at random moments",
    3: "SIGTERM, SIGUSR1, SIGINT to any rank",
    4: "preempted and requeued by SLURM",
    5: "damaged checkpoint",
    6: "full disk",
    7: "other numbers of ranks and workers",
    8: "NaN loss on one rank",
    9: "broken and odd images",
    10: "killed worker",
    11: "failing job of a sweep",
    12: "teacher that would learn or be saved",
    13: "foreign code in checkpoints, weights, configurations",
    14: "secrets in the environment",
    15: "tracker out of reach",
    16: "wrong configurations",
}


# The modules that take longest, in the order in which pytest-xdist hands them out: the short ones
# come last, so that its workers end together.
LONGEST = (
    *(
        "test_resume",
        "test_recorded_targets",
        "test_loggers",
        "test_distill_datasets",
        "test_decoded_cache",
    ),
    *(
        "test_commands",
        "test_export",
        "test_tasks",
        "test_help",
        "test_exported_models",
        "test_ranks",
    ),
    *("test_dry_run", "test_corrupt_images", "test_report", "test_teachers", "test_experiments"),
    *("test_signals", "test_compute_options", "test_validation", "test_config", "test_forkserver"),
    *("test_dashboard", "test_setup", "test_package"),
)


def _position(item: pytest.Item) -> int:
    name = item.path.stem
    return LONGEST.index(name) if name in LONGEST else len(LONGEST)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_position)
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
            properties = getattr(report, "user_properties", ())  # not of a file that is no test
            entry = {"outcome": outcome, "injected": 1, **dict(properties)}
            for number in {value for key, value in properties if key == "fault"}:
                rows.setdefault(number, []).append(entry)
    if not rows:
        return
    write = terminalreporter.write_line
    terminalreporter.section("faults")
    write(f"{'#':>2}  {'fault':52} {'injected':>8} {'survived':>8}")
    for number, tests in sorted(rows.items()):
        tried = [entry for entry in tests if entry["outcome"] != "skipped"]
        injected = sum(entry["injected"] for entry in tried)
        survived = sum(entry["injected"] for entry in tried if entry["outcome"] == "passed")
        note = "" if tried else "  skipped"
        write(f"{number:>2}  {FAULTS[number]:52} {injected:>8} {survived:>8}{note}")
        for entry in tried:
            if "figures" in entry:
                write(f"{'':6}{entry['figures']}")


@pytest.fixture
def compose() -> Callable[..., DictConfig]:
    """Composes a configuration as a command would; each only once, of which all get a copy."""

    def call(*overrides: str, name: str = "train") -> DictConfig:
        return copy.deepcopy(_composed(name, overrides))

    return call


@functools.cache
def _composed(name: str, overrides: tuple[str, ...]) -> DictConfig:
    with compose_context():
        return hydra.compose(name, list(overrides))


@pytest.fixture(scope="session")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder logs/teachers with the teacher of digits, made by one worker of pytest-xdist."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "teachers"
    home.mkdir(exist_ok=True)
    with FileLock(home / "lock"):
        if not (home / "done").exists():
            short = ("steps=4", "schedule.warmup_steps=1")
            done = command("train", *short, *QUICK, cwd=home)
            assert done.returncode == 0, done.stderr
            (home / "done").touch()
    return home / "logs" / "teachers"


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory, teachers: Path) -> Path:
    """A directory whose logs hold a teacher and a first run."""
    path = tmp_path_factory.mktemp("workplace")
    shutil.copytree(teachers, path / "logs" / "teachers")
    done = command("train", "steps=4", "schedule.warmup_steps=1", "name=first", *QUICK, cwd=path)
    assert done.returncode == 0, done.stderr
    return path
