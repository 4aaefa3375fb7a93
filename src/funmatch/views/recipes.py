"""Recipes: which view each network gets, the part of a distillation that the paper varies.

A recipe draws the boxes and flips of one step for a whole global batch. All recipes draw the
student's views from the same generators, so runs with one seed train on the same crops.

Source: Beyer et al. 2022, sec. 3.1 and fig. 3.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from funmatch.core import geometry
from funmatch.core.geometry import Boxes, Purpose, View

Sizes = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class CropConfig:
    """Parameters of the crop distributions: they belong to the images, not to the recipe.

    Attributes:
        min_area: smallest fraction of the image area of an inception crop.
        mild: side of the resized image and of the mild crop in it; also of the fixed centre crop.
        flip: mirror half of the crops; whole images are never mirrored.
    """

    min_area: float = 0.05
    mild: tuple[int, int] = (160, 128)
    flip: bool = True

    def crop_settings(self, crop: str) -> dict[str, object]:
        """Name and parameters of a crop distribution, for the identity of stored targets."""
        bounds: dict[str, dict[str, object]] = {
            "inception": {"min_area": self.min_area, "flip": self.flip},
            "mild": {"mild": tuple(self.mild), "flip": self.flip},
        }
        return {"crop": crop, **bounds.get(crop, {})}


def _inception(
    heights: Sizes, widths: Sizes, rng: np.random.Generator, config: CropConfig
) -> Boxes:
    return geometry.inception(heights, widths, rng=rng, area=(config.min_area, 1.0))


def _mild(heights: Sizes, widths: Sizes, rng: np.random.Generator, config: CropConfig) -> Boxes:
    resize, crop = config.mild
    return geometry.mild(heights, widths, rng=rng, resize=resize, crop=crop)


def _whole(heights: Sizes, widths: Sizes, rng: np.random.Generator, config: CropConfig) -> Boxes:
    return geometry.whole(heights, widths)


CROPS: dict[str, Callable[[Sizes, Sizes, np.random.Generator, CropConfig], Boxes]] = {
    "inception": _inception,
    "mild": _mild,
    "whole": _whole,
}


@dataclass(frozen=True)
class ViewSampler:
    """Draws the views of one network in one step.

    Attributes:
        seed: the key `seed`.
        step: optimiser step; for a fixed teacher the number of the view.
        boxes: purpose of the generator of the boxes.
        flips: purpose of the generator of the flips.
    """

    seed: int
    step: int
    boxes: Purpose
    flips: Purpose

    def view(self, crop: str, heights: Sizes, widths: Sizes, config: CropConfig) -> View:
        """Boxes and flips of a batch.

        Args:
            crop: distribution of the boxes, a key of `CROPS`.
            heights: [B], heights of the images, pixels.
            widths: [B], widths of the images, pixels.
            config: parameters of the distribution.
        """
        cut = CROPS[crop](heights, widths, self._generator(self.boxes), config)
        if not config.flip or crop == "whole":
            return View(cut, np.zeros(len(cut), dtype=bool))
        return View(cut, geometry.flips(len(cut), rng=self._generator(self.flips)))

    def _generator(self, purpose: Purpose) -> np.random.Generator:
        return geometry.generator(self.seed, self.step, purpose)


class Recipe(Protocol):
    """The interface of recipes, which `ImageViews` draws from.

    Attributes:
        name: as in `recipe=name`.
        mixing: mix the views of both networks.
        alpha: parameter of the mixing coefficient's distribution Beta(alpha, alpha).
    """

    @property
    def name(self) -> str: ...

    @property
    def mixing(self) -> bool: ...

    @property
    def alpha(self) -> float: ...

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        """The views of one step, by role: "student", and "teacher" unless it shares the student's.

        Args:
            seed: the key `seed`; draws are functions of it and the step.
            step: optimiser step, from 0.
            heights: [G], heights of the images of the global batch, pixels.
            widths: [G], widths, pixels.
        """
        ...

    def view_settings(self, seed: int) -> dict[str, object]:
        """All settings that determine the teacher's views, for the identity of stored targets."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shared(CropConfig):
    """Both networks see the same view: `consistent`, and `function_matching` with mixing.

    Args:
        name: as in `recipe=name`.
        crop: distribution of the crops: inception, mild or whole.
        mixing: mix the views of both networks.
        alpha: parameter of the mixing coefficient's distribution Beta(alpha, alpha); 1 is uniform.
    """

    name: str
    crop: str
    mixing: bool = False
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("recipe.crop", self.crop, CROPS)

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        draws = ViewSampler(seed, step, Purpose.STUDENT_BOXES, Purpose.STUDENT_FLIPS)
        return {"student": draws.view(self.crop, heights, widths, self)}

    def view_settings(self, seed: int) -> dict[str, object]:
        mixing = self.alpha if self.mixing else None
        return {"seed": seed, "shared": True, "mixing": mixing, **self.crop_settings(self.crop)}


@dataclass(frozen=True, kw_only=True)
class Independent(Shared):
    """Teacher and student see two independent crops of an image: `independent_noise`."""

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        draws = ViewSampler(seed, step, Purpose.TEACHER_BOXES, Purpose.TEACHER_FLIPS)
        teacher = draws.view(self.crop, heights, widths, self)
        return {**super().views(seed, step, heights, widths), "teacher": teacher}

    def view_settings(self, seed: int) -> dict[str, object]:
        return {**super().view_settings(seed), "shared": False}


@dataclass(frozen=True, kw_only=True)
class Fixed(CropConfig):
    """The teacher is evaluated once per image, before training: `fixed_teacher`.

    Args:
        name: as in `recipe=name`.
        teacher_crop: what the teacher sees: resize (the whole image), centre (the central crop), or
            inception_ensemble (the mean prediction over many inception crops).
        crop: distribution of the student's crops; None for the paper's choice, by `teacher_crop`.
        ensemble: number of crops of the inception ensemble.
        mixing: must stay false, since the teacher has no targets for mixed images.
        alpha: unused, without mixing.
    """

    name: str
    teacher_crop: str = "resize"
    crop: str | None = None
    ensemble: int = 1000
    mixing: bool = False
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _check_choice("recipe.teacher_crop", self.teacher_crop, TEACHER_CROPS)
        _check_choice("recipe.crop", self.student_crop, CROPS)
        if self.mixing:
            raise ValueError("recipe.mixing=true: a fixed teacher has no targets for mixed images")
        if self.ensemble < 1:
            raise ValueError(f"recipe.ensemble must be at least 1, got {self.ensemble}")

    @property
    def student_crop(self) -> str:
        """Distribution of the student's crops."""
        return self.crop or _PAPER_STUDENT_CROPS[self.teacher_crop]

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        draws = ViewSampler(seed, step, Purpose.STUDENT_BOXES, Purpose.STUDENT_FLIPS)
        return {"student": draws.view(self.student_crop, heights, widths, self)}

    def view_settings(self, seed: int) -> dict[str, object]:
        match self.teacher_crop:
            case "centre":
                return {"crop": "centre", "mild": tuple(self.mild)}
            case "inception_ensemble":
                return {"seed": seed, "ensemble": self.ensemble, **self.crop_settings("inception")}
        return {"crop": self.teacher_crop}

    @property
    def random_teacher_views(self) -> bool:
        """Whether the teacher's views are random: then they are drawn for all images at once."""
        return self.teacher_crop == "inception_ensemble"

    def teacher_views(self, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
        """The views over which the teacher's prediction of each of N images is averaged.

        Args:
            seed: the key `seed`; random views are functions of it.
            heights: [N], heights of the images, pixels.
            widths: [N], widths, pixels.

        Yields:
            One view of all images after the other.
        """
        return TEACHER_CROPS[self.teacher_crop](self, seed, heights, widths)


# fix/rs, fix/cc and fix/ic_ens of the paper.
_PAPER_STUDENT_CROPS = {"resize": "whole", "centre": "mild", "inception_ensemble": "inception"}


def _check_choice(key: str, value: str, choices: Iterable[str]) -> None:
    if value not in choices:
        raise ValueError(f"{key} must be one of {', '.join(choices)}, got {value!r}")


def _unflipped(boxes: Boxes) -> View:
    return View(boxes, np.zeros(len(boxes), dtype=bool))


def _resize(recipe: Fixed, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
    yield _unflipped(geometry.whole(heights, widths))


def _centre(recipe: Fixed, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
    resize, crop = recipe.mild
    yield _unflipped(geometry.centre(heights, widths, resize=resize, crop=crop))


def _inception_ensemble(recipe: Fixed, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
    for number in range(recipe.ensemble):
        draws = ViewSampler(seed, number, Purpose.TEACHER_BOXES, Purpose.TEACHER_FLIPS)
        yield draws.view("inception", heights, widths, recipe)


TEACHER_CROPS: dict[str, Callable[[Fixed, int, Sizes, Sizes], Iterator[View]]] = {
    "resize": _resize,
    "centre": _centre,
    "inception_ensemble": _inception_ensemble,
}
