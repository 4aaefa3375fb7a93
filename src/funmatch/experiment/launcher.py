"""The processes that train one run together: started here, or by srun or torchrun."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from funmatch.config.errors import UserError
from funmatch.experiment.experiment import Experiment
from funmatch.runs.directory import Run
from funmatch.runtime import allowlist, distributed, hardware
from funmatch.runtime.preemption import EXIT_CTRL_C, RESUMABLE_EXIT_CODES, STOP, Interrupted

_GRACE_S = 5.0  # for the other ranks to end on their own after one has ended with an error
_SAVE_TIMEOUT_S = 60.0  # for them to save and end after one was preempted
_POLL_S = 0.1


def train(experiment: Experiment) -> dict[str, Any]:
    """Trains a run, in this process or in one for each device.

    Args:
        experiment: the run, whose lock this process holds.

    Returns:
        The figures of the run.

    Raises:
        UserError: a rank failed; the others were ended.
        Interrupted: the ranks were signalled to stop, and have saved.
    """
    number, trainer = experiment.ranks, experiment.trainer
    if distributed.is_rank() and distributed.world_size() != number:
        raise UserError(
            f"trainer.devices={trainer['devices']}: {distributed.world_size()} processes were "
            f"started, not {number} (trainer.num_nodes={trainer['num_nodes']}); start as many, "
            "or change these keys"
        )
    if number == 1 or distributed.is_rank():
        # Imported here: a process that starts ranks does not need all of it.
        from funmatch.experiment.train_here import train_here

        return train_here(experiment)
    if trainer["num_nodes"] > 1:
        raise UserError(
            f"trainer.num_nodes={trainer['num_nodes']}: start one process for each device, with "
            "make slurm-train, srun or torchrun"
        )
    with tempfile.TemporaryDirectory() as folder, socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        started: list[subprocess.Popen[bytes]] = []
        with STOP.deferred():
            try:
                for rank in range(number):
                    started.append(_start(rank, number, port, experiment.run, folder))
                _wait(started)
                codes = [process.poll() for process in started]
            finally:
                for process in started:
                    process.kill()
                    process.wait()
            return _outcome(codes, Path(folder))


def _start(rank: int, ranks: int, port: int, run: Run, folder: str) -> subprocess.Popen[bytes]:
    variables = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "NODE_RANK": 0,
        "WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "FUNMATCH_PARENT": os.getpid(),
        "FUNMATCH_ALLOW": ",".join(allowlist.added_packages()),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "funmatch.cli.worker", str(run.directory), folder],
        env=hardware.subprocess_environment(**variables),
        start_new_session=True,  # Ctrl-C in a terminal is ours to pass on
        pass_fds=[run.descriptor],  # the run is locked until the last of them has ended
    )


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits until all ranks have ended; when one is preempted or fails, the others are ended."""
    signalled, since = False, 0.0
    while None in [process.poll() for process in started]:  # each is polled: any() would stop early
        now, codes = time.monotonic(), {process.returncode for process in started} - {None, 0}
        since = since or (now if codes else 0.0)
        late, preempted = codes and now > since + _GRACE_S, bool(codes & RESUMABLE_EXIT_CODES)
        # The signal may have reached one rank only.
        if (STOP.code or (preempted and late)) and not signalled:
            signalled = True
            number = signal.SIGINT if EXIT_CTRL_C in {STOP.code, *codes} else signal.SIGTERM
            for process in started:
                process.send_signal(number)
        if late and (not preempted or now > since + _SAVE_TIMEOUT_S):
            return
        time.sleep(_POLL_S)


def _outcome(codes: Sequence[int | None], folder: Path) -> dict[str, Any]:
    """The figures of the run, from the exit codes of the ranks and the results that they wrote.

    An exit code is None if we ended the rank. The first rank to fail is the cause; the others fail
    since they miss it.
    """
    files = sorted(folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
    results = {int(path.stem): json.loads(path.read_text()) for path in files}
    killed = {rank: -code for rank, code in enumerate(codes) if code is not None and code < 0}
    for rank, number in killed.items():
        if number in (signal.SIGTERM, signal.SIGINT) and STOP.code:
            raise Interrupted(STOP.reason, STOP.code)  # before a rank could handle it
        if rank not in results and not any("interrupted" in each for each in results.values()):
            name = signal.Signals(number).name
            raise UserError(f"rank {rank} was killed by {name}; the same command resumes")
    for rank, result in results.items():
        if "interrupted" in result:
            reason, code, message = result["interrupted"]
            raise Interrupted(STOP.reason or reason, STOP.code or code, message)
        if "error" in result:
            raise UserError(f"rank {rank}: {result['error']}")
    for rank, code in enumerate(codes):
        if rank not in results:
            raise UserError(f"rank {rank} ended with exit code {code} and left no result")
    return dict(results[0]["figures"])
