"""A contender: funmatch with input that costs nothing, the batch of the first step again and again.

METRONOME=... python benchmarks/synthetic.py recipe=... +callbacks.beat._target_=metronome.Beat
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
