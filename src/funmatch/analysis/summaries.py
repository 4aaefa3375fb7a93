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
    """The summaries of all runs in some directories, or in those below, with their `directory`."""
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
    """What was typed for a run: train or finetune, and its overrides; None if that is not there.

    Args:
        row: its summary, with its `directory`.
    """
    folder = row["directory"] / ".hydra"
    if not all((folder / name).is_file() for name in ("overrides.yaml", "hydra.yaml")):
        return None
    typed: Any = OmegaConf.to_container(OmegaConf.load(folder / "overrides.yaml"), resolve=False)
    sources = OmegaConf.load(folder / "hydra.yaml").hydra.runtime.config_sources
    own = [f"--config-dir={each.path}" for each in sources if each.provider == "command-line"]
    return ["finetune" if row["recipe"] == "labels" else "train", *own, *map(str, typed)]


def table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Summaries as CSV text; what a run has not measured is an empty cell."""
    rows, text = list(rows), io.StringIO(newline="")
    tasks = map(TaskDescription.of, rows)
    writer = csv.DictWriter(text, columns(*tasks), extrasaction="ignore")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
