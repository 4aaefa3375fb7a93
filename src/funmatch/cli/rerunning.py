"""Runs that failed, run again with the commands that were typed."""

import shlex
import subprocess
import sys

from omegaconf import DictConfig

from funmatch import machine, runs
from funmatch.cli import opening
from funmatch.interruption import LEFT, WISH, Interrupted
from funmatch.schema import UserError


def rerun(cfg: DictConfig) -> None:
    """Runs each again, one after the other; they go on from their last checkpoints.

    Raises:
        UserError: there is nothing of the kind, or one of them failed again.
        Interrupted: one of them was asked to stop.
    """
    rows = runs.collect(opening.folders(cfg.runs))
    failed = [row for row in rows if row["status"] == "failed"]
    commands = {row["run"]: typed for row in failed if (typed := runs.command(row)) is not None}
    if not commands:
        print(f"{cfg.runs}: no run there has failed")
        return
    codes = {}
    for name, typed in commands.items():
        print(f"{name}: funmatch {shlex.join(typed)}", flush=True)
        with WISH.minded():  # it hears what the terminal sends, and leaves by itself
            command = [sys.executable, "-m", "funmatch", *typed]
            codes[name] = subprocess.run(command, env=machine.environment()).returncode
        if codes[name] in LEFT:
            raise Interrupted(WISH.reason or "the run", codes[name])
    again = [name for name, code in codes.items() if code]
    if again:
        raise UserError(f"runs={cfg.runs}: {len(again)} of {len(codes)} failed again: {again[0]}")
