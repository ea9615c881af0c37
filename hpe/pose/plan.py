"""``hpe pose``: the head pose of every face in shards, in one pass over all ranks; one table per shard."""

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from jaxtyping import Float, Int8

from hpe.config.strict_yaml import setting
from hpe.core.console import say
from hpe.core.devices import cores, named_device
from hpe.core.errors import EXIT_OK, UserError
from hpe.core.labels import DIRECTIONS
from hpe.core.precision import lacks_precision
from hpe.core.ranks import Ranks, from_parent
from hpe.data.crops import CropRule
from hpe.data.directions import (
    ABSTAIN,
    OURS,
    DirectionRule,
    DirectionRules,
    Thresholds,
    beyond_profile,
    direction_rules,
)
from hpe.data.pose_tables import POSE_FOLDER, Identity, read_pose_table, table_of_shard
from hpe.data.shard_files import ShardFile, find_shards
from hpe.estimators.estimator import Estimator
from hpe.estimators.load import Compute, load_estimator, sha256_of
from hpe.models.build import load_run
from hpe.pose.options import OnMismatch, PoseOptions
from hpe.pose.passes import NO_FACE, Task, pose_pass
from hpe.pose.preflight import FIRST_ROWS, reaching_beyond, refuse_without_truth, try_estimator

CPU_BATCH: Final = 16
GPU_BATCH: Final = 256


def _records_lack(shard: ShardFile, basis: str) -> bool:
    """Whether the first records of a shard all lack a box, or landmarks."""
    try:
        opened = shard.open()
        records = [opened.record(row) for row in range(min(len(opened), FIRST_ROWS))]
    except ValueError:  # damaged: the pass names and skips it
        return False
    return bool(records) and all(getattr(record, basis) is None for record in records)


def crop_of(stored: str | None, wanted: CropRule, on_mismatch: OnMismatch, shard: ShardFile) -> tuple[CropRule, str]:
    """What to cut from the stored pictures for the estimator, and the crop rule that results.

    Args:
        stored: the manifest's rule; None: there is no manifest.
        wanted: the estimator's.
        on_mismatch: what to do where the two differ.
        shard: its first records show which crops are possible.

    Raises:
        UserError: the rules differ, and the user has chosen no way out, or an impossible one.
    """
    whole = CropRule()
    where, rule = shard.folder, None if stored is None else CropRule.parse(stored)
    if rule == wanted:
        return whole, str(wanted)
    if on_mismatch == "force":
        return whole, stored or "unknown"
    if on_mismatch == "recrop":
        if wanted.shape == "none":
            raise UserError(
                f"{where}: pictures are stored with the crop {stored or 'unknown'}, and the estimator was made for "
                "pictures as they came, which --recrop cannot restore; use --force if each of those was one face, or "
                "pack the dataset again with --crop none if they were whole photos"
            )
        if wanted.basis == "detector":
            raise UserError(
                f"{where}: the estimator needs {wanted}, and `hpe pose` runs no detector; pack the dataset again with "
                f"--crop {wanted}, or use --force"
            )
        if _records_lack(shard, wanted.basis):
            raise UserError(
                f"{where}: --recrop needs the records' {wanted.basis}, and they have none ({shard.path.name}); "
                f"{_without(wanted)}"
            )
        return wanted, str(wanted)
    again = f"pack again with --crop {wanted}, or use --force to use the pictures as they are"
    if wanted.shape == "none":
        ways = (
            "It was made for pictures as they came. If each of those was one face, use --force: the network gets the "
            "crops as they are. If they were whole photos, pack again with --crop none; --recrop cannot undo a crop"
        )
    elif wanted.basis == "detector":
        ways = f"Ways out: {again}"
    elif _records_lack(shard, wanted.basis):
        ways = f"The records have no {wanted.basis} to crop from: {_without(wanted)}"
    else:
        ways = f"Use --recrop (cut {wanted} from the record's {wanted.basis} on the fly), {again}"
    raise UserError(
        f"{where}: the shards' crop rule is {_rule_in_words(stored)}, the estimator was made for {wanted}; "
        f"angles would be off by degrees. {ways}"
    )


def _rule_in_words(stored: str | None) -> str:
    if stored == str(CropRule()):
        return f"{stored} (the images are not cut to the face)"
    return stored or "unknown (no manifest)"


def _without(wanted: CropRule) -> str:
    """The ways out where the records lack what a crop rule starts from."""
    return (
        f"pack again with --crop {replace(wanted, basis='detector')} and give that --crop to `hpe pose` too, use a "
        "landmark model, which finds faces itself, or use --force to use the pictures as they are"
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
    """One task per shard: its table goes to ``out`` (None: ``pose/`` beside the shard).

    Raises:
        UserError: crop rules that do not fit, or two shards with one name in ``out``.
    """
    tasks: dict[Path, Task] = {}
    crops: dict[str, tuple[CropRule, str]] = {}
    if estimator.finds_faces and on_mismatch == "refuse":
        on_mismatch = "force"
    for shard in shards:
        if (folder := shard.folder) not in crops:  # one dataset per folder: its first shard shows the crop
            crops[folder] = crop_of(shard.crop, estimator.crop, on_mismatch, shard)
        crop, result = crops[folder]
        table = table_path(shard, out, estimator.name)
        if table in tasks:
            raise UserError(f"{shard} and {tasks[table].shard} would share the table {table}; run them with two --out")
        identity = Identity(
            estimator=estimator.name,
            weights_sha256=estimator.weights_sha256,
            crop=result,
            estimator_crop=str(estimator.crop),
            precision=precision,
            flips=flips,
            rules=directions.definitions,
            shard=shard.path.name,
            shard_sha256=shard.sha256 or "unknown",
            batch=batch,
        )
        tasks[table] = Task(shard, table, crop, identity)
    return list(tasks.values())


def table_path(shard: ShardFile, out: Path | None, estimator: str) -> Path:
    """The pose table of a shard: ``pose/<estimator>/`` beside it, or ``<out>/<estimator>/``.

    Raises:
        UserError: a remote shard has no place beside it.
    """
    if shard.url and out is None:
        raise UserError(
            f"{shard.folder}: its pose tables lie in a folder of this machine; name it, too (--out, --poses)"
        )
    return table_of_shard((out or shard.path.parent / POSE_FOLDER) / estimator, shard.path.name)


def pose(sources: Sequence[str], options: PoseOptions) -> int:
    """Write the pose tables of shards, on this rank of the job; returns the exit code.

    Raises:
        UserError: anything that does not fit together, before anything is written.
    """
    from_parent()
    ranks = Ranks.from_environment()
    device = named_device(options.device)
    if (why := lacks_precision(options.precision, device)) is not None:
        raise UserError(f"--precision: {why}")
    batch = options.batch or _default_batch(device)
    compute = Compute(
        device, options.precision, batch if options.compiled else None, fall_back=options.device == "auto"
    )
    estimator = load_estimator(
        options.estimator, compute, weights=options.weights, crop=options.crop, name=options.name
    )
    batch = options.batch or _default_batch(estimator.device)  # an ONNX network may have fallen back to the CPU
    directions = direction_rules(
        Thresholds.load(options.rule) if options.rule else OURS,
        load_direction_network(options.direction_network) if options.direction_network else None,
    )
    tasks = tasks_of(
        find_shards(sources, options.split), estimator, directions,
        out=options.out, on_mismatch=options.on_mismatch, precision=options.precision, flips=options.flips,
        batch=batch,
    )  # fmt: skip
    if options.check:
        refuse_without_truth(tasks)
    if options.on_mismatch != "force":
        warning = try_estimator(options.estimator, estimator, tasks)
        if ranks.main:
            for told in (warning, *reaching_beyond(tasks)):
                if told:
                    say(f"hpe: {told}")
    code = pose_pass(
        tasks, estimator, directions,
        flips=options.flips, batch=batch, threads=options.threads or _default_threads(ranks), ranks=ranks,
    )  # fmt: skip
    if ranks.main:
        print("\n".join(summary(tasks)))
        if options.check:
            from hpe.pose.check import check_tables  # late: it imports metrics that the pass does not need

            check_tables(tasks)
        if code == EXIT_OK and tasks:
            print(_next(tasks, checked=options.check))
    return code


def _next(tasks: Sequence[Task], *, checked: bool) -> str:
    """The commands that use the tables."""
    folder = str(tasks[0].table.parent)
    sets = shlex.join(word for split in ("train", "val") for word in ("--set", setting(f"data.{split}.0.pose", folder)))
    compare = "" if checked else ", or the same command with --check where the records have angles to compare with"
    return f"Next: hpe train CONFIG {sets}{compare}"


def _default_batch(device: torch.device) -> int:
    return GPU_BATCH if device.type == "cuda" else CPU_BATCH


def _default_threads(ranks: Ranks) -> int:
    """This rank's share of the cores that this job may use."""
    return max(1, cores() // ranks.local_world)


def summary(tasks: Sequence[Task]) -> list[str]:
    """One line per folder of finished tables: how many faces, and in which directions they look by our rule."""
    counts: dict[Path, Counter[str]] = {}
    for task in tasks:
        if task.table.is_file():
            rows = read_pose_table(task.table, ["direction_ours", "problem"])
            found = counts.setdefault(task.table.parent, Counter())
            problems = [problem for problem in rows["problem"].to_pylist() if problem is not None]
            faceless = problems.count(NO_FACE)
            found["faceless"] += faceless
            found["unreadable"] += len(problems) - faceless
            for code in rows["direction_ours"].to_pylist():
                found["undecided" if code is None else DIRECTIONS[code]] += 1
    lines = []
    for folder, found in counts.items():
        looks = ", ".join(f"{name} {found[name]:,}" for name in DIRECTIONS)
        faceless, unreadable = found["faceless"], found["unreadable"]
        # A row with a problem has no direction either; only the others are faces that the rule abstained from.
        abstained = found["undecided"] - unreadable - faceless
        rows = found["undecided"] + sum(found[name] for name in DIRECTIONS)
        lines.append(
            f"{folder}: {rows:,} faces: {looks}; without a direction, as the rule abstains, {abstained:,}; "
            + (f"without a face {faceless:,}; " if faceless else "")
            + f"unreadable {unreadable:,}"
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
        found = beyond_profile(angles, logits.argmax(1).numpy().astype(np.int8))
        return np.where(np.isfinite(angles).all(1), found, np.int8(ABSTAIN))

    return decide, sha256_of(file)
