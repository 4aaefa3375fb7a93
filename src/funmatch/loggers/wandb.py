"""Weights & Biases, never in the way: without a key or a server it logs offline."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

os.environ.setdefault("WANDB_SILENT", "true")  # what a user must know is said here
# W&B's telemetry about itself would hold up our exit by 10 s where the server does not answer.
os.environ.setdefault("WANDB_ERROR_REPORTING", "false")

import wandb
from lightning.pytorch.loggers import WandbLogger
from wandb.errors import AuthenticationError, CommError

from funmatch import files

# Found out once in a process: each job of a sweep would wait for the server anew.
_offline = False


class Wandb(WandbLogger):
    """Lightning's logger, with an end, and no way to end a training."""

    _lost = False

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._unless_lost(lambda: super(Wandb, self).log_metrics(metrics, step))

    def close(self, *, failed: bool) -> None:
        """Ends the W&B run of this process, lest the next job log into it."""
        self._unless_lost(lambda: self.experiment.finish(exit_code=1 if failed else 0))

    def _unless_lost(self, call: Callable[[], object]) -> None:
        """W&B has a process of its own, to which SLURM sends its signals too: it ends by them."""
        if self._lost:
            return
        try:
            call()
        except Exception as error:  # of many kinds
            self._lost = True
            print(f"W&B: its process has ended ({type(error).__name__}); metrics.csv goes on")
            with suppress(Exception):  # nor may it speak at our exit
                wandb.teardown(exit_code=1)


def start(
    directory: Path,
    *,
    config: Mapping[str, Any],
    project: str,
    group: str,
    job_type: str,
    timeout: float = 10.0,
    patience: float = 120.0,
) -> Wandb:
    """A W&B run for a run directory; a resumed directory goes on in the same W&B run.

    Args:
        directory: of the run; offline records go to its `wandb` folder.
        config: the configuration, plain values.
        project: in W&B.
        group: of the runs of one sweep.
        job_type: the recipe.
        timeout: seconds to reach the server, before logging offline.
        patience: seconds to upload what is left in the end; `wandb sync` can do it later.
    """
    init = partial(
        wandb.init,
        dir=str(directory),
        config=dict(config),
        project=project,
        group=group,
        job_type=job_type,
        name=directory.name,
        id=files.once(directory / "tracker-id.txt", lambda: token_hex(8).encode()).decode(),
        resume="allow",
        settings=wandb.Settings(
            init_timeout=timeout,
            finish_timeout=patience,
            console="off",
            silent=True,
            reinit="create_new",
        ),
    )
    if "WANDB_MODE" in os.environ:  # the user has decided
        return Wandb(experiment=init())
    if not _offline:
        try:
            # Verifying the key would wait for the server without a limit of ours.
            if wandb.login(prompt=False, verify=False):
                run = init(mode="online")
                print(f"W&B: {run.url}")
                return Wandb(experiment=run)
            _go_offline(directory, "no API key")
        except CommError:
            wandb.teardown(exit_code=1)  # else W&B holds on to the id of the run
            _go_offline(directory, f"the server did not answer within {timeout:g} s")
        except AuthenticationError as error:
            _go_offline(directory, f"the API key was refused: {error}")
    return Wandb(experiment=init(mode="offline"))


def _go_offline(directory: Path, reason: str) -> None:
    global _offline
    _offline = True
    print(
        f"W&B logs offline ({reason}); to upload later: "
        f"wandb sync {directory.parent}/*/wandb/offline-run-*"
    )
