"""Many students, one pass of the teacher: the jobs of a sweep that see the same views."""

import json
import sys
from collections.abc import Iterable
from functools import cache, partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from funmatch import comparison, machine, rules, schema
from funmatch.cli import app, session, tree
from funmatch.runs import Run
from funmatch.schema import UserError

# What students of one teacher may have each of their own.
_OWN = ("objective", "optimizer", "schedule", "student", "init_seed", "steps", "clip_norm")
_SHOWS = ("-c", "--cfg", "-h", "--help", "--hydra-help", "-i", "--info")  # and runs no job


def launch() -> None:
    """Collects the jobs of a sweep, then teaches those together that see the same views."""
    flags = {argument.partition("=")[0] for argument in sys.argv[1:]}
    if flags.isdisjoint(("-m", "--multirun", *_SHOWS)):
        sys.argv.insert(1, "-m")
    jobs: dict[Path, DictConfig] = {}

    def collect(cfg: DictConfig) -> None:
        settings: Any = HydraConfig.get()
        if "n_trials" in settings.sweeper:
            told = f"a search waits for results; leave it out, or use {machine.called('train')}"
            app.say(UserError(f"sweep={settings.runtime.choices.sweep}: {told}"), "train")
            raise SystemExit(1)  # or each trial would say so
        rules.check(cfg)
        if not jobs and not cfg.dry_run:
            title = f"{schema.run_directory(cfg)}, the first of the cohort"
            tree.show(cfg, title, settings.runtime.choices)
        jobs[schema.run_directory(cfg)] = cfg

    app.launch("train", collect, lambda: _teach(jobs))


def _teach(jobs: dict[Path, DictConfig]) -> None:
    if any(cfg.dry_run for cfg in jobs.values()):
        raise UserError(f"dry_run=true: a cohort has none; {machine.called('train')} -m has")
    for cfg in jobs.values():
        if (cfg.trainer.devices, cfg.trainer.num_nodes) != (1, 1):
            raise UserError(
                f"trainer.devices={cfg.trainer.devices}: a cohort runs on one device; "
                f"{machine.called('train')} -m starts several for each run"
            )
    failed = False
    with app.composing():
        for group in _groups(jobs.values()):
            failed |= _teach_together(group)
    for directory in dict.fromkeys(path.parent for path in jobs):
        comparison.conclude(directory)
    if failed:
        raise SystemExit(1)


def _groups(jobs: Iterable[DictConfig]) -> list[list[DictConfig]]:
    """Jobs by what they must have in common."""
    found: dict[str, list[DictConfig]] = {}
    for cfg in jobs:
        common = {key: value for key, value in schema.identity(cfg).items() if key not in _OWN}
        common["trainer"] = OmegaConf.to_container(cfg.trainer, resolve=True)
        common["kept"] = cfg.data.get("cache"), cfg.paths.cache, cfg.paths.data
        common["features"] = instantiate(cfg.objective).teacher_features
        found.setdefault(json.dumps(common, sort_keys=True), []).append(cfg)
    return list(found.values())


def _teach_together(group: list[DictConfig]) -> bool:
    """Teaches students side by side; whether one failed."""
    from funmatch.cli.teaching import Lesson, distil  # imports torch
    from funmatch.turns import Seat, take_turns

    @cache
    def lesson() -> Lesson:
        features = instantiate(group[0].objective).teacher_features
        return Lesson(group[0], features, several=True)

    taught: list[dict[str, Any]] = []

    def task(cfg: DictConfig, seat: Seat) -> dict[str, Any]:
        def teach(cfg: DictConfig, run: Run) -> dict[str, Any]:
            figures = distil(cfg, run, lesson(), seat)
            taught.append(figures)
            return figures

        print(schema.run_directory(cfg), flush=True)
        return session.complete(cfg, teach)

    outcomes = take_turns([partial(task, cfg) for cfg in group])
    for cfg, outcome in zip(group, outcomes, strict=True):
        print(schema.run_directory(cfg), flush=True)
        if isinstance(outcome, Exception):
            app.say(outcome, "train")
        else:
            print(f"  {session.outcome(outcome)}")
    if len(taught) > 1:
        teacher = max(figures["teacher_seconds"] for figures in taught)
        saved = (len(taught) - 1) * teacher
        shared = f"cohort: {len(taught)} students, one teacher"
        print(f"{shared}: {teacher:,.1f} s, {saved:,.1f} s saved")
    return any(isinstance(outcome, Exception) for outcome in outcomes)
