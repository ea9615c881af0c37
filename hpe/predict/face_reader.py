"""``hpe.load``: a network that reads the faces in images, as one Python object."""

import warnings
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Any, Final, get_args, overload

from hpe.core.console import count_of, say
from hpe.core.devices import cores, named_device
from hpe.core.errors import UserError
from hpe.data.crops import Box, CropRule
from hpe.data.detect import DETECTORS, installed
from hpe.data.prefetch import ahead, one_thread
from hpe.landmarks.mesh import WHICH
from hpe.landmarks.model import model_folder
from hpe.models.run_folder import is_run
from hpe.models.views import Views
from hpe.predict.face_finders import (
    BoxedFaces,
    DetectedFaces,
    FaceFinder,
    FoundFace,
    GivenFaces,
    LoadedImage,
    detector_rule,
    groups,
)
from hpe.predict.faces import Face, Faces, answered
from hpe.predict.given import Colour, Image, pixels_of
from hpe.predict.inputs import Item, Skipped, find_inputs, items, printable, samples_of, split_inputs
from hpe.predict.mesh_finder import MeshFinder
from hpe.predict.network import Predictor, open_predictor
from hpe.share import local_folder, share
from hpe.share.hub import is_hub_name
from hpe.stream import ShardSet
from hpe.stream.shard_sets import resolve

_BATCH: Final = 64
"""Faces that go through the network together, and images that are read ahead."""
_NAMED: Final = 3


class FaceReader:
    """A network that is ready to read faces; :func:`load` makes it.

    Attributes:
        name: of the network.
        heads: what it reads, among ``emotion``, ``direction``, ``pose`` and ``affect``.
        size: side of its input in pixels; faces of another size are scaled. None: a landmark model, which has none.
        device: where it runs.
        precision: of its arithmetic: ``fp32``, ``bf16``, ``fp16``, or what an exported file states.
        faces: what finds the faces; None: every image is one face.
        crop: the crop rule for faces that a detector, or you, found.
    """

    def __init__(
        self,
        network: Predictor | MeshFinder,
        finder: FaceFinder,
        *,
        faces: str | None,
        crop: CropRule | None = None,
        source: tuple[Path, str] | None = None,
    ) -> None:
        self._network, self._finder, self._source = network, finder, source
        self.name, self.heads, self.faces, self.crop = network.name, network.heads, faces, crop
        self.size = None if isinstance(network, MeshFinder) else network.size
        self.device, self.precision, self._why = network.device, network.precision.name, network.precision.why

    def __repr__(self) -> str:
        size = f" of {self.size} px" if self.size is not None else ""
        return (
            f"<{self.name}: {', '.join(self.heads)} of faces{size}, on {self.device} in {self.precision} ({self._why})>"
        )

    @overload
    def read(self, images: Image, *, colour: Colour = ..., boxes: Sequence[Box] | None = ...) -> Faces: ...
    @overload
    def read(
        self, images: Sequence[Image], *, colour: Colour = ..., boxes: Sequence[Sequence[Box]] | None = ...
    ) -> list[Faces]: ...
    @overload
    def read(self, images: ShardSet) -> Iterator[Faces]: ...
    def read(self, images: Any, *, colour: Colour = "rgb", boxes: Any = None) -> Faces | list[Faces] | Iterator[Faces]:
        """The faces of one image, or of each image of a list. ``model(images)`` is the same.

        Args:
            images: a path, bytes, a PIL image, an array ``[height, width, 3]`` or a tensor ``[3, height, width]``
                (:data:`hpe.predict.given.Image` describes their numbers), or a list of these. A stack of images is
                given as ``list(stack)``. Shards: see :meth:`each`.
            colour: order of the colours of arrays and tensors: ``rgb``, or ``bgr`` for images of OpenCV. It cannot be
                seen in the pixels, and the wrong order gives wrong answers.
            boxes: where the faces are, if you have found them yourself: x0, y0, x1, y1 in pixels for each face of the
                image; with a list of images, a list of boxes for each. They are cropped as a detector's boxes are.

        Returns:
            For one image its faces; for a list the faces of each, in its order. An image of a list that cannot be read
            gives no face and a ``problem``, and a warning counts them.

        Raises:
            UserError: the one image cannot be read; an array is not as described; boxes that do not fit.
        """
        if isinstance(images, ShardSet):
            return self.each(images)
        if isinstance(images, get_args(Image)):
            if isinstance(images, str | Path) and Path(images).is_dir():
                raise UserError(f"{images}: is a folder; go through it with model.each({str(images)!r})")
            (one,) = self._inline([_item(images, None, colour, boxes)], boxed=boxes is not None)
            if one.unread:
                raise UserError(f"{one.name}: {one.problem}")
            return one
        if not isinstance(images, Sequence):
            raise UserError(f"{type(images).__name__}: expected an image or a list of images; others: model.each(…)")
        if boxes is not None and len(boxes) != len(images):
            raise UserError(f"boxes: {count_of(len(boxes), 'list')} of boxes for {count_of(len(images), 'image')}")
        of_each = [None] * len(images) if boxes is None else boxes
        given = (_item(image, at, colour, of_each[at]) for at, image in enumerate(images))
        return list(self._read(given, boxed=boxes is not None))

    __call__ = read

    def each(self, inputs: str | Path | ShardSet | Iterable[Image], *, colour: Colour = "rgb") -> Iterator[Faces]:
        """The faces of many images, one after another: for more of them than fit into memory.

        Args:
            inputs: a folder, a glob, a tar or a folder of shards, as ``hpe predict`` takes them; shards as a
                :class:`hpe.ShardSet`, local or remote; or anything that yields images, such as a generator.
            colour: as of :meth:`read`.

        Returns:
            The faces of each image, in order. An image that cannot be read has no face and a ``problem``; a warning at
            the end counts them.

        Raises:
            UserError: there are no such inputs, or an array is not as described.
        """
        if isinstance(inputs, ShardSet):
            return self._read(samples_of(resolve([inputs])[0]))
        if isinstance(inputs, str | Path):
            return self._read(items(split_inputs(find_inputs([str(inputs)]))[0]))
        return self._read(_item(image, at, colour, None) for at, image in enumerate(inputs))

    def save_pretrained(self, folder: str | Path, *, permitted: str | None = None) -> None:
        """Write the network into a new folder that :func:`load` reads: safetensors, config and model card.

        Args:
            folder: does not exist yet, or is empty.
            permitted: why weights that were trained on these datasets may be published, where a dataset's terms forbid
                to pass on its images, or are not known. The model card quotes it.

        Raises:
            UserError: it may not be published, or the folder is in use.
        """
        run, which = self._shared()
        share(run, str(folder), which=which, permitted=permitted)

    def push_to_hub(self, name: str, *, permitted: str | None = None, private: bool = False) -> str:
        """Publish the network as ``org/name`` on the Hugging Face hub, or on that of ``$HF_ENDPOINT``.

        Args:
            name: of the repository; it is made if there is none.
            permitted: as of :meth:`save_pretrained`.
            private: for you and your organisation alone.

        Returns:
            The address of the new version.

        Raises:
            UserError: it may not be published, or the hub refuses.
        """
        run, which = self._shared()
        target = name if is_hub_name(name) else f"hf://{name}"
        return share(run, target, which=which, permitted=permitted, private=private)

    def _shared(self) -> tuple[Path, str]:
        if self._source is None:
            raise UserError(f"{self.name}: expected a network of hpe train; share an exported file as it is")
        return self._source

    def _read(self, given: Iterable[Item | Skipped], *, boxed: bool = False) -> Iterator[Faces]:
        """The faces of each image, which threads read ahead; a warning at the end counts what could not be read."""
        rest = iter(given)
        first = list(islice(rest, 1))
        named: list[str] = []
        unread = 0
        for one in self._ahead(chain(first, rest), boxed):
            unread += one.unread
            if one.unread and len(named) < _NAMED:
                named.append(f"{one.name} ({one.problem})")
            yield one
        if unread:
            more = f" and {unread - len(named)} more" if unread > len(named) else ""
            warnings.warn(f"{count_of(unread, 'image')} could not be read: {', '.join(named)}{more}", stacklevel=2)

    def _ahead(self, given: Iterable[Item | Skipped], boxed: bool) -> Iterator[Faces]:
        finder = self._boxed_finder() if boxed else self._finder
        threads = _threads()
        depth = _BATCH if isinstance(finder, GivenFaces) else 2 * threads  # whole photos are large
        with ahead(finder.load, given, threads=threads, depth=depth) as loaded:
            for group in groups(loaded, _BATCH):
                yield from self._answered(group, finder)

    def _inline(self, given: Sequence[Item | Skipped], *, boxed: bool) -> list[Faces]:
        """The same for few images, without threads: a camera gives them one by one."""
        finder = self._boxed_finder() if boxed else self._finder
        return self._answered([finder.load(one) for one in given], finder)

    def _boxed_finder(self) -> FaceFinder:
        if isinstance(self._network, MeshFinder) or self.crop is None:
            raise UserError(f"boxes: {self.name} is a landmark model, which finds the faces itself; leave them out")
        return BoxedFaces(self._network, self.crop)

    def _answered(self, group: Sequence[LoadedImage | Skipped], finder: FaceFinder) -> list[Faces]:
        found = finder.find([one for one in group if isinstance(one, LoadedImage)])
        located = [one for one in found if isinstance(one, FoundFace)]
        faces: dict[int, list[Face]] = {}
        for place, face in zip(located, answered(located, self._network, _BATCH), strict=True):
            faces.setdefault(id(place.owner.item), []).append(face)
        problems = {id(one.item): one.reason for one in found if isinstance(one, Skipped)}
        return [self._faces(one, tuple(faces.get(id(_given(one)), ())), problems.get(id(_given(one)))) for one in group]

    def _faces(self, one: LoadedImage | Skipped, faces: tuple[Face, ...], problem: str | None) -> Faces:
        if isinstance(one, Skipped):
            return Faces(one.source, one.key, 0, 0, (), one.reason, one.unread, self.heads)
        item = one.item
        data = bytes(item.data) if isinstance(item.data, memoryview) else item.data
        return Faces(item.source, item.key, one.width, one.height, faces, problem, False, self.heads, data)


def _given(one: LoadedImage | Skipped) -> Item | None:
    return one.item


def _item(image: Image, at: int | None, colour: Colour, boxes: Iterable[Box] | None) -> Item:
    """An image as the finders take it; ``at`` is its place in a list.

    Raises:
        UserError: it is no image, or its boxes are none.
    """
    kind = "image" if isinstance(image, get_args(Image)) else type(image).__name__
    name = kind if at is None else f"{kind} {at}"
    places = None if boxes is None else tuple(_box(box, name, number) for number, box in enumerate(boxes))
    if isinstance(image, str | Path | bytes) and colour == "rgb":
        if isinstance(image, bytes):
            return Item(name, "", "", image, places)
        path = Path(image)
        return Item(printable(str(path)), printable(path.stem), "", path, places)
    source = str(image) if isinstance(image, str | Path) else name
    return Item(source, "", "", pixels_of(image, source, colour), places)


def _box(box: Box, name: str, number: int) -> Box:
    try:
        x0, y0, x1, y1 = (float(side) for side in box)
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: boxes: box {number} is {box!r}; expected x0, y0, x1, y1 in pixels") from error
    return x0, y0, x1, y1


def load(
    source: str | Path,
    *,
    faces: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    crop: str | None = None,
    flips: bool = False,
    which: str = "best",
    weights: str | Path | None = None,
) -> FaceReader:
    """Load a network that reads faces. A line on stderr says on which device and in which precision it runs.

    Args:
        source: run folder of ``hpe train``; a folder that ``hpe share`` or ``save_pretrained`` wrote, or its name on a
            hub, ``hf://org/name`` or ``hf://org/name@revision``; ``.onnx`` of ``hpe export`` or its YAML; another
            head-pose estimator (its YAML, or Hopenet weights); or the folder of a landmark model.
        faces: what finds the faces in images: ``mtcnn`` or ``hog``; None: each image is one face, cropped as in
            training. A landmark model finds them itself: ``largest`` (also None), ``centre`` or ``all``.
        device: ``cpu``, ``cuda`` or ``cuda:N``; ``auto``: a GPU if torch sees one.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``; None: that of the training; runs only.
        crop: crop rule for faces that a detector or you found; None: that of the training.
        flips: average each face with its mirror image.
        which: checkpoint of a run: ``best``, ``last``, or ``step-00001234``.
        weights: file to use instead of the weights that an estimator's YAML names.

    Raises:
        UserError: there is no such network, device or detector, or an option does not fit the network.
    """
    path, on = local_folder(str(source)) if is_hub_name(str(source)) else Path(source), named_device(device)
    if (landmarks := model_folder(path)) is not None:
        reader = _landmarks(landmarks, faces, refused=bool(precision or crop or flips or weights))
        say(f"hpe: {str(reader).strip('<>')}")
        return reader
    if faces is not None and faces not in DETECTORS:
        raise UserError(f"faces={faces!r}: expected None, {' or '.join(map(repr, DETECTORS))} (with this network)")
    predictor = open_predictor(
        path, on, which=which, weights=None if weights is None else Path(weights), views=Views(flips),
        precision=precision, batch=_BATCH, fall_back=device == "auto",
    )  # fmt: skip
    rule, notes = detector_rule(crop, predictor)
    if faces is None:
        finder, notes = GivenFaces(predictor, keep_pictures=False), []
    else:
        pool = ThreadPoolExecutor(_threads(), "faces", initializer=one_thread)
        finder = DetectedFaces(predictor, faces, on, rule, pool)
    reader = FaceReader(predictor, finder, faces=faces, crop=rule, source=(path, which) if is_run(path) else None)
    for note in [*predictor.notes, *notes]:
        say(f"hpe: {note}")
    say(f"hpe: {str(reader).strip('<>')}{_expected(predictor) if faces is None else ''}")
    return reader


def _expected(predictor: Predictor) -> str:
    """What every image has to be where nothing looks for faces."""
    rules = " or ".join(sorted(map(str, predictor.crops - {CropRule()})))
    cropped = f", cropped by {rules}" if rules else ""
    return f"; each image is to be one face{cropped} (whole photos: faces={(installed() or DETECTORS)[0]!r})"


def _landmarks(folder: Path, faces: str | None, *, refused: bool) -> FaceReader:
    if refused:
        raise UserError(f"{folder}: landmark models do not take weights, crop, flips or precision; leave them out")
    which = faces or "largest"
    if which not in WHICH:
        raise UserError(f"faces={faces!r}: expected None, {' or '.join(map(repr, WHICH))} (with this network)")
    mesh = MeshFinder(folder, which, keep_pictures=False)  # pyright: ignore[reportArgumentType]
    reader = FaceReader(mesh, mesh, faces=which)
    weakref.finalize(reader, mesh.close)
    return reader


def _threads() -> int:
    return min(cores(), 8)
