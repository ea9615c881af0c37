"""One progress line for long work: a bar with rate and time left on a terminal, plain lines elsewhere."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Protocol

_LINE_SECONDS: Final = 15.0
_DRAW_SECONDS: Final = 0.05


class Bar(Protocol):
    """What a long job reports to."""

    def advance(self, count: int = 1) -> None:
        """``count`` more units are done."""
        ...

    def reach(self, done: int) -> None:
        """``done`` units are done in all, by every rank."""
        ...

    def note(self, text: str) -> None:
        """Show a short text, such as the loss, beside the bar."""
        ...


class _Silent:
    def advance(self, count: int = 1) -> None: ...

    def reach(self, done: int) -> None: ...

    def note(self, text: str) -> None: ...


class _Lines:
    """Plain lines, the first after a few seconds, then ever 15 s: for logs and other files."""

    def __init__(self, title: str, total: int | None, done: int, unit: str, work: Callable[[int], float]) -> None:
        self.title, self.total, self.done, self.unit, self.work = title, total, done, unit, work
        self.start, self.first, self.text = time.monotonic(), done, ""
        self.next = self.start + _LINE_SECONDS / 3

    def advance(self, count: int = 1) -> None:
        self.done += count
        if time.monotonic() >= self.next:
            self.next = time.monotonic() + _LINE_SECONDS
            self.print()

    def reach(self, done: int) -> None:
        self.advance(done - self.done)

    def note(self, text: str) -> None:
        self.text = text

    def print(self, end: str = "") -> None:
        seconds = max(time.monotonic() - self.start, 1e-9)
        rate = (self.done - self.first) / seconds
        parts = [f"{self.done:,}" + (f" of {self.total:,}" if self.total else "") + f" {self.unit}"]
        if rate:
            parts.append(_pace(rate))
        if self.total and rate and self.done < self.total:
            pace = (self.work(self.done) - self.work(self.first)) / seconds
            parts.append(f"{_clock((self.work(self.total) - self.work(self.done)) / pace)} left")
        parts += [text for text in (self.text, end) if text]
        print(f"{self.title}: {', '.join(parts)}", file=sys.stderr, flush=True)


def _pace(rate: float) -> str:
    """A rate a second, or a minute or an hour where that is what a person would count."""
    for of, times in (("s", 1), ("min", 60)):
        if rate * times >= 1:
            return f"{rate * times:,.1f}/{of}"
    return f"{rate * 3600:,.1f}/h"


def duration(seconds: float) -> str:
    """A length of time in words, such as ``40 s``, ``4 min``, ``1 h 20 min`` or ``3 d 4 h``."""
    for limit, unit, large, small in ((90, 1, "s", ""), (5400, 60, "min", ""), (172_800, 3600, "h", "min")):
        if seconds < limit:
            whole, rest = divmod(seconds, unit)
            if small:
                minutes = round(rest / 60)
                return f"{int(whole + minutes // 60)} {large} {minutes % 60} {small}"
            return f"{round(seconds / unit)} {large}"
    days, rest = divmod(round(seconds / 3600), 24)
    return f"{days} d {rest} h"


def _clock(seconds: float) -> str:
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


@contextmanager
def progress(
    title: str, total: int | None, *, unit: str, done: int = 0, work: Callable[[int], float] = float
) -> Iterator[Bar]:
    """A progress display; on ranks other than 0, or with ``HPE_QUIET`` set, it shows nothing.

    Args:
        title: the stage, such as ``pose``.
        total: units in all, or None when unknown.
        unit: what is counted, such as ``images``.
        done: units that an earlier run of the same job has done (not counted in the rate).
        work: of so many units; where some take longer than others, the time left follows from it.
    """
    if os.environ.get("RANK", "0") != "0" or os.environ.get("HPE_QUIET"):
        yield _Silent()
    elif sys.stderr.isatty():
        yield from _terminal(title, total, unit, done, work)
    else:
        lines = _Lines(title, total, done, unit, work)
        yield lines
        nothing = done and lines.done == done == total
        lines.print("done before" if nothing else f"in {_clock(time.monotonic() - lines.start)}")


def _terminal(title: str, total: int | None, unit: str, done: int, work: Callable[[int], float]) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    shown = Progress(
        TextColumn("[bold]{task.description}"), BarColumn(None), TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"), TextColumn("in"), TimeElapsedColumn(), TextColumn("left"),
        TimeRemainingColumn(), TextColumn("[dim]{task.fields[text]}"), console=Console(stderr=True), expand=True,
    )  # fmt: skip
    all_work = None if total is None else work(total)
    begun: Any = work(done)  # Rich's own annotation has whole numbers
    task = shown.add_task(title, total=all_work, completed=begun, count="", rate="", text="")
    start = time.monotonic()

    class Shown:
        now = done
        drawn = start

        def advance(self, count: int = 1) -> None:
            self.now += count
            if time.monotonic() - self.drawn > _DRAW_SECONDS or self.now == total:
                self.draw()

        def reach(self, done: int) -> None:
            self.advance(done - self.now)

        def draw(self) -> None:
            self.drawn = time.monotonic()
            rate = (self.now - done) / max(self.drawn - start, 1e-9)
            of = f"/{total:,}" if total else ""
            shown.update(
                task,
                completed=work(self.now),
                count=f"{self.now:,}{of}",
                rate=f"{unit} {_pace(rate)}" if rate else unit,
            )

        def note(self, text: str) -> None:
            shown.update(task, text=text)

    with shown:
        bar = Shown()
        yield bar
        bar.draw()
