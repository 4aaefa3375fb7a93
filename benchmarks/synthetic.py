r"""Funmatch with free input: the batch of the first step is repeated.

STEP_SERVER=... python benchmarks/synthetic.py recipe=... \
    +callbacks.wait._target_=step_server.WaitForStep
"""

from dataclasses import replace
from functools import cache

from funmatch.cli.main import train
from funmatch.data.batch import RenderedBatch
from funmatch.views.stream import Stream

_rendered = cache(Stream.__getitem__)


def _again(stream: Stream, step: int) -> RenderedBatch:
    return replace(_rendered(stream, 0), step=step)


if __name__ == "__main__":
    Stream.__getitem__ = _again  # type: ignore[method-assign]
    train()
