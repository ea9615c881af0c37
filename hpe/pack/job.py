"""The job of ``hpe pack``: read the rows, draw the splits, make the shards, and record what came out."""

import contextlib
import json
import tempfile
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from hpe.core.console import count_of
from hpe.core.errors import UserError
from hpe.core.files import aside, sync, write_json, write_text
from hpe.core.process_pool import Workers
from hpe.core.progress import progress
from hpe.core.signals import signals
from hpe.data.crops import CropRule
from hpe.data.recipe import Recipe
from hpe.data.shards import PLAN, QUARANTINE, Manifest, ShardInfo
from hpe.pack import splits, summary
from hpe.pack.closing import lost_warnings, split_warnings
from hpe.pack.duplicates import DUPLICATES, count_duplicates, duplicate_lines, duplicates_note, find_copies
from hpe.pack.indexing import write_indexes
from hpe.pack.journal import JOURNAL, ShardJournal, journal
from hpe.pack.not_taken import NotTaken, not_taken
from hpe.pack.options import Options
from hpe.pack.reasons import category, values, values_note
from hpe.pack.rows import Rows, read
from hpe.sources.base import NOT_ITS_OWN, Source

SUMMARY: Final = "summary.md"
_HASHED_AT_ONCE: Final = 500
_FEWEST_SHARDS: Final = 8
_FEWEST_SAMPLES: Final = 128
"""A small split is cut into shards of no fewer, so that several processes have something to do."""
_MOST_FOREIGN: Final = 20
_LONGEST_REASON: Final = 400
_MOST_FOREIGN_SHARE: Final = 0.2


@dataclass(frozen=True, slots=True)
class _PlannedShard:
    name: str
    split: str
    rows: tuple[int, ...]
    """Indices into :attr:`Rows.rows`."""


@dataclass
class _Packed:
    """What the journals of all shards record.

    Attributes:
        shards: those that have a sample.
        by_split: see :func:`summary.tally`.
        refused: rows that did not become a sample.
        split: of each row that became a sample.
        hashes: its exact and its near hash, by index of the row.
    """

    split: list[str | None]
    by_split: dict[str, Counter[str]]
    shards: list[ShardInfo] = field(default_factory=list)
    refused: list[tuple[int, str, str]] = field(default_factory=list)
    hashes: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)


class Packing:
    """One run of the job.

    Args:
        recorded: the options as the manifest records them.
        processes: that read rows and make shards.
        raw: the raw dataset's folder, to count what it holds beside the rows; None: there is none.
    """

    def __init__(
        self,
        source: Source,
        out: Path,
        options: Options,
        recorded: Mapping[str, Any],
        processes: int,
        raw: Path | None = None,
    ) -> None:
        self.source, self.out, self.options, self.raw = source, out, options, raw
        self.recorded, self._processes = recorded, processes
        self.keep = recorded["crop"] == "keep"
        crop = None if self.keep else CropRule.parse(recorded["crop"])
        most = round(options.max_megapixels * 1e6)
        self.recipe = Recipe(crop, options.size, options.grey, options.quality, options.detector, most)
        self._wanted: tuple[str, ...] = ()
        """The splits that should have samples."""
        self.notes = [*source.notes, *(source.splits_notes if options.splits == "own" else ())]

    def run(self) -> Manifest:
        """Do the job; finished shards of an earlier run are kept."""
        with (
            tempfile.TemporaryFile(dir=self.out / JOURNAL) as file,
            signals() as stop,
            Workers(self._processes, stop, preload="hpe.pack.shard") as workers,
        ):
            self.workers = workers
            rows = read(self.source, file, workers, stop)
            self.notes += self.source.late_notes()
            self._check(rows)
            self._check_faces(rows)
            self._compare_size(rows)
            beside = self._beside(rows)
            split = self._split(rows)
            dropped = self._drop_copies(rows, split) if self.options.drop != "none" else None
            self._refuse_unlisted(rows, split)
            shards = self._plan(rows, split)
            self._make(rows, shards)
            packed = self._collect(rows, shards)
            return self._finish(rows, packed, dropped, beside)

    def _check(self, rows: Rows) -> None:
        """Refuse what would end in no sample at all, or in another dataset than the one meant."""
        name = self.source.name
        if not rows.rows:
            raise UserError(
                f"{name}: {count_of(rows.read, 'row')} read, and none can become a sample "
                f"({_most_frequent(rows.refused) or 'no rows'})"
            )
        foreign = rows.kinds["foreign"]
        if foreign > max(_MOST_FOREIGN, rows.read * _MOST_FOREIGN_SHARE):
            raise UserError(
                f"{name}: {foreign:,} of {rows.read:,} pictures are {NOT_ITS_OWN} this dataset; "
                "if this folder holds several datasets, give the folder of one of them"
            )
        crop = self.recipe.crop
        needed = None if crop is None or crop.shape == "none" else crop.basis
        if needed in ("box", "landmarks") and not rows.has[needed]:
            raise UserError(
                f"--crop {crop}: none of the {len(rows.rows):,} rows of {name} has "
                f"{'a box' if needed == 'box' else needed}; use --crop none, or a rule that ends in @detector"
            )

    def _check_faces(self, rows: Rows) -> None:
        """Refuse to store a picture of several faces whole by default; where that is asked for, note it."""
        crop = self.recipe.crop
        several = sum(faces > 1 for faces in rows.boxes.values())
        if not several or (crop is not None and crop.shape != "none"):
            return
        if self.options.crop is None:
            raise UserError(
                f"{self.source.name}: several faces with a box each in {count_of(several, 'picture')}, and the default "
                "crop would store the whole picture for each: cut them out with --crop square-1.2@box, or give "
                "--crop none"
            )
        self.notes.append(
            f"faces: several in {count_of(several, 'picture')}, and the whole picture is stored for each of them"
        )

    def _compare_size(self, rows: Rows) -> None:
        """Note how the number of items differs from the documented one."""
        if not self.source.expected:
            return
        found = rows.read - rows.kinds["copy"] - rows.kinds["foreign"]
        documented = sum(self.source.expected.values())
        if found != documented:
            parts = ", ".join(f"{split} {count:,}" for split, count in self.source.expected.items())
            parts = f" ({parts})" if len(self.source.expected) > 1 else ""
            self.notes.append(
                f"size: {found:,} items, {abs(found - documented):,} {'more' if found > documented else 'fewer'} than "
                f"the {documented:,} of the whole dataset{parts}"
            )

    def _beside(self, rows: Rows) -> NotTaken:
        """Count what the raw folder holds beside the rows."""
        if self.raw is None or not self.raw.is_dir():
            return NotTaken()
        found = not_taken(self.raw, rows.files, self.source.home or self.raw, (source for _, source, _ in rows.refused))
        self.notes += found.notes()
        return found

    def _split(self, rows: Rows) -> list[str | None]:
        """The split of each row; None for rows in no list."""
        options = self.options
        if isinstance(options.splits, Path):
            lists = splits.Lists(options.splits)
            found: list[str | None] = lists.assign(rows.rows)
            self._wanted = lists.names
            note = f"splits: by the lists in {options.splits.name}/"
            if lists.unused:
                note += f"; no sample for {count_of(len(lists.unused), 'line')} of them, such as {lists.unused[0]}"
        else:
            own = self.source.splits if options.splits == "own" else ()
            val, test = options.shares
            found = [*splits.draw(rows.rows, seed=options.seed, val_share=val, test_share=test, official=own)]
            drawn = (("val", val), ("test", 0.0 if own else test)) if not own or "train" in own else ()
            self._wanted = (*(own or ("train",)), *(name for name, share in drawn if share))
            official = ", ".join(own)
            if not official:
                by = [f"drawn with seed {options.seed}"]
                by += ["by subject"] * any(row.subject is not None for row in rows.rows)
                by += ["stratified by emotion"] * any(row.emotion is not None for row in rows.rows)
                note = "splits: " + ", ".join(by)
            elif set(found) <= set(own):
                note = f"splits: the dataset's own ({official})"
            else:
                note = f"splits: the dataset's own ({official}); val was cut from train with seed {options.seed}"
            if official and (without := sum(row.split is None for row in rows.rows)):
                note += f"; {count_of(without, 'row')} without a split in train"
        self.notes.append(note)
        subjects, photos = [row.subject for row in rows.rows], [row.photo for row in rows.rows]
        for kind, names in (("subjects", subjects), ("pictures", photos)):
            if leaks := splits.shared(names, found):
                name, where = next(iter(leaks.items()))
                self.notes.append(
                    f"LEAK: {len(leaks):,} {kind} appear in more than one split, such as {name} in "
                    f"{' and '.join(where)}; results on those splits are too good"
                )
        return found

    def _drop_copies(self, rows: Rows, split: list[str | None]) -> list[dict[str, Any]]:
        """Refuse the copies and set their split to None; returns the lines of ``duplicates.jsonl``."""
        hashes = self._hash(rows, [index for index, name in enumerate(split) if name is not None])
        found = find_copies(rows.rows, split, hashes, near=self.options.drop == "near")
        lines = duplicate_lines(rows.rows, split, found, dropped=True)
        for copy in found:
            kind = "the same stored bytes" if copy.bits is None else f"{copy.bits} of 256 bits differ"
            rows.refuse(copy.copy, f"duplicate: shows the same as {rows.rows[copy.first].key} ({kind})")
            split[copy.copy] = None
        return lines

    def _hash(self, rows: Rows, indices: Sequence[int]) -> dict[int, tuple[bytes, bytes]]:
        """The exact and near hash of the rows that can become a sample.

        Copies must be known before the shards are planned, or these would differ in size: every picture is read twice.
        """
        from hpe.pack.shard import fingerprints

        place = {number: index for index, number in enumerate(rows.numbers)}
        portions = (indices[at : at + _HASHED_AT_ONCE] for at in range(0, len(indices), _HASHED_AT_ONCE))
        hashes: dict[int, tuple[bytes, bytes]] = {}
        with progress("look for copies", len(indices), unit="images") as bar:
            for found in self.workers.run(partial(fingerprints, self.recipe), map(rows.pickled, portions)):
                hashes |= {place[number]: (exact, near) for number, exact, near in found}
                bar.advance(len(found))
        return hashes

    def _refuse_unlisted(self, rows: Rows, split: Sequence[str | None]) -> None:
        dropped = {number for number, _, _ in rows.refused}
        for index, name in enumerate(split):
            if name is None and rows.numbers[index] not in dropped:
                rows.refuse(index, "in none of the lists of --splits")

    def _plan(self, rows: Rows, split: Sequence[str | None]) -> list[_PlannedShard]:
        """Which rows go into which shard: each split in a seeded random order, cut into equal parts."""
        shards: list[_PlannedShard] = []
        for name in splits.SPLITS:
            members = [index for index, its in enumerate(split) if its == name]
            seed, keys = self.options.seed, rows.rows
            members.sort(key=lambda index: (splits.order(seed, keys[index].key), keys[index].key))
            # Equal parts: a last shard of three samples would be read as often as the others.
            enough = min(_FEWEST_SHARDS, len(members) // _FEWEST_SAMPLES)
            parts = max(-(-len(members) // self.options.samples_per_shard), enough)
            for part in range(parts):
                chosen = members[part * len(members) // parts : (part + 1) * len(members) // parts]
                shards.append(_PlannedShard(f"{name}-{part:06d}.tar", name, tuple(chosen)))
        return shards

    def _make(self, rows: Rows, shards: Sequence[_PlannedShard]) -> None:
        # Late: it imports torch, which the worker processes do while this one reads the rows.
        from hpe.pack.shard import ShardTask, StaleError, make_shard

        names = {shard.name for shard in shards}
        for path in (self.out / JOURNAL).glob("*.tar.json"):
            if path.name.removesuffix(".json") not in names:
                raise self._changed(path.name.removesuffix(".json"))
        write_json(self.out / JOURNAL / PLAN, {"shards": len(shards), "rows": sum(len(one.rows) for one in shards)})
        tasks = (
            ShardTask(self.out, shard.name, shard.split, self.recipe, rows.pickled(shard.rows)) for shard in shards
        )
        with (
            progress("pack", sum(len(shard.rows) for shard in shards), unit="images") as bar,
            ThreadPoolExecutor(1, "sync") as disk,
        ):
            try:
                syncing: deque[Future[None]] = deque()
                for shard, done in zip(shards, self.workers.run(make_shard, tasks), strict=True):
                    # Here, as a worker would wait for the disk: a tenth of its time for small shards.
                    syncing.append(disk.submit(_sync_if_there, self.out / shard.name))
                    while syncing and syncing[0].done():
                        syncing.popleft().result()  # raises that the disk is full
                    bar.advance(done)
                for one in syncing:
                    one.result()
                sync(self.out)
            except StaleError as error:
                raise self._changed(str(error)) from error

    def _changed(self, shard: str) -> UserError:
        return UserError(
            f"{self.out}: {shard} was made from other rows: the raw dataset has changed since this job began; "
            "restore it, pack into another folder, or delete this one"
        )

    def _collect(self, rows: Rows, shards: Sequence[_PlannedShard]) -> _Packed:
        place = {number: index for index, number in enumerate(rows.numbers)}
        packed = _Packed([None] * len(rows.rows), {shard.split: Counter() for shard in shards})
        packed.refused = list(rows.refused)
        for shard in shards:
            made = ShardJournal.load(journal(self.out, shard.name))
            if made is None:
                raise UserError(f"{self.out}: the journal of {shard.name} is gone; run the same command again")
            packed.by_split[shard.split].update(made.counts)
            packed.refused += made.refused
            packed.shards += [made.shard] if made.shard else []
            for number, _, _, _, exact, near in made.samples:
                packed.split[place[number]] = shard.split
                packed.hashes[place[number]] = bytes.fromhex(exact), bytes.fromhex(near)
        if not packed.shards:
            raise UserError(
                f"{self.out}: of {count_of(rows.read, 'row')} none became a sample ({_most_frequent(packed.refused)})"
            )
        return packed

    def _finish(self, rows: Rows, packed: _Packed, dropped: list[dict[str, Any]] | None, beside: NotTaken) -> Manifest:
        """Write everything beside the shards, the manifest last: it marks the folder as finished."""
        total = sum(packed.by_split.values(), Counter[str]())
        with ThreadPoolExecutor(1, "sheets") as meanwhile:
            drawn = meanwhile.submit(self._draw_sheets, packed.shards, total)
            manifest = self._manifest(rows, packed, dropped, beside)
            drawn.result()
        text = summary.summary(manifest, total, self.notes)
        write_text(self.out / SUMMARY, text)
        manifest.save(self.out)
        print(text)
        return manifest

    def _draw_sheets(self, shards: Sequence[ShardInfo], total: Mapping[str, int]) -> None:
        title = self.source.name, "" if self.source.publishable else "not to be passed on"
        for _ in self.workers.run(summary.draw_sheet, summary.contact_sheets(self.out, shards, total, title)):
            pass

    def _manifest(
        self, rows: Rows, packed: _Packed, dropped: list[dict[str, Any]] | None, beside: NotTaken
    ) -> Manifest:
        """The manifest; what it counts and names is written."""
        reasons = Counter(category(reason) for _, _, reason in packed.refused)
        counts = summary.counts(packed.by_split, reasons, rows.read)
        if words := values(reason for _, _, reason in packed.refused):
            counts["values"] = words
        assert counts["samples"] + counts["quarantined"] == rows.read, "rows were lost"
        if beside.kinds:
            counts["not_packed"] = dict(sorted(beside.kinds.items()))
        duplicates = dropped
        if duplicates is None:
            found = find_copies(rows.rows, packed.split, packed.hashes, near=True)
            duplicates = duplicate_lines(rows.rows, packed.split, found, dropped=False)
        counts["duplicates"] = count_duplicates(duplicates)
        self.notes.append(duplicates_note(counts["duplicates"]))
        if several := sum(tallies[summary.SEVERAL_FACES] for tallies in packed.by_split.values()):
            self.notes.append(
                f"faces: {count_of(several, 'picture')} with more than one face: the largest was taken (of those about "
                "as large, the nearest to the centre)"
            )
        drawn = not isinstance(self.options.splits, Path) and not (self.options.splits == "own" and self.source.splits)
        self.notes += split_warnings(counts, self._wanted, packed.by_split, drawn)
        self.notes += lost_warnings(counts, self.source.name)
        self._write_quarantine(packed.refused)
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in duplicates]
        write_text(self.out / DUPLICATES, "".join(lines))
        return Manifest(
            dataset=self.source.name,
            variant=self.source.variant,
            licence=self.source.licence,
            publishable=self.source.publishable,
            crop="none" if self.keep else self.recorded["crop"],
            image=self._picture(),
            shards=tuple(packed.shards),
            counts=counts,
            options=dict(self.recorded),
            notes=tuple(self.notes),
            indexes=write_indexes(self.out, packed.shards, self.out / JOURNAL),
        )

    def _picture(self) -> dict[str, Any]:
        if self.keep:
            return {"size": "original", "colour": "original", "encoding": "original"}
        colour = "grey" if self.options.grey else "rgb"
        return {"size": self.options.size, "colour": colour, "encoding": "jpeg", "quality": self.options.quality}

    def _write_quarantine(self, refused: Sequence[tuple[int, str, str]]) -> None:
        with (
            aside(self.out / QUARANTINE) as part,
            part.open("w", encoding="utf-8", errors="backslashreplace") as stream,
        ):
            for _, source, reason in sorted(refused):
                stream.write(json.dumps({"source": source, "reason": reason}, ensure_ascii=False) + "\n")


def _sync_if_there(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):  # no row became a sample
        sync(path)


def _most_frequent(refused: Sequence[tuple[int, str, str]]) -> str:
    """The most frequent kinds of reasons, each by its first row: a kind alone hides the value or the place."""
    why = Counter(category(reason) for _, _, reason in refused).most_common(3)
    first = {category(reason): (source, reason) for _, source, reason in reversed(refused)}
    counted = {"reasons": dict(why), "values": values(reason for _, _, reason in refused)}
    texts = []
    for kind, count in why:
        source, reason = first[kind]
        words = values_note(kind, counted)
        texts.append(f"{count:,} × like {source}: {reason[:_LONGEST_REASON]}" + (f" (all: {words})" if words else ""))
    return "; ".join(texts)
