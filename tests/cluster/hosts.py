"""Hosts on this machine: a network, uts and pid namespace each, joined by a bridge. Needs root and iproute2."""

import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

BRIDGE: Final = "hpe-bridge"
NETWORK: Final = "10.77.31"
CONTROLLER: Final = f"{NETWORK}.1"
"""This machine's own address on the bridge."""


def why_not(*programs: str) -> str | None:
    """Why hosts cannot be made here; None where they can."""
    if os.geteuid() != 0:
        return "namespaces need root"
    if missing := [name for name in ("ip", "unshare", "nsenter", *programs) if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)} (Debian: apt-get install iproute2 slurm-wlm munge)"
    done = subprocess.run(["unshare", "--net", "--uts", "--pid", "--fork", "true"], capture_output=True, text=True)
    return f"no namespaces here: {done.stderr.strip()}" if done.returncode else None


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@dataclass
class Host:
    """One host: its processes run in its namespaces, and see the same files as this machine."""

    name: str
    address: str
    names: Path
    """A file like /etc/hosts, with all hosts."""
    init: subprocess.Popen[bytes] | None = None
    started: list[subprocess.Popen[Any]] = field(default_factory=list)

    @property
    def _link(self) -> str:
        return f"hpe-{self.name}"

    def start(self) -> None:
        """Give it a network and a first process, whose end ends all its processes."""
        _run("ip", "netns", "add", self._link)
        _run("ip", "link", "add", self._link, "type", "veth", "peer", "name", "eth0", "netns", self._link)
        _run("ip", "link", "set", self._link, "master", BRIDGE, "up")
        for words in (f"addr add {self.address}/24 dev eth0", "link set eth0 up", "link set lo up"):
            _run("ip", "-n", self._link, *words.split())
        self.boot()

    def boot(self) -> None:
        """Start its first process; after :meth:`kill`, this is what switching it on again does."""
        self.init = subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self._link}", "unshare", "--uts", "--pid", "--mount-proc", "--fork",
             "--kill-child", "sh", "-ec",
             f"mount --bind {self.names} /etc/hosts; hostname {self.name}; echo up; exec sleep infinity"],
            stdout=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        assert self.init.stdout is not None
        assert self.init.stdout.readline() == b"up\n"

    @property
    def _first(self) -> int:
        assert self.init is not None
        return int(Path(f"/proc/{self.init.pid}/task/{self.init.pid}/children").read_text().split()[0])

    def popen(self, command: Sequence[str], folder: Path, **options: Any) -> "subprocess.Popen[str]":
        """Start a command on this host, in a folder."""
        inside = ["nsenter", "--target", str(self._first), "--net", "--uts", "--pid", "--mount"]
        process = subprocess.Popen([*inside, "env", "-C", str(folder), *command], text=True, **options)
        self.started.append(process)
        return process

    def cut(self) -> None:
        """Pull the cable: packets are lost, and nobody is told."""
        _run("ip", "link", "set", self._link, "down")

    def join(self) -> None:
        """Put the cable back."""
        _run("ip", "link", "set", self._link, "up")

    def kill(self) -> None:
        """Switch it off: every process is killed, and with the cable pulled first nobody is told."""
        if self.init is not None:
            with suppress(ProcessLookupError, IndexError, OSError):
                os.kill(self._first, signal.SIGKILL)
            self.init.kill()
            self.init.communicate()
        for process in self.started:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
        self.started.clear()

    def remove(self) -> None:
        """End its processes and remove its network."""
        self.kill()
        subprocess.run(["ip", "link", "del", self._link], capture_output=True)
        subprocess.run(["ip", "netns", "del", self._link], capture_output=True)


class Network:
    """Hosts that reach each other by name, and this machine as ``controller``."""

    def __init__(self, place: Path, *names: str) -> None:
        self._names = place / "hosts"
        self.hosts = {name: Host(name, f"{NETWORK}.{2 + n}", self._names) for n, name in enumerate(names)}

    def __enter__(self) -> Self:
        self._remove()
        _run("ip", "link", "add", BRIDGE, "type", "bridge")
        _run("ip", "addr", "add", f"{CONTROLLER}/24", "dev", BRIDGE)
        _run("ip", "link", "set", BRIDGE, "up")
        names = "127.0.0.1 localhost\n" + "".join(f"{host.address} {host.name}\n" for host in self.hosts.values())
        self._names.write_text(names)
        for host in self.hosts.values():
            host.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._remove()

    def _remove(self) -> None:
        for host in self.hosts.values():
            host.remove()
        subprocess.run(["ip", "link", "del", BRIDGE], capture_output=True)
