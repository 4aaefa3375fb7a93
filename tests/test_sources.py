"""Image sources: files, concatenated sources, splits and device decoding."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from funmatch.data import image_files
from funmatch.data.batch import PlannedBatch
from funmatch.data.datasets import builders, torchvision_layouts
from funmatch.data.file_list import DataNotFoundError, FileList
from funmatch.data.image_files import ImageFiles, decoded
from funmatch.data.sources import ArraySource, ConcatSource, Splits
from funmatch.tasks.classification.metrics import Fidelity
from funmatch.views.image_views import Placement
from funmatch.views.recipes import Shared
from toys import MixedSizes, array_source, image_stream
from trees import plant, refused

RECIPE = Shared(name="function_matching", crop="inception", mixing=True, min_area=0.05)


def test_image_files_return_the_pixels_of_their_files(tmp_path: Path) -> None:
    root = plant(tmp_path, "pets")
    listing = torchvision_layouts.pets(root).test
    source = ImageFiles(listing, ("a", "b", "c"))
    indices = np.array([7, 0, 7])
    heights, widths = source.sizes(indices)
    for row, image in enumerate(source.images(indices)):
        expected = np.asarray(Image.open(root / listing.names[indices[row]]).convert("RGB"))
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)
        assert image.shape[1:] == (heights[row], widths[row])
    assert source.labels(indices).tolist() == listing.labels[indices].tolist()
    assert [source.name(i) for i in range(len(source))] == list(listing.names)


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_decoded_images_of_any_mode_are_rgb(mode: str, tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 5), (200, 100, 50)).convert(mode)
    path = tmp_path / "wrong_suffix.jpg"  # what a file is, its content tells
    image.save(path, "TIFF" if mode == "CMYK" else "PNG")
    pixels = decoded(path)
    assert pixels.shape == (3, 5, 6)
    assert pixels.dtype == torch.uint8
    assert torch.equal(pixels[:, 0, 0], torch.tensor(image.convert("RGB").getpixel((0, 0))))


def test_palette_with_transparency_decodes_without_warning(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    assert decoded(tmp_path / "a.png")[:, 0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("content", [b"", b"no image", None], ids=["empty", "text", "truncated"])
def test_damaged_image_is_named(content: bytes | None, tmp_path: Path) -> None:
    root = plant(tmp_path, "pets")
    source = builders.pets(str(root)).test
    path = root / "oxford-iiit-pet/images/Bengal_12.jpg"
    path.write_bytes(path.read_bytes()[:400] if content is None else content)
    row = torchvision_layouts.pets(root).test.names.index("oxford-iiit-pet/images/Bengal_12.jpg")
    line = refused(lambda: source.images(np.array([0, row])))
    assert line.startswith(f"{path}: cannot be read as an image")
    path.unlink()
    assert f"{path}: " in refused(lambda: source.sizes(np.array([row])))


def test_image_files_can_be_pickled(tmp_path: Path) -> None:
    source = builders.food101(str(plant(tmp_path, "food101"))).train
    other = pickle.loads(pickle.dumps(source))
    indices = np.array([3, 20])
    for here, there in zip(source.images(indices), other.images(indices), strict=True):
        assert torch.equal(here, there)
    assert other.fingerprint() == source.fingerprint()
    assert other.classes == source.classes


def test_pickled_image_files_take_65_bytes_per_name() -> None:
    names = tuple(f"train/n{i % 1000:08d}/n{i % 1000:08d}_{i}.JPEG" for i in range(50_000))
    source = ImageFiles(FileList(Path("x"), names, np.zeros(50_000, dtype=np.int64)), ("a",))
    assert len(pickle.dumps(source)) < 65 * len(names)
    assert source.name(49_999) == names[-1]


def test_fingerprint_depends_on_names_sizes_and_labels(tmp_path: Path) -> None:
    root = plant(tmp_path, "pets")
    listing = torchvision_layouts.pets(root).test

    def fingerprint_of(listing: FileList) -> str:
        return ImageFiles(listing, ()).fingerprint()

    before = fingerprint_of(listing)
    assert fingerprint_of(torchvision_layouts.pets(root).test) == before
    assert fingerprint_of(FileList(root, listing.names, 1 - listing.labels)) != before
    assert fingerprint_of(FileList(root, listing.names, None)) != before
    assert fingerprint_of(listing.take(np.arange(len(listing))[::-1])) != before
    with (root / listing.names[0]).open("ab") as file:
        file.write(b"x")
    assert fingerprint_of(listing) != before


def test_concat_source_appends_its_sources() -> None:
    tensors, mixed = array_source(5), MixedSizes(4)
    joined = ConcatSource([tensors, mixed, array_source(3, side=20, seed=9)])
    assert len(joined) == 12
    assert joined.labels(np.array([0])) is None
    indices = np.array([8, 0, 4, 5, 11, 0])
    expected = [
        mixed.images(np.array([3])).image(0),
        *tensors.images(np.array([0, 4])),
        mixed.images(np.array([0])).image(0),
        array_source(3, side=20, seed=9).images(np.array([2])).image(0),
        tensors.images(np.array([0])).image(0),
    ]
    heights, widths = joined.sizes(indices)
    for row, image in enumerate(joined.images(indices)):
        assert torch.equal(image, expected[row])
        assert image.shape[1:] == (heights[row], widths[row])
    batch = image_stream(joined, RECIPE, sides={"student": 8}, batch_size=12, seed=0)[0].mixed()
    assert sorted(batch.index.tolist()) == list(range(12))
    assert batch.label is None
    assert joined.fingerprint() != ConcatSource([mixed, tensors]).fingerprint()


def test_concat_source_refuses_different_channels() -> None:
    grey = ArraySource(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), None, [])
    with pytest.raises(ValueError, match=r"\[3, 1\] channels cannot be concatenated"):
        ConcatSource([array_source(3), grey])


def test_unknown_split_is_refused_with_the_choices() -> None:
    splits = Splits(array_source(), array_source(), array_source(), {"v2": array_source(4)})
    assert len(splits.part("v2")) == 4
    with pytest.raises(ValueError, match="split=real: this data set has train, val, test, v2"):
        splits.part("real")


@pytest.mark.parametrize("several", [False, True], ids=["one label", "several labels"])
def test_fidelity_counts_only_labelled_images(several: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 40, 5, generator=generator)
    label = torch.randint(0, 5, (40,), generator=generator)
    if several:
        label = torch.rand(40, 5, generator=generator) < 0.3
        label[:3] = False
    right: dict[str, list[bool]] = {"student_top1": [], "teacher_top1": []}
    for row in range(40):
        true = set(label[row].nonzero().flatten().tolist()) if several else {label[row].item()}
        if true:
            right["student_top1"].append(int(student[row].argmax()) in true)
            right["teacher_top1"].append(int(teacher[row].argmax()) in true)
    fidelity = Fidelity()
    for rows in (slice(0, 3), slice(3, 27), slice(27, 40)):  # the first batch may have none at all
        fidelity.update(student[rows], teacher[rows], label[rows])
    metrics = fidelity.compute()
    for name, values in right.items():
        assert metrics[name] == pytest.approx(np.mean(values))
    agree = (student.argmax(-1) == teacher.argmax(-1)).float().mean()
    assert metrics["agreement_top1"] == pytest.approx(
        agree.item()
    )  # of all, with a label or without


@pytest.mark.skipif(image_files.codec is None, reason="torchcodec is not there")
def test_decoding_on_the_device_gives_the_same_images(tmp_path: Path) -> None:
    """Here the device is the CPU, whose pixels are equal; those of a GPU may differ."""
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 20, 3), np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    picture.save(tmp_path / "a.jpg")
    picture.save(tmp_path / "b.png")
    picture.convert("L").save(tmp_path / "c.jpg", progressive=True)
    picture.convert("CMYK").save(tmp_path / "d.jpg")
    picture.save(tmp_path / "e.jpg", exif=turned)
    names = tuple(sorted(path.name for path in tmp_path.iterdir()))
    source = ImageFiles(FileList(tmp_path, names, None), ())
    every = np.arange(len(names))
    files = source.encoded(every)
    assert [file.ndim for file in files] == [1, 3, 1, 3, 3]  # what only Pillow can, it does
    device_images = image_files.on_device(files, torch.device("cpu"))
    for here, there in zip(source.images(every), device_images, strict=True):
        assert torch.equal(here, there)
    here, late = (
        image_stream(
            source, RECIPE, sides={"student": 8}, batch_size=5, seed=0, placement=placement
        )[3]
        for placement in (Placement(), Placement("device", decode_on="device"))
    )
    assert isinstance(late, PlannedBatch)
    late = late.rendered(image_files.on_device(late.files, torch.device("cpu")))
    assert torch.equal(late.views["student"], here.views["student"])
    with pytest.raises(DataNotFoundError, match="decode=host names the file"):
        image_files.on_device([files[0][:100]], torch.device("cpu"))
