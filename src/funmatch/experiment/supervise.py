"""Training a network on labels."""

from typing import Any

from lightning import seed_everything
from omegaconf import DictConfig

from funmatch.experiment import build, cache_policy, fitting, input_check
from funmatch.runs.directory import Run
from funmatch.training.callbacks.stopwatch import Stopwatch
from funmatch.training.supervised import Supervision


def supervise(cfg: DictConfig, run: Run) -> dict[str, Any]:
    """Teaches a network from labels; returns the figures of the run."""
    fitting.prepare(cfg)
    data, task = build.splits(cfg), build.task(cfg)
    seed_everything(cfg.init_seed, verbose=False)
    student = build.learner(cfg, "model")
    input_check.check_network(cfg, "model", cfg.model, student, data.val, task)
    learner = Supervision(student, build.learning(cfg), task)
    images, placement = cache_policy.apply_cache(cfg, data, student, task)
    sides = {"student": student.side}
    law = build.recipe(cfg)
    stream = build.stream(cfg, images, law, sides, placement, task)
    fitting.save_example_views(cfg, run, images, law, sides)
    return fitting.fit(cfg, run, learner, stream, Stopwatch(cfg.batch_size), data.test.classes)
