"""The export command: files in each format, model card and verification."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

import small
from commands import command_here
from funmatch.data.datasets import builders
from funmatch.experiment import load_run, networks
from funmatch.export import onnx
from funmatch.runs.directory import Run
from funmatch.views.evaluation_views import EvaluationViews
from small import CLASSES, SMALL

onnxruntime = pytest.importorskip("onnxruntime", reason="needs funmatch[export]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters, about themselves

DATA = ("data=folder", *SMALL, "data.side=32", "data.resize=40", "data.mild=[40,32]")
STUDENTS = {
    "batch": ("student=timm", "student.name=test_resnet"),
    "group": ("student=mobilenet_v3_small", "student.side=32", "student.resize=40"),
}
EXACT = ("safetensors", "onnx", "torch_export")
FIRST = (("batch", "safetensors"), ("batch", "onnx"))  # the others at length


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a teacher has taught two students, one of them two times."""
    home = tmp_path_factory.mktemp("home")
    small.split_folder(home / "images")
    data = (*DATA, f"data.root={home / 'images'}", "data.cache=none")
    model = ("model=timm", "model.name=test_resnet", "save_as=small", "name=made")
    assert command_here("finetune", *data, *model, "steps=30", cwd=home)[0] == 0
    taught = (*data, "teacher=saved", "teacher.name=small", "validate_every=10")
    for name, student in STUDENTS.items():
        code, _, err = command_here(
            "train", *taught, *student, f"name={name}", "steps=20", cwd=home
        )
        assert (code, err) == (0, "")
    again = ("name=batch", "steps=2", "optimizer.lr=1e-6")
    assert command_here("train", *taught, *STUDENTS["batch"], *again, cwd=home)[0] == 0
    return home


def best(home: Path, name: str) -> Run:
    return load_run.open_run(str(home / "logs" / name), accelerator="cpu").run


def views(home: Path) -> NDArray[np.float32]:
    """What the files are shown: all test images."""
    source = EvaluationViews(builders.folder(str(home / "images")).test, 40, 32)
    return torch.stack(list(source.images(np.arange(len(source))))).float().numpy()


def student_says(home: Path, name: str) -> Tensor:
    experiment = load_run.open_run(str(home / "logs" / name), accelerator="cpu")
    with torch.no_grad():
        student = networks.load_student(experiment).eval()
        return student(torch.from_numpy(views(home))).prediction


def by_others(folder: Path, kind: str, pixels: NDArray[np.float32]) -> Tensor:
    """Without our code."""
    if kind in ("onnx", "int8"):
        (path,) = folder.glob("*.onnx")
        session = onnxruntime.InferenceSession(path)
        return torch.from_numpy(session.run(None, {"pixels": pixels})[0])
    if kind == "torch_export":
        return torch.export.load(folder / "student.pt2").module()(torch.from_numpy(pixels))
    net = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    mean, std = (torch.tensor(net.pretrained_cfg[key])[:, None, None] for key in ("mean", "std"))
    with torch.no_grad():
        return net((torch.from_numpy(pixels) / 255 - mean) / std)


def exported(home: Path, name: str, kind: str, *more: str) -> tuple[Path, str]:
    given = (f"run=logs/{name}", f"format={kind}", "seconds=0.1", "compute.threads=1", *more)
    code, out, err = command_here("export", *given, "trainer.accelerator=cpu", cwd=home)
    assert (code, err) == (0, "")
    return best(home, name).directory / "export" / kind, out


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (name, kind) if (name, kind) in FIRST else pytest.param(name, kind, marks=pytest.mark.slow)
        for name in STUDENTS
        for kind in (*EXACT, "int8")
    ],
)
def test_exported_file_predicts_as_the_student(home: Path, name: str, kind: str) -> None:
    folder, out = exported(home, name, kind)
    verification = json.loads((folder / "verification.json").read_text())
    own = student_says(home, name)
    assert verification["images"] == len(own) == 24
    assert verification["largest_logit"] == pytest.approx(float(own.abs().max()), rel=1e-5)
    if (kind, name) == ("safetensors", "group"):  # timm has no GroupNorm for it
        assert not (folder / "config.json").exists()
        exported_logits = own
    else:
        exported_logits = by_others(folder, kind, views(home))
    assert verification["max_logit_difference"] == pytest.approx(
        float((exported_logits - own).abs().max()), abs=1e-5, rel=0.05
    )
    agreement = float((exported_logits.argmax(1) == own.argmax(1)).double().mean())
    assert verification["agreement_top1"] == agreement
    if kind in EXACT:
        torch.testing.assert_close(exported_logits, own, atol=1e-4, rtol=0)
    labels = builders.folder(str(home / "images")).test.labels(np.arange(24))
    assert verification["student_top1"] == float((own.argmax(1) == labels).double().mean())
    assert verification["exported_top1"] == float(
        (exported_logits.argmax(1) == labels).double().mean()
    )
    assert set(verification["speed"]) == {"this file", "student", "teacher"}
    assert all(row["latency_ms"] > 0 for row in verification["speed"].values())
    assert (
        verification["speed"]["this file"]["bytes"]
        >= (folder / verification["file"]).stat().st_size
    )
    assert out.endswith(f"{verification['file']}, README.md, verification.json\n")
    if kind == "int8":
        full = verification["speed"]["student"]["bytes"]
        assert verification["speed"]["this file"]["bytes"] < 0.45 * full


@pytest.mark.parametrize(
    "kind",
    [EXACT[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in (*EXACT[1:], "int8"))],
)
def test_model_card_code_predicts_as_the_student(
    home: Path, kind: str, monkeypatch, capsys
) -> None:
    folder, _ = exported(home, "batch", kind)
    card = (folder / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    source = builders.folder(str(home / "images")).test
    monkeypatch.chdir(folder)
    predicted = []
    for number in range(24):
        Image.open(source.path(number)).save(folder / "image.jpg", quality=100, subsampling=0)
        capsys.readouterr()
        exec(code, {})
        predicted.append(int(re.findall(r"\d+", capsys.readouterr().out)[0]))
    (folder / "image.jpg").unlink()
    own = student_says(home, "batch").argmax(1).tolist()
    # PIL resizes a little otherwise than the views of training are.
    assert np.mean(np.equal(predicted, own)) > (0.8 if kind != "int8" else 0.7)


def test_model_card_names_teacher_data_recipe_and_licences(home: Path) -> None:
    more = ("license=apache-2.0", "data_license=cc-by-4.0")
    folder, _ = exported(home, "batch", "safetensors", *more)
    card, run = (folder / "README.md").read_text(), best(home, "batch")
    assert "\nlicense: apache-2.0\nlibrary_name: timm\n" in card
    assert f"fingerprint `{run.result['teacher_fingerprint']}`" in card
    assert "| data | folder: 36 training images |" in card
    assert "| recipe | `function_matching` |" in card
    assert f"| `student_test_top1` | {run.result['student_test_top1']:.4f} |" in card
    assert "| teacher | not stated |\n| data | cc-by-4.0 |" in card
    assert f"{', '.join(CLASSES)}\n" in card
    assert str(home) not in card


def test_best_run_on_val_is_exported(home: Path, capsys) -> None:
    runs = [Run(path.parent) for path in (home / "logs/batch").glob("*/config.yaml")]
    assert len(runs) == 2
    chosen = best(home, "batch")
    scores = {run.directory: run.result["student_val_top1"] for run in runs}
    assert scores[chosen.directory] == max(scores.values())
    message = f"{chosen.directory}: the best on val of 2 runs ({max(scores.values()):.4f})\n"
    assert capsys.readouterr().out == message


@pytest.mark.slow
def test_exported_onnx_serves_as_teacher(home: Path) -> None:
    folder, _ = exported(home, "batch", "onnx")
    run = best(home, "batch")
    teacher = ("teacher=program", f"teacher.path={folder / 'student.onnx'}")
    given = (*DATA, f"data.root={home / 'images'}", "data.cache=none", *STUDENTS["batch"])
    code, _, err = command_here("train", *given, *teacher, "name=grandchild", "steps=2", cwd=home)
    assert (code, err) == (0, "")
    summary = small.only_run(home, "grandchild").result
    assert summary["teacher_test_top1"] == run.result["student_test_top1"]


def test_export_that_differs_from_the_student_is_deleted(home: Path, monkeypatch) -> None:
    def other(network, folder, spec, batches) -> None:
        with torch.no_grad():
            for parameter in network.net.parameters():
                parameter.mul_(1.1)
        right(network, folder, spec, batches)
        with torch.no_grad():
            for parameter in network.net.parameters():
                parameter.div_(1.1)

    right = onnx.write
    monkeypatch.setattr(onnx, "write", other)
    out = home / "wrong"
    given = ("run=logs/batch", "format=onnx", f"out={out}", "trainer.accelerator=cpu")
    code, _, err = command_here("export", *given, cwd=home)
    assert code == 1
    assert err.startswith("error: format=onnx: the file differs from the student by ")
    assert not out.exists()
    assert not list(home.glob(".wrong*"))


def test_unknown_run_format_or_split_is_refused_in_one_line(home: Path) -> None:
    for given, message in {
        ("run=logs/nowhere", "format=onnx"): "run=logs/nowhere: holds no config.yaml; give",
        ("run=logs", "format=tflite"): "format=tflite: choose safetensors, onnx, torch_export or",
        ("run=logs/batch", "format=onnx", "split=v2"): "split=v2: this data set has train, val,",
    }.items():
        code, _, err = command_here("export", *given, cwd=home)
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith(f"error: {message}"), err


def test_export_never_overwrites_foreign_files(home: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    for kind, held in (("safetensors", "other files"), ("torch_export", "safetensors")):
        code, _, err = command_here(
            "export", "run=logs/batch", f"format={kind}", f"out={folder}", cwd=home
        )
        message = f"error: out={folder}: holds {held}; choose another folder, which is made\n"
        assert (code, err) == (1, message)
        if held == "other files":
            assert (folder / "thesis.tex").read_text() == "years of work"
            (folder / "thesis.tex").unlink()
            exported(home, "batch", "safetensors", f"out={folder}")
    exported(home, "batch", "safetensors", f"out={folder}")  # its own it does replace


def test_leftovers_of_a_killed_export_are_removed(home: Path) -> None:
    run = best(home, "batch")
    left = run.directory / "export" / ".onnx.tmp" / "part"
    left.parent.mkdir(parents=True)
    left.touch()
    run.sweep_up()
    exported(home, "batch", "onnx")
    assert not left.parent.exists()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("images=0", "images=0: give a whole number from 1"),
        ("calibration=0", "calibration=0: give a whole number from 1"),
        ("+data.rot=x", "data.rot=x: data=folder has no such key"),
    ],
)
def test_wrong_export_values_are_refused_in_one_line(home: Path, given: str, message: str) -> None:
    code, _, err = command_here("export", "run=logs/batch", given, cwd=home)
    assert (code, err) == (1, f"error: {message}\n")


@pytest.mark.parametrize("name", ["batch", pytest.param("group", marks=pytest.mark.slow)])
def test_export_does_not_change_the_network(home: Path, tmp_path: Path, name: str) -> None:
    experiment = load_run.open_run(str(home / "logs" / name), accelerator="cpu")
    student, run = networks.load_student(experiment), experiment.run
    before = {k: v.clone() for k, v in student.net.state_dict().items()}
    student.train()
    onnx.write(student, tmp_path, {"classes": list(CLASSES)}, [])
    assert student.training
    assert all(isinstance(p, nn.Parameter) and p.requires_grad for p in student.parameters())
    assert all(torch.equal(v, before[k]) for k, v in student.net.state_dict().items())
    assert safetensors.torch.load_file(run.student).keys() == before.keys()
