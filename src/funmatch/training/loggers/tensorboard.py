"""TensorBoard: event files in the directory of the run."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from funmatch.runs.directory import Run


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, with a picture of the first step's views."""

    def begin(self, run: Run) -> None:
        """Shows what the networks see in the first step."""
        if run.views.exists():
            pixels = np.asarray(Image.open(run.views).convert("RGB"))
            self.experiment.add_image("views", pixels, 0, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        """Flushes and closes the event file."""
        self.experiment.close()


def start(
    run: Run,
    *,
    step: int,
    config: Mapping[str, Any],
    group: str,
    job_type: str,
    tags: Sequence[str] = (),
) -> TensorBoard:
    """Returns the logger of a run; its files are in the folder `tensorboard` of the run.

    Args:
        run: `tensorboard --logdir logs` shows all runs below logs.
        step: optimiser steps already done; events of later steps are purged.
        config: not used, as are the rest: config.yaml in the same directory has it.
        group: not used.
        job_type: not used.
        tags: not used.

    Raises:
        ValueError: tensorboard is not installed.
    """
    try:
        return TensorBoard(
            run.directory / "tensorboard",
            name="",
            version="",
            purge_step=step + 1 if step else None,
        )
    except ModuleNotFoundError as error:
        remedy = "pip install 'funmatch[tensorboard]'"
        raise ValueError(f"logger=tensorboard: {error.name} is not installed; {remedy}") from error
