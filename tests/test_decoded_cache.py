"""Packed images, the cache of decoded images, its modes, and the image decoders."""

import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

import small
import toys
import trees
from commands import ROOT, command, environment
from funmatch.config import validation
from funmatch.config.errors import UserError
from funmatch.core import geometry
from funmatch.core.images import Images
from funmatch.core.render import render, render_batch
from funmatch.data import decoded_cache, image_files
from funmatch.data.batch import Batch, PlannedBatch, RenderedBatch
from funmatch.data.datasets import builders
from funmatch.data.decoded_cache import Cached, cached
from funmatch.data.file_list import FileList, images_below
from funmatch.data.image_files import ImageFiles, decoded
from funmatch.data.sources import Source, Splits
from funmatch.experiment import cache_policy, datasets
from funmatch.experiment.build import build
from funmatch.views.evaluation_views import EvaluationStream, EvaluationViews
from funmatch.views.image_views import Placement
from funmatch.views.recipes import Fixed, Independent, Recipe, Shared
from funmatch.views.stream import Steps
from small import SMALL, STUDENT, TEACHER, experiment, only_run
from trees import refused

KINDS = (("jpg", "RGB"), ("png", "RGB"), ("jpg", "L"), ("jpg", "CMYK"))


def album(root: Path, count: int) -> None:
    """Photographs of all kinds, each of its own size."""
    for number in range(count):
        suffix, mode = KINDS[number % len(KINDS)]
        path = root / f"{number:02}.{suffix}"
        trees.photograph(path, label=number % 3, number=number)
        with Image.open(path) as picture:
            picture.convert(mode).save(path, quality=90)


def files_below(root: Path) -> ImageFiles:
    """All images of a folder, not looked at yet."""
    names = tuple(images_below(root))
    return ImageFiles(FileList(root, names, np.arange(len(names)) % 3), ("a", "b", "c"))


def uncompared(source: Source) -> int:
    """An image that is not decoded again when a cache is opened."""
    compared = np.linspace(0, len(source) - 1, 16).astype(np.int64)
    return int(np.setdiff1d(np.arange(len(source)), compared)[0])


def flip_a_byte(folder: Path, source: Source, number: int) -> None:
    """Damages one image of a cache."""
    heights, widths = source.sizes(np.arange(number + 1))
    with (folder / "pixels.bin").open("r+b") as file:
        file.seek(3 * int((heights * widths)[:number].sum()) + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))


def equal(here: Images, there: Images) -> bool:
    return all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def everything(source: Source) -> np.ndarray:
    return np.arange(len(source))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("album")
    album(folder, 24)
    return folder


@pytest.fixture(scope="module")
def source(root: Path) -> ImageFiles:
    return files_below(root)


@pytest.fixture(scope="module")
def cached_source(source: ImageFiles, tmp_path_factory: pytest.TempPathFactory) -> Cached:
    return cached(source, tmp_path_factory.mktemp("kept"))


# --- one run of pixels ---------------------------------------------------------------------------


def noise(count: int) -> list[torch.Tensor]:
    """Images of different sizes."""
    return list(toys.MixedSizes(count).images(np.arange(count)))


def test_images_of_mixed_sizes_are_packed_and_restored() -> None:
    several = noise(5)
    images = Images.of(several)
    assert len(images) == 5
    assert len(images.pixels) == sum(image.shape[1] * image.shape[2] for image in several)
    assert list(zip(images.heights, images.widths, strict=True)) == [i.shape[1:] for i in several]
    again = Images.packed(images.pixels, np.stack([images.heights, images.widths], axis=1))
    for number, image in enumerate(several):
        assert torch.equal(images.image(number), image)
        assert torch.equal(again.image(number), image)
    assert equal(images, several)


def test_images_take_copies_no_pixels() -> None:
    several = noise(5)
    images = Images.of(several)
    for rows in (np.array([3, 0, 3]), slice(1, 4), np.array([], dtype=np.int64)):
        taken = images.take(rows)
        assert equal(taken, [several[i] for i in np.arange(5)[rows]])
        assert taken.pixels is images.pixels
    assert images.image(2).data_ptr() == images.pixels[images.starts[2] :].data_ptr()


@pytest.mark.parametrize("size", [8, 96, 300])  # 20 views in one, in 3 and in 20 parts
@pytest.mark.parametrize("kind", ["inception", "mild"])
def test_render_batch_of_mixed_sizes_equals_render_of_each_image(kind: str, size: int) -> None:
    images = Images.of(noise(25)).take(np.random.default_rng(1).permutation(25)[:20])
    rng = np.random.default_rng(2)
    if kind == "inception":
        boxes = geometry.inception(images.heights, images.widths, rng=rng, area=(0.1, 1.0))
    else:
        boxes = geometry.mild(images.heights, images.widths, rng=rng, resize=20, crop=16)
    assert np.issubdtype(boxes.dtype, np.integer) == (kind == "inception")
    flips = rng.random(20) < 0.5
    views = render_batch(images, boxes, size, flips)
    expected = [
        render(image, box, size, flip=bool(flip))
        for image, box, flip in zip(images, boxes, flips, strict=True)
    ]
    assert torch.equal(views, torch.stack(expected))


# --- a cached source -----------------------------------------------------------------------------


def test_cached_source_equals_its_source(source: ImageFiles, cached_source: Cached) -> None:
    assert isinstance(cached_source, Cached)
    assert len(cached_source) == len(source)
    assert cached_source.classes == source.classes
    assert cached_source.fingerprint() == source.fingerprint()
    for indices in (everything(source), np.array([7, 0, 23, 7])):
        assert equal(cached_source.images(indices), source.images(indices))
        assert np.array_equal(cached_source.sizes(indices), source.sizes(indices))
        assert torch.equal(cached_source.labels(indices), source.labels(indices))
    assert len({tuple(size) for size in np.stack(source.sizes(everything(source)), 1)}) > 5


def test_cache_accepts_images_without_labels(tmp_path: Path) -> None:
    plain = toys.MixedSizes(5)
    there = cached(plain, tmp_path)
    assert there.labels(np.array([0])) is None
    assert equal(there.images(everything(plain)), plain.images(everything(plain)))


RECIPES = [
    Shared(name="function_matching", crop="inception", mixing=True, min_area=0.1),
    Independent(name="independent_noise", crop="inception", min_area=0.1),
    Fixed(name="fixed_teacher", teacher_crop="centre", mild=(20, 16)),
]


def same(one: RenderedBatch | Batch, other: RenderedBatch | Batch) -> bool:
    assert one.views.keys() == other.views.keys()
    pairs = [(one.index, other.index), (one.label, other.label)]
    pairs += [(one.views[network], other.views[network]) for network in one.views]
    if isinstance(one, RenderedBatch):
        assert one.coefficient == other.coefficient
    return one.step == other.step and all(torch.equal(a, b) for a, b in pairs)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_cached_source_yields_the_same_views_for_each_recipe(
    source: ImageFiles, cached_source: Cached, recipe: Recipe
) -> None:
    form = {"sides": {"student": 8, "teacher": 12}, "batch_size": 10, "seed": 3}
    plain, fast = (toys.image_stream(images, recipe, **form) for images in (source, cached_source))
    late = toys.image_stream(cached_source, recipe, **form, placement=Placement("device"))
    images = cached_source.images(everything(cached_source))
    for step in range(6):
        expected, planned = plain[step], late[step]
        assert expected.views
        assert same(fast[step], expected)
        assert isinstance(planned, PlannedBatch)
        assert same(planned.rendered(images.take(planned.index.numpy())), expected)


def test_pickled_cache_contains_no_pixels(source: ImageFiles, cached_source: Cached) -> None:
    cached_source.images(everything(cached_source))
    content = pickle.dumps(cached_source)
    assert len(content) < len(pickle.dumps(source)) + 500
    other = pickle.loads(content)
    assert equal(other.images(everything(cached_source)), source.images(everything(source)))
    assert other.fingerprint() == source.fingerprint()


@pytest.mark.slow
def test_spawned_workers_read_the_cache(source: ImageFiles, cached_source: Cached) -> None:
    form = {"sides": {"student": 8}, "batch_size": 10, "seed": 3}
    loader = DataLoader(
        toys.image_stream(cached_source, RECIPES[0], **form),
        batch_size=None,
        sampler=Steps(0, 4),
        num_workers=2,
        multiprocessing_context="spawn",
    )
    plain = toys.image_stream(source, RECIPES[0], **form)
    batches = list(loader)
    assert len(batches) == 4
    assert all(same(batch, plain[step]) for step, batch in enumerate(batches))


def test_evaluation_views_are_cached_per_resize_and_side(
    source: ImageFiles, tmp_path: Path
) -> None:
    views = EvaluationViews(source, resize=20, side=16)
    there = cached(views, tmp_path)
    assert there.sizes(np.array([0, 1]))[0].tolist() == [16, 16]
    plain, fast = (EvaluationStream(part, batch_size=10) for part in (views, there))
    assert len(plain) == 3
    assert all(same(fast[number], plain[number]) for number in range(3))
    cached(EvaluationViews(source, resize=24, side=16), tmp_path)
    assert len(list(tmp_path.glob("*/pixels.bin"))) == 2  # each has its own


@pytest.mark.skipif(
    sys.platform != "linux", reason="the limit on private mappings is that of Linux"
)
def test_cache_may_be_larger_than_memory(tmp_path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with Path("/proc/meminfo").open() as file:
        memory += 1024 * next(int(line.split()[1]) for line in file if "SwapTotal" in line)
    sizes = np.array([[2, 2], [memory // 2**20, 2**20], [2, 2]])  # three bytes a pixel
    with (tmp_path / "pixels.bin").open("wb") as file:
        file.truncate(3 * int(sizes.prod(axis=1).sum()))  # no byte of it is on the disk
    sums = np.full(3, zlib.crc32(bytes(12)), dtype=np.uint32)
    np.savez(tmp_path / "index.npz", sizes=sizes, sums=sums, channels=3)
    assert not Cached(toys.MixedSizes(3), tmp_path).images(np.array([0, 2])).image(1).any()


# --- built once ----------------------------------------------------------------------------------

_READER = """
import sys
from pathlib import Path
import numpy as np
from funmatch.data.decoded_cache import cached
from funmatch.data.file_list import FileList, images_below
from funmatch.data.image_files import ImageFiles

def private():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

def brightness(rows):
    return sum(int(image.sum()) for image in cache.images(rows))

root, store = map(Path, sys.argv[1:])
source = ImageFiles(FileList(root, tuple(images_below(root)), None), ())
everything = np.arange(len(source))
print("ready", flush=True)
input()
cache = cached(source, store)
brightness(everything[:20])  # so that the code is in memory
del cache
before = private() if sys.platform == "linux" else 0
cache = cached(source, store)
total = brightness(everything)
print("read", flush=True)
input()  # until all have
print(total, private() - before if sys.platform == "linux" else 0, flush=True)
"""


class Reader:
    """A process that opens a cache when it gets a line on stdin."""

    def __init__(self, root: Path, store: Path) -> None:
        path = os.pathsep.join(str(ROOT / folder) for folder in ("src", "tests"))
        self.process = subprocess.Popen(
            [sys.executable, "-c", _READER, str(root), str(store)],
            env=environment(root.parent, PYTHONPATH=path, OMP_NUM_THREADS="1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def until(self, mark: str) -> list[str]:
        """The lines that it prints before the mark."""
        return list(iter(self._line, mark))

    def resume(self) -> None:
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def last(self) -> list[int]:
        return [int(mark) for mark in self._line().split()]

    def _line(self) -> str:
        line = self.process.stdout.readline()
        assert line, "it ended"
        return line.strip()


@pytest.fixture(scope="module")
def concurrent_readers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """One process is killed while it builds 100 MB; then three build them at once."""
    home = tmp_path_factory.mktemp("concurrent")
    (home / "album").mkdir()
    rng = np.random.default_rng(0)
    picture = Image.fromarray(rng.integers(0, 256, (300, 400, 3), dtype=np.uint8))
    picture.save(home / "album" / "000.jpg", progressive=True)  # slow to decode
    for number in range(1, 300):
        (home / "album" / f"{number:03}.jpg").hardlink_to(home / "album" / "000.jpg")
    readers = [Reader(home / "album", home / "kept") for _ in range(4)]
    try:
        for reader in readers:
            reader.until("ready")
        victim, *others = readers
        if hasattr(os, "sched_setaffinity"):  # on one core it takes a second
            os.sched_setaffinity(victim.process.pid, [min(os.sched_getaffinity(0))])
        victim.resume()
        while not any(file.stat().st_size for file in home.glob("kept/*/pixels.bin")):
            assert victim.process.poll() is None
            time.sleep(0.001)
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        left = sorted(path.name for path in (home / "kept").iterdir())
        for reader in others:
            reader.resume()
        printed = [reader.until("read") for reader in others]
        for reader in others:
            reader.resume()
        last = [reader.last() for reader in others]
        ended = [reader.process.wait() for reader in others]
        yield SimpleNamespace(home=home, left=left, printed=printed, last=last, ended=ended)
    finally:
        for reader in readers:
            reader.process.kill()
            reader.process.communicate()


@pytest.mark.slow
def test_killed_build_leaves_no_cache(concurrent_readers: SimpleNamespace) -> None:
    assert len(concurrent_readers.left) == 2
    assert re.fullmatch(r"\.[0-9a-f]{16}\.\d+\.tmp", concurrent_readers.left[0])
    assert re.fullmatch(r"[0-9a-f]{16}\.lock", concurrent_readers.left[1])


@pytest.mark.slow
def test_concurrent_processes_build_the_cache_once(concurrent_readers: SimpleNamespace) -> None:
    assert concurrent_readers.ended == [0, 0, 0]
    assert sorted(map(len, concurrent_readers.printed)) == [0, 0, 2]
    opening, made = max(concurrent_readers.printed, key=len)
    assert opening.startswith("cache: 300 images, 0.108 GB decoded, in ")
    assert made.startswith("cache: built in ")
    name = concurrent_readers.left[1].removesuffix(".lock")
    assert sorted(path.name for path in (concurrent_readers.home / "kept").iterdir()) == [
        name,
        f"{name}.lock",
    ]
    total = 300 * int(decoded(concurrent_readers.home / "album" / "000.jpg").sum())
    assert [reader[0] for reader in concurrent_readers.last] == [total] * 3


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="smaps_rollup is of Linux")
def test_reading_processes_share_the_memory_of_a_cache(concurrent_readers: SimpleNamespace) -> None:
    (pixels,) = concurrent_readers.home.glob("kept/*/pixels.bin")
    assert pixels.stat().st_size == 108_000_000
    assert max(kilobytes for _, kilobytes in concurrent_readers.last) < 27_000


def test_failed_build_leaves_no_cache(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "album")
    source = files_below(tmp_path / "album")
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, most))  # as if the disk were full
    try:
        with pytest.raises(OSError, match="too large"):
            cached(source, tmp_path / "kept")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))
    last = tmp_path / "album" / source.name(len(source) - 1)
    whole = last.read_bytes()
    cut_off(last, 300)
    line = refused(lambda: cached(files_below(tmp_path / "album"), tmp_path / "kept"))
    assert line.startswith(f"{last}: cannot be read as an image")
    assert all(path.suffix == ".lock" for path in (tmp_path / "kept").iterdir())
    last.write_bytes(whole)
    there = cached(source, tmp_path / "kept")
    assert equal(there.images(everything(source)), source.images(everything(source)))


# --- a cache that does not fit its source --------------------------------------------------------


def cut_off(path: Path, size: int) -> None:
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)


def overwrite(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no pixels": lambda folder: (folder / "pixels.bin").unlink(),
    "pixels empty": lambda folder: cut_off(folder / "pixels.bin", 0),
    "pixels cut off in a pixel": lambda folder: cut_off(folder / "pixels.bin", -1),
    "pixels cut off": lambda folder: cut_off(folder / "pixels.bin", -3),
    "other pixels": lambda folder: overwrite(folder / "pixels.bin", 2000),
    "no index": lambda folder: (folder / "index.npz").unlink(),
    "index empty": lambda folder: cut_off(folder / "index.npz", 0),
    "index cut off": lambda folder: cut_off(folder / "index.npz", -100),
    "index damaged": lambda folder: overwrite(folder / "index.npz", 150),
    "another index": lambda folder: np.savez(folder / "index.npz", sizes=[[1, 1]]),
    "nothing": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_rebuilt(
    damage: Callable[[Path], object],
    source: ImageFiles,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cached(source, tmp_path)
    (folder,) = filter(Path.is_dir, tmp_path.iterdir())
    damage(folder)
    capsys.readouterr()
    there = cached(source, tmp_path)
    output = capsys.readouterr().out
    assert f"  cache: {folder} does not match its source; rebuilding it\n" in output
    assert "  cache: built in " in output
    assert equal(there.images(everything(source)), source.images(everything(source)))
    cached(source, tmp_path)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("size", [(20, 20), (21, 19)], ids=["of its size", "of another size"])
def test_cache_of_a_replaced_image_is_rebuilt(
    size: tuple[int, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(16):  # so all of them are compared
        path = tmp_path / "album" / f"{number:02}.jpg"
        trees.photograph(path, number=number)
        path.write_bytes(path.read_bytes().ljust(4000, b"\0"))
    Image.new("RGB", (20, 20), (9, 99, 199)).save(path := tmp_path / "album" / "11.jpg")
    cut_off(path, 4000)
    before = cached(files_below(path.parent), tmp_path / "kept")
    colour = before.images(np.array([11])).image(0)[:, 0, 0].tolist()
    Image.new("RGB", size, (199, 9, 99)).save(path)
    cut_off(path, 4000)
    now = files_below(path.parent)
    assert now.fingerprint() == before.fingerprint()  # by their size in bytes they are the same
    capsys.readouterr()
    there = cached(now, tmp_path / "kept")
    assert "does not match its source; rebuilding it" in capsys.readouterr().out
    assert equal(there.images(everything(now)), now.images(everything(now)))
    assert there.images(np.array([11])).image(0)[:, 0, 0].tolist() != colour


def test_damaged_cached_image_is_detected_on_first_read(
    source: ImageFiles, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cached(source, tmp_path)
    (folder,) = filter(Path.is_dir, tmp_path.iterdir())
    number = uncompared(source)
    flip_a_byte(folder, source, number)
    capsys.readouterr()
    there = cached(source, tmp_path)
    assert capsys.readouterr().out == ""
    rest = np.setdiff1d(everything(source), [number])
    assert equal(there.images(rest), source.images(rest))
    for _ in range(2):
        line = refused(lambda: there.images(np.array([0, number])))
        assert line == f"cache: {folder} is damaged; remove it, the next run rebuilds it"
    shutil.rmtree(folder)
    assert equal(cached(source, tmp_path).images(rest), source.images(rest))


# --- where a run keeps its images ----------------------------------------------------------------


@pytest.fixture
def configured(
    compose: Callable[..., Any], root: Path, source: ImageFiles, tmp_path: Path
) -> Callable[..., tuple[Splits, bool]]:
    """What a run of 100 steps that sees 24 images reads from."""

    def call(mode: str, *more: str) -> tuple[Splits, bool]:
        data = ("data=folder", f"data.root={root}", "data.split=[0.9,0.1,0]", "data.classes=3")
        run = ("steps=100", "batch_size=8", "validate_every=10", "trainer.accelerator=cpu")
        store = f"paths.cache={tmp_path}/kept"
        cfg = compose(*data, *run, "data.labels=none", f"data.cache={mode}", store, *more)
        splits = Splits(source, source, source)
        task = datasets.build_task(build(cfg).data)
        return cache_policy.apply_cache(build(cfg), splits, toys.network(), task)

    return call


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))


def test_cache_without_disk_space_is_refused_in_one_line(
    configured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_room(monkeypatch)
    for mode in ("disk", "device"):
        with pytest.raises(UserError) as caught:
            configured(mode)
        assert re.fullmatch(
            rf"data\.cache={mode}: needs \S+ GB in {tmp_path}/kept, where 1e-06 GB are free; "
            r"give another paths\.cache, or data\.cache=none",
            str(caught.value),
        )
    assert not (tmp_path / "kept").exists()


def test_auto_caches_only_if_images_repeat_and_fit(
    source: ImageFiles, configured, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    no_room(monkeypatch)
    without, placement = configured("auto")
    assert without.train is source
    assert not isinstance(without.val, Cached)
    assert placement == Placement("worker")
    monkeypatch.undo()
    once, _ = configured("auto", "steps=5")  # 40 views of 24 images
    assert once.train is source
    assert not (tmp_path / "kept").exists()
    train_only, _ = configured("auto", "validate_every=100")
    assert isinstance(train_only.train, Cached)
    assert isinstance(train_only.val, EvaluationViews)
    both, placement = configured("auto")
    assert isinstance(both.train, Cached)
    assert isinstance(both.val, Cached)
    assert placement == Placement("worker")  # on a CPU there is nothing to win
    assert len(both.val.images(np.array([0])).image(0)[0]) == 8


def test_existing_cache_needs_no_disk_space(configured, monkeypatch: pytest.MonkeyPatch) -> None:
    configured("disk")
    no_room(monkeypatch)
    for mode in ("disk", "auto"):
        there, _ = configured(mode)
        assert isinstance(there.train, Cached)
        assert isinstance(there.val, Cached)


def test_in_memory_sources_are_not_cached_on_disk(compose, tmp_path: Path) -> None:
    cfg = compose("data.cache=device", f"paths.cache={tmp_path}/kept", "trainer.accelerator=cpu")
    digits = toys.array_source()
    splits, placement = cache_policy.apply_cache(
        build(cfg), Splits(digits, digits, digits), toys.network(), toys.TASK
    )
    assert splits.train is digits
    assert placement == Placement("device")
    assert not (tmp_path / "kept").exists()


def test_unknown_cache_mode_is_refused(compose) -> None:
    with pytest.raises(UserError, match=r"^data\.cache=tape: .*none.*disk.*device.*auto"):
        validation.check(compose("data.cache=tape"))


# --- real runs -----------------------------------------------------------------------------------

# Of each run: cache mode, store, further settings.
RUNS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "none": ("none", "none", {}),
    "disk": ("disk", "disk", {}),
    "device": ("device", "device", {}),
    "auto": ("auto", "auto", {}),
    "disk_in_workers": ("disk", "disk", {"compute": {"workers": 2}}),
    "device_in_workers": ("device", "device", {"compute": {"workers": 2}}),
    "dry": ("disk", "dry", {"dry_run": True}),
}
# Of another process, when those are done.
LATER = {
    "again": ("disk", "disk", {}),
    "damaged": ("disk", "damaged", {"compute": {"workers": 1}}),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    small.split_folder(home / "images")
    small.finetuned(home, home / "images")
    for name, (mode, store, more) in {**RUNS, **LATER}.items():
        data, paths = {"root": "images", "cache": mode}, {"cache": f"kept/{store}"}
        experiment(home, name, {"data": "folder"}, data=data, paths=paths, **more)
    return home


def trained(home: Path, names: Iterable[str]) -> subprocess.CompletedProcess[str]:
    """Runs of four epochs that are validated three times."""
    what = ("--config-dir=own", "-m", f"experiment={','.join(names)}", *STUDENT, *TEACHER)
    rest = [setting for setting in SMALL if not setting.startswith("validate_every")]
    return command("train", *what, *rest, "steps=24", "validate_every=8", cwd=home)


@pytest.fixture(scope="module")
def messages(home: Path) -> dict[str, list[str]]:
    """The messages of each run about its cache."""
    done = trained(home, RUNS)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    jobs = re.split(r"^.*logs/\w+/function_matching", done.stdout, flags=re.MULTILINE)[1:]
    lines = ([line for line in job.splitlines() if "cache:" in line] for job in jobs)
    return dict(zip(RUNS, lines, strict=True))


def test_cache_mode_does_not_change_results(messages, home: Path) -> None:
    plain, *others = (only_run(home, name) for name in RUNS if name != "dry")
    assert len(others) == 5
    for run in others:
        assert run.directory.name == plain.directory.name
        assert run.student.read_bytes() == plain.student.read_bytes()
        assert run.metrics.read_bytes() == plain.metrics.read_bytes()
    assert len(plain.metrics.read_text().splitlines()) > 3


def test_run_reports_each_cache_that_it_builds(messages, home: Path) -> None:
    for mode in ("disk", "device", "auto"):
        opening, made, of_val, made_too = messages[mode]
        assert re.match(rf"  cache: 36 images, \S+ GB decoded, in kept/{mode}/", opening)
        assert re.match(rf"  cache: 12 images, \S+ GB decoded, in kept/{mode}/", of_val)
        assert made.startswith("  cache: built in ")
        assert made_too.startswith("  cache: built in ")
    for name in ("none", "dry", "disk_in_workers", "device_in_workers"):
        assert messages[name] == []
    assert sorted(path.name for path in (home / "kept").iterdir()) == ["auto", "device", "disk"]


def test_later_process_reuses_the_cache_and_names_a_damaged_one(messages, home: Path) -> None:
    store = home / "kept/damaged"
    shutil.copytree(home / "kept/disk", store)
    train = builders.folder(str(home / "images")).train
    folder = decoded_cache._folder(train, store)
    flip_a_byte(folder, train, uncompared(train))
    done = trained(home, LATER)
    assert done.returncode == 1
    assert "cache:" not in done.stdout
    damaged = folder.relative_to(home)
    assert (
        done.stderr == f"error: cache: {damaged} is damaged; remove it, the next run rebuilds it\n"
    )
    assert only_run(home, "damaged").result["status"] == "failed"
    students = [only_run(home, name).student.read_bytes() for name in ("none", "again")]
    assert students[0] == students[1]


# --- decoders ------------------------------------------------------------------------------------

two_decoders = pytest.mark.skipif(image_files.codec is None, reason="torchcodec is an extra")


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


FORMS: dict[str, tuple[str, dict[str, Any]]] = {
    "baseline": ("RGB", {}),
    "progressive": ("RGB", {"progressive": True}),
    "4:4:4": ("RGB", {"subsampling": 0}),
    "4:2:2": ("RGB", {"subsampling": 1}),
    "rgb inside": ("RGB", {"keep_rgb": True}),
    "restarts": ("RGB", {"restart_marker_rows": 1}),
    "coarse": ("RGB", {"quality": 5}),
    "grey": ("L", {}),
    "cmyk": ("CMYK", {}),
    "turned by a quarter": ("RGB", {"exif": turned(6)}),
    "upside down": ("RGB", {"exif": turned(3)}),
}


def picture(path: Path, mode: str = "RGB", **form: Any) -> Path:
    """A photograph with edges and noise, of odd sides."""
    rows, columns = np.mgrid[:61, :83]
    base = np.stack([columns * 3, rows * 2, rows + columns], axis=-1) % 256
    grain = np.random.default_rng(0).integers(0, 64, (61, 83, 3))
    image = Image.fromarray((0.75 * base + grain).astype(np.uint8)).convert(mode)
    image.save(path, "JPEG", **form)
    return path


@two_decoders
@pytest.mark.parametrize(("mode", "form"), FORMS.values(), ids=FORMS)
def test_torchcodec_and_pillow_decode_equal_pixels(
    mode: str, form: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = picture(tmp_path / "a.jpg", mode, **form)
    fast = decoded(path)
    monkeypatch.setattr(image_files, "codec", None)
    plain = decoded(path)
    assert plain.shape == (3, 61, 83)
    assert torch.equal(fast, plain)


@pytest.mark.parametrize("decoder", [pytest.param("torchcodec", marks=two_decoders), "pillow"])
@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
def test_decoders_refuse_truncated_images(
    progressive: bool,
    share: float,
    decoder: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = picture(tmp_path / "a.jpg", progressive=progressive)
    cut_off(path, int(share * path.stat().st_size))
    if decoder == "pillow":
        monkeypatch.setattr(image_files, "codec", None)
    line = refused(partial(decoded, path))
    assert line.startswith(f"{path}: cannot be read as an image")
