"""The data of a study: pose tables with the directions that it needs, and the two balanced sets."""

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from hpe.core.errors import UserError
from hpe.core.files import aside
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.directions import ABSTAIN, OURS, direction_rules
from hpe.data.pose_labels import mismatch
from hpe.data.pose_tables import (
    DIRECTION_PREFIX,
    Identity,
    ShardPoses,
    differences,
    digest_of_tables,
    no_folder,
    read_metadata,
    read_pose_table,
    table_of_shard,
    write_table,
)
from hpe.data.shard_files import ShardFile, packed_shards
from hpe.data.tables import arrow, dataset_of, numbers, refuse_damaged, true_directions
from hpe.pack.balance import OtherSubsetError, Subset, balance
from hpe.pack.cells import OptionNames
from hpe.study.config import AUTO, FROM_RECORDS, NETWORK_RULE, OUR_RULE, SETS, SetConfig, StudyConfig, set_folder

if TYPE_CHECKING:
    import pyarrow as pa

TRUE_RULE: Final = "labelled"
"""Name of the column with the raw dataset's own directions."""
_MADE_FROM: Final = "hpe.made_from"
"""Digest of the pose table that another one was made from by adding a column."""
_Directions = Callable[[ShardFile, "pa.Table"], np.ndarray]
"""From a shard and its pose table to the direction of each row."""


@dataclass(frozen=True, slots=True)
class StudyData:
    """Shards with pose tables, and the direction rule of each set."""

    shards: Path
    pose: Path
    rules: dict[str, str]


@dataclass(frozen=True, slots=True)
class BalancedSet:
    """A balanced set on disk."""

    shards: Path
    pose: Path
    rule: str


def _pose_folder(study: StudyConfig) -> Path:
    """The folder of the study's pose tables; with ``pose: record`` they are made from the angles in the records.

    Raises:
        UserError: no shards, or records without angles.
    """
    if study.pose != FROM_RECORDS:
        if not (folder := Path(study.pose)).is_dir():
            raise UserError(f"pose: {no_folder(folder)}")
        return folder
    return pose_tables_from_records(Path(study.shards), study.folder / "pose" / FROM_RECORDS)


def pose_tables_from_records(shards: Path, out: Path) -> Path:
    """Write pose tables with the records' own angles, for datasets that have true ones; existing tables are kept.

    Raises:
        UserError: no shards, or no record with all three angles.
    """
    packed, rules = packed_shards(shards), direction_rules(OURS)
    out.mkdir(parents=True, exist_ok=True)
    wanted = {shard: _identity_from_records(shard, rules.definitions) for shard in packed}
    paths = {shard: table_of_shard(out, shard.path.name) for shard in packed}
    missing = [shard for shard, identity in wanted.items() if differences(paths[shard], identity) != []]
    known = len(packed) - len(missing)
    for shard, faces in _by_shard(missing):
        angles = numbers(faces, ANGLES)
        angles[~np.isfinite(angles).all(1)] = np.nan
        known += bool(np.isfinite(angles).any())
        unknown = np.full_like(angles, np.nan)
        poses = ShardPoses(tuple(faces["key"].to_pylist()), angles, unknown, rules.apply(angles, unknown), {})
        write_table(paths[shard], poses, wanted[shard])
    if not known:
        raise UserError(
            f"{shards}: no record has yaw, pitch and roll; run `hpe pose` and give the folder of its tables as pose:"
        )
    return out


def _identity_from_records(shard: ShardFile, rules: Mapping[str, str]) -> Identity:
    crop = shard.crop or "unknown"
    return Identity(
        estimator=FROM_RECORDS, weights_sha256="none", crop=crop, estimator_crop=crop, precision="none", flips="none",
        rules=rules, shard=shard.path.name, shard_sha256=shard.sha256 or "unknown",
    )  # fmt: skip


def _by_shard(shards: Sequence[ShardFile]) -> "Iterator[tuple[ShardFile, pa.Table]]":
    """The samples of each packed shard, all opened at once.

    Raises:
        UserError: a shard or one of its records is damaged.
    """
    if not shards:
        return
    faces = dataset_of(shards)
    refuse_damaged(faces)
    table, start = arrow(faces), 0
    for shard in shards:
        yield shard, table.slice(start, shard.samples)
        start += shard.samples or 0


def study_data(study: StudyConfig, network: Path | None) -> StudyData:
    """The study's shards, with the direction rules of its sets.

    Args:
        network: run of the direction network that the study has trained itself; None: it trains none.

    Raises:
        UserError: no shards, no pose tables, or tables without a rule that a set needs.
    """
    shards, pose = Path(study.shards), _pose_folder(study)
    available = _rules(shards, pose)
    add_network = network is not None and NETWORK_RULE not in available
    usable = (*available, NETWORK_RULE) if add_network else available
    rules, problems = {}, []
    for name in SETS:
        rule = getattr(study.sets, name).rule
        if rule == AUTO:
            rule = NETWORK_RULE if NETWORK_RULE in usable else OUR_RULE
        if rule not in usable:
            problems.append(f"sets.{name}.rule: {rule}: the tables in {pose} have {', '.join(available) or 'none'}")
        rules[name] = rule
    if problems:
        raise UserError("\n".join(problems))
    if network is not None and add_network and NETWORK_RULE in rules.values():
        pose = _add_network_directions(shards, pose, study.folder / "pose" / pose.name, network)
    return StudyData(shards, pose, rules)


def available_rules(study: StudyConfig) -> tuple[str, ...]:
    """Direction rules of the study's pose tables.

    Raises:
        UserError: no shards, or tables that do not belong to them.
    """
    return _rules(Path(study.shards), _pose_folder(study))


def _rules(shards: Path, pose: Path) -> tuple[str, ...]:
    """Direction rules of the pose tables of shards, which must have one each."""
    tables = [(shard, table_of_shard(pose, shard.path.name)) for shard in packed_shards(shards)]
    found = (
        mismatch(table, shard=shard.path.name, sha256=shard.sha256, samples=shard.samples) for shard, table in tables
    )
    problems = [why for why in found if why]
    if problems:
        more = f"\n… {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError("\n".join(problems[:3]) + more)
    return read_metadata(tables[0][1]).rules


def _add_network_directions(shards: Path, pose: Path, out: Path, run: Path) -> Path:
    """Write pose tables with a further column: the directions by a direction network. Existing tables are kept.

    Raises:
        UserError: the run is not a direction network.
    """
    from hpe.pose.plan import load_direction_network

    decide, sha256 = load_direction_network(run)

    def of_table(_: ShardFile, table: "pa.Table") -> np.ndarray:
        angles = numbers(table, ANGLES)
        return decide(angles, np.full_like(angles, np.nan))

    return _add_column(shards, pose, out, NETWORK_RULE, f"sha256:{sha256}", of_table)


def add_true_directions(shards: Path, pose: Path, out: Path) -> Path:
    """Write pose tables with a further column: the record's direction, or that of its Pointing'04 pose.

    Raises:
        UserError: no sample has a direction, or the tables do not belong to the shards.
    """
    _rules(shards, pose)

    @cache
    def found() -> dict[ShardFile, np.ndarray]:
        return {shard: true_directions(faces) for shard, faces in _by_shard(packed_shards(shards))}

    made = _add_column(
        shards, pose, out, TRUE_RULE, "hpe.directions.pointing04/1", lambda shard, _: found()[shard].astype(np.int8)
    )
    if not any(map(_has_directions, made.glob("*.parquet"))):
        raise UserError(
            f"{shards}: no sample has a true direction; expected Pointing'04, or shards whose records hold directions"
        )
    return made


def _has_directions(path: Path) -> bool:
    labels = read_pose_table(path, [DIRECTION_PREFIX + TRUE_RULE])[0].fill_null(ABSTAIN).to_numpy()
    return bool((labels >= 0).any())


def _add_column(shards: Path, pose: Path, out: Path, rule: str, definition: str, directions: _Directions) -> Path:
    """Copy pose tables to ``out`` with the directions of a rule; copies that have them by this definition are kept."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    column = DIRECTION_PREFIX + rule
    for shard in packed_shards(shards):
        given, made = table_of_shard(pose, shard.path.name), table_of_shard(out, shard.path.name)
        digest = digest_of_tables([given])
        if _has_column(made, shard, rule, definition, digest):
            continue
        table = read_pose_table(given)
        if column in table.column_names:
            table = table.drop_columns([column])
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        rules = json.loads(metadata.get("hpe.rules", "{}")) | {rule: definition}
        metadata["hpe.rules"] = json.dumps(rules, sort_keys=True, separators=(",", ":"))
        metadata[_MADE_FROM] = digest
        labels = directions(shard, table)
        table = table.append_column(column, pa.array(labels, pa.int8(), mask=labels == ABSTAIN))
        with aside(made) as part:
            pq.write_table(table.replace_schema_metadata(metadata), part, compression="zstd")
    return out


def _has_column(table: Path, shard: ShardFile, rule: str, definition: str, digest: str) -> bool:
    """Whether a table of this shard exists, made from one of this digest, with a rule's directions by a definition."""
    if not table.is_file() or mismatch(table, shard=shard.path.name, sha256=shard.sha256, samples=None, rule=rule):
        return False
    entries = read_metadata(table).entries
    return entries.get(_MADE_FROM) == digest and json.loads(entries.get("hpe.rules", "{}")).get(rule) == definition


def balanced_sets(study: StudyConfig, data: StudyData) -> dict[str, BalancedSet]:
    """Make both sets, where they do not exist yet.

    Raises:
        UserError: cells with too few samples, those of both sets in one message.
    """
    made, problems = {}, []
    for name in SETS:
        wanted: SetConfig = getattr(study.sets, name)
        folder = set_folder(study, name)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # the summary is in the folder
                subset = Subset(
                    wanted.per_cell, data.rules[name], seed=study.balance_seed,
                    directions=_chosen(wanted.directions, DIRECTIONS),
                    emotions=None if wanted.emotions is None else _chosen(wanted.emotions, EMOTIONS),
                )  # fmt: skip
                keys = OptionNames(f"sets.{name}.per_cell:", f"sets.{name}.directions", f"sets.{name}.emotions")
                balance(data.shards, data.pose, folder, subset, keys)
        except OtherSubsetError:
            problems.append(
                f"sets.{name}: {folder} was made from other shards or pose tables, and this study's runs were trained "
                "on it; --new sets the study aside and starts over, or choose another `study` folder"
            )
        except UserError as error:
            problems.append(f"sets.{name} (per_cell {wanted.per_cell}, rule {data.rules[name]}): {error}")
        made[name] = BalancedSet(folder, folder / "pose" / data.pose.name, data.rules[name])
    if problems:
        raise UserError("\n".join(problems) + "\nNothing was trained")
    return made


def _chosen(wanted: Sequence[str] | None, names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(range(len(names))) if wanted is None else tuple(sorted(names.index(name) for name in wanted))
