"""Runs of a second: images of three classes, one small network, experiments of one's own."""

import json
from pathlib import Path
from typing import Any

import trees
from commands import QUICK, command
from funmatch.runs.directory import Run

CLASSES = ("cat", "cow", "dog")
SMALL = (
    *("data.side=16", "data.resize=20", "data.mild=[20,16]", "data.suggested.workers=0"),
    *("batch_size=6", "schedule.warmup_steps=1", "validate_every=50"),
    *QUICK,
)
STUDENT = ("student=bit_tiny", "student.net.depth=[1]")
TEACHER = ("teacher=saved", "teacher.name=small")


def photographs(folder: Path, each: int, *, flat: bool = False) -> None:
    """Of every class so many images, every fourth in the colour of another class."""
    for label, name in enumerate(CLASSES):
        for number in range(each):
            path = folder / ("" if flat else name) / f"{name}_{number}.jpg"
            trees.photograph(path, label=(label + (number % 4 == 0)) % 3, number=number)


def table(root: Path) -> Path:
    """labels.csv of all images below a folder."""
    paths = sorted(root.rglob("*.jpg"))
    labels = [CLASSES.index(path.name.partition("_")[0]) for path in paths]
    rows = [f"{p.relative_to(root)},{label}\n" for p, label in zip(paths, labels, strict=True)]
    (root / "labels.csv").write_text("file,label\n" + "".join(rows))
    return root / "labels.csv"


def split_folder(root: Path) -> Path:
    """train/, val/ and test/, each with class folders; and a table of the same labels."""
    for part, each in (("train", 12), ("val", 4), ("test", 8)):
        photographs(root / part, each)
    table(root)
    return root


def finetuned(home: Path, root: Path) -> Run:
    """A network that a command taught the classes of a folder, known as `small` from then on."""
    model = ("model=bit_tiny", "model.net.depth=[1]", "save_as=small")
    data = ("data=folder", f"data.root={root}", "name=made")
    done = command("finetune", *model, *data, *SMALL, "steps=40", cwd=home)
    assert done.returncode == 0, done.stderr
    return only_run(home, "made")


def only_run(home: Path, name: str) -> Run:
    (config,) = (home / "logs" / name).glob("*/config.yaml")
    return Run(config.parent)


def experiment(home: Path, name: str, groups: dict[str, Any], **settings: Any) -> None:
    """A user's own experiment, for --config-dir=own; its runs bear its name."""
    path = home / "own" / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    defaults = [{f"override /{group}": option} for group, option in groups.items()]
    content = json.dumps({"defaults": defaults, "name": name, **settings})
    path.write_text(f"# @package _global_\n{content}\n")
