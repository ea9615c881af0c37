"""The pass of ``hpe pose`` on one rank: read faces, compute their angles, write one table per shard.

A batch never crosses the end of a shard, and on a CPU one thread computes each batch while others compute theirs.
A table therefore has the same bytes whatever the number of ranks, threads and restarts.

::

    _RankPass       takes shards from the queue that all ranks share, writes their tables
    _Inference      batches of rows in, angles out, on a CPU or a GPU
"""

import hashlib
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hpe.core.console import count_of, say
from hpe.core.errors import EXIT_AGAIN, EXIT_INCOMPLETE, EXIT_OK, UserError
from hpe.core.files import leftovers, refuse_unwritable
from hpe.core.labels import LARGEST_DEGREES
from hpe.core.progress import Bar, progress
from hpe.core.ranks import Ranks
from hpe.core.signals import Signals, signals
from hpe.core.work_queue import Claims, claims
from hpe.data.crops import CropRule
from hpe.data.directions import DirectionRules
from hpe.data.faces import read_faces
from hpe.data.pose_tables import Identity, ShardPoses, differences, read_pose_table, write_table
from hpe.data.prefetch import ahead
from hpe.data.shard_files import ShardFile
from hpe.data.shard_reader import OpenShard
from hpe.data.shards import MANIFEST
from hpe.estimators.estimator import Estimator, Poses, averaged
from hpe.estimators.load import sha256_of

NO_FACE: Final = "no face found by the mesh"
NOT_FINITE: Final = "the network gave no finite angles"
_NAMED_REASONS: Final = 3
Flips = Literal["none", "averaged"]


@dataclass(frozen=True, slots=True)
class Task:
    """A shard and the table to make of it.

    Attributes:
        crop: what to cut from the stored pictures; ``none`` takes them whole.
        identity: lacks the sha256 of a shard without a manifest.
    """

    shard: ShardFile
    table: Path
    crop: CropRule
    identity: Identity

    def differences(self) -> list[str] | None:
        """See :func:`hpe.data.pose_tables.differences`."""
        if self.shard.sha256 is None and self.table.is_file() and self.shard.path.is_file():
            return differences(self.table, replace(self.identity, shard_sha256=sha256_of(self.shard.path)))
        return differences(self.table, self.identity)


@dataclass
class _ShardInProgress:
    """A shard whose faces are being computed, and the rows of its table so far."""

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
class _RowBatch:
    """Rows of a shard that go through the network together."""

    origin: _ShardInProgress
    rows: range

    @property
    def last(self) -> bool:
        return self.rows.stop == len(self.origin.shard)

    def read(self, into: UInt8[np.ndarray, "rows size size 3"]) -> dict[int, str]:
        """Read the faces; the rows without a face, with the reason."""
        return read_faces(self.origin.shard, self.rows, self.origin.task.crop, into)


_Result = tuple[_RowBatch, Float[np.ndarray, "rows 6"], dict[int, str]]
"""A batch, its angles and deviations, and the rows without a face."""


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
        flips: whether to average each face's angles with those of its mirror image.
        batch: faces that go through the network together.
        threads: workers that decode (and, on a CPU, compute).
        ranks: this process among those of the job.

    Raises:
        UserError: a table exists that was made from something else, or a folder cannot be written to.
    """
    if estimator.device.type == "cuda":
        # All batches but the last of a shard have one size, so that cuDNN's search for its fastest kernels pays off.
        torch.backends.cudnn.benchmark = True
    done = _finished(tasks)
    todo = [task for task in tasks if task.table not in done]
    for table in {task.table.parent: task.table for task in todo}.values():
        refuse_unwritable(table, f"{table.parent} (--out)")  # makes the folder, so it comes after every other refusal
    if ranks.main:
        _remove_leftovers(todo)
    known = [task.shard.samples for task in tasks]
    total = sum(n for n in known if n is not None) if None not in known else None
    before = sum(task.shard.samples or 0 for task in tasks if task.table in done)
    with (
        signals() as stop_signal,
        claims(ranks, len(tasks)) as queue,
        progress("pose", total, unit="images", done=before) as bar,
        ThreadPoolExecutor(1, "tables") as writer,
    ):
        work = _RankPass(
            tasks, queue, _Inference(estimator, flips, threads), directions, batch, bar, stop_signal, writer
        )
        # Rank 0 has counted the finished tables above. A rank that starts to write before that would have its new
        # tables counted twice in the progress, and its partial files removed as leftovers.
        queue.start_together()
        work.run(queue)
        if ranks.main:
            work.run_abandoned()
        damaged = queue.problems() if ranks.main else {}
    if stop_signal.received:
        if ranks.main:
            say("hpe: stopped; every finished table is kept; run the same command again to resume")
        return EXIT_AGAIN
    for number, problem in damaged.items():
        say(f"hpe: {tasks[number].shard}: {problem}; skipped, no table")
    unread = _report_unread(tasks) if ranks.main else 0
    return EXIT_INCOMPLETE if damaged or unread else EXIT_OK


def _remove_leftovers(todo: Sequence[Task]) -> None:
    """Remove the partial tables of killed ranks; the other ranks of this job have not started to write yet."""
    for task in todo:
        for part in leftovers(task.table):
            part.unlink(missing_ok=True)


def _report_unread(tasks: Sequence[Task]) -> int:
    """Print how many faces have no angles, with the commonest reason; returns how many pictures are unreadable.

    A picture in which the mesh finds no face is a result, not damage, and does not count.
    """
    reasons = Counter[str]()
    for task in tasks:
        if task.table.is_file():
            column = read_pose_table(task.table, ["problem"])["problem"]
            reasons.update(reason for reason in column.to_pylist() if reason is not None)
    if reasons:
        reason, count = reasons.most_common(1)[0]
        without = count_of(reasons.total(), "face")
        say(f"hpe: no angles for {without}; {count:,} of them: {reason} (see the `problem` column)")
    return reasons.total() - reasons[NO_FACE]


def _finished(tasks: Sequence[Task]) -> set[Path]:
    """The tables that exist and are what this job would make.

    Raises:
        UserError: tables that were made from something else.
    """
    finished: set[Path] = set()
    problems: dict[str, list[Path]] = {}
    for task in tasks:
        found = task.differences()
        if found:
            problems.setdefault("; ".join(found), []).append(task.table)
        elif found is not None:
            finished.add(task.table)
    if problems:
        count = sum(map(len, problems.values()))
        reasons = [
            f"  {tables[0]}{f' and {len(tables) - 1:,} more' if len(tables) > 1 else ''}: {why}"
            for why, tables in itertools.islice(problems.items(), _NAMED_REASONS)
        ]
        if len(problems) > _NAMED_REASONS:
            reasons.append(f"  … and {count_of(len(problems) - _NAMED_REASONS, 'other difference')}")
        raise UserError(
            f"{next(iter(problems.values()))[0].parent}: {count_of(count, 'pose table')} made with other settings or "
            "data; remove them, give this estimator another --name, or repeat the settings that they were made with:\n"
            + "\n".join(reasons)
        )
    return finished


class _HostCopy:
    """Values that a device computes, and their copy into page-locked memory of the host."""

    def __init__(self, values: Float[Tensor, "rows columns"]) -> None:
        self._host, self._copied = values, None
        if values.device.type == "cuda":
            # Only into page-locked memory is a copy asynchronous; into ordinary memory the host would wait here.
            self._host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._host.copy_(values, non_blocking=True)
            # An event of this copy, as waiting for the whole stream would wait for the next batch too.
            # Blocking, as a busy wait would take a core from the threads that read.
            self._copied = torch.cuda.Event(blocking=True)
            self._copied.record(torch.cuda.current_stream(values.device))

    def wait(self) -> Float[Tensor, "rows columns"]:
        """The values, once they have been copied."""
        if self._copied is not None:
            self._copied.synchronize()
        return self._host


def _angles_and_deviations(poses: Poses) -> Float[Tensor, "rows 6"]:
    return torch.cat((poses.angles, poses.deviations), 1)


@dataclass(frozen=True)
class _Inference:
    """Reads batches of faces and computes their angles on the estimator's device.

    Attributes:
        threads: workers that read; on a CPU they compute as well.
    """

    estimator: Estimator
    flips: Flips
    threads: int

    def results(self, batches: Iterable[_RowBatch]) -> Iterator[_Result]:
        """The batches' angles, in order."""
        return self._on_cpu(batches) if self.estimator.device.type == "cpu" else self._on_device(batches)

    def _on_cpu(self, batches: Iterable[_RowBatch]) -> Iterator[_Result]:
        """Each worker reads a batch and computes it."""
        depth = 2 * self.threads
        with ahead(self._read_and_predict, batches, threads=self.threads, depth=depth) as made:
            yield from made

    def _read_and_predict(self, batch: _RowBatch) -> _Result:
        pixels = np.empty(self._shape(batch), np.uint8)
        problems = batch.read(pixels)
        if not len(pixels):
            return batch, np.empty((0, 6), np.float32), problems
        predict = self.estimator.predict if self.flips == "none" else self.estimator.predict_with_flips
        poses = predict(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        return batch, _angles_and_deviations(poses).numpy(), problems

    def _on_device(self, batches: Iterable[_RowBatch]) -> Iterator[_Result]:
        """Workers read into page-locked memory; each batch is launched before the previous one is waited for.

        The device then always has its next batch at hand. Nothing between launch and wait may wait itself: the
        mean of rotations needs an SVD, which waits, so it is computed on the host from what was copied back.
        """
        self._use_device()
        launched: deque[tuple[_RowBatch, Tensor, _HostCopy, dict[int, str]]] = deque()
        depth = 2 * self.threads
        with ahead(self._read_page_locked, batches, threads=self.threads, depth=depth) as read:
            for batch, pixels, problems in read:
                # Keeps a reference to `pixels`: the copy to the device may still be reading that memory.
                launched.append((batch, pixels, self._launch(pixels), problems))
                if len(launched) > 1:
                    yield self._collect(*launched.popleft())
        for one in launched:
            yield self._collect(*one)

    def _use_device(self) -> None:
        """Make the estimator's device current in this thread: a new thread starts on, and page-locks for, GPU 0."""
        if self.estimator.device.type == "cuda":
            torch.cuda.set_device(self.estimator.device)

    def _read_page_locked(self, batch: _RowBatch) -> tuple[_RowBatch, Tensor, dict[int, str]]:
        self._use_device()
        locked = self.estimator.device.type == "cuda"
        pixels = torch.empty(self._shape(batch), dtype=torch.uint8, pin_memory=locked)
        return batch, pixels, batch.read(pixels.numpy())

    def _launch(self, pixels: UInt8[Tensor, "rows size size 3"]) -> _HostCopy:
        """Start computing the poses of pictures and, with flips, those of their mirror images in further columns."""
        if not len(pixels):
            return _HostCopy(torch.empty((0, 6 if self.flips == "none" else 12)))
        images = pixels.permute(0, 3, 1, 2)
        both = (self.estimator.predict(images),) if self.flips == "none" else self.estimator.predict_both(images)
        return _HostCopy(torch.cat([_angles_and_deviations(poses) for poses in both], 1))

    def _collect(self, batch: _RowBatch, _: Tensor, copy: _HostCopy, problems: dict[int, str]) -> _Result:
        parts = copy.wait().split(3, 1)
        poses = Poses(*parts) if self.flips == "none" else averaged(Poses(*parts[:2]), Poses(*parts[2:]))
        return batch, _angles_and_deviations(poses).numpy(), problems

    def _shape(self, batch: _RowBatch) -> tuple[int, int, int, int]:
        size = self.estimator.input.size
        return len(batch.rows), size, size, 3


@dataclass
class _RankPass:
    """One rank's part of the pass: it takes shards from the queue and writes their tables.

    Attributes:
        tasks: those of the whole job; the queue hands out their numbers.
        queue: shared by all ranks.
        directions: rules for the direction columns.
        batch: faces that go through the network together.
        bar: the progress of the whole job, which rank 0 shows.
        stop_signal: holds the signal that asked the job to stop, if one did.
        writer: the thread that writes tables, so that the network does not wait for the disk.
    """

    tasks: Sequence[Task]
    queue: Claims
    inference: _Inference
    directions: DirectionRules
    batch: int
    bar: Bar
    stop_signal: Signals
    writer: ThreadPoolExecutor
    _shown: int = 0

    def run(self, numbers: "Claims | Sequence[int]") -> None:
        """Do the tasks of these numbers."""
        writing: deque[Future[None]] = deque()
        for batch, poses, problems in self.inference.results(self._batches(numbers)):
            origin, rows = batch.origin, batch.rows
            origin.angles[rows.start : rows.stop] = poses[:, :3]
            origin.deviations[rows.start : rows.stop] = poses[:, 3:]
            origin.problems.update(problems)
            self.queue.count(len(rows))
            self._show_progress()
            if batch.last:
                writing.append(self.writer.submit(self._write, origin))
            while writing and writing[0].done():
                writing.popleft().result()  # raises what the writing thread raised, such as a full disk
            if self.stop_signal.received:
                self.queue.stop()
                break
        for future in writing:
            future.result()

    def run_abandoned(self) -> None:
        """On rank 0, wait for the other ranks, and do the tasks of those that died."""
        for number in self.queue.abandoned():
            if number is not None:
                path = self.tasks[number].shard
                say(f"hpe: the rank that processed {path} died; processing it again here")
                self.run([number])
            self._show_progress()
            if self.stop_signal.received:
                self.queue.stop()
        self._show_progress()

    def _show_progress(self) -> None:
        if self.queue.ranks.main:
            count = self.queue.count()
            self.bar.advance(count - self._shown)
            self._shown = count

    def _batches(self, numbers: "Claims | Sequence[int]") -> Iterator[_RowBatch]:
        with ThreadPoolExecutor(1, "sha256") as hashing:
            for number in numbers:
                task = self.tasks[number]
                if task.differences() is not None:  # finished by an earlier run
                    self.queue.finish(number)
                    continue
                try:
                    shard = task.shard.open()
                except ValueError as error:
                    self.queue.finish(number, str(error))
                    continue
                if shard.index.unpaired:
                    say(f"hpe: WARNING: {task.shard}: {shard.index.unpaired}")
                # Hashed beside the network's work: the hash decides whether the table is written, not what is in it.
                origin = _ShardInProgress(number, task, shard, hashing.submit(_sha256, shard.data))
                # An empty shard gives one empty batch, so that its (empty) table is written all the same.
                for start in range(0, max(len(shard), 1), self.batch):
                    yield _RowBatch(origin, range(start, min(start + self.batch, len(shard))))

    def _write(self, origin: _ShardInProgress) -> None:
        """Write a shard's table, unless the shard's bytes differ from its manifest."""
        # A table of other bytes than the manifest's would be accepted later by the manifest's sha256.
        task, digest = origin.task, origin.digest.result()
        if task.shard.sha256 is not None and digest != task.shard.sha256:
            self.queue.finish(
                origin.number, f"damaged: its sha256 is {digest[:12]}…, {MANIFEST} has {task.shard.sha256[:12]}…"
            )
            return
        self._name_rows_without_angles(origin)
        if not len(origin.shard):
            say(f"hpe: {task.shard}: holds no samples; its table is empty")
        # In float64, as whoever applies a rule to the table's angles later has them: the same side of a threshold.
        angles, deviations = origin.angles.astype(np.float64), origin.deviations.astype(np.float64)
        poses = ShardPoses(
            origin.shard.index.keys, origin.angles, origin.deviations,
            self.directions.apply(angles, deviations), origin.problems,
        )  # fmt: skip
        write_table(task.table, poses, replace(task.identity, shard_sha256=digest))
        self.queue.finish(origin.number)

    def _name_rows_without_angles(self, origin: _ShardInProgress) -> None:
        """Give every row whose angles are absent or impossible NaN angles and a problem."""
        for row in np.flatnonzero(~np.isfinite(origin.angles).all(1)).tolist():
            without = NO_FACE if self.inference.estimator.finds_faces else NOT_FINITE
            origin.problems.setdefault(row, without)
        for row in np.flatnonzero((np.abs(origin.angles) > LARGEST_DEGREES).any(1)).tolist():
            origin.problems.setdefault(row, f"angles beyond ±{LARGEST_DEGREES:.0f}°")
        for row in origin.problems:
            origin.angles[row] = origin.deviations[row] = np.nan


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()
