"""What makes metrics mean less than they seem: other framing, labels that were never learned, one answer for all."""

import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hpe.config.run import ShardsConfig
from hpe.core.console import count_of
from hpe.core.errors import UserError
from hpe.core.labels import BINS_REACH_DEGREES, DIRECTIONS, EMOTIONS
from hpe.data.crops import CropRule
from hpe.data.face_sizes import face_shares, sizes_differ
from hpe.data.shard_files import ALL_SPLITS, names_folder
from hpe.data.shards import MANIFEST, Manifest
from hpe.data.store import is_remote
from hpe.metrics.columns import guesses, labels
from hpe.stream import ShardSet
from hpe.stream.shard_sets import Shard, braces, resolve

if TYPE_CHECKING:
    import pyarrow as pa

_NEARLY_ALL: Final = 0.95
_FEWEST_FACES: Final = 50
_LETTERS: Final = 58
"""From A to z."""
_MOST_NAMES: Final = 100_000
_MOST_PATTERNS: Final = 1_000
"""What braces may stand for; more is not listed for the sake of a warning."""


def framing_differs(crops: Iterable[CropRule], faces: Mapping[str, float], tars: Sequence[Path]) -> list[str]:
    """Warnings if shards are cropped by another rule than a network's training images, or their faces differ in size.

    Args:
        crops: the rules of the training, as far as they are known.
        faces: how large the faces of the training are; empty if unknown.
        tars: the shards.
    """
    rules = {str(rule) for rule in crops}
    judged = {str(CropRule.parse(manifest.crop)) for _, manifest in _manifests(tars)}
    if rules and (others := judged - rules):
        return [
            f"The images are cropped by {' and '.join(sorted(others))}, the network was trained on "
            f"{' and '.join(sorted(rules))}: expect larger errors; pack with the crop rule of the training"
        ]
    differ = sizes_differ(faces, face_shares(tars)) if faces else None
    return [f"The framing differs from that of the training: {differ}; expect larger errors"] if differ else []


def seen_in_training(sets: Sequence[ShardsConfig], shards: Sequence[Shard]) -> list[str]:
    """A warning about shards that a network was trained on; none if the shards of its training lie elsewhere now.

    Args:
        sets: the training data of its config.
        shards: those that are judged.
    """
    learned: set[str] = set()
    patterns: list[tuple[str, str | None]] = []
    for one in sets:
        for text in [one.shards] if isinstance(one.shards, str) else one.shards:
            for part in _expanded(text):
                if (places := _places(part, one.split)) is None:
                    patterns.append((_pattern(part), one.split))
                else:
                    learned.update(places)

    def seen(place: str) -> bool:
        folder, _, name = place.rpartition("/")
        return place in learned or any(
            place == text
            or fnmatchcase(place, text)
            or (folder == text and (split in (None, ALL_SPLITS) or name.startswith(f"{split}-")))
            for text, split in patterns
        )

    if not (count := sum(seen(_place(shard.url)) for shard in shards)):
        return []
    return [
        f"{count:,} of {len(shards):,} shards were trained on: the metrics show what the network remembers, not how "
        "well it reads other faces; judge it on another split"
    ]


def _expanded(text: str) -> Sequence[str]:
    """A text with its braces expanded; as it is where they may stand for too many names to list for a warning."""
    count = 1.0 if not re.search(r"\{[^{}]*\{", text) else math.inf  # nested: their numbers are not bounded below
    for inside in re.findall(r"\{([^{}]*)\}", text):
        ends = re.fullmatch(r"(-?\d{1,15})\.\.(-?\d{1,15})(\.\..*)?|[A-Za-z]\.\.[A-Za-z](\.\..*)?", inside)
        if ends is None:
            count *= math.inf if ".." in inside else inside.count(",") + 1
        else:
            count *= abs(int(ends[2]) - int(ends[1])) + 1 if ends[1] else _LETTERS
    if count > (_MOST_PATTERNS if _is_pattern(text) else _MOST_NAMES):
        return [text]
    try:
        return braces(text)
    except UserError:
        return [text]


def _places(text: str, split: str | None) -> Sequence[str] | None:
    """The places of the shards that the training read; None if they would have to be looked for.

    For the sake of a warning no store is asked and no disk searched: the store may be out of reach, and the network
    that of a stranger.
    """
    if _is_pattern(text) or (is_remote(text) and not text.startswith("pipe:") and names_folder(text)):
        return None
    try:
        if is_remote(text) or not Path(text).is_dir():
            return [_place(text)]
        return [_place(shard.url) for shard in resolve([ShardSet(text, split)])[0]]
    except (UserError, OSError):  # such as a name that this file system finds too long
        return None


def _is_pattern(text: str) -> bool:
    return any(sign in text for sign in ("*" if is_remote(text) else "*?["))


def _pattern(text: str) -> str:
    """A pattern of places for :func:`fnmatch.fnmatchcase`."""
    # In a URL, ? and [ are no wildcards.
    return re.sub(r"[?[]", r"[\g<0>]", _place(text)) if is_remote(text) else _place(text)


def _place(url: str) -> str:
    """What one shard is recognised by however it is named: the path of its file, also of one that a command reads."""
    if url.startswith("pipe:"):
        try:
            words = shlex.split(url.removeprefix("pipe:"))
        except ValueError:  # a quote without its end
            words = url.split()
        url = next((word for word in words if word.endswith(".tar") and Path(word).is_file()), url)
    if is_remote(url):
        return url.rstrip("/")
    try:
        return str(Path(url).resolve())
    except (OSError, ValueError):  # no path: too long, or with a null byte
        return url


def copies_across_splits(tars: Sequence[Path]) -> Iterator[str]:
    """A warning for each folder of shards whose splits share images."""
    for folder, manifest in _manifests(tars):
        counted = manifest.counts.get("duplicates", {})
        if (count := counted.get("across_splits", 0)) and not counted.get("dropped"):
            yield (
                f"{folder.name}: copies of {count_of(count, 'image')} lie in another split: metrics of a network that "
                "was trained on them are too high; pack again without copies (--drop-duplicates exact, or near)"
            )


def _manifests(tars: Sequence[Path]) -> Iterator[tuple[Path, Manifest]]:
    for folder in dict.fromkeys(tar.parent for tar in tars):
        if (folder / MANIFEST).is_file():
            try:
                yield folder, Manifest.load(folder)
            except UserError:  # what cannot be read says nothing
                continue


def one_answer(counts: Mapping[str, int], faces: int) -> str | None:
    """A warning if nearly all of some faces get the same answer."""
    name = max(counts, key=lambda one: counts[one], default="")
    if faces < _FEWEST_FACES or counts[name] < _NEARLY_ALL * faces:
        return None
    return (
        f"{counts[name]:,} of {faces:,} faces get the answer {name}; if they do not all show it, the images may be "
        "framed, lit or coloured unlike those of the training: look at the crops of both"
    )


def answers_of(table: "pa.Table") -> Iterator[str]:
    """A warning for each head that gives nearly all faces one answer, although they have several labels."""
    for what, names in (("emotion", EMOTIONS), ("direction", DIRECTIONS)):
        truth, guess = labels(table, what, len(names)), guesses(table, what, len(names))
        if truth is None or guess is None:
            continue
        rows = truth.mask & guess.mask
        if len(np.unique(truth.value[rows])) < 2:
            continue
        counted = np.bincount(guess.choice[rows], minlength=len(names))
        if said := one_answer(dict(zip(names, counted.tolist(), strict=True)), int(rows.sum())):
            yield said


def untrained_labels(figures: Mapping[str, Any], trained: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """A sentence for each head whose labels here are not those of its training."""
    for what, names in (("emotion", EMOTIONS), ("direction", DIRECTIONS)):
        section = figures[what]
        if "per_class" not in section:
            continue
        support = {name: one["support"] for name, one in section["per_class"].items() if one["support"]}
        if what not in trained:
            if len(support) < len(names):
                yield (
                    f"The dataset has {len(support)} of {len(names)} {what}s, and it is not recorded on which the run "
                    "was trained: there are no metrics on shared labels."
                )
            continue
        learned = [names[index] for index in trained[what]]
        if unknown := {name: count for name, count in support.items() if name not in learned}:
            faces = sum(unknown.values())
            yield (
                f"The run was not trained on {_listed(unknown, 'and')}, the {what} of {faces:,} of {section['n']:,} "
                "samples: in the plain metrics they count as wrong; the metrics on shared labels leave them out."
            )
        lacking = {name: section["per_class"][name]["chosen"] for name in learned if name not in support}
        if chosen := sum(lacking.values()):
            yield (
                f"The dataset has no {_listed(lacking, 'or')}, which the run was trained on: {chosen:,} such answers "
                "count as wrong in the plain metrics; on shared labels they cannot be given."
            )


def _listed(names: Iterable[str], last: str) -> str:
    """``a, b and c``."""
    *others, end = names
    return f"{', '.join(others)} {last} {end}" if others else end


def beyond_bins(wide: int, angles: int) -> str:
    """What a network of 66 bins cannot predict."""
    reach = f"{BINS_REACH_DEGREES:g}°"
    return (
        f"{wide:,} of {angles:,} faces with angles have one of {reach} or more, which this network of 66 bins cannot "
        f"give: see the metrics within ±{reach}, or train with model.heads.pose.kind: sixd"
    )
