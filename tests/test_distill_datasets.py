"""Distillation by commands on every data set, intact and damaged."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import small
import trees
from commands import command
from funmatch.data.datasets import torchvision_layouts
from funmatch.data.file_list import FileList
from small import SMALL, STUDENT, TEACHER, experiment, only_run

pytestmark = pytest.mark.slow

STEPS = 3
# Training images of the small trees.
SOURCES = {"flowers102": 6, "pets": 27, "food101": 27, "sun397": 21, "imagenet": 59}
FOLDERS = {"by_split": 36, "by_class": 18, "flat": 36}
TRANSFERS = {
    "from_food101": ["food101"],
    "from_both": ["food101", "flowers102"],
    "from_folder": ["folder"],
}


def sized(name: str) -> dict[str, Any]:
    """The settings of a data set that fit its small tree."""
    return {"classes": 3, "train_size": SOURCES[name]}


def truncate(image: Path) -> None:
    image.write_bytes(image.read_bytes()[: image.stat().st_size * 2 // 3])


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trees of all sources, where commands look for them, and a teacher of three classes."""
    home = tmp_path_factory.mktemp("scale")
    data = home / "data"
    trees.flowers102(data, classes=3)
    for name in ("pets", "food101", "sun397"):
        trees.plant(data, name).rename(data / "made")
        (layout,) = (data / "made").iterdir()
        layout.rename(data / layout.name)
        (data / "made").rmdir()
    trees.plant(data, "imagenet")
    small.split_folder(home / "by_split")
    small.photographs(home / "by_class", 10)
    small.photographs(home / "flat", 20, flat=True)
    for name in ("by_class", "flat"):
        small.table(home / name)
    small.finetuned(home, home / "by_split")
    return home


def blind(home: Path) -> FileList:
    """Pets whose training images cannot be opened: those images."""
    root = home / "blind"
    if not root.exists():
        shutil.copytree(home / "data/oxford-iiit-pet", root / "oxford-iiit-pet")
        for name in torchvision_layouts.pets(root).train.names:
            (root / name).write_bytes(b"")
    return torchvision_layouts.pets(root).train


def sweep(home: Path, *names: str) -> subprocess.CompletedProcess[str]:
    what = ("--config-dir=own", "-m", f"experiment={','.join(names)}", f"steps={STEPS}")
    return command("train", *what, *STUDENT, *TEACHER, *SMALL, cwd=home)


@pytest.fixture(scope="module")
def taught(home: Path) -> subprocess.CompletedProcess[str]:
    """One distillation from every source, labelled in every way, and with transfer sets."""
    names = [*SOURCES]
    for name in SOURCES:
        experiment(home, name, {"data": name}, data=sized(name))
    for root in FOLDERS:
        split = None if root == "by_split" else [0.6, 0.2, 0.2]
        for labels in ("auto", "labels.csv"):
            names.append(f"{root}-{labels}")
            data = {"root": root, "labels": labels, "split": split}
            experiment(home, names[-1], {"data": "folder"}, data=data)
    blind(home)
    flat = {"root": "flat", "split": [0.6, 0.4, 0]}
    for name, sets in TRANSFERS.items():
        known = {one: sized(one) if one in SOURCES else flat for one in sets}
        transfer = sets if len(sets) > 1 else sets[0]
        data = {**sized("pets"), "root": "blind"}
        experiment(home, name, {"data": "pets", "transfer": transfer}, data=data, transfer=known)
    return sweep(home, *names, *TRANSFERS)


def result(home: Path, name: str) -> dict[str, Any]:
    return only_run(home, name).result


def test_sweep_over_all_sources_succeeds_without_stderr(taught) -> None:
    assert taught.returncode == 0, taught.stderr
    assert taught.stderr == ""
    jobs = len(SOURCES) + 2 * len(FOLDERS) + len(TRANSFERS)
    assert f"[{jobs}/{jobs}] logs/from_folder/function_matching-s0-" in taught.stdout


@pytest.mark.parametrize(("name", "images"), SOURCES.items())
def test_distillation_on_a_data_set_completes(taught, home: Path, name: str, images: int) -> None:
    summary = result(home, name)
    assert (summary["status"], summary["steps"]) == ("completed", STEPS)
    assert summary["epochs"] == pytest.approx(6 * STEPS / images, abs=1e-3)
    for figure in ("student_test_top1", "teacher_test_top1", "agreement_top1"):
        assert 0 <= summary[figure] <= 1
    assert summary["kl_to_teacher"] > 0
    assert json.loads(only_run(home, name).model.read_text())["classes"] == 3
    assert f"logs/{name}/summary.csv" in taught.stdout


@pytest.mark.parametrize("name", FOLDERS)
def test_distillation_on_a_folder_completes_for_any_labels(taught, home: Path, name: str) -> None:
    by_folders, by_table = (result(home, f"{name}-{labels}") for labels in ("auto", "labels.csv"))
    for summary in (by_folders, by_table):
        assert (summary["status"], summary["steps"]) == ("completed", STEPS)
        assert summary["epochs"] == pytest.approx(6 * STEPS / FOLDERS[name], abs=1e-3)
        assert 0 <= summary["agreement_top1"] <= 1
    assert by_table["teacher_test_top1"] > 1 / 3
    if name == "flat":
        assert by_folders["student_test_top1"] is by_folders["teacher_test_top1"] is None
        assert by_folders["student_val_top1"] is None
        assert by_folders["selected_by"] == "agreement_top1"
        assert 0 <= by_folders["selected_score"] <= 1
        return
    weights = [only_run(home, f"{name}-{labels}").student for labels in ("auto", "labels.csv")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    for figure in ("student_test_top1", "teacher_test_top1", "kl_to_teacher"):
        assert by_folders[figure] == by_table[figure]


@pytest.mark.parametrize("name", TRANSFERS)
def test_transfer_sets_are_trained_on_and_the_data_is_evaluated(
    taught, home: Path, name: str
) -> None:
    """The training images of the data cannot be opened here: they are not read."""
    summary, own = result(home, name), result(home, "pets")
    assert summary["status"] == "completed"
    assert summary["teacher_test_top1"] == own["teacher_test_top1"]
    students = [only_run(home, n).student.read_bytes() for n in ("pets", *TRANSFERS)]
    assert len(set(students)) == len(students)


@pytest.mark.parametrize(
    ("name", "images"),
    [
        ("from_food101", 27),
        ("from_both", 33),
        ("from_folder", 36),
    ],
)
def test_epochs_count_the_transfer_images(taught, home: Path, name: str, images: int) -> None:
    assert result(home, name)["epochs"] == pytest.approx(6 * STEPS / images, abs=1e-3)


# --- damaged -------------------------------------------------------------------------------------

# What of a source is damaged, and the start of the line about it.
DAMAGED = {
    "flowers102": "data.root=bad/flowers102: file flowers-102/setid.mat does not exist; ",
    "pets": "blind/oxford-iiit-pet/images/",
    "food101": "data.root=bad/food101: 1 of the 42 images listed in food-101/meta are missing, ",
    "sun397": "data.train_size=21: there are 22 training images; complete them, or give ",
    "imagenet": "bad/imagenet/val/n01440764/ILSVRC2012_val_00000001.JPEG: cannot be read as an ",
    "folder": "bad/folder/train/cat/",
    "worker": "bad/folder/train/cat/",
    "transfer": "transfer.food101.root=nowhere: folder food-101 does not exist; ",
}


@pytest.fixture(scope="module")
def refused(home: Path) -> subprocess.CompletedProcess[str]:
    """One distillation from each source that lacks a file, or has a damaged one."""
    bad, data = home / "bad", home / "data"
    bases = {"flowers102": "flowers-102", "food101": "food-101", "sun397": "SUN397"}
    for name, base in bases.items():
        shutil.copytree(data / base, bad / name / base)
    shutil.copytree(data / "imagenet", bad / "imagenet")
    shutil.copytree(home / "by_split", bad / "folder")
    (bad / "flowers102/flowers-102/setid.mat").unlink()
    (bad / "food101/food-101/images/sushi/1003.jpg").unlink()
    (bad / "sun397/SUN397/a/abbey/sun_mine3.jpg").unlink()
    truncate(bad / "imagenet/val/n01440764/ILSVRC2012_val_00000001.JPEG")
    for image in (bad / "folder/train/cat").iterdir():
        truncate(image)
    blind(home)
    for name in SOURCES:
        root = "blind" if name == "pets" else f"bad/{name}"
        experiment(home, f"bad_{name}", {"data": name}, data={**sized(name), "root": root})
    folder = {"root": "bad/folder"}
    experiment(home, "bad_folder", {"data": "folder"}, data=folder)
    experiment(home, "bad_worker", {"data": "folder"}, data=folder, compute={"workers": 1})
    transfer = {"food101": {"root": "nowhere", "train_size": 27}}
    groups = {"data": "pets", "transfer": "food101"}
    experiment(home, "bad_transfer", groups, data=sized("pets"), transfer=transfer)
    return sweep(home, *(f"bad_{name}" for name in DAMAGED))


def test_each_damaged_source_is_one_error_line(refused) -> None:
    assert refused.returncode == 1
    lines = refused.stderr.splitlines()
    assert len(lines) == len(DAMAGED)
    assert all(line.startswith("error: ") for line in lines)


@pytest.mark.parametrize(("name", "message"), DAMAGED.items())
def test_damaged_source_is_named_in_the_error(refused, home: Path, name: str, message: str) -> None:
    line = refused.stderr.splitlines()[list(DAMAGED).index(name)]
    assert line.startswith(f"error: {message}")
    assert "Traceback" not in line
    assert result(home, f"bad_{name}")["status"] == "failed"


# --- measured again ------------------------------------------------------------------------------


def evaluated(home: Path, *arguments: str) -> dict[str, str]:
    done = command("evaluate", *arguments, "trainer.accelerator=cpu", cwd=home)
    assert done.returncode == 0, done.stderr
    return dict(line.split() for line in done.stdout.splitlines()[1:])


def test_evaluate_measures_an_additional_test_set(taught, home: Path) -> None:
    trees.imagenet_v2(home / "v2")
    run = only_run(home, "imagenet").directory
    figures = evaluated(home, f"run={run}", "split=v2", "+data.v2=v2")
    for figure in ("student_v2_top1", "teacher_v2_top1", "agreement_top1"):
        right = 6 * float(figures[figure])  # of the six images
        assert right == pytest.approx(round(right), abs=1e-3)


def test_evaluate_accepts_another_data_root(taught, home: Path) -> None:
    run = only_run(home, "food101")
    (home / "moved").mkdir()
    (home / "data/food-101").rename(home / "moved/food-101")
    try:
        figures = evaluated(home, f"run={run.directory}", "+data.root=moved")
    finally:
        (home / "moved/food-101").rename(home / "data/food-101")
    for name in ("student_test_top1", "teacher_test_top1", "kl_to_teacher"):
        assert float(figures[name]) == pytest.approx(run.result[name], abs=1e-4)
