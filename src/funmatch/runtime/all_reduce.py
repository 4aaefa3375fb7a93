"""Asynchronous all-reduce of a number over the ranks, with a result at the same step on each."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class AsyncAllReduceMax:
    """Maximum of a number over all ranks, computed while they train.

    With several ranks a call returns the maximum of the previous call's values, since the
    collective runs asynchronously; with one rank it returns the value itself.
    """

    def __init__(self) -> None:
        self._group: Any = None  # torch's type stubs allow an int here
        self._value: Tensor | None = None
        self._work: dist.Work | None = None

    def start(self, ranks: int) -> None:
        """Creates the process group. All ranks must call it."""
        if ranks > 1:  # a group of its own, on the CPU, so that no other collective interferes
            self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=10))

    def reduce(self, value: int) -> int:
        """Starts the reduction of `value` and returns the previous result, 0 at the first call.

        All ranks must call it equally often.
        """
        if self._group is None:
            return value
        previous = self._result()
        self._value = torch.tensor(value)
        self._work = dist.all_reduce(
            self._value, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return previous

    def end(self) -> int:
        """The maximum of the last values, 0 if there are none. All ranks must call it."""
        last = self._result()
        self._work = self._value = None
        return last

    def _result(self) -> int:
        if self._work is None or self._value is None:
            return 0
        self._work.wait()
        return int(self._value)
