"""What the student is to match: the teacher's word on a batch, asked now or kept from before."""

from collections import deque
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from funmatch.evaluation import EvaluationViews
from funmatch.models.frozen import Frozen
from funmatch.models.network import Output
from funmatch.models.teacher import Teacher
from funmatch.recipes import Fixed
from funmatch.records import Record
from funmatch.stream import Batch, Source, cut


class Targets:
    """The teacher's output for a batch."""

    def __call__(self, batch: Batch) -> Output:
        raise NotImplementedError

    def flush(self) -> None:
        """Called before a checkpoint, and when no more batches come."""


class Live(Targets):
    """Computes the teacher's output on its view of the batch."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher

    def __call__(self, batch: Batch) -> Output:
        return self._teacher(batch.view)


class Kept(Targets):
    """Looks up what the teacher said of each image, whatever the view.

    Args:
        teacher: whose word it is.
        logits: [K, N, C], of each of its members, one row per image of the source.
    """

    def __init__(self, teacher: Teacher, logits: Tensor) -> None:
        self._teacher, self._logits = teacher, logits

    def __call__(self, batch: Batch) -> Output:
        self._logits = self._logits.to(batch.index.device)
        return self._teacher.combined(self._logits[:, batch.index])


class Recorded(Targets):
    """Reads what the teacher said of the same views in an earlier run, and asks it of all others.

    What it says now is rounded as a record rounds it: so a run ends the same, to the last bit,
    whichever of its targets were recorded.

    Args:
        teacher: whose word it is.
        records: by member.
        batch_size: of the global batch.
        keep: record what is asked; else the teacher's word is lost.
        complete: nothing will be missing, and the batches come without the teacher's views.
        verify: steps at which a recorded word is compared with the teacher's.
    """

    def __init__(
        self,
        teacher: Teacher,
        records: Mapping[str, Record],
        *,
        batch_size: int,
        keep: bool,
        complete: bool = False,
        verify: frozenset[int] = frozenset(),
    ) -> None:
        self._teacher, self._records, self._batch_size = teacher, records, batch_size
        self._complete, self._keep, self._verify = complete, keep, verify
        self._pending: deque[tuple[Record, int, Tensor, torch.cuda.Event | None]] = deque()

    def __call__(self, batch: Batch) -> Output:
        first = batch.step * self._batch_size + batch.first
        said = [self._said(name, batch, first) for name in self._records]
        return self._teacher.combined(torch.stack(said))

    def _said(self, name: str, batch: Batch, first: int) -> Tensor:
        record = self._records[name]
        recorded = record.read(slice(first, first + len(batch.index)))
        if recorded is None and self._complete:
            gone = "is no longer there; the same command asks the teacher for it"
            raise ValueError(f"{record.folder}: step {batch.step} {gone} with targets=auto")
        if recorded is None:
            rows = record.packed(self._logits(name, batch))
            self._write(record, first, rows)
            return record.unpacked(rows)
        recorded = recorded.to(batch.index.device, non_blocking=True)
        if batch.step in self._verify:
            self._compare(
                record, recorded, self._teacher.members[name](batch.view(name)).logits, batch.step
            )
        return recorded

    def _logits(self, name: str, batch: Batch) -> Tensor:
        return self._teacher.members[name](batch.view(name)).logits

    def _compare(self, record: Record, recorded: Tensor, said: Tensor, step: int) -> None:
        now = record.unpacked(record.packed(said))
        there, now = (logits - logits.mean(dim=-1, keepdim=True) for logits in (recorded, now))
        difference = float((there - now).norm() / now.norm().clamp(min=1e-12))
        if not difference < _TOLERANCE:
            raise ValueError(
                f"targets.verify: step {step} in {record.folder} differs from what the teacher "
                f"says by {difference:.1%}; remove that directory"
            )

    def _write(self, record: Record, first: int, rows: Tensor) -> None:
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
            print(f"  targets: {record.folder}: {error.strerror}; {lost}", flush=True)

    def flush(self) -> None:
        while self._pending:
            self._write_next()


_LAG = 4  # steps
# Of the norm of the logits: other kernels and bf16 differ by less, other views by far more.
_TOLERANCE = 0.05


def on_fixed_views(
    teacher: Teacher,
    source: Source,
    recipe: Fixed,
    *,
    seed: int,
    store: Path,
    batch_size: int,
    device: torch.device,
) -> Kept:
    """The teacher's prediction of every image, over the views that the recipe fixes.

    Over several views it is the mean of the probabilities, kept as its logarithm. It is computed by
    the first run that needs it and kept in `store`.
    """
    everything = np.arange(len(source))
    sizes = cache(lambda: source.sizes(everything))  # of millions of files it takes minutes

    def mean(member: Frozen, rows: NDArray[np.int64]) -> Tensor:
        images = source.images(rows)  # opened once, however many views
        total = torch.zeros(0)
        views = recipe.teacher_views(seed, *(sizes() if recipe.drawn else source.sizes(rows)))
        if recipe.drawn:
            views = (view[rows] for view in views)
        for number, view in enumerate(views, 1):
            logits = _ask(member, cut(images, view, member.side), device)
            if number == 1:
                first, total = logits, logits.double().softmax(dim=-1)
            else:
                total += logits.double().softmax(dim=-1)
        return first if number == 1 else (total / number).log().float()

    pieces = np.array_split(everything, -(-len(source) // batch_size))
    about = {"kind": "fixed", **recipe.law(seed)}
    return _kept(teacher, source, store, lambda member: about, pieces, mean)


def on_evaluation_views(
    teacher: Teacher, source: Source, *, store: Path, batch_size: int, device: torch.device
) -> Kept:
    """The teacher's prediction of the evaluation view of every image, computed once and kept."""

    def ask(member: Frozen, rows: NDArray[np.int64]) -> Tensor:
        views = EvaluationViews(source, member.resize, member.side).images(rows)
        return _ask(member, torch.stack(list(views)), device)

    everything = np.arange(len(source))
    pieces = np.split(everything, range(batch_size, len(source), batch_size))

    def about(member: Frozen) -> dict[str, Any]:
        return {"kind": "evaluation", "resize": member.resize}

    return _kept(teacher, source, store, about, pieces, ask)


def _ask(member: Frozen, views: Tensor, device: torch.device) -> Tensor:
    return member(views.to(device)).logits.float().cpu()


def _kept(
    teacher: Teacher,
    source: Source,
    store: Path,
    about: Callable[[Frozen], Mapping[str, Any]],
    pieces: list[NDArray[np.int64]],
    ask: Callable[[Frozen, NDArray[np.int64]], Tensor],
) -> Kept:
    """Every member's logits of every image; what is recorded is not asked again."""

    def logits(member: Frozen) -> Tensor:
        record = Record(store, {**facts(member, source), **about(member)}, "float32")
        with record.lock():
            for piece in pieces:
                first = int(piece[0])
                if not record.there(slice(first, first + len(piece))).all():
                    record.write(first, record.packed(ask(member, piece)))
            found = record.read(slice(0, len(source)))
        assert found is not None
        return found

    return Kept(teacher, torch.stack([logits(member) for member in teacher.members.values()]))


def facts(member: Frozen, source: Source) -> dict[str, Any]:
    """What every record of a network's word is about."""
    return {
        "network": member.fingerprint(),
        "dtype": str(member.dtype).removeprefix("torch."),
        "side": member.side,
        "data": source.fingerprint(),
    }
