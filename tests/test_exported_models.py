"""Exported models and user functions as teachers and students."""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.export import Dim

import small
from commands import command_here
from funmatch.config import identity
from funmatch.models.exported import ExportedModel
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.models.user_models import from_path
from small import SMALL

SIDE = 32
onnxruntime = pytest.importorskip("onnxruntime", reason="needs funmatch[export]")
pytestmark = pytest.mark.filterwarnings("ignore")  # of the exporters, about themselves


def classifier(num_classes: int = 3) -> nn.Module:
    """A real network that tells the classes of `small` apart by their colour."""
    torch.manual_seed(0)
    net = timm.create_model("test_resnet", num_classes=num_classes)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return net.eval()


def probable() -> nn.Module:
    return nn.Sequential(classifier(), nn.Softmax(1))


def nothing() -> str:
    return "no network"


def failing() -> nn.Module:
    raise RuntimeError("no licence for this")


def images(rows: int) -> Tensor:
    return torch.rand(rows, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(rows))


WRITERS: dict[str, Callable[[nn.Module, Path], object]] = {
    "any.pt2": lambda net, path: torch.export.save(
        torch.export.export(net, (images(2),), dynamic_shapes={"x": {0: Dim("batch")}}), path
    ),
    "four.pt2": lambda net, path: torch.export.save(torch.export.export(net, (images(4),)), path),
    "traced.pt": lambda net, path: torch.jit.save(torch.jit.trace(net, images(2)), path),
    "traced.ts": lambda net, path: torch.jit.save(torch.jit.trace(net, images(2)), path),
    "any.onnx": lambda net, path: torch.onnx.export(
        net, (images(2),), path, dynamo=True, dynamic_shapes={"x": {0: Dim("batch")}}, verbose=False
    ),
    "one.onnx": lambda net, path: torch.onnx.export(
        net, (images(1),), path, dynamo=True, external_data=False, verbose=False
    ),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    for name, write in WRITERS.items():
        write(classifier(), folder / name)
    return folder


@pytest.mark.parametrize("name", WRITERS)
def test_exported_model_predicts_as_its_network(written: Path, name: str) -> None:
    program, net = ExportedModel(written / name), classifier()
    assert program.rows == {"four.pt2": 4, "one.onnx": 1}.get(name)
    for rows in (1, 4, 7):
        with torch.no_grad():
            torch.testing.assert_close(program(images(rows)), net(images(rows)), atol=1e-5, rtol=0)
    if name not in ("traced.pt", "traced.ts"):
        assert program.input_spec == {"side": SIDE}  # from the shape of its input


@pytest.mark.parametrize("name", ["any.pt2", "traced.pt", "any.onnx"])
def test_exported_model_keeps_its_precision_as_a_bfloat16_teacher(written: Path, name: str) -> None:
    """Also as a teacher in bfloat16."""
    inputs = {"mean": [0.5] * 3, "std": [0.5] * 3, "side": SIDE, "resize": SIDE}
    pixels = (images(4) * 255).to(torch.uint8)
    predictions = [
        Frozen(Network(net, **inputs), dtype=dtype)(pixels).prediction
        for net, dtype in (
            (ExportedModel(written / name), torch.bfloat16),
            (classifier(), torch.float32),
        )
    ]
    assert predictions[0].dtype == torch.float32
    torch.testing.assert_close(*predictions, atol=0.02, rtol=0)  # the pixels are rounded


def test_fingerprint_depends_on_file_content_and_output(written: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path, **more: str) -> str:
        net = ExportedModel(path, **more)
        return Frozen(
            Network(net, mean=[0.5] * 3, std=[0.5] * 3, side=SIDE, resize=SIDE)
        ).fingerprint()

    copy = tmp_path / "elsewhere.onnx"
    copy.write_bytes((written / "one.onnx").read_bytes())
    assert fingerprint(copy) == fingerprint(written / "one.onnx")
    others = {fingerprint(written / name) for name in WRITERS if name != "traced.ts"}
    assert len({*others, fingerprint(copy, output="probabilities")}) == len(WRITERS)


def test_probability_outputs_are_converted_to_logits(tmp_path: Path) -> None:
    path = tmp_path / "probable.pt"
    torch.jit.save(torch.jit.trace(probable().eval(), images(2)), path)
    with torch.no_grad():
        expected = classifier()(images(5)).softmax(1)
    probabilities = ExportedModel(path, output="probabilities")(images(5)).softmax(1)
    torch.testing.assert_close(probabilities, expected)


class Harm:
    """Runs what it likes when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return Path.write_text, (self._path, "harm")


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    "member",
    ["data/sample_inputs/model.pt", "data/weights/weight_0", "data/constants/opaque_obj_0"],
)
def test_code_in_an_exported_program_is_not_run(written: Path, tmp_path: Path, member: str) -> None:
    mark, path = tmp_path / "harm", tmp_path / "harmful.pt2"
    buffer = io.BytesIO()
    torch.save(Harm(mark), buffer)
    payload = pickle.dumps(Harm(mark)) if "opaque" in member else buffer.getvalue()
    with zipfile.ZipFile(written / "any.pt2") as whole, zipfile.ZipFile(path, "w") as harmful:
        top = whole.namelist()[0].partition("/")[0]
        for name in whole.namelist():
            content = whole.read(name)
            if name.endswith("model_weights_config.json"):
                weights_config = json.loads(content)
                for entry in weights_config["config"].values():
                    entry["use_pickle"] = entry["path_name"] == "weight_0"
                content = json.dumps(weights_config).encode()
            harmful.writestr(name, payload if name == f"{top}/{member}" else content)
        if "opaque" in member:
            harmful.writestr(f"{top}/{member}", payload)
    with pytest.raises(ValueError, match=r"refused|damaged"):
        ExportedModel(path)
    assert not mark.exists()


@pytest.mark.fault(13)
@pytest.mark.parametrize(
    "name", ["DATA/constants/opaque_obj_0", "data/aotinductor/model/x.so", "data/weights/x.py"]
)
def test_exported_program_with_other_content_is_refused(
    written: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / "more.pt2"
    shutil.copy(written / "any.pt2", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/{name}", b"x")
    with pytest.raises(ValueError, match=f"it contains more than a graph and tensors .{name}"):
        ExportedModel(path)


def test_external_onnx_weights_are_part_of_the_identity(
    tmp_path: Path, compose: Callable[..., DictConfig]
) -> None:
    """The run and its teacher's fingerprint are others when only the weights are."""
    onnx = pytest.importorskip("onnx")
    torch.onnx.export(classifier(), (images(1),), tmp_path / "c.onnx", dynamo=True, verbose=False)
    whole = onnx.load(tmp_path / "c.onnx")
    path = tmp_path / "net.onnx"
    save = {"save_as_external_data": True, "size_threshold": 256, "convert_attribute": False}
    onnx.save_model(whole, path, location="net.onnx.data", **save)
    before = ExportedModel(path).extra_repr()
    given = ("teacher=program", f"teacher.path={path}")
    identities = [identity.identity(compose(*given))]
    data = tmp_path / "net.onnx.data"
    content = bytearray(data.read_bytes())
    content[0] ^= 1
    data.write_bytes(bytes(content))
    assert ExportedModel(path).extra_repr() != before
    identities.append(identity.identity(compose(*given)))
    assert identities[0] != identities[1]
    far = tmp_path / "far.onnx"
    onnx.save_model(onnx.load(tmp_path / "c.onnx"), far, location="weights.bin", **save)
    with pytest.raises(
        ValueError, match=r"stores weights in weights\.bin; save it in one file, or"
    ):
        ExportedModel(far)


def test_damaged_missing_or_unknown_model_files_are_refused(tmp_path: Path) -> None:
    for name in ("broken.onnx", "broken.pt2", "broken.pt"):
        (tmp_path / name).write_bytes(b"nothing")
        with pytest.raises(ValueError, match="damaged, or not a "):
            ExportedModel(tmp_path / name)
    with pytest.raises(ValueError, match="no such file"):
        ExportedModel(tmp_path / "missing.onnx")
    with pytest.raises(ValueError, match=r"unknown format of a model; give a file, \.onnx"):
        ExportedModel(tmp_path / "broken.h5")


def test_from_path_calls_the_function_with_its_parameters() -> None:
    assert from_path("test_exported_models:classifier", num_classes=5)(images(2)).shape == (2, 5)
    assert isinstance(from_path("test_exported_models:probable", num_classes=5), nn.Sequential)
    module = "test_exported_models"
    for path, message in {
        f"{module}:nothing": "returns a str, not a torch.nn.Module",
        f"{module}:failing": r"the function failed \(RuntimeError: no licence for this\)",
        f"{module}:SIDE": "is a int, not a function",
        f"{module}:missing": "has no attribute 'missing'; give package.module:function",
        "no_such_package:f": "No module named 'no_such_package'",
    }.items():
        with pytest.raises(ValueError, match=message):
            from_path(path, num_classes=5)


# --- real commands -------------------------------------------------------------------------------

HALF = "[0.5,0.5,0.5]"
NORMAL = (f"teacher.mean={HALF}", f"teacher.std={HALF}")
STUDENT = (
    *("student=module", "student.path=test_exported_models:classifier"),
    *(f"student.mean={HALF}", f"student.std={HALF}"),
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.split_folder(tmp_path_factory.mktemp("photos") / "images")


def train(home: Path, photos: Path, *overrides: str) -> tuple[int, str, str]:
    given = ("data=folder", f"data.root={photos}", *SMALL, f"data.side={SIDE}", "data.resize=40")
    more = ("data.mild=[40,32]", "data.cache=none", "steps=4")
    return command_here("train", *given, *more, *STUDENT, *overrides, cwd=home)


@pytest.mark.slow
def test_every_kind_of_teacher_gives_the_same_figures(
    written: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUNMATCH_ALLOW", "test_exported_models")
    kinds = {
        "module": (
            "teacher=module",
            "teacher.path=test_exported_models:classifier",
            "teacher.side=32",
        ),
        "onnx": ("teacher=program", f"teacher.path={written}/any.onnx"),
        "torch": ("teacher=program", f"teacher.path={written}/any.pt2"),
        "script": ("teacher=program", f"teacher.path={written}/traced.pt", "teacher.side=32"),
    }
    figures = {}
    for name, kind in kinds.items():
        code, _, err = train(tmp_path, photos, *kind, *NORMAL, f"name={name}")
        assert (code, err) == (0, "")
        (summary,) = tmp_path.glob(f"logs/{name}/*/summary.json")
        figures[name] = json.loads(summary.read_text())
    for name in kinds:
        for column in ("teacher_test_top1", "agreement_top1", "kl_to_teacher"):
            expected = figures["module"][column]
            assert figures[name][column] == pytest.approx(expected, abs=1e-4), name
    assert len({row["teacher_fingerprint"] for row in figures.values()}) == len(kinds)


def test_run_identity_depends_on_the_program_not_its_path(
    written: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FUNMATCH_ALLOW", "test_exported_models")
    elsewhere = tmp_path / "moved.onnx"
    elsewhere.write_bytes((written / "one.onnx").read_bytes())
    for path in (written / "one.onnx", elsewhere):
        given = ("teacher=program", f"teacher.path={path}", *NORMAL, "name=one")
        assert train(tmp_path, photos, *given)[0] == 0
    assert len(list(tmp_path.glob("logs/one/*/summary.json"))) == 1


@pytest.mark.fault(16)
def test_unfit_teacher_is_refused_before_training(
    written: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = "teacher.path=test_exported_models"
    module, side = ("teacher=module", *NORMAL), "teacher.side=32"
    program = ("teacher=program", f"teacher.path={written}/any.onnx")
    monkeypatch.setenv("FUNMATCH_ALLOW", "test_exported_models")
    thousand = "teacher.net.num_classes=1000"
    for given, message in {
        (*module, f"{path}:classifier", side, thousand): "error: teacher.classes=3: the network "
        "gives 1000 for each image; data=folder has 3 classes; without labels "
        "teacher.classes=1000 teaches all that the teacher knows",
        (*module, f"{path}:probable", side): "error: teacher: gives probabilities, as after a",
        (*program, *NORMAL, "teacher.side=48"): "error: teacher: does not take images of 3 x 48 x",
        program: "error: teacher.mean=null: the network has no default for it; give a value",
        (
            *module,
            f"{path}:nothing",
            side,
        ): "error: teacher.path=test_exported_models:nothing: returns a",
        ("teacher=program", "teacher.path=x.onnx"): "error: teacher.path=x.onnx: no such file",
        (*module, "teacher.path=x"): "error: teacher.path=x: give package.module:function",
        (*module, "teacher.path=os:getcwd"): "error: teacher.net.path=os:getcwd: a configuration "
        "may call",
        (*module, f"{path}:classifier", side, "student.net.num_classes=4"): "error: student."
        "classes=3: the network gives 4 for each image",
    }.items():
        code, _, err = train(tmp_path, photos, *given, "name=refused")
        assert code == 1
        assert err.startswith(message), err
        assert err.count("\n") == 1
    assert not list(tmp_path.glob("logs/refused/*/metrics.csv"))


class Colours(nn.Module):
    """Knows the classes of `small` by their mean colour, in pixels of [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        colours = [np.random.default_rng(label).integers(40, 216, 3) / 255 for label in range(3)]
        apart = x.mean((2, 3))[:, None] - torch.tensor(np.stack(colours)).float()
        return -30 * apart.square().sum(-1)


@pytest.mark.slow
def test_better_input_normalisation_is_suggested(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for part, each in (("train", 12), ("val", 16), ("test", 4)):
        small.photographs(tmp_path / "images" / part, each)
    monkeypatch.setenv("FUNMATCH_ALLOW", "test_exported_models")
    given = ("teacher=module", "teacher.path=test_exported_models:Colours", "teacher.side=32")
    message = "  teacher: right on 16 of 48 val images, and on 36 with mean="
    for mean, expected in (("[0,0,0]", 0), ("[-2,2,3]", 1)):
        more = (f"teacher.mean={mean}", "teacher.std=[1,1,1]", f"name=normal{expected}")
        code, out, _ = train(tmp_path, tmp_path / "images", *given, *more)
        assert code == 0
        assert out.count(message) == expected, out
