"""Looking at what runs have left: one run measured again, many runs side by side."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from funmatch import comparison, machine, rules, trust
from funmatch import report as page
from funmatch.cli import opening
from funmatch.groups import grouped
from funmatch.schema import UserError


def evaluate(cfg: DictConfig) -> None:
    """Measures the student that a run has left, or a network that is ready, on one split."""
    if cfg.run is not None and "teacher" in cfg:
        raise UserError(
            f"run={cfg.run}: has a teacher of its own; give run=, or teacher= and data="
        )
    if cfg.run is None and ("teacher" not in cfg or "data" not in cfg):
        raise UserError("run=null: give the directory of a run, or both teacher=... and data=...")
    title, figures = _student(cfg) if cfg.run is not None else _ready(cfg)
    print(f"{title}, {cfg.split}:")
    for name, value in figures.items():
        print(f"  {name:18} {value:.4f}")


def _student(cfg: DictConfig) -> tuple[str, dict[str, float]]:
    run, there = opening.opened(cfg.run, cfg.trainer.accelerator, cfg.get("data"))
    from funmatch.cli import teaching

    return str(run.directory), teaching.measure(there, run, cfg.split)


def _ready(cfg: DictConfig) -> tuple[str, dict[str, float]]:
    rules.check_teachers(cfg)
    trust.check(cfg)
    from funmatch.cli import teaching

    choices = HydraConfig.get().runtime.choices
    return f"{choices['teacher']} on {choices['data']}", teaching.appraise(cfg, cfg.split)


def report(cfg: DictConfig) -> None:
    """Writes summary.csv, summary.md, report.html and its figures over runs."""
    roots = opening.folders(cfg.runs)
    groups = grouped(roots)
    if not groups:
        remedy = f"make some with {machine.called('train')}"
        raise UserError(f"runs={cfg.runs}: no runs there; {remedy}")
    out = Path(cfg.out) if cfg.out is not None else roots[0]
    comparison.show(groups)
    print(f"{out}/{', '.join(path.name for path in page.write(out, groups))}")


def dashboard(cfg: DictConfig) -> None:
    """Saves a view of a W&B project, with the recipes side by side."""
    try:
        from funmatch.loggers import dashboard
    except ImportError as error:
        remedy = "pip install 'funmatch[dashboard]'"
        raise UserError(f"dashboard: {error.name} is not there; {remedy}") from error
    try:
        address = dashboard.write(cfg.project, entity=cfg.entity, group=cfg.name, view=cfg.view)
    except Exception as error:  # of many kinds
        reason = " ".join(str(error).split())
        raise UserError(f"dashboard: W&B said: {reason}; see WANDB_API_KEY in .env") from error
    print(address)
