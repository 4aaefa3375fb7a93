"""From a configuration to an experiment: the only place below the commands that reads one.

Nothing here imports torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from funmatch.config import identity, schema, validation
from funmatch.config.errors import UserError
from funmatch.experiment.experiment import Experiment, Setup
from funmatch.experiment.specs import (
    Compute,
    Data,
    Factory,
    MadeBy,
    NetworkSpec,
    Paths,
    Targets,
    TeacherSpec,
)
from funmatch.runs.directory import Run


def build(cfg: DictConfig, needed_by: tuple[Path, ...] = ()) -> Experiment:
    """The experiment of a checked configuration of `train` or `finetune`.

    Args:
        cfg: composed, and checked by `validation.check`.
        needed_by: directories of the runs that wait for this one.
    """
    settings = identity.identity(cfg)
    targets = cfg.get("targets")
    return Experiment(
        **_setup(cfg),
        needed_by=needed_by,
        run=Run(identity.run_directory(cfg, settings)),
        config=_plain(cfg),
        identity=settings,
        name=cfg.name,
        training_sets=tuple(_data(*each) for each in schema.training_sets(cfg).items()),
        recipe_name=cfg.recipe.name,
        recipe=_factory("recipe", cfg.recipe),
        student=_network("student" if "student" in cfg else "model", schema.student(cfg)),
        objective=_factory("objective", cfg.objective) if "objective" in cfg else None,
        targets=None if targets is None else Targets(targets.mode, targets.form, targets.verify),
        optimizer=_factory("optimizer", cfg.optimizer),
        schedule=_factory("schedule", cfg.schedule),
        callbacks=_factory("callbacks", cfg.callbacks),
        loggers=_factory("logger", cfg.logger),
        steps=schema.total_steps(cfg),
        **{
            key: cfg[key]
            for key in (
                *("seed", "init_seed", "batch_size", "validate_every", "checkpoint_every"),
                *("checkpoint_keep", "max_skipped", "clip_norm", "resume", "origin"),
            )
        },
    )


def build_setup(cfg: DictConfig) -> Setup:
    """What is needed to measure a teacher on data, of a configuration of `evaluate`."""
    return Setup(**_setup(cfg))


def build_teacher_experiment(network: NetworkSpec, setup: Setup) -> Experiment:
    """The experiment whose student is a teacher of another one.

    Args:
        network: has `made_by`.
        setup: of those who need it: where files are, and the device.

    Raises:
        UserError: it cannot work, or needs its own outcome as a teacher.
    """
    assert network.made_by is not None
    command, overrides = network.made_by.command, network.made_by.overrides
    # One teacher serves all precisions and all numbers of devices.
    kept = {
        "paths": {key: str(value) for key, value in vars(setup.paths).items()},
        "trainer": {key: setup.trainer[key] for key in ("accelerator", "log_every_n_steps")},
        "compute": {"workers": setup.compute.workers, "threads": setup.compute.threads},
    }
    cfg = OmegaConf.merge(compose(command, [*overrides, "name=teachers", "logger=none"]), kept)
    assert isinstance(cfg, DictConfig)
    validation.check(cfg)
    experiment = build(cfg, setup.waiting)
    if experiment.run.directory in setup.waiting:
        raise UserError(
            f"{network.key}.made_by: {command} {' '.join(overrides)} needs its own student as "
            "its teacher; give it another teacher"
        )
    return experiment


def _setup(cfg: DictConfig) -> dict[str, Any]:
    teacher = cfg.get("teacher")
    options = _plain(cfg.compute)
    names = ("workers", "threads", "micro_batch", "channels_last", "compile", "fused")
    return {
        "data": _data("data", cfg.data),
        "teacher": None if teacher is None else _teacher(cfg),
        "trainer": _plain(cfg.trainer),
        "compute": Compute(**{name: options[name] for name in names}),
        "paths": Paths(**{key: Path(value) for key, value in _plain(cfg.paths).items()}),
        "ranks": schema.rank_count(cfg),
    }


def _data(key: str, cfg: DictConfig) -> Data:
    task = cfg.get("task")
    return Data(
        key=key,
        name=cfg.name,
        classes=cfg.classes,
        train_size=cfg.train_size,
        splits=_factory(f"{key}.splits", cfg.splits),
        task=None if task is None else _factory(f"{key}.task", task),
        corrupt_images=cfg.get("broken", "fail"),
        cache=cfg.get("cache", "none"),
        decode=cfg.get("decode", "host"),
        min_area=cfg.min_area,
        mild=tuple(cfg.mild),
        flip=cfg.flip,
    )


def _teacher(cfg: DictConfig) -> TeacherSpec:
    members = {
        key.rpartition(".")[2]: _network(key, part) for key, part in schema.teachers(cfg).items()
    }
    if not cfg.teacher.get("members"):
        return TeacherSpec(members)
    return TeacherSpec(members, cfg.teacher.combine, _plain(cfg.teacher).get("shares"))


def _network(key: str, cfg: DictConfig) -> NetworkSpec:
    settings = _plain(cfg)
    made_by = settings.get("made_by")
    return NetworkSpec(
        key=key,
        net=Factory(f"{key}.net", settings["net"]),
        **{name: settings[name] for name in ("mean", "std", "side", "resize", "classes")},
        weights=settings["weights"],
        head=settings["head"],
        check_images=settings.get("trial_images"),
        has_output_key="output" in settings,
        made_by=MadeBy(made_by["command"], tuple(made_by["overrides"])) if made_by else None,
        settings=settings,
    )


def _factory(key: str, node: DictConfig) -> Factory:
    return Factory(key, _plain(node))


def _plain(node: Any) -> dict[str, Any]:
    plain = OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node
    assert isinstance(plain, Mapping)
    return dict(plain)
