"""The process of one rank, started by `experiment.launcher`."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from funmatch.config import compose, explain, identity, resolvers
from funmatch.experiment import launcher
from funmatch.runs.directory import Run
from funmatch.runtime import atomic_files, distributed, hardware
from funmatch.runtime.preemption import STOP, Interrupted


def main(method: launcher.Method, directory: str, answers: str) -> int:
    """Trains as one rank and writes the outcome as JSON; the launcher watches the clock.

    Args:
        method: distill or supervise.
        directory: of the run.
        answers: folder for `<rank>.json`.

    Returns:
        The exit code.
    """
    hardware.end_with_parent(signal.SIGTERM)
    if str(os.getppid()) != os.environ["FUNMATCH_PARENT"]:  # it ended before
        return 1
    resolvers.register()
    run, code = Run(Path(directory)), 0
    cfg = identity.read(run.directory / "config.yaml")
    answer: dict[str, Any]
    try:
        with compose.compose_context(), STOP.install_handlers():
            answer = {"figures": launcher.train_here(cfg, run, method)}
    except Interrupted as stop:
        STOP.ignore_further(stop.code)
        answer, code = {"interrupted": (stop.reason, stop.code, stop.message)}, stop.code
    except Exception as error:
        explain.print_traceback(error)
        answer, code = {"error": explain.explain(error, "train")}, 1
    atomic_files.write(Path(answers) / f"{distributed.rank()}.json", json.dumps(answer))
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))  # type: ignore[arg-type]
