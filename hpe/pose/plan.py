"""``hpe pose``: the head pose of every face in shards, in one pass over all ranks; one table a shard."""

import contextlib
import os
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int8, UInt8
from torch import Tensor

from hpe.core.distributed import Ranks, from_parent, named_device
from hpe.core.errors import UserError
from hpe.core.labels import DIRECTIONS
from hpe.core.precision import lacks_precision
from hpe.data.crops import CropRule
from hpe.data.directions import ABSTAIN, OURS, DirectionRule, DirectionRules, Thresholds, direction_rules
from hpe.data.pose_tables import SUFFIX, Identity
from hpe.data.records import Record
from hpe.data.shard_reader import Framing, open_shard, read_faces
from hpe.data.shards import MANIFEST, Manifest
from hpe.estimators.estimator import Estimator, Precision
from hpe.estimators.load import Compute, load_estimator, sha256_of
from hpe.estimators.probe import LEAST_FACES, probe, random_faces
from hpe.models.build import load_run
from hpe.pose.passes import NO_FACE, Flips, ShardFile, Task, pose_pass

CPU_BATCH: Final = 16
GPU_BATCH: Final = 256
PROBE_FACES: Final = 32
FIRST_ROWS: Final = 100
FOLDER: Final = "pose"
OnMismatch = Literal["refuse", "recrop", "force"]


def find_shards(sources: Sequence[str], split: str | None = None) -> list[ShardFile]:
    """The shards that paths name: folders of ``hpe pack`` (with a manifest), tar files, or globs of them.

    Raises:
        UserError: a source that names none.
    """
    found: dict[Path, ShardFile] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            manifest = Manifest.load(path)
            splits = (split,) if split else manifest.splits
            paths = [shard for name in splits for shard in manifest.paths(path, name)]
            if not paths:
                raise UserError(f"{path}: no split {split!r}; it has {', '.join(manifest.splits)}")
        else:
            pattern = any(letter in source for letter in "*?[")
            paths = sorted(path.parent.glob(path.name)) if pattern else [path]
            if not paths or not all(p.is_file() for p in paths):
                raise UserError(f"{source}: no such shards; expected a folder that `hpe pack` wrote, or tar files")
        for shard in paths:
            found.setdefault(shard.resolve(), _shard_file(shard))
    return list(found.values())


def _shard_file(path: Path) -> ShardFile:
    if not (path.parent / MANIFEST).is_file():
        return ShardFile(path, None, None, None)
    manifest = Manifest.load(path.parent)
    said = {shard.name: shard for shard in manifest.shards}.get(path.name)
    return ShardFile(
        path, said.sha256 if said else None, said.samples if said else None, manifest.crop if said else None
    )


def _lacks(shard: Path, basis: str) -> bool:
    """Whether no record at the beginning of a shard says a box or landmarks."""
    try:
        opened = open_shard(shard)
        records = [opened.record(row) for row in range(min(len(opened), FIRST_ROWS))]
    except ValueError:  # a damaged shard is named, and skipped, by the pass
        return False
    return bool(records) and all(getattr(record, basis) is None for record in records)


def framing_of(stored: str | None, wanted: CropRule, on_mismatch: OnMismatch, shard: Path) -> tuple[Framing, str]:
    """How pictures of a stored crop rule become what an estimator wants, and the crop rule that results.

    Args:
        stored: the manifest's rule; None: there is no manifest.
        wanted: the estimator's.
        on_mismatch: what the user wants done where they differ.
        shard: its first records tell what crops are possible.

    Raises:
        UserError: the rules differ, and the user has said neither of the ways out.
    """
    whole = Framing(CropRule(), inside=False)
    where, rule = shard.parent, None if stored is None else CropRule.parse(stored)
    if rule == wanted:
        return whole, str(wanted)
    if on_mismatch == "force":
        return whole, stored or "unknown"
    if on_mismatch == "recrop":
        if wanted.shape == "none":
            raise UserError(
                f"{where}: pictures are stored with the crop {stored or 'unknown'}, and the estimator wants whole "
                "pictures, which a crop cannot give back; pack the dataset again with --crop none, or use --force"
            )
        if wanted.basis == "detector":
            raise UserError(
                f"{where}: the estimator wants {wanted}, and no detector runs here; pack the dataset again with "
                f"--crop {wanted}, or use --force"
            )
        if _lacks(shard, wanted.basis):
            raise UserError(
                f"{where}: --recrop needs the records' {wanted.basis}, and they have none ({shard.name}); "
                f"{_without(wanted)}"
            )
        return Framing(wanted, inside=rule != CropRule()), str(wanted)
    again = f"pack again with --crop {wanted}, or --force to take the pictures as they are"
    if wanted.shape == "none" or wanted.basis == "detector":
        ways = f"Ways out: {again}"
    elif _lacks(shard, wanted.basis):
        ways = f"The records have no {wanted.basis} to crop from: {_without(wanted)}"
    else:
        ways = f"Use --recrop (cut {wanted} from the record's {wanted.basis} on the fly), {again}"
    raise UserError(
        f"{where}: the shards' crop rule is {stored or 'unknown (no manifest)'}, the estimator was made for {wanted}; "
        f"angles would be off by degrees. {ways}"
    )


def _without(wanted: CropRule) -> str:
    """The ways out where the records lack what a rule starts from."""
    return (
        f"pack again with --crop {replace(wanted, basis='detector')} and tell it here with --crop too, use a landmark "
        "model, which finds faces itself, or --force to take the pictures as they are"
    )


def tasks_of(
    shards: Sequence[ShardFile],
    estimator: Estimator,
    directions: DirectionRules,
    *,
    out: Path | None,
    on_mismatch: OnMismatch,
    precision: str,
    flips: str,
    batch: int | None = None,
) -> list[Task]:
    """What is to be done: for each shard its table under ``out`` (``pose/`` beside the shard when None).

    Raises:
        UserError: crop rules that do not fit, or two shards with one name in ``out``.
    """
    tasks: dict[Path, Task] = {}
    framings: dict[Path, tuple[Framing, str]] = {}
    if estimator.finds_faces and on_mismatch == "refuse":
        on_mismatch = "force"
    for shard in shards:
        if (folder := shard.path.parent) not in framings:  # a folder's shards are of one dataset: one is looked into
            framings[folder] = framing_of(shard.crop, estimator.crop, on_mismatch, shard.path)
        framing, crop = framings[folder]
        table = table_path(shard.path, out, estimator.name)
        if table in tasks:
            raise UserError(
                f"{shard.path} and {tasks[table].shard.path} would both become {table}; do them with two --out"
            )
        identity = Identity(
            estimator=estimator.name,
            weights_sha256=estimator.weights_sha256,
            crop=crop,
            estimator_crop=str(estimator.crop),
            precision=precision,
            flips=flips,
            rules=directions.definitions,
            shard=shard.path.name,
            shard_sha256=shard.sha256 or "unknown",
            batch=batch,
        )
        tasks[table] = Task(shard, table, framing, identity)
    return list(tasks.values())


def table_path(shard: Path, out: Path | None, estimator: str) -> Path:
    """The pose table of a shard: ``pose/<estimator>/`` beside it, or ``<out>/<estimator>/``."""
    return (out or shard.parent / FOLDER) / estimator / f"{shard.name.removesuffix('.tar')}{SUFFIX}"


def _usual_batch(device: torch.device) -> int:
    return GPU_BATCH if device.type == "cuda" else CPU_BATCH


def default_threads(ranks: Ranks) -> int:
    """This rank's share of the cores that this job may use."""
    return max(1, len(os.sched_getaffinity(0)) // ranks.local_world)


def pose(
    sources: Sequence[str],
    *,
    estimator: Path,
    weights: Path | None,
    name: str | None,
    crop: str | None,
    out: Path | None,
    split: str | None,
    on_mismatch: OnMismatch,
    flips: Flips,
    precision: Precision,
    compiled: bool,
    device: str,
    batch: int | None,
    threads: int | None,
    direction_network: Path | None,
    rule: Path | None,
    check: bool,
) -> tuple[int, list[Task]]:
    """The pass of ``hpe pose``: the exit code, and the tables of the job.

    Raises:
        UserError: anything that does not fit together, before anything is written.
    """
    from_parent()
    ranks = Ranks.from_environment()
    where = named_device(device)
    if (why := lacks_precision(precision, where)) is not None:
        raise UserError(f"--precision: {why}")
    size = batch or _usual_batch(where)
    compute = Compute(where, precision, size if compiled else None, fall_back=device == "auto")
    network = load_estimator(estimator, compute, weights=weights, crop=crop, name=name)
    size = batch or _usual_batch(network.device)  # an ONNX network may have fallen back to the CPU
    on_gpu = network.device.type == "cuda"
    directions = direction_rules(
        Thresholds.load(rule) if rule else OURS,
        load_direction_network(direction_network) if direction_network else None,
    )
    tasks = tasks_of(
        find_shards(sources, split), network, directions,
        out=out, on_mismatch=on_mismatch, precision=precision, flips=flips, batch=size,
    )  # fmt: skip
    if check:
        refuse_without_truth(tasks)
    if on_mismatch != "force" and (few := refuse_a_lie(estimator, network, tasks)) and ranks.main:
        print(f"hpe: {few}", file=sys.stderr)
    if on_gpu:
        torch.backends.cudnn.benchmark = True
    code = pose_pass(
        tasks, network, directions,
        flips=flips, batch=size, threads=threads or default_threads(ranks), ranks=ranks,
    )  # fmt: skip
    if ranks.main:
        print("\n".join(told(tasks)))
    return code, tasks


def told(tasks: Sequence[Task]) -> list[str]:
    """What the finished tables of a job hold, a line a folder: how many faces, and where they look by our rule."""
    import pyarrow.parquet as pq

    counts: dict[Path, Counter[str]] = {}
    for task in tasks:
        if task.table.is_file():
            rows = pq.read_table(task.table, columns=["direction_ours", "problem"])
            found = counts.setdefault(task.table.parent, Counter())
            problems = [problem for problem in rows["problem"].to_pylist() if problem is not None]
            faceless = problems.count(NO_FACE)
            found["faceless"] += faceless
            found["unreadable"] += len(problems) - faceless
            for code in rows["direction_ours"].to_pylist():
                found["unsaid" if code is None else DIRECTIONS[code]] += 1
    lines = []
    for folder, found in counts.items():
        looks = ", ".join(f"{name} {found[name]:,}" for name in DIRECTIONS)
        unread, faceless = found["unreadable"], found["faceless"]
        lines.append(
            f"{folder}: {sum(found.values()) - unread - faceless:,} faces: {looks}; without a direction, as the rule "
            f"abstains, {found['unsaid'] - unread - faceless:,}; "
            + (f"without a face {faceless:,}; " if faceless else "")
            + f"unreadable {unread:,}"
        )
    return lines


def load_direction_network(path: Path) -> tuple[DirectionRule, str]:
    """The direction network of a run folder (backbone ``angles``) as a rule, and the sha256 of its weights.

    Raises:
        UserError: not such a run.
    """
    module, config, file = load_run(path)
    if not module.takes_angles or config.model.heads.direction is None:
        raise UserError(
            f"{path}: its backbone is {config.model.backbone} with heads {', '.join(config.model.heads.on)}; expected "
            "a run of `hpe train` with model.backbone: angles and model.heads.direction"
        )

    @torch.inference_mode()
    def decide(angles: Float[np.ndarray, "faces 3"], _: Float[np.ndarray, "faces 3"]) -> Int8[np.ndarray, " faces"]:
        logits = module(torch.from_numpy(np.nan_to_num(angles)).float())["direction"]
        found = logits.argmax(1).numpy().astype(np.int8)
        return np.where(np.isfinite(angles).all(1), found, np.int8(ABSTAIN))

    return decide, sha256_of(file)


def refuse_a_lie(path: Path, estimator: Estimator, tasks: Sequence[Task]) -> str | None:
    """Try the estimator on the shards' first faces; returns why that tells little, where they are too few.

    Raises:
        UserError: they contradict what is said of the estimator.
    """
    images, truth = first_faces(tasks, estimator.input.size)
    count = len(images)
    if not count:
        images, truth = random_faces(2, estimator.input.size), np.full((2, 3), np.nan)
    if problems := probe(estimator, images, truth):
        raise UserError(
            f"{path}: tried on {len(images)} faces, the network contradicts its description:\n  "
            + "\n  ".join(problems)
            + "\nMend the description, or use --force"
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
    """Up to 32 faces for a trial, from as few shards as hold them, and their true angles (NaN where unknown)."""
    faces: list[np.ndarray] = []
    truth: list[list[float]] = []
    for task in tasks:
        try:
            shard = open_shard(task.shard.path)
        except ValueError:  # the pass will name it
            continue
        wanted = PROBE_FACES - len(faces)
        for row in range(0, len(shard), max(1, len(shard) // wanted))[:wanted]:
            pixels = np.zeros((1, size, size, 3), np.uint8)
            try:
                record = shard.record(row)
            except (ValueError, TypeError, RecursionError):
                record = Record()
            if not read_faces(shard, range(row, row + 1), task.framing, pixels):
                faces.append(pixels)
                truth.append([np.nan if v is None else v for v in (record.yaw, record.pitch, record.roll)])
        if len(faces) == PROBE_FACES:
            break
    pictures = np.concatenate([np.zeros((0, size, size, 3), np.uint8), *faces])
    return torch.from_numpy(pictures).permute(0, 3, 1, 2), np.asarray(truth, float).reshape(-1, 3)


def refuse_without_truth(tasks: Sequence[Task]) -> None:
    """See that the shards say a true angle, before hours of work end in a check that cannot be made.

    Raises:
        UserError: none of the first records of any shard does.
    """
    from hpe.pose.check import NO_TRUTH

    opened = False
    for task in tasks:
        try:
            shard = open_shard(task.shard.path)
        except ValueError:  # damage is named by the pass
            continue
        records = []
        for row in range(min(len(shard), FIRST_ROWS)):
            with contextlib.suppress(ValueError, TypeError, RecursionError):  # the check counts it
                records.append(shard.record(row))
        opened = opened or len(shard) > 0
        if any(angle is not None for one in records for angle in (one.yaw, one.pitch, one.roll)):
            return
    if opened:
        raise UserError(NO_TRUTH)


def check_tables(tasks: Sequence[Task]) -> None:
    """Write the quality report of a job's finished tables in a folder beside them, and print its head.

    Raises:
        UserError: no true angles, or tables of another dataset.
    """
    from hpe.pose.check import FOLDER as REPORT
    from hpe.pose.check import check, gather, to_markdown, write_report

    by_folder: dict[Path, list[Task]] = {}
    for task in tasks:
        if task.table.is_file():
            by_folder.setdefault(task.table.parent, []).append(task)
    for folder, there in by_folder.items():
        rows = gather([(task.shard.path, task.table) for task in there])
        found = check(rows)
        title = f"{there[0].identity.estimator} on {there[0].shard.path.parent}"
        report = folder / REPORT
        report.mkdir(exist_ok=True)
        write_report(report, title, found, rows)
        print(to_markdown(title, found).partition("\n## By true")[0].rstrip())
        print(f"\n{report}/check.md, check.json, check.png")


class Choice(NamedTuple):
    """What flags of the command line stand for."""

    on_mismatch: OnMismatch
    precision: Precision


def as_choice(*, recrop: bool, force: bool, precision: str) -> Choice:
    """The choice that flags make.

    Raises:
        UserError: flags that contradict each other, or an unknown precision.
    """
    if recrop and force:
        raise UserError("--recrop and --force: one cuts the pictures anew, the other takes them as they are; give one")
    if precision not in get_args(Precision):
        raise UserError(f"--precision {precision}: expected {', '.join(get_args(Precision))}")
    return Choice("recrop" if recrop else "force" if force else "refuse", precision)  # pyright: ignore[reportArgumentType]
