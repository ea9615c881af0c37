"""Signals before a command catches them: wherever the process is, it ends with a message and a code that says which."""

import os
import signal
import subprocess
import sys
import time

import pytest

from hpe.core.signals import Signals, signals

BUSY = "ready()\nwhile True: pass"
# As a rank in C that waits for others: Python's own handlers cannot run there.
IN_C = "import ctypes; ctypes.CDLL(None).sleep.restype = None; ready()\nfor _ in range(99): ctypes.CDLL(None).sleep(60)"


def started(body: str, **variables: str) -> subprocess.Popen[str]:
    ready = "ready = lambda: print('ready', flush=True)"
    code = f"from hpe.core.signals import *\nend_on_signals()\n{ready}\n{body}"
    process = subprocess.Popen(
        # Python 3.12 warns of any fork beside threads.
        [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code],
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1], ids=lambda number: number.name)
@pytest.mark.parametrize(("rank", "told"), [("0", True), ("1", False)])
def test_a_signal_before_a_command_catches_it_is_told_once_and_ends_it(
    number: signal.Signals, rank: str, told: bool
) -> None:
    with started(BUSY, RANK=rank) as process:
        process.send_signal(number)
        _, printed = process.communicate(timeout=30)
    assert process.returncode == 128 + number
    assert printed == (f"hpe: stopped by {number.name}; run the same command again\n" if told else "")


def test_a_process_that_waits_in_c_ends_too() -> None:
    with started("import hpe.core.signals as s; s._GRACE_SECONDS = 0.2\n" + IN_C) as process:
        process.send_signal(signal.SIGTERM)
        _, printed = process.communicate(timeout=20)
    assert process.returncode == 128 + signal.SIGTERM
    assert printed.count("stopped by SIGTERM") == 1


def test_what_is_to_be_cleaned_up_is() -> None:
    body = "try:\n    ready()\n    while True: pass\nfinally: print('cleaned', flush=True)"
    with started(body) as process:
        process.send_signal(signal.SIGTERM)
        printed, _ = process.communicate(timeout=30)
    assert (process.returncode, printed) == (128 + signal.SIGTERM, "cleaned\n")


def test_a_signal_to_a_forked_process_is_not_its_parents() -> None:
    body = (
        "import os, signal, time; ready()\n"
        "if (child := os.fork()) == 0: time.sleep(60)\n"
        "time.sleep(0.2); os.kill(child, signal.SIGTERM)\n"
        "_, status = os.waitpid(child, 0)\n"
        "import hpe.core.signals as s; time.sleep(0.5)\n"
        "print(os.WTERMSIG(status))"
    )
    with started(body) as process:
        printed, told = process.communicate(timeout=30)
    assert (process.returncode, printed, told) == (0, f"{signal.SIGTERM:d}\n", "")


def test_a_command_that_catches_signals_stops_when_it_is_ready() -> None:
    body = "with signals() as stop:\n    ready()\n    while not stop.received: pass\n    print(stop.number)"
    with started(body) as process:
        process.send_signal(signal.SIGUSR1)
        printed, _ = process.communicate(timeout=30)
    assert (process.returncode, printed) == (0, f"{signal.SIGUSR1:d}\n")


def test_a_second_signal_changes_no_exit_code() -> None:
    """Slurm sends the other ranks SIGTERM as soon as one has ended, although they end by the same SIGUSR1."""
    again = "import os, signal; os.kill(os.getpid(), signal.SIGTERM); [None for _ in range(1000)]"
    caught = f"with signals() as stop:\n    ready()\n    while not stop.received: pass\n{again}\nraise SystemExit(75)"
    ended = f"try:\n    ready()\n    while True: pass\nfinally:\n    {again}"
    late = f"import atexit; atexit.register(exec, {again!r})\n{BUSY}"
    for body, code in ((caught, 75), (ended, 128 + signal.SIGUSR1), (late, 128 + signal.SIGUSR1)):
        with started(body) as process:
            process.send_signal(signal.SIGUSR1)
            process.communicate(timeout=30)
        assert process.returncode == code


def test_a_second_interrupt_stops_at_once() -> None:
    with signals() as caught:
        assert isinstance(caught, Signals)
        os.kill(os.getpid(), signal.SIGINT)
        while not caught.received:
            time.sleep(0.01)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)


def test_a_signal_that_a_command_has_answered_does_not_end_the_process_afterwards() -> None:
    body = (
        "import os, signal, sys, time\nimport hpe.core.signals as s\ns._GRACE_SECONDS = 0.2\n"
        "sys.setswitchinterval(60)\nready()\n"  # the thread comes to look only when the block is over
        "with signals() as caught:\n    os.kill(os.getpid(), signal.SIGTERM)\n    while not caught.received: pass\n"
        "time.sleep(1)\nprint('finished', flush=True)"
    )
    with started(body) as process:
        printed, told = process.communicate(timeout=30)
    assert (process.returncode, printed, told) == (0, "finished\n", "")
