"""The life of one run: claimed, trained or skipped, summed up."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from funmatch import comparison, files, origins, rules, runs, schema
from funmatch.cli import app, tree
from funmatch.groups import grouped
from funmatch.runs import Run
from funmatch.schema import UserError

Teach = Callable[[DictConfig, Run], dict[str, Any]]


def launch(config_name: str, teach: Teach) -> None:
    """A command that makes runs: one, or one for each job of a sweep, and the table over them."""
    directories: dict[Path, None] = {}  # in order, each once
    shown = False

    def task(cfg: DictConfig) -> float | None:
        nonlocal shown
        rules.check(cfg)  # again: a search draws values that the door has not seen
        run = Run(schema.run_directory(cfg))
        if cfg.dry_run:
            from funmatch.cli import rehearsal  # imports torch

            print(f"{run.directory} (dry run: nothing is written)", flush=True)
            rehearsal.rehearse(cfg)
            return None
        if runs.rank() > 0:  # rank 0 holds the run, reports and sums up
            if not _known(cfg, run):
                teach(cfg, run)
            return None
        directories[run.directory.parent] = None
        jobs = app.Door.jobs
        place = f"[{HydraConfig.get().job.num + 1}/{jobs}] " if jobs > 1 else ""
        known = _known(cfg, run)
        if cfg.get("save_as") is not None:
            _refuse_to_replace(_saved_as(cfg), run)
        title = f"{place}{run.directory}"
        if known or shown:
            print(title, flush=True)
        else:
            tree.show(cfg, title, HydraConfig.get().runtime.choices)
            shown = True
        try:
            row = complete(cfg, teach)
        finally:
            with suppress(OSError):  # of a full disk, say: the run comes first
                if not known:
                    directory = run.directory.parent
                    comparison.write(directory, grouped([directory]))
        print(f"  {outcome(row)}{' (finished before; resume=never repeats it)' if known else ''}")
        if cfg.get("save_as") is not None:
            print(f"  teacher=saved teacher.name={cfg.save_as}  ({_save(cfg, run)})")
        score = row["student_val_top1"]
        return None if score is None else float(score)

    def finish() -> None:
        for directory in directories:
            comparison.conclude(directory)

    app.launch(config_name, task, finish)


def _known(cfg: DictConfig, run: Run) -> bool:
    return run.completed and not origins.anew(cfg, run)


def _saved_as(cfg: DictConfig) -> Path:
    return Path(cfg.paths.logs) / "teachers" / cfg.save_as


def _refuse_to_replace(place: Path, run: Run) -> None:
    """Keeps one network from taking the name of another: found before it is trained."""
    there = place / run.student.name
    if there.exists() and not (run.completed and there.read_bytes() == run.student.read_bytes()):
        raise UserError(
            f"save_as={place.name}: {place} holds another network; choose a name, or remove it"
        )


def _save(cfg: DictConfig, run: Run) -> Path:
    """Keeps the network of a run where it is found by name."""
    place = _saved_as(cfg)
    for path in (run.student, run.model):
        files.write(place / path.name, path.read_bytes())
    return place


def outcome(row: dict[str, Any]) -> str:
    """What a run has come to, in a line."""
    shown = ("student_test_top1", "teacher_test_top1", "agreement_top1", "kl_to_teacher")
    figures = [f"{name} {row[name]:.4f}" for name in shown if row[name] is not None]
    return f"{', '.join(figures)} in {row['wall_seconds']:.0f} s"


def complete(cfg: DictConfig, teach: Teach, *, wait: bool = False) -> dict[str, Any]:
    """Brings a run to its end, wherever an earlier session left it.

    Args:
        cfg: of the run.
        teach: trains from the run's checkpoint, if there is one, and returns what it measured.
        wait: for another process that works on the run; else it is refused.

    Returns:
        The run's summary; that of the earlier session if the run was complete already.

    Raises:
        UserError: another process works on the run, or the directory holds another configuration.
    """
    run = Run(schema.run_directory(cfg))
    try:
        with run.lock(wait=wait):
            return _complete(cfg, run, teach)
    except Timeout:
        raise UserError(
            f"{run.directory}: another process works on this run; wait for it or change name"
        ) from None


def _complete(cfg: DictConfig, run: Run, teach: Teach) -> dict[str, Any]:
    run.sweep_up()
    _claim(run.directory / "config.yaml", cfg)
    if origins.anew(cfg, run):
        origins.forget(run)
    if run.completed:
        return run.result
    steps = schema.total_steps(cfg)
    facts = {
        "recipe": cfg.recipe.name,
        "seed": cfg.seed,
        "epochs": round(steps * cfg.batch_size / schema.train_size(cfg), 3),
        "steps": steps,
        "settings": schema.identity(cfg),
    }
    run.write_summary({**facts, "status": "running"})
    try:
        figures = teach(cfg, run)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        with suppress(OSError):
            run.write_summary({**facts, "status": "failed", "error": reason})
        raise
    run.write_summary({**facts, **figures, "status": "completed"})
    return run.result


def _claim(path: Path, cfg: DictConfig) -> None:
    """Writes the configuration, or compares with the one that is there."""
    if path.exists():
        there = schema.identity(schema.read(path))
        if found := schema.differing_key(there, schema.identity(cfg)):
            raise UserError(
                f"{path.parent}: holds a run with another configuration: {found}; "
                "give another name or remove the directory"
            )
    files.write(path, OmegaConf.to_yaml(cfg, resolve=True))
