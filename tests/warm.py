"""Processes that have hpe's slow imports behind them: forks of a server that has made them once.

A new interpreter computes for 8 seconds before its first training step: the imports of torch, torchmetrics and SciPy.
What a test says about ranks, kills and resuming is the same in a fork; what it says about a launcher or the start of a
command is not, and takes a new interpreter.
"""

import atexit
import contextlib
import importlib
import os
import pickle
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[1]
LAUNCHERS_OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ENVIRONMENT = {
    **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")},
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONPATH": str(ROOT),
}
"""Of ranks on a CPU whose launcher is a test."""
IMPORTED = (
    "hpe.cli", "hpe.train.loop", "hpe.train.metrics", "hpe.evaluate", "hpe.pose.plan", "hpe.predict", "hpe.pack",
    "accelerate", "datasets", "av", "torch._dynamo", "torch.fx.experimental.symbolic_shapes", "torch.utils.tensorboard",
)  # fmt: skip
_LARGEST_REQUEST, _LARGEST_OUTPUT = 1 << 17, 1 << 24


class Process:
    """``python WORDS`` (``-m MODULE …`` or ``-c CODE …``) in a fork, as far as tests need ``subprocess.Popen``."""

    def __init__(self, *words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> None:
        self._printed = [tempfile.TemporaryFile() for _ in range(2)]  # pipes would have to be read  # noqa: SIM115
        request = ([str(word) for word in words], str(cwd), dict(env or _without_ranks(os.environ)))
        self._life, theirs = socket.socketpair()
        with theirs:
            handed = [one.fileno() for one in (theirs, *self._printed)]
            socket.send_fds(_server(), [pickle.dumps(request)], handed)
        self.pid = int(self._life.recv(20))
        self.returncode: int | None = None
        self.stdout = self.stderr = ""

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or minus the number of the signal that ended the process."""
        if self.returncode is None:
            self._life.settimeout(timeout)
            self.returncode = int(self._life.recv(20))
            self._life.close()
            self.stdout, self.stderr = (os.pread(one.fileno(), _LARGEST_OUTPUT, 0).decode() for one in self._printed)
            for one in self._printed:
                one.close()
        return self.returncode

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        with contextlib.suppress(BlockingIOError):
            return self.wait(0)
        return None

    def communicate(self, timeout: float) -> tuple[str, str]:
        """What it has printed until its end."""
        self.wait(timeout)
        return self.stdout, self.stderr

    def send_signal(self, number: int) -> None:
        """Send it if the process still runs."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.send_signal(signal.SIGKILL)
        self.wait()


def run(*words: object, cwd: Path = ROOT, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """As ``subprocess.run``."""
    with Process(*words, cwd=cwd, env=env) as process:
        return subprocess.CompletedProcess(
            [str(word) for word in words], process.wait(240), process.stdout, process.stderr
        )


def ranks(count: int, *words: object, env: Mapping[str, str] | None = None) -> list[Process]:
    """As many processes, numbered as a launcher numbers those of one machine."""
    common = dict(env or os.environ) | {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    return [Process(*words, env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(count)]


def run_ranks(count: int, *words: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """All ranks to their ends. As launchers do, end the others after the first that fails, whose exit code counts."""
    with contextlib.ExitStack() as stack:
        started = [stack.enter_context(one) for one in ranks(count, *words, env=env)]
        code, running = 0, started
        while running:
            time.sleep(0.05)
            failed = [one.returncode for one in running if one.poll()]
            running = [one for one in running if one.returncode is None]
            if failed and not code:
                code = failed[0] or 0
                time.sleep(0.2)  # the others see for themselves that one is gone, and wait for this signal
                for one in running:
                    one.send_signal(signal.SIGTERM)
        told = ["".join(texts) for texts in zip(*((one.stdout, one.stderr) for one in started), strict=True)]
        return subprocess.CompletedProcess([str(word) for word in words], code, *told)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@cache
def _server() -> socket.socket:
    """Where requests go; the server ends when this process does."""
    ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
    with theirs:
        # One thread each, or a fork would take a copy of locks that other threads hold.
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm", str(theirs.fileno())],
            cwd=ROOT, env=_without_ranks(os.environ) | threads, stdin=subprocess.DEVNULL, pass_fds=[theirs.fileno()],
        )  # fmt: skip
    atexit.register(lambda: (ours.close(), server.wait()))
    return ours


def _without_ranks(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in LAUNCHERS_OWN}


def _serve(requests: socket.socket) -> None:
    """Return in each started process, with ``sys.argv`` and the rest as asked for."""
    for name in IMPORTED:
        importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the keepers
    while True:
        request, handed, *_ = socket.recv_fds(requests, _LARGEST_REQUEST, 3)
        if not request:
            os._exit(0)
        if os.fork() == 0:
            requests.close()
            _keep(*pickle.loads(request), *handed)
            return
        for one in handed:
            os.close(one)


def _keep(words: list[str], cwd: str, env: dict[str, str], life: int, out: int, err: int) -> None:
    """Fork, return in the child, and stay to tell how it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
    if pid := os.fork():
        with contextlib.suppress(OSError):
            os.write(life, b"%d" % pid)
            os.write(life, b"%d" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        os._exit(0)
    os.close(life)
    for number, given in ((1, out), (2, err)):
        os.dup2(given, number)
        os.close(given)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = words


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
    how, what, *_ = sys.argv
    if how == "-m":
        del sys.argv[0]
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv[:2] = ["-c"]
        exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
