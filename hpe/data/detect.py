"""Finding faces, for pictures whose dataset has no boxes: built once, many pictures at a time.

Two detectors, both with weights that come in their package:

- ``mtcnn``: Zhang et al., "Joint Face Detection and Alignment Using Multi-task Cascaded Convolutional
  Networks", 2016, in facenet-pytorch 2.6.0 (MIT), which requires an old torch and works with the present one:
  ``pip install requests && pip install --no-deps facenet-pytorch==2.6.0``. Finds profiles; uses a GPU.
- ``hog``: dlib's gradient histograms (``pip install dlib-bin``). Faces that look at the camera only.
"""

import importlib.util
import math
from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8

from hpe.core.errors import UserError
from hpe.data.crops import Box
from hpe.data.images import RGBImage

Face = tuple[Box, float]
"""A face's box in pixels of its picture, and a score: a probability from ``mtcnn``, a margin from ``hog``."""

WAYS_TO_INSTALL: Final = {
    "mtcnn": "pip install requests && pip install --no-deps facenet-pytorch==2.6.0",
    "hog": "pip install dlib-bin",
}
DETECTORS: Final = tuple(WAYS_TO_INSTALL)
_CANVAS: Final = 320
_BATCH: Final = 32
_SMALLEST_FACE: Final = 20
_ALIKE: Final = 0.8


class FaceDetector(Protocol):
    """Finds faces."""

    name: str
    """For manifests: detector and version."""

    def detect(self, images: Sequence[RGBImage]) -> list[list[Face]]:
        """The faces of each picture, those of the largest box first; pictures may differ in size."""
        ...


def installed() -> tuple[str, ...]:
    """The detectors whose packages are there, the better one first."""
    return tuple(name for name in DETECTORS if not _lacks(name))


def open_detector(name: str, *, device: str = "cpu") -> FaceDetector:
    """The detector of that name.

    Raises:
        UserError: no such detector, or its package is not installed.
    """
    match name:
        case "mtcnn":
            _require(name)
            return Mtcnn(torch.device(device))
        case "hog":
            _require(name)
            return Hog()
    raise UserError(f"detector {name!r} is not known; expected {' or '.join(DETECTORS)}")


_PACKAGES: Final = {"mtcnn": ("facenet_pytorch", "requests"), "hog": ("dlib",)}


def _lacks(name: str) -> list[str]:
    return [package for package in _PACKAGES[name] if importlib.util.find_spec(package) is None]


def _require(name: str) -> None:
    if lacking := _lacks(name):
        raise UserError(f"detector {name}: {lacking[0]} is not installed; {WAYS_TO_INSTALL[name]}")


def the_face(faces: Sequence[Face], width: int, height: int) -> Face | None:
    """The face that a picture is of: the largest; of those 0.8 times as wide or more, the nearest to the centre."""
    if not faces:
        return None
    widest = max(box[2] - box[0] for box, _ in faces)
    large = [face for face in faces if face[0][2] - face[0][0] >= _ALIKE * widest]

    def from_centre(face: Face) -> float:
        x0, y0, x1, y1 = face[0]
        return math.hypot((x0 + x1 - width) / 2, (y0 + y1 - height) / 2)

    return min(large, key=from_centre)


class Mtcnn:
    """facenet-pytorch's MTCNN; every picture is scaled to a canvas of 320 px, so that all go in one batch.

    Faces narrower than 1/16 of the picture's longer side are not looked for.
    """

    name = "mtcnn (facenet-pytorch 2.6.0, canvas 320)"

    def __init__(self, device: torch.device) -> None:
        from facenet_pytorch import MTCNN  # pyright: ignore[reportMissingImports]

        self._network: Any = MTCNN(keep_all=True, min_face_size=_SMALLEST_FACE, device=device).eval()

    def detect(self, images: Sequence[RGBImage]) -> list[list[Face]]:
        """See :class:`FaceDetector`."""
        found: list[list[Face]] = []
        for start in range(0, len(images), _BATCH):
            part = images[start : start + _BATCH]
            canvas = np.stack([_on_canvas(image) for image in part])
            for image, (boxes, scores) in zip(part, self._run(canvas), strict=True):
                scale = max(image.shape[:2]) / _CANVAS
                faces = [
                    ((float(x0) * scale, float(y0) * scale, float(x1) * scale, float(y1) * scale), float(score))
                    for (x0, y0, x1, y1), score in zip(boxes, scores, strict=True)
                ]
                found.append(sorted(faces, key=lambda face: _area(face[0]), reverse=True))
        return found

    def _run(self, canvas: UInt8[np.ndarray, "batch side side 3"]) -> list[tuple[Any, Any]]:
        """Boxes and scores for each picture of a batch."""
        try:
            boxes, scores = self._network.detect(canvas)
        except (RuntimeError, ValueError):
            # facenet-pytorch joins an empty list when no picture of a batch has a candidate for a later net.
            if len(canvas) == 1:
                return [((), ())]
            return [pair for one in canvas for pair in self._run(one[None])]
        return [((), ()) if box is None else (box, score) for box, score in zip(boxes, scores, strict=True)]


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _on_canvas(image: RGBImage) -> UInt8[np.ndarray, "side side 3"]:
    """The picture scaled to the canvas at its top left, black elsewhere."""
    height, width = image.shape[:2]
    scale = _CANVAS / max(height, width)
    size = (max(round(height * scale), 1), max(round(width * scale), 1))
    pixels = torch.from_numpy(np.require(image, requirements=("C", "W"))).permute(2, 0, 1)[None]
    resized = F.interpolate(pixels, size, mode="bilinear", antialias=True)[0].permute(1, 2, 0).numpy()
    canvas = np.zeros((_CANVAS, _CANVAS, 3), np.uint8)
    canvas[: size[0], : size[1]] = resized
    return canvas


class Hog:
    """dlib's frontal face detector."""

    name = "hog (dlib)"

    def __init__(self) -> None:
        import dlib  # pyright: ignore[reportMissingImports]

        self._detector: Any = dlib.get_frontal_face_detector()
        self.name = f"hog (dlib {dlib.__version__})"

    def detect(self, images: Sequence[RGBImage]) -> list[list[Face]]:
        """See :class:`FaceDetector`."""
        found = []
        for image in images:
            boxes, scores, _ = self._detector.run(np.ascontiguousarray(image), 0, 0.0)
            faces: list[Face] = [
                ((float(b.left()), float(b.top()), float(b.right() + 1), float(b.bottom() + 1)), float(score))
                for b, score in zip(boxes, scores, strict=True)
            ]
            found.append(sorted(faces, key=lambda face: _area(face[0]), reverse=True))
        return found
