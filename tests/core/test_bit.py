"""BiT networks and the import of released weights."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from funmatch.models import bit

TINY = Path(__file__).parent / "reference" / "bit_tiny_teacher.npz"
STYLES = ["native", "legacy"]


def tiny(**settings: str) -> nn.Module:
    return bit.build((2, 1), width=0.5, num_classes=10, **settings).eval()


def scrambled(model: nn.Module) -> nn.Module:
    """Every weight at random, so that two swapped ones would show."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5, generator=rng)
    return model


def first_batch(reference: Callable) -> tuple[Tensor, Tensor]:
    """Images in [-1, 1] and the tiny teacher's logits by the released code."""
    stored = reference("function_matching_steps.npz")
    images = torch.from_numpy(stored["images"][0]).permute(0, 3, 1, 2).float() / 127.5 - 1
    return images, torch.from_numpy(stored["teacher_logits_batch0"])


# --- imported weights ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bit_tiny_teacher.npz", "bit_tiny_teacher_legacy_names.npz"])
def test_imported_teacher_gives_the_logits_of_the_released_code(
    reference: Callable, name: str
) -> None:
    images, expected = first_batch(reference)
    model = tiny()
    bit.load_npz(model, TINY.parent / name)
    torch.testing.assert_close(model(images).detach(), expected, rtol=0, atol=1e-4)


def test_zero_root_padding_changes_the_released_logits(reference: Callable) -> None:
    """Zeros around the root pooling move the logits by 0.025: far more than rounding."""
    images, expected = first_batch(reference)
    model = tiny(root_padding="zero")
    bit.load_npz(model, TINY)
    assert (model(images) - expected).abs().max() > 0.01


def stored(model: nn.Module, depth: tuple[int, ...], style: str) -> dict[str, NDArray]:
    """The weights of a network under the authors' names, written out one by one."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    arrays = {}

    def kernel(name: str, native: str, legacy: str) -> None:
        hwio = weights.pop(f"{name}.weight").transpose(2, 3, 1, 0)
        arrays[native if style == "native" else f"resnet/{legacy}"] = hwio

    def norm(name: str, native: str, legacy: str) -> None:
        scale, bias = weights.pop(f"{name}.weight"), weights.pop(f"{name}.bias")
        if style == "native":
            arrays[f"{native}/scale"] = scale.reshape(1, 1, 1, -1)
            arrays[f"{native}/bias"] = bias.reshape(1, 1, 1, -1)
        else:
            arrays[f"resnet/{legacy}/gamma"], arrays[f"resnet/{legacy}/beta"] = scale, bias

    conv = "standardized_conv2d/kernel"
    kernel("stem.conv", "root_block/conv_root/kernel", f"root_block/{conv}")
    for s, blocks in enumerate(depth):
        for b in range(blocks):
            unit, inner = f"block{s + 1}/unit{b + 1:02}", f"stages.{s}.blocks.{b}"
            if b == 0:
                kernel(
                    f"{inner}.downsample.conv", f"{unit}/conv_proj/kernel", f"{unit}/a/proj/{conv}"
                )
            for n, letter in ((1, "a"), (2, "b"), (3, "c")):
                kernel(f"{inner}.conv{n}", f"{unit}/conv{n}/kernel", f"{unit}/{letter}/{conv}")
                norm(f"{inner}.norm{n}", f"{unit}/gn{n}", f"{unit}/{letter}/group_norm")
    norm("norm", "norm-pre-head", "group_norm")
    head = "head" if style == "native" else "resnet/head/conv2d"
    matrix = weights.pop("head.fc.weight")[:, :, 0, 0].T
    arrays[f"{head}/kernel"] = matrix if style == "native" else matrix[None, None]
    arrays[f"{head}/bias"] = weights.pop("head.fc.bias")
    assert not weights
    return arrays


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize(
    ("depth", "width", "classes"),
    [((1,), 0.5, 3), ((1, 2), 1, 10), ((11,), 0.5, 2), ((1, 1, 2, 1), 0.5, 7)],
)
def test_load_npz_restores_every_weight(
    tmp_path: Path, style: str, depth: tuple[int, ...], width: float, classes: int
) -> None:
    written = scrambled(bit.build(depth, width=width, num_classes=classes))
    np.savez(tmp_path / "weights.npz", **stored(written, depth, style))
    read = bit.build(depth, width=width, num_classes=classes)
    bit.load_npz(read, tmp_path / "weights.npz")
    for name, value in written.state_dict().items():
        assert torch.equal(read.state_dict()[name], value), name


def test_load_npz_keeps_the_dtype_of_the_network() -> None:
    model = tiny().double()
    bit.load_npz(model, TINY)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float64}


# --- files that do not fit -----------------------------------------------------------------------


def without(key: str) -> Callable:
    return lambda arrays: arrays.pop(key)


def reshaped(key: str, shape: tuple[int, ...]) -> Callable:
    return lambda arrays: arrays.update({key: np.zeros(shape, np.float32)})


LEGACY_CONV = "resnet/block2/unit01/b/standardized_conv2d/kernel"


@pytest.mark.parametrize(
    ("style", "damage", "message"),
    [
        ("native", without("block1/unit02/gn3/bias"), "weight block1/unit02/gn3/bias is missing"),
        ("native", without("head/kernel"), "weight head/kernel is missing"),
        ("legacy", without(LEGACY_CONV), f"weight {LEGACY_CONV} is missing"),
        ("native", reshaped("block3/unit01/a", (1,)), "has no weight block3/unit01/a"),
        ("legacy", reshaped("head/kernel", (256, 10)), "has no weight head/kernel"),  # both styles
        ("native", reshaped("head/bias", (11,)), "head/bias has shape"),
        ("native", reshaped("head/kernel", (10, 256)), "head/kernel has shape"),  # not K x C
        ("native", reshaped("head/kernel", (2560,)), "head/kernel has shape"),
        ("native", reshaped("head/kernel", (2, 1, 1, 128, 10)), "head/kernel has shape"),
        (
            "native",
            reshaped("norm-pre-head/scale", (1, 1, 1, 128)),
            "norm-pre-head/scale has shape",
        ),
        ("legacy", reshaped(LEGACY_CONV, (64, 64, 3, 3)), f"{LEGACY_CONV} has shape"),  # not OIHW
    ],
)
def test_load_npz_names_a_wrong_weight_and_loads_nothing(
    tmp_path: Path, style: str, damage: Callable, message: str
) -> None:
    arrays = stored(scrambled(tiny()), (2, 1), style)
    damage(arrays)
    np.savez(tmp_path / "weights.npz", **arrays)
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message) as error:
        bit.load_npz(model, tmp_path / "weights.npz")
    assert str(tmp_path / "weights.npz") in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("depth", [(1, 1), (2, 2), (2, 1, 1)])
def test_load_npz_refuses_weights_of_another_depth(depth: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"(weight|no weight) block"):
        bit.load_npz(bit.build(depth, width=0.5, num_classes=10), TINY)


def test_load_npz_refuses_other_architectures() -> None:
    with pytest.raises(ValueError, match=r"conv1\.weight is not a parameter of a BiT"):
        bit.load_npz(timm.create_model("resnet18"), TINY)


def test_load_npz_raises_for_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        bit.load_npz(tiny(), tmp_path / "none.npz")


# --- the network ---------------------------------------------------------------------------------


def test_resnet_50_has_the_parameters_of_timm() -> None:
    """Names and shapes of all weights, without memory for them."""
    with torch.device("meta"):
        ours = bit.build((3, 4, 6, 3), num_classes=10)
        theirs = timm.create_model("resnetv2_50x1_bit", num_classes=10)
    shapes = [{name: p.shape for name, p in m.named_parameters()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in ours.parameters()) == 23_520_842


@pytest.mark.parametrize(("root_padding", "same"), [("zero", True), ("infinite", False)])
def test_only_the_zero_padded_stem_equals_that_of_timm(root_padding: str, same: bool) -> None:
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=10)
    ours = bit.build((1,), num_classes=10, root_padding=root_padding)
    ours.stem.load_state_dict(theirs.stem.state_dict())
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    a, b = ours.stem(images), theirs.stem(images)
    assert torch.equal(a, b) is same
    assert torch.equal(a[..., 1:-1, 1:-1], b[..., 1:-1, 1:-1])  # it is the border that differs


def test_infinite_root_padding_pools_only_image_pixels() -> None:
    """Where all inputs are negative, a zero around them would win the maximum."""
    pool = bit.build((1,), width=0.5, num_classes=2).stem.pool
    assert (pool(torch.full((1, 32, 8, 8), -1.0)) == -1).all()


@pytest.mark.parametrize("width", [0.5, 1, 2])
def test_width_multiplies_the_channels(width: float) -> None:
    model = bit.build((1, 1), width=width, num_classes=3)
    assert model.stem.conv.weight.shape == (64 * width, 3, 7, 7)
    assert model.stages[0].blocks[0].conv2.weight.shape == (64 * width, 64 * width, 3, 3)
    assert model.head.fc.weight.shape == (3, 512 * width, 1, 1)


def test_head_starts_at_zero() -> None:
    """A new student answers alike to every image; only its head is zero."""
    model = tiny()
    zero = {name for name, p in model.named_parameters() if p.ndim > 1 and not p.any()}
    assert zero == {"head.fc.weight"}
    assert not model(torch.randn(2, 3, 32, 32)).any()


def test_unknown_root_padding_is_refused() -> None:
    with pytest.raises(ValueError, match="one of infinite, zero, got 'one'"):
        tiny(root_padding="one")
