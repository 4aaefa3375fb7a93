"""The process of one rank, started by `experiment.launcher`."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from funmatch.config import compose, explain, identity, resolvers
from funmatch.experiment.build import build
from funmatch.runtime import atomic_files, distributed, hardware
from funmatch.runtime.preemption import STOP, Interrupted


def main(directory: str, folder: str) -> int:
    """Trains as one rank and writes the outcome as JSON; the launcher watches the clock.

    Args:
        directory: of the run.
        folder: for the result, `<rank>.json`.

    Returns:
        The exit code.
    """
    hardware.end_with_parent(signal.SIGTERM)
    if str(os.getppid()) != os.environ["FUNMATCH_PARENT"]:  # it ended before
        return 1
    resolvers.register()
    code = 0
    cfg = identity.read(Path(directory) / "config.yaml")
    result: dict[str, Any]
    try:
        with compose.compose_context(), STOP.install_handlers():
            from funmatch.experiment.train_here import train_here  # imports torch

            result = {"figures": train_here(build(cfg))}
    except Interrupted as stop:
        STOP.ignore_further(stop.code)
        result, code = {"interrupted": (stop.reason, stop.code, stop.message)}, stop.code
    except Exception as error:
        explain.print_traceback(error)
        result, code = {"error": explain.explain(error, "train")}, 1
    atomic_files.write(Path(folder) / f"{distributed.rank()}.json", json.dumps(result))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
