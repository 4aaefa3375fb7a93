"""Corrupt and unusual image files, and data loader workers that die."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import small
from commands import command, command_here
from faults import inject
from funmatch.data.corrupt_images import without_corrupt_images
from funmatch.data.datasets import builders
from funmatch.runs.directory import Run
from funmatch.runtime import hardware
from small import CLASSES, SMALL

pytestmark = pytest.mark.fault(9)
MODEL = ("model=bit_tiny", "model.net.depth=[1]", "data=folder", "data.cache=none")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.split_folder(tmp_path_factory.mktemp("sound") / "images")


def odd(folder: Path) -> list[str]:
    """Images of every odd kind that can be read."""
    rng = np.random.default_rng(0)
    grey = Image.fromarray(rng.integers(0, 256, (20, 24), dtype=np.uint8))
    colour = Image.fromarray(rng.integers(0, 256, (22, 20, 3), dtype=np.uint8))
    grey.save(folder / "grey.jpg")
    grey.convert("1").save(folder / "bits.png")
    grey.convert("P").save(folder / "palette.png", transparency=3)
    colour.convert("CMYK").save(folder / "cmyk.jpg")
    colour.convert("RGBA").save(folder / "alpha.png")
    colour.resize((1, 1)).save(folder / "one.png")
    colour.resize((1, 60)).save(folder / "thin.png")
    colour.save(folder / "a-png.jpg", "PNG")
    colour.save(folder / "a-jpeg.png", "JPEG")
    colour.save(folder / "a-gif.jpeg", "GIF")
    return [path.name for path in folder.iterdir() if "_" not in path.name]


def broken(folder: Path) -> list[str]:
    """Files that no reader makes an image of."""
    whole = next(folder.glob("*_*.jpg")).read_bytes()
    files = {
        "0-empty.jpg": b"",
        "cut-off.jpg": whole[: len(whole) // 2],
        "header-only.jpg": whole[:30],
        "text.png": b"this is no image",
        "zeros.jpg": bytes(3000),
        "ZZ-last.jpg": whole[:-200],
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return list(files)


def finetune(home: Path, root: Path, *more: str) -> tuple[int, str, str]:
    return command_here(
        "finetune", *MODEL, f"data.root={root}", *SMALL, "steps=30", *more, cwd=home
    )


def test_unusual_image_formats_are_read(sound: Path, tmp_path: Path, record_property) -> None:
    root = shutil.copytree(sound, tmp_path / "images")
    names = odd(root / "train" / CLASSES[0])
    code, out, err = finetune(tmp_path, root, "name=odd", "data.broken=skip")
    assert (code, err) == (0, "")
    assert not re.search(r"broken: \d+ of", out)  # there is none
    splits = builders.folder(str(root))
    assert len(splits.train) == 36 + len(names)
    images = splits.train.images(np.arange(len(splits.train)))
    assert all(image.shape[0] == 3 for image in images)
    record_property("injected", len(names))


def test_corrupt_image_ends_the_run_and_is_named(sound: Path, tmp_path: Path) -> None:
    for workers in (0, 2):
        for name in broken(sound / "train" / CLASSES[0]):
            root = shutil.copytree(sound, tmp_path / name)
            for other in broken(root / "train" / CLASSES[0]):
                if other != name:
                    (root / "train" / CLASSES[0] / other).unlink()
            given = (f"name={name}", f"compute.workers={workers}", "resume=never")
            code, _, err = finetune(tmp_path, root, *given)
            shutil.rmtree(root)
            path = root / "train" / CLASSES[0] / name
            assert code == 1, name
            assert err.startswith(f"error: {path}: cannot be read as an image ("), err
            assert err.count("\n") == 1
            if workers:  # one is enough: to start workers takes time
                break
    for name in broken(sound / "train" / CLASSES[0]):
        (sound / "train" / CLASSES[0] / name).unlink()


def test_corrupt_images_are_skipped_and_counted(
    sound: Path, tmp_path: Path, record_property
) -> None:
    root = shutil.copytree(sound, tmp_path / "images")
    train = broken(root / "train" / CLASSES[1])
    test = broken(root / "test" / CLASSES[2])[:1]
    for name in broken(root / "test" / CLASSES[2])[1:]:
        (root / "test" / CLASSES[2] / name).unlink()
    code, out, err = finetune(tmp_path, root, "name=skipping", "data.broken=skip")
    assert (code, err) == (0, "")
    first = min(train)
    assert (
        f"  broken: {len(train)} of {36 + len(train)} images, replaced by the next images; "
        f"first {root}/train/{CLASSES[1]}/{first}\n"
    ) in out
    assert (
        f"  broken: 1 of 25 images, left out of the evaluation; first {root}/test/{CLASSES[2]}/"
        in out
    )
    assert out.count("broken: checking") == 3
    assert test
    run = small.only_run(tmp_path, "skipping")
    assert run.completed
    assert 24 * run.result["student_test_top1"] == pytest.approx(
        round(24 * run.result["student_test_top1"])
    )
    before = run.student.read_bytes()

    code, out, _ = finetune(
        tmp_path, root, "name=skipping", "data.broken=skip", "resume=never", "compute.workers=2"
    )
    assert code == 0
    assert "broken: checking" not in out  # the result of the check is stored
    assert run.student.read_bytes() == before
    record_property("injected", len(train) + len(test))


def test_corrupt_image_is_replaced_by_the_next_image_and_label(sound: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sound, tmp_path / "images")
    names = {root / "train" / CLASSES[1] / name for name in broken(root / "train" / CLASSES[1])}
    names |= {root / "train" / CLASSES[2] / name for name in broken(root / "train" / CLASSES[2])}
    splits = builders.folder(str(root))
    mended = without_corrupt_images(splits, tmp_path, print).train
    assert len(mended) == len(splits.train) == 36 + len(names)
    rows = np.arange(len(mended))
    labels = mended.labels(rows)
    for row in rows:
        path = mended.path(row)
        assert path not in names
        assert labels[row] == CLASSES.index(path.parent.name)
        if splits.train.path(row) not in names:
            assert path == splits.train.path(row)
    assert mended.path(rows[-1]) == splits.train.path(0)  # after the last comes the first
    assert mended.fingerprint() != splits.train.fingerprint()


def test_split_without_readable_image_is_an_error(sound: Path, tmp_path: Path) -> None:
    root = shutil.copytree(sound, tmp_path / "images")
    for path in (root / "val").rglob("*.jpg"):
        path.write_bytes(b"")
    code, _, err = finetune(tmp_path, root, "name=none", "data.broken=skip")
    assert code == 1
    assert err.startswith("error: data.root: none of 12 images can be read, first ")
    assert err.count("\n") == 1


@pytest.mark.fault(10)
def test_killed_worker_ends_the_run_in_one_line(sound: Path, tmp_path: Path) -> None:
    given = (*MODEL, f"data.root={sound}", *SMALL, "steps=3000", "compute.workers=2")
    fault = inject("KillWorker", step=20)
    done = command("finetune", *given, "name=worker", "checkpoint_every=10", *fault, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: compute.workers: ")
    assert done.stderr.count("\n") == 1
    assert processes_in(tmp_path) == []
    (config,) = (tmp_path / "logs" / "worker").glob("*/config.yaml")
    assert Run(config.parent).checkpoints.all()


@pytest.mark.fault(10)
def test_workers_exit_when_their_run_is_killed(sound: Path, tmp_path: Path) -> None:
    given = (*MODEL, f"data.root={sound}", *SMALL, "steps=3000", "compute.workers=2")
    fault = inject("SignalAt", step=20)
    settings = ("name=orphans", "checkpoint_every=10")
    killed = command("finetune", *given, *settings, *fault, cwd=tmp_path)
    assert killed.returncode == -9
    # The same command may resume at once: no process holds the run.
    again = command("finetune", *given, *settings, *fault, cwd=tmp_path)
    assert again.returncode == -9 or "another process" not in again.stderr
    assert processes_in(tmp_path) == []


_LEFT = """
from funmatch.data.sources import Splits
from funmatch.training.datamodule import DataModule
from funmatch.views.evaluation_views import EvaluationViews
from funmatch.views.image_views import ImageViews
from funmatch.views.recipes import Shared
from toys import array_source

views = EvaluationViews(array_source(6), resize=8, side=8)
splits = Splits(array_source(12), views, views)
recipe = Shared(name="consistent", crop="inception")
training_views = ImageViews(splits.train, recipe, sides={"student": 8})
data = DataModule(splits, training_views, batch_size=6, steps=3000, seed=0, workers=2)
batches = iter(data.training_loader(start=0))  # alive to the end, as after an error in an error
print(next(batches).views["student"].shape)
"""


@pytest.mark.slow
@pytest.mark.fault(10)
def test_process_exits_with_open_worker_iterators() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _LEFT],
        env=hardware.subprocess_environment(PYTHONPATH=os.pathsep.join(sys.path)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "torch.Size([6, 3, 8, 8])\n"


def processes_in(directory: Path) -> list[int]:
    """The pids of those whose working directory this is: a command and its workers."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is a zombie
            if (folder / "cwd").readlink() == directory:
                pids.append(int(folder.name))
    return pids
