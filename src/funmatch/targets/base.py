"""The interface of teacher targets, and what identifies a teacher's stored outputs."""

from typing import Any

from funmatch.data.batch import Batch
from funmatch.data.sources import Source
from funmatch.models.frozen import Frozen
from funmatch.models.network import Output


class Targets:
    """The teacher's output for a batch."""

    def __call__(self, batch: Batch) -> Output:
        raise NotImplementedError

    def flush(self) -> None:
        """Called before a checkpoint, and when no more batches come."""


def store_metadata(member: Frozen, source: Source) -> dict[str, Any]:
    """What every record of a network's word is about."""
    return {
        "network": member.fingerprint(),
        "dtype": str(member.dtype).removeprefix("torch."),
        "side": member.side,
        "data": source.fingerprint(),
    }
