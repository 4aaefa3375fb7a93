"""Folders of images: class folders, split folders, label CSVs and errors."""

import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tarfile import open as tar

import pytest

import trees
from commands import ROOT, environment
from funmatch.data.datasets import builders, image_folder
from funmatch.runtime.allowlist import instantiate
from funmatch.views.evaluation_views import EvaluationStream, EvaluationViews
from funmatch.views.recipes import Shared
from toys import image_stream
from trees import pairs, parts, refused

RECIPE = Shared(name="function_matching", crop="inception", mixing=True, min_area=0.05)


def test_folder_with_splits_and_classes_is_read(tmp_path: Path) -> None:
    for part, each in (("train", 10), ("val", 3), ("test", 2)):
        trees.class_folders(tmp_path / part, ("cat", "dog"), each)
    files = image_folder.folder(tmp_path)
    assert files.classes == ("cat", "dog")
    for part, each in zip(parts(files), (10, 3, 2), strict=True):
        assert part.labels.tolist() == [0] * each + [1] * each
        assert all(("cat", "dog")[label] in name for name, label in pairs(part))


def test_missing_val_or_test_is_split_from_train(tmp_path: Path) -> None:
    trees.class_folders(tmp_path / "train", ("cat", "dog"), 10)
    files = image_folder.folder(tmp_path)
    assert list(map(len, parts(files))) == [18, 2, 2]
    assert files.val.labels.tolist() == [0, 1]  # stratified
    assert files.test.names == files.val.names
    trees.class_folders(tmp_path / "test", ("cat",), 3)
    assert list(map(len, parts(image_folder.folder(tmp_path)))) == [18, 2, 3]


def test_class_folders_are_split_into_train_val_and_test(tmp_path: Path) -> None:
    trees.class_folders(tmp_path, ("cat", "dog"), 10, suffix=".png")
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "cat" / "._cat_0.png").write_text("what a Mac leaves in archives")
    (tmp_path / ".cache").mkdir()
    files = image_folder.folder(tmp_path)
    assert list(map(len, parts(files))) == [16, 2, 2]
    assert len(set().union(*(part.names for part in parts(files)))) == 20
    source = builders.folder(str(tmp_path)).train
    batch = image_stream(source, RECIPE, sides={"student": 8}, batch_size=4, seed=0)[0]
    assert batch.label is not None


def test_folder_of_plain_images_has_no_labels(tmp_path: Path) -> None:
    for number in range(25):
        trees.photograph(tmp_path / f"{number}.jpg", number=number)
    files = image_folder.folder(tmp_path)
    assert [len(part) for part in parts(files)] == [23, 2, 2]
    assert files.train.labels is None
    assert files.classes == ()
    assert set(files.train.names) | set(files.val.names) == {f"{i}.jpg" for i in range(25)}
    splits = builders.folder(str(tmp_path), classes=1000)  # the teacher's
    assert len(splits.train.classes) == 1000
    batch = image_stream(splits.train, RECIPE, sides={"student": 8}, batch_size=4, seed=0)[0]
    assert batch.label is None
    for number in range(3):
        trees.photograph(tmp_path / "few" / f"{number}.jpg", number=number)
    assert [len(part) for part in parts(image_folder.folder(tmp_path / "few"))] == [2, 1, 1]


def test_unlabelled_images_may_have_split_folders(tmp_path: Path) -> None:
    for part, each in (("train", 12), ("val", 3)):
        for number in range(each):
            trees.photograph(tmp_path / part / f"{number}.jpg", number=number)
    files = image_folder.folder(tmp_path)
    assert [len(part) for part in parts(files)] == [12, 3, 3]
    assert files.val.labels is None


def test_labels_none_reads_every_image_without_labels(tmp_path: Path) -> None:
    trees.class_folders(tmp_path, ("cat", "dog"), 5)
    trees.photograph(tmp_path / "beside.jpg")
    files = image_folder.folder(tmp_path, labels="none")
    assert [len(part) for part in parts(files)] == [10, 1, 1]
    assert files.train.labels is None


CSV = "file,source,imagenet_label0\nb.jpg,x,4\nc.jpg,x,2\nimages/a.jpg,x,0\n"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for name in "abcd":
        trees.photograph(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "labels.csv").write_text(CSV)
    return tmp_path


def test_label_csv_selects_images_and_labels(table: Path, tmp_path: Path) -> None:
    files = image_folder.folder(table, "labels.csv", split=[0, 0, 1])
    assert [len(part) for part in parts(files)] == [0, 0, 3]
    assert files.test.names == ("images/a.jpg", "images/b.jpg", "images/c.jpg")
    assert files.test.labels.tolist() == [0, 4, 2]
    assert len(files.classes) == 5  # the largest label + 1
    assert (
        len(image_folder.folder(table, "labels.csv", split=[0, 0, 1], classes=1000).classes) == 1000
    )
    splits = builders.folder(str(table), str(table / "labels.csv"), split=[0, 0, 1])
    batch = EvaluationStream(EvaluationViews(splits.test, 9, 8), batch_size=4)[0]
    assert batch.label.tolist() == [0, 4, 2]

    (table / "two.csv").write_text("file,other_label,label\na.jpg,7,1\n")
    two = partial(image_folder.folder, table, "two.csv", split=[0, 0, 1])
    assert two().test.labels.tolist() == [1]
    assert two(label_column="other_label").test.labels.tolist() == [7]


def test_label_csv_applies_to_split_folders(tmp_path: Path) -> None:
    for part in ("train", "val", "test"):
        for number in range(3):
            trees.photograph(tmp_path / part / f"{part}{number}.jpg")
    rows = [f"{part}{n}.jpg,{n}\n" for part in ("train", "val", "test") for n in range(3)]
    (tmp_path / "labels.csv").write_text("file,label\n" + "".join(rows))
    files = image_folder.folder(tmp_path, "labels.csv")
    assert [part.names[0] for part in parts(files)] == [
        "train/train0.jpg",
        "val/val0.jpg",
        "test/test0.jpg",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("file,label\na.jpg,cat\n", "labels.csv is damaged (ValueError: invalid literal for int()"),
        ("file,label\na.jpg\n", "labels.csv is damaged (TypeError"),
        ("file,label\n", "labels.csv is damaged (ValueError: no rows"),
        ("file,label\na.jpg,-1\n", "a label below 0"),
        ("", "no column whose name contains label; name one with label_column="),
        ("file,class\na.jpg,1\n", "no column whose name contains label"),
        ("file,label\na.jpg,1\nz.jpg,1\n", "1 of its 2 images are not below root="),
        ("file,label\na.jpg,1\nimages/a.jpg,1\n", "names an image twice"),
        ("file,label\na.jpg,9\n", "label 9 is too large for classes=5"),
        ("file,label\ne.jpg,1\n", "e.jpg is ambiguous: images/e.jpg or more/e.jpg"),
    ],
)
def test_wrong_label_csv_is_refused_in_one_line(content: str, message: str, table: Path) -> None:
    for parent in ("images", "more"):
        trees.photograph(table / parent / "e.jpg")
    (table / "labels.csv").write_text(content)
    line = refused(lambda: image_folder.folder(table, "labels.csv", classes=5))
    assert line.startswith("labels=labels.csv: ")
    assert message in line


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda r: None, "no such folder"),
        (lambda r: r.mkdir(), "contains no images"),
        (lambda r: r.write_text("x"), "is a file; give the folder with the images"),
        (
            lambda r: trees.class_folders(r, ("images",), 3),
            "images is the only class folder; use all",
        ),
        (
            lambda r: (trees.class_folders(r, ("a", "b"), 3), (r / "c").mkdir()),
            "c contains no images; add some or remove it",
        ),
        (
            lambda r: (trees.class_folders(r, ("a", "b"), 3), trees.photograph(r / "x.jpg")),
            "the image x.jpg is beside the folder a; use all images without labels with",
        ),
        (
            lambda r: (
                trees.class_folders(r / "train", ("a", "b"), 3),
                trees.class_folders(r / "val", ("a", "c"), 3),
            ),
            "val/c is a class that train does not have",
        ),
        (
            lambda r: (trees.class_folders(r / "train", ("a", "b"), 3), (r / "val").mkdir()),
            "val/ contains no images; add some or remove it",
        ),
        (
            lambda r: (
                trees.class_folders(r / "train", ("a", "b"), 3),
                trees.photograph(r / "val" / "x.jpg"),
            ),
            "val/ has no class folders, others have",
        ),
        (lambda r: trees.photograph(r / "x.jpg"), "1 images are too few to split"),
    ],
)
def test_unusable_folder_is_refused_in_one_line(
    make: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    root = tmp_path / "mine"
    make(root)
    line = refused(lambda: image_folder.folder(root))
    assert line.startswith(f"root={root}: ")
    assert message in line


def test_archive_is_refused_with_the_extract_command(tmp_path: Path) -> None:
    with tar(tmp_path / "mine.tar", "w"):
        pass
    line = refused(lambda: image_folder.folder(tmp_path / "mine.tar"))
    assert line.endswith(f"is an archive; extract it first: tar xf {tmp_path}/mine.tar")


@pytest.mark.parametrize("split", [[0.8, 0.1], [0.8, 0.3, 0.1], [1.1, -0.2, 0.1], [0.9, 0, 0.1]])
def test_wrong_split_shares_are_refused(split: list[float], tmp_path: Path) -> None:
    trees.class_folders(tmp_path, ("cat", "dog"), 10)
    with pytest.raises(ValueError, match="split="):
        image_folder.folder(tmp_path, split=split)


def test_classes_other_than_the_class_folders_are_refused(tmp_path: Path) -> None:
    trees.class_folders(tmp_path, ("cat", "dog"), 3)
    assert "classes=5: " in refused(lambda: image_folder.folder(tmp_path, classes=5))


def test_facts_give_classes_train_size_and_digest(table: Path) -> None:
    trees.class_folders(table / "mine", ("cat", "dog"), 10)
    before = image_folder.facts(str(table / "mine"))
    assert (before["classes"], before["train_size"]) == (2, 16)
    assert len(before["digest"]) == 8
    assert image_folder.facts(str(table / "mine"), "none")["classes"] is None
    facts = image_folder.facts(str(table), "labels.csv", None, [0, 0, 1])
    assert (facts["classes"], facts["train_size"]) == (5, 0)
    assert facts["digest"] != before["digest"]


def test_digest_depends_on_the_images(tmp_path: Path) -> None:
    seen = set()
    for number in range(3):
        trees.class_folders(tmp_path / str(number), ("cat", "dog"), 10)
        if number:
            trees.photograph(tmp_path / str(number) / "cat" / "cat_0.jpg", label=7, number=number)
        seen.add(image_folder.facts(str(tmp_path / str(number)))["digest"])
    assert len(seen) == 3


def test_folder_configuration_contains_classes_sizes_and_digest(compose, tmp_path: Path) -> None:
    trees.class_folders(tmp_path / "mine", ("cat", "dog"), 10)
    data = compose("data=folder", f"data.root={tmp_path}/mine").data
    assert (data.classes, data.train_size, data.suggested.batch_size) == (2, 16, 16)
    assert len(data.digest) == 8
    splits = instantiate(data.splits)
    assert (len(splits.train), len(splits.val), len(splits.test)) == (16, 2, 2)

    for number in range(20):
        trees.photograph(tmp_path / "plain" / f"{number}.jpg", number=number)
    data = compose("data=folder", f"data.root={tmp_path}/plain", "data.split=[0.5,0.5,0]").data
    assert (data.classes, data.train_size) == (10, 10)  # the classes are those of the teacher
    assert len(instantiate(data.splits).train.classes) == 10


def test_listing_images_does_not_import_torch(tmp_path: Path) -> None:
    trees.class_folders(tmp_path, ("cat", "dog"), 10)
    code = (
        "import sys\n"
        "from funmatch.data.datasets import image_folder, imagenet, torchvision_layouts\n"
        "print(image_folder.facts(sys.argv[1])['train_size'], 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=environment(tmp_path, PYTHONPATH=str(ROOT / "src")),
        capture_output=True,
        text=True,
    )
    assert done.stdout == "16 False\n", done.stderr
