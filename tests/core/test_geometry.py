"""Random generators, mild crops, centre crops, whole images and flips of core.geometry."""

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from funmatch.core import geometry, render


def rng(step: int = 0) -> np.random.Generator:
    return geometry.generator(0, step, geometry.Purpose.STUDENT_BOXES)


# --- the counter-based generator -----------------------------------------------------------------


def test_generator_is_a_function_of_seed_step_and_purpose() -> None:
    """Each triple has draws of its own, the same ones in whatever order they are drawn."""
    triples = [(s, t, p) for s in (0, 1, 2, 7) for t in (0, 1, 2, 10**9) for p in (0, 1, 2, 5)]
    forwards = {triple: geometry.generator(*triple).random(4).tolist() for triple in triples}
    backwards = {triple: geometry.generator(*triple).random(4).tolist() for triple in triples[::-1]}
    assert forwards == backwards
    assert len({number for draws in forwards.values() for number in draws}) == 4 * len(triples)


def test_no_two_purposes_share_their_draws() -> None:
    """A repeated number would make an alias of the second name, without an error."""
    assert len(geometry.Purpose) == len(geometry.Purpose.__members__)


def test_draws_of_consecutive_steps_do_not_overlap() -> None:
    long = geometry.generator(3, 0).random(100_000)
    assert not np.isin(geometry.generator(3, 1).random(100), long).any()


def test_generator_draws_the_same_numbers_in_every_version() -> None:
    """A stored run is replayed from its seed: new numbers would silently change every run."""
    raw = geometry.generator(7, 1000, geometry.Purpose.MIXING).bit_generator.random_raw(2)
    assert raw.tolist() == [7980378825167389424, 15822271294995877213]


@pytest.mark.parametrize(("seed", "step"), [(-1, 0), (0, -1), (2**64, 0), (0, 2**64)])
def test_generator_refuses_seeds_and_steps_beyond_64_bits(seed: int, step: int) -> None:
    with pytest.raises(ValueError, match=f"must lie in .*, got {seed} and {step}"):
        geometry.generator(seed, step)


# --- mild crops, centres, whole images, flips ----------------------------------------------------


@pytest.mark.parametrize("size", [(375, 500), (97, 61), (40, 60), (160, 160), (1, 3)])
def test_mild_equals_resize_then_crop(size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, *size), dtype=np.uint8)
    image = torch.from_numpy(pixels)
    resized = interpolate(image[None].float(), (160, 160), mode="bilinear")[0].to(torch.uint8)
    for step in range(5):
        [box] = geometry.mild([size[0]], [size[1]], rng=rng(step))
        top, left, height, width = (box * 160 / np.tile(size, 2)).round().astype(int)
        assert (height, width) == (128, 128)
        expected = resized[:, top : top + 128, left : left + 128].int()
        assert (render.render(image, box, 128).int() - expected).abs().max() <= 1


def test_crop_of_the_resize_side_is_the_whole_image() -> None:
    whole = geometry.whole([30], [30])
    np.testing.assert_allclose(geometry.mild([30], [30], rng=rng(), resize=40, crop=40), whole)
    np.testing.assert_allclose(geometry.centre([30], [30], resize=40, crop=40), whole)


def test_mild_corner_is_uniform() -> None:
    n = 40_000
    boxes = geometry.mild([30] * n, [90] * n, rng=rng(), resize=12, crop=10)
    corners = boxes[:, :2] / [30 / 12, 90 / 12]
    positions, counts = np.unique(corners.round(6), axis=0, return_counts=True)
    assert positions.tolist() == [[y, x] for y in range(3) for x in range(3)]
    assert counts / n == pytest.approx(1 / 9, abs=0.01)
    assert np.all(boxes[:, 2:] == [25.0, 75.0])


def test_centre_is_the_middle_of_the_resized_image() -> None:
    boxes = geometry.centre([97, 131, 64], [131, 97, 64], resize=40, crop=32)
    y, x = 97 / 40, 131 / 54  # the longer side becomes 54.02 px, so 54
    expected = [
        [4 * y, 11 * x, 32 * y, 32 * x],
        [11 * x, 4 * y, 32 * x, 32 * y],
        [6.4, 6.4, 51.2, 51.2],
    ]
    np.testing.assert_allclose(boxes, expected, rtol=1e-12)


def test_centre_rounds_odd_margins_towards_top_and_left() -> None:
    assert geometry.centre([5], [6], resize=5, crop=4).tolist() == [[0, 1, 4, 4]]


@pytest.mark.parametrize(
    ("size", "resize", "expected"),
    [
        ((97, 131), 40, (40, 54)),
        ((131, 97), 40, (54, 40)),
        ((4, 5), 2, (2, 2)),  # 2.5: halves go to the even neighbour
        ((4, 7), 2, (2, 4)),  # 3.5
        ((10, 14), 160, (160, 224)),
        ((576, 585), 160, (160, 163)),  # 162.5, which float32 puts just above the half
    ],
)
def test_shorter_side_keeps_the_aspect_and_rounds_half_to_even(
    size: tuple[int, int], resize: int, expected: tuple[int, int]
) -> None:
    assert tuple(geometry.shorter_side(np.array(size), resize)) == expected


def test_whole_covers_the_image() -> None:
    boxes = geometry.whole([3, 50], [4, 20])
    assert boxes.tolist() == [[0, 0, 3, 4], [0, 0, 50, 20]]
    assert boxes.dtype == np.float64


def test_flips_are_fair_and_independent() -> None:
    flips = geometry.flips(20_000, rng=rng())
    assert (flips.dtype, flips.shape) == (np.bool_, (20_000,))
    assert flips.mean() == pytest.approx(0.5, abs=0.015)
    assert np.mean(flips[1:] == flips[:-1]) == pytest.approx(0.5, abs=0.015)


# --- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("crop", [-1, 0, 41])
def test_crops_larger_than_the_resized_image_are_refused(crop: int) -> None:
    with pytest.raises(ValueError, match=rf"crop must lie in \(0, resize=40\], got {crop}"):
        geometry.mild([64], [64], rng=rng(), resize=40, crop=crop)
    with pytest.raises(ValueError, match=rf"crop must lie in \(0, resize=40\], got {crop}"):
        geometry.centre([64], [64], resize=40, crop=crop)


def test_noise_seeds_differ_by_seed_step_and_rank() -> None:
    arguments = [
        (seed, step, rank) for seed in range(11) for step in range(112) for rank in range(3)
    ]
    seeds = [geometry.noise_seed(*argument) for argument in arguments]
    assert all(0 <= seed < 2**32 for seed in seeds)
    assert len(set(seeds)) >= len(seeds) - 2  # of 32 bits
    assert seeds == [geometry.noise_seed(*argument) for argument in arguments]
