"""The summaries of runs, read back for tables and reports."""

import csv
import io
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from funmatch.runs.directory import read_summary
from funmatch.tasks.description import TaskDescription, columns


def collect(directories: Iterable[Path]) -> list[dict[str, Any]]:
    """The summaries of all runs in or below some directories, each with its `directory`.

    Damaged summaries are reported on stderr and skipped.
    """
    patterns = ("summary.json", "*/summary.json", "*/*/summary.json")
    paths = {path for root in directories for pattern in patterns for path in root.glob(pattern)}
    rows = []
    for path in sorted(paths, key=lambda path: path.stat().st_mtime):
        try:
            row = read_summary(path)
            row["settings"], row["seed"], row["status"]
            TaskDescription.of(row)
        except (ValueError, KeyError, TypeError, OSError) as error:
            print(f"skipped {path}: damaged ({type(error).__name__})", file=sys.stderr)
        else:
            rows.append({**row, "directory": path.parent})
    return rows


def command(row: Mapping[str, Any]) -> list[str] | None:
    """The command line of a run: train or finetune, then its overrides; None if not recorded.

    Args:
        row: summary of the run, with its `directory`.
    """
    folder = row["directory"] / ".hydra"
    if not all((folder / name).is_file() for name in ("overrides.yaml", "hydra.yaml")):
        return None
    overrides: Any = OmegaConf.to_container(
        OmegaConf.load(folder / "overrides.yaml"), resolve=False
    )
    recorded = OmegaConf.load(folder / "hydra.yaml").hydra
    sources = recorded.runtime.config_sources
    config_dirs = [
        f"--config-dir={source.path}" for source in sources if source.provider == "command-line"
    ]
    return [
        OmegaConf.select(recorded, "job.config_name", default="train"),
        *config_dirs,
        *map(str, overrides),
    ]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Summaries as CSV text; a figure that a run has not measured is an empty cell."""
    rows, text = list(rows), io.StringIO(newline="")
    tasks = map(TaskDescription.of, rows)
    writer = csv.DictWriter(text, columns(*tasks), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
