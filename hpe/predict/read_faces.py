"""``hpe predict``: what a network predicts for the faces in images, folders, globs and shards (videos: video.py).

The table has one row per face. Its columns, as far as the network has the heads:

- ``source``: the file, or the shard; ``key``: the sample's key in the shard, or the image's path inside the folder
  on the command line, without its suffix; ``face``: 0 for the largest face of the image, 1 for the next …;
- ``x0``, ``y0``, ``x1``, ``y1``: the face's box in pixels of the upright image. With given faces the box is the
  whole image, unless a label of the dataset has the face's box. ``score``: the detector's, empty for given faces;
- ``emotion``: the most probable, and ``emotion_neutral`` … ``emotion_contempt``: its probabilities;
- ``direction`` as the viewer sees it, and ``direction_forward`` … ``direction_down``: probabilities. Without a
  direction head, our thresholds on the angles (``hpe.data.directions.OURS``) give the direction, empty where they
  do not decide, and there are no probabilities;
- ``yaw``, ``pitch``, ``roll``: degrees, yaw positive to the image's left, pitch positive up;
  ``yaw_sd`` …: their standard deviations, empty where the network gives none;
- ``valence``, ``arousal``: -1 … 1.

Images that cannot be read, and images without a face, give no row; ``skipped.jsonl`` lists each with its reason.
"""

import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Final

from PIL import Image

from hpe.core.console import count_of, say
from hpe.core.devices import cores, named_device
from hpe.core.errors import EXIT_INCOMPLETE, EXIT_OK, UserError
from hpe.core.files import aside, aside_unsynced, make_folder, resolved
from hpe.core.progress import progress
from hpe.data.annotate import Marker
from hpe.data.crops import Box, CropRule
from hpe.data.detect import DETECTORS
from hpe.data.face_sizes import face_shares, sizes_differ
from hpe.data.image_files import in_words
from hpe.data.images import pixels_of
from hpe.data.prefetch import ahead, one_thread
from hpe.data.shard_files import ShardFile
from hpe.data.shards import MANIFEST, Manifest
from hpe.evaluate.warnings import one_answer
from hpe.landmarks.mesh import WHICH
from hpe.landmarks.model import model_folder
from hpe.models.views import PLAIN
from hpe.pack.rows import read_rows
from hpe.pack.shard import RefusedError, labelled_box
from hpe.predict.face_finders import (
    NO_FACE,
    DetectedFaces,
    FaceFinder,
    FoundFace,
    GivenFaces,
    LoadedImage,
    detector_rule,
    groups,
)
from hpe.predict.faces import MARKERS, Face, Row, answered, columns, drawn, tell_without_axes
from hpe.predict.inputs import ImageFile, Input, Skipped, find_inputs, find_videos, images_in, items, split_inputs
from hpe.predict.mesh_finder import MeshFinder
from hpe.predict.network import Answerer, Predictor, RunPredictor, open_predictor
from hpe.predict.options import AUTO, GIVEN, PredictOptions
from hpe.predict.output import DRAWN, Format, format_of, open_table, table_in, written
from hpe.predict.video import read_videos
from hpe.predict.whole_photos import whole_photos
from hpe.sources import open_source, recognise
from hpe.sources.base import Raw

SKIPPED: Final = "skipped.jsonl"
_PRINTED_SKIPS: Final = 20
Labelled = dict[Path, list[tuple[Box, Box]]]
"""For each resolved path: the box of each face, and the box of its crop."""
_QUALITY: Final = 92


def predict(network: Path, inputs: Sequence[str], options: PredictOptions) -> int:
    """Predict for every face of the inputs.

    Args:
        network: run folder, head-pose estimator, or folder of a landmark model.
        inputs: images, folders, tar files, folders of shards, globs; or videos and cameras.

    Returns:
        The exit code: 1 if an input could not be read, or its drawing not be written (a message gives its name).

    Raises:
        UserError: there is no such network or input, or two options exclude each other.
    """
    if (videos := find_videos(inputs)) is not None:
        if options.out is not None:
            _refuse_out_in_inputs(options.out, inputs)
        return read_videos(network, videos, options)
    if options.steady != PredictOptions().steady:
        raise UserError(f"--steady {options.steady:g}: only for videos and cameras; leave it out")
    draw = "none" if options.draw == AUTO else options.draw
    faces = GIVEN if options.faces == AUTO else options.faces
    return _read_images(network, inputs, replace(options, draw=draw, faces=faces))


def _read_images(network: Path, inputs: Sequence[str], options: PredictOptions) -> int:
    marker, table_format = _marker(options.draw, options.out), format_of(options.form)
    landmarks = model_folder(network)
    _check_options(network, landmarks, options)
    if options.out is not None:
        _refuse_out_in_inputs(options.out, inputs)
    found, passed = split_inputs(_find_inputs(inputs, options.split))
    if passed:
        _print_notes([f"{count_of(passed.total(), 'other file')} passed over: {in_words(passed)}"])
    max_pixels = pixels_of(options.max_megapixels)
    device = named_device(options.device)
    threads = _threads()
    with ExitStack() as stack:
        # Detectors and drawing are many small steps: several images with one thread each are faster than one image
        # with all threads.
        pool = stack.enter_context(ThreadPoolExecutor(threads, "predict", initializer=one_thread))
        if landmarks is not None:
            which = "largest" if options.faces == GIVEN else options.faces
            mesh = MeshFinder(landmarks, which, keep_pictures=marker is not None, max_pixels=max_pixels)  # pyright: ignore[reportArgumentType]
            opened = _Opened(stack.enter_context(closing(mesh)), mesh)
        else:
            predictor = open_predictor(
                network, device,
                which=options.which, weights=options.weights, views=options.views, precision=options.precision,
                batch=options.batch, fall_back=options.device == "auto",
            )  # fmt: skip
            _print_notes(notes_of(found, predictor))
            if options.faces == GIVEN:
                opened = _open_given(predictor, inputs, found, max_pixels, keep_pictures=marker is not None)
            else:
                rule, notes = detector_rule(options.crop, predictor)
                _print_notes(notes)
                finder = DetectedFaces(predictor, options.faces, device, rule, pool, max_pixels)
                opened = _Opened(finder, predictor)
        # After the network is open, so that a wrong option leaves no folder behind.
        results = _open_results(stack, options.out, table_format, opened, marker, pool)
        results.tally.passed = passed.total()
        bar = stack.enter_context(progress("predict", images_in(found), unit="images"))
        depth = options.batch if options.faces == GIVEN and marker is None else 2 * threads  # whole photos are large
        loaded = stack.enter_context(ahead(opened.finder.load, items(found), threads=threads, depth=depth))
        for group in groups(loaded, options.batch):
            _process(group, opened, results, options.batch)
            bar.advance(len(group))
    # After the files are closed: the summary names skipped.jsonl, which exists only then.
    results.tally.summarise(written(options.out, table_format, drawn=marker is not None))
    if isinstance(opened.finder, MeshFinder) and (faces := opened.finder.without_points):
        _print_notes([f"{count_of(faces, 'face')} that the detector finds and the mesh does not: no row"])
    return EXIT_INCOMPLETE if results.tally.unread or results.tally.undrawn else EXIT_OK


@dataclass(frozen=True, slots=True)
class _Opened:
    """A network that is ready.

    Attributes:
        finder: finds the faces in images.
        answerer: predicts for faces.
    """

    finder: FaceFinder
    answerer: Answerer


@dataclass(frozen=True, slots=True)
class _Results:
    """Where the results go: rows into the table, annotated images (if any) into a folder, counts into the tally."""

    write: Callable[[Sequence[Row]], None]
    drawing: "Drawing | None"
    tally: "Tally"


def _check_options(network: Path, landmarks: Path | None, options: PredictOptions) -> None:
    choices = DETECTORS if landmarks is None else WHICH
    if options.faces != GIVEN and options.faces not in choices:
        raise UserError(f"--faces {options.faces}: expected {GIVEN}, {' or '.join(choices)} (with this network)")
    if landmarks is not None and (options.weights or options.crop or options.views != PLAIN or options.precision):
        raise UserError(
            f"{network}: landmark models do not take --weights, --crop, --flips, --centre or --precision; leave them "
            "out"
        )
    if options.crop is not None and options.faces == GIVEN:
        raise UserError(
            f"--crop {options.crop}: only with --faces {' or '.join(DETECTORS)}; given faces are not cropped"
        )


def _refuse_out_in_inputs(out: Path, inputs: Sequence[str]) -> None:
    """Refuse to write into an input folder: the next run would read the annotated images as input."""
    for text in inputs:
        if Path(text).is_dir() and resolved(out).is_relative_to(resolved(Path(text))):
            raise UserError(f"--out {out}: lies in the input folder {text}; choose a folder elsewhere")


def _find_inputs(inputs: Sequence[str], split: str | None) -> list[Input]:
    found = find_inputs(inputs, split)
    if split is not None and not any(isinstance(one, ShardFile) and one.samples is not None for one in found):
        raise UserError(f"--split {split}: only folders that `hpe pack` wrote have splits, and no input is one")
    return found


def _open_given(
    predictor: Predictor, inputs: Sequence[str], found: Sequence[Input], max_pixels: int, *, keep_pictures: bool
) -> _Opened:
    """The network for given faces, with warnings where the images do not look like its training images."""
    labelled, notes = labelled_faces(inputs, predictor)
    _print_notes(
        [
            *notes,
            *whole_photos(found, predictor, labelled),
            *other_crops(found, predictor),
            *other_sizes(found, predictor),
        ]
    )
    finder = GivenFaces(predictor, keep_pictures=keep_pictures, labelled=labelled, max_pixels=max_pixels)
    return _Opened(finder, predictor)


def _open_results(
    stack: ExitStack, out: Path | None, form: Format, opened: _Opened, marker: Marker | None, pool: ThreadPoolExecutor
) -> _Results:
    """Open the files of the results; ``stack`` closes them, and drops them after an error."""
    tally, drawing, table = Tally(), None, None
    if out is not None:
        make_folder(out, f"--out {out}")
        table = table_in(out, form)
        part = stack.enter_context(aside(out / SKIPPED))
        tally.file = stack.enter_context(part.open("w", encoding="utf-8"))
        if marker is not None:
            tell_without_axes(opened.answerer.heads)
            drawing = Drawing(out / DRAWN, marker, tally, pool)
    write = stack.enter_context(open_table(table, form, columns(opened.answerer.heads)))
    return _Results(write, drawing, tally)


def _print_notes(notes: Iterable[str]) -> None:
    for note in notes:
        say(f"predict: {note}")


def _marker(draw: str, out: Path | None) -> Marker | None:
    if draw == "none":
        return None
    if draw not in MARKERS:
        raise UserError(f"--draw {draw}: expected none, {', '.join(MARKERS)}")
    if out is None:
        raise UserError(f"--draw {draw}: needs a folder for the annotated images; choose one with --out")
    return MARKERS[draw]


def notes_of(inputs: Sequence[Input], predictor: Predictor) -> list[str]:
    """What the user should know about the network's precision and its input images, as messages."""
    notes = []
    if isinstance(predictor, RunPredictor) and predictor.precision.name != predictor.trained:
        notes.append(f"precision {predictor.precision.name}: {predictor.precision.why}")
    if any(isinstance(one, ImageFile) for one in inputs):
        notes += predictor.notes
    return notes


def labelled_faces(inputs: Sequence[str], predictor: Predictor) -> tuple[Labelled, list[str]]:
    """Where the faces of a raw dataset's images are, for a network whose training crops came from such labels.

    Empty if no input is the folder of a raw dataset that ``hpe pack`` knows, or if the network's crop rule does not
    start from labels. Also returns one message per dataset.
    """
    rules = [rule for rule in predictor.crops if rule.shape != "none" and rule.basis != "detector"]
    found: Labelled = {}
    notes = []
    for folder in dict.fromkeys(Path(text) for text in inputs if len(rules) == len(predictor.crops) == 1):
        if not folder.is_dir() or (folder / MANIFEST).is_file():
            continue
        try:
            name = recognise(folder).name
            rows = list(open_source(name, folder).rows())
        except UserError:  # an ordinary folder of images
            continue
        before = len(found)
        for row in read_rows(rows):
            if isinstance(row, Raw) and isinstance(row.image, Path):
                # A row without the label of the crop rule has no box: its image is used whole.
                with suppress(RefusedError):
                    box = labelled_box(row.record, rules[0])
                    found.setdefault(row.image.resolve(), []).append((box, rules[0].apply(box)))
        if len(found) > before:
            notes.append(
                f"{folder}: dataset {name}: {count_of(len(found) - before, 'image')} cropped by the dataset's own "
                f"labels ({rules[0]}), like the training images"
            )
    return found, notes


def other_crops(inputs: Sequence[Input], predictor: Predictor) -> list[str]:
    """One message for each folder of shards that has another crop rule than the network's training.

    The crop alone moved one network's error from 4.2° to 5.5°. If either rule is unknown, there is no message.
    """
    known, notes = {str(rule) for rule in predictor.crops}, []
    folders = dict.fromkeys(one.path.parent for one in inputs if isinstance(one, ShardFile))
    for folder in folders if known else ():
        crop = Manifest.load(folder).crop if (folder / MANIFEST).is_file() else None
        if crop is not None and str(CropRule.parse(crop)) not in known:
            notes.append(
                f"{folder} is cropped by {crop}, {predictor.name} was trained on {' or '.join(sorted(known))}: expect "
                "larger errors; `hpe pose --recrop` crops again if the shards have a box or landmarks"
            )
    return notes


def other_sizes(inputs: Sequence[Input], predictor: Predictor) -> list[str]:
    """A message if the faces of shards have another size in their pictures than those of the training; else nothing."""
    if not isinstance(predictor, RunPredictor) or not predictor.faces:
        return []
    tars = [one.path for one in inputs if isinstance(one, ShardFile)]
    differ = sizes_differ(predictor.faces, face_shares(tars))
    return [f"WARNING: the framing differs from that of {predictor.name}'s training: {differ}"] if differ else []


def _threads() -> int:
    return min(cores(), 8)


def _process(group: Sequence[LoadedImage | Skipped], opened: _Opened, results: _Results, batch: int) -> None:
    """Find the faces of some images, run the network, write the rows and the annotated images."""
    faces = _find_faces(group, opened.finder, results.tally)
    read = answered(faces, opened.answerer, batch)
    results.tally.nan += sum(face.unanswered for face in read)
    results.tally.answers.update(face.emotion for face in read if face.emotion is not None)
    results.write([_row(one, face) for one, face in zip(faces, read, strict=True)])
    if results.drawing is not None:
        # All faces of one image follow each other. By identity: == would compare arrays of pixels and fail.
        pairs = zip(faces, read, strict=True)
        grouped = [list(of_one) for _, of_one in itertools.groupby(pairs, key=lambda pair: id(pair[0].owner))]
        results.drawing.draw([(owned[0][0].owner, [face for _, face in owned]) for owned in grouped])


def _row(one: FoundFace, face: Face) -> Row:
    item = one.owner.item
    return {"source": item.source, "key": item.key, "face": one.number} | face.to_dict()


def _find_faces(group: Sequence[LoadedImage | Skipped], finder: FaceFinder, tally: "Tally") -> list[FoundFace]:
    """The faces of some images; the tally gets every image and face that gives no row."""
    for one in group:
        if isinstance(one, Skipped):
            tally.skip(one)
    faces: list[FoundFace] = []
    for one in finder.find([one for one in group if isinstance(one, LoadedImage)]):
        if isinstance(one, FoundFace):
            faces.append(one)
        else:
            tally.skip(one)
    tally.images, tally.faces = tally.images + len(group), tally.faces + len(faces)
    return faces


@dataclass
class Tally:
    """Counts of images and faces, of drawings that could not be written, and of files that are no pictures."""

    images: int = 0
    faces: int = 0
    no_face: int = 0
    unread: int = 0
    nan: int = 0
    skipped: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    undrawn: int = 0
    passed: int = 0
    file: IO[str] | None = None

    def skip(self, one: Skipped) -> None:
        """Count an image or a face that gives no row, and write its name.

        Without a file (rows are printed) every message is printed, otherwise only the first few.
        """
        self.unread += one.unread
        self.no_face += one.reason == NO_FACE
        self._name(one)

    def not_drawn(self, one: Skipped) -> None:
        """Count an image whose row is written but whose drawing is not, and write its name."""
        self.undrawn += 1
        self._name(one)

    def _name(self, one: Skipped) -> None:
        if self.file is not None:
            entry = {"source": one.source, "key": one.key, "reason": one.reason}
            print(json.dumps(entry, ensure_ascii=False), file=self.file)
        if self.file is None or self.skipped < _PRINTED_SKIPS:
            say(f"predict: {one}")
        self.skipped += 1

    def summarise(self, files: Sequence[Path]) -> None:
        """Print the last line.

        Args:
            files: that were written; see :func:`hpe.predict.output.written`.
        """
        text = f"predict: {count_of(self.faces, 'face')} in {count_of(self.images, 'image')}"
        text += f"; {self.no_face:,} without a face, {self.unread:,} could not be read"
        if self.undrawn:
            text += f", {self.undrawn:,} could not be drawn"
        if self.passed:
            text += f"; {count_of(self.passed, 'other file')} passed over"
        if files and self.skipped:
            text += f"; {files[0].parent / SKIPPED} lists each"
        if files:
            text += f"; written to {' and '.join(map(str, files))}"
        say(text)
        if warning := one_answer(self.answers, self.faces):
            _print_notes([f"WARNING: {warning}"])
        if self.nan:
            _print_notes(
                [
                    f"WARNING: for {count_of(self.nan, 'face')} the network gave NaN; its weights are damaged or "
                    "overflow: try another --which"
                ]
            )


class Drawing:
    """Writes annotated images, each under a name of its own."""

    def __init__(self, folder: Path, marker: Marker, tally: Tally, pool: ThreadPoolExecutor) -> None:
        self._folder, self._marker, self._tally, self._pool = folder, marker, tally, pool
        self._taken: set[str] = set()

    def draw(self, pictures: Sequence[tuple[LoadedImage, list[Face]]]) -> None:
        """Write images with their predictions drawn on them; one that fails is counted, and the others are drawn."""
        paths = [self._path(one.item.place) for one, _ in pictures]
        for problem in self._pool.map(self._try, pictures, paths):
            if problem is not None:
                self._tally.not_drawn(problem)

    def _try(self, given: tuple[LoadedImage, list[Face]], path: Path) -> Skipped | None:
        try:
            self._draw(given, path)
        except (OSError, ValueError, MemoryError) as error:
            why = getattr(error, "strerror", None) or str(error) or type(error).__name__
            item = given[0].item
            return Skipped(item.source, item.key, f"{DRAWN}/{path.name} cannot be written: {why}", unread=False)
        return None

    def _draw(self, given: tuple[LoadedImage, list[Face]], path: Path) -> None:
        one, faces = given
        if one.picture is None:
            return
        image = drawn(Image.fromarray(one.picture), faces, self._marker)
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside_unsynced(path) as part:  # a sync takes as long as the drawing
            image.save(part, "JPEG", quality=_QUALITY)

    def _path(self, place: str) -> Path:
        name = next(n for count in itertools.count(1) if (n := _numbered(place, count)).lower() not in self._taken)
        self._taken.add(name.lower())
        return self._folder / f"{name}.jpg"


def _numbered(place: str, count: int) -> str:
    return place if count == 1 else f"{place}-{count}"
