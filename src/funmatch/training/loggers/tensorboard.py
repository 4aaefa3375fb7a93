"""TensorBoard: files beside the run, which need no server."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image

from funmatch.runs.directory import Run


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, with what the networks see."""

    def begin(self, run: Run) -> None:
        """Shows what the networks see in the first step."""
        if run.views.exists():
            pixels = np.asarray(Image.open(run.views).convert("RGB"))
            self.experiment.add_image("views", pixels, 0, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        """Writes what is left."""
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
    """Files in the folder `tensorboard` of a run; steps after `step` are written anew.

    Args:
        run: in whose directory they are; `tensorboard --logdir logs` finds all.
        step: from which the run goes on.
        config: is kept beside them, in config.yaml.
        group: likewise.
        job_type: likewise.
        tags: likewise.

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
        raise ValueError(f"logger=tensorboard: {error.name} is not there; {remedy}") from error
