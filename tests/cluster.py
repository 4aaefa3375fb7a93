"""A real SLURM on this one machine: daemons of our own, in a folder of our own."""

import os
import pwd
import re
import secrets
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "squeue", "srun", "setpriv")

_CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={home}/munge/socket
CredType=cred/munge
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool
SlurmctldPidFile={home}/slurmctld.pid
SlurmdPidFile={home}/slurmd.pid
SlurmctldLogFile={home}/slurmctld.log
SlurmdLogFile={home}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=5,bf_interval=5
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
ReturnToService=2
KillWait=10
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=low Nodes={host} Default=YES PriorityTier=1 GraceTime=60 OverSubscribe=NO
PartitionName=high Nodes={host} PriorityTier=10 PreemptMode=OFF OverSubscribe=NO
"""


def missing() -> str | None:
    """Why there can be no cluster here."""
    absent = [name for name in PROGRAMS if not shutil.which(name, path=_path())]
    if absent:
        return f"needs Debian's slurm-wlm and munge: no {', '.join(absent)}"
    return None if os.geteuid() == 0 else "needs root, for munged and slurmd"


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


_SETTLED = 4.0  # seconds


class Cluster:
    """Its commands."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.environment = {"PATH": _path(), "SLURM_CONF": str(home / "slurm.conf")}

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command, env={**os.environ, **self.environment}, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def show(self, job: str) -> dict[str, str]:
        """What SLURM knows of a job."""
        text = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def wait(self, job: str, *states: str, patience: float = 240) -> dict[str, str]:
        """Until a job is in one of some states for a while.

        A requeued job need not wait two minutes, but until the last of it has ended: SLURM takes
        the late output of a script that was ended for that of the next turn.
        """
        deadline, since, last = time.monotonic() + patience, time.monotonic(), ("", "")
        while True:
            fields = self.show(job)
            now, state = time.monotonic(), (fields["JobState"], fields["Reason"])
            if state != last:
                since, last = now, state
            if state[0] in states and (state[0] != "FAILED" or now > since + _SETTLED):
                return fields
            assert now < deadline, f"{fields}\n{self.log}"
            if state == ("PENDING", "BeginTime") and now > since + _SETTLED:
                self.call("scontrol", "update", f"JobId={job}", "StartTime=now")
            time.sleep(0.3)

    @property
    def log(self) -> str:
        """What SLURM has noted last."""
        return (self.home / "slurmctld.log").read_text()[-4000:]


@contextmanager
def running() -> Iterator[Cluster]:
    """Starts a cluster, and ends it with all its jobs."""
    home = Path(tempfile.mkdtemp(prefix="slurm-"))
    home.chmod(0o755)  # munged has a user of its own
    munge, cluster = home / "munge", Cluster(home)
    for folder in (munge, home / "state", home / "spool"):
        folder.mkdir()
    (munge / "key").write_bytes(secrets.token_bytes(1024))
    (munge / "key").chmod(0o400)
    owner = pwd.getpwnam("munge")
    for path in (munge, munge / "key"):
        os.chown(path, owner.pw_uid, owner.pw_gid)
    host = socket.gethostname().partition(".")[0]
    conf = _CONF.format(home=home, host=host, ports=_ports(2))
    (home / "slurm.conf").write_text(conf)
    as_munge = ["setpriv", "--reuid=munge", "--regid=munge", "--clear-groups"]
    files = [f"--{name}-file={munge}/{name}" for name in ("key", "pid", "log", "seed")]
    commands = [
        [*as_munge, "munged", "--foreground", "--force", f"--socket={munge}/socket", *files],
        ["slurmctld", "-D", "-c"],
        ["slurmd", "-D", "-N", host],
    ]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            environment = {**os.environ, **cluster.environment}
            with (home / f"daemon{len(started)}.out").open("wb") as log:
                started.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
            if len(started) == 1:
                _until((munge / "socket").exists, home)
        _until(lambda: "idle" in cluster.call("sinfo", "--noheader", "-o", "%T"), home)
        yield cluster
    finally:
        with suppress(AssertionError):
            cluster.call("scancel", "--full", "--user=root")
        time.sleep(1)
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
        shutil.rmtree(home, ignore_errors=True)


def _until(holds: Callable[[], bool], home: Path) -> None:
    deadline = time.monotonic() + 60
    while True:
        with suppress(AssertionError):  # it is not up yet
            if holds():
                return
        logs = "\n".join(path.read_text()[-2000:] for path in home.glob("*.out"))
        assert time.monotonic() < deadline, logs
        time.sleep(0.3)


def _ports(number: int) -> list[int]:
    taken = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [each.getsockname()[1] for each in taken]
    for each in taken:
        each.close()
    return ports
