"""BIWI Kinect Head Pose Database (Fanelli, Dantone, Gall, Fossati and Van Gool, "Random Forests for Real Time 3D Face
Analysis", 2013).

On disk (perhaps below hpdb/ or faces_0/hpdb/):

    01/ … 24/                               24 sequences of 20 people
    01/rgb.cal                              from the depth camera to the pixels of the RGB picture
    01/frame_00003_rgb.png                  640 × 480
    01/frame_00003_pose.txt                 3 × 3 rotation, then the head's centre in millimetres

Labels: yaw, pitch, roll from the transposed rotation, in our signs (Hopenet's ``datasets.BIWI``), in the depth
camera's frame unless ``frame=rgb``. The face box is projected from the head's centre.
Splits: none of its own; split by person.
Licence: non-commercial use such as university research and education (ETH Zurich).
Where: ETH Zurich's Computer Vision Lab, "Biwi Kinect Head Pose Database"; a copy is among the datasets of Kaggle.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.data.crops import Box
from hpe.data.records import Record
from hpe.sources.base import Keys, Raw, Reader, Reject, Source, choice, entries, sample, shown, subfolders

LICENCE: Final = "non-commercial use such as university research and education (ETH Zurich)"
EXPECTED: Final = {"all": 15_678}
"""Frames of all sequences. A subset of 13,219, on which MTCNN finds a face, is usual in papers."""
_SEQUENCES: Final = 24
_FRAME: Final = re.compile(r"frame_(\d{5})_rgb\.(png|jpg)")
_PEOPLE: Final = {"15": "03", "18": "05", "21": "02", "22": "07"}
"""Sequences that show the person of an earlier sequence (the database's readme: 20 people, 24 sequences)."""
_HALF_HEAD_MM: Final = 110.0
_LARGEST_TEXT_BYTES: Final = 10_000


@dataclass(frozen=True, slots=True)
class Camera:
    """``rgb.cal``: from the depth camera's millimetres to the pixels of the RGB picture."""

    intrinsic: Float[np.ndarray, "3 3"]
    rotation: Float[np.ndarray, "3 3"]
    translation_mm: Float[np.ndarray, "3"]

    @classmethod
    def load(cls, path: Path) -> "Camera":
        """Read ``rgb.cal``: 3 × 3 intrinsic, 4 of distortion, 3 × 3 rotation, 3 of translation, resolution.

        Raises:
            OSError: it cannot be read.
            ValueError: it is not such a file.
        """
        values = _numbers(path, at_least=25)
        return cls(values[:9].reshape(3, 3), values[13:22].reshape(3, 3), values[22:25])

    def head_box(self, centre_mm: Float[np.ndarray, "3"]) -> Box | None:
        """The box of 220 mm × 220 mm around the head's centre, in pixels; None where it is behind the camera."""
        x, y, z = self.intrinsic @ (self.rotation @ centre_mm + self.translation_mm)
        if not z > 1:
            return None
        half_x, half_y = self.intrinsic[0, 0] * _HALF_HEAD_MM / z, self.intrinsic[1, 1] * _HALF_HEAD_MM / z
        x0, y0, x1, y1 = x / z - half_x, y / z - half_y, x / z + half_x, y / z + half_y
        return round(float(x0), 2), round(float(y0), 2), round(float(x1), 2), round(float(y1), 2)


def _numbers(path: Path, at_least: int) -> Float[np.ndarray, " n"]:
    with open_regular(path) as stream:
        words = stream.read(_LARGEST_TEXT_BYTES).split()
    try:
        values = np.asarray([float(word) for word in words])
    except ValueError:
        raise ValueError(f"{shown(path.name)}: not numbers") from None
    if len(values) < at_least:
        raise ValueError(f"{shown(path.name)}: {len(values)} numbers, expected {at_least}")
    if not np.isfinite(values).all():
        raise ValueError(f"{shown(path.name)}: not all numbers are finite")
    return values


def angles_of(rotation: Float[np.ndarray, "3 3"]) -> tuple[float, float, float]:
    """Yaw, pitch, roll in degrees of a rotation as ``_pose.txt`` has it (Hopenet's ``datasets.BIWI``)."""
    r = rotation.T
    roll = -math.atan2(r[1, 0], r[0, 0])
    yaw = -math.atan2(-r[2, 0], math.hypot(r[2, 1], r[2, 2]))
    pitch = math.atan2(r[2, 1], r[2, 2])
    yaw, pitch, roll = (round(math.degrees(angle), 4) for angle in (yaw, pitch, roll))
    return yaw, pitch, roll


def _home(folder: Path) -> Path:
    for name in ("hpdb", "faces_0/hpdb"):
        if (folder / name).is_dir():
            return folder / name
    return folder


def _sequences(folder: Path) -> list[Path]:
    return [s for s in subfolders(_home(folder)) if re.fullmatch(r"\d{2}", s.name)]


def _recognise(folder: Path) -> str | None:
    for sequence in _sequences(folder):
        for entry in entries(sequence):
            if _FRAME.fullmatch(entry.name):
                return f"BIWI Kinect: {sequence.name}/{entry.name}"
    return None


def open_biwi(folder: Path, *, frame: str = "depth") -> Source:
    """BIWI: ``hpdb/01/frame_00003_rgb.png`` with ``frame_00003_pose.txt``.

    The box is projected from the head's centre with ``rgb.cal``, where there is one.

    Args:
        folder: holds the sequences ``01`` … ``24``, or ``hpdb/`` with them.
        frame: camera that the angles refer to: ``depth`` as the files have it and papers use it, or ``rgb``
            (turned by the rotation in ``rgb.cal``, about one degree).

    Raises:
        UserError: no such pictures, or no ``rgb.cal`` for the RGB camera's frame.
    """
    choice("biwi", "frame", frame, ("depth", "rgb"))
    if not _recognise(folder):
        raise UserError(f"{folder}: no 01/frame_00003_rgb.png; expected BIWI's hpdb/ or its sequences")
    cameras = {sequence: _camera(sequence) for sequence in _sequences(folder)}
    if frame == "rgb" and (bare := [s.name for s, camera in cameras.items() if camera is None]):
        raise UserError(f"{folder}: no readable rgb.cal in {', '.join(bare)}; frame=rgb needs it, frame=depth does not")

    def rows() -> Iterator[Raw | Reject]:
        keys, home = Keys(), _home(folder)
        for sequence, camera in cameras.items():
            for path in entries(sequence):
                if _FRAME.fullmatch(path.name):
                    yield _row(keys, home, path, camera, frame)

    return Source(
        name="biwi",
        variant=f"Kinect RGB frames, angles in the {frame} camera's frame",
        licence=LICENCE,
        publishable=False,
        default_crop="square-1.2@box" if all(cameras.values()) else "square-1.4@detector",
        splits=(),
        rows=rows,
        expected=EXPECTED if len(cameras) == _SEQUENCES else {},
        home=_home(folder),
        notes=("split by person; four people have two sequences",),
    )


def _camera(sequence: Path) -> Camera | None:
    try:
        return Camera.load(sequence / "rgb.cal")
    except (OSError, ValueError):
        return None


def _row(keys: Keys, home: Path, path: Path, camera: Camera | None, frame: str) -> Raw | Reject:
    source = shown(path.relative_to(home))
    pose = path.with_name(path.name.split("_rgb")[0] + "_pose.txt")
    try:
        values = _numbers(pose, at_least=12)
    except FileNotFoundError:
        return Reject(source, f"missing {shown(pose.name)}")
    except (OSError, ValueError) as error:
        return Reject(source, str(error))
    rotation, centre_mm = values[:9].reshape(3, 3), values[9:12]
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=1e-2) or np.linalg.det(rotation) < 0:
        return Reject(source, f"{shown(pose.name)}: not a rotation")
    if frame == "rgb" and camera:
        rotation = camera.rotation @ rotation
    yaw, pitch, roll = angles_of(rotation)
    number = path.parent.name
    record = Record(
        yaw=yaw, pitch=pitch, roll=roll, box=camera.head_box(centre_mm) if camera else None,
        subject=f"person{_PEOPLE.get(number, number)}", source=source,
    )  # fmt: skip
    return sample(keys, path, record)


READERS: Final = (
    Reader("biwi", "hpdb/01/frame_00003_rgb.png with _pose.txt", _recognise, open_biwi, {"frame": ("depth", "rgb")}),
)
