"""The pass of ``hpe pose`` on one rank: read, compute and write shard after shard.

Batches never reach over a shard's end, and on a CPU each is computed by one thread, several side by side, so
that a table is the same bytes whatever the number of ranks, threads and restarts.
"""

import glob
import hashlib
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hpe.core.distributed import Ranks
from hpe.core.errors import EXIT_AGAIN, EXIT_INCOMPLETE, EXIT_OK, UserError
from hpe.core.files import refuse_unwritable
from hpe.core.labels import LARGEST_DEGREES
from hpe.core.progress import Bar, progress
from hpe.core.signals import Signals, signals
from hpe.core.work_queue import Claims, claims
from hpe.data.directions import DirectionRules
from hpe.data.pose_tables import Identity, ShardPoses, differences, write_table
from hpe.data.shard_reader import Framing, OpenShard, ahead, open_shard, read_faces
from hpe.data.shards import MANIFEST
from hpe.estimators.estimator import Estimator, Poses, averaged
from hpe.estimators.load import sha256_of

NO_FACE: Final = "no face found by the mesh"
NOT_FINITE: Final = "the network gave no finite angles"
Flips = Literal["none", "averaged"]


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard to be done, and what its manifest says of it (None: it has no manifest)."""

    path: Path
    sha256: str | None
    samples: int | None
    crop: str | None


@dataclass(frozen=True, slots=True)
class Task:
    """A shard and the table that it becomes; ``identity`` lacks the sha256 of a shard without manifest."""

    shard: ShardFile
    table: Path
    framing: Framing
    identity: Identity

    def differences(self) -> list[str] | None:
        """See :func:`hpe.data.pose_tables.differences`."""
        if self.shard.sha256 is None and self.table.is_file() and self.shard.path.is_file():
            return differences(self.table, replace(self.identity, shard_sha256=sha256_of(self.shard.path)))
        return differences(self.table, self.identity)


@dataclass
class _Growing:
    """A shard that is being done."""

    number: int
    task: Task
    shard: OpenShard
    digest: "Future[str]"
    angles: Float[np.ndarray, "faces 3"] = field(init=False)
    deviations: Float[np.ndarray, "faces 3"] = field(init=False)
    problems: dict[int, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.angles = np.full((len(self.shard), 3), np.nan, np.float32)
        self.deviations = self.angles.copy()


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Rows of a shard that go through the network together."""

    growing: _Growing
    rows: range

    @property
    def last(self) -> bool:
        return self.rows.stop == len(self.growing.shard)


_Result = tuple[_Chunk, Float[np.ndarray, "rows 6"], dict[int, str]]
"""A batch, its angles and deviations, and the rows that gave no face."""


def pose_pass(
    tasks: Sequence[Task],
    estimator: Estimator,
    directions: DirectionRules,
    *,
    flips: Flips,
    batch: int,
    threads: int,
    ranks: Ranks,
) -> int:
    """Do every task that has no table yet; returns the exit code.

    Args:
        tasks: the same on every rank.
        estimator: on this rank's device.
        directions: rules for the direction columns.
        flips: whether each face's mirror image is averaged in.
        batch: faces that go through the network together.
        threads: workers that decode (and, on a CPU, compute).
        ranks: this process among those of the job.

    Raises:
        UserError: a table that was made from something else stands in the way, or a folder cannot be written to.
    """
    done = _finished(tasks)
    todo = [task for task in tasks if task.table not in done]
    for table in {task.table.parent: task.table for task in todo}.values():
        refuse_unwritable(table, f"{table.parent} (--out)")  # makes the folder, which nothing refuses any more
    if ranks.main:
        _clear_leftovers(todo)
    known = [task.shard.samples for task in tasks]
    total = sum(n for n in known if n is not None) if None not in known else None
    before = sum(task.shard.samples or 0 for task in tasks if task.table in done)
    with (
        signals() as caught,
        claims(ranks, len(tasks)) as mine,
        progress("pose", total, unit="images", done=before) as bar,
        ThreadPoolExecutor(1, "tables") as writer,
    ):
        work = _Work(tasks, mine, flips, directions, batch, threads, estimator, bar, caught, writer)
        mine.start_together()
        work.run(mine)
        if ranks.main:
            for number in mine.abandoned():
                if number is not None:
                    print(f"hpe: the rank that had {tasks[number].shard.path} died; doing it here", file=sys.stderr)
                    work.run([number])
                work.show()
                if caught.caught is not None:
                    mine.stop()
            work.show()
        damaged = mine.problems() if ranks.main else {}
    if caught.caught is not None:
        if ranks.main:
            print("hpe: stopped; every finished table is kept, the same command goes on", file=sys.stderr)
        return EXIT_AGAIN
    for number, problem in damaged.items():
        print(f"hpe: {tasks[number].shard.path}: {problem}; skipped, no table", file=sys.stderr)
    unread = _say_unread(tasks) if ranks.main else 0
    return EXIT_INCOMPLETE if damaged or unread else EXIT_OK


def _clear_leftovers(todo: Sequence[Task]) -> None:
    """Remove what killed ranks left of unfinished tables; the others of this job have not started to write yet."""
    for task in todo:
        for part in task.table.parent.glob(f".{glob.escape(task.table.name)}.*.part"):
            part.unlink(missing_ok=True)


def _say_unread(tasks: Sequence[Task]) -> int:
    """How many pictures could not be read; tells how many faces have no angles, with the commonest reason.

    That a mesh finds no face in a picture is a finding, not a damage.
    """
    reasons = Counter[str]()
    for task in tasks:
        if task.table.is_file():
            column = pq.read_table(task.table, columns=["problem"])["problem"]
            reasons.update(reason for reason in column.to_pylist() if reason is not None)
    if reasons:
        reason, count = reasons.most_common(1)[0]
        print(
            f"hpe: {reasons.total():,} faces have no angles; {count:,} of them: {reason} (the tables' column problem)",
            file=sys.stderr,
        )
    return reasons.total() - reasons[NO_FACE]


def _finished(tasks: Sequence[Task]) -> set[Path]:
    finished, problems = set(), []
    for task in tasks:
        found = task.differences()
        if found:
            problems.append(f"{task.table}: {'; '.join(found)}")
        elif found is not None:
            finished.add(task.table)
    if problems:
        more = f"\n… and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise UserError(
            "\n".join(problems[:5]) + f"{more}\nThese pose tables were made from something else than this command asks "
            "for; remove them, give this estimator another --name, or say what they were made with"
        )
    return finished


class _Coming:
    """Values that a device computes, on their way into page-locked memory of the host."""

    def __init__(self, values: Float[Tensor, "rows columns"]) -> None:
        self._host, self._there = values, None
        if values.device.type == "cuda":
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            self._there = torch.cuda.Event(blocking=True)  # the readers have the core meanwhile
            self._there.record(torch.cuda.current_stream(values.device))

    def wait(self) -> Float[Tensor, "rows columns"]:
        """The values, when they are there."""
        if self._there is not None:
            self._there.synchronize()
        return self._host


def _stacked(poses: Poses) -> Float[Tensor, "rows 6"]:
    return torch.cat((poses.angles, poses.deviations), 1)


class _Work:
    """What one rank does: reads, computes and writes shard after shard."""

    def __init__(
        self,
        tasks: Sequence[Task],
        mine: Claims,
        flips: Flips,
        directions: DirectionRules,
        batch: int,
        threads: int,
        estimator: Estimator,
        bar: Bar,
        caught: Signals,
        writer: ThreadPoolExecutor,
    ) -> None:
        self.tasks, self.mine, self.flips, self.directions = tasks, mine, flips, directions
        self.batch, self.threads, self.estimator = batch, threads, estimator
        self.bar, self.caught, self.writer = bar, caught, writer
        self.size = estimator.input.size
        self.shown = 0

    def run(self, numbers: "Claims | Sequence[int]") -> None:
        """Do the tasks of these numbers."""
        results = self._on_cpu(numbers) if self.estimator.device.type == "cpu" else self._on_device(numbers)
        writing: deque[Future[None]] = deque()
        for chunk, poses, problems in results:
            growing, rows = chunk.growing, chunk.rows
            growing.angles[rows.start : rows.stop] = poses[:, :3]
            growing.deviations[rows.start : rows.stop] = poses[:, 3:]
            growing.problems.update(problems)
            self.mine.count(len(rows))
            self.show()
            if chunk.last:
                writing.append(self.writer.submit(self._finish, growing))
            while writing and writing[0].done():
                writing.popleft().result()
            if self.caught.caught is not None:
                self.mine.stop()
                break
        for future in writing:
            future.result()

    def show(self) -> None:
        """Bring the job's progress display up to date (rank 0 shows it)."""
        if self.mine.ranks.main:
            count = self.mine.count()
            self.bar.advance(count - self.shown)
            self.shown = count

    def _chunks(self, numbers: "Claims | Sequence[int]") -> Iterator[_Chunk]:
        with ThreadPoolExecutor(1, "sha256") as hashing:
            for number in numbers:
                task = self.tasks[number]
                if task.differences() is not None:  # finished by an earlier run
                    self.mine.finish(number)
                    continue
                try:
                    shard = open_shard(task.shard.path)
                except ValueError as error:
                    self.mine.finish(number, str(error))
                    continue
                growing = _Growing(number, task, shard, hashing.submit(_sha256, shard.data))
                for start in range(0, max(len(shard), 1), self.batch):
                    yield _Chunk(growing, range(start, min(start + self.batch, len(shard))))

    def _on_cpu(self, numbers: "Claims | Sequence[int]") -> Iterator[_Result]:
        """Each worker reads a batch and computes it."""
        depth = 2 * self.threads
        with ahead(self._read_and_predict, self._chunks(numbers), threads=self.threads, depth=depth) as made:
            yield from made

    def _on_device(self, numbers: "Claims | Sequence[int]") -> Iterator[_Result]:
        """Workers read into pinned memory; a batch is launched before the one before it is waited for.

        So the device has the next batch at hand when it is done with one, and nothing between launch and wait may
        wait itself: what must (flips of rotations) is done on the host, with what has come back.
        """
        self._set_device()
        waiting: deque[tuple[_Chunk, Tensor, _Coming, dict[int, str]]] = deque()
        depth = 2 * self.threads
        with ahead(self._read_pinned, self._chunks(numbers), threads=self.threads, depth=depth) as batches:
            for chunk, pixels, problems in batches:
                # `pixels` stays referenced until its copy to the device is surely over.
                waiting.append((chunk, pixels, self._launch(pixels), problems))
                if len(waiting) > 1:
                    yield self._landed(*waiting.popleft())
        for launched in waiting:
            yield self._landed(*launched)

    def _launch(self, pixels: UInt8[Tensor, "rows size size 3"]) -> "_Coming":
        """Poses of pictures and, with flips, of their mirror images behind them, on their way to the host."""
        if not len(pixels):
            return _Coming(torch.empty((0, 6 if self.flips == "none" else 12)))
        images = pixels.permute(0, 3, 1, 2)
        both = (self.estimator.predict(images),) if self.flips == "none" else self.estimator.predict_both(images)
        return _Coming(torch.cat([part for poses in both for part in (poses.angles, poses.deviations)], 1))

    def _landed(self, chunk: _Chunk, _: Tensor, coming: "_Coming", problems: dict[int, str]) -> _Result:
        parts = coming.wait().split(3, 1)
        poses = Poses(*parts) if self.flips == "none" else averaged(Poses(*parts[:2]), Poses(*parts[2:]))
        return chunk, _stacked(poses).numpy(), problems

    def _set_device(self) -> None:
        """Make the estimator's device this thread's: page-locked memory is of the current one, at first GPU 0."""
        if self.estimator.device.type == "cuda":
            torch.cuda.set_device(self.estimator.device)

    def _read(self, chunk: _Chunk, into: UInt8[np.ndarray, "rows size size 3"]) -> dict[int, str]:
        growing = chunk.growing
        return read_faces(growing.shard, chunk.rows, growing.task.framing, into)

    def _read_and_predict(self, chunk: _Chunk) -> _Result:
        pixels = np.empty((len(chunk.rows), self.size, self.size, 3), np.uint8)
        problems = self._read(chunk, pixels)
        if not len(pixels):
            return chunk, np.empty((0, 6), np.float32), problems
        predict = self.estimator.predict if self.flips == "none" else self.estimator.predict_with_flips
        return chunk, _stacked(predict(torch.from_numpy(pixels).permute(0, 3, 1, 2))).numpy(), problems

    def _read_pinned(self, chunk: _Chunk) -> tuple[_Chunk, Tensor, dict[int, str]]:
        self._set_device()
        shape = (len(chunk.rows), self.size, self.size, 3)
        pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=self.estimator.device.type == "cuda")
        return chunk, pixels, self._read(chunk, pixels.numpy())

    def _finish(self, growing: _Growing) -> None:
        """Write a shard's table, unless its bytes are not those that the manifest promises."""
        task, digest = growing.task, growing.digest.result()
        if task.shard.sha256 is not None and digest != task.shard.sha256:
            self.mine.finish(growing.number, f"its bytes are not those of {MANIFEST}: sha256 {digest[:12]}…, damaged")
            return
        for row in growing.problems:
            growing.angles[row] = growing.deviations[row] = np.nan
        for row in np.flatnonzero(~np.isfinite(growing.angles).all(1)).tolist():
            growing.problems.setdefault(row, NO_FACE if self.estimator.finds_faces else NOT_FINITE)
            growing.angles[row] = growing.deviations[row] = np.nan
        for row in np.flatnonzero((np.abs(growing.angles) > LARGEST_DEGREES).any(1)).tolist():
            growing.problems.setdefault(row, f"angles beyond ±{LARGEST_DEGREES:.0f}°")
            growing.angles[row] = growing.deviations[row] = np.nan
        if not len(growing.shard):
            print(f"hpe: {task.shard.path}: holds no samples; its table is empty", file=sys.stderr)
        angles, deviations = growing.angles.astype(np.float64), growing.deviations.astype(np.float64)
        poses = ShardPoses(
            growing.shard.index.keys, growing.angles, growing.deviations,
            self.directions.apply(angles, deviations), growing.problems,
        )  # fmt: skip
        write_table(task.table, poses, replace(task.identity, shard_sha256=digest))
        self.mine.finish(growing.number)


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
