"""A word to the user while processes wait: soon, then seldom, and from only one process of a job on each node."""

import contextlib
import hashlib
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from hpe.core.console import say
from hpe.core.errors import UserError, redacted
from hpe.core.files import locked

_FIRST_WORD_SECONDS: Final = 3.0
_NEXT_WORD_SECONDS: Final = 30.0
_TICK_SECONDS: Final = 0.5
_IMPORTED: Final = time.time()


def node_folder() -> Path:
    """This user's folder on this node: ``$HPE_CACHE``, else below the temporary folder; others cannot write.

    Raises:
        UserError: it cannot be made, or belongs to somebody else.
    """
    folder = Path(os.environ.get("HPE_CACHE") or Path(tempfile.gettempdir()) / f"hpe-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot make this folder ({error.strerror}); set HPE_CACHE") from error
    if folder.stat().st_uid != os.getuid():
        raise UserError(f"{folder}: belongs to another user; set HPE_CACHE to a folder of your own")
    return folder


def session() -> str:
    """What the ranks of a job on this node share, and no job that starts later.

    Raises:
        UserError: see :func:`node_folder`.
    """
    return _of_this_job() if "LOCAL_RANK" in os.environ else _of_this_process()


@cache
def _of_this_process() -> str:  # and of its forks
    return f"{os.getpid()}-{time.time()}"  # process numbers come again


@cache
def _of_this_job() -> str:
    """The name that the first rank to ask has written to a file.

    What started the ranks does not tell jobs apart: the next command of a shell (``srun bash -c '…; …'``) has the same
    parent and the same step, and that of another container perhaps the same numbers. But it starts after the name was
    written, so that only who ran by then takes it. Ranks that start after that share another name, and fetch again.
    """
    own = _of_this_process()
    launcher = hashlib.sha256(_launcher().encode()).hexdigest()[:2]  # 256 files serve all
    path = node_folder() / f"session-{launcher}"
    with locked(node_folder() / "session.lock", None), contextlib.suppress(OSError):
        with contextlib.suppress(FileNotFoundError, ValueError):
            found = path.read_text("ascii")
            if float(found.rpartition("-")[2]) > _started():
                return found
        path.write_text(own, "ascii")
    return own


def _started() -> float:
    """When this process began; where the system does not tell, when this module was imported."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        ticks = int(Path("/proc/self/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text("ascii").split()[0])
        # The lesser: a container may have an uptime of its own.
        return min(_IMPORTED, time.time() - up + ticks / os.sysconf("SC_CLK_TCK"))
    return _IMPORTED


def _launcher() -> str:
    """What the ranks of a job on this node have in common: the step of Slurm, or else their parent."""
    step = os.environ.get("SLURM_STEP_ID")
    return f"{os.environ.get('SLURM_JOB_ID')}.{step}" if step else str(os.getppid())


@cache
def tell_once(text: str) -> None:
    """Print a line the first time that this process has it to say."""
    say(f"hpe: {text}")


@dataclass(slots=True)
class Notices:
    """A word to the user while he waits: soon, then seldom, and from only one process of a job on this node."""

    folder: Path
    session: str
    next: float = 0.0

    def tell(self, text: str, waited: float) -> None:
        """Print a line, if it is time for one."""
        now = time.monotonic()
        if waited < _FIRST_WORD_SECONDS or now < self.next:
            return
        self.next = now + _NEXT_WORD_SECONDS
        mark = self.folder / "notice"  # whose the last word was, and by its date when
        with locked(self.folder / "notice.lock", None):
            with contextlib.suppress(OSError):
                if mark.read_text() == self.session and time.time() - mark.stat().st_mtime < _NEXT_WORD_SECONDS:
                    return
            mark.write_text(self.session)
        say(f"hpe: {redacted(text)}")


@contextmanager
def said_while_waiting(text: Callable[[], str]) -> Iterator[None]:
    """Around a call that may wait for long, out of Python's reach: a thread says what ``text`` gives."""
    start, done = time.monotonic(), threading.Event()

    def tell() -> None:
        with contextlib.suppress(OSError, RuntimeError, UserError):  # no word is better than no training
            notices = Notices(node_folder(), session())
            while not done.wait(_TICK_SECONDS):
                if (waited := time.monotonic() - start) >= _FIRST_WORD_SECONDS:
                    notices.tell(f"{text()} ({waited:.0f} s so far)", waited)

    thread = threading.Thread(target=tell, name="notices", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()  # a fork would copy the locks that it holds
