"""The interface of teacher targets, and what identifies a teacher's stored outputs."""

from typing import Any

from funmatch.data.batch import Batch
from funmatch.data.sources import Source
from funmatch.models.frozen import Frozen
from funmatch.models.network import Output


class Targets:
    """Teacher targets: the teacher's output for each row of a batch."""

    def __call__(self, batch: Batch) -> Output:
        """The teacher's output for a batch or a piece of it: `prediction` [B, ...], a constant."""
        raise NotImplementedError

    def flush(self) -> None:
        """Writes pending rows to disk; called before a checkpoint, and after the last batch."""


def store_metadata(member: Frozen, source: Source) -> dict[str, Any]:
    """Metadata of stored outputs: the network, its dtype, the side of its views, and the data."""
    return {
        "network": member.fingerprint(),
        "dtype": str(member.dtype).removeprefix("torch."),
        "side": member.side,
        "data": source.fingerprint(),
    }
