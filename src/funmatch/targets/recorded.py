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

_WRITE_LAG_STEPS = 4
# Fraction of the norm of the logits: other kernels and bf16 differ by less, other views by far
# more.
_MAX_RELATIVE_DIFFERENCE = 0.05


class RecordedTargets(Targets):
    """Reads the teacher's predictions that an earlier run recorded; computes the missing ones.

    A newly computed prediction is rounded as a recorded one is: a run ends with the same weights,
    to the last bit, whichever of its targets were recorded.

    Args:
        teacher: combines the members' predictions.
        records: the recorded predictions of each member, by its name.
        task: converts predictions to rows of a record and back.
        batch_size: of the global batch; a record has a row for each example of each step.
        keep: store newly computed predictions.
        complete: no row is missing; the batches come without the teacher's views.
        verify: steps at which recorded predictions are compared with the teacher's.

    Raises:
        ValueError: when called, a row is damaged, missing from a complete record, or differs from
            the teacher's prediction.
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
        return self._teacher.combine_predictions(torch.stack(predictions))

    def _rows(self, name: str, batch: Batch, first: int) -> Tensor:
        record = self._records[name]
        recorded = record.read(slice(first, first + len(batch.index)))
        if recorded is None and self._complete:
            remedy = "the same command with targets=auto computes it again"
            raise ValueError(f"{record.folder}: step {batch.step} is missing now; {remedy}")
        if recorded is None:
            rows = record.encode(self._computed(name, batch))
            self._write(record, first, rows)
            return record.decode(rows)
        recorded = recorded.to(batch.index.device, non_blocking=True)
        if batch.step in self._verify:
            self._compare(record, recorded, self._computed(name, batch), batch.step)
        return recorded

    def _computed(self, name: str, batch: Batch) -> Tensor:
        return self._task.to_rows(self._teacher.members[name](batch.view(name)).prediction)

    def _compare(self, record: LogitStore, recorded: Tensor, computed: Tensor, step: int) -> None:
        now = record.decode(record.encode(computed))
        difference = self._task.relative_difference(recorded, now)
        if not difference < _MAX_RELATIVE_DIFFERENCE:
            raise ValueError(
                f"targets.verify: step {step} in {record.folder} differs from the teacher's "
                f"predictions by {difference:.1%}; remove that directory"
            )

    def _write(self, record: LogitStore, first: int, rows: Tensor) -> None:
        if not self._keep:
            return
        event = None
        if rows.is_cuda:  # copied asynchronously, written some steps later
            pinned = torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
            rows = pinned.copy_(rows, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
        self._pending.append((record, first, rows, event))
        while len(self._pending) > (_WRITE_LAG_STEPS if event is not None else 0):
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
            effect = "the run continues and records no further targets"
            _log.warning("  targets: %s: %s; %s", record.folder, error.strerror, effect)

    def flush(self) -> None:
        while self._pending:
            self._write_next()
