"""Rendering of crops and evaluation views."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, grid_sample, interpolate

from funmatch.core import geometry
from funmatch.core.render import evaluation_view, render, render_batch


def picture(*shape: int, seed: int = 0) -> Tensor:
    """Noise: the hardest picture to interpolate alike."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def difference(first: Tensor, second: Tensor) -> int:
    """The largest difference of grey levels; of uint8 itself it would wrap around."""
    assert first.shape == second.shape
    return int((first.int() - second.int()).abs().max())


# --- the reference: equal to the last grey level -------------------------------------------------


@pytest.mark.parametrize(
    ("key", "view"),
    [
        ("crop_bilinear_32", lambda image, box: render(image, box, 32)),
        ("crop_bilinear_96", lambda image, box: render(image, box, 96)),
        ("full_resize_64", lambda image, box: render(image, geometry.whole([97], [131])[0], 64)),
        ("eval_view_32", lambda image, box: evaluation_view(image, resize=40, crop=32)),
    ],
)
def test_render_equals_the_released_code(reference: Callable, key: str, view: Callable) -> None:
    stored = reference("preprocess.npz")
    rendered = view(torch.from_numpy(stored["image"]).permute(2, 0, 1), stored["crop_box"])
    assert difference(rendered, torch.from_numpy(stored[key]).permute(2, 0, 1)) == 0


def test_evaluation_view_area_resize_equals_the_released_code(reference: Callable) -> None:
    stored = reference("preprocess.npz")
    rendered = evaluation_view(
        torch.from_numpy(stored["image"]).permute(2, 0, 1), resize=40, crop=40
    )
    expected = torch.from_numpy(stored["resize_small_40_area"]).permute(2, 0, 1)
    assert difference(rendered, expected[:, :, 7:47]) == 0  # the middle 40 of 54 columns


# --- integer boxes -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 32, 90])
@pytest.mark.parametrize(
    "box", [(0, 0, 41, 60), (11, 23, 30, 17), (40, 59, 1, 1), (3, 0, 5, 60), (9, 30, 32, 30)]
)
def test_integer_box_is_cropped_then_resized(box: tuple[int, ...], size: int) -> None:
    image = picture(3, 41, 60)
    top, left, height, width = box
    crop = image[None, :, top : top + height, left : left + width].float()
    resized = interpolate(crop, (size, size), mode="bilinear", align_corners=False, antialias=False)
    assert difference(render(image, box, size), resized[0].to(torch.uint8)) <= 1


def test_view_of_the_box_size_is_the_crop() -> None:
    image = picture(3, 41, 60)
    assert torch.equal(render(image, (5, 11, 16, 16), 16), image[:, 5:21, 11:27])


def test_render_truncates_grey_levels() -> None:
    """The released code casts to uint8; rounding would lift the mean picture by half a level."""
    image = torch.tensor([[[0, 255]]], dtype=torch.uint8)  # 1x2: means lie at the quarters
    assert render(image, (0, 0, 1, 2), 4)[0, 0].tolist() == [0, 63, 191, 255]


# --- fractional boxes ----------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 32, 90])
@pytest.mark.parametrize(
    "box", [(0.0, 0.0, 41.0, 60.0), (2.25, 7.5, 20.1, 33.3), (0, 0.1, 3.7, 0.4), (30.7, 50, 10, 9)]
)
def test_fractional_box_samples_the_image_as_a_window(box: tuple[float, ...], size: int) -> None:
    image = picture(3, 41, 60)
    top, left, height, width = box
    centres = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    y = 2 * (top + height * centres) / 41 - 1  # grid_sample counts from -1 to 1, edge to edge
    x = 2 * (left + width * centres) / 60 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)[None]
    expected = grid_sample(
        image[None].double(), grid, mode="bilinear", padding_mode="border", align_corners=False
    )
    assert difference(render(image, box, size), expected[0].to(torch.uint8)) <= 1


def test_only_fractional_boxes_read_pixels_outside() -> None:
    """The dtype of the box decides; enlarged, the two differ along the border and nowhere else."""
    image = picture(1, 40, 40)
    box = np.array([10, 12, 16, 16])
    inner, window = render(image, box, 64), render(image, box.astype(np.float64), 64)
    core = slice(2, -2)  # half of a source pixel is 2 pixels of the view
    assert difference(inner[:, core, core], window[:, core, core]) == 0
    for border in (np.s_[:, :2], np.s_[:, -2:], np.s_[:, :, :2], np.s_[:, :, -2:]):
        assert difference(inner[border], window[border]) > 10

    outside = torch.ones(40, 40, dtype=torch.bool)
    outside[10:26, 12:28] = False
    changed = torch.where(outside, 255 - image, image)
    assert difference(render(changed, box, 64), inner) == 0
    assert difference(render(changed, box.astype(np.float64), 64), window) > 10


def test_integer_and_fractional_boxes_agree_on_the_whole_image() -> None:
    image = picture(3, 23, 37)
    assert torch.equal(render(image, (0, 0, 23, 37), 50), render(image, (0.0, 0.0, 23.0, 37.0), 50))


# --- flips and batches ---------------------------------------------------------------------------


@pytest.mark.parametrize("box", [(3, 5, 20, 31), (3.3, 5.1, 20.7, 31.9)])
@pytest.mark.parametrize("size", [13, 64])
def test_flip_mirrors_the_view(box: tuple[float, ...], size: int) -> None:
    image = picture(3, 30, 50)
    assert torch.equal(render(image, box, size, flip=True), render(image, box, size).flip(-1))


@pytest.mark.parametrize("size", [16, 48])
@pytest.mark.parametrize("kind", ["inception", "mild"])
def test_render_batch_equals_render_for_each_image(kind: str, size: int) -> None:
    n = 24
    images, rng = picture(n, 3, 37, 29), geometry.generator(0, 0)
    boxes = getattr(geometry, kind)([37] * n, [29] * n, rng=rng)
    flips = geometry.flips(n, rng=rng)
    assert 0 < flips.sum() < n
    views = render_batch(images, boxes, size, flips)
    assert (views.dtype, views.shape) == (torch.uint8, (n, 3, size, size))
    assert views.is_contiguous()
    for view, image, box, flip in zip(views, images, boxes, flips, strict=True):
        assert torch.equal(view, render(image, box, size, flip=bool(flip)))


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_are_rendered_independently(channels: int) -> None:
    image = picture(channels, 20, 25)
    view = render(image, (2, 3, 14, 15), 9)
    for c in range(channels):
        assert torch.equal(view[c : c + 1], render(image[c : c + 1], (2, 3, 14, 15), 9))


# --- the evaluation view -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("height", "width", "resize", "crop"),
    [(20, 30, 8, 8), (30, 20, 8, 5), (21, 33, 7, 3), (11, 11, 9, 9), (10, 14, 16, 13)],
)
def test_evaluation_pixel_is_the_mean_of_the_area_it_covers(
    height: int, width: int, resize: int, crop: int
) -> None:
    """Exactly: on a grid so fine that both images divide it, in whole numbers."""
    image = picture(3, height, width)
    h, w = geometry.shorter_side(np.array([height, width]), resize)
    fine = image.numpy().astype(np.int64).repeat(h, axis=1).repeat(w, axis=2)
    sums = fine.reshape(3, h, height, w, width).sum(axis=(2, 4))
    top, left = (h - crop) // 2, (w - crop) // 2
    expected = (sums // (height * width))[:, top : top + crop, left : left + crop]
    view = evaluation_view(image, resize=resize, crop=crop)
    assert view.dtype == torch.uint8
    assert difference(view, torch.from_numpy(expected)) == 0


@pytest.mark.parametrize("factor", [2, 3, 5])
def test_evaluation_view_is_an_average_pool_at_integer_ratios(factor: int) -> None:
    image = picture(3, 16 * factor, 24 * factor)
    pooled = adaptive_avg_pool2d(image.double(), (16, 24)) + 1e-9
    expected = pooled[:, 2:14, 6:18].to(torch.uint8)
    assert difference(evaluation_view(image, resize=16, crop=12), expected) == 0


@pytest.mark.parametrize("size", [(97, 131), (500, 375), (17, 23)])
def test_evaluation_view_keeps_a_constant_picture(size: tuple[int, int]) -> None:
    """A mean a rounding error below its grey level must not be truncated to the one below."""
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None].expand(-1, *size)
    views = evaluation_view(levels, resize=40, crop=32)
    assert torch.equal(views, levels[:, :1, :1].expand(-1, 32, 32))


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 0, 5), (0, 0, 5, 0), (0, 0, -5, 5), (-1, 0, 5, 5), (0, -1, 5, 5),
        (6, 0, 5, 5), (0, 16, 5, 5), (0, 0, 10.1, 5), (0, 0, 5, 20.1), (-0.1, 0, 5, 5),
        (0, -0.1, 5, 5), (math.nan, 0, 5, 5), (0, 0, 5, math.inf),
    ],
)  # fmt: skip
def test_boxes_outside_the_image_are_refused(box: tuple[float, ...]) -> None:
    image = picture(3, 10, 20)
    with pytest.raises(ValueError, match="is not within 10x20 px"):
        render(image, box, 8)
    boxes = np.array([(1, 1, 5, 5), box])
    with pytest.raises(ValueError, match="is not within 10x20 px"):
        render_batch(torch.stack([image, image]), boxes, 8, [False, False])


def test_box_may_exceed_the_image_by_a_rounding_error() -> None:
    """Fractions of a side need not add up to the side to the last bit."""
    image = picture(3, 10, 20)
    view = render(image, (0.0, 0.0, 10 + 1e-9, 20.0), 8)
    assert torch.equal(view, render(image, (0, 0, 10, 20), 8))


@pytest.mark.parametrize("crop", [-1, 0, 41])
def test_evaluation_crop_larger_than_resize_is_refused(crop: int) -> None:
    with pytest.raises(ValueError, match=rf"crop must lie in \(0, resize=40\], got {crop}"):
        evaluation_view(picture(3, 50, 60), resize=40, crop=crop)
