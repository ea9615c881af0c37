"""The results of packing: counts, a summary to read and contact sheets to look at."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hpe.core.console import count_of
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.crops import Box
from hpe.data.records import Record
from hpe.pack.reasons import values_note

if TYPE_CHECKING:
    from PIL.Image import Image

    from hpe.data.shards import Manifest, ShardInfo

HOPENET_DEGREES: Final = 99
"""Hopenet's bins end here; samples with a larger angle are kept, and counted apart."""
_BIN_DEGREES: Final = 15
_SIDES: Final = (0, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
_TILE: Final = 96
_COLUMNS, _ROWS = 10, 4
_MOST_SHARDS: Final = 64
_QUALITY: Final = 90
_BAR: Final = 40
_DIRECTION_SHEET: Final = "direction-"
_POSES, _UNLABELLED = "poses", "unlabelled"
SEVERAL_FACES: Final = "faces/several"
"""The name to count a picture under where a detector found more than one face."""


def tally(record: Record, extension: str, width: int, height: int) -> list[str]:
    """The names to count a sample under, such as ``emotion/happy`` and ``yaw/-15`` (a bin's start)."""
    side = max(edge for edge in _SIDES if edge <= min(width, height))
    names = [f"side/{side}", f"stored/{extension}"]
    names.append(f"emotion/{'-' if record.emotion is None else EMOTIONS[record.emotion]}")
    if record.direction is not None:
        names.append(f"direction/{DIRECTIONS[record.direction]}")
    angles = {name: getattr(record, name) for name in ANGLES}
    for name, angle in angles.items():
        if angle is not None:
            names.append(f"{name}/{int(angle // _BIN_DEGREES) * _BIN_DEGREES}")
    known = [angle for angle in angles.values() if angle is not None]
    if known:
        inside = all(abs(angle) <= HOPENET_DEGREES for angle in known)
        names.append("angles/within" if inside else "angles/beyond")
    names += [f"sheet/{name}" for name in sheets_of(record)]
    optional = ("valence", "arousal", "box", "landmarks", "emotion_votes", "subject")
    return names + [f"has/{name}" for name in optional if getattr(record, name) is not None]


def counts(by_split: Mapping[str, Counter[str]], reasons: Counter[str], read: int) -> dict[str, Any]:
    """The counts of a manifest, from the tallies per split and the categories of what was refused."""

    def of(prefix: str, split: Counter[str]) -> dict[str, int]:
        return {n.partition("/")[2]: c for n, c in sorted(split.items()) if n.startswith(prefix + "/")}

    samples = {split: sum(of("emotion", tallies).values()) for split, tallies in by_split.items()}
    found: dict[str, Any] = {
        "read": read,
        "samples": sum(samples.values()),
        "quarantined": sum(reasons.values()),
        "splits": samples,
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    }
    for name in ("emotion", "direction", "angles", "has", "stored"):
        if any(of(name, tallies) for tallies in by_split.values()):
            found[name] = {split: of(name, tallies) for split, tallies in by_split.items()}
    return found


def summary(manifest: "Manifest", total: Counter[str], notes: Sequence[str]) -> str:
    """``summary.md``: what was packed, by split, emotion, direction, angle, size and reason."""
    counted = manifest.counts
    lines = [f"# {manifest.dataset}", "", f"{manifest.variant}. Licence: {manifest.licence}", ""]
    lines.append(
        f"{count_of(counted['read'], 'row')} read = {count_of(counted['samples'], 'sample')} in "
        f"{count_of(len(manifest.shards), 'shard')} "
        f"+ {counted['quarantined']:,} quarantined."
    )
    picture = ", ".join(f"{name} {value}" for name, value in manifest.image.items())
    lines += ["", f"Crop: {manifest.crop_in_words}. Pictures: {picture}.", ""]
    if not manifest.publishable:
        lines += ["**Not to be passed on**: the dataset's terms forbid publishing its pictures, or are not stated.", ""]
    lines += [f"- {note}" for note in notes]
    lines += _label_tables(counted)
    if "angles" in counted:
        lines += _angles_lines(counted["angles"], total)
    sides = {int(n.partition("/")[2]): c for n, c in total.items() if n.startswith("side/")}
    if sides:
        lines += ["", "Shorter side of the raw pictures, pixels:", "", "```"]
        lines += [_bar(_range_of(side), sides[side], max(sides.values())) for side in sorted(sides)] + ["```"]
    if counted["reasons"]:
        lines += ["", "| quarantined because | rows |", "|---|---:|"]
        for reason, count in counted["reasons"].items():
            words = values_note(reason, counted)
            lines.append(f"| {reason.replace('|', '/')}{f': {words}' if words else ''} | {count:,} |")
    return "\n".join(lines) + "\n"


def _label_tables(counted: Mapping[str, Any]) -> list[str]:
    """Samples, emotions, directions, and what else the samples have, by split."""
    splits = list(counted["splits"])
    lines = ["", *_table("", splits, {"samples": counted["splits"]})]
    for name, order in (("emotion", EMOTIONS), ("direction", DIRECTIONS)):
        if name in counted and any(label in order for split in splits for label in counted[name][split]):
            rows = {label: {split: counted[name][split].get(label, 0) for split in splits} for label in (*order, "-")}
            rows = {("none" if label == "-" else label): row for label, row in rows.items() if any(row.values())}
            lines += ["", *_table(name, splits, rows)]
    if "has" in counted:
        names = sorted({name for split in splits for name in counted["has"][split]})
        rows = {name: {split: counted["has"][split].get(name, 0) for split in splits} for name in names}
        lines += ["", *_table("with", splits, rows)]
    return lines


def _angles_lines(by_split: Mapping[str, Mapping[str, int]], total: Counter[str]) -> list[str]:
    inside = sum(found.get("within", 0) for found in by_split.values())
    beyond = sum(found.get("beyond", 0) for found in by_split.values())
    text = f"Angles: {inside + beyond:,} samples, {inside:,} of them within ±{HOPENET_DEGREES}°."
    return ["", text, "", *_histograms(total)]


def _table(title: str, columns: Sequence[str], rows: Mapping[str, Mapping[str, int]]) -> list[str]:
    head = [f"| {title} | {' | '.join(columns)} | all |", "|---|" + "---:|" * (len(columns) + 1)]
    return head + [
        f"| {name} | {' | '.join(f'{row.get(c, 0):,}' for c in columns)} | {sum(row.values()):,} |"
        for name, row in rows.items()
    ]


def _histograms(total: Counter[str]) -> list[str]:
    lines = ["```"]
    for name in ANGLES:
        bins: Counter[int] = Counter()
        for label, count in total.items():
            if label.startswith(name + "/"):
                # Beyond ±180° (AFLW2000 has angles down to −972°) everything is one bar.
                bins[min(max(int(label.partition("/")[2]), -195), 180)] += count
        if not bins:
            continue
        lines.append(f"{name}, degrees ({_TOWARDS[name]})")
        lines += [_bar(_edge(edge), bins[edge], max(bins.values())) for edge in sorted(bins)]
    return [*lines, "```"]


_TOWARDS: Final = {"yaw": "+ to the picture's left", "pitch": "+ up", "roll": "+ clockwise"}


def _edge(edge: int) -> str:
    if not -180 <= edge < 180:
        return "below -180" if edge < 0 else "180 and more"
    return f"{edge} to {edge + _BIN_DEGREES}"


def _range_of(side: int) -> str:
    longer = [other for other in _SIDES if other > side]
    return f"{side} to {longer[0] - 1}" if longer else f"{side} and more"


def _bar(label: str, count: int, most: int) -> str:
    return f"{label:>12} {'█' * max(1, round(_BAR * count / most))} {count:,}"


@dataclass(frozen=True, slots=True)
class Tile:
    """A picture of a sheet, and what is drawn on it.

    Attributes:
        image: encoded, as it is stored.
        angles: yaw, pitch, roll in degrees, drawn as the head's axes; None draws none.
        box: of the face in the stored picture; None: the whole picture.
    """

    image: bytes
    angles: tuple[float, float, float] | None = None
    box: Box | None = None


@dataclass(frozen=True, slots=True)
class ContactSheet:
    """A sheet to draw: its file, its title and its pictures."""

    path: Path
    title: str
    tiles: tuple[Tile, ...]


def sheets_of(record: Record) -> list[str]:
    """The contact sheets for a sample: of its emotion and its direction; without these, poses or unlabelled."""
    found = [] if record.emotion is None else [EMOTIONS[record.emotion]]
    if record.direction is not None:
        found.append(_DIRECTION_SHEET + DIRECTIONS[record.direction])
    return found or [_POSES if _angles(record) else _UNLABELLED]


def contact_sheets(
    folder: Path, shards: Sequence["ShardInfo"], total: Mapping[str, int], title: tuple[str, str]
) -> list[ContactSheet]:
    """A ``contact-<class>.jpg`` of forty pictures for each emotion and direction; see :func:`sheets_of`.

    The sheets of directions and poses show the heads' axes where yaw and pitch are known, in order of yaw. Shards
    are in random order, so that the first pictures are a random choice; only the first 64 shards are read.

    Args:
        folder: of the shards, where the sheets are to be.
        shards: in order.
        total: of all samples; see :func:`tally`.
        title: how the title of a sheet begins and ends.
    """
    from hpe.data.shard_reader import read_samples

    have = {name.partition("/")[2]: count for name, count in sorted(total.items()) if name.startswith("sheet/")}
    chosen: dict[str, list[Record]] = {name: [] for name in have}
    images: dict[str, list[bytes]] = {name: [] for name in have}
    for shard in shards[:_MOST_SHARDS]:
        for sample in read_samples(folder / shard.name):
            for name in sheets_of(sample.record):
                if name in have and len(chosen[name]) < _COLUMNS * _ROWS:
                    chosen[name].append(sample.record)
                    images[name].append(sample.image)
            if all(len(chosen[name]) >= min(_COLUMNS * _ROWS, count) for name, count in have.items()):
                break
        else:
            continue
        break
    return [
        ContactSheet(
            folder / f"contact-{name}.jpg",
            " · ".join(
                text
                for text in (title[0], name.replace("-", " "), f"{len(records)} of {have[name]:,}",
                             _order_of(name, records), title[1])
                if text
            ),
            _tiles(name, records, images[name]),
        )
        for name, records in chosen.items()
        if records
    ]  # fmt: skip


def _angles(record: Record) -> tuple[float, float, float] | None:
    """Yaw, pitch and roll to draw; a missing roll is drawn as 0."""
    if record.yaw is None or record.pitch is None:
        return None
    return record.yaw, record.pitch, record.roll or 0.0


def _has_axes(name: str) -> bool:
    return name == _POSES or name.startswith(_DIRECTION_SHEET)


def _order_of(name: str, records: Sequence[Record]) -> str:
    if not _has_axes(name) or not any(map(_angles, records)):
        return ""
    return "from left to right" + (" · no roll given" if all(r.roll is None for r in records) else "")


def _tiles(name: str, records: Sequence[Record], images: Sequence[bytes]) -> tuple[Tile, ...]:
    if not _has_axes(name):
        return tuple(map(Tile, images))
    tiles = [Tile(image, _angles(record), record.box) for record, image in zip(records, images, strict=True)]
    return tuple(sorted(tiles, key=lambda tile: -tile.angles[0] if tile.angles else math.inf))


def draw_sheet(sheet: ContactSheet) -> None:
    """Write the sheet, whole or not at all."""
    from hpe.core.files import aside

    with aside(sheet.path) as part:
        # A PNG of photos is three times as large and takes ten times as long.
        _sheet(sheet.title, sheet.tiles).save(part, "JPEG", quality=_QUALITY, subsampling=0)


def _sheet(title: str, tiles: Sequence[Tile]) -> "Image":
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(tiles) // _COLUMNS)
    gap, head = 2, 24
    sheet = Image.new("RGB", (_COLUMNS * (_TILE + gap) + gap, head + rows * (_TILE + gap) + gap), "#14161a")
    ImageDraw.Draw(sheet).text((8, 4), title, "#e8e8e8", ImageFont.load_default(14))
    for place, tile in enumerate(tiles):
        row, column = divmod(place, _COLUMNS)
        sheet.paste(_drawn(tile), (gap + column * (_TILE + gap), head + gap + row * (_TILE + gap)))
    return sheet


def _drawn(tile: Tile) -> "Image":
    from PIL import Image, ImageOps

    from hpe.data.images import decode_small, image_size

    width, _ = image_size(tile.image)
    picture = Image.fromarray(decode_small(tile.image, _TILE))
    picture.thumbnail((_TILE, _TILE))
    if tile.angles is not None:
        from hpe.data.annotate import Overlay, with_axes

        scale = picture.width / width
        x0, y0, x1, y1 = (side * scale for side in tile.box) if tile.box else (0.0, 0.0, *map(float, picture.size))
        picture = with_axes(picture, Overlay((x0, y0, x1, y1), tile.angles))
    return ImageOps.pad(picture, (_TILE, _TILE), color="#14161a")
