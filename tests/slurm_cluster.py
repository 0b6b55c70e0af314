"""A throw-away Slurm on loopback, for tests: virtual nodes, no systemd, no database; ended by the pids it started.

    with slurm_cluster() as environment:
        subprocess.run(["sinfo"], env=environment)

    python tests/slurm_cluster.py 3      # to try commands on, until Ctrl-C

Needs Debian's packages slurmctld, slurmd, slurm-client and munge (built to allow several slurmd on one host), and root.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
MISSING = "needs root and Slurm: apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge"
SECONDS = 30.0  # that the cluster may take to come up

CONFIGURATION = """ClusterName=throwaway
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CryptoType=crypto/munge
CommunicationParameters=NoInAddrAny
StateSaveLocation={root}/state
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmdSpoolDir={root}/spool/%n
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
EnforcePartLimits=ALL
MinJobAge=3600
SlurmctldTimeout=30
SlurmdTimeout=10
KillWait=5
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1
NodeName=node[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs=8 RealMemory=16000
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=batch Nodes=ALL Default=YES MaxTime=60 DefaultTime=5 State=UP PriorityTier=1 GraceTime=90
PartitionName=urgent Nodes=ALL MaxTime=60 DefaultTime=5 State=UP PriorityTier=9
PartitionName=paid Nodes=ALL MaxTime=60 DefaultTime=5 State=UP AllowAccounts=mine
"""


def available() -> bool:
    """Whether this machine can run a throw-away cluster."""
    return os.geteuid() == 0 and all(shutil.which(program) for program in PROGRAMS)


def _free_ports(count: int) -> int:
    """The first of `count` free ports in a row."""
    for base in range(17000, 30000, 50):
        try:
            for port in range(base, base + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return base
        except OSError:
            continue
    raise OSError("no free ports")


def processes(environment: dict[str, str], *also: str) -> dict[int, str]:
    """Processes of this cluster, by its configuration (and what else is given) in their environment: their names."""
    marks, found = [f"SLURM_CONF={environment['SLURM_CONF']}", *also], {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_bytes().split(b"\0")
            if int(folder.name) != os.getpid() and all(mark.encode() in variables for mark in marks):
                found[int(folder.name)] = (folder / "comm").read_text().strip()
        except OSError:
            continue
    return found


def lose_node(environment: dict[str, str], node: str, slurmd_alone: bool = False) -> None:
    """Let a node die: its slurmd, and everything that runs on it, all at once, or its slurmd alone."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:1] == [b"slurmd"] and node.encode() in words and int(folder.name) in processes(environment):
            os.kill(int(folder.name), signal.SIGKILL)
    for pid in () if slurmd_alone else processes(environment, f"SLURMD_NODENAME={node}"):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@contextmanager
def slurm_cluster(nodes: int = 2) -> Iterator[dict[str, str]]:
    """Start the cluster; yields the environment with which Slurm's commands find it.

    Partitions: `batch`; `urgent`, whose jobs preempt batch's; `paid`, for the account `mine` alone.

    Raises:
        RuntimeError: it did not come up, with the ends of its logs.
    """
    root = Path(
        tempfile.mkdtemp(prefix="slurm-")
    )  # not under pytest's folders: munge's socket must be reachable by all
    root.chmod(0o755)
    for part in ("state", "spool"):
        (root / part).mkdir()
    port = _free_ports(nodes + 1)
    places = {"root": root, "port": port, "first": port + 1, "last": port + nodes, "nodes": nodes}
    (root / "slurm.conf").write_text(CONFIGURATION.format(host=socket.gethostname().split(".")[0], **places))
    key = root / "munge.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(128))
    environment = {**os.environ, "SLURM_CONF": str(root / "slurm.conf")}
    started: list[subprocess.Popen] = []

    def start(*command: str) -> None:
        with (root / "daemons.log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
                )
            )

    def ready(*command: str) -> bool:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        return done.returncode == 0 and (command[0] != "sinfo" or len(set(done.stdout.split())) == nodes)

    def wait(*command: str) -> None:
        deadline = time.monotonic() + SECONDS
        while not ready(*command):
            if time.monotonic() > deadline:
                ends = [f"{log.name}: {log.read_text(errors='replace')[-1000:]}" for log in root.glob("*.log")]
                raise RuntimeError(f"Slurm did not come up ({' '.join(command)}):\n" + "\n".join(ends))
            time.sleep(0.1)

    munge = root / "munge.socket"
    try:
        start("munged", "--foreground", f"--socket={munge}", f"--key-file={key}", f"--pid-file={root}/munged.pid",
              f"--log-file={root}/munged.log", f"--seed-file={root}/munge.seed", "--num-threads=1")  # fmt: skip
        wait("munge", "-S", str(munge), "-n")
        start("slurmctld", "-D", "-i", "-c")
        for node in range(1, nodes + 1):
            (root / "spool" / f"node{node}").mkdir()
            start("slurmd", "-D", "-N", f"node{node}")
        wait("sinfo", "-h", "-N", "-t", "idle", "-o", "%N")
        yield environment
    finally:
        if len(started) > 1:
            subprocess.run(["scancel", "-u", "root"], env=environment, capture_output=True, timeout=10)
            time.sleep(0.5)
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        # daemons of job steps outlive slurmd
        for pid, name in processes(environment).items():
            if name.startswith("slurm"):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        shutil.rmtree(root, ignore_errors=True)


if __name__ == "__main__":
    with slurm_cluster(int(sys.argv[1]) if len(sys.argv) > 1 else 2) as found:
        print(f"export SLURM_CONF={found['SLURM_CONF']}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()
