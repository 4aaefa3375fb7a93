"""Data sets on disk, compared with torchvision; missing and damaged files."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torchvision import datasets as official

import trees
from funmatch.data.datasets import builders, imagenet, torchvision_layouts
from funmatch.data.file_list import DatasetFiles
from funmatch.data.image_files import ImageFiles
from funmatch.data.sources import Splits
from funmatch.runtime.allowlist import instantiate
from funmatch.views.evaluation_views import EvaluationStream, EvaluationViews
from funmatch.views.recipes import Shared
from toys import image_stream
from trees import pairs, parts, plant, refused

RECIPE = Shared(name="function_matching", crop="inception", mixing=True, min_area=0.05)
NAMES = ("flowers102", "pets", "food101", "sun397", "imagenet")
# Sizes of the small trees: train, val, test.
SIZES = {
    "flowers102": (10, 10, 15),
    "pets": (27, 3, 12),
    "food101": (27, 3, 12),
    "sun397": (21, 3, 6),
    "imagenet": (59, 1, 12),
}
READ: dict[str, Callable[[Path], DatasetFiles]] = {
    "flowers102": torchvision_layouts.flowers102,
    "pets": torchvision_layouts.pets,
    "food101": torchvision_layouts.food101,
    "sun397": torchvision_layouts.sun397,
    "imagenet": imagenet.imagenet,
}


@pytest.mark.parametrize("name", NAMES)
def test_splits_have_their_sizes_and_are_disjoint(name: str, tmp_path: Path) -> None:
    files = READ[name](plant(tmp_path, name))
    assert tuple(map(len, parts(files))) == SIZES[name]
    every = pairs(*parts(files))
    assert len({path for path, _ in every}) == sum(SIZES[name])
    assert {label for _, label in pairs(files.train)} == set(range(5 if "flow" in name else 3))
    assert max(label for _, label in every) < len(files.classes)


def flowers_parts(root: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, official.Flowers102]:
    files = {
        key: (file, trees.md5(root / "flowers-102" / file) if file.endswith("mat") else "")
        for key, (file, _) in official.Flowers102._file_dict.items()
    }
    monkeypatch.setattr(official.Flowers102, "_file_dict", files)
    return {part: official.Flowers102(root, part) for part in ("train", "val", "test")}


def test_flowers102_equals_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = plant(tmp_path, "flowers102")
    files = torchvision_layouts.flowers102(root)
    for part, theirs in flowers_parts(root, monkeypatch).items():
        ours = pairs(getattr(files, part))
        assert ours == list(zip(map(str, theirs._image_files), theirs._labels, strict=True))
    assert builders.flowers102(str(root)).train.classes == tuple(official.Flowers102.classes)


def test_pets_equals_torchvision(tmp_path: Path) -> None:
    root = plant(tmp_path, "pets")
    files = torchvision_layouts.pets(root)
    rest = official.OxfordIIITPet(root, "trainval")
    test = official.OxfordIIITPet(root, "test")
    assert list(files.classes) == rest.classes == ["Abyssinian", "American Bulldog", "Bengal"]
    assert sorted(pairs(files.train, files.val)) == sorted(
        zip(map(str, rest._images), rest._labels, strict=True)
    )
    assert pairs(files.test) == list(zip(map(str, test._images), test._labels, strict=True))


def test_food101_equals_torchvision(tmp_path: Path) -> None:
    root = plant(tmp_path, "food101")
    files = torchvision_layouts.food101(root)
    for ours, part in (((files.train, files.val), "train"), ((files.test,), "test")):
        theirs = official.Food101(root, part)
        assert list(files.classes) == theirs.classes == ["apple_pie", "sushi", "waffles"]
        expected = zip(map(str, theirs._image_files), theirs._labels, strict=True)
        assert sorted(pairs(*ours)) == sorted(expected)


def test_sun397_equals_torchvision(tmp_path: Path) -> None:
    root = plant(tmp_path, "sun397")
    files, theirs = torchvision_layouts.sun397(root), official.SUN397(root)
    assert list(files.classes) == theirs.classes == ["abbey", "bar", "church/outdoor"]
    expected = zip(map(str, theirs._image_files), theirs._labels, strict=True)
    assert sorted(pairs(*parts(files))) == sorted(expected)


def test_imagenet_equals_torchvision(tmp_path: Path) -> None:
    root = plant(tmp_path, "imagenet")
    files = imagenet.imagenet(root)
    torch.save(({wnid: (wnid,) for wnid in trees.WNIDS}, []), root / "meta.bin")
    assert sorted(pairs(files.train, files.val)) == sorted(official.ImageNet(root, "train").samples)
    assert sorted(pairs(files.test)) == sorted(official.ImageNet(root, "val").samples)
    assert files.classes == trees.WNIDS


@pytest.mark.parametrize("name", NAMES)
def test_data_set_feeds_training_and_evaluation_streams(name: str, tmp_path: Path) -> None:
    root = plant(tmp_path, name)
    splits: Splits = getattr(builders, name)(str(root))
    listing = READ[name](root).train
    sides = {"student": 8, "teacher": 6}
    batch = image_stream(splits.train, RECIPE, sides=sides, batch_size=8, seed=1)[5]
    assert batch.views["student"].shape == (9, 3, 8, 8)
    assert batch.label is not None
    assert batch.label.tolist() == [listing.labels[i] for i in batch.index.tolist()]

    batch = EvaluationStream(EvaluationViews(splits.part("test"), 9, 8), batch_size=4)[0]
    assert batch.views["student"].shape == (4, 3, 8, 8)
    assert len(splits.test.classes) == len(splits.train.classes)


# Classes, train_size, side, batch size, epochs: section 7 and 8 of the paper.
PAPER = {
    "flowers102": (102, 1020, 128, 512, 10_000),
    "pets": (37, 3312, 128, 512, 1000),
    "food101": (101, 68_175, 128, 512, 100),
    "sun397": (397, 76_128, 128, 512, 100),
    "imagenet": (1000, 1_255_544, 224, 4096, 300),
}


@pytest.mark.parametrize("name", NAMES)
def test_data_configuration_also_serves_as_transfer_set(name: str, compose, tmp_path: Path) -> None:
    root = plant(tmp_path, name)
    folder = root.rename(tmp_path / "imagenet").parent if name == "imagenet" else root
    cfg = compose(f"data={name}", f"transfer=[{name}]", f"paths.data={folder}")
    data = OmegaConf.to_container(cfg.data, resolve=True)
    assert data == OmegaConf.to_container(cfg.transfer[name], resolve=True)
    facts = (data["classes"], data["train_size"], data["side"])
    assert (*facts, data["suggested"]["batch_size"], data["suggested"]["epochs"]) == PAPER[name]
    splits = instantiate(cfg.data.splits)
    assert tuple(len(splits.part(part)) for part in ("train", "val", "test")) == SIZES[name]

    # Each has values of its own.
    cfg = compose(f"transfer={name}", f"transfer.{name}.root=elsewhere", "data=digits")
    assert cfg.transfer[name].splits.root == "elsewhere"


BASES = {
    "flowers102": "flowers-102",
    "pets": "oxford-iiit-pet",
    "food101": "food-101",
    "sun397": "SUN397",
    "imagenet": "train",
}


@pytest.mark.parametrize("name", NAMES)
def test_missing_data_set_is_one_line(name: str, tmp_path: Path) -> None:
    line = refused(lambda: getattr(builders, name)(str(tmp_path / "nowhere")))
    assert line.startswith(
        f"root={tmp_path}/nowhere: folder {BASES[name]} does not exist; give the right"
    )
    assert "download=true" in line
    (tmp_path / BASES[name]).mkdir()
    line = refused(lambda: getattr(builders, name)(str(tmp_path)))
    assert line.startswith(f"root={tmp_path}: folder {BASES[name]} is empty; ")


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        (
            "flowers102",
            "flowers-102/jpg/image_00003.jpg",
            "1 of the 35 images listed in flowers-102/setid",
        ),
        (
            "pets",
            "oxford-iiit-pet/images/Bengal_0.jpg",
            "1 of the 42 images listed in oxford-iiit-pet/ann",
        ),
        (
            "food101",
            "food-101/images/sushi/1003.jpg",
            "1 of the 42 images listed in food-101/meta",
        ),
    ],
)
def test_missing_images_are_counted_and_named(
    name: str, file: str, message: str, tmp_path: Path
) -> None:
    root = plant(tmp_path, name)
    (root / file).unlink()
    line = refused(lambda: READ[name](root))
    assert line.startswith(f"root={root}: {message}")
    assert f"missing, first {file}; extract its archive again" in line


def test_missing_image_folder_is_reported(tmp_path: Path) -> None:
    root = plant(tmp_path, "flowers102")
    (root / "flowers-102/jpg").rename(root / "elsewhere")
    assert "35 of the 35 images" in refused(lambda: torchvision_layouts.flowers102(root))


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("flowers102", "flowers-102/imagelabels.mat"),
        ("flowers102", "flowers-102/setid.mat"),
        ("pets", "oxford-iiit-pet/annotations/trainval.txt"),
        ("pets", "oxford-iiit-pet/annotations/test.txt"),
        ("food101", "food-101/meta/train.json"),
        ("food101", "food-101/meta/test.json"),
        ("sun397", "SUN397/ClassName.txt"),
    ],
)
@pytest.mark.parametrize("content", ["", "truncated", "strange\n"])
def test_damaged_or_missing_list_is_named(
    name: str, file: str, content: str, tmp_path: Path
) -> None:
    root = plant(tmp_path, name)
    path = root / file
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3] if content == "truncated" else content.encode())
    line = refused(lambda: READ[name](root))
    if not (name == "sun397" and content == "truncated"):  # which is a shorter list of classes
        assert line.startswith(f"root={root}: {file} is damaged (")
    path.unlink()
    assert refused(lambda: READ[name](root)).startswith(
        f"root={root}: file {file} does not exist; "
    )


def test_inconsistent_lists_are_refused(tmp_path: Path) -> None:
    root = plant(tmp_path, "flowers102")
    trees.savemat(root / "flowers-102/imagelabels.mat", {"labels": np.array([[1, 2, 3]])})
    line = refused(lambda: torchvision_layouts.flowers102(root))
    assert "setid.mat is damaged (ValueError: trnid names images" in line

    root = plant(tmp_path, "food101")
    path = root / "food-101/meta/test.json"
    lists = json.loads(path.read_text())
    del lists["sushi"]
    path.write_text(json.dumps(lists))
    assert "test.json is damaged" in refused(lambda: torchvision_layouts.food101(root))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda r: (r / "train" / trees.WNIDS[1]).rename(r / "gone"),
            f"val/{trees.WNIDS[1]} is not a c",
        ),
        (
            lambda r: (r / "val" / trees.WNIDS[1]).rename(r / "gone"),
            "1 of the 3 class folders of val",
        ),
        (
            lambda r: (r / "val").rename(r / "gone"),
            "folder val does not exist; give the right root, or copy",
        ),
        (
            lambda r: [p.unlink() for p in (r / "train" / trees.WNIDS[0]).iterdir()],
            "contains no images",
        ),
        (
            lambda r: (
                [p.rename(r / "val" / p.name) for p in list((r / "val").rglob("*.JPEG"))]
                and [p.rmdir() for p in (r / "val").iterdir() if p.is_dir()]
            ),
            "the images in val are not sorted into class folders; unpack ILSVRC2012_img_val.tar",
        ),
    ],
)
def test_damaged_imagenet_layout_is_one_line(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    root = plant(tmp_path, "imagenet")
    damage(root)
    line = refused(lambda: imagenet.imagenet(root))
    assert line.startswith(f"root={root}: ")
    assert message in line


def test_imagenet_v2_and_real_labels_are_read(tmp_path: Path) -> None:
    root = plant(tmp_path, "imagenet")
    trees.imagenet_v2(tmp_path / "v2")
    rows = [[], [0, 2], [1], *([[0]] * 9)]
    (tmp_path / "real.json").write_text(json.dumps(rows))
    splits = builders.imagenet(str(root), str(tmp_path / "v2"), str(tmp_path / "real.json"))

    v2 = splits.part("v2")
    assert v2.labels(np.arange(6)).tolist() == [0, 0, 1, 1, 2, 2]
    assert len(v2.images(np.arange(6))) == 6

    real = splits.part("real")
    assert isinstance(real, ImageFiles)
    labels = real.labels(np.arange(12))
    assert labels.dtype == torch.bool
    assert labels.shape == (12, 3)
    for i in range(12):  # the row is the number in the file's name, whatever its folder
        number = int(real.name(i)[-13:-5]) - 1
        assert labels[i].nonzero().flatten().tolist() == rows[number]
    assert len(EvaluationStream(EvaluationViews(real, 9, 8), batch_size=5)[0].label) == 5


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[[0]]", "1 rows for 12 images"),
        ("[", "JSONDecodeError"),
        (f"{[[3]] * 12}", "beyond 0 to 2"),
    ],
)
def test_damaged_real_labels_are_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "real.json"
    path.write_text(content)
    line = refused(lambda: imagenet.imagenet(plant(tmp_path, "imagenet"), real=path))
    assert line.startswith(f"real={path}: real.json is damaged (")
    assert message in line


def test_damaged_imagenet_v2_is_refused(tmp_path: Path) -> None:
    root, v2 = plant(tmp_path, "imagenet"), tmp_path / "v2"
    assert f"v2={v2}: no such folder" in refused(lambda: imagenet.imagenet(root, v2))
    trees.imagenet_v2(v2)
    (v2 / "2").rename(v2 / "3")
    assert f"v2={v2}: 3 is not a class from 0 to 2" in refused(lambda: imagenet.imagenet(root, v2))
    (v2 / "3").rename(tmp_path / "gone")
    assert f"v2={v2}: some of the 3 class folders" in refused(lambda: imagenet.imagenet(root, v2))
