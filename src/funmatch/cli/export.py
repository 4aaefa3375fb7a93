"""The `export` command: exports a student to safetensors, ONNX, torch.export or int8."""

from dataclasses import replace
from pathlib import Path

from omegaconf import DictConfig

from funmatch.cli import app
from funmatch.config import trainer_arguments, validation
from funmatch.experiment import load_run


def export() -> None:
    """Exports a student to safetensors, ONNX, torch.export or int8."""
    app.launch("export", _export)


def _export(cfg: DictConfig) -> None:
    trainer_arguments.check_device(cfg, "export")
    trainer_arguments.check_run(cfg, "export")
    from funmatch.experiment import export_student  # imports torch
    from funmatch.export.formats import FORMATS

    validation.check_export(cfg, FORMATS)
    experiment = load_run.open_run(
        cfg.run, accelerator=cfg.trainer.accelerator, data=cfg.get("data")
    )
    experiment = replace(
        experiment,
        compute=replace(experiment.compute, threads=cfg.compute.threads),
        trainer={**experiment.trainer, "precision": "32-true"},  # as the exported file computes
    )
    directory = experiment.run.directory / "export" / cfg.format
    options = export_student.ExportOptions(
        format=cfg.format,
        directory=directory if cfg.out is None else Path(cfg.out),
        split=cfg.split,
        images=cfg.images,
        calibration=cfg.calibration,
        seconds=cfg.seconds,
        licenses={
            "student": cfg.license,
            "teacher": cfg.teacher_license,
            "data": cfg.data_license,
        },
    )
    export_student.export(experiment, options)
