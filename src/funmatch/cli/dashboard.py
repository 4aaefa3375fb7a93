"""The `dashboard` command: saves a view of a W&B project."""

from omegaconf import DictConfig

from funmatch.cli import app
from funmatch.config.errors import UserError


def dashboard() -> None:
    """Saves a view of the runs in W&B."""
    app.launch("dashboard", _dashboard)


def _dashboard(cfg: DictConfig) -> None:
    try:
        from funmatch.analysis import wandb_dashboard
    except ImportError as error:
        remedy = "pip install 'funmatch[dashboard]'"
        raise UserError(f"dashboard: {error.name} is not installed; {remedy}") from error
    try:
        address = wandb_dashboard.write(
            cfg.project, entity=cfg.entity, group=cfg.name, view=cfg.view
        )
    except Exception as error:  # wandb raises many exception types
        reason = " ".join(str(error).split())
        raise UserError(f"dashboard: W&B: {reason}; see WANDB_API_KEY in .env") from error
    print(address)
