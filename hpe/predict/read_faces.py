"""``hpe predict``: what a network reads of the faces in pictures, folders, globs and shards.

A row a face. Columns, as far as the network has the heads:

- ``source``: the file, or the shard; ``key``: a shard's key, or the picture's path in the folder that was
  named, without its suffix; ``face``: 0 for the largest face of the picture, 1 for the next …;
- ``x0``, ``y0``, ``x1``, ``y1``: the face's box in pixels of the upright picture (all of it, where faces are
  given and no label of a dataset says where they are); ``score``: the detector's, empty where faces are given;
- ``emotion``: the likeliest, and ``emotion_neutral`` … ``emotion_contempt``: its probabilities;
- ``direction`` as the viewer sees it, and ``direction_forward`` … ``direction_down``: probabilities. A network
  without that head has the direction of our thresholds on its angles (``hpe.data.directions.OURS``), empty where
  they do not decide, and no probabilities;
- ``yaw``, ``pitch``, ``roll``: degrees, yaw positive to the picture's left, pitch positive up;
  ``yaw_sd`` …: their standard deviations, empty where the network tells none;
- ``valence``, ``arousal``: -1 … 1.

Pictures that cannot be read, and those without a face, give no row; ``skipped.jsonl`` names each with its
reason.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Final

import numpy as np
from PIL import Image

from hpe.core.distributed import named_device
from hpe.core.errors import EXIT_INCOMPLETE, EXIT_OK, UserError
from hpe.core.files import aside, make_folder, resolved
from hpe.core.progress import Bar, progress
from hpe.data.annotate import Marker, Reading, angles_note, card, photo, with_axes, with_cube
from hpe.data.crops import Box, CropRule
from hpe.data.detect import DETECTORS, WAYS_TO_INSTALL
from hpe.data.prefetch import ahead, one_thread
from hpe.data.shard_files import ShardFile
from hpe.data.shards import MANIFEST, Manifest
from hpe.landmarks.mesh import WHICH
from hpe.landmarks.model import model_folder
from hpe.models.views import PLAIN, Views
from hpe.pack.rows import read_rows
from hpe.pack.shard import RefusedError, labelled_box
from hpe.predict.face_finders import NO_FACE, Detected, Finder, Found, Given, Loaded, groups
from hpe.predict.inputs import Input, PictureFile, Skipped, find_inputs, items, pictures_in
from hpe.predict.mesh_finder import Meshed
from hpe.predict.network import Answerer, Answers, Predictor, RunPredictor, open_predictor
from hpe.predict.output import BOX, Row, format_of, open_table, readings
from hpe.sources import open_source, recognise
from hpe.sources.base import Raw

MARKERS: Final[dict[str, Marker | None]] = {"none": None, "axes": with_axes, "cube": with_cube}
GIVEN: Final = "given"
DRAWN: Final = "drawn"
SKIPPED: Final = "skipped.jsonl"
_USUAL_CROP: Final = "square-1.3@detector"
_NAMED: Final = 20
Labelled = dict[Path, list[tuple[Box, Box]]]
"""By resolved path the box of each face and that of its crop."""
_CARD_SIDES: Final = (256, 512)
_QUALITY: Final = 92


def predict(
    network: Path,
    inputs: Sequence[str],
    *,
    out: Path | None = None,
    form: str = "jsonl",
    draw: str = "none",
    faces: str = GIVEN,
    which: str = "best",
    batch: int = 64,
    device: str = "auto",
    weights: Path | None = None,
    crop: str | None = None,
    split: str | None = None,
    views: Views = PLAIN,
    precision: str | None = None,
) -> int:
    """Read every face of the inputs.

    Args:
        network: run folder, head-pose estimator, or a landmark model's folder.
        inputs: pictures, folders, tars, folders that ``hpe pack`` wrote, globs.
        out: folder of ``predictions.FORMAT``, ``skipped.jsonl`` and ``drawn/``; None: rows are printed.
        form: ``jsonl``, ``csv`` or ``parquet``.
        draw: ``axes`` or ``cube`` on annotated pictures, or ``none``.
        faces: ``given`` (a picture is a face), or a detector: ``mtcnn``, ``hog``. A landmark model looks for
            faces itself: the ``largest`` (also: ``given``), the one nearest to the ``centre``, or ``all``.
        which: a run's checkpoint: ``best``, ``last`` or a step's folder name.
        batch: faces that go through the network together.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        weights: an estimator's weights, in place of its YAML's.
        crop: rule for detected faces, in place of that of the network's training shards.
        split: only this split of folders that ``hpe pack`` wrote.
        views: how each face is looked at, by a run's network.
        precision: of a run's network: ``fp32``, ``bf16``, ``fp16`` or ``auto``; None: that of its training.

    Returns:
        The exit code: 1 when an input could not be read (it is named).

    Raises:
        UserError: no such network or inputs, or options that do not go together.
    """
    marker, written_as = _marker(draw, out), format_of(form)
    landmarks = model_folder(network)
    choices = DETECTORS if landmarks is None else WHICH
    if faces != GIVEN and faces not in choices:
        raise UserError(f"--faces {faces}: expected {GIVEN}, {' or '.join(choices)} (with this network)")
    if landmarks is not None and (weights or crop or views != PLAIN or precision):
        raise UserError(
            f"{network}: --weights, --crop, --flips, --centre and --precision are not for landmark models; leave them "
            "out"
        )
    if crop is not None and faces == GIVEN:
        raise UserError(f"--crop {crop}: only with --faces {' or '.join(DETECTORS)}; given faces are not cropped")
    if out is not None:
        _apart(out, inputs)
    found = find_inputs(inputs, split)
    if split is not None and not any(isinstance(one, ShardFile) and one.samples is not None for one in found):
        raise UserError(f"--split {split}: only folders that `hpe pack` wrote have splits, and none is named")
    where = named_device(device)
    threads = _threads()
    tally, labelled = Tally(), Labelled()
    with ExitStack() as stack:
        # Detectors and drawing are many small steps, which one thread each does faster than all threads one.
        pool = stack.enter_context(ThreadPoolExecutor(threads, "predict", initializer=one_thread))
        finder: Finder
        answerer: Answerer
        if landmarks is not None:
            keep, of_several = marker is not None, "largest" if faces == GIVEN else faces
            meshed = stack.enter_context(closing(Meshed(landmarks, of_several, keep_pictures=keep)))  # pyright: ignore[reportArgumentType]
            finder, answerer = meshed, meshed
        else:
            answerer = predictor = open_predictor(
                network, where,
                which=which, weights=weights, views=views, precision=precision, batch=batch, fall_back=device == "auto",
            )  # fmt: skip
            for told in notes_of(found, predictor):
                print(f"predict: {told}", file=sys.stderr, flush=True)
            if faces == GIVEN:
                labelled, named = labelled_faces(inputs, predictor)
                for told in (*named, *whole_photos(found, predictor, labelled), *other_crops(found, predictor)):
                    print(f"predict: {told}", file=sys.stderr, flush=True)
                finder = Given(predictor, keep_pictures=marker is not None, labelled=labelled)
            else:
                finder = Detected(predictor, faces, where, _rule(crop, predictor), pool)
        drawing = None
        if out is not None:
            make_folder(out, f"--out {out}")
            whole = landmarks is None and faces == GIVEN and not labelled
            drawing = Drawing(out / DRAWN, marker, whole=whole, pool=pool) if marker else None
        if out is not None:
            part = stack.enter_context(aside(out / SKIPPED))
            tally.file = stack.enter_context(part.open("w", encoding="utf-8"))
        table = out / f"predictions.{written_as}" if out is not None else None
        write = stack.enter_context(open_table(table, written_as, answerer.heads))
        bar = stack.enter_context(progress("predict", pictures_in(found), unit="images"))
        depth = batch if faces == GIVEN and marker is None else 2 * threads  # whole photos are large
        loaded = stack.enter_context(ahead(finder.load, items(found), threads=threads, depth=depth))
        for group in groups(loaded, batch):
            _do(group, finder, answerer, write, drawing, tally, batch, bar)
    tally.say(out)
    return EXIT_INCOMPLETE if tally.unread else EXIT_OK


def _apart(out: Path, inputs: Sequence[str]) -> None:
    """Refuse to write where pictures are read: the next run would take the drawings for pictures."""
    for text in inputs:
        if Path(text).is_dir() and resolved(out).is_relative_to(resolved(Path(text))):
            raise UserError(f"--out {out}: lies in the input folder {text}; give a folder elsewhere")


def _marker(draw: str, out: Path | None) -> Marker | None:
    if draw not in MARKERS:
        raise UserError(f"--draw {draw}: expected {', '.join(MARKERS)}")
    if draw != "none" and out is None:
        raise UserError(f"--draw {draw}: needs a folder for the pictures; give one with --out")
    return MARKERS[draw]


def _rule(crop: str | None, predictor: Predictor) -> CropRule:
    """The crop around a detected face: what the network's training pictures were, with the detector's box."""
    if crop is not None:
        return CropRule.parse(crop)
    rules = {replace(rule, basis="detector") for rule in predictor.crops if rule.shape != "none"}
    if len(rules) == 1:
        return rules.pop()
    print(
        f"predict: the crop rule that {predictor.name} was made for is not known here; taking {_USUAL_CROP} "
        "(another with --crop)",
        file=sys.stderr,
    )
    return CropRule.parse(_USUAL_CROP)


def notes_of(inputs: Sequence[Input], predictor: Predictor) -> list[str]:
    """What the user should know of the network's pictures and precision, each as a message."""
    told = []
    if isinstance(predictor, RunPredictor) and predictor.precision.name != predictor.trained:
        told.append(f"precision {predictor.precision.name}: {predictor.precision.why}")
    if predictor.note is not None and any(isinstance(one, PictureFile) for one in inputs):
        told.append(predictor.note)
    return told


def labelled_faces(inputs: Sequence[str], predictor: Predictor) -> tuple[Labelled, list[str]]:
    """Where the faces of raw datasets' pictures are, for a network that was made for crops from such labels.

    Empty where no input is the folder of a raw dataset that ``hpe pack`` knows, or the network's crop starts from
    something else. Also returns a message for each dataset.
    """
    rules = [rule for rule in predictor.crops if rule.shape != "none" and rule.basis != "detector"]
    found: Labelled = {}
    told = []
    for folder in dict.fromkeys(Path(text) for text in inputs if len(rules) == len(predictor.crops) == 1):
        if not folder.is_dir() or (folder / MANIFEST).is_file():
            continue
        try:
            name = recognise(folder).name
            rows = list(open_source(name, folder).rows())
        except UserError:  # a folder of pictures like any other
            continue
        before = len(found)
        for row in read_rows(rows):
            if isinstance(row, Raw) and isinstance(row.image, Path):
                with suppress(RefusedError):
                    box = labelled_box(row.record, rules[0])
                    found.setdefault(row.image.resolve(), []).append((box, rules[0].apply(box)))
        if len(found) > before:
            told.append(
                f"{folder}: the dataset {name}: {len(found) - before:,} pictures are cropped by its own labels "
                f"({rules[0]}), as the training pictures were"
            )
    return found, told


def whole_photos(inputs: Sequence[Input], predictor: Predictor, labelled: Iterable[Path] = ()) -> list[str]:
    """A message where picture files are given whole to a network that was made for crops, else nothing.

    The files may be crops already, which cannot be seen from here: so it is no refusal.
    """
    known = sorted(str(rule) for rule in predictor.crops)
    named = frozenset(labelled)
    whole = (one for one in inputs if isinstance(one, PictureFile) and one.path.resolve() not in named)
    if not known or str(CropRule()) in known or not any(whole):
        return []
    return [
        f"WARNING: pictures are taken whole (--faces {GIVEN}), and {predictor.name} was made for crops, "
        f"{' or '.join(known)}: of photos its angles are wrong by 20° and more. Let faces be found: --faces "
        f"{' or '.join(DETECTORS)} ({'; '.join(WAYS_TO_INSTALL.values())}), or a landmark model as the network"
    ]


def other_crops(inputs: Sequence[Input], predictor: Predictor) -> list[str]:
    """Folders of shards that were cropped by another rule than the network was made for, each as a message.

    One and the same network errs by 4.2° or 5.5° by the crop alone. Where either rule is unknown, nothing is said.
    """
    known, told = {str(rule) for rule in predictor.crops}, []
    folders = dict.fromkeys(one.path.parent for one in inputs if isinstance(one, ShardFile))
    for folder in folders if known else ():
        crop = Manifest.load(folder).crop if (folder / MANIFEST).is_file() else None
        if crop is not None and str(CropRule.parse(crop)) not in known:
            told.append(
                f"{folder} is cropped by {crop}, {predictor.name} was made for {' or '.join(sorted(known))}: expect "
                "larger errors; `hpe pose --recrop` crops anew where the shards hold a box or landmarks"
            )
    return told


def _threads() -> int:
    return min(len(os.sched_getaffinity(0)), 8)


def _do(
    group: Sequence[Loaded | Skipped],
    finder: Finder,
    answerer: Answerer,
    write: Callable[[Sequence[Row]], None],
    drawing: "Drawing | None",
    tally: "Tally",
    batch: int,
    bar: Bar,
) -> None:
    """Find the faces of some pictures, ask the network, write the rows and the drawings."""
    read = [one for one in group if isinstance(one, Loaded)]
    for one in group:
        if isinstance(one, Skipped):
            tally.skip(one)
    faces: list[Found] = []
    for one in finder.find(read):
        if isinstance(one, Found):
            faces.append(one)
        else:
            tally.skip(one)
    tally.pictures, tally.faces = tally.pictures + len(group), tally.faces + len(faces)
    rows: list[Row] = []
    marks: list[Reading] = []
    for start in range(0, len(faces), batch):
        part = faces[start : start + batch]
        answers = answerer.answer(np.stack([one.face for one in part]))
        rows += [_row(one, answers, place) for place, one in enumerate(part)]
        marks += [_reading(one, answers, place) for place, one in enumerate(part)]
    tally.silent += sum(None in (row.get("emotion", ""), row.get("yaw", ""), row.get("valence", "")) for row in rows)
    write(rows)
    if drawing is not None:
        pairs = zip(faces, marks, strict=True)
        grouped = [list(of_one) for _, of_one in itertools.groupby(pairs, key=lambda pair: id(pair[0].owner))]
        drawing.draw([(owned[0][0].owner, [mark for _, mark in owned]) for owned in grouped])
    bar.advance(len(group))


def _row(one: Found, answers: Answers, place: int) -> Row:
    item = one.owner.item
    box = {name: round(side, 2) for name, side in zip(BOX, one.box, strict=True)}
    score = None if one.score is None else round(one.score, 6)
    known = {"source": item.source, "key": item.key, "face": one.number, **box, "score": score}
    return known | readings(answers, place)


def _reading(one: Found, answers: Answers, place: int) -> Reading:
    angles = None
    if answers.angles is not None and np.isfinite(answers.angles[place]).all():
        yaw, pitch, roll = (float(angle) for angle in answers.angles[place])
        angles = (yaw, pitch, roll)
    shares = None if answers.emotion_p is None else answers.emotion_p[place]
    direction = None if answers.direction is None else int(answers.direction[place])
    return Reading(
        one.box,
        angles,
        None if direction is None or direction < 0 else direction,
        None if shares is None or not np.isfinite(shares).all() else [float(share) for share in shares],
        "" if angles is None else angles_note(angles),
    )


@dataclass
class Tally:
    """What became of the pictures."""

    pictures: int = 0
    faces: int = 0
    no_face: int = 0
    unread: int = 0
    silent: int = 0
    shown: int = 0
    file: IO[str] | None = None

    def skip(self, one: Skipped) -> None:
        """Count and name a picture, or a face, that gives no row."""
        self.unread += one.unread
        self.no_face += one.reason == NO_FACE
        if self.file is not None:
            said = {"source": one.source, "key": one.key, "reason": one.reason}
            print(json.dumps(said, ensure_ascii=False), file=self.file)
        if self.file is None or self.shown < _NAMED:
            print(f"predict: {one}", file=sys.stderr, flush=True)
        self.shown += 1

    def say(self, out: Path | None) -> None:
        """The last line."""
        text = f"predict: {_counted(self.faces, 'face')} in {_counted(self.pictures, 'picture')}"
        text += f"; {self.no_face:,} without a face, {self.unread:,} could not be read"
        if out is not None and self.shown:
            text += f"; each is named in {out / SKIPPED}"
        print(text, file=sys.stderr, flush=True)
        if self.silent:
            told = f"predict: WARNING: for {self.silent:,} faces the network gave no number (NaN)"
            print(f"{told}; its weights are damaged or overflow: try another --which", file=sys.stderr, flush=True)


class Drawing:
    """Writes annotated pictures, each under a name of its own."""

    def __init__(self, folder: Path, marker: Marker, *, whole: bool, pool: ThreadPoolExecutor) -> None:
        self._folder, self._marker, self._whole, self._pool = folder, marker, whole, pool
        self._taken: set[str] = set()

    def draw(self, pictures: Sequence[tuple[Loaded, list[Reading]]]) -> None:
        """Pictures with their faces."""
        paths = [self._path(one.item.place) for one, _ in pictures]
        for _ in self._pool.map(self._draw, pictures, paths):
            pass

    def _draw(self, given: tuple[Loaded, list[Reading]], path: Path) -> None:
        one, marks = given
        if one.picture is None:
            return
        image = Image.fromarray(one.picture)
        if self._whole:
            height = int(np.clip(one.height, *_CARD_SIDES))
            drawn = card(image, marks[0], height=height, marker=self._marker)
        else:
            drawn = photo(image, marks, self._marker)
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside(path) as part:
            drawn.save(part, "JPEG", quality=_QUALITY)

    def _path(self, place: str) -> Path:
        name = next(n for count in itertools.count(1) if (n := _numbered(place, count)).lower() not in self._taken)
        self._taken.add(name.lower())
        return self._folder / f"{name}.jpg"


def _numbered(place: str, count: int) -> str:
    return place if count == 1 else f"{place}-{count}"


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"
