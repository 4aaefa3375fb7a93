"""A fork server for tests: runs a command as a fork of a process that has imported torch.

Importing torch, lightning, timm and the other packages takes eight CPU seconds, more than the
rest of a run of a few steps. The server imports them once and then waits for requests. It imports
no module of funmatch: each fork does that itself.

A fork behaves like a new process: it has its own pid, session, exit code, signal handlers, working
directory, environment, open files, sys.argv and sys.path. Three things differ: warnings that a
package raises on import are not printed, packages that look for their cache in HOME on import use
the server's, and all forks of a server share one seed for the hashes of strings. Commands whose
environment sets a variable that a package reads on import need a new process (`Server.serves`).
"""

import atexit
import contextlib
import gc
import importlib
import io
import json
import os
import random
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

PRELOADED = (
    *("torch", "torch.utils.data", "torch._dynamo", "torchvision.transforms.v2.functional"),
    *("lightning", "torchmetrics", "timm", "safetensors.torch", "safetensors.numpy"),
    *("hydra", "hydra.core.plugins", "hydra._internal.hydra", "omegaconf", "dotenv"),
    *("matplotlib.pyplot", "matplotlib.backends.backend_agg", "PIL.Image", "PIL.JpegPresets"),
    *("rich.tree", "rich.table", "rich._emoji_codes", "torch.utils.serialization"),
    *("sklearn.datasets", "sklearn.metrics", "sklearn.model_selection", "sklearn.datasets.data"),
    *("scipy.io", "filelock", "torchcodec.decoders"),
)
# Prefixes of variables that the interpreter, the C library or a package reads only when it starts.
READ_AT_START = (
    *("PYTHON", "OMP_", "MKL_", "KMP_", "OPENBLAS", "TORCH", "PYTORCH", "CUDA", "NVIDIA"),
    *("KINETO", "CXX", "HF_", "TIMM", "WANDB", "MPL", "LD_", "MALLOC", "LANG", "LC_"),
)
_MESSAGE = 1 << 20  # bytes at most


class Process:
    """A command that was forked: the part of `subprocess.Popen` that the tests use, as text."""

    def __init__(self, args: Sequence[str], pid: int, server: "Server", pipes: list[int]) -> None:
        self.args, self.pid = args, pid
        self.returncode: int | None = None
        self._server, self._pidfd = server, os.pidfd_open(pid)
        stdout, stderr = (os.fdopen(pipe) if pipe >= 0 else None for pipe in pipes)
        self.stdout: TextIO | None = stdout
        self.stderr: TextIO | None = stderr
        self._read = ["", ""]
        self._readers: list[threading.Thread] = []

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(timeout=0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            look = select.poll()
            look.register(self._pidfd, select.POLLIN)
            if not look.poll(None if timeout is None else timeout * 1000):
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(self._server.ask({"wait": self.pid}))
            os.close(self._pidfd)
        return self.returncode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for the process and for all that write into its pipes."""
        if not self._readers:
            self._readers = [
                threading.Thread(target=self._gather, args=(index, pipe), daemon=True)
                for index, pipe in enumerate((self.stdout, self.stderr))
                if pipe is not None
            ]
            for reader in self._readers:
                reader.start()
        for reader in self._readers:
            reader.join(timeout)
            if reader.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout or 0)
        self.wait(timeout)
        return self._read[0], self._read[1]

    def _gather(self, index: int, pipe: TextIO) -> None:
        with pipe:
            self._read[index] = pipe.read()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


class Server:
    """The process that forks, as seen by the one that runs the tests.

    Args:
        environment: that it starts in.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = {**environment}
        self._environment.pop("PYTHONPATH", None)  # each fork has its own
        self._lock = threading.Lock()
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C in a terminal is for pytest
                pass_fds=[theirs.fileno()],
            )
        self.threads = self._answer()

    def serves(self, environment: Mapping[str, str]) -> bool:
        """Whether a fork is what a new process in this environment would be."""
        return _read_at_start(environment) == _read_at_start(self._environment)

    def start(
        self,
        script: Path,
        arguments: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        stdout: int | None = subprocess.PIPE,
        stderr: int | None = subprocess.PIPE,
    ) -> Process:
        """Forks `python SCRIPT ARGUMENTS`, which leads a session of its own."""
        pipes, files, opened = [-1, -1], [], []
        for number, wanted in enumerate((stdout, stderr)):
            if wanted == subprocess.PIPE:
                pipes[number], end = os.pipe()
                opened.append(end)
            elif wanted == subprocess.DEVNULL:
                end = os.open(os.devnull, os.O_WRONLY)
                opened.append(end)
            elif wanted == subprocess.STDOUT:
                end = files[0]
            else:
                end = number + 1 if wanted is None else wanted
            files.append(end)
        request = {"argv": [str(script), *arguments], "cwd": str(cwd), "env": dict(env)}
        pid = self.ask(request, files)
        for end in opened:
            os.close(end)
        return Process([sys.executable, *request["argv"]], pid, self, pipes)

    def ask(self, request: Mapping[str, Any], files: Sequence[int] = ()) -> int:
        message = json.dumps(request).encode()
        assert len(message) < _MESSAGE
        with self._lock:
            socket.send_fds(self._channel, [message], list(files))
            return self._answer()

    def _answer(self) -> int:
        answer = self._channel.recv(_MESSAGE)
        assert answer, "the fork server has ended"
        return int(answer)

    def close(self) -> None:
        """Ends the server, not what it has started."""
        self._channel.close()
        self._process.wait()


def _read_at_start(environment: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value
        for name, value in environment.items()
        if name.startswith(READ_AT_START) and name != "PYTHONPATH"
    }


def _serve(channel: socket.socket) -> list[str]:
    """Answers requests; returns only in a fork: its sys.argv."""
    while True:
        message, files, _, _ = socket.recv_fds(channel, _MESSAGE, 2)
        if not message:
            os._exit(0)
        request = json.loads(message)
        if "wait" in request:
            answer = os.waitpid(request["wait"], 0)[1]
        elif not (answer := os.fork()):
            channel.close()
            return _become(request, files)
        for file in files:
            os.close(file)
        channel.send(str(answer).encode())


def _become(request: Mapping[str, Any], files: Sequence[int]) -> list[str]:
    """Makes this fork what `python SCRIPT ARGUMENTS` begins as."""
    os.setsid()
    for number, file in enumerate(files, start=1):
        os.dup2(file, number)
    os.closerange(3, max(files) + 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    more = [path for path in request["env"].get("PYTHONPATH", "").split(os.pathsep) if path]
    script, *_ = request["argv"]
    sys.path[:] = [str(Path(script).resolve().parent), *more, *sys.path[1:]]
    importlib.invalidate_caches()
    tempfile.tempdir = None  # it follows TMPDIR
    for finalizer in list(weakref.finalize._registry):
        finalizer.atexit = False  # temporary folders of the server are removed by the server
    if media := sys.modules.get("wandb.sdk.data_types._private"):
        atexit.unregister(media.MEDIA_TMP.cleanup)
    random.seed()
    sys.modules["numpy"].random.seed()  # torch's seed is the same in every new process
    return request["argv"]


def _warm_up() -> None:
    """Fills caches of the packages: the plugins of Hydra, its grammars, fonts, image formats."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.plugins import Plugins
    from matplotlib import pyplot
    from omegaconf import grammar_parser
    from PIL import Image

    Plugins.instance()
    overrides = ["a=1", "a.b_c=0.5", "+a.b=c", "a=[1,b]", "a={b:1,c:2}", "a=b,c", "~a", "a=1e-3"]
    OverridesParser.create().parse_overrides([*overrides, "a=x/y.z", "+a@b.c=d", "a=null,true"])
    for value in ("${a}", "${a.b}", "${f:${a}}", "${f:${a.b},${c},d}", "${f:a}", "x${a}/${.b}"):
        grammar_parser.parse(value)
    Image.init()
    figure, axes = pyplot.subplots()
    axes.plot([0, 1], label="a")
    axes.set_title("a", weight="bold")
    axes.legend()
    figure.savefig(io.BytesIO(), format="png")
    pyplot.close(figure)


def _run(argv: list[str]) -> None:
    """Runs `python SCRIPT ARGUMENTS` and ends this process as the interpreter would.

    Less the destruction of every module, which would copy the pages that the forks share.
    """
    sys.argv, code = argv, 0
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as stop:
        if not isinstance(stop.code, int | None):
            raise
        code = stop.code or 0
    threading._shutdown()
    atexit._run_exitfuncs()
    gc.collect()
    try:
        sys.stdout.flush()
    except OSError:
        code = 120
    sys.stderr.flush()
    os._exit(code & 0xFF)


def _main(channel: socket.socket) -> None:
    for name in PRELOADED:
        with contextlib.suppress(ImportError):  # of an extra that is not installed
            importlib.import_module(name)
    _warm_up()
    threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208
    channel.send(str(threads).encode())
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    _run(_serve(channel))


if __name__ == "__main__":
    _main(socket.socket(fileno=int(sys.argv[1])))
