"""Many students, one pass of the teacher: the jobs of a sweep that see the same views."""

import json
import sys
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from funmatch import comparison, rules, schema
from funmatch.cli import app, session
from funmatch.runs import Run
from funmatch.schema import UserError

# What students of one teacher may have each of their own.
_OWN = ("objective", "optimizer", "schedule", "student", "init_seed", "steps", "clip_norm")


def launch() -> None:
    """Collects the jobs of a sweep, then teaches those together that see the same views."""
    if not {"-m", "--multirun"} & set(sys.argv):
        sys.argv.insert(1, "-m")
    jobs: dict[Path, DictConfig] = {}

    def collect(cfg: DictConfig) -> None:
        rules.check(cfg)
        if cfg.dry_run:
            raise UserError("dry_run=true: a cohort has none; python src/train.py -m has")
        jobs[schema.run_directory(cfg)] = cfg

    app.launch("train", collect, lambda: _teach(jobs))


def _teach(jobs: dict[Path, DictConfig]) -> None:
    failed = False
    with app.composing():
        for group in _groups(jobs.values()):
            failed |= _teach_together(group)
    for directory in dict.fromkeys(path.parent for path in jobs):
        comparison.show(comparison.write(directory, [directory]))
        print(f"{directory}/summary.csv, summary.md, comparison.png")
    if failed:
        raise SystemExit(1)


def _groups(jobs: Iterable[DictConfig]) -> list[list[DictConfig]]:
    """Jobs by what they must have in common."""
    found: dict[str, list[DictConfig]] = {}
    for cfg in jobs:
        common = {key: value for key, value in schema.identity(cfg).items() if key not in _OWN}
        sides = (cfg.student.side, cfg.student.resize)
        features = instantiate(cfg.objective).teacher_features
        key = json.dumps([common, sides, features], sort_keys=True)
        found.setdefault(key, []).append(cfg)
    return list(found.values())


def _teach_together(group: list[DictConfig]) -> bool:
    """Teaches students side by side; whether one failed."""
    from funmatch.cli.teaching import Lesson, distil  # imports torch
    from funmatch.turns import Seat, take_turns

    lessons: list[Lesson] = []

    def lesson(cfg: DictConfig) -> Lesson:
        if not lessons:
            features = instantiate(cfg.objective).teacher_features
            lessons.append(Lesson(cfg, features, several=True))
        return lessons[0]

    def task(cfg: DictConfig, seat: Seat) -> dict[str, Any]:
        def teach(cfg: DictConfig, run: Run) -> dict[str, Any]:
            return distil(cfg, run, lesson(cfg), seat)

        print(schema.run_directory(cfg), flush=True)
        return session.complete(cfg, teach)

    outcomes = take_turns([partial(task, cfg) for cfg in group])
    for cfg, outcome in zip(group, outcomes, strict=True):
        print(schema.run_directory(cfg), flush=True)
        if isinstance(outcome, Exception):
            app.say(outcome, "train")
        else:
            print(f"  {session.outcome(outcome)}")
    rows = [row for row in outcomes if isinstance(row, dict)]
    if len(rows) > 1:
        teacher = max(row["teacher_seconds"] for row in rows)
        saved = (len(rows) - 1) * teacher
        print(f"cohort: {len(rows)} students, one teacher: {teacher:,.1f} s, {saved:,.1f} s saved")
    return len(rows) < len(group)
