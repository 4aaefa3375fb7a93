"""The `evaluate` command: measures the student of a run, or a ready network, on one split."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from funmatch.cli import app
from funmatch.config import trainer_arguments, validation
from funmatch.config.errors import UserError
from funmatch.experiment import load_run
from funmatch.experiment.build import build_setup
from funmatch.runtime import allowlist, secrets


def evaluate() -> None:
    """Measures a finished run again, or a network that is ready."""
    app.launch("evaluate", _evaluate)


def _evaluate(cfg: DictConfig) -> None:
    trainer_arguments.check_device(cfg, "evaluate")
    if cfg.run is not None and "teacher" in cfg:
        raise UserError(
            f"run={cfg.run}: has a teacher of its own; give run=, or teacher= and data="
        )
    if cfg.run is None and ("teacher" not in cfg or "data" not in cfg):
        raise UserError("run=null: give the directory of a run, or both teacher=... and data=...")
    if cfg.run is not None:
        trainer_arguments.check_run(cfg, "evaluate")
    title, figures = _student(cfg) if cfg.run is not None else _teacher(cfg)
    print(f"{title}, {cfg.split}:")
    for name, value in figures.items():
        print(f"  {name:18} {value:.4f}")


def _student(cfg: DictConfig) -> tuple[str, dict[str, float]]:
    experiment = load_run.open_run(
        cfg.run, accelerator=cfg.trainer.accelerator, data=cfg.get("data")
    )
    from funmatch.experiment import evaluate  # imports torch

    return str(experiment.run.directory), evaluate.evaluate_student(experiment, cfg.split)


def _teacher(cfg: DictConfig) -> tuple[str, dict[str, float]]:
    validation.check_teachers(cfg)
    allowlist.check(cfg)
    secrets.check(cfg)
    from funmatch.experiment import evaluate  # imports torch

    choices = HydraConfig.get().runtime.choices
    figures = evaluate.evaluate_teacher(build_setup(cfg), cfg.split)
    return f"{choices['teacher']} on {choices['data']}", figures
