import os
import signal
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from commands import QUICK, command
from funmatch import resolvers
from funmatch.cli import app


@pytest.fixture(scope="session", autouse=True)
def _resolvers() -> None:
    resolvers.register()


@pytest.fixture(scope="session", autouse=True)
def _trust() -> None:
    """What the configurations of the tests may call."""
    os.environ["FUNMATCH_ALLOW"] = "toys,faults,metronome,test_cohort,test_computing"


@pytest.fixture(scope="session", autouse=True)
def _interrupts() -> None:
    """Ctrl-C is heard by what tests start, also where the tests run in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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
