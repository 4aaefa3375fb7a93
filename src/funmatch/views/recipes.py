"""Which view each network gets: the part of a distillation that the paper varies.

A recipe draws the boxes and flips of one step for a whole global batch. All recipes draw the
student's views from the same generators, so runs with one seed teach on the same crops.

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
    """What the laws of crops depend on: it belongs to the images, not to the recipe.

    Attributes:
        min_area: smallest share of an image that an inception crop keeps.
        mild: side of the resized image and of the mild crop in it; also of the fixed centre crop.
        flip: mirror half of the crops; whole images are never mirrored.
    """

    min_area: float = 0.05
    mild: tuple[int, int] = (160, 128)
    flip: bool = True

    def crops(self, law: str) -> dict[str, object]:
        """A law of crops with all that it depends on, by name."""
        bounds: dict[str, dict[str, object]] = {
            "inception": {"min_area": self.min_area, "flip": self.flip},
            "mild": {"mild": tuple(self.mild), "flip": self.flip},
        }
        return {"crop": law, **bounds.get(law, {})}


def _inception(heights: Sizes, widths: Sizes, rng: np.random.Generator, how: CropConfig) -> Boxes:
    return geometry.inception(heights, widths, rng=rng, area=(how.min_area, 1.0))


def _mild(heights: Sizes, widths: Sizes, rng: np.random.Generator, how: CropConfig) -> Boxes:
    resize, crop = how.mild
    return geometry.mild(heights, widths, rng=rng, resize=resize, crop=crop)


def _whole(heights: Sizes, widths: Sizes, rng: np.random.Generator, how: CropConfig) -> Boxes:
    return geometry.whole(heights, widths)


CROPS: dict[str, Callable[[Sizes, Sizes, np.random.Generator, CropConfig], Boxes]] = {
    "inception": _inception,
    "mild": _mild,
    "whole": _whole,
}


@dataclass(frozen=True)
class ViewSampler:
    """Where the random numbers of one network's views come from."""

    seed: int
    step: int
    boxes: Purpose
    flips: Purpose

    def view(self, crop: str, heights: Sizes, widths: Sizes, how: CropConfig) -> View:
        """A batch cut by a law."""
        cut = CROPS[crop](heights, widths, self._generator(self.boxes), how)
        if not how.flip or crop == "whole":
            return View(cut, np.zeros(len(cut), dtype=bool))
        return View(cut, geometry.flips(len(cut), rng=self._generator(self.flips)))

    def _generator(self, purpose: Purpose) -> np.random.Generator:
        return geometry.generator(self.seed, self.step, purpose)


class Recipe(Protocol):
    """What the stream asks of a recipe."""

    @property
    def name(self) -> str: ...

    @property
    def mixing(self) -> bool: ...

    @property
    def alpha(self) -> float: ...

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        """The views of one step, by network; a teacher without one shares the student's."""
        ...

    def law(self, seed: int) -> dict[str, object]:
        """What decides how the teacher's views are cut and mixed, by name."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shared(CropConfig):
    """Both networks see the same view: `consistent`, and `function_matching` with mixing.

    Args:
        name: of the recipe.
        crop: law of the crops: inception, mild or whole.
        mixing: mix the views before both networks.
        alpha: of the mixing coefficient's law Beta(alpha, alpha); 1 is uniform.
    """

    name: str
    crop: str
    mixing: bool = False
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _known("recipe.crop", self.crop, CROPS)

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        draws = ViewSampler(seed, step, Purpose.STUDENT_BOXES, Purpose.STUDENT_FLIPS)
        return {"student": draws.view(self.crop, heights, widths, self)}

    def law(self, seed: int) -> dict[str, object]:
        mixing = self.alpha if self.mixing else None
        return {"seed": seed, "shared": True, "mixing": mixing, **self.crops(self.crop)}


@dataclass(frozen=True, kw_only=True)
class Independent(Shared):
    """Each network sees a crop of its own: `independent_noise`."""

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        draws = ViewSampler(seed, step, Purpose.TEACHER_BOXES, Purpose.TEACHER_FLIPS)
        teacher = draws.view(self.crop, heights, widths, self)
        return {**super().views(seed, step, heights, widths), "teacher": teacher}

    def law(self, seed: int) -> dict[str, object]:
        return {**super().law(seed), "shared": False}


@dataclass(frozen=True, kw_only=True)
class Fixed(CropConfig):
    """The teacher is asked once per image, before training: `fixed_teacher`.

    Args:
        name: of the recipe.
        teacher_crop: what the teacher sees: resize (the whole image), centre (the central crop), or
            inception_ensemble (the mean prediction over many inception crops).
        crop: law of the student's crops; None for what the paper sets beside `teacher_crop`.
        ensemble: how many crops the inception ensemble has.
        mixing: must stay false, the teacher has no word on mixed views.
    """

    name: str
    teacher_crop: str = "resize"
    crop: str | None = None
    ensemble: int = 1000
    mixing: bool = False
    alpha: float = 1.0

    def __post_init__(self) -> None:
        _known("recipe.teacher_crop", self.teacher_crop, TEACHER_CROPS)
        _known("recipe.crop", self.student_crop, CROPS)
        if self.mixing:
            raise ValueError("recipe.mixing=true: a fixed teacher has no word on mixed views")
        if self.ensemble < 1:
            raise ValueError(f"recipe.ensemble must be at least 1, got {self.ensemble}")

    @property
    def student_crop(self) -> str:
        """The law of the student's crops."""
        return self.crop or _BESIDE[self.teacher_crop]

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        draws = ViewSampler(seed, step, Purpose.STUDENT_BOXES, Purpose.STUDENT_FLIPS)
        return {"student": draws.view(self.student_crop, heights, widths, self)}

    def law(self, seed: int) -> dict[str, object]:
        match self.teacher_crop:
            case "centre":
                return {"crop": "centre", "mild": tuple(self.mild)}
            case "inception_ensemble":
                return {"seed": seed, "ensemble": self.ensemble, **self.crops("inception")}
        return {"crop": self.teacher_crop}

    @property
    def drawn(self) -> bool:
        """Whether the teacher's views are drawn: then those of one image hang on all others."""
        return self.teacher_crop == "inception_ensemble"

    def teacher_views(self, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
        """The views [N] over which the teacher's prediction of each of N images is averaged."""
        return TEACHER_CROPS[self.teacher_crop](self, seed, heights, widths)


# fix/rs, fix/cc and fix/ic_ens of the paper.
_BESIDE = {"resize": "whole", "centre": "mild", "inception_ensemble": "inception"}


def _known(key: str, law: str, laws: Iterable[str]) -> None:
    if law not in laws:
        raise ValueError(f"{key} must be one of {', '.join(laws)}, got {law!r}")


def _still(boxes: Boxes) -> View:
    return View(boxes, np.zeros(len(boxes), dtype=bool))


def _resize(recipe: Fixed, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
    yield _still(geometry.whole(heights, widths))


def _centre(recipe: Fixed, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
    resize, crop = recipe.mild
    yield _still(geometry.centre(heights, widths, resize=resize, crop=crop))


def _inception_ensemble(recipe: Fixed, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
    for number in range(recipe.ensemble):
        draws = ViewSampler(seed, number, Purpose.TEACHER_BOXES, Purpose.TEACHER_FLIPS)
        yield draws.view("inception", heights, widths, recipe)


TEACHER_CROPS: dict[str, Callable[[Fixed, int, Sizes, Sizes], Iterator[View]]] = {
    "resize": _resize,
    "centre": _centre,
    "inception_ensemble": _inception_ensemble,
}
