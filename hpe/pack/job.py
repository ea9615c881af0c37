"""The job of ``hpe pack``: rows are read and spooled, splits drawn, shards made, and what came out is told."""

import itertools
import json
import pickle
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, Final, Literal, get_args

import numpy as np

from hpe.core.errors import UserError
from hpe.core.files import aside, write_text
from hpe.core.process_pool import Stopped, Workers
from hpe.core.progress import progress
from hpe.core.signals import signals
from hpe.data.crops import CropRule
from hpe.data.shards import QUARANTINE, Manifest
from hpe.pack import splits, summary
from hpe.pack.near_copies import HASH_BYTES, Copy, copies
from hpe.sources.base import NOT_ITS_OWN, Raw, Reject, Source, Unread

JOURNAL: Final = ".pack"
DUPLICATES: Final = "duplicates.jsonl"
SUMMARY: Final = "summary.md"
Drop = Literal["none", "exact", "near"]
_HASHED_AT_ONCE: Final = 500
_READ_AT_ONCE: Final = 128
_FEWEST_SHARDS: Final = 8
_FEWEST_SAMPLES: Final = 128
"""A small split is cut into shards of no fewer, so that several processes have something to do."""
_RANK: Final = {"test": 0, "val": 1, "train": 2}
_LARGEST_SIDE: Final = 4096
_DRAWN_SHARE: Final = 0.1
_FEW_STRANGERS: Final = 20
_SHARE_OF_STRANGERS: Final = 0.2


@dataclass(frozen=True, slots=True)
class Options:
    """What decides the bytes of the shards, beside the raw dataset.

    Attributes:
        crop: a crop rule, ``none`` (the centre square), ``keep`` (the original bytes), or None for the rule
            that suits the dataset.
        size: side of the stored pictures in pixels.
        grey: store one channel.
        quality: of the JPEGs, 1..100.
        splits: the dataset's ``own``, or all ``drawn`` anew whatever it names, or a folder of ``train.txt``,
            ``val.txt``, ``test.txt``.
        val_share, test_share: of the samples, of splits that are drawn (a tenth when None).
        detector: mtcnn or hog, for crop rules that start from the detector's box.
        drop: leave out copies: none, those of the same bytes, or near ones too.
    """

    crop: str | None = None
    size: int = 224
    grey: bool = False
    quality: int = 95
    samples_per_shard: int = 1000
    seed: int = 0
    splits: Path | Literal["own", "drawn"] = "own"
    val_share: float | None = None
    test_share: float | None = None
    detector: str = "mtcnn"
    drop: Drop = "none"

    def check(self) -> None:
        """Refuse what is impossible.

        Raises:
            UserError: an option out of its range.
        """
        if not 1 <= self.quality <= 100:
            raise UserError(f"--quality {self.quality}: expected 1 to 100")
        if not 8 <= self.size <= _LARGEST_SIDE:
            raise UserError(f"--size {self.size}: expected 8 to {_LARGEST_SIDE} pixels")
        if self.samples_per_shard < 1:
            raise UserError(f"--samples-per-shard {self.samples_per_shard}: expected 1 or more")
        val, test = self.shares
        if not (val >= 0 and test >= 0 and val + test < 1):
            raise UserError(
                f"--val-share {val:g}, --test-share {test:g}: expected two shares of 0 "
                "or more that leave something to train on, such as 0.1 and 0.1"
            )
        if self.drop not in get_args(Drop):
            raise UserError(f"--drop-duplicates {self.drop!r}: expected {', '.join(get_args(Drop))}")
        if self.crop == "keep" and self.grey:
            raise UserError("--grey with --crop keep: original bytes stay as they are; use --crop none, or no --grey")

    @property
    def shares(self) -> tuple[float, float]:
        """The shares of val and test that are drawn, where they are."""
        return (
            _DRAWN_SHARE if self.val_share is None else self.val_share,
            _DRAWN_SHARE if self.test_share is None else self.test_share,
        )

    def check_shares(self, dataset: str, named: Sequence[str]) -> None:
        """Refuse a share of a split that is not drawn.

        Raises:
            UserError: it was asked for, and the dataset or the lists say which samples those are.
        """
        if self.splits == "drawn" or (self.splits == "own" and not named):
            return
        for split, share in (("val", self.val_share), ("test", self.test_share)):
            if share and isinstance(self.splits, Path):
                raise UserError(f"--{split}-share: the lists in {self.splits} say who is in {split}; leave it out")
            if share and (split in named or split == "test"):
                raise UserError(
                    f"--{split}-share: {dataset} names its own splits ({', '.join(named)}); leave it out, or draw all "
                    "anew with --splits drawn"
                )


class _Spool:
    """Rows on disk, in an unnamed file: pickled (number, Raw)."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._ends = [0]

    def append(self, number: int, raw: Raw) -> None:
        data = pickle.dumps((number, raw), pickle.HIGHEST_PROTOCOL)
        self._file.write(data)
        self._ends.append(self._ends[-1] + len(data))

    def read(self, indices: Sequence[int]) -> tuple[bytes, ...]:
        found = []
        for index in indices:
            self._file.seek(self._ends[index])
            found.append(self._file.read(self._ends[index + 1] - self._ends[index]))
        return tuple(found)


@dataclass
class _Rows:
    """What is known of every row that may become a sample, in order of reading, and what was refused."""

    spool: _Spool
    rows: list[splits.Row] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    refused: list[tuple[int, str, str]] = field(default_factory=list)
    read: int = 0
    has: Counter[str] = field(default_factory=Counter)
    """How many of the rows say a box, and landmarks."""


@dataclass(frozen=True, slots=True)
class _Shard:
    name: str
    split: str
    rows: tuple[int, ...]
    """Indices into :class:`_Rows`."""


class Packing:
    """One run of the job."""

    def __init__(self, source: Source, out: Path, options: Options, stated: Mapping[str, Any], workers: int) -> None:
        self.source, self.out, self.options = source, out, options
        self.stated, self._processes = stated, workers
        self.keep = stated["crop"] == "keep"
        self.notes = [*source.notes, *(source.splits_notes if options.splits == "own" else ())]

    def run(self) -> Manifest:
        from hpe.data.recipe import Recipe

        crop = None if self.keep else CropRule.parse(self.stated["crop"])
        self.recipe = Recipe(crop, self.options.size, self.options.grey, self.options.quality, self.options.detector)
        with (
            tempfile.TemporaryFile(dir=self.out / JOURNAL) as file,
            signals() as stop,
            Workers(self._processes, stop, preload="hpe.pack.shard") as workers,
        ):
            self.stop, self.workers = stop, workers
            rows = self._read(_Spool(file))
            if not rows.rows:
                raise UserError(
                    f"{self.source.name}: {rows.read:,} rows read, and none can become a sample "
                    f"({_most_frequent(rows.refused) or 'no rows'})"
                )
            strangers = sum(reason.startswith(NOT_ITS_OWN) for _, _, reason in rows.refused)
            if strangers > max(_FEW_STRANGERS, rows.read * _SHARE_OF_STRANGERS):
                raise UserError(
                    f"{self.source.name}: {strangers:,} of {rows.read:,} pictures are {NOT_ITS_OWN} this dataset; "
                    "perhaps several datasets lie here: give the folder of one of them"
                )
            needed = None if crop is None or crop.shape == "none" else crop.basis
            if needed in ("box", "landmarks") and not rows.has[needed]:
                raise UserError(
                    f"--crop {self.recipe.crop}: none of {len(rows.rows):,} rows of {self.source.name} says "
                    f"{'a box' if needed == 'box' else needed}; use --crop none, or a rule that ends in @detector"
                )
            split = self._split(rows)
            dropped = self._drop(rows, split)
            shards = self._plan(rows, split)
            self._make(rows, shards)
            return self._finish(rows, shards, dropped)

    def _read(self, spool: _Spool) -> _Rows:
        found, keys = _Rows(spool), set[str]()
        with progress("read", self.source.total, unit="rows") as bar:
            for number, row in enumerate(self._rows()):
                found.read += 1
                bar.advance()
                if self.stop.caught is not None:
                    raise Stopped
                if isinstance(row, Reject):
                    found.refused.append((number, row.source, row.reason))
                    continue
                record = row.record
                problems = record.problems()
                if row.key in keys:
                    problems.append(f"an earlier row has this key: {row.key}")
                if record.split is not None and record.split not in splits.SPLITS:
                    problems.append(f"split {record.split!r} is none of {', '.join(splits.SPLITS)}")
                if problems:
                    found.refused.append((number, record.source or row.key, "; ".join(problems)))
                    continue
                keys.add(row.key)
                spool.append(number, row)
                found.has.update(name for name in ("box", "landmarks") if getattr(record, name) is not None)
                found.rows.append(splits.Row(row.key, record.subject, record.emotion, record.split, record.source))
                found.numbers.append(number)
        return found

    def _rows(self) -> Iterator[Raw | Reject]:
        rows = self.source.rows()
        chunks = iter(lambda: tuple(itertools.islice(rows, _READ_AT_ONCE)), ())
        try:
            first = next(chunks, ())
            chunks = itertools.chain((first,), chunks)
            if any(isinstance(row, Unread) for row in first):
                chunks = self.workers.run(read_rows, chunks)
            for row in itertools.chain.from_iterable(chunks):
                yield row.read() if isinstance(row, Unread) else row
        except OSError as error:
            raise UserError(
                f"{self.source.name}: reading the raw dataset stopped: {error}; nothing was lost, mend it and "
                "run the same command again"
            ) from error
        except (UserError, Stopped):
            raise
        except Exception as error:
            raise UserError(
                f"{self.source.name}: reading the raw dataset stopped at a row that its reader does not understand: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _split(self, rows: _Rows) -> list[str | None]:
        options = self.options
        if isinstance(options.splits, Path):
            lists = splits.Lists(options.splits)
            found: list[str | None] = lists.assign(rows.rows)
            self.how = f"splits: by the lists in {options.splits.name}/"
        else:
            own = self.source.splits if options.splits == "own" else ()
            val, test = options.shares
            found = [*splits.draw(rows.rows, seed=options.seed, val_share=val, test_share=test, official=own)]
            official = ", ".join(own)
            if not official:
                grouped = any(row.subject is not None for row in rows.rows)
                labelled = any(row.emotion is not None for row in rows.rows)
                how = [f"drawn with seed {options.seed}", *["by subject"] * grouped]
                self.how = "splits: " + ", ".join([*how, *["stratified by emotion"] * labelled])
            elif set(found) <= set(own):
                self.how = f"splits: the dataset's own ({official})"
            else:
                self.how = f"splits: the dataset's own ({official}); val was cut from train with seed {options.seed}"
        self.notes.append(self.how)
        if leaks := splits.shared_subjects(rows.rows, found):
            subject, where = next(iter(leaks.items()))
            self.notes.append(
                f"LEAK: {len(leaks):,} subjects stand in more than one split, such as {subject} in "
                f"{' and '.join(where)}; figures on those splits are too good"
            )
        return found

    def _drop(self, rows: _Rows, split: list[str | None]) -> list[Copy] | None:
        """The copies that are left out; sets their split to None. None when copies stay."""
        if self.options.drop == "none":
            return None
        from hpe.pack.shard import fingerprints

        size = len(rows.rows)
        exact, near = np.zeros((size, 16), np.uint8), np.zeros((size, HASH_BYTES), np.uint8)
        seen = np.zeros(size, bool)
        place = {number: index for index, number in enumerate(rows.numbers)}
        indices = [index for index in range(size) if split[index] is not None]
        portions = [indices[at : at + _HASHED_AT_ONCE] for at in range(0, size, _HASHED_AT_ONCE)]
        jobs = (rows.spool.read(portion) for portion in portions if portion)
        function = partial(fingerprints, self.recipe)
        with progress("look for copies", len(indices), unit="images") as bar:
            for found in self.workers.run(function, jobs):
                for number, one, other in found:
                    index = place[number]
                    seen[index] = True
                    exact[index], near[index] = np.frombuffer(one, np.uint8), np.frombuffer(other, np.uint8)
                bar.advance(len(found))
        known = np.flatnonzero(seen)
        if self.options.drop == "exact":
            near[:] = 0
        rank = [_RANK[split[i] or "train"] for i in known]
        found = copies(exact[known], near[known], rank, [rows.rows[i].subject for i in known])
        told = [Copy(int(known[c.first]), int(known[c.copy]), c.bits) for c in found]
        self.duplicates = self._told_copies(rows.rows, split, told, dropped=True)
        for copy in told:
            kind = "the same stored bytes" if copy.bits is None else f"{copy.bits} of 256 bits differ"
            row = rows.rows[copy.copy]
            reason = f"duplicate: shows what {rows.rows[copy.first].key} shows ({kind})"
            rows.refused.append((rows.numbers[copy.copy], row.source or row.key, reason))
            split[copy.copy] = None
        return told

    def _plan(self, rows: _Rows, split: Sequence[str | None]) -> list[_Shard]:
        dropped = {number for number, _, _ in rows.refused}
        for index, name in enumerate(split):
            if name is None and rows.numbers[index] not in dropped:
                row = rows.rows[index]
                rows.refused.append((rows.numbers[index], row.source or row.key, "in none of the lists of --splits"))
        shards: list[_Shard] = []
        for name in splits.SPLITS:
            members = [index for index, its in enumerate(split) if its == name]
            seed, keys = self.options.seed, rows.rows
            members.sort(key=lambda index: (splits.order(seed, keys[index].key), keys[index].key))
            # Equal parts: a last shard of three samples would be read as often as the others.
            enough = min(_FEWEST_SHARDS, len(members) // _FEWEST_SAMPLES)
            parts = max(-(-len(members) // self.options.samples_per_shard), enough)
            for part in range(parts):
                chosen = members[part * len(members) // parts : (part + 1) * len(members) // parts]
                shards.append(_Shard(f"{name}-{part:06d}.tar", name, tuple(chosen)))
        return shards

    def _make(self, rows: _Rows, shards: Sequence[_Shard]) -> None:
        from hpe.pack.shard import Job, StaleError, make_shard

        names = {shard.name for shard in shards}
        for path in (self.out / JOURNAL).glob("*.tar.json"):
            if path.name.removesuffix(".json") not in names:
                raise self._changed(path.name.removesuffix(".json"))
        jobs = (Job(self.out, shard.name, shard.split, self.recipe, rows.spool.read(shard.rows)) for shard in shards)
        with progress("pack", sum(len(shard.rows) for shard in shards), unit="images") as bar:
            try:
                for done in self.workers.run(make_shard, jobs):
                    bar.advance(done)
            except StaleError as error:
                raise self._changed(str(error)) from error

    def _changed(self, shard: str) -> UserError:
        return UserError(
            f"{self.out}: {shard} was made of other rows: the raw dataset has changed since this job began; "
            "bring it back, pack into another folder, or delete this one"
        )

    def _finish(self, rows: _Rows, shards: Sequence[_Shard], dropped: list[Copy] | None) -> Manifest:
        from hpe.pack.shard import Outcome, journal

        by_split: dict[str, Counter[str]] = {shard.split: Counter() for shard in shards}
        refused, infos = list(rows.refused), []
        known: list[tuple[int, str, str]] = []
        place = {number: index for index, number in enumerate(rows.numbers)}
        split: list[str | None] = [None] * len(rows.rows)
        for shard in shards:
            outcome = Outcome.load(journal(self.out, shard.name))
            if outcome is None:
                raise UserError(f"{self.out}: the journal of {shard.name} is gone; run the same command again")
            by_split[shard.split].update(outcome.counts)
            refused += outcome.refused
            infos += [outcome.shard] if outcome.shard else []
            for number, _, _, _, exact, near in outcome.samples:
                split[place[number]] = shard.split
                known.append((place[number], exact, near))
        if not infos:
            raise UserError(f"{self.out}: none of {rows.read:,} rows became a sample ({_most_frequent(refused)})")
        if dropped is None:
            self.duplicates = self._search(rows, split, known)
        reasons = Counter(summary.category(reason) for _, _, reason in refused)
        told = summary.counts(by_split, reasons, rows.read)
        assert told["samples"] + told["quarantined"] == rows.read, "rows were lost"
        told["duplicates"] = _count_copies(self.duplicates)
        self.notes += _told_duplicates(told["duplicates"])
        self._write_quarantine(refused)
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in self.duplicates]
        write_text(self.out / DUPLICATES, "".join(lines))
        manifest = Manifest(
            dataset=self.source.name,
            variant=self.source.variant,
            licence=self.source.licence,
            publishable=self.source.publishable,
            crop="none" if self.keep else self.stated["crop"],
            image=self._picture(),
            shards=tuple(infos),
            counts=told,
            options=dict(self.stated),
            notes=tuple(self.notes),
        )
        total = sum(by_split.values(), Counter[str]())
        sheets = summary.contact_sheets(self.out, manifest, total)
        for _ in self.workers.run(summary.draw_sheet, sheets):
            pass
        text = summary.summary(manifest, total, self.notes)
        write_text(self.out / SUMMARY, text)
        manifest.save(self.out)
        print(text)
        return manifest

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

    def _search(
        self, rows: _Rows, split: Sequence[str | None], known: list[tuple[int, str, str]]
    ) -> list[dict[str, Any]]:
        known.sort()
        exact = np.frombuffer(bytes.fromhex("".join(e for _, e, _ in known)), np.uint8).reshape(len(known), -1)
        near = np.frombuffer(bytes.fromhex("".join(n for _, _, n in known)), np.uint8).reshape(len(known), -1)
        rank = [_RANK[split[index] or "train"] for index, _, _ in known]
        found = copies(exact, near, rank, [rows.rows[index].subject for index, _, _ in known])
        told = [Copy(known[c.first][0], known[c.copy][0], c.bits) for c in found]
        return self._told_copies(rows.rows, split, told, dropped=False)

    def _told_copies(
        self, rows: Sequence[splits.Row], split: Sequence[str | None], found: Sequence[Copy], *, dropped: bool
    ) -> list[dict[str, Any]]:
        return [
            {
                "first": rows[copy.first].key,
                "copy": rows[copy.copy].key,
                "kind": "exact" if copy.bits is None else "near",
                "bits": copy.bits or 0,
                "splits": [split[copy.first], split[copy.copy]],
                "emotions": [rows[copy.first].emotion, rows[copy.copy].emotion],
                "dropped": dropped,
            }
            for copy in found
        ]


def _most_frequent(refused: Sequence[tuple[int, str, str]]) -> str:
    why = Counter(summary.category(reason) for _, _, reason in refused).most_common(3)
    return "; ".join(f"{count:,} × {reason}" for reason, count in why)


def read_rows(rows: Sequence[Raw | Reject | Unread]) -> tuple[Raw | Reject, ...]:
    """Rows with their labels read, in a worker process."""
    return tuple(row.read() if isinstance(row, Unread) else row for row in rows)


def _count_copies(told: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    return {
        "exact": sum(line["kind"] == "exact" for line in told),
        "near": sum(line["kind"] == "near" for line in told),
        "across_splits": sum(len(set(line["splits"])) > 1 for line in told),
        "labels_differ": sum(len(set(line["emotions"])) > 1 for line in told),
        "dropped": sum(line["dropped"] for line in told),
    }


def _told_duplicates(counted: Mapping[str, int]) -> list[str]:
    if not counted["exact"] + counted["near"]:
        return ["duplicates: none found"]
    what = "were dropped" if counted["dropped"] else "stay (--drop-duplicates near drops them)"
    return [
        f"duplicates: {counted['exact']:,} exact and {counted['near']:,} near copies {what}; "
        f"{counted['across_splits']:,} across splits, {counted['labels_differ']:,} with another emotion than "
        f"the first; named in {DUPLICATES}"
    ]
