"""Face detectors: which face a picture is of, what is said where a package is missing, what real pictures give."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from hpe.core.errors import UserError
from hpe.data.detect import DETECTORS, Face, open_detector, the_face
from hpe.data.images import decode_rgb
from hpe.sources import Raw, open_source

INSTALLED = [
    name
    for name, packages in (("mtcnn", ("facenet_pytorch", "requests")), ("hog", ("dlib",)))
    if all(importlib.util.find_spec(package) for package in packages)
]


def face(x: float, y: float, width: float) -> Face:
    return (x, y, x + width, y + width), 0.9


def test_the_face_is_the_largest_and_of_alike_ones_the_one_in_the_middle() -> None:
    small, large, alike = face(45, 45, 10), face(0, 0, 30), face(40, 40, 26)
    assert the_face([], 100, 100) is None
    assert the_face([small], 100, 100) == small
    assert the_face([small, large], 100, 100) == large
    assert the_face([large, small, alike], 100, 100) == alike
    assert the_face([alike, small, large], 100, 100) == alike


def test_an_unknown_detector_is_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match=r"'yolo' is not known; expected mtcnn or hog"):
        open_detector("yolo")


@pytest.mark.parametrize("name", DETECTORS)
def test_a_detector_without_its_package_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    with pytest.raises(UserError, match=rf"detector {name}: \w+ is not installed.*pip install"):
        open_detector(name)


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union."""
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    area = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (area - width * height)


@pytest.mark.real
@pytest.mark.parametrize("name", INSTALLED)
@pytest.mark.filterwarnings("default")
def test_real_faces_are_found_where_their_landmarks_are(name: str, shared: Path) -> None:
    rows = open_source("aflw2000", shared / "data" / "aflw2000").read()
    raws = [raw for _, raw in zip(range(24), rows, strict=False) if isinstance(raw, Raw)]
    images = [decode_rgb(raw.read()) for raw in raws]
    detector = open_detector(name)
    found = detector.detect([*images, np.zeros((1, 90, 3), np.uint8)])
    assert len(found) == 25
    assert found[-1] == []
    good = 0
    for raw, image, faces in zip(raws, images, found, strict=False):
        points = np.array(raw.record.landmarks)
        box = the_face(faces, image.shape[1], image.shape[0])
        good += box is not None and overlap(box[0], (*points.min(0), *points.max(0))) > 0.4
    assert good >= 16
    assert detector.detect([]) == []
