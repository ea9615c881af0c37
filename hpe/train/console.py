"""What a person at a terminal sees of a training: a bar above a small live table; elsewhere plain lines."""

import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from hpe.core.progress import progress

if TYPE_CHECKING:
    from rich.table import Table

_JUDGED: Final = {
    "accuracy": "accuracy", "macro_f1": "macro F1", "mae": "MAE", "geodesic": "geodesic", "rmse": "RMSE",
}  # fmt: skip
_DEGREES: Final = ("mae", "geodesic")


class Screen(Protocol):
    """What the log of a training reports to."""

    def advance(self, count: int = 1) -> None:
        """``count`` more images are done."""
        ...

    def show(self, split: str, figures: Mapping[str, float]) -> None:
        """The latest figures of ``train`` or ``val``, by the names of ``metrics.jsonl``."""
        ...


@contextmanager
def screen(
    title: str, total: int, *, done: int, epochs: float, work: Callable[[int], float] = float
) -> Iterator[Screen]:
    """A live table where stderr is a terminal; plain lines in a file or pipe; nothing on ranks other than 0.

    Args:
        title: of the run.
        total: images in all.
        done: images that earlier starts of the run have seen.
        epochs: of the whole run.
        work: of so many images, for the time left.
    """
    if os.environ.get("RANK", "0") == "0" and not os.environ.get("HPE_QUIET") and sys.stderr.isatty():
        yield from _live(title, total, done, epochs, work)
        return
    with progress(title, total, unit="images", done=done, work=work) as bar:

        class Lines:
            def advance(self, count: int = 1) -> None:
                bar.advance(count)

            def show(self, split: str, figures: Mapping[str, float]) -> None:
                if split == "train":
                    bar.note(f"loss {figures['loss']:.3g}")

        yield Lines()


def _live(title: str, total: int, done: int, epochs: float, work: Callable[[int], float]) -> Iterator[Screen]:
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
    from rich.text import Text

    bar = Progress(
        TextColumn("[bold]{task.description}"), BarColumn(24),
        TextColumn("{task.fields[seen]}/{task.fields[images]} images,"), TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    begun: Any = work(done)  # Rich's own annotation has whole numbers
    task = bar.add_task(title, total=work(total), completed=begun, seen=done, images=total)
    latest: dict[str, Mapping[str, float]] = {"train": {}, "val": {}}

    class Shown:
        seen = done

        def advance(self, count: int = 1) -> None:
            self.seen += count
            bar.update(task, completed=work(self.seen), seen=self.seen)

        def show(self, split: str, figures: Mapping[str, float]) -> None:
            latest[split] = figures
            live.update(Group(bar, heads_table(**latest), Text(pace(latest["train"], epochs), style="dim")))

    with Live(bar, console=Console(stderr=True), refresh_per_second=4) as live:
        yield Shown()


def heads_table(train: Mapping[str, float], val: Mapping[str, float]) -> "Table":
    """A row for each head: its training loss, and its figures on the validation split."""
    from rich import box
    from rich.table import Table

    names = [name for name in _JUDGED if any(key.endswith(f"/{name}") for key in val)]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("head")
    for title in ("loss", *(_JUDGED[name] for name in names)):
        table.add_column(title, justify="right")
    heads = dict.fromkeys(key.partition("/")[0] for key in (*train, *val) if key.endswith(("/loss", *_JUDGED)))
    for head in heads:
        found = [f"{train[f'{head}/loss']:.3g}" if f"{head}/loss" in train else "–"]
        for name in names:
            value = val.get(f"{head}/{name}")
            found.append("" if value is None else f"{value:.2f}°" if name in _DEGREES else f"{value:.3f}")
        table.add_row(head, *found)
    return table


def pace(train: Mapping[str, float], epochs: float) -> str:
    """Where the run stands and how fast it goes, in one line."""
    if not train:
        return ""
    memory = train.get("speed/device_memory_gib")
    said = (
        f"epoch {train['epoch']:.2f} of {epochs:g}",
        f"loss {train['loss']:.3g}",
        f"rate {train['learning_rate']:.2g}",
        f"gradient {train['gradient_norm']:.2g}",
        f"{train['speed/images_per_second']:,.0f} images/s",
        f"{train['speed/waiting_for_data']:.0%} waiting for data",
        *(() if memory is None else (f"{memory:.1f} GiB",)),
    )
    return " · ".join(said)
