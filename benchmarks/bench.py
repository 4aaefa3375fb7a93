"""Benchmark environment: its folder, its pairs of networks, and the programs that train them."""

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

import network_pairs
from funmatch.config.errors import UserError
from interleaved_timing import ROOT, Contender, ContenderError, Result, time_interleaved

Spec = tuple[str, Sequence[str]]  # script and overrides of a program


def funmatch(overrides: Sequence[str], script: str = "src/train.py") -> Spec:
    """The specification of funmatch itself."""
    return script, [*overrides, "+callbacks.wait._target_=step_server.WaitForStep"]


class Bench:
    """The environment of a benchmark.

    Args:
        cfg: configuration of the command.

    Raises:
        UserError: a pair is unknown, or the folder of photographs does not exist.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg, self.folder = cfg, Path(cfg.out)
        if unknown := [name for name in cfg.pairs if name not in network_pairs.PAIRS]:
            raise UserError(
                f"pairs=[{unknown[0]}]: no such pair; choose {', '.join(network_pairs.PAIRS)}"
            )
        if cfg.photographs and not Path(cfg.photographs).is_dir():
            raise UserError(f"photographs={cfg.photographs}: no such folder; null generates images")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.root = Path(cfg.photographs or network_pairs.random_photographs(self.folder)).resolve()
        self._threads = [] if cfg.threads is None else [f"compute.threads={cfg.threads}"]
        self.pairs = {
            name: (make(self.root, self.folder), target)
            for name, (make, target) in network_pairs.PAIRS.items()
            if name in cfg.pairs
        }

    def contender(self, script: str, overrides: Sequence[str]) -> Contender:
        """Starts a program."""
        return Contender(script, [*overrides, *self._threads], self.folder)

    def compare(self, contenders: Mapping[str, Spec], **how: int) -> Result:
        """Times programs that train alternately."""
        how = {"rounds": self.cfg.rounds, "seconds": self.cfg.seconds, **how}
        with ExitStack() as stack:
            started = {
                name: stack.enter_context(self.contender(*spec))
                for name, spec in contenders.items()
            }
            return time_interleaved(started, **how)

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
        """The summaries of all runs with a name."""
        paths = sorted((self.folder / "logs" / name).glob("*/summary.json"))
        return [json.loads(path.read_text()) for path in paths]

    def remove(self, *names: str) -> None:
        """Removes all runs with these names."""
        for name in names:
            shutil.rmtree(self.folder / "logs" / name, ignore_errors=True)
