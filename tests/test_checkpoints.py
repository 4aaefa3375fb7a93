"""Checkpoint files: round trip, damage, fallback, and refusal of code."""

import os
import pickle
import signal
import time
import zipfile
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from funmatch.runs import checkpoint_files
from funmatch.runs.checkpoint_files import Checkpoints
from funmatch.training.callbacks.checkpoint import VerifiedCheckpointIO

STATE = {"step": 7, "weights": torch.arange(5000.0), "name": "student"}


@pytest.fixture
def three(tmp_path: Path) -> Checkpoints:
    folder = Checkpoints(tmp_path / "checkpoints")
    for step in (5, 10, 100_000_000):
        VerifiedCheckpointIO().save_checkpoint({**STATE, "step": step}, folder.path(step))
    return folder


def test_checkpoint_round_trip_restores_the_state(three: Checkpoints) -> None:
    (newest, *_) = three.all()
    assert [checkpoint_files.step(path) for path in three.all()] == [100_000_000, 10, 5]
    loaded = VerifiedCheckpointIO().load_checkpoint(newest)
    assert loaded["step"] == 100_000_000
    assert torch.equal(loaded["weights"], STATE["weights"])
    assert torch.equal(torch.load(newest, weights_only=True)["weights"], STATE["weights"])
    assert zipfile.ZipFile(newest).comment.decode() == checkpoint_files.digest(newest)


def test_digest_depends_only_on_the_state(three: Checkpoints) -> None:
    seals = {checkpoint_files.digest(path) for path in three.all()}
    assert len(seals) == 3
    again = three.folder / "step-00000011.ckpt"
    VerifiedCheckpointIO().save_checkpoint({**STATE, "step": 10}, again)
    assert checkpoint_files.digest(again) in seals


@pytest.mark.fault(5)
def test_flipped_bits_and_truncation_are_detected(three: Checkpoints) -> None:
    path = three.all()[0]
    good = path.read_bytes()
    assert checkpoint_files.is_intact(path)
    for offset in [*range(0, len(good), 97), *range(len(good) - 90, len(good))]:
        bad = bytearray(good)
        bad[offset] ^= 1 << offset % 8
        path.write_bytes(bad)
        assert not checkpoint_files.is_intact(path), offset
    for size in [*range(0, 200), len(good) // 2, len(good) - 64, len(good) - 1]:
        path.write_bytes(good[:size])
        assert not checkpoint_files.is_intact(path), size
    path.write_bytes(good + b"0")
    assert not checkpoint_files.is_intact(path)


@pytest.mark.fault(5)
def test_newest_falls_back_to_the_previous_intact_checkpoint(three: Checkpoints) -> None:
    newest, middle, _ = three.all()
    os.truncate(newest, 1000)
    messages: list[str] = []
    assert three.newest(messages.append) == middle
    assert messages == [f"{newest} is damaged (its checksum differs); using {middle} instead"]
    assert three.newest(messages.append) == middle
    assert len(messages) == 1
    assert newest.with_suffix(".damaged").exists()  # put aside
    three.clear()
    assert not list(three.folder.iterdir())


@pytest.mark.fault(5)
def test_newest_raises_if_all_checkpoints_are_damaged(three: Checkpoints) -> None:
    for path in three.all():
        os.truncate(path, 0)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"all checkpoints are damaged.*resume=never"):
            three.newest(print)
    assert Checkpoints(three.folder / "none").newest(print) is None


def test_keep_removes_all_but_the_newest_checkpoints(three: Checkpoints) -> None:
    (three.folder / "step-notes.ckpt").touch()  # of somebody else
    three.keep(2)
    assert [checkpoint_files.step(path) for path in three.all()] == [100_000_000, 10]
    assert (three.folder / "step-notes.ckpt").exists()


class Evil:
    def __reduce__(self) -> tuple:
        return os.system, ("touch executed",)


@pytest.mark.fault(13)
@pytest.mark.parametrize("form", ["archive", "bare pickle"])
def test_checkpoint_that_would_run_code_is_refused(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Checkpoints(tmp_path).path(3)
    if form == "archive":  # well sealed: by somebody who knows how
        VerifiedCheckpointIO().save_checkpoint({"state": Evil()}, path)
    else:
        path.write_bytes(pickle.dumps(Evil(), protocol=2))
        assert not checkpoint_files.is_intact(path)
    with pytest.raises(ValueError, match=r"step-00000003\.ckpt: refused, it contains more than"):
        VerifiedCheckpointIO().load_checkpoint(path)
    assert not (tmp_path / "executed").exists()


class Deadly:
    """Kills a worker while it is being saved."""

    def __init__(self, worker: int) -> None:
        self._worker = worker

    def __reduce__(self) -> tuple[type, tuple[int]]:
        os.kill(self._worker, signal.SIGKILL)
        time.sleep(30)  # torch raises in the midst of it
        return Deadly, (self._worker,)


@pytest.mark.fault(10)
def test_worker_killed_during_save_is_not_reported_as_full_disk(three: Checkpoints) -> None:
    batches = iter(DataLoader(torch.arange(100), num_workers=1))
    next(batches)
    path = three.folder / "step-00000012.ckpt"
    with pytest.raises(RuntimeError, match=r"^DataLoader worker .* is killed"):
        VerifiedCheckpointIO().save_checkpoint({"state": Deadly(batches._workers[0].pid)}, path)
    assert not path.exists()


def test_resume_path_may_be_a_checkpoint_or_a_run(three: Checkpoints) -> None:
    run = three.folder.parent
    assert checkpoint_files.resolve_checkpoint(run) == three.path(100_000_000)
    assert checkpoint_files.resolve_checkpoint(three.path(5)) == three.path(5)
    for wrong in (run / "nowhere", three.path(6), three.folder):
        with pytest.raises(ValueError, match=r"resume=.*: no checkpoint found; give"):
            checkpoint_files.resolve_checkpoint(wrong)
