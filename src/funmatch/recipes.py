"""Which view each network gets: the part of a distillation that the paper varies.

A recipe draws the boxes and flips of one step for a whole global batch. All recipes draw the
student's views from the same generators, so runs with one seed teach on the same crops.

Source: Beyer et al. 2022, sec. 3.1 and fig. 3.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from funmatch import geometry
from funmatch.geometry import Purpose

Sizes = NDArray[np.int64]
Boxes = NDArray[np.generic]


@dataclass(frozen=True)
class View:
    """How a batch is cut: boxes [B, 4] and flips [B] (see `geometry`)."""

    boxes: Boxes
    flips: NDArray[np.bool_]

    def __getitem__(self, rows: NDArray[np.int64]) -> "View":
        return View(self.boxes[rows], self.flips[rows])


def _inception(heights: Sizes, widths: Sizes, rng: np.random.Generator, min_area: float) -> Boxes:
    return geometry.inception(heights, widths, rng=rng, area=(min_area, 1.0))


def _mild(heights: Sizes, widths: Sizes, rng: np.random.Generator, min_area: float) -> Boxes:
    return geometry.mild(heights, widths, rng=rng)


def _whole(heights: Sizes, widths: Sizes, rng: np.random.Generator, min_area: float) -> Boxes:
    return geometry.whole(heights, widths)


CROPS: dict[str, Callable[[Sizes, Sizes, np.random.Generator, float], Boxes]] = {
    "inception": _inception,
    "mild": _mild,
    "whole": _whole,
}


class Recipe(Protocol):
    """What the stream asks of a recipe."""

    name: str
    mixing: bool

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        """The views of one step, by network; a teacher without one shares the student's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Shared:
    """Both networks see the same view: `consistent`, and `function_matching` with mixing.

    Args:
        name: of the recipe.
        crop: law of the crops: inception, mild or whole.
        mixing: mix the views before both networks.
        min_area: smallest share of an image that an inception crop keeps.
        flip: mirror half of the crops; whole images are never mirrored.
    """

    name: str
    crop: str
    mixing: bool = False
    min_area: float = 0.05
    flip: bool = True

    def __post_init__(self) -> None:
        if self.crop not in CROPS:
            raise ValueError(f"recipe.crop must be one of {', '.join(CROPS)}, got {self.crop!r}")

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        student = self._draw(
            seed, step, heights, widths, Purpose.STUDENT_BOXES, Purpose.STUDENT_FLIPS
        )
        return {"student": student}

    def _draw(
        self,
        seed: int,
        step: int,
        heights: Sizes,
        widths: Sizes,
        boxes: Purpose,
        flips: Purpose,
    ) -> View:
        rng = geometry.generator(seed, step, boxes)
        mirrored = np.zeros(len(heights), dtype=bool)
        if self.flip and self.crop != "whole":
            mirrored = geometry.flips(len(heights), rng=geometry.generator(seed, step, flips))
        return View(CROPS[self.crop](heights, widths, rng, self.min_area), mirrored)


@dataclass(frozen=True, kw_only=True)
class Independent(Shared):
    """Each network sees a crop of its own: `independent_noise`."""

    def views(self, seed: int, step: int, heights: Sizes, widths: Sizes) -> dict[str, View]:
        teacher = self._draw(
            seed, step, heights, widths, Purpose.TEACHER_BOXES, Purpose.TEACHER_FLIPS
        )
        return {**super().views(seed, step, heights, widths), "teacher": teacher}


@dataclass(frozen=True, kw_only=True)
class Fixed(Shared):
    """The teacher is asked once per image, before training: `fixed_teacher`.

    Args:
        crop: law of the student's crops; None for what the paper sets beside `teacher_crop`.
        teacher_crop: what the teacher sees: resize (the whole image), centre (160 -> 128), or
            inception_ensemble (the mean prediction over many inception crops).
        ensemble: how many crops the inception ensemble has.
    """

    crop: str | None = None  # type: ignore[assignment]
    teacher_crop: str = "resize"
    ensemble: int = 1000

    def __post_init__(self) -> None:
        if self.crop is None:
            object.__setattr__(self, "crop", _BESIDE.get(self.teacher_crop, "whole"))
        super().__post_init__()
        if self.teacher_crop not in TEACHER_CROPS:
            raise ValueError(
                f"recipe.teacher_crop must be one of {', '.join(TEACHER_CROPS)}, "
                f"got {self.teacher_crop!r}"
            )
        if self.mixing:
            raise ValueError("recipe.mixing=true: a fixed teacher has no word on mixed views")
        if self.ensemble < 1:
            raise ValueError(f"recipe.ensemble must be at least 1, got {self.ensemble}")

    def teacher_views(self, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
        """The views [N] over which the teacher's prediction of each of N images is averaged."""
        return TEACHER_CROPS[self.teacher_crop](self, seed, heights, widths)


# fix/rs, fix/cc and fix/ic_ens of the paper.
_BESIDE = {"resize": "whole", "centre": "mild", "inception_ensemble": "inception"}


def _still(boxes: Boxes) -> View:
    return View(boxes, np.zeros(len(boxes), dtype=bool))


def _resize(recipe: Fixed, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
    yield _still(geometry.whole(heights, widths))


def _centre(recipe: Fixed, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
    yield _still(geometry.centre(heights, widths, resize=160, crop=128))


def _inception_ensemble(recipe: Fixed, seed: int, heights: Sizes, widths: Sizes) -> Iterator[View]:
    member = Shared(name="", crop="inception", min_area=recipe.min_area, flip=recipe.flip)
    for number in range(recipe.ensemble):
        yield member._draw(
            seed, number, heights, widths, Purpose.TEACHER_BOXES, Purpose.TEACHER_FLIPS
        )


TEACHER_CROPS: dict[str, Callable[[Fixed, int, Sizes, Sizes], Iterator[View]]] = {
    "resize": _resize,
    "centre": _centre,
    "inception_ensemble": _inception_ensemble,
}
