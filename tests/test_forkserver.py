"""The fork server of tests: a fork behaves as a new process."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import commands
from commands import QUICK, command, environment, new_process
from forkserver import Process, Server
from small import only_run

SHOW = """
import json, os, random, signal, sys, tempfile, threading
import numpy
print(json.dumps({
    "argv": sys.argv,
    "path": sys.path,
    "environ": dict(os.environ),
    "cwd": os.getcwd(),
    "temporary": tempfile.gettempdir(),
    "files": len(os.listdir("/proc/self/fd")),
    "threads": len(os.listdir("/proc/self/task")),
    "leads": os.getsid(0) == os.getpid(),
    "main": sys.modules["__main__"].__file__,
    "flags": list(sys.flags),
    "handlers": [str(signal.getsignal(number)) for number in (2, 10, 13, 15)],
    "encodings": [sys.stdout.encoding, sys.stdout.errors, sys.stderr.errors],
    "buffered": [sys.stdout.line_buffering, sys.stderr.line_buffering],
    "funmatch": sorted(name for name in sys.modules if name.startswith("funmatch")),
    "random": [random.random(), numpy.random.rand()],
}))
"""


@pytest.fixture(scope="module")
def server() -> Server:
    """That of all commands of this process."""
    if (server := commands._server()) is None:
        pytest.skip("the system has no pidfds")
    return server


def script(folder: Path, code: str) -> Path:
    path = folder / "script.py"
    path.write_text(code)
    return path


def forked(server: Server, path: Path, *given: str, **more: str) -> Process:
    env = environment(path.parent, **more)
    return server.start(path, given, cwd=path.parent, env=env)


def test_server_has_one_thread(server: Server) -> None:
    assert server.threads == 1


def test_fork_starts_like_a_new_process(server: Server, tmp_path: Path) -> None:
    path, more = script(tmp_path, SHOW), {"TMPDIR": str(tmp_path), "PYTHONPATH": "/a:/b"}
    states: list[dict[str, Any]] = [
        json.loads(forked(server, path, "a=1", "b", **more).communicate()[0]) for _ in range(2)
    ]
    new = subprocess.run(
        [sys.executable, str(path), "a=1", "b"],
        cwd=tmp_path,
        env=environment(tmp_path, **more),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        check=True,
    )
    states.append(json.loads(new.stdout))
    assert len({draw for each in states for draw in each.pop("random")}) == 6
    assert states[0] == states[1] == states[2]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("pass", 0),
        ("raise SystemExit(75)", 75),
        ("raise SystemExit('no')", 1),
        ("1 / 0", 1),
        ("import os; os._exit(3)", 3),
        ("import os; os.abort()", -signal.SIGABRT),
        ("raise KeyboardInterrupt", -signal.SIGINT),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL),
    ],
)
def test_fork_returns_the_exit_code_of_the_script(
    server: Server, tmp_path: Path, code: str, expected: int
) -> None:
    process = forked(server, script(tmp_path, code))
    process.communicate(timeout=30)
    assert process.returncode == expected


def test_fork_waits_for_threads_and_runs_exit_handlers(server: Server, tmp_path: Path) -> None:
    code = """
import atexit, threading, time, weakref
class Cycle: pass
cycle = Cycle(); cycle.itself = cycle; weakref.finalize(cycle, print, "finalized")
atexit.register(print, "exit")
threading.Thread(target=lambda: (time.sleep(0.2), print("thread"))).start()
"""
    out, err = forked(server, script(tmp_path, code)).communicate(timeout=30)
    assert (out.split(), err) == (["thread", "exit", "finalized"], "")


def test_signals_reach_the_pid_of_a_fork(server: Server, tmp_path: Path) -> None:
    code = "import time\nprint('ready', flush=True)\ntry: time.sleep(60)\n"
    code += "except KeyboardInterrupt: raise SystemExit(130)"
    for number, expected in ((signal.SIGINT, 130), (signal.SIGTERM, -15), (signal.SIGKILL, -9)):
        process = forked(server, script(tmp_path, code))
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert process.poll() is None
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=0.1)
        os.killpg(process.pid, number)
        process.communicate(timeout=30)
        assert process.returncode == process.poll() == expected


def test_forks_run_concurrently(server: Server, tmp_path: Path) -> None:
    path = script(tmp_path, "import time; time.sleep(1)")
    began = time.monotonic()
    processes = [forked(server, path) for _ in range(4)]
    assert [process.wait(timeout=30) for process in processes] == [0] * 4
    assert time.monotonic() - began < 3
    for process in processes:
        process.communicate()


def test_server_declines_variables_read_at_interpreter_start(
    server: Server, tmp_path: Path
) -> None:
    assert server.serves(environment(tmp_path, PYTHONPATH="/a", FUNMATCH_ALLOW="toys"))
    for name in ("OMP_NUM_THREADS", "PYTHONHASHSEED", "TORCHINDUCTOR_CACHE_DIR", "WANDB_MODE"):
        assert not server.serves(environment(tmp_path, **{name: "7"}))


def test_server_ignores_variables_set_later_in_this_process(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("KMP_INIT_AT_FORK", "TORCHINDUCTOR_CACHE_DIR"):
        monkeypatch.setenv(name, "7")
    assert server.serves(environment(tmp_path))


def test_command_over_the_timeout_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "_TIMEOUT", 0.1)
    with pytest.raises(subprocess.TimeoutExpired):
        command("train", *QUICK, cwd=tmp_path)


@pytest.mark.slow
def test_forked_run_equals_a_new_process_to_the_byte(workplace: Path) -> None:
    given = ("steps=4", "schedule.warmup_steps=1", *QUICK)
    for name, run in (("forked", command), ("unforked", new_process)):
        done = run("train", *given, f"name={name}", cwd=workplace)
        assert (done.returncode, done.stderr) == (0, "")
    one, other = (only_run(workplace, name) for name in ("forked", "unforked"))
    assert one.student.read_bytes() == other.student.read_bytes()
    assert one.metrics.read_bytes() == other.metrics.read_bytes()
