import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig

from funmatch import schema
from funmatch.cli import app

ROOT = Path(__file__).resolve().parents[1]
Command = Callable[..., subprocess.CompletedProcess[str]]

# A teacher of a few seconds, and one thread: many commands share the machine under test.
QUICK = ("logger=none", "trainer.threads=1", "trainer.accelerator=cpu")


@pytest.fixture(scope="session", autouse=True)
def _resolvers() -> None:
    schema.register()


@pytest.fixture
def compose() -> Callable[..., DictConfig]:
    """Composes a configuration as a command would."""

    def call(*overrides: str, name: str = "train") -> DictConfig:
        with hydra.initialize_config_dir(str(app.conf()), version_base="1.3"):
            return hydra.compose(name, list(overrides))

    return call


def command(
    script: str, *overrides: str, cwd: Path, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a real command, as a user would, from any directory."""
    keep = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB", "HYDRA", "PYTHON"))}
    return subprocess.run(
        [sys.executable, str(ROOT / "src" / f"{script}.py"), *overrides],
        cwd=cwd,
        env={**keep, "PYTHONPATH": str(ROOT / "tests"), "HOME": str(cwd), **environment},
        capture_output=True,
        text=True,
        timeout=280,
    )


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory whose logs hold a teacher, made once by a command that needed it."""
    path = tmp_path_factory.mktemp("workplace")
    done = command("train", "steps=4", "schedule.warmup_steps=1", "name=first", *QUICK, cwd=path)
    assert done.returncode == 0, done.stderr
    return path
