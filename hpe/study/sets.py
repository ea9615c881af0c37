"""What a study learns from: pose tables with the directions that it needs, and the two balanced sets."""

import contextlib
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from hpe.core.errors import UserError
from hpe.core.files import aside
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.directions import ABSTAIN, OURS, direction_rules, pointing04_direction_of_name
from hpe.data.pose_labels import DIRECTION_PREFIX, mismatch, read_metadata
from hpe.data.pose_tables import Identity, ShardPoses, differences, write_table
from hpe.data.records import Record
from hpe.data.shards import Manifest
from hpe.pack.balance import OtherSubsetError, Subset, balance
from hpe.pack.cells import OptionNames
from hpe.study.config import AUTO, FROM_RECORDS, NETWORK_RULE, OUR_RULE, SETS, SetConfig, StudyConfig

if TYPE_CHECKING:
    import pyarrow as pa

TRUE_RULE: Final = "labelled"
"""Column of the directions that the raw dataset itself tells."""
_Decide = Callable[[Path, "pa.Table"], np.ndarray]


@dataclass(frozen=True, slots=True)
class Sources:
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


def pose_tables(study: StudyConfig) -> Path:
    """The folder of the study's pose tables; with ``pose: record`` made from the angles that the records hold.

    Raises:
        UserError: no shards, or records without angles.
    """
    if study.pose != FROM_RECORDS:
        return Path(study.pose)
    return tables_of_records(Path(study.shards), study.folder / "pose" / FROM_RECORDS)


def tables_of_records(shards: Path, out: Path) -> Path:
    """Pose tables of the records' own angles, for datasets that have true ones; what is there already is kept.

    Raises:
        UserError: no shards, or no record with all three angles.
    """
    manifest, rules, known = Manifest.load(shards), direction_rules(OURS), 0
    out.mkdir(parents=True, exist_ok=True)
    for shard in manifest.shards:
        identity = Identity(
            estimator=FROM_RECORDS, weights_sha256="none", crop=manifest.crop, estimator_crop=manifest.crop,
            precision="none", flips="none", rules=rules.definitions, shard=shard.name, shard_sha256=shard.sha256,
        )  # fmt: skip
        path = _table(out, shard.name)
        if differences(path, identity) == []:
            known += 1
            continue
        keys, records = _records(shards / shard.name)
        said = [(record.yaw, record.pitch, record.roll) for record in records]
        angles = np.array([[np.nan if v is None else v for v in row] for row in said], float).reshape(-1, 3)
        angles[~np.isfinite(angles).all(1)] = np.nan
        known += bool(np.isfinite(angles).any())
        unknown = np.full_like(angles, np.nan)
        write_table(path, ShardPoses(keys, angles, unknown, rules.apply(angles, unknown), {}), identity)
    if not known:
        raise UserError(f"{shards}: no record has yaw, pitch and roll; run `hpe pose` and name its tables as pose:")
    return out


def _records(path: Path) -> tuple[tuple[str, ...], list[Record]]:
    from hpe.data.shard_reader import open_shard

    try:
        shard = open_shard(path)
        return tuple(shard.index.keys), [shard.record(row) for row in range(len(shard))]
    except ValueError as error:
        raise UserError(f"{path}: {error}; see `hpe verify {path.parent}`") from error


def sources(study: StudyConfig, network: Path | None) -> Sources:
    """The study's shards, with the direction rules of its sets.

    Args:
        network: run of the direction network that the study has trained itself, where it does.

    Raises:
        UserError: no shards, no pose tables, or a rule that they do not hold.
    """
    shards, pose = Path(study.shards), pose_tables(study)
    manifest = Manifest.load(shards)
    held = _rules(manifest, pose)
    rules, problems = {}, []
    for name in SETS:
        wanted = getattr(study.sets, name).rule
        rules[name] = wanted if wanted != AUTO else NETWORK_RULE if NETWORK_RULE in held or network else OUR_RULE
        if rules[name] not in held and not (rules[name] == NETWORK_RULE and network):
            problems.append(f"sets.{name}.rule: {rules[name]}: the tables in {pose} have {', '.join(held) or 'none'}")
    if problems:
        raise UserError("\n".join(problems))
    if network is not None and NETWORK_RULE not in held and NETWORK_RULE in rules.values():
        pose = decide_by_network(manifest, pose, study.folder / "pose" / pose.name, network)
    return Sources(shards, pose, rules)


def rules_held(study: StudyConfig) -> tuple[str, ...]:
    """Direction rules of the study's pose tables.

    Raises:
        UserError: no shards, or tables that do not belong to them.
    """
    return _rules(Manifest.load(Path(study.shards)), pose_tables(study))


def _rules(manifest: Manifest, pose: Path) -> tuple[str, ...]:
    problems = [
        why
        for shard in manifest.shards
        if (why := mismatch(_table(pose, shard.name), shard=shard.name, sha256=shard.sha256, samples=shard.samples))
    ]
    if problems:
        more = f"\n… {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError("\n".join(problems[:3]) + more)
    return read_metadata(_table(pose, manifest.shards[0].name)).rules


def _table(folder: Path, shard: str) -> Path:
    return folder / f"{shard.removesuffix('.tar')}.parquet"


def decide_by_network(manifest: Manifest, pose: Path, out: Path, run: Path) -> Path:
    """Pose tables with the directions of a direction network beside; what is there already is kept.

    Raises:
        UserError: the run is no direction network.
    """
    from hpe.pose.plan import load_direction_network

    decide, sha256 = load_direction_network(run)

    def of_table(_: Path, table: "pa.Table") -> np.ndarray:
        angles = np.stack([np.asarray(table[name].to_numpy(zero_copy_only=False), float) for name in ANGLES], 1)
        return decide(angles, np.full_like(angles, np.nan))

    return _with_column(manifest, pose, out, NETWORK_RULE, f"sha256:{sha256}", of_table)


def label_directions(shards: Path, pose: Path, out: Path) -> Path:
    """Pose tables with the direction that the raw dataset tells: its record's, or that of a Pointing'04 pose.

    Raises:
        UserError: no sample has one, or the tables do not belong to the shards.
    """
    manifest = Manifest.load(shards)
    _rules(manifest, pose)
    known = 0

    def of_table(table_path: Path, table: "pa.Table") -> np.ndarray:
        nonlocal known
        _, records = _records(shards / f"{table_path.stem}.tar")
        found = [
            pointing04_direction_of_name(record.source or "") if record.direction is None else record.direction
            for record in records
        ]
        known += sum(label is not None for label in found)
        return np.array([ABSTAIN if label is None else label for label in found], np.int8)

    made = _with_column(manifest, pose, out, TRUE_RULE, "hpe.directions.pointing04/1", of_table)
    if not known and not any(_known(_table(made, shard.name)) for shard in manifest.shards):
        raise UserError(
            f"{shards}: no sample has a true direction; expected Pointing'04, or shards whose records hold directions"
        )
    return made


def _known(path: Path) -> bool:
    import pyarrow.parquet as pq

    labels = pq.read_table(path, columns=[DIRECTION_PREFIX + TRUE_RULE])[0].to_numpy(zero_copy_only=False)
    return bool((labels >= 0).any())


def _with_column(manifest: Manifest, pose: Path, out: Path, rule: str, definition: str, decide: _Decide) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    out.mkdir(parents=True, exist_ok=True)
    column = DIRECTION_PREFIX + rule
    for shard in manifest.shards:
        given, made = _table(pose, shard.name), _table(out, shard.name)
        if made.is_file() and not mismatch(made, shard=shard.name, sha256=shard.sha256, samples=None, rule=rule):
            said = json.loads(read_metadata(made).metadata.get("hpe.rules", "{}"))
            if said.get(rule) == definition:
                continue
        table = pq.read_table(given)
        if column in table.column_names:
            table = table.drop_columns([column])
        metadata = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        rules = json.loads(metadata.get("hpe.rules", "{}")) | {rule: definition}
        metadata["hpe.rules"] = json.dumps(rules, sort_keys=True, separators=(",", ":"))
        table = table.append_column(column, pa.array(decide(given, table), pa.int8()))
        with aside(made) as part:
            pq.write_table(table.replace_schema_metadata(metadata), part, compression="zstd")
    return out


def balanced_sets(study: StudyConfig, given: Sources) -> dict[str, BalancedSet]:
    """Both sets, made where they are not there yet.

    Raises:
        UserError: cells with too few samples, of both sets in one message.
    """
    made, problems = {}, []
    for name in SETS:
        wanted: SetConfig = getattr(study.sets, name)
        folder = study.folder / "sets" / name
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # its summary stands in the folder
                subset = Subset(
                    wanted.per_cell, given.rules[name], seed=study.balance_seed,
                    directions=_chosen(wanted.directions, DIRECTIONS),
                    emotions=None if wanted.emotions is None else _chosen(wanted.emotions, EMOTIONS),
                )  # fmt: skip
                keys = OptionNames(f"sets.{name}.per_cell:", f"sets.{name}.directions", f"sets.{name}.emotions")
                balance(given.shards, given.pose, folder, subset, keys)
        except OtherSubsetError:
            problems.append(
                f"sets.{name}: {folder} was made from other shards or pose tables, and this study's runs learned from "
                "it; --new sets the study aside and starts over, or give another study:"
            )
        except UserError as error:
            problems.append(f"sets.{name} (per_cell {wanted.per_cell}, rule {given.rules[name]}): {error}")
        made[name] = BalancedSet(folder, folder / "pose" / given.pose.name, given.rules[name])
    if problems:
        raise UserError("\n".join(problems) + "\nNothing was trained")
    return made


def _chosen(wanted: Sequence[str] | None, names: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(range(len(names))) if wanted is None else tuple(sorted(names.index(name) for name in wanted))
