"""Interleaved timing: programs run alternately, so that machine noise affects all equally."""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent


class ContenderError(RuntimeError):
    """A program has exited before the end of the comparison."""


class Contender:
    """A process that trains a given number of steps on request; see `step_server`.

    Args:
        script: path in the repository.
        overrides: overrides of the configuration.
        folder: working directory.
    """

    def __init__(self, script: str, overrides: Sequence[str], folder: Path) -> None:
        orders, self._give = os.pipe()
        self._take, reports = os.pipe()
        self._log = (folder / "contenders.log").open("a")
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *overrides],
            cwd=folder,
            env={
                **os.environ,
                "FUNMATCH_ALLOW": "step_server",
                "STEP_SERVER": f"{orders},{reports}",
                "PYTHONPATH": os.pathsep.join([str(HERE), str(ROOT / "src"), *_path()]),
            },
            pass_fds=(orders, reports),
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )
        os.close(orders)
        os.close(reports)
        self._orders, self._reports = os.fdopen(self._give, "w"), os.fdopen(self._take)
        self.name = f"{script} {' '.join(overrides)}"

    def ready(self) -> None:
        """Waits until the process is ready to train."""
        self._report()

    def train(self, steps: int) -> dict[str, Any]:
        """Trains; returns the seconds of these steps, and the peak memory so far in bytes."""
        print(steps, file=self._orders, flush=True)
        return self._report()

    def _report(self) -> dict[str, Any]:
        line = self._reports.readline()
        if not line:
            raise ContenderError(f"{self.name} has ended; see {self._log.name}")
        return json.loads(line)

    def __enter__(self) -> "Contender":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._orders.close()
        self._reports.close()
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@dataclass(frozen=True)
class Result:
    """Measurements of an interleaved timing.

    Attributes:
        seconds: seconds per step, by program: one number for each round.
        peaks: peak memory in bytes, by program.
    """

    seconds: Mapping[str, list[float]]
    peaks: Mapping[str, int]

    def ratio(self, one: str, other: str) -> tuple[float, float, float]:
        """Speed of one program divided by that of another: median and quartiles over rounds."""
        pairs = [b / a for a, b in zip(self.seconds[one], self.seconds[other], strict=True)]
        low, middle, high = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else pairs * 3
        return middle, low, high


def time_interleaved(
    contenders: Mapping[str, Contender], *, rounds: int, seconds: float, steps: int | None = None
) -> Result:
    """Times programs that train alternately.

    Args:
        contenders: programs by name.
        rounds: number of turns of each program.
        seconds: approximate length of a turn of the first program.
        steps: length of a turn in steps, instead of seconds.
    """
    for contender in contenders.values():
        contender.ready()
    if steps is None:
        first = next(iter(contenders.values()))
        first.train(3)
        steps = max(1, round(seconds / (first.train(3)["seconds"] / 3)))
    for contender in contenders.values():  # warms up
        contender.train(steps)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    peaks: dict[str, int] = {}
    for number in range(rounds):
        # Every other round in reverse order, so that no program always follows the same one.
        for name in list(contenders)[:: 1 if number % 2 == 0 else -1]:
            report = contenders[name].train(steps)
            times[name].append(report["seconds"] / steps)
            peaks[name] = report["device_peak"] or report["peak"]
    return Result(times, peaks)


def _path() -> list[str]:
    return [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
