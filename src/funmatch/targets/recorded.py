"""Teacher targets read from a store, with the missing ones computed and added."""

import logging
from collections import deque
from collections.abc import Mapping

import torch
from torch import Tensor

from funmatch.data.batch import Batch
from funmatch.models.network import Output
from funmatch.models.teacher import Teacher
from funmatch.targets.base import Targets
from funmatch.targets.store import LogitStore
from funmatch.tasks.base import Task

_log = logging.getLogger(__name__)


class RecordedTargets(Targets):
    """Reads the teacher's predictions of the same views from an earlier run; computes all others.

    A prediction that is computed now is rounded as a record rounds it: so a run ends the same, to
    the last bit, whichever of its targets were recorded.

    Args:
        teacher: combines the members' predictions.
        records: by member.
        task: turns predictions into rows of a record and back.
        batch_size: of the global batch.
        keep: store newly computed predictions.
        complete: nothing will be missing, and the batches come without the teacher's views.
        verify: steps at which a recorded word is compared with the teacher's.
    """

    def __init__(
        self,
        teacher: Teacher,
        records: Mapping[str, LogitStore],
        task: Task,
        *,
        batch_size: int,
        keep: bool,
        complete: bool = False,
        verify: frozenset[int] = frozenset(),
    ) -> None:
        self._teacher, self._records, self._batch_size = teacher, records, batch_size
        self._task = task
        self._complete, self._keep, self._verify = complete, keep, verify
        self._pending: deque[tuple[LogitStore, int, Tensor, torch.cuda.Event | None]] = deque()

    def __call__(self, batch: Batch) -> Output:
        first = batch.step * self._batch_size + batch.first
        rows = [self._rows(name, batch, first) for name in self._records]
        predictions = [self._task.from_rows(each) for each in rows]
        return self._teacher.combined(torch.stack(predictions))

    def _rows(self, name: str, batch: Batch, first: int) -> Tensor:
        record = self._records[name]
        recorded = record.read(slice(first, first + len(batch.index)))
        if recorded is None and self._complete:
            gone = "is no longer there; the same command asks the teacher for it"
            raise ValueError(f"{record.folder}: step {batch.step} {gone} with targets=auto")
        if recorded is None:
            rows = record.packed(self._computed(name, batch))
            self._write(record, first, rows)
            return record.unpacked(rows)
        recorded = recorded.to(batch.index.device, non_blocking=True)
        if batch.step in self._verify:
            self._compare(record, recorded, self._computed(name, batch), batch.step)
        return recorded

    def _computed(self, name: str, batch: Batch) -> Tensor:
        return self._task.to_rows(self._teacher.members[name](batch.view(name)).prediction)

    def _compare(self, record: LogitStore, recorded: Tensor, computed: Tensor, step: int) -> None:
        now = record.unpacked(record.packed(computed))
        difference = self._task.relative_difference(recorded, now)
        if not difference < _TOLERANCE:
            raise ValueError(
                f"targets.verify: step {step} in {record.folder} differs from what the teacher "
                f"says by {difference:.1%}; remove that directory"
            )

    def _write(self, record: LogitStore, first: int, rows: Tensor) -> None:
        if not self._keep:
            return
        event = None
        if rows.is_cuda:  # copied while the device works on, written some steps later
            there = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            rows = there.copy_(rows, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._pending.append((record, first, rows, event))
        while len(self._pending) > (_LAG if event is not None else 0):
            self._write_next()

    def _write_next(self) -> None:
        record, first, rows, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        try:
            record.write(first, rows)
        except OSError as error:
            self._keep = False
            self._pending.clear()
            lost = "the run goes on and records no further targets"
            _log.warning("  targets: %s: %s; %s", record.folder, error.strerror, lost)

    def flush(self) -> None:
        while self._pending:
            self._write_next()


_LAG = 4  # steps


# Of the norm of the logits: other kernels and bf16 differ by less, other views by far more.
_TOLERANCE = 0.05
