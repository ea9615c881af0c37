"""``hpe doctor --gpu``: run every check in its own process, and report the results."""

import contextlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from hpe.core.errors import EXIT_INCOMPLETE, EXIT_INTERRUPTED, EXIT_OK, UserError
from hpe.core.files import make_folder, refuse_unwritable, write_json
from hpe.core.ranks import end_with_parent
from hpe.tools.gpucheck import CHECKS, DATA, Check, Row

REPORT: Final = "gpu-report.json"
_SECONDS: Final = 480
"""For all checks together."""
_PATIENCE: Final = {"cuda": 1.0, "cpu": 3.0}
"""Factor on all time limits: an idle CPU needs half of them, but a CPU is rarely idle."""
_HEARTBEAT_SECONDS: Final = 15
_LOG_LINES: Final = 30
_COLOURS: Final = {"ok": "green", "note": "yellow", "skip": "dim", "bad": "bold red"}
_NARROWEST: Final = 100


@dataclass
class Report:
    """What was found so far.

    Attributes:
        device: ``cuda`` or ``cpu``.
        found: rows by check, in order.
        seconds: how long each check took.
        logs: the end of the output of checks that found something bad.
        complete: whether every check has run to its end.
    """

    device: str
    found: dict[str, list[Row]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    logs: dict[str, list[str]] = field(default_factory=dict)
    complete: bool = False

    @property
    def bad(self) -> int:
        """How many rows are bad."""
        return sum(row.state == "bad" for rows in self.found.values() for row in rows)

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is no finite number is a text."""
        from hpe.data.provenance import about_package

        rows = [{"check": check, **asdict(row)} for check, found in self.found.items() for row in found]
        plain = {
            **about_package(),
            "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "system": platform.platform(terse=True),
            "device": self.device,
            "complete": self.complete,
            "bad": self.bad,
            "seconds": {name: round(seconds, 1) for name, seconds in self.seconds.items()},
            "rows": rows,
            "logs": self.logs,
        }
        return json.loads(json.dumps(plain), parse_constant=str)

    def show(self) -> None:
        """Print the table."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        console = Console()
        if not console.is_terminal:
            console.width = max(_NARROWEST, console.width)
        table = Table(title=f"hpe doctor --gpu, on {self.device}", title_justify="left", expand=False)
        for name in ("check", "", "what", "found"):
            table.add_column(name, overflow="fold")
        for check, rows in self.found.items():
            for row in rows:
                cells = Text(row.state, _COLOURS[row.state]), Text(row.name), Text(row.text)
                table.add_row(check if row is rows[0] else "", *cells, end_section=row is rows[-1])
        console.print(table)


def gpu_doctor(folder: Path, *, device: str, out: Path | None) -> int:
    """Judge this machine's GPUs; prints a table and writes a report.

    Args:
        folder: where the checks may write; all of it is removed at the end.
        device: ``auto`` (GPUs), or ``cpu`` to try the checks themselves where there is none.
        out: the report; in ``folder`` where it is None.

    Returns:
        The exit code: 0; 1 when something is bad, or not all was looked at; 130 after Ctrl-C.

    Raises:
        UserError: torch sees no GPU (why is in the message), another device, or a folder that cannot be written.
    """
    kind = _kind(device)
    make_folder(folder, str(folder))
    target = folder / REPORT if out is None else out
    refuse_unwritable(target, f"--out {target}")
    report = Report(kind)
    code = EXIT_OK
    with _workplace(folder) as work:
        try:
            _run_all(work, kind, report)
        except KeyboardInterrupt:
            code = EXIT_INTERRUPTED
    report.show()
    write_json(target, report.to_json())
    print(f"{_verdict(report)}; the report is {target}: attach it when you report a problem")
    return code or (EXIT_OK if report.complete and not report.bad else EXIT_INCOMPLETE)


def _kind(device: str) -> Literal["cuda", "cpu"]:
    if device == "cpu":
        return "cpu"
    if device not in ("auto", "cuda"):
        raise UserError(f"--device {device}: expected auto or cpu (CUDA_VISIBLE_DEVICES chooses among GPUs)")
    from hpe.tools.gpucheck.environment import why_no_gpu

    if why := why_no_gpu():
        raise UserError(f"--gpu: torch sees no GPU: {why}. --device cpu runs the same checks on the CPU")
    return "cuda"


def _verdict(report: Report) -> str:
    if not report.complete:
        return f"not all checks ran; {report.bad} bad"
    return f"{report.bad} bad" if report.bad else "nothing is bad"


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder of our own that does not outlive us."""
    # Readers that were killed may still write for a moment.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".hpe-doctor-", ignore_cleanup_errors=True) as work:
        yield Path(work).resolve()


@dataclass(frozen=True, slots=True)
class _Limits:
    """How long checks may take: each its own time times ``patience``, and all until ``deadline``."""

    patience: float
    deadline: float


def _run_all(work: Path, kind: Literal["cuda", "cpu"], report: Report) -> None:
    from hpe.tools.gpucheck.place import CPU, GPU, Place

    place = Place(kind, work, work / "heads", GPU if kind == "cuda" else CPU)
    place.save()
    patience = _PATIENCE[kind]
    limits = _Limits(patience, time.monotonic() + patience * _SECONDS)
    environment, of = place.environment(), len(CHECKS)
    first, *others = CHECKS
    _run(first, work, environment, report, limits, f"check 1 of {of}: ")
    _say(f"rendering {place.sizes.heads:,} heads")
    _run(DATA, work, environment, report, limits, "")
    for number, check in enumerate(others, 2):
        _run(check, work, environment, report, limits, f"check {number} of {of}: ")
    report.complete = all(check.name in report.seconds for check in CHECKS)


def _run(check: Check, work: Path, environment: dict[str, str], report: Report, limits: _Limits, told: str) -> None:
    """Run one check, and add what it finds to the report."""
    seconds = min(limits.patience * check.seconds, limits.deadline - time.monotonic())
    rows = report.found[check.name] = []
    if seconds <= 0:
        rows.append(Row(check.name, "bad", "not run: the time for all checks was used up"))
        return
    if told:
        _say(f"{told}{check.title}")
    start = time.monotonic()
    log = work / f"{check.name}.log"
    try:
        code = _ended(check.name, work, environment, log, seconds)
    finally:
        rows += _read(work / f"{check.name}.jsonl")
        shutil.rmtree(work / "runs", ignore_errors=True)  # checkpoints: hundreds of megabytes
    report.seconds[check.name] = time.monotonic() - start
    if problem := _problem(code, seconds):
        last = _tail(log)[-1:]
        rows.append(Row(check.name, "bad", problem + (f": {last[0][:200]}" if last and code is not None else "")))
    if any(row.state == "bad" for row in rows):
        report.logs[check.name] = _tail(log)
    if not rows:
        del report.found[check.name]
    for row in rows:
        _say(f"  {row.state:5}{row.name}: {row.text}")


def _problem(code: int | None, seconds: float) -> str | None:
    """Why a check that ended so has not run to its end."""
    if code is None:
        return f"did not finish within {seconds:.0f} s: stopped"
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}" if code else None


def _ended(name: str, work: Path, environment: dict[str, str], log: Path, seconds: float) -> int | None:
    """Exit code of a check's process, or None when its time was up; nothing of it is left."""
    command = [sys.executable, "-m", "hpe.tools.gpucheck", name, str(work)]
    start = time.monotonic()
    with (
        log.open("wb") as output,
        subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, preexec_fn=partial(end_with_parent, signal.SIGKILL),
        ) as process,
    ):  # fmt: skip
        try:
            while (left := start + seconds - time.monotonic()) > 0:
                try:
                    return process.wait(min(left, _HEARTBEAT_SECONDS))
                except subprocess.TimeoutExpired:
                    _say(f"  … {time.monotonic() - start:.0f} s")
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):  # nobody is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _read(path: Path) -> list[Row]:
    """The rows that a check has written; a half line is the end of one that was killed."""
    rows = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                rows.append(Row(**json.loads(line)))
            except (ValueError, TypeError):
                break
    return rows


def _tail(log: Path) -> list[str]:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line for line in lines if line.strip()][-_LOG_LINES:]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
