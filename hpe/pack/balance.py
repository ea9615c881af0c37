"""``hpe balance``: a subset with as many samples of every direction and emotion, as the thesis trains on."""

import json
import mmap
import re
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hpe.core.errors import UserError
from hpe.core.files import aside, locked, open_regular, write_text
from hpe.core.labels import DIRECTIONS, EMOTIONS, Direction
from hpe.core.progress import progress
from hpe.data.pose_tables import read_metadata, read_pose_table, table_of_shard
from hpe.data.records import Record
from hpe.data.shards import MANIFEST, QUARANTINE, Manifest, Sample, ShardIndex, ShardInfo, index_tar, write_shard
from hpe.pack import splits, summary

POSE: Final = "pose"
OURS: Final = "ours"
"""The direction rule that is taken where tables have several."""
_WORK: Final = ".balance"
"""Folder of a job that is not finished: what lies beside it was written by `hpe balance`."""
_WRITTEN: Final = re.compile(
    r"\.?((train|val|test)-\d{6,}\.tar|quarantine\.jsonl|summary\.md|manifest\.json)(\.\d+-[0-9a-f]+\.part)?"
)
_MOST_DIGITS: Final = 9
_MOST_NAMED: Final = 6
_PREFIX: Final = "direction_"
Cell = tuple[int, int]
"""Direction, emotion."""


class MadeOtherwiseError(UserError):
    """The folder of the subset holds another one."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the user calls the options, for messages: those of the command line, or keys of a config."""

    per_cell: str = "--per-cell"
    directions: str = "--directions"
    emotions: str = "--emotions"


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a chosen sample lies: shard and row in it."""

    shard: ShardInfo
    row: int
    key: str


def balance(
    folder: Path,
    poses: Path,
    out: Path,
    *,
    per_cell: str,
    rule: str | None = None,
    directions: Sequence[int] | None = None,
    emotions: Sequence[int] | None = None,
    seed: int = 0,
    samples_per_shard: int = 1000,
    told: Told = Told(),
) -> Manifest:
    """Write the subset's shards and pose tables to ``out``, and return its manifest.

    From each split of ``folder`` its share is drawn: ``80/40/20`` takes 80 samples of every direction and
    emotion from train, 40 from val and 20 from test; a single number takes as many from every split. No
    sample changes its split, so none leaks. The choice depends on the keys and the seed alone.

    Args:
        folder: shards with emotions.
        poses: tables with a column ``direction_<rule>``, one for each shard.
        rule: None: the only one that the tables have, or else ``ours``.
        directions: that are to be balanced; samples of others are left out. None: all five.
        emotions: the same; None: those that the shards have.
        told: what messages call these options.

    Raises:
        MadeOtherwiseError: ``out`` holds another subset.
        UserError: a cell that is too small (each is named, with what would work), tables that do not fit,
            ``out`` that holds something else or cannot be written, a full disk.
    """
    manifest = Manifest.load(folder)
    wanted = _wanted(per_cell, manifest.splits, told)
    if samples_per_shard < 1:
        raise UserError(f"--samples-per-shard {samples_per_shard}: expected 1 or more")
    tables = _Tables(manifest, poses, rule)
    options = {
        "from": manifest.dataset,
        "per_cell": wanted,
        "rule": tables.rule,
        "poses": poses.name,
        "seed": seed,
        "samples_per_shard": samples_per_shard,
        "shards": [shard.sha256 for shard in manifest.shards if shard.split in wanted],
    }
    directions = tuple(Direction) if directions is None else directions
    if len(directions) < len(DIRECTIONS):
        options["directions"] = [DIRECTIONS[label] for label in directions]
    if emotions is not None:
        options["emotions"] = [EMOTIONS[label] for label in emotions]
    if _finished(out, options):
        print(f"{out}: finished already, nothing to do (`hpe verify {out}` checks it)")
        return Manifest.load(out)
    cells = _cells(folder, manifest, tables, wanted)
    if emotions is None:
        emotions = sorted({emotion for of_split in cells.values() for _, emotion in of_split})
    chosen = _choose(cells, wanted, [(d, e) for d in directions for e in emotions], seed, told)
    try:
        with _locked(out):
            if _finished(out, options):  # by another process, while this one chose
                return Manifest.load(out)
            return _write(folder, manifest, tables, chosen, out, options, samples_per_shard)
    except BrokenPipeError:  # `hpe balance … | head`: the shards are whole
        raise
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror or error}); mend it, or use another folder"
        ) from error


def labels_of(option: str, text: str | None, names: Sequence[str]) -> list[int] | None:
    """The labels of a text such as ``happy,sad``, in order; None: not given.

    Raises:
        UserError: a word that is none of ``names``.
    """
    if text is None:
        return None
    words = [word.strip().lower() for word in text.split(",")]
    if unknown := [word for word in words if word not in names]:
        raise UserError(f"{option} {text[:80]!r}: {unknown[0][:40]!r} is none of {', '.join(names)}")
    return sorted({names.index(word) for word in words})


def _wanted(text: str, found: Sequence[str], told: Told) -> dict[str, int]:
    numbers = text.split("/")
    sensible = all(number.isdecimal() and len(number) <= _MOST_DIGITS for number in numbers)
    if not sensible or len(numbers) not in (1, 3) or not any(map(int, numbers)):
        raise UserError(
            f"{told.per_cell} {text[:40]!r}: expected a number, or three for train/val/test such as 80/40/20"
        )
    if len(numbers) == 1:
        return dict.fromkeys(found, int(text))
    wanted = {name: int(number) for name, number in zip(splits.SPLITS, numbers, strict=True) if int(number)}
    if absent := [name for name in wanted if name not in found]:
        zeros = "/".join(number if name in found else "0" for name, number in zip(splits.SPLITS, numbers, strict=True))
        raise UserError(
            f"{told.per_cell} {text}: these shards have no {' and no '.join(absent)} (they have {', '.join(found)}); "
            f"use {told.per_cell} {zeros}, or pack with --val-share and --test-share"
        )
    return wanted


def _finished(out: Path, options: Mapping[str, Any]) -> bool:
    """Whether ``out`` holds this subset already; nothing is written or removed.

    Raises:
        MadeOtherwiseError: it holds another subset.
        UserError: it holds something else.
    """
    try:
        if not out.exists() and not out.is_symlink():
            return False
        if (out / MANIFEST).is_file():
            if Manifest.load(out).options == options:
                return True
            raise MadeOtherwiseError(
                f"{out}: was made with other options, or from other shards; use another folder or delete it"
            )
        if not out.is_dir():
            raise UserError(f"{out}: is no folder; expected one to write the shards to")
        names = sorted(path.name for path in out.iterdir())
    except OSError as error:
        raise UserError(f"{out}: cannot be read: {error.strerror or error}") from error
    foreign = [name for name in names if name not in (_WORK, POSE) and not _WRITTEN.fullmatch(name)]
    if foreign or (names and _WORK not in names):
        raise UserError(
            f"{out}: holds files that `hpe balance` did not write, such as {(foreign or names)[0]}; "
            "use an empty or a new folder"
        )
    return False


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """The folder, for this process alone; files of a job that was killed are removed.

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


class _Tables:
    """The pose tables of some shards, and the direction rule that is used."""

    def __init__(self, manifest: Manifest, folder: Path, rule: str | None) -> None:
        self.folder = folder
        try:
            found = folder.is_dir()
            absent = [s.name for s in manifest.shards if not self.path(s).is_file()]
        except OSError as error:
            raise UserError(f"{folder}: cannot be read: {error.strerror}; expected a folder of pose tables") from error
        if not found:
            raise UserError(f"{folder}: no such folder; expected pose tables, as `hpe pose SHARDS` writes them")
        if absent:
            raise UserError(
                f"{folder}: no table for {len(absent):,} of {len(manifest.shards):,} shards, such as {absent[0]}; "
                "run `hpe pose` on them first"
            )
        rules = read_metadata(self.path(manifest.shards[0])).rules
        if rule is None and len(rules) != 1 and OURS not in rules:
            raise UserError(f"{folder}: direction rules {', '.join(rules) or 'none'}; name one with --rule")
        self._columns: pa.Schema | None = None
        self.rule = rule or (rules[0] if len(rules) == 1 else OURS)
        if self.rule not in rules:
            raise UserError(f"--rule {self.rule}: the tables in {folder} have {', '.join(rules) or 'none'}")

    def path(self, shard: ShardInfo) -> Path:
        return table_of_shard(self.folder, shard.name)

    def read(self, shard: ShardInfo) -> pa.Table:
        """A shard's table.

        Raises:
            UserError: it cannot be read, its rows are not the shard's samples, or its columns are not those of the
                tables before.
        """
        path = self.path(shard)
        table = read_pose_table(path)
        if absent := {"key", _PREFIX + self.rule} - set(table.column_names):
            raise UserError(f"{path}: no column {', '.join(sorted(absent))}; run `hpe pose` again")
        if table.num_rows != shard.samples:
            raise UserError(f"{path}: {table.num_rows:,} rows for {shard.samples:,} samples; run `hpe pose` again")
        kind = table.schema.field(_PREFIX + self.rule).type
        if not pa.types.is_integer(kind):
            raise UserError(f"{path}: {_PREFIX}{self.rule} is a column of {kind}, expected whole numbers of 0..4")
        made_for = (table.schema.metadata or {}).get(b"hpe.shard_sha256", b"").decode("utf-8", "replace")
        if made_for and made_for != shard.sha256:
            raise UserError(
                f"{path}: made for a shard with sha256 {made_for[:12]}…, {shard.name} has {shard.sha256[:12]}…; "
                "run `hpe pose` on these shards"
            )
        columns = table.schema.remove_metadata()
        before = self._columns = self._columns or columns
        if other := sorted({f"{field.name} ({field.type})" for field in {*columns} ^ {*before}}):
            raise UserError(
                f"{path}: its columns are not those of the tables before it: {', '.join(other)}; "
                "remove the tables and run `hpe pose` again"
            )
        return table


def _cells(
    folder: Path, manifest: Manifest, tables: _Tables, wanted: Mapping[str, int]
) -> dict[str, dict[Cell, list[_Place]]]:
    """By split and cell, every sample that has an emotion and a direction."""
    cells: dict[str, dict[Cell, list[_Place]]] = {name: defaultdict(list) for name in wanted}
    shards = [shard for shard in manifest.shards if shard.split in wanted]
    with progress("count", len(shards), unit="shards") as bar:
        for shard in shards:
            table = tables.read(shard)
            directions = table.column(_PREFIX + tables.rule).to_pylist()
            keys = table.column("key").to_pylist()
            with _opened(folder, shard) as (data, index):
                if list(index.keys) != keys:
                    raise UserError(
                        f"{tables.path(shard)}: its rows are not the samples of {shard.name}; run `hpe pose` again"
                    )
                for row, direction in enumerate(directions):
                    if direction is None or not 0 <= direction < len(DIRECTIONS):
                        continue
                    emotion = _record(data, index, row).emotion
                    if emotion is not None:
                        cells[shard.split][direction, emotion].append(_Place(shard, row, keys[row]))
            bar.advance()
    return cells


@contextmanager
def _opened(folder: Path, shard: ShardInfo) -> Iterator[tuple[memoryview, ShardIndex]]:
    """A shard, mapped: only what is looked at is read."""
    path = folder / shard.name
    try:
        with (
            open_regular(path) as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
            memoryview(mapped) as data,
        ):
            index = index_tar(data)
            if index.damage or len(index) != shard.samples:
                raise ValueError(index.damage or f"{len(index):,} samples, expected {shard.samples:,}")
            yield data, index
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: {error}; see `hpe verify {folder}`") from error


def _record(data: memoryview, index: ShardIndex, row: int) -> Record:
    start, size = index.records[row].tolist()
    record = Record.from_json(bytes(data[start : start + size]))
    if problems := record.problems():
        raise ValueError(f"{index.keys[row]}: {'; '.join(problems)}")
    return record


def _choose(
    cells: Mapping[str, Mapping[Cell, list[_Place]]],
    wanted: Mapping[str, int],
    grid: Sequence[Cell],
    seed: int,
    told: Told,
) -> dict[str, list[_Place]]:
    """Per split the chosen samples, in random order.

    Raises:
        UserError: a cell with fewer samples than wanted.
    """
    if not grid:
        raise UserError("no sample has both an emotion and a direction; nothing can be balanced")
    smallest = {name: min(len(of_split.get(cell, ())) for cell in grid) for name, of_split in cells.items()}
    short = [
        (name, cell, len(cells[name].get(cell, ())), number)
        for name, number in wanted.items()
        for cell in grid
        if len(cells[name].get(cell, ())) < number
    ]
    if short:
        fits = {name: min(number, smallest[name]) for name, number in wanted.items()}
        largest = "/".join(str(fits.get(name, 0)) for name in splits.SPLITS)
        way_out = (
            f"{told.per_cell} {largest} works"
            if all(fits.values())
            else "a cell without a sample cannot be balanced: leave its label out with "
            f"{told.directions} or {told.emotions}, or use another direction rule, or more data"
        )
        short.sort(key=lambda cell: cell[2] / cell[3])
        lines = [
            f"  {name}, {DIRECTIONS[direction]} × {EMOTIONS[emotion]}: {count:,} of {number:,}"
            for name, (direction, emotion), count, number in short[:_MOST_NAMED]
        ]
        if len(short) > _MOST_NAMED:
            lines.append(f"  and {len(short) - _MOST_NAMED:,} more")
        raise UserError(f"{len(short)} cells have too few samples:\n" + "\n".join(lines) + f"\n{way_out}")

    def rank(place: _Place) -> tuple[int, str]:
        return splits.order(seed, place.key), place.key

    return {
        name: sorted((p for cell in grid for p in sorted(cells[name][cell], key=rank)[:number]), key=rank)
        for name, number in wanted.items()
    }


def _write(
    folder: Path,
    manifest: Manifest,
    tables: _Tables,
    chosen: Mapping[str, Sequence[_Place]],
    out: Path,
    options: dict[str, Any],
    samples_per_shard: int,
) -> Manifest:
    infos: list[ShardInfo] = []
    by_split: dict[str, Counter[str]] = {}
    grid: dict[str, Counter[str]] = {}
    with progress("balance", sum(map(len, chosen.values())), unit="images") as bar:
        for name, places in chosen.items():
            by_split[name], grid[name] = Counter(), Counter()
            parts = -(-len(places) // samples_per_shard)
            for part in range(parts):
                some = places[part * len(places) // parts : (part + 1) * len(places) // parts]
                found = _gather(folder, tables, some)
                samples = [found[place.key][0] for place in some]
                rows = pa.concat_tables([found[place.key][1] for place in some])
                info = write_shard(out / f"{name}-{part:06d}.tar", name, samples)
                infos.append(info)
                _write_table(rows, out / POSE / tables.folder.name, info)
                for sample, direction in zip(samples, rows.column(_PREFIX + tables.rule).to_pylist(), strict=True):
                    emotion = sample.record.emotion
                    by_split[name][f"emotion/{EMOTIONS[emotion or 0]}"] += 1
                    grid[name][f"{DIRECTIONS[direction]} {EMOTIONS[emotion or 0]}"] += 1
                bar.advance(len(some))
    counts = summary.counts(by_split, Counter(), sum(map(len, chosen.values())))
    counts["cells"] = {name: dict(sorted(found.items())) for name, found in grid.items()}
    each = ", ".join(f"{number} in {name}" for name, number in options["per_cell"].items())
    note = f"balanced: per direction ({tables.rule}) and emotion {each}, seed {options['seed']}"
    balanced = replace(manifest, shards=tuple(infos), counts=counts, options=options, notes=(*manifest.notes, note))
    write_text(out / QUARANTINE, "")
    text = summary.summary(balanced, Counter(), balanced.notes) + _tables_of_cells(grid)
    write_text(out / "summary.md", text)
    balanced.save(out)
    print(text)
    return balanced


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


def _gather(folder: Path, tables: _Tables, places: Sequence[_Place]) -> dict[str, tuple[Sample, pa.Table]]:
    """The samples of one new shard with their rows, by key."""
    by_shard: dict[ShardInfo, dict[int, str]] = defaultdict(dict)
    for place in places:
        by_shard[place.shard][place.row] = place.key
    found: dict[str, tuple[Sample, pa.Table]] = {}
    for shard, rows in by_shard.items():
        table = tables.read(shard)
        with _opened(folder, shard) as (data, index):
            for row, key in rows.items():
                start, size = index.images[row].tolist()
                image = bytes(data[start : start + size])
                sample = Sample(key, image, index.extensions[row], _record(data, index, row))
                found[key] = sample, table.slice(row, 1)
    return found


def _write_table(rows: pa.Table, folder: Path, shard: ShardInfo) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {k.decode(): v.decode() for k, v in (rows.schema.metadata or {}).items()}
    metadata |= {"hpe.shard": shard.name, "hpe.shard_sha256": shard.sha256}
    metadata["hpe.balanced"] = json.dumps({"rows": rows.num_rows})
    with aside(table_of_shard(folder, shard.name)) as part:
        pq.write_table(rows.replace_schema_metadata(metadata).combine_chunks(), part, compression="zstd")
