"""Images and networks in the form that other frameworks expect."""

from collections.abc import Callable

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from funmatch.data.sources import Source
from funmatch.models.network import Network
from funmatch.views.recipes import Shared
from workload import Workload


class Images(Dataset[tuple[Tensor, int]]):
    """A dataset as in torchvision, of single images, all with label 0.

    Args:
        source: the images.
        transform: function of an image, uint8 [C, H, W]; timm's loader replaces it.
    """

    def __init__(self, source: Source, transform: Callable[[Tensor], Tensor] | None = None) -> None:
        self._source, self.transform = source, transform

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = _image(self._source, index)
        return image if self.transform is None else self.transform(image), 0


def _image(source: Source, index: int) -> Tensor:
    (image,) = source.images(np.array([index]))
    return image


def networks(work: Workload) -> tuple[Network, Network]:
    """Student and teacher; other frameworks use their `net`, which does not normalise.

    Raises:
        ValueError: the workload needs features that the other frameworks lack.
    """
    if type(work.recipe) is not Shared or work.recipe.crop != "inception":
        raise ValueError(f"recipe={work.recipe.name}: both networks must see one inception crop")
    if len(work.teacher.members) > 1:
        raise ValueError("teacher.members: only one teacher")
    student, teacher = work.plain()
    if teacher.side != student.side:
        raise ValueError(f"teacher.side={teacher.side}: must be student.side={student.side}")
    return student, teacher.requires_grad_(False).eval()


def normalisation(network: Network) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel, of pixels in [0, 1]."""
    std = 1 / (255 * network.scale.flatten())
    return (network.shift.flatten() * std).tolist(), std.tolist()
