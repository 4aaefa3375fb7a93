"""Small real parts that tests put together: sources, networks that remember, a training run."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import Trainer
from numpy.typing import NDArray
from torch import Tensor, nn

from funmatch.core.images import Images
from funmatch.data.sources import ArraySource, Source, Splits
from funmatch.models import conv
from funmatch.models.frozen import Frozen
from funmatch.models.network import Network
from funmatch.models.teacher import Teacher
from funmatch.optim import adam, schedules
from funmatch.tasks.classification.task import Classification
from funmatch.training.callbacks.checkpoint import VerifiedCheckpointIO
from funmatch.training.datamodule import DataModule
from funmatch.training.learner import Learner, Learning
from funmatch.views.evaluation_views import EvaluationViews
from funmatch.views.image_views import ImageViews, Placement, TruthInView
from funmatch.views.recipes import Recipe
from funmatch.views.stream import Stream

CLASSES = 7
TASK = Classification(CLASSES)


def array_source(n: int = 20, side: int = 12, seed: int = 0) -> ArraySource:
    """Random images of one size, with labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 3, side, side + 4), dtype=np.uint8)
    labels = rng.integers(0, CLASSES, n)
    return ArraySource(
        torch.from_numpy(images), torch.from_numpy(labels), [str(c) for c in range(CLASSES)]
    )


class MixedSizes:
    """Random images of different sizes, as photographs are."""

    classes = tuple(str(c) for c in range(CLASSES))

    def __init__(self, n: int = 20, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self._sizes = rng.integers(9, 30, (n, 2))
        self._images = [
            torch.from_numpy(rng.integers(0, 256, (3, h, w), dtype=np.uint8))
            for h, w in self._sizes
        ]

    def __len__(self) -> int:
        return len(self._images)

    def sizes(self, indices: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return self._sizes[indices, 0], self._sizes[indices, 1]

    def images(self, indices: NDArray[np.int64]) -> Images:
        return Images.of(self._images[i] for i in indices)

    def labels(self, indices: NDArray[np.int64]) -> None:
        return None

    def fingerprint(self) -> str:
        return "mixed sizes"


class Remembering(nn.Module):
    """A linear classifier that remembers what it was shown."""

    def __init__(self, side: int, seed: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(3 * side * side, CLASSES)
        with torch.no_grad():
            self.linear.bias.zero_()
            weight = torch.empty_like(self.linear.weight)
            self.linear.weight.copy_(weight.normal_(generator=torch.Generator().manual_seed(seed)))
        self.seen: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(images.detach().clone())
        return self.linear(images.flatten(1))


def forgetful(**settings: Any) -> nn.Module:
    """A network whose steps draw random numbers."""
    *layers, head = conv.build(**settings)
    return nn.Sequential(*layers, nn.Dropout(0.3), head)


def image_stream(
    source: Source,
    recipe: Recipe,
    *,
    sides: dict[str, int],
    placement: Placement | None = None,
    truth_in_view: TruthInView | None = None,
    **order: int,
) -> Stream:
    """The training batches of a source of images."""
    views = ImageViews(
        source,
        recipe,
        sides=sides,
        placement=placement or Placement(),
        truth_in_view=truth_in_view,
    )
    return Stream(views, **order)


def network(side: int = 8, seed: int = 0) -> Network:
    """Shows its net the plain pixels in [0, 255]."""
    return Network(
        Remembering(side, seed), mean=[0.0] * 3, std=[1 / 255] * 3, side=side, resize=side
    )


def teacher_of(net: Network) -> Teacher:
    """A teacher of one network."""
    return Teacher({"teacher": Frozen(net)})


def learning(steps: int) -> Learning:
    """Optimiser and schedule of a short run."""
    return Learning(
        optimizer=partial(adam.adam, lr=0.01, wd=1e-3),
        schedule=lambda step: schedules.warmup_cosine(step, total_steps=steps, warmup_steps=1),
        log_every=1,
        clip_norm=1.0,
    )


def fit(
    learner: Learner,
    source: ArraySource | MixedSizes,
    recipe: Recipe,
    *,
    sides: dict[str, int],
    steps: int,
    batch_size: int,
    seed: int = 0,
    folder: Path | None = None,
) -> Trainer:
    """Trains with the real data module and trainer; saves the last state in the folder, if any."""
    views = (EvaluationViews(array_source(6, seed=s), resize=8, side=8) for s in (1, 2))
    splits = Splits(source, *views)
    data = DataModule(
        splits,
        ImageViews(source, recipe, sides=sides),
        batch_size=batch_size,
        steps=steps,
        seed=seed,
    )
    trained = trainer(steps)
    trained.fit(learner, data)
    if folder is not None:
        trained.save_checkpoint(folder / "state.ckpt")
    return trained


def trainer(steps: int, *, callbacks: Sequence[Any] = (), plugins: Sequence[Any] = ()) -> Trainer:
    """The real trainer; it does not validate."""
    return Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        use_distributed_sampler=False,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        check_val_every_n_epoch=None,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        plugins=[VerifiedCheckpointIO(), *plugins],
    )
