"""Where the faces are: the whole image, a dataset's labels, or a detector. Threads read images ahead."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import torch

from hpe.core.errors import UserError
from hpe.data.crops import Box, CropRule
from hpe.data.detect import Face, open_detector
from hpe.data.images import MAX_PIXELS, DecodeError, RGBImage, decode_rgb, image_size
from hpe.predict.inputs import Item, Skipped
from hpe.predict.network import FacePixels, MeshPoints, Predictor

NO_FACE: Final = "no face found"
_MOST_PIXELS: Final = 48_000_000
"""Upper bound of the photos in memory that wait for the detector; 48 megapixels are 144 MB."""
_USUAL_CROP: Final = "square-1.3@detector"
_PIECE: Final = 16
"""Photos per call of a detector: a fixed number, so that the faces do not depend on the number of threads."""


@dataclass(frozen=True, slots=True)
class LoadedImage:
    """An image that was read.

    Attributes:
        picture: its pixels; None if nothing needs them.
        width, height: of the upright image.
        faces: with given faces: their boxes, and the network's input.
    """

    item: Item
    width: int
    height: int
    picture: RGBImage | None
    faces: tuple[tuple[Box, FacePixels], ...] = ()


@dataclass(frozen=True, slots=True)
class FoundFace:
    """A face.

    Attributes:
        owner: the image that it is in.
        number: 0 for the first face of the image, 1 for the next.
        box: in pixels of the upright image.
        score: the detector's; None without a detector.
        face: the network's input.
    """

    owner: LoadedImage
    number: int
    box: Box
    score: float | None
    face: FacePixels | MeshPoints


class GivenFaces:
    """Every image is one face, or the dataset's own labels give its faces.

    Args:
        predictor: cuts out the faces.
        keep_pictures: keep the pixels for drawing.
        labelled: for each resolved path: the box of each face, and the box of its crop.
        max_pixels: larger images are not read.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        keep_pictures: bool,
        labelled: Mapping[Path, Sequence[tuple[Box, Box]]] = MappingProxyType({}),
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._predictor, self._keep, self._labelled = predictor, keep_pictures, labelled
        self._max_pixels = max_pixels

    def load(self, item: Item | Skipped) -> LoadedImage | Skipped:
        """Read and decode, in a thread."""

        def decode(data: bytes | RGBImage) -> LoadedImage:
            assert isinstance(item, Item)
            boxes = self._labelled.get(item.data.resolve(), ()) if isinstance(item.data, Path) else ()
            most = self._max_pixels
            picture = None if isinstance(data, bytes) else data
            if picture is None and (self._keep or boxes):
                picture = picture_of(data, most)
            width, height = size_of(data if picture is None else picture, most)
            if picture is not None and boxes:
                faces = [(box, self._predictor.cut(picture, crop)) for box, crop in boxes]
            elif isinstance(item.data, memoryview) and isinstance(data, bytes):
                faces = [(_whole(width, height), self._predictor.stored(data, most))]
            else:
                faces = [(_whole(width, height), self._predictor.whole(data, most))]
            return LoadedImage(item, width, height, picture if self._keep else None, tuple(faces))

        return load_image(item, decode)

    def find(self, group: Sequence[LoadedImage]) -> list[FoundFace | Skipped]:
        """The faces of each image."""
        return [
            FoundFace(one, number, box, None, face) for one in group for number, (box, face) in enumerate(one.faces)
        ]


class BoxedFaces:
    """Whoever gives the image knows where its faces are: boxes as a detector would find them.

    Args:
        predictor: cuts out the faces.
        rule: the crop for a box.
        max_pixels: larger images are not read.
    """

    def __init__(self, predictor: Predictor, rule: CropRule, max_pixels: int = MAX_PIXELS) -> None:
        self._predictor, self._rule, self._max_pixels = predictor, rule, max_pixels

    def load(self, item: Item | Skipped) -> LoadedImage | Skipped:
        """Read, decode and cut, in a thread.

        Raises:
            UserError: a box that lies outside its image, or is none.
        """

        def decode(data: bytes | RGBImage) -> LoadedImage:
            assert isinstance(item, Item)
            picture = picture_of(data, self._max_pixels)
            faces = []
            for number, box in enumerate(item.boxes or ()):
                try:
                    faces.append((box, self._predictor.cut(picture, self._rule.apply(box))))
                except ValueError as error:
                    raise UserError(f"{item.source}: boxes: box {number}: {error}") from error
            return LoadedImage(item, picture.shape[1], picture.shape[0], None, tuple(faces))

        return load_image(item, decode)

    def find(self, group: Sequence[LoadedImage]) -> list[FoundFace | Skipped]:
        """The faces of each image, in the order of their boxes."""
        found: list[FoundFace | Skipped] = []
        for one in group:
            if not one.faces:
                found.append(skipped(one.item, "no boxes were given for it", unread=False))
            found += [FoundFace(one, number, box, None, face) for number, (box, face) in enumerate(one.faces)]
        return found


class DetectedFaces:
    """A detector finds the faces. Each thread has its own detector."""

    def __init__(
        self,
        predictor: Predictor,
        detector: str,
        device: torch.device,
        rule: CropRule,
        pool: ThreadPoolExecutor,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        self._max_pixels = max_pixels
        self._predictor, self._name, self._device, self._rule, self._pool = predictor, detector, device, rule, pool
        self._own = threading.local()
        open_detector(detector, device=str(device))  # a missing detector is an error here, before anything is written

    def load(self, item: Item | Skipped) -> LoadedImage | Skipped:
        """Read and decode, in a thread."""

        def decode(data: bytes | RGBImage) -> LoadedImage:
            assert isinstance(item, Item)
            picture = picture_of(data, self._max_pixels)
            return LoadedImage(item, picture.shape[1], picture.shape[0], picture)

        return load_image(item, decode)

    def find(self, group: Sequence[LoadedImage]) -> list[FoundFace | Skipped]:
        """Every face of every image, the largest first."""
        pictures = [one.picture for one in group if one.picture is not None]
        found: list[FoundFace | Skipped] = []
        pieces = [pictures[start : start + _PIECE] for start in range(0, len(pictures), _PIECE)]
        detected = itertools.chain.from_iterable(self._pool.map(self._detect, pieces))
        for one, picture, faces in zip(group, pictures, detected, strict=True):
            if not faces:
                found.append(skipped(one.item, NO_FACE, unread=False))
            for number, (box, score) in enumerate(faces):
                try:
                    cut = self._predictor.cut(picture, self._rule.apply(box))
                except ValueError as error:
                    found.append(skipped(one.item, f"face {number}: {error}", unread=False))
                    continue
                found.append(FoundFace(one, number, box, score, cut))
        return found

    def _detect(self, pictures: Sequence[RGBImage]) -> list[list[Face]]:
        if not hasattr(self._own, "detector"):
            self._own.detector = open_detector(self._name, device=str(self._device))
        return self._own.detector.detect(pictures)


def detector_rule(crop: str | None, predictor: Predictor) -> tuple[CropRule, list[str]]:
    """The crop rule for detected faces: that of the network's training images, with the detector's box; messages.

    Args:
        crop: a rule that the user chose.
        predictor: the network.
    """
    if crop is not None:
        return CropRule.parse(crop), []
    rules = {replace(rule, basis="detector") for rule in predictor.crops if rule.shape != "none"}
    if len(rules) == 1:
        return rules.pop(), []
    note = f"the crop rule of {predictor.name}'s training is unknown here; using {_USUAL_CROP} (another: --crop)"
    return CropRule.parse(_USUAL_CROP), [note]


class FaceFinder(Protocol):
    """Finds the faces of images."""

    def load(self, item: Item | Skipped) -> LoadedImage | Skipped:
        """Read and decode, in a thread."""
        ...

    def find(self, group: Sequence[LoadedImage]) -> list[FoundFace | Skipped]:
        """The faces of these images, in the order of the images."""
        ...


def load_image(item: Item | Skipped, decode: Callable[[bytes | RGBImage], LoadedImage]) -> LoadedImage | Skipped:
    """The result of ``decode`` for an image, or a skipped image with the reason why it cannot be read.

    Raises:
        UserError: the mistake of who gives the image.
    """
    if isinstance(item, Skipped):
        return item
    try:
        return decode(item.read())
    except UserError:
        raise
    except (DecodeError, OSError, ValueError, MemoryError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return skipped(item, str(why)[:300])


def skipped(item: Item, reason: str, *, unread: bool = True) -> Skipped:
    """An image, or a face of it, that gives no row."""
    return Skipped(item.source, item.key, reason, unread, item)


def picture_of(data: bytes | RGBImage, max_pixels: int) -> RGBImage:
    """The pixels of an encoded image; pixels as they are.

    Raises:
        DecodeError: the bytes are not a whole image.
    """
    return decode_rgb(data, max_pixels=max_pixels) if isinstance(data, bytes) else data


def size_of(data: bytes | RGBImage, max_pixels: int) -> tuple[int, int]:
    """Width and height.

    Raises:
        DecodeError: the bytes are not a whole image.
    """
    return image_size(data, max_pixels=max_pixels) if isinstance(data, bytes) else (data.shape[1], data.shape[0])


def _whole(width: int, height: int) -> Box:
    return 0.0, 0.0, float(width), float(height)


def groups(loaded: Iterable[LoadedImage | Skipped], most: int) -> Iterator[list[LoadedImage | Skipped]]:
    """Groups of images that are processed together: up to ``most`` images, and about :data:`_MOST_PIXELS` pixels."""
    group: list[LoadedImage | Skipped] = []
    pixels = 0
    for one in loaded:
        group.append(one)
        pixels += one.width * one.height if isinstance(one, LoadedImage) and one.picture is not None else 0
        if len(group) == most or pixels >= _MOST_PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group
