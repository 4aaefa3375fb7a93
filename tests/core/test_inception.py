"""Inception crops of core.geometry, which follow TensorFlow and not RandomResizedCrop."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from funmatch.core import geometry

DRAWS = 20_000


def rng(step: int = 0) -> np.random.Generator:
    return geometry.generator(0, step, geometry.Purpose.STUDENT_BOXES)


def crops(height: int, width: int, count: int = DRAWS, **ranges: tuple[float, float]) -> NDArray:
    return geometry.inception([height] * count, [width] * count, rng=rng(), **ranges)


def test_inception_has_the_quantiles_of_the_released_code(reference: Callable) -> None:
    stored = reference("inception_crop_law.json")
    height, width = stored["image_height"], stored["image_width"]
    boxes = crops(height, width, 6000)
    area = boxes[:, 2] * boxes[:, 3] / (height * width)
    assert np.quantile(area, stored["quantiles"]) == pytest.approx(
        stored["area_fraction"], abs=0.02
    )
    assert area.mean() == pytest.approx(stored["area_mean"], abs=0.01)
    aspect = np.quantile(boxes[:, 3] / boxes[:, 2], stored["quantiles"])
    assert aspect == pytest.approx(stored["aspect_w_over_h"], abs=0.03)
    assert np.mean(area == 1) == stored["whole_image_share"]


def crop_sizes(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> dict[tuple[int, int], float]:
    """Probability of every crop size, counted over a fine grid of aspects instead of drawn.

    For an aspect, the crop heights from that of the smallest to that of the largest area which
    fits are equally likely. A rounded size outside the range of areas may move by one pixel; what
    is still outside is drawn again, which spreads its probability over the others.
    """
    smallest, largest = area[0] * height * width, area[1] * height * width
    probabilities: Counter[tuple[int, int]] = Counter()
    grid = 500
    for i in range(grid):
        ratio = aspect[0] + (i + 0.5) / grid * (aspect[1] - aspect[0])
        tallest = min(round(math.sqrt(largest / ratio)), height)
        while round(tallest * ratio) > width:
            tallest -= 1
        shortest = min(round(math.sqrt(smallest / ratio)), tallest)
        for h in range(shortest, tallest + 1):
            share = 1 / (tallest - shortest + 1)
            if h * round(h * ratio) < smallest:
                h += 1
            if h * round(h * ratio) > largest:
                h -= 1
            w = round(h * ratio)
            if smallest <= h * w <= largest and 0 < h <= height and 0 < w <= width:
                probabilities[h, w] += share
    total = sum(probabilities.values())
    return {size: share / total for size, share in probabilities.items()}


@pytest.mark.parametrize(
    ("height", "width", "area", "aspect"),
    [
        (375, 500, (0.05, 1.0), (0.75, 1.33)),
        (500, 375, (0.05, 1.0), (0.75, 1.33)),
        (400, 40, (0.05, 1.0), (0.75, 1.33)),  # tall: the width cuts the heights back
        (40, 400, (0.05, 1.0), (0.75, 1.33)),  # wide: the height does
        (8, 8, (0.05, 1.0), (0.75, 1.33)),  # rounding to pixels shapes the whole distribution
        (3, 2, (0.05, 1.0), (0.75, 1.33)),
        (64, 64, (0.08, 1.0), (0.5, 2.0)),
        (8, 8, (0.3, 0.6), (0.75, 1.33)),
        (12, 17, (0.9, 1.0), (0.6, 1.5)),  # four draws in five are drawn again
    ],
)
def test_inception_has_the_size_distribution_of_tensorflow(
    height: int, width: int, area: tuple[float, float], aspect: tuple[float, float]
) -> None:
    expected = crop_sizes(height, width, area, aspect)
    sizes, shares = np.array(list(expected)), np.array(list(expected.values()))
    boxes = crops(height, width, area=area, aspect=aspect)[:, 2:]
    for measure in (lambda s: s[:, 0], lambda s: s[:, 1], lambda s: s[:, 0] * s[:, 1]):
        values, inverse = np.unique(measure(sizes), return_inverse=True)
        cumulative = np.bincount(inverse, weights=shares).cumsum()
        empirical = np.searchsorted(np.sort(measure(boxes)), values, side="right") / DRAWS
        # Kolmogorov-Smirnov: 20,000 draws stay within 0.014 with probability 0.999.
        assert np.abs(empirical - cumulative).max() < 0.014


def test_inception_position_is_uniform_and_excludes_the_far_border() -> None:
    height, width = 375, 500
    top, left, h, w = crops(height, width).T
    # TensorFlow draws the corner from [0, free): one short of what would fit.
    u, v = (top + 0.5) / (height - h).clip(1), (left + 0.5) / (width - w).clip(1)
    for position, free in ((u, height - h), (v, width - w)):
        assert np.all(position[free > 0] < 1)
        quantiles = np.quantile(position[free > 20], [0.05, 0.25, 0.5, 0.75, 0.95])
        assert quantiles == pytest.approx([0.05, 0.25, 0.5, 0.75, 0.95], abs=0.02)
        assert abs(np.corrcoef(position[free > 20], h[free > 20])[0, 1]) < 0.03
    assert abs(np.corrcoef(u, v)[0, 1]) < 0.03


def test_inception_boxes_lie_within_images_of_any_size() -> None:
    height, width = np.random.default_rng(0).integers(1, 600, size=(2, 3000))
    boxes = geometry.inception(height, width, rng=rng())
    top, left, h, w = boxes.T
    assert boxes.dtype == np.int64
    assert np.all((top >= 0) & (left >= 0) & (top + h <= height) & (left + w <= width))
    assert np.all((h > 0) & (w > 0) & (h * w >= 0.05 * height * width))


def test_inception_takes_the_whole_image_if_no_crop_fits() -> None:
    """A crop twice as wide as high cannot cover all of a square."""
    boxes = geometry.inception([10, 4], [10, 8], rng=rng(), area=(1.0, 1.0), aspect=(2.0, 2.0))
    assert boxes.tolist() == [[0, 0, 10, 10], [0, 0, 4, 8]]


@pytest.mark.parametrize("others", [(8, 8), (1000, 10), (1, 1), (2000, 3000)])
def test_inception_box_does_not_depend_on_other_images(others: tuple[int, int]) -> None:
    """Each image is drawn again as often as it needs: that must not move the draws of image 5."""
    ranges = {"area": (0.7, 1.0), "aspect": (0.4, 1.0)}  # every other draw fits a square
    size = np.full((2, 16), 300)
    changed = np.repeat(np.array(others)[:, None], 16, axis=1)
    changed[:, 5] = 300
    for step in range(50):
        plain = geometry.inception(*size, rng=rng(step), **ranges)
        among_others = geometry.inception(*changed, rng=rng(step), **ranges)
        assert plain[5].tolist() == among_others[5].tolist()


@pytest.mark.parametrize("area", [(0, 1), (-0.1, 1), (0.5, 0.4), (0.5, 1.1), (math.nan, 1)])
def test_inception_refuses_wrong_areas(area: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="area must be a range within"):
        geometry.inception([10], [10], rng=rng(), area=area)


@pytest.mark.parametrize("aspect", [(0, 1), (-1, 1), (1.3, 0.7), (0.7, math.nan)])
def test_inception_refuses_wrong_aspects(aspect: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="aspect must be a range of positive"):
        geometry.inception([10], [10], rng=rng(), aspect=aspect)
