"""What any rank wishes, known to all ranks at the same step."""

from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class AsyncAllReduceMax:
    """The largest number that any rank has given.

    With several ranks the answer is that of the call before: the message travels while they work.
    """

    def __init__(self) -> None:
        self._group: Any = None  # torch's types allow for a number here
        self._said: Tensor | None = None
        self._message: dist.Work | None = None

    def start(self, ranks: int) -> None:
        """Called by all ranks together."""
        if ranks > 1:  # messages of their own, on the host, whatever else the ranks send
            self._group = dist.new_group(backend="gloo", timeout=timedelta(minutes=10))

    def reach(self, wish: int) -> int:
        """Called by all ranks equally often."""
        if self._group is None:
            return wish
        heard = self._heard()
        self._said = torch.tensor(wish)
        self._message = dist.all_reduce(
            self._said, op=dist.ReduceOp.MAX, group=self._group, async_op=True
        )
        return heard

    def end(self) -> int:
        """Called by all ranks together, after the last wish; the answer to that one."""
        heard = self._heard()
        self._message = self._said = None
        return heard

    def _heard(self) -> int:
        if self._message is None or self._said is None:
            return 0
        self._message.wait()
        return int(self._said)
