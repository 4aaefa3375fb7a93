"""Recipes: the pixels that student and teacher see in training."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from funmatch.core import geometry, mixing
from funmatch.core.geometry import Purpose
from funmatch.core.render import render
from funmatch.models.frozen import Frozen
from funmatch.models.teacher import Teacher
from funmatch.objectives.function_matching import FunctionMatching
from funmatch.targets import online, per_image
from funmatch.training.distillation import Distillation
from funmatch.views.recipes import Fixed, Independent, Shared
from funmatch.views.stream import EpochPermutations
from toys import TASK, MixedSizes, array_source, fit, learning, network, teacher_of

RECIPES = ("fixed_teacher", "independent_noise", "consistent", "function_matching")
SEED, STEPS, BATCH, MIN_AREA = 5, 6, 8, 0.3


def taught(recipe, source, folder: Path, *, student_side: int = 8, teacher_side: int = 8):
    """Runs a distillation; returns what student and teacher saw in training, step by step."""
    student, teacher = network(student_side, seed=1), network(teacher_side, seed=2)
    ensemble = teacher_of(teacher)
    sides = {"student": student_side, "teacher": teacher_side}
    if isinstance(recipe, Fixed):
        sides.pop("teacher")
        targets = per_image.on_fixed_views(
            ensemble,
            source,
            recipe,
            TASK,
            seed=SEED,
            store=folder,
            batch_size=3,
            device=torch.device("cpu"),
        )
    else:
        targets = online.OnlineTargets(ensemble)
    before = list(teacher.net.seen)
    teacher.net.seen.clear()
    learner = Distillation(student, targets, {}, FunctionMatching(2.0), learning(STEPS), TASK)
    fit(learner, source, recipe, sides=sides, steps=STEPS, batch_size=BATCH, seed=SEED)
    return student.net.seen, teacher.net.seen, before


def crops(source, step: int, side: int, kind: str, network: str = "student") -> Tensor:
    """The views of a step, drawn again from (seed, step) with the pure functions alone."""
    indices = EpochPermutations(len(source), BATCH, SEED).indices(step)
    heights, widths = source.sizes(indices)
    boxes, flips = {
        "student": (Purpose.STUDENT_BOXES, Purpose.STUDENT_FLIPS),
        "teacher": (Purpose.TEACHER_BOXES, Purpose.TEACHER_FLIPS),
    }[network]
    rng = geometry.generator(SEED, step, boxes)
    if kind == "inception":
        cut = geometry.inception(heights, widths, rng=rng, area=(MIN_AREA, 1.0))
    else:
        cut = geometry.mild(heights, widths, rng=rng)
    mirrored = geometry.flips(BATCH, rng=geometry.generator(SEED, step, flips))
    views = zip(source.images(indices), cut, mirrored, strict=True)
    return torch.stack([render(i, box, side, flip=bool(f)) for i, box, f in views]).float()


@pytest.fixture(params=[array_source, MixedSizes], ids=["one size", "mixed sizes"])
def source(request: pytest.FixtureRequest):
    return request.param()


@pytest.mark.parametrize("kind", ["inception", "mild"])
def test_consistent_shows_both_networks_the_same_crop(source, kind: str, tmp_path: Path) -> None:
    recipe = Shared(name="consistent", crop=kind, min_area=MIN_AREA)
    student, teacher, _ = taught(recipe, source, tmp_path)
    for step in range(STEPS):
        torch.testing.assert_close(student[step], crops(source, step, 8, kind))
        assert torch.equal(teacher[step], student[step])


@pytest.mark.parametrize("kind", ["inception", "mild"])
def test_independent_noise_shows_each_network_its_own_crop(
    source, kind: str, tmp_path: Path
) -> None:
    recipe = Independent(name="independent_noise", crop=kind, min_area=MIN_AREA)
    student, teacher, _ = taught(recipe, source, tmp_path)
    for step in range(STEPS):
        torch.testing.assert_close(student[step], crops(source, step, 8, kind))
        torch.testing.assert_close(teacher[step], crops(source, step, 8, kind, "teacher"))
        assert not torch.equal(teacher[step], student[step])


def test_function_matching_shows_both_networks_the_same_mixed_crop(source, tmp_path: Path) -> None:
    recipe = Shared(name="function_matching", crop="inception", mixing=True, min_area=MIN_AREA)
    student, teacher, _ = taught(recipe, source, tmp_path)
    for step in range(STEPS):
        a = mixing.folded_uniform(geometry.generator(SEED, step, Purpose.MIXING))
        plain = crops(source, step, 8, "inception")
        expected = torch.stack([a * plain[i] + (1 - a) * plain[i - 1] for i in range(BATCH)])
        torch.testing.assert_close(student[step], expected, rtol=1e-5, atol=1e-3)
        assert torch.equal(teacher[step], student[step])


def test_shared_crop_is_rendered_at_each_networks_size(source, tmp_path: Path) -> None:
    recipe = Shared(name="consistent", crop="inception", min_area=MIN_AREA)
    student, teacher, _ = taught(recipe, source, tmp_path, student_side=6, teacher_side=10)
    for step in range(STEPS):
        torch.testing.assert_close(student[step], crops(source, step, 6, "inception"))
        torch.testing.assert_close(teacher[step], crops(source, step, 10, "inception"))


def test_fixed_teacher_is_evaluated_once_per_image_before_training(source, tmp_path: Path) -> None:
    recipe = Fixed(name="fixed_teacher", crop="whole", teacher_crop="resize")
    student, teacher, before = taught(recipe, source, tmp_path)
    assert teacher == []
    every = np.arange(len(source))
    heights, widths = source.sizes(every)
    boxes = geometry.whole(heights, widths)
    whole = torch.stack([render(i, b, 8) for i, b in zip(source.images(every), boxes, strict=True)])
    torch.testing.assert_close(torch.cat(before), whole.float())
    for step in range(STEPS):  # the very same whole images
        indices = EpochPermutations(len(source), BATCH, SEED).indices(step)
        torch.testing.assert_close(student[step], whole[indices].float())


def test_fixed_teacher_sees_centre_crops_and_student_mild_crops(source, tmp_path: Path) -> None:
    recipe = Fixed(name="fixed_teacher", crop="mild", teacher_crop="centre")
    student, teacher, before = taught(recipe, source, tmp_path)
    assert teacher == []
    every = np.arange(len(source))
    boxes = geometry.centre(*source.sizes(every), resize=160, crop=128)
    centre = [render(i, b, 8) for i, b in zip(source.images(every), boxes, strict=True)]
    torch.testing.assert_close(torch.cat(before), torch.stack(centre).float())
    for step in range(STEPS):
        torch.testing.assert_close(student[step], crops(source, step, 8, "mild"))


def test_fixed_inception_ensemble_is_the_mean_prediction(source, tmp_path: Path) -> None:
    recipe = Fixed(
        name="fixed_teacher",
        crop="inception",
        teacher_crop="inception_ensemble",
        ensemble=5,
        min_area=MIN_AREA,
    )
    frozen = Frozen(network(8, seed=2))
    arguments = {"seed": SEED, "store": tmp_path, "batch_size": 3, "device": torch.device("cpu")}
    teacher_ensemble = Teacher({"teacher": frozen})
    targets = per_image.on_fixed_views(teacher_ensemble, source, recipe, TASK, **arguments)

    every = np.arange(len(source))
    heights, widths = source.sizes(every)
    expected = torch.zeros(len(source), 7, dtype=torch.float64)
    for number in range(5):
        rng = geometry.generator(SEED, number, Purpose.TEACHER_BOXES)
        boxes = geometry.inception(heights, widths, rng=rng, area=(MIN_AREA, 1.0))
        flips = geometry.flips(
            len(source), rng=geometry.generator(SEED, number, Purpose.TEACHER_FLIPS)
        )
        for row, image in enumerate(source.images(every)):
            view = render(image, boxes[row], 8, flip=bool(flips[row]))
            expected[row] += frozen(view[None].float()).prediction[0].double().softmax(0) / 5
    probabilities = targets._predictions[0].double().softmax(dim=-1)
    torch.testing.assert_close(probabilities, expected, rtol=1e-4, atol=1e-7)

    student, teacher, _ = taught(recipe, source, tmp_path)
    assert teacher == []
    torch.testing.assert_close(student[2], crops(source, 2, 8, "inception"))


def test_whole_images_and_flip_false_are_never_mirrored() -> None:
    heights = widths = np.full(64, 20)
    for recipe in (
        Shared(name="x", crop="whole", flip=True),
        Shared(name="x", crop="inception", flip=False),
    ):
        assert not recipe.views(0, 0, heights, widths)["student"].flips.any()
    mirrored = Shared(name="x", crop="inception").views(0, 0, heights, widths)["student"].flips
    assert mirrored.any()
    assert not mirrored.all()


def test_all_recipes_draw_the_same_student_crops() -> None:
    heights, widths = np.full(32, 40), np.full(32, 60)
    drawn = [
        recipe.views(3, 11, heights, widths)["student"]
        for recipe in (
            Shared(name="consistent", crop="inception"),
            Shared(name="function_matching", crop="inception", mixing=True),
            Independent(name="independent_noise", crop="inception"),
            Fixed(name="fixed_teacher", crop="inception", teacher_crop="inception_ensemble"),
        )
    ]
    for view in drawn[1:]:
        assert np.array_equal(view.boxes, drawn[0].boxes)
        assert np.array_equal(view.flips, drawn[0].flips)


def test_unknown_crops_and_wrong_ensembles_are_refused() -> None:
    with pytest.raises(ValueError, match=r"recipe\.crop must be one of .*got 'huge'"):
        Shared(name="x", crop="huge")
    with pytest.raises(ValueError, match=r"recipe\.teacher_crop must be one of .*got 'huge'"):
        Fixed(name="x", crop="whole", teacher_crop="huge")
    with pytest.raises(ValueError, match=r"recipe\.mixing=true: a fixed teacher has no targets"):
        Fixed(name="x", crop="whole", mixing=True)
    with pytest.raises(ValueError, match=r"recipe\.ensemble must be at least 1, got 0"):
        Fixed(name="x", crop="whole", ensemble=0)


def test_recipes_change_only_the_recipe_node(compose: Callable[..., DictConfig]) -> None:
    composed = []
    for recipe in RECIPES:
        cfg = compose(f"recipe={recipe}")
        assert cfg.recipe.name == recipe
        plain = OmegaConf.to_container(cfg, resolve=True)
        plain.pop("recipe")
        composed.append(plain)
    assert all(other == composed[0] for other in composed[1:])


@pytest.mark.parametrize(
    ("teacher_crop", "crop"),
    [("resize", "whole"), ("centre", "mild"), ("inception_ensemble", "inception")],
)
def test_student_crop_defaults_to_match_the_fixed_teacher(teacher_crop: str, crop: str) -> None:
    assert Fixed(name="fixed_teacher", teacher_crop=teacher_crop).student_crop == crop
    assert (
        Fixed(name="fixed_teacher", teacher_crop=teacher_crop, crop="mild").student_crop == "mild"
    )
