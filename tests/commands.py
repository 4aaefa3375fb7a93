"""Real commands: forks of a process that has imported torch, or new processes."""

import atexit
import functools
import io
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest

import forkserver
from funmatch.cli.main import COMMANDS

ROOT = Path(__file__).resolve().parents[1]

# What results do not depend on; one thread, for many commands share the machine under test.
QUICK = ("logger=none", "compute.threads=1", "trainer.accelerator=cpu")
_TIMEOUT = 280.0  # seconds
# Before packages that a test imports set variables of their own, with which no fork would serve.
_GIVEN = {"OMP_NUM_THREADS": "1", **os.environ}


def environment(home: Path, **more: str) -> dict[str, str]:
    """What this process was given, less what would steer a command from outside."""
    steers = ("WANDB", "HYDRA", "PYTHON", "MAKE", "MFLAGS")
    later, start = os.environ.items(), forkserver.READ_AT_START
    variables = {k: v for k, v in later if not k.startswith(start)}
    variables |= {k: v for k, v in _GIVEN.items() if k.startswith(start)}
    keep = {k: v for k, v in variables.items() if not k.startswith(steers)}
    return {**keep, "PYTHONPATH": str(ROOT / "tests"), "HOME": str(home), **more}


def command(
    script: str, *overrides: str, cwd: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a real command, as a user would, from any directory.

    Args:
        script: of src/, without its suffix.
        overrides: what the user types after it.
        cwd: where it runs; also its HOME.
        more: environment variables.
    """
    process = start(script, *overrides, cwd=cwd, **more)
    try:
        out, err = process.communicate(timeout=_TIMEOUT)
    except BaseException:
        process.kill()
        process.wait()  # not for its output: what it has started may hold the pipes
        raise
    return subprocess.CompletedProcess(process.args, process.wait(), out, err)


def start(
    script: str,
    *overrides: str,
    cwd: Path,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.PIPE,
    **more: str,
) -> forkserver.Process | subprocess.Popen[str]:
    """The same, while it runs; it leads a session of its own."""
    path, env = ROOT / "src" / f"{script}.py", environment(cwd, **more)
    if (server := _server()) and server.serves(env):
        return server.start(path, overrides, cwd=cwd, env=env, stdout=stdout, stderr=stderr)
    return subprocess.Popen(
        [sys.executable, str(path), *overrides],
        cwd=cwd,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        text=True,
        start_new_session=True,
    )


@functools.cache
def _server() -> forkserver.Server | None:
    """The fork server of this process, where the system has pidfds."""
    if not hasattr(os, "pidfd_open"):
        return None
    home = tempfile.TemporaryDirectory()
    server = forkserver.Server(environment(Path(home.name)))
    atexit.register(home.cleanup)
    atexit.register(server.close)
    return server


def is_error(errors: str, named: str) -> bool:
    """Whether this is one `error:` line that names a key and its value, and says more."""
    return re.fullmatch(rf"error: {re.escape(named)}: \S.*\n", errors) is not None


def new_process(
    script: str, *overrides: str, cwd: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in a new interpreter: four times as slow as `command`."""
    return subprocess.run(
        [sys.executable, str(ROOT / "src" / f"{script}.py"), *overrides],
        cwd=cwd,
        env=environment(cwd, **more),
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
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
from hydra._internal.hydra import Hydra
from funmatch.cli.main import COMMANDS
from funmatch.runtime.hydra_versions import HAS_WHITELIST

if not HAS_WHITELIST:  # Hydra 1.3 composes each configuration twice
    compose_mode = Hydra.get_mode

    def get_mode(hydra, config_name, overrides):
        sweep = any(override.startswith("sweep=") for override in overrides)
        return compose_mode(hydra, config_name, overrides) if sweep else None

    Hydra.get_mode = get_mode

class ImportBlocker:  # a refusal must not need these packages
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "sklearn"):
            raise RuntimeError(f"{name} was imported")

sys.meta_path.insert(0, ImportBlocker())
results = []
for script, arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    sys.argv = [f"{script}.py", *arguments.split()]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            COMMANDS[script]()
            code = 0
        except SystemExit as stop:
            code = stop.code
    results.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


def answers(
    mistakes: Sequence[tuple[str, str]], *, cwd: Path
) -> dict[tuple[str, str], tuple[int, str, str]]:
    """Exit code, output and errors of commands with their arguments, all in one process.

    Torch and data cannot be imported there: errors are found before.
    """
    done = subprocess.run(
        [sys.executable, "-c", _ANSWERS],
        cwd=cwd,
        env=environment(cwd, PYTHONPATH=os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")])),
        input=json.dumps(mistakes),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(mistakes, map(tuple, json.loads(done.stdout)), strict=True))
