"""What came out of packing: counts, a summary to read and contact sheets to look at."""

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hpe.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.records import Record

if TYPE_CHECKING:
    from PIL.Image import Image

    from hpe.shards import Manifest

HOPENET_DEGREES: Final = 99
"""Hopenet's bins end here; samples with a larger angle are kept, and counted."""
_BIN_DEGREES: Final = 15
_SIDES: Final = (0, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
_TILE: Final = 96
_COLUMNS, _ROWS = 10, 4
_MOST_SHARDS: Final = 64
_BAR: Final = 40


def tally(record: Record, extension: str, width: int, height: int) -> list[str]:
    """What to count one sample under: names such as ``emotion/happy`` and ``yaw/-15`` (a bin's start)."""
    side = max(edge for edge in _SIDES if edge <= min(width, height))
    names = [f"side/{side}", f"stored/{extension}"]
    names.append(f"emotion/{'-' if record.emotion is None else EMOTIONS[record.emotion]}")
    if record.direction is not None:
        names.append(f"direction/{DIRECTIONS[record.direction]}")
    angles = {name: getattr(record, name) for name in ANGLES}
    for name, angle in angles.items():
        if angle is not None:
            names.append(f"{name}/{int(angle // _BIN_DEGREES) * _BIN_DEGREES}")
    said = [angle for angle in angles.values() if angle is not None]
    if said:
        inside = all(abs(angle) <= HOPENET_DEGREES for angle in said)
        names.append("angles/within" if inside else "angles/beyond")
    optional = ("valence", "arousal", "box", "landmarks", "emotion_votes", "subject")
    return names + [f"has/{name}" for name in optional if getattr(record, name) is not None]


def category(reason: str) -> str:
    """What kind of reason this is: without its file names, quotations and numbers, and what follows a colon, but
    for the first of files and of what cannot be read."""
    kind = _PLACE.sub("", reason)
    kind = _PARTICULAR.sub(_in_general, kind)
    head, _, rest = kind.partition(": ")
    if not head.startswith(("*.", "cannot be")):
        return head
    return ": ".join(filter(None, (head, rest.partition(": ")[0])))


_PLACE: Final = re.compile(r" \([^\s()]+:\d+\)$")
_PARTICULAR: Final = re.compile(
    r"(?P<range>-?[\d,]+\.\.-?[\d,]+)|(?P<quoted>'[^']*'|\"[^\"]*\")|(?P<file>[^\s:()]*[^\s:().]\.(?P<ending>[A-Za-z]\w{1,4})\b)"
    r"(?P<line>:\d+)?|(?<![A-Za-z_])[-+±]?\d+(?:[,.]\d+)*(?![A-Za-z_])"
)


def _in_general(found: re.Match[str]) -> str:
    if found["range"]:
        return found["range"]
    if found["quoted"]:
        return "'…'"
    return f"*.{found['ending']}" if found["file"] else "N"


def counts(by_split: Mapping[str, Counter[str]], reasons: Counter[str], read: int) -> dict[str, Any]:
    """The counts of a manifest, from the tallies per split and the categories of what was refused."""

    def of(prefix: str, split: Counter[str]) -> dict[str, int]:
        return {n.partition("/")[2]: c for n, c in sorted(split.items()) if n.startswith(prefix + "/")}

    samples = {split: sum(of("emotion", found).values()) for split, found in by_split.items()}
    told: dict[str, Any] = {
        "read": read,
        "samples": sum(samples.values()),
        "quarantined": sum(reasons.values()),
        "splits": samples,
        "reasons": dict(sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    }
    for name in ("emotion", "direction", "angles", "has", "stored"):
        if any(of(name, found) for found in by_split.values()):
            told[name] = {split: of(name, found) for split, found in by_split.items()}
    return told


def summary(manifest: "Manifest", total: Counter[str], notes: Sequence[str]) -> str:
    """``summary.md``: what was packed, by split, emotion, direction, angle, size and reason."""
    told = manifest.counts
    lines = [f"# {manifest.dataset}", "", f"{manifest.variant}. Licence: {manifest.licence}", ""]
    lines.append(
        f"{told['read']:,} rows read = {told['samples']:,} samples in {len(manifest.shards):,} shards "
        f"+ {told['quarantined']:,} quarantined."
    )
    picture = ", ".join(f"{name} {value}" for name, value in manifest.image.items())
    lines += ["", f"Crop: {manifest.crop}. Pictures: {picture}.", ""]
    if not manifest.publishable:
        lines += ["**Not to be passed on**: the dataset's terms forbid publishing its pictures.", ""]
    lines += [f"- {note}" for note in notes]
    splits = list(told["splits"])
    lines += ["", *_table("", splits, {"samples": told["splits"]})]
    for name, order in (("emotion", EMOTIONS), ("direction", DIRECTIONS)):
        if name in told and any(label in order for split in splits for label in told[name][split]):
            rows = {label: {split: told[name][split].get(label, 0) for split in splits} for label in (*order, "-")}
            rows = {("none" if label == "-" else label): row for label, row in rows.items() if any(row.values())}
            lines += ["", *_table(name, splits, rows)]
    if "has" in told:
        said = sorted({name for split in splits for name in told["has"][split]})
        rows = {name: {split: told["has"][split].get(name, 0) for split in splits} for name in said}
        lines += ["", *_table("with", splits, rows)]
    if "angles" in told:
        inside = sum(told["angles"][split].get("within", 0) for split in splits)
        beyond = sum(told["angles"][split].get("beyond", 0) for split in splits)
        lines += [
            "",
            f"Angles: {inside + beyond:,} samples, {inside:,} of them within ±{HOPENET_DEGREES}°.",
            "",
        ]
        lines += _histograms(total)
    sides = {int(n.partition("/")[2]): c for n, c in total.items() if n.startswith("side/")}
    if sides:
        lines += ["", "Shorter side of the raw pictures, from … pixels:", "", "```"]
        lines += [_bar(f"{side}", sides[side], max(sides.values())) for side in sorted(sides)] + ["```"]
    if told["reasons"]:
        lines += ["", "| quarantined because | rows |", "|---|---:|"]
        lines += [f"| {reason.replace('|', '/')} | {count:,} |" for reason, count in told["reasons"].items()]
    return "\n".join(lines) + "\n"


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
        lines.append(f"{name}, from … degrees")
        lines += [_bar(_edge(edge), bins[edge], max(bins.values())) for edge in sorted(bins)]
    return [*lines, "```"]


def _edge(edge: int) -> str:
    return "< -180" if edge < -180 else f"{edge:+d}"


def _bar(label: str, count: int, most: int) -> str:
    return f"{label:>7} {'█' * max(1, round(_BAR * count / most))} {count:,}"


@dataclass(frozen=True, slots=True)
class ContactSheet:
    """A sheet to be drawn: where, its title, and encoded pictures."""

    path: Path
    title: str
    images: tuple[bytes, ...]


def contact_sheets(folder: Path, manifest: "Manifest") -> list[ContactSheet]:
    """A ``contact-<class>.png`` of forty pictures for each emotion, and for those without.

    Shards are in random order, so the first pictures are a random choice; at most the first 64 shards are
    looked through.
    """
    from hpe.shards import read_samples

    have: Counter[str] = Counter()
    for split in manifest.counts.get("emotion", {}).values():
        have.update(split)
    chosen: dict[str, list[bytes]] = {name: [] for name in sorted(have)}
    for shard in manifest.shards[:_MOST_SHARDS]:
        for sample in read_samples(folder / shard.name):
            emotion = sample.record.emotion
            images = chosen["-" if emotion is None else EMOTIONS[emotion]]
            if len(images) < _COLUMNS * _ROWS:
                images.append(sample.image)
        if all(len(chosen[name]) >= min(_COLUMNS * _ROWS, count) for name, count in have.items()):
            break
    return [
        ContactSheet(
            folder / f"contact-{'unlabelled' if name == '-' else name}.png",
            f"{manifest.dataset} · {'no emotion' if name == '-' else name} · {len(images)} of {have[name]:,}"
            + ("" if manifest.publishable else " · not to be passed on"),
            tuple(images),
        )
        for name, images in chosen.items()
        if images
    ]


def draw_sheet(sheet: ContactSheet) -> None:
    """Write the sheet, whole or not at all."""
    from hpe.files import aside

    with aside(sheet.path) as part:
        # Level 1: three times as quick as the default for a tenth more bytes.
        _sheet(sheet.title, sheet.images).save(part, "PNG", compress_level=1)


def _sheet(title: str, images: Sequence[bytes]) -> "Image":
    from PIL import Image, ImageDraw, ImageFont

    rows = -(-len(images) // _COLUMNS)
    gap, head = 2, 24
    sheet = Image.new("RGB", (_COLUMNS * (_TILE + gap) + gap, head + rows * (_TILE + gap) + gap), "#14161a")
    ImageDraw.Draw(sheet).text((8, 4), title, "#e8e8e8", ImageFont.load_default(14))
    for place, picture in _tiles(images):
        row, column = divmod(place, _COLUMNS)
        sheet.paste(picture, (gap + column * (_TILE + gap), head + gap + row * (_TILE + gap)))
    return sheet


def _tiles(images: Sequence[bytes]) -> "Iterator[tuple[int, Image]]":
    from PIL import Image, ImageOps

    from hpe.images import decode_rgb

    for place, data in enumerate(images):
        picture = Image.fromarray(decode_rgb(data))
        yield place, ImageOps.pad(picture, (_TILE, _TILE), color="#14161a")
