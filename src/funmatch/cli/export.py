"""The `export` command: writes a student for others."""

from omegaconf import DictConfig

from funmatch.cli import app
from funmatch.config import trainer_arguments


def export() -> None:
    """Writes a student for others, and compares the file with it."""
    app.launch("export", _export)


def _export(cfg: DictConfig) -> None:
    trainer_arguments.check_device(cfg, "export")
    from funmatch.experiment import export_student  # imports torch

    export_student.export(cfg)
