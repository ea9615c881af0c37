"""Faces in pictures for prediction: the whole picture, or what a detector finds, read ahead by threads."""

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Protocol

import torch

from hpe.data.crops import Box, CropRule
from hpe.data.detect import Face as Located
from hpe.data.detect import open_detector
from hpe.data.images import DecodeError, Picture, decode_rgb, picture_size
from hpe.predict.inputs import Item, Skipped
from hpe.predict.network import Face, Points, Predictor

NO_FACE: Final = "no face found"
_MOST_PIXELS: Final = 48_000_000
"""Of the photos that wait for the detector together; 48 megapixels are 144 MB."""
_PIECE: Final = 16
"""Photos that a detector gets at once: always the same, so that what it finds does not depend on the threads."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A picture that was read.

    Attributes:
        picture: its pixels, where something needs them.
        width, height: of the upright picture.
        faces: where faces are given: their boxes, and what the network gets.
    """

    item: Item
    width: int
    height: int
    picture: Picture | None
    faces: tuple[tuple[Box, Face], ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A face."""

    owner: Loaded
    number: int
    box: Box
    score: float | None
    face: Face | Points


class Given:
    """Every picture is a face, or its faces are where the dataset's own labels say.

    Args:
        predictor: makes the faces.
        keep_pictures: for drawing.
        labelled: of pictures with labels, by their resolved paths: each face's box, and the crop's around it.
    """

    def __init__(
        self,
        predictor: Predictor,
        *,
        keep_pictures: bool,
        labelled: Mapping[Path, Sequence[tuple[Box, Box]]] = MappingProxyType({}),
    ) -> None:
        self._predictor, self._keep, self._labelled = predictor, keep_pictures, labelled

    def load(self, item: Item | Skipped) -> Loaded | Skipped:
        """Read and decode, in a thread."""

        def decode(data: bytes) -> Loaded:
            assert isinstance(item, Item)
            raw = isinstance(item.data, Path)
            boxes = self._labelled.get(item.data.resolve(), ()) if isinstance(item.data, Path) else ()
            picture = decode_rgb(data) if self._keep or boxes else None
            width, height = picture_size(data) if picture is None else (picture.shape[1], picture.shape[0])
            if picture is not None and boxes:
                faces = [(box, self._predictor.cut(picture, crop)) for box, crop in boxes]
            else:
                whole = (0.0, 0.0, float(width), float(height))
                faces = [(whole, self._predictor.whole(data) if raw else self._predictor.stored(data))]
            return Loaded(item, width, height, picture if self._keep else None, tuple(faces))

        return loaded(item, decode)

    def find(self, group: Sequence[Loaded]) -> list[Found | Skipped]:
        """The faces of each picture."""
        return [Found(one, number, box, None, face) for one in group for number, (box, face) in enumerate(one.faces)]


class Detected:
    """Faces are where a detector finds them; each thread has a detector of its own."""

    def __init__(
        self, predictor: Predictor, detector: str, device: torch.device, rule: CropRule, pool: ThreadPoolExecutor
    ) -> None:
        self._predictor, self._name, self._device, self._rule, self._pool = predictor, detector, device, rule, pool
        self._own = threading.local()
        open_detector(detector, device=str(device))  # refused here, before anything is written

    def load(self, item: Item | Skipped) -> Loaded | Skipped:
        """Read and decode, in a thread."""

        def decode(data: bytes) -> Loaded:
            assert isinstance(item, Item)
            picture = decode_rgb(data)
            return Loaded(item, picture.shape[1], picture.shape[0], picture)

        return loaded(item, decode)

    def find(self, group: Sequence[Loaded]) -> list[Found | Skipped]:
        """Every face of every picture, the largest first."""
        pictures = [one.picture for one in group if one.picture is not None]
        found: list[Found | Skipped] = []
        pieces = [pictures[start : start + _PIECE] for start in range(0, len(pictures), _PIECE)]
        detected = itertools.chain.from_iterable(self._pool.map(self._detect, pieces))
        for one, picture, faces in zip(group, pictures, detected, strict=True):
            if not faces:
                found.append(Skipped(one.item.source, one.item.key, NO_FACE, unread=False))
            for number, (box, score) in enumerate(faces):
                try:
                    cut = self._predictor.cut(picture, self._rule.apply(box))
                except ValueError as error:
                    found.append(Skipped(one.item.source, one.item.key, f"face {number}: {error}", unread=False))
                    continue
                found.append(Found(one, number, box, score, cut))
        return found

    def _detect(self, pictures: Sequence[Picture]) -> list[list[Located]]:
        if not hasattr(self._own, "detector"):
            self._own.detector = open_detector(self._name, device=str(self._device))
        return self._own.detector.detect(pictures)


class Finder(Protocol):
    """Finds the faces of pictures."""

    def load(self, item: Item | Skipped) -> Loaded | Skipped:
        """Read and decode, in a thread."""
        ...

    def find(self, group: Sequence[Loaded]) -> list[Found | Skipped]:
        """The faces of pictures, in their order."""
        ...


def loaded(item: Item | Skipped, decode: Callable[[bytes], Loaded]) -> Loaded | Skipped:
    """What ``decode`` makes of a picture's bytes; a picture that cannot be read is skipped, with its reason."""
    if isinstance(item, Skipped):
        return item
    try:
        return decode(item.read())
    except (DecodeError, OSError, ValueError, MemoryError) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Skipped(item.source, item.key, str(why)[:300])


def groups(loaded: Iterable[Loaded | Skipped], most: int) -> Iterator[list[Loaded | Skipped]]:
    """Pictures that are worked on together: at most ``most``, and no more pixels than memory is meant for."""
    group: list[Loaded | Skipped] = []
    pixels = 0
    for one in loaded:
        group.append(one)
        pixels += one.width * one.height if isinstance(one, Loaded) and one.picture is not None else 0
        if len(group) == most or pixels >= _MOST_PIXELS:
            yield group
            group, pixels = [], 0
    if group:
        yield group
