"""The `report` command: tables, figures and a page over runs."""

from pathlib import Path

from omegaconf import DictConfig

from funmatch.analysis import html_report as page
from funmatch.analysis import tables
from funmatch.analysis.seed_groups import group_runs
from funmatch.cli import app
from funmatch.config.errors import UserError
from funmatch.experiment import load_run
from funmatch.runtime import hardware


def report() -> None:
    """Writes tables and figures over runs."""
    app.launch("report", _report)


def _report(cfg: DictConfig) -> None:
    roots = load_run.run_directories(cfg.runs)
    groups = group_runs(roots)
    if not groups:
        remedy = f"make some with {hardware.invocation('train')}"
        raise UserError(f"runs={cfg.runs}: has no runs; {remedy}")
    out = Path(cfg.out) if cfg.out is not None else roots[0]
    tables.print_table(groups)
    print(f"{out}/{', '.join(path.name for path in page.write(out, groups))}")
