"""A real Slurm on this machine: munged, slurmctld, and a slurmd on each of two hosts. Needs slurm-wlm and munge."""

import os
import re
import secrets
import subprocess
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final, Self

import pytest

from tests.cluster.hosts import CONTROLLER, Network

PROGRAMS: Final = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "scancel")
NODES: Final = ("node1", "node2")
_CONFIG: Final = """\
ClusterName=hpe
SlurmctldHost=controller({controller})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={place}/munge.socket
StateSaveLocation={place}/state
SlurmdSpoolDir={place}/%n
SlurmctldPidFile={place}/slurmctld.pid
SlurmdPidFile={place}/%n.pid
SlurmctldLogFile={place}/slurmctld.log
SlurmdLogFile={place}/%n.log
SlurmctldPort=17817
SlurmdPort=17818
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
MpiDefault=none
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=40
MessageTimeout=20
KillWait=30
SchedulerParameters=sched_interval=5,sched_min_interval=1000000,bf_interval=10
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1
PartitionName=notice Nodes=ALL PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF
"""


class Slurm:
    """The cluster, while the block runs; files of Slurm and jobs' output lie in ``place``."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        self.place, self.network = place, Network(place, *NODES)
        self.environment = environment | {"SLURM_CONF": str(place / "slurm.conf")}
        self._stack = ExitStack()
        self._daemons: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        self._stack.enter_context(self.network)
        for name in ("state", *NODES):
            (self.place / name).mkdir(parents=True)
        self.place.chmod(0o755)
        key = self.place / "munge.key"
        key.write_bytes(secrets.token_bytes(1024))
        key.chmod(0o400)
        nodes = "\n".join(
            f"NodeName={host.name} NodeAddr={host.address} CPUs=2 RealMemory=2000 State=UNKNOWN"
            for host in self.network.hosts.values()
        )
        (self.place / "slurm.conf").write_text(_CONFIG.format(controller=CONTROLLER, place=self.place, nodes=nodes))
        self._daemon(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={self.place}/munge.socket",
            f"--pid-file={self.place}/munge.pid", f"--log-file={self.place}/munge.log",
            f"--seed-file={self.place}/munge.seed",
        )  # fmt: skip
        self._until("munged", lambda: (self.place / "munge.socket").exists())
        self._daemon("unshare", "--uts", "sh", "-c", "hostname controller; exec slurmctld -D")
        for name in NODES:
            self.switch_on(name)
        self.await_nodes()

    def await_nodes(self) -> None:
        """Wait until both nodes can take jobs. One that was taken for down is asked again only now and then."""
        self._until("two idle nodes", lambda: self._nodes() == "idle 2", 300)

    def _nodes(self) -> str:
        """State and number of nodes, as sinfo tells them."""
        return self.tell("sinfo", "-h", "-p", "low", "-o", "%T %D").strip()

    def _daemon(self, *command: str) -> None:
        with (self.place / "daemons.log").open("a") as log:
            self._daemons.append(subprocess.Popen(command, env=self.environment, stdout=log, stderr=log, text=True))

    def switch_on(self, name: str) -> None:
        """Start a node's slurmd."""
        with (self.place / "daemons.log").open("a") as log:
            self.network.hosts[name].popen(
                ["slurmd", "-D", "-N", name], self.place, env=self.environment, stdout=log, stderr=log
            )

    def __exit__(self, *_: object) -> None:
        if (self.place / "slurm.conf").exists():
            self.tell("scancel", "--user=root", check=False)
        for daemon in reversed(self._daemons):
            daemon.terminate()
            daemon.wait(30)
        self._stack.close()

    def tell(self, *command: str, check: bool = True, **variables: str) -> str:
        """Run one of Slurm's programs and return what it prints."""
        done = subprocess.run(
            command, env=self.environment | variables, cwd=self.place, capture_output=True, text=True, timeout=600
        )
        assert not check or done.returncode == 0, f"{command}: {done.returncode}: {done.stderr}{done.stdout}"
        return done.stdout + done.stderr

    def submit(self, *arguments: str, **variables: str) -> str:
        """sbatch; the job's number."""
        return self.tell("sbatch", "--parsable", *arguments, check=True, **variables).strip().split(";")[0]

    def job(self, number: str) -> dict[str, str]:
        """What scontrol shows of a job."""
        return dict(re.findall(r"(\S+?)=(\S*)", self.tell("scontrol", "show", "job", number)))

    def log(self, number: str) -> str:
        """A job's output so far."""
        return "".join(path.read_text() for path in self.place.glob(f"*-{number}.log"))

    def until(self, number: str, *states: str, seconds: float = 300) -> dict[str, str]:
        """Wait until a job is in one of these states."""
        self._until(f"{number}: {states}", lambda: self.job(number)["JobState"] in states, seconds, number)
        return self.job(number)

    def says(self, number: str, words: str) -> None:
        """Wait until a job has printed some words."""
        self._until(f"{words!r} of {number}", lambda: words in self.log(number), 120, number)

    def started(self, number: str) -> None:
        """Wait until both ranks of a job load their modules."""
        self._until(f"two ranks of {number}", lambda: len(self.ranks(f"SLURM_JOB_ID={number}")) >= 2, 60, number)
        time.sleep(1)

    def requeued(self, number: str) -> None:
        """Wait until a job has been put into the queue again, and can start: Slurm first revokes its credential."""
        self._until(f"{number} in the queue again", lambda: self.job(number)["Restarts"] != "0", 300, number)
        time.sleep(10)

    def restarted(self, number: str) -> None:
        """Wait until a job has been put into the queue again and runs."""
        self.requeued(number)

        def runs() -> bool:
            self._release(number)
            return self.job(number)["JobState"] == "RUNNING"

        self._until(f"{number} runs again", runs, 300, number)

    def _release(self, number: str) -> None:
        """Slurm holds a requeued job back for two minutes, unless it is told not to."""
        if self.job(number)["JobState"] == "PENDING":
            self.tell("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)

    def finish(self, number: str) -> None:
        """See a requeued job to its end."""

        def ended() -> bool:
            self._release(number)
            return self.job(number)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")

        self._until(f"end of {number}", ended, 300, number)
        assert self.job(number)["JobState"] == "COMPLETED", self.log(number)

    def ranks(self, variable: str) -> list[int]:
        """The processes of hpe whose environment has this NAME=VALUE."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                words = (folder / "cmdline").read_bytes().split(b"\0")
                if (
                    b"-m" in words
                    and b"hpe" in words
                    and variable.encode() in (folder / "environ").read_bytes().split(b"\0")
                ):
                    found.append(int(folder.name))
        return found

    def _until(self, what: str, true: Any, seconds: float = 60, number: str = "") -> None:
        end = time.monotonic() + seconds
        while not true():
            if time.monotonic() > end:
                pytest.fail(f"no {what} within {seconds} s\n{self.log(number) if number else self._nodes()}")
            time.sleep(0.5)


def environment(root: Path) -> dict[str, str]:
    """The variables of a user's shell on this cluster; ``hpe`` is on the PATH."""
    kept = ("HOME", "LANG", "LC_ALL", "USER", "TMPDIR")
    return {name: os.environ[name] for name in kept if name in os.environ} | {
        "PATH": f"{root}/bin:{os.environ['PATH']}",
    }
