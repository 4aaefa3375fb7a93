"""Real commands, run as a user runs them."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

from funmatch.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]

# What results do not depend on; one thread, for many commands share the machine under test.
QUICK = ("logger=none", "compute.threads=1", "trainer.accelerator=cpu")


def environment(home: Path, **more: str) -> dict[str, str]:
    """What this process was given, less what would steer a command from outside."""
    steers = ("WANDB", "HYDRA", "PYTHON", "MAKE", "MFLAGS")
    keep = {k: v for k, v in os.environ.items() if not k.startswith(steers)}
    return {**keep, "PYTHONPATH": str(ROOT / "tests"), "HOME": str(home), **more}


def command(
    script: str, *overrides: str, cwd: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a real command, as a user would, from any directory."""
    return subprocess.run(
        [sys.executable, str(ROOT / "src" / f"{script}.py"), *overrides],
        cwd=cwd,
        env=environment(cwd, **more),
        capture_output=True,
        text=True,
        timeout=280,
    )


def command_here(script: str, *overrides: str, cwd: Path) -> tuple[int, str, str]:
    """The same in this process: to import torch takes longer than a short run.

    Returns its exit code, output and errors.
    """
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(cwd)
        patch.setenv("HYDRA_FULL_ERROR", "0")  # what the command sets is put back
        patch.setattr(sys, "argv", [f"{script}.py", *overrides])
        try:
            COMMANDS[script]()
        except SystemExit as stop:
            code = int(stop.code or 0)
    return code, out.getvalue(), err.getvalue()


_ANSWERS = """
import contextlib, io, json, sys
from funmatch.cli.main import COMMANDS

class Door:  # what must not be needed to refuse
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "sklearn"):
            raise RuntimeError(f"{name} was imported")

sys.meta_path.insert(0, Door())
found = []
for script, arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [f"{script}.py", *arguments.split()]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            COMMANDS[script]()
            code = 0
        except SystemExit as stop:
            code = stop.code
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


def answers(
    mistakes: Sequence[tuple[str, str]], *, cwd: Path
) -> dict[tuple[str, str], tuple[int, str, str]]:
    """Exit code, output and errors of commands with their arguments, all in one process.

    Torch and data cannot be imported there: what is wrong is found before.
    """
    done = subprocess.run(
        [sys.executable, "-c", _ANSWERS],
        cwd=cwd,
        env=environment(cwd, PYTHONPATH=str(ROOT / "src")),
        input=json.dumps(mistakes),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(mistakes, map(tuple, json.loads(done.stdout)), strict=True))
