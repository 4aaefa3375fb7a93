"""How a benchmark drives its contenders: each is a process that trains a number of steps on demand.

So contenders can take turns, second by second, on a machine that is never equally fast for long,
and each has its memory to itself. The two ends talk in lines over two pipes, whose numbers are in
the environment variable METRONOME: the benchmark writes a number of steps; the contender takes
them, waits until its device is done, and writes the seconds as JSON.
"""

import json
import os
import resource
import time
from typing import Any

import torch
from lightning import Callback


class Metronome:
    """The contender's end."""

    def __init__(self) -> None:
        orders, reports = map(int, os.environ["METRONOME"].split(","))
        self._orders, self._reports = os.fdopen(orders), os.fdopen(reports, "w")
        self._steps = self._left = 0
        self._start = time.perf_counter()

    def beat(self) -> None:
        """To be called before every step, when its data is at hand.

        It returns when the step may begin, and ends the process when there are no more orders.
        """
        if not self._left:
            self._report()
            order = self._orders.readline()
            if not order:
                raise SystemExit
            self._steps = self._left = int(order)
            self._start = time.perf_counter()
        self._left -= 1

    def _report(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        report = {"steps": self._steps, "seconds": seconds, "peak": peak, "device_peak": device}
        print(json.dumps(report), file=self._reports, flush=True)


class Beat(Callback):
    """The contender that is funmatch itself: `python src/train.py ... +callbacks.beat=...`."""

    def __init__(self) -> None:
        self._metronome = Metronome()

    def on_train_batch_start(self, *_: Any) -> None:
        self._metronome.beat()
