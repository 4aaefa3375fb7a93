"""Loads the data of an experiment."""

import logging
from dataclasses import replace

from funmatch.config.errors import UserError
from funmatch.data import corrupt_images
from funmatch.data.file_list import DataNotFoundError
from funmatch.data.sources import ConcatSource, Source, Splits
from funmatch.experiment.experiment import Experiment, Setup
from funmatch.experiment.specs import Data
from funmatch.runtime import log
from funmatch.tasks.base import Task
from funmatch.tasks.classification.task import Classification
from funmatch.training.datamodule import DataModule
from funmatch.views.image_views import ImageViews, Placement
from funmatch.views.recipes import Recipe

_log = logging.getLogger(__name__)


def build_task(data: Data) -> Task:
    """The task of a data set; classification if it names none."""
    return Classification(data.classes) if data.task is None else data.task()


def build_recipe(experiment: Experiment) -> Recipe:
    """The recipe, with the crops of the data."""
    data = experiment.data
    return experiment.recipe(min_area=data.min_area, mild=data.mild, flip=data.flip)


def load_splits(experiment: Experiment) -> Splits:
    """Training, val and test examples; the training examples may be those of transfer sets.

    Raises:
        UserError: data is missing, or has another number of training examples than configured.
    """
    splits = load_evaluation_splits(experiment)
    if experiment.training_sets == (experiment.data,):
        _check_train_size(experiment.data, splits.train)
        return splits
    sources = [_load(experiment, data).train for data in experiment.training_sets]
    for data, source in zip(experiment.training_sets, sources, strict=True):
        _check_train_size(data, source)
    return replace(splits, train=ConcatSource(sources))


def load_evaluation_splits(setup: Setup) -> Splits:
    """The data that is measured on, of any size."""
    return _load(setup, setup.data)


def build_datamodule(
    experiment: Experiment,
    splits: Splits,
    recipe: Recipe,
    sides: dict[str, int],
    placement: Placement,
    task: Task,
) -> DataModule:
    """The data module of a run.

    Args:
        experiment: the run.
        splits: images to train on, evaluation views to measure on.
        recipe: which views the networks get.
        sides: of the views of each network, pixels.
        placement: where images are decoded and views rendered.
        task: knows how labels follow a view.
    """
    views = ImageViews(
        splits.train, recipe, sides=sides, placement=placement, truth_in_view=task.truth_in_view
    )
    return DataModule(
        splits,
        views,
        batch_size=experiment.batch_size,
        steps=experiment.steps,
        seed=experiment.seed,
        workers=experiment.compute.workers,
        repeat=experiment.trainer.get("overfit_batches"),
    )


def _load(setup: Setup, data: Data) -> Splits:
    try:
        splits: Splits = data.splits()
        if data.corrupt_images == "skip":
            return corrupt_images.without_corrupt_images(
                splits, setup.paths.cache, lambda text: log.rank_zero_info(_log, text)
            )
        return splits
    except DataNotFoundError as error:
        raise UserError(f"{data.key}.{error}") from error


def _check_train_size(data: Data, source: Source) -> None:
    if len(source) != data.train_size:  # by which epochs became steps
        raise UserError(
            f"{data.key}.train_size={data.train_size}: there are {len(source)} training images; "
            f"complete them, or give {data.key}.train_size={len(source)} to take them as they are"
        )
