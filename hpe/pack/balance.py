"""``hpe balance``: a subset with as many samples of every direction and emotion, as the thesis trains on."""

import itertools
import json
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hpe.core.errors import UserError, unwritable
from hpe.core.files import aside, locked, write_text
from hpe.core.labels import DIRECTIONS, EMOTIONS, Direction
from hpe.core.progress import progress
from hpe.data.pose_labels import chosen_rule
from hpe.data.pose_tables import POSE_FOLDER, digest_of_tables, read_pose_table, table_of_shard
from hpe.data.shard_files import ShardFile, manifest_at, of_manifest
from hpe.data.shard_reader import OpenShard, utf8
from hpe.data.shards import MANIFEST, QUARANTINE, Manifest, Sample, ShardInfo, write_shard
from hpe.data.store import is_remote
from hpe.data.tables import dataset_of, pose_files, refuse_damaged
from hpe.pack import summary
from hpe.pack.cells import COMMAND_LINE, OptionNames, choose, samples_per_cell
from hpe.pack.indexing import write_indexes

if TYPE_CHECKING:
    from datasets import Dataset

_WORK: Final = ".balance"
"""Folder of an unfinished job: its presence shows that `hpe balance` wrote the files beside it."""
_WRITTEN: Final = re.compile(
    r"\.?((train|val|test)-\d{6,}\.tar|(train|val|test)\.arrow|quarantine\.jsonl|summary\.md|manifest\.json)(\.\d+-[0-9a-f]+\.part)?"
)


class OtherSubsetError(UserError):
    """The folder of the subset holds another one."""


@dataclass(frozen=True, slots=True)
class Subset:
    """Which subset to make.

    Attributes:
        per_cell: ``80/40/20`` takes 80 samples of every direction and emotion from train, 40 from val and 20 from
            test; a single number takes as many from every split.
        rule: the tables' column ``direction_<rule>`` to use. None: the only one, or else ``ours``.
        directions: to balance; samples of others are left out. None: all five.
        emotions: the same. None: all in the shards.
        seed: of the choice.
    """

    per_cell: str
    rule: str | None = None
    directions: Sequence[int] | None = None
    emotions: Sequence[int] | None = None
    seed: int = 0
    samples_per_shard: int = 1000

    def recorded(
        self, manifest: Manifest, poses: str, tables: str, rule: str, wanted: Mapping[str, int]
    ) -> dict[str, Any]:
        """The options as the subset's manifest records them: all that decides its bytes.

        Args:
            manifest: of the shards.
            poses, tables: name of the folder of pose tables, and their digest.
            rule: of the directions.
            wanted: by split, samples of every direction and emotion.
        """
        options: dict[str, Any] = {
            "from": manifest.dataset,
            "per_cell": wanted,
            "rule": rule,
            "poses": poses,
            "tables": tables,
            "seed": self.seed,
            "samples_per_shard": self.samples_per_shard,
            "shards": [shard.sha256 for shard in manifest.shards if shard.split in wanted],
        }
        if self.directions is not None and len(self.directions) < len(DIRECTIONS):
            options["directions"] = [DIRECTIONS[label] for label in self.directions]
        if self.emotions is not None:
            options["emotions"] = [EMOTIONS[label] for label in self.emotions]
        return options


def balance(
    folder: str | Path, poses: str | Path, out: Path, subset: Subset, option_names: OptionNames = COMMAND_LINE
) -> Manifest:
    """Write the subset's shards and pose tables to ``out``, and return its manifest.

    Each split of ``folder`` gives its own samples: none changes its split, so that none leaks. The choice depends on
    the keys and the seed alone.

    Args:
        folder: shards with emotions, or the URL of such a folder: then only tars with chosen samples are fetched.
        poses: their pose tables with directions, one per shard; the folder of them, or its URL.
        option_names: how messages name the options.

    Raises:
        OtherSubsetError: ``out`` holds another subset.
        UserError: a cell is too small (the message names each, and what would work), the tables do not fit,
            ``out`` holds something else or cannot be written, the disk is full.
    """
    if not is_remote(str(poses)):
        poses = Path(poses)
    estimator = Path(poses).name
    manifest = manifest_at(folder)
    wanted = samples_per_cell(subset.per_cell, manifest.splits, option_names)
    if subset.samples_per_shard < 1:
        raise UserError(f"--samples-per-shard {subset.samples_per_shard}: expected 1 or more")
    shards = of_manifest(manifest, folder)
    tables = dict(zip(shards, pose_files(shards, poses), strict=True))
    rule = chosen_rule(next(iter(tables.values())), subset.rule)
    used = {name: [tables[s] for s in of_manifest(manifest, folder, name)] for name in wanted}
    digest = digest_of_tables(itertools.chain.from_iterable(used.values()))
    options = subset.recorded(manifest, estimator, digest, rule, wanted)
    if _finished(out, options):
        print(f"{out}: finished already, nothing to do (`hpe verify {out}` checks it)")
        return Manifest.load(out)
    faces = {}
    for name in wanted:
        faces[name] = dataset_of(of_manifest(manifest, folder, name), {"": used[name]}, rule)
        refuse_damaged(faces[name])
    directions = tuple(Direction) if subset.directions is None else subset.directions
    chosen = choose(faces, wanted, (directions, subset.emotions), subset.seed, option_names)
    try:
        with _locked(out):
            if _finished(out, options):  # by another process, while this one chose
                return Manifest.load(out)
            return _Writing(out, manifest, estimator, {utf8(str(s)): (s, t) for s, t in tables.items()}).write(
                chosen, options
            )
    except BrokenPipeError:  # `hpe balance … | head`: the shards are finished, only the summary is not read
        raise
    except OSError as error:
        raise unwritable(str(out), error) from error


def labels_of(option: str, text: str | None, names: Sequence[str]) -> list[int] | None:
    """The numbers of labels such as ``happy,sad``, sorted; None where there is no text.

    Raises:
        UserError: a word is none of ``names``.
    """
    if text is None:
        return None
    words = [word.strip().lower() for word in text.split(",")]
    if unknown := [word for word in words if word not in names]:
        raise UserError(f"{option} {text[:80]!r}: {unknown[0][:40]!r} is none of {', '.join(names)}")
    return sorted({names.index(word) for word in words})


def _finished(out: Path, options: Mapping[str, Any]) -> bool:
    """Whether ``out`` holds this subset already; nothing is written or removed.

    Raises:
        OtherSubsetError: it holds another subset.
        UserError: it holds something else.
    """
    try:
        if not out.exists() and not out.is_symlink():
            return False
        if (out / MANIFEST).is_file():
            before = Manifest.load(out).options
            before = {"tables": options["tables"]} | before  # unsaid by older versions
            others = sorted(name for name in before.keys() | options if before.get(name) != options.get(name))
            if not others:
                return True
            raise OtherSubsetError(
                f"{out}: was made with other options, or from other shards or pose tables (in its {MANIFEST} differ: "
                f"{', '.join(others)}); use another folder, or delete this one"
            )
        if not out.is_dir():
            raise UserError(f"{out}: is not a folder; expected one for the shards")
        names = sorted(path.name for path in out.iterdir())
    except OSError as error:
        raise UserError(f"{out}: cannot be read: {error.strerror or error}") from error
    foreign = [name for name in names if name not in (_WORK, POSE_FOLDER) and not _WRITTEN.fullmatch(name)]
    if foreign or (names and _WORK not in names):
        raise UserError(
            f"{out}: holds files that `hpe balance` did not write, such as {(foreign or names)[0]}; "
            "use an empty or a new folder"
        )
    return False


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Lock the folder for this process, and remove the files of a killed job.

    Raises:
        UserError: another process is writing there.
    """
    work = out / _WORK
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock", f"{out}: another `hpe balance` is writing here; wait for it, or stop it"):
        if not (out / MANIFEST).is_file():
            for path in out.iterdir():
                if _WRITTEN.fullmatch(path.name):
                    path.unlink()
        yield
    shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _opened(shard: ShardFile) -> Iterator[OpenShard]:
    """A whole shard; damage found while it is read becomes a ``UserError``, too."""
    try:
        yield shard.open()
    except ValueError as error:
        raise UserError(f"{shard}: {error}; see `hpe verify {shard.folder}`") from error


@dataclass(frozen=True, slots=True)
class _Writing:
    """Writes chosen samples with their rows of the pose tables to ``out``.

    ``estimator``: of the pose tables; ``sources``: shards and their tables by the name in the column ``shard``.
    """

    out: Path
    manifest: Manifest
    estimator: str
    sources: Mapping[str, tuple[ShardFile, Path]]

    def write(self, chosen: Mapping[str, "Dataset"], options: dict[str, Any]) -> Manifest:
        """Shards, tables and summary; the manifest last, which marks the folder as finished."""
        infos: list[ShardInfo] = []
        by_split: dict[str, Counter[str]] = {}
        grid: dict[str, Counter[str]] = {}
        with progress("balance", sum(map(len, chosen.values())), unit="images") as bar:
            for name, faces in chosen.items():
                parts = -(-len(faces) // options["samples_per_shard"])
                for part in range(parts):
                    rows = range(part * len(faces) // parts, (part + 1) * len(faces) // parts)
                    samples, poses = self._gather(faces.select(rows))
                    info = write_shard(self.out / f"{name}-{part:06d}.tar", name, samples)
                    infos.append(info)
                    _write_table(poses, self.out / POSE_FOLDER / self.estimator, info)
                    bar.advance(len(rows))
                emotions = [EMOTIONS[label] for label in faces["emotion"]]
                by_split[name] = Counter(f"emotion/{emotion}" for emotion in emotions)
                looks = [DIRECTIONS[label] for label in faces["direction"]]
                grid[name] = Counter(f"{look} {emotion}" for look, emotion in zip(looks, emotions, strict=True))
        counts = summary.counts(by_split, Counter(), sum(map(len, chosen.values())))
        counts["cells"] = {name: dict(sorted(found.items())) for name, found in grid.items()}
        each = ", ".join(f"{number} in {name}" for name, number in options["per_cell"].items())
        note = f"balanced: per direction ({options['rule']}) and emotion {each}, seed {options['seed']}"
        notes = (*self.manifest.notes, note)
        indexes = write_indexes(self.out, infos, self.out / _WORK)
        balanced = replace(
            self.manifest, shards=tuple(infos), counts=counts, options=options, notes=notes, indexes=indexes
        )
        write_text(self.out / QUARANTINE, "")
        text = summary.summary(balanced, Counter(), balanced.notes) + _tables_of_cells(grid)
        write_text(self.out / "summary.md", text)
        balanced.save(self.out)
        print(text)
        return balanced

    def _gather(self, faces: "Dataset") -> tuple[list[Sample], pa.Table]:
        """The samples of one new shard, and their rows of the pose tables; each old shard is opened once."""
        by_shard: dict[str, list[tuple[int, str]]] = defaultdict(list)
        keys = list(faces["key"])
        for shard, row, key in zip(faces["shard"], faces["row"], keys, strict=True):
            by_shard[shard].append((row, key))
        found: dict[str, tuple[Sample, pa.Table]] = {}
        for name, places in by_shard.items():
            shard, poses = self.sources[name]
            # As it is in the file, so that columns of others are kept, too.
            table = read_pose_table(poses)
            with _opened(shard) as opened:
                for row, key in places:
                    if row >= len(opened) or utf8(opened.keys[row]) != key:
                        raise ValueError(f"row {row} is not {key!r}: the tar has changed")
                    found[key] = opened.sample(row), table.slice(row, 1)
        return [found[key][0] for key in keys], pa.concat_tables([found[key][1] for key in keys])


def _tables_of_cells(grid: Mapping[str, Counter[str]]) -> str:
    """Direction × emotion of every split, for ``summary.md``."""
    lines: list[str] = []
    for split, cells in grid.items():
        emotions = [name for name in EMOTIONS if any(cells[f"{direction} {name}"] for direction in DIRECTIONS)]
        lines += ["", f"| {split} | {' | '.join(emotions)} |", "|---|" + "---:|" * len(emotions)]
        for direction in DIRECTIONS:
            counted = [cells[f"{direction} {name}"] for name in emotions]
            lines += [f"| {direction} | {' | '.join(f'{count:,}' for count in counted)} |"] * any(counted)
    return "\n".join(lines) + "\n"


def _write_table(rows: pa.Table, folder: Path, shard: ShardInfo) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {k.decode(): v.decode() for k, v in (rows.schema.metadata or {}).items()}
    metadata |= {"hpe.shard": shard.name, "hpe.shard_sha256": shard.sha256}
    metadata["hpe.balanced"] = json.dumps({"rows": rows.num_rows})
    with aside(table_of_shard(folder, shard.name)) as part:
        pq.write_table(rows.replace_schema_metadata(metadata).combine_chunks(), part, compression="zstd")
