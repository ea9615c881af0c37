"""Refusals before hours of work: an estimator that is not what its description states, ``--check`` without truth."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from hpe.core.errors import UserError
from hpe.data.faces import read_faces
from hpe.data.images import DecodeError, black_share, image_size
from hpe.data.records import Record
from hpe.estimators.estimator import Estimator
from hpe.estimators.probe import LEAST_FACES, probe, random_faces
from hpe.pose.passes import Task

PROBE_FACES: Final = 32
NOTABLE_SHARE: Final = 0.01
FIRST_ROWS: Final = 100
"""Records of a shard that are read before the pass: enough to see what they hold, and few enough to cost nothing."""


def try_estimator(path: Path, estimator: Estimator, tasks: Sequence[Task]) -> str | None:
    """Try the estimator on the shards' first faces.

    Returns:
        A warning where too few faces can be read for the trial to be conclusive.

    Raises:
        UserError: the results contradict the estimator's description.
    """
    images, truth = first_faces(tasks, estimator.input.size)
    count = len(images)
    if not count:
        images, truth = random_faces(2, estimator.input.size), np.full((2, 3), np.nan)
    if problems := probe(estimator, images, truth):
        raise UserError(
            f"{path}: tried on {len(images)} faces, the network contradicts its description:\n  "
            + "\n  ".join(problems)
            + "\nCorrect the description, or use --force"
        )
    if count < LEAST_FACES:
        return (
            f"{path}: the description could not be tried: {count} faces can be read, expected {LEAST_FACES}; "
            "compare the tables with true angles (--check) before you trust them"
        )
    return None


def first_faces(
    tasks: Sequence[Task], size: int
) -> tuple[UInt8[Tensor, "faces 3 size size"], Float[np.ndarray, "faces 3"]]:
    """Up to 32 faces for a trial, from as few shards as possible, and their true angles (NaN where unknown)."""
    faces: list[np.ndarray] = []
    truth: list[list[float]] = []
    for task in tasks:
        try:
            shard = task.shard.open()
        except ValueError:  # the pass will name it
            continue
        wanted = PROBE_FACES - len(faces)
        for row in range(0, len(shard), max(1, len(shard) // wanted))[:wanted]:
            pixels = np.zeros((1, size, size, 3), np.uint8)
            try:
                record = shard.record(row)
            except (ValueError, TypeError, RecursionError):
                record = Record()
            if not read_faces(shard, range(row, row + 1), task.crop, pixels):
                faces.append(pixels)
                truth.append([np.nan if v is None else v for v in (record.yaw, record.pitch, record.roll)])
        if len(faces) == PROBE_FACES:
            break
    pictures = np.concatenate([np.zeros((0, size, size, 3), np.uint8), *faces])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2), np.asarray(truth, float).reshape(-1, 3)


def reaching_beyond(tasks: Sequence[Task]) -> list[str]:
    """What to say of crops that are partly black, because the stored pictures end before them: a line per folder.

    The first shard of a folder speaks for it, as for its crop.
    """
    lines = []
    for task in {task.shard.folder: task for task in reversed(tasks) if task.crop.shape != "none"}.values():
        shares = []
        # What cannot be read is named by the pass.
        with contextlib.suppress(ValueError, OSError, UserError):
            shard = task.shard.open()
            for row in range(min(len(shard), FIRST_ROWS)):
                with contextlib.suppress(DecodeError, ValueError, TypeError, RecursionError):
                    width, height = image_size(bytes(shard.image(row)))
                    shares.append(black_share(task.crop.box(shard.record(row)), width, height))
        if black := [share for share in shares if share > NOTABLE_SHARE]:
            lines.append(
                f"{task.shard.folder}: the crop {task.crop} reaches beyond {len(black)} of the first {len(shares)} "
                f"pictures, and {np.mean(black):.0%} of it is black there; on AFLW2000 a third added nothing to the "
                f"error, half 0.4° (docs/pose.md). If the raw pictures show more, pack with --crop {task.crop}"
            )
    return lines


def refuse_without_truth(tasks: Sequence[Task]) -> None:
    """Refuse ``--check`` where it would have nothing to compare with.

    Raises:
        UserError: none of the first records of any shard has a true angle.
    """
    from hpe.pose.check import NO_TRUTH

    opened = False
    for task in tasks:
        try:
            shard = task.shard.open()
        except ValueError:  # the pass will name it
            continue
        records = []
        for row in range(min(len(shard), FIRST_ROWS)):
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # the check will count it
                records.append(shard.record(row))
        opened = opened or len(shard) > 0
        if any(angle is not None for one in records for angle in (one.yaw, one.pitch, one.roll)):
            return
    if opened:
        raise UserError(NO_TRUTH)
