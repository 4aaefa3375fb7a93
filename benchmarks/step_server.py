"""Step server: lets a benchmark make a training process run a number of steps on request.

So programs can run alternately, second by second, on a machine whose speed varies, and each has
its own memory. The two processes exchange lines over two pipes, whose descriptors are in the
environment variable STEP_SERVER: the benchmark writes a number of steps; the program trains them,
synchronises its device, and writes the seconds as JSON.
"""

import json
import os
import resource
import time
from typing import Any

import torch
from lightning import Callback


class StepServer:
    """The training process's end of the pipes."""

    def __init__(self) -> None:
        orders, reports = map(int, os.environ["STEP_SERVER"].split(","))
        self._orders, self._reports = os.fdopen(orders), os.fdopen(reports, "w")
        self._steps = self._remaining = 0
        self._start = time.perf_counter()

    def wait_for_step(self) -> None:
        """Waits until the next step may begin; call it before each step, once its data is loaded.

        Exits the process when the benchmark has closed the pipe.
        """
        if not self._remaining:
            self._report()
            order = self._orders.readline()
            if not order:
                raise SystemExit
            self._steps = self._remaining = int(order)
            self._start = time.perf_counter()
        self._remaining -= 1

    def _report(self) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - self._start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        device = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
        report = {"steps": self._steps, "seconds": seconds, "peak": peak, "device_peak": device}
        print(json.dumps(report), file=self._reports, flush=True)


class WaitForStep(Callback):
    """Connects a run of funmatch: `+callbacks.wait._target_=step_server.WaitForStep`."""

    def __init__(self) -> None:
        self._server = StepServer()

    def on_train_batch_start(self, *_: Any) -> None:
        self._server.wait_for_step()
