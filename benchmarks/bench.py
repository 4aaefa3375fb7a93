"""A place to measure in: what is trained there, who trains it, and what they leave."""

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

import pairs
from duel import ROOT, Contender, ContenderError, Result, duel
from funmatch.config.errors import UserError

Spec = tuple[str, Sequence[str]]  # of a contender: its script and its overrides


def funmatch(overrides: Sequence[str], script: str = "src/train.py") -> Spec:
    """The framework itself, as a contender."""
    return script, [*overrides, "+callbacks.beat._target_=metronome.Beat"]


class Bench:
    """A place to measure in.

    Args:
        cfg: of the command.

    Raises:
        UserError: a pair is unknown, or there are no photographs.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.folder = cfg, Path(cfg.out)
        if unknown := [name for name in cfg.pairs if name not in pairs.PAIRS]:
            raise UserError(f"pairs=[{unknown[0]}]: no such pair; choose {', '.join(pairs.PAIRS)}")
        if cfg.photographs and not Path(cfg.photographs).is_dir():
            raise UserError(f"photographs={cfg.photographs}: no such folder; null makes some")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.root = Path(cfg.photographs or pairs.made(self.folder)).resolve()
        self._threads = [] if cfg.threads is None else [f"compute.threads={cfg.threads}"]
        self.pairs = {
            name: (make(self.root, self.folder), target)
            for name, (make, target) in pairs.PAIRS.items()
            if name in cfg.pairs
        }

    def contender(self, script: str, overrides: Sequence[str]) -> Contender:
        """A contender that has been started."""
        return Contender(script, [*overrides, *self._threads], self.folder)

    def duel(self, contenders: Mapping[str, Spec], **how: int) -> Result:
        """Lets contenders take turns."""
        how = {"rounds": self.cfg.rounds, "seconds": self.cfg.seconds, **how}
        with ExitStack() as stack:
            there = {
                name: stack.enter_context(self.contender(*spec))
                for name, spec in contenders.items()
            }
            return duel(there, **how)

    def run(self, script: str, overrides: Sequence[str]) -> float:
        """Seconds of a whole command."""
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *overrides, *self._threads],
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise ContenderError(f"{script} {' '.join(overrides)}: {done.stderr.strip()}")
        return time.perf_counter() - start

    def summary(self, name: str) -> list[dict[str, Any]]:
        """The summaries of the runs of a name."""
        paths = sorted((self.folder / "logs" / name).glob("*/summary.json"))
        return [json.loads(path.read_text()) for path in paths]

    def forget(self, *names: str) -> None:
        """Removes the runs of some names."""
        for name in names:
            shutil.rmtree(self.folder / "logs" / name, ignore_errors=True)
