"""The teacher of an experiment: loaded, or trained first."""

import logging
import time
from pathlib import Path

from funmatch.experiment import networks, run_lifecycle
from funmatch.experiment.build import build_teacher_experiment
from funmatch.experiment.experiment import Setup, Train
from funmatch.experiment.specs import NetworkSpec
from funmatch.models import load_weights, pretrained
from funmatch.models.network import Network
from funmatch.models.teacher import Teacher
from funmatch.runtime import distributed
from funmatch.tasks.base import Task

_log = logging.getLogger(__name__)

_POLL_S = 0.5


def load_teacher(setup: Setup, task: Task, train: Train, features: tuple[str, ...] = ()) -> Teacher:
    """The teacher with its weights; it is trained first if it is to be made and does not exist yet.

    Args:
        setup: has a teacher.
        task: combines the predictions of several members.
        train: trains a teacher that is made on demand.
        features: names of the modules whose outputs the teacher keeps.
    """
    return networks.build_teacher(
        setup, task, lambda member: load_member(setup, member, train, features)
    )


def is_available(setup: Setup) -> bool:
    """Whether the weights of all members exist on this machine."""
    assert setup.teacher is not None
    for member in setup.teacher.members.values():
        if member.weights is None:
            if not build_teacher_experiment(member, setup).run.completed:
                return False
        elif member.weights in pretrained.NAMES:
            if pretrained.locate(member.weights) is None:
                return False
        elif member.weights != load_weights.INCLUDED and not Path(member.weights).is_file():
            return False
    return True


def load_member(
    setup: Setup, member: NetworkSpec, train: Train, features: tuple[str, ...] = ()
) -> Network:
    """One of the teachers, not frozen yet."""
    network = networks.build_network(member, features)
    weights = member.weights or _train_if_missing(setup, member, train)
    load_weights.load(network.net, weights, head=member.head)
    return network


def _train_if_missing(setup: Setup, member: NetworkSpec, train: Train) -> Path:
    """The weights of a teacher that is made on demand, by the first run that needs it."""
    experiment = build_teacher_experiment(member, setup)
    run = experiment.run
    while distributed.rank() > 0 and not run.completed:
        time.sleep(_POLL_S)  # rank 0 makes it
    if not run.completed:
        verb = "distilling" if experiment.objective is not None else "fine-tuning"
        _log.info("teacher: %s it once, into %s", verb, run.directory)
        run_lifecycle.run_to_completion(experiment, train, wait=True)
    return run.student
