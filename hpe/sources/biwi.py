"""BIWI Kinect Head Pose Database (Fanelli, Dantone, Gall, Fossati and Van Gool, "Random Forests for Real Time 3D Face
Analysis", 2013).

On disk (perhaps below hpdb/ or faces_0/hpdb/):

    01/ … 24/                               24 sequences of 20 people
    01/rgb.cal                              from the depth camera to the pixels of the RGB picture
    01/frame_00003_rgb.png                  640 × 480
    01/frame_00003_pose.txt                 3 × 3 rotation, then the head's centre in millimetres

Labels: yaw, pitch, roll from the transposed rotation, in our signs (Hopenet's ``datasets.BIWI``), in the depth
camera's frame unless ``frame=rgb``. The face box is projected from the head's centre.
Splits: none of its own; split by person, or by the protocol.
Protocols: papers judge on different frames, crops and labels under one name. Kuhnke measured one and the same 6DRepNet
at 3.71° to 5.09° by these alone (kuhnkeF/headposeplus, results/6DRepNet). :data:`PROTOCOLS` has the usual ones.
Licence: non-commercial use such as university research and education (ETH Zurich).
Where: ETH Zurich's Computer Vision Lab, "Biwi Kinect Head Pose Database"; a copy is among the datasets of Kaggle.
"""

import hashlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float

from hpe.core.errors import UserError
from hpe.core.files import open_regular
from hpe.data.arrays import read_npz
from hpe.data.crops import Box
from hpe.data.records import Record
from hpe.sources.base import Keys, Raw, Reader, Reject, Source, choice, entries, sample, shown, subfolders

LICENCE: Final = "non-commercial use such as university research and education (ETH Zurich)"
EXPECTED: Final = {"all": 15_678}
"""Frames of all sequences. A subset of 13,219, on which MTCNN finds a face, is usual in papers."""


@dataclass(frozen=True, slots=True)
class Protocol:
    """What a paper judges on.

    Attributes:
        about: in words, for the manifest; every result on these shards repeats it.
        frame: the camera that the angles refer to.
        splits: that it names; (): drawn by person.
        crop: the rule that comes nearest to the paper's; None: the reader's own.
    """

    about: str
    frame: str = "depth"
    splits: tuple[str, ...] = ("test",)
    crop: str | None = None


PROTOCOLS: Final = {
    "people": Protocol("all frames, split by person", splits=()),
    "hopenet": Protocol("all frames as test; Hopenet itself had 15,667 and cropped the boxes of Dockerface"),
    "fsanet": Protocol(
        "frames with a face found by MTCNN, as test; FSA-Net's own list, which leaves out jumps of the box too, has "
        "13,219 (frames=LIST takes it)",
        crop="margin-0.4@detector",
    ),
    "fsanet-70-30": Protocol(
        "16 sequences to train, 8 to test, of frames with a face found by MTCNN; FSA-Net drew the 8 without a seed",
        splits=("train", "test"),
        crop="margin-0.4@detector",
    ),
    "biwi+": Protocol(
        "all frames as test, turned to the RGB camera; Biwi+ compares angles of R = Rx(pitch) Ry(yaw) Rz(roll) and has "
        "boxes of its own (frames=Biwi_plus.npz takes them)",
        frame="rgb",
    ),
}
"""By the names of ``--option protocol=``. The frames of all but Biwi+ refer to the depth camera, their errors to angles
of R = Rz(roll) Ry(yaw) Rx(pitch)."""
_TEST_SEQUENCES: Final = 8
_SEED: Final = 0
_SEQUENCES: Final = 24
_LISTED: Final = re.compile(r"\d{2}/frame_\d{5}")
_FRAME: Final = re.compile(r"frame_(\d{5})_rgb\.(png|jpg)")
_PEOPLE: Final = {"15": "03", "18": "05", "21": "02", "22": "07"}
"""Sequences that show the person of an earlier sequence (the database's readme: 20 people, 24 sequences)."""
_HALF_HEAD_MM: Final = 110.0
_LARGEST_TEXT_BYTES: Final = 10_000
_LARGEST_LIST_BYTES: Final = 16 << 20
_LARGEST_ARRAYS_BYTES: Final = 64 << 20
"""Unpacked: a zip of a few kilobytes can hold gigabytes."""


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


def open_biwi(folder: Path, *, protocol: str = "people", frame: str = "", test: str = "", frames: str = "") -> Source:
    """BIWI: ``hpdb/01/frame_00003_rgb.png`` with ``frame_00003_pose.txt``.

    The box is projected from the head's centre with ``rgb.cal``, where there is one.

    Args:
        folder: holds the sequences ``01`` … ``24``, or ``hpdb/`` with them.
        protocol: of :data:`PROTOCOLS`: which frames, split, crop and camera.
        frame: camera that the angles refer to: ``depth`` as the files have it and papers use it, or ``rgb``
            (turned by the rotation in ``rgb.cal``, about one degree); empty: the protocol's.
        test: with ``fsanet-70-30``: the sequences to test on, such as ``01+05+13``; empty: eight, drawn once for all.
        frames: a list of the frames to take: text, a frame in a line, with or without the sides of its box (x0 y0 x1
            y1), or an ``.npz`` of headposeplus (``images``, ``bbox``); empty: all.

    Raises:
        UserError: no such pictures, or no ``rgb.cal`` for the RGB camera's frame; a list or sequences that do not fit.
    """
    choice("biwi", "protocol", protocol, tuple(PROTOCOLS))
    choice("biwi", "frame", frame, ("", "depth", "rgb"))
    chosen = PROTOCOLS[protocol]
    frame = frame or chosen.frame
    if not _recognise(folder):
        raise UserError(f"{folder}: no 01/frame_00003_rgb.png; expected BIWI's hpdb/ or its sequences")
    cameras = {sequence: _camera(sequence) for sequence in _sequences(folder)}
    if frame == "rgb" and (bare := [s.name for s, camera in cameras.items() if camera is None]):
        raise UserError(f"{folder}: no readable rgb.cal in {', '.join(bare)}; frame=rgb needs it, frame=depth does not")
    split = _splits(protocol, [sequence.name for sequence in cameras], test)
    listed = _listed(Path(frames)) if frames else None
    reading = _Reading(_home(folder), cameras, frame, split, listed)
    whole = len(cameras) == _SEQUENCES and listed is None and len(chosen.splits) < 2
    subset = "" if listed is None else f"; the {len(listed):,} frames of {shown(Path(frames).name)}"
    return Source(
        name="biwi",
        variant=f"protocol {protocol}: {chosen.about}; angles in the {frame} camera's frame{subset}",
        licence=LICENCE,
        publishable=False,
        default_crop=_default_crop(chosen, reading),
        splits=chosen.splits,
        rows=reading.rows,
        expected={(*chosen.splits, "all")[0]: EXPECTED["all"]} if whole else {},
        home=reading.home,
        notes=_notes(chosen, split),
        late_notes=reading.missing,
    )


@dataclass(frozen=True, slots=True)
class _Reading:
    """What is read, and how.

    Attributes:
        home: folder of the sequences.
        cameras: of each sequence; None: it has no readable ``rgb.cal``.
        frame: camera that the angles refer to.
        split: of each sequence, by its name.
        listed: boxes of the frames to take, by :func:`_name_of`; None: all frames.
        seen: the frames that were there, once they have been read.
    """

    home: Path
    cameras: Mapping[Path, Camera | None]
    frame: str
    split: Mapping[str, str | None]
    listed: Mapping[str, Box | None] | None
    seen: set[str] = field(default_factory=set)

    def rows(self) -> Iterator[Raw | Reject]:
        keys = Keys()
        for sequence, camera in self.cameras.items():
            for path in entries(sequence):
                if not _FRAME.fullmatch(path.name):
                    continue
                name = _name_of(f"{sequence.name}/{path.name}")
                if self.listed is not None and name not in self.listed:
                    yield Reject(shown(path.relative_to(self.home)), "not in the list of frames=")
                    continue
                self.seen.add(name)
                record = self._record(path, camera, None if self.listed is None else self.listed[name])
                yield record if isinstance(record, Reject) else sample(keys, path, record)

    def missing(self) -> tuple[str, ...]:
        """A note on listed frames that are not there."""
        lost = [name for name in self.listed or () if name not in self.seen]
        if not lost:
            return ()
        return (f"frames: {len(lost):,} of {len(self.listed or ()):,} listed ones are not here, such as {lost[0]}",)

    def _record(self, path: Path, camera: Camera | None, box: Box | None) -> Record | Reject:
        source = shown(path.relative_to(self.home))
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
        if self.frame == "rgb" and camera:
            rotation = camera.rotation @ rotation
        yaw, pitch, roll = angles_of(rotation)
        if box is None and camera:
            box = camera.head_box(centre_mm)
        number = path.parent.name
        person, split = f"person{_PEOPLE.get(number, number)}", self.split[number]
        return Record(yaw=yaw, pitch=pitch, roll=roll, box=box, subject=person, source=source, split=split)


def _default_crop(protocol: Protocol, reading: _Reading) -> str:
    if reading.listed is not None and None not in reading.listed.values():
        return "margin-0@box"
    return protocol.crop or ("square-1.2@box" if all(reading.cameras.values()) else "square-1.4@detector")


def _notes(protocol: Protocol, split: Mapping[str, str | None]) -> tuple[str, ...]:
    if not protocol.splits:
        return ("split by person; four people have two sequences",)
    if "train" not in protocol.splits:
        return ()
    test = [name for name in split if split[name] == "test"]
    people = {_PEOPLE.get(name, name) for name in test}
    leaks = [name for name in split if name in _PEOPLE and split.get(_PEOPLE[name], split[name]) != split[name]]
    twice = f"; {', '.join(leaks)} show people of the other split, too" if leaks else ""
    return (f"test: sequences {', '.join(test)} of {len(people)} people{twice}",)


def _splits(protocol: str, sequences: Sequence[str], test: str) -> Mapping[str, str | None]:
    """The split of each sequence.

    Raises:
        UserError: ``test`` names no sequence, all of them, or is given with another protocol.
    """
    splits = PROTOCOLS[protocol].splits
    if "train" not in splits:
        if test:
            raise UserError(
                f"biwi: option test={test} is for protocol=fsanet-70-30; {protocol} does not split that way"
            )
        return dict.fromkeys(sequences, splits[0] if splits else None)
    names = test.split("+") if test else _drawn(sequences)
    if unknown := [name for name in names if name not in sequences]:
        raise UserError(
            f"biwi: option test={test}: {unknown[0]!r} is none of the sequences {', '.join(sequences)}; write them as "
            "01+05+13"
        )
    if len(set(names)) == len(sequences):
        raise UserError(f"biwi: option test={test}: no sequence is left to train on; name some of them")
    return {name: "test" if name in names else "train" for name in sequences}


def _drawn(sequences: Sequence[str]) -> list[str]:
    """A third of the sequences, in a random order that is the same for everyone."""
    ranked = sorted(sequences, key=lambda name: hashlib.blake2b(f"{_SEED}:{name}".encode()).digest())
    return ranked[: max(1, len(sequences) * _TEST_SEQUENCES // _SEQUENCES)] if len(sequences) > 1 else []


def _name_of(text: str) -> str:
    """``01/frame_00003`` of whatever names the frame."""
    return "/".join(text.replace("\\", "/").split("/")[-2:]).split("_rgb")[0].removesuffix("_pose.txt")


def _listed(path: Path) -> dict[str, Box | None]:
    """The frames of a list, and their boxes where it has them.

    Raises:
        UserError: it cannot be read, is empty, or a line is no frame.
    """
    try:
        with open_regular(path) as stream:
            data = stream.read(_LARGEST_LIST_BYTES + 1)
        if len(data) > _LARGEST_LIST_BYTES:
            raise ValueError(f"more than {_LARGEST_LIST_BYTES >> 20} MiB")
        found = _from_npz(data) if path.suffix == ".npz" else _from_text(data.decode())
    except (OSError, ValueError) as error:
        raise UserError(
            f"biwi: option frames={path}: {error}; expected lines such as 01/frame_00003, or 01/frame_00003 265 185 "
            "375 295 (x0 y0 x1 y1), or an .npz with images and bbox"
        ) from error
    if not found:
        raise UserError(f"biwi: option frames={path}: lists no frame")
    return found


def _from_text(text: str) -> dict[str, Box | None]:
    found: dict[str, Box | None] = {}
    for line in filter(None, map(str.split, text.splitlines())):
        name, *sides = line
        if len(sides) not in (0, 4) or not _LISTED.fullmatch(_name_of(name)):
            raise ValueError(f"{' '.join(line)[:60]!r} is not a frame")
        found[_name_of(name)] = _box_of(sides) if sides else None
    return found


def _from_npz(data: bytes) -> dict[str, Box | None]:
    """``images`` and ``bbox`` (x, y, width, height) as headposeplus writes them; never a pickle."""
    images, boxes = read_npz(io.BytesIO(data), ("images", "bbox"), _LARGEST_ARRAYS_BYTES)
    names = images.reshape(-1).tolist()
    if boxes.shape != (len(names), 4):
        raise ValueError(f"bbox is {boxes.shape} for {len(names)} images, expected a box for each")
    if wrong := [name for name in names if not _LISTED.fullmatch(_name_of(str(name)))]:
        raise ValueError(f"{str(wrong[0])[:60]!r} is not a frame")
    return {
        _name_of(name): _box_of((x, y, x + width, y + height))
        for name, (x, y, width, height) in zip(names, boxes.tolist(), strict=True)
    }


def _box_of(sides: Iterable[str | float]) -> Box:
    x0, y0, x1, y1 = map(float, sides)
    if not (x0 < x1 and y0 < y1 and all(map(math.isfinite, (x0, y0, x1, y1)))):
        raise ValueError(f"{x0:g} {y0:g} {x1:g} {y1:g} is no box")
    return x0, y0, x1, y1


def _camera(sequence: Path) -> Camera | None:
    try:
        return Camera.load(sequence / "rgb.cal")
    except (OSError, ValueError):
        return None


READERS: Final = (
    Reader(
        "biwi",
        "hpdb/01/frame_00003_rgb.png with _pose.txt",
        _recognise,
        open_biwi,
        {"protocol": tuple(PROTOCOLS), "frame": ("depth", "rgb")},
    ),
)
