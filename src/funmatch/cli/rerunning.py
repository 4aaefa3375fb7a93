"""Runs that failed, run again with the commands that were typed."""

import shlex
import signal
import subprocess
import sys
import time

from omegaconf import DictConfig

from funmatch import machine, runs
from funmatch.cli import opening
from funmatch.interruption import CTRL_C, LEFT, WISH, Interrupted
from funmatch.schema import UserError

_LOOK = 0.1  # seconds between two looks at a run


def rerun(cfg: DictConfig) -> None:
    """Runs each again, one after the other, as it was typed.

    Raises:
        UserError: one of them failed again, or cannot be run from here.
        Interrupted: one of them was asked to stop.
    """
    rows = runs.collect(opening.folders(cfg.runs))
    failed = {str(row["directory"]): row for row in rows if row["status"] == "failed"}
    if not failed:
        print(f"{cfg.runs}: no run there has failed")
        return
    again, left = [], []
    for name, row in failed.items():
        typed = runs.command(row)
        if typed is None or any(_steers(each) for each in typed):
            left.append(name)
            print(f"{name}: {_shown(typed)}")
            continue
        print(f"{name}: {_shown(typed)}", flush=True)
        if _run(typed):
            again.append(name)
    if again:
        raise UserError(f"runs={cfg.runs}: {len(again)} of {len(failed)} failed again: {again[0]}")
    if left:
        remedy = "run it yourself, as it is printed above"
        raise UserError(f"runs={cfg.runs}: {len(left)} not run again: {left[0]}; {remedy}")


def _steers(typed: str) -> bool:
    """Whether a word says more than values: in a run of a stranger it could call anything."""
    return typed.startswith("-") or "hydra" in typed.partition("=")[0]


def _shown(typed: list[str] | None) -> str:
    return "made by another run" if typed is None else f"funmatch {shlex.join(typed)}"


def _run(typed: list[str]) -> int:
    command = [sys.executable, "-m", "funmatch", *typed]
    with WISH.minded():  # it hears what the terminal sends
        process = subprocess.Popen(command, env=machine.environment())
        told = False
        while process.poll() is None:
            if WISH.code and not told:  # by a signal to this process alone
                process.send_signal(signal.SIGINT if WISH.code == CTRL_C else signal.SIGTERM)
                told = True
            time.sleep(_LOOK)
    if process.returncode in LEFT:
        raise Interrupted(WISH.reason or "the run", process.returncode)
    return process.returncode
