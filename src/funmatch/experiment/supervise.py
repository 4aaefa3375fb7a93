"""Training of a network on labels."""

from typing import Any

from lightning import seed_everything

from funmatch.experiment import cache_policy, datasets, fitting, input_check, networks
from funmatch.experiment.device import configure_torch
from funmatch.experiment.experiment import Experiment
from funmatch.training.callbacks.stopwatch import Stopwatch
from funmatch.training.supervised import Supervision


def supervise(experiment: Experiment) -> dict[str, Any]:
    """Trains a network on labels; returns the figures of the run."""
    configure_torch(experiment)
    splits, task = datasets.load_splits(experiment), datasets.build_task(experiment.data)
    seed_everything(experiment.init_seed, verbose=False)
    student = networks.build_student(experiment)
    input_check.check_network(experiment, experiment.student, student, splits.val, task)
    learner = Supervision(student, fitting.build_learning(experiment), task)
    images, placement = cache_policy.apply_cache(experiment, splits, student, task)
    sides = {"student": student.side}
    recipe = datasets.build_recipe(experiment)
    data = datasets.build_datamodule(experiment, images, recipe, sides, placement, task)
    fitting.save_example_views(experiment, images, recipe, sides)
    stopwatch = Stopwatch(experiment.batch_size)
    return fitting.fit(experiment, learner, data, stopwatch, splits.test.classes)
