"""AFLW2000-3D and 300W-LP (Zhu, Lei, Liu, Shi and Li, "Face Alignment Across Large Poses: A 3D Solution", 2016).

On disk, AFLW2000-3D:

    image00002.jpg, image00002.mat …        450 × 450; a folder splits/ with lists of stems may lie beside them

On disk, 300W-LP:

    AFW/AFW_134212_1_0.jpg, .mat …          photo 134212, face 1, view 0; also HELEN/, IBUG/, LFPW/
    AFW_Flip/, HELEN_Flip/ …                the same, mirrored

Labels: ``Pose_Para`` = pitch, yaw, roll in radians first, with our signs (yaw + = the face turns to the picture's
left, pitch + = up). Landmarks: ``pt3d_68``, or the visible points of ``pt2d``, in pixels.
Splits: none of their own. AFLW2000-3D is a test set; 300W-LP is split by photo.
Licence: none stated; AFLW and 300-W are for research.
Where: the authors' project page "3DDFA" at the Chinese Academy of Sciences' CBSR.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float

from hpe.core.errors import UserError
from hpe.core.table_files import read_text
from hpe.data.records import Record
from hpe.sources.base import (
    NOT_ITS_OWN,
    Keys,
    Raw,
    Reader,
    Reject,
    Source,
    Unread,
    below,
    choice,
    first_images,
    home_of_images,
    images,
    keyed,
    shown,
    subfolders,
)  # fmt: skip
from hpe.sources.mat import mat_arrays

LICENCE: Final = "none stated; AFLW and 300-W are for research"
EXPECTED: Final = {"test": 2_000}
"""Pictures of AFLW2000-3D."""
BEYOND_DEGREES: Final = 99.0
"""Hopenet's bins end here: the results in papers leave out faces that are turned further."""
_AFLW2000: Final = re.compile(r"image\d{5}")
_300W_LP: Final = re.compile(r"(?P<set>AFW|HELEN|IBUG|LFPW)(?P<flip>_Flip)?_(?P<photo>.+)_(?P<view>\d+)", re.IGNORECASE)
_SETS: Final = ("AFW", "HELEN", "IBUG", "LFPW")


def _labels(path: Path) -> Record:
    """Angles and landmarks of a picture's ``.mat``.

    Raises:
        ValueError: no ``.mat``, or one without a whole ``Pose_Para``.
    """
    file = path.with_suffix(".mat")
    try:
        arrays = mat_arrays(file, ("Pose_Para", "pt3d_68", "pt2d"))
    except FileNotFoundError:
        raise ValueError(f"missing {shown(file.name)}") from None
    pose = arrays.get("Pose_Para", np.zeros(0)).ravel()
    if len(pose) < 3 or not np.isfinite(pose[:3]).all():
        raise ValueError(f"{shown(file.name)}: Pose_Para holds no three angles")
    pitch, yaw, roll = (round(float(angle), 4) for angle in np.rad2deg(pose[:3]))
    beyond = max(abs(pitch), abs(yaw), abs(roll)) > BEYOND_DEGREES
    return Record(
        yaw=yaw, pitch=pitch, roll=roll,
        landmarks=_points(arrays),
        groups={"range": "beyond99"} if beyond else {},
    )  # fmt: skip


def _points(arrays: dict[str, Float[np.ndarray, "..."]]) -> tuple[tuple[float, float], ...] | None:
    """All 68 points in the picture's plane, or else the visible ones of ``pt2d`` (-1: not visible).

    Raises:
        ValueError: there are points, but not all of their numbers are finite.
    """
    damaged = ""
    for name in ("pt3d_68", "pt2d"):
        points = arrays.get(name)
        if points is not None and points.ndim == 2 and len(points) >= 2:
            flat = points[:2].T
            if name == "pt2d":
                flat = flat[(flat >= 0).all(1)]
            if not np.isfinite(flat).all():
                damaged = name
            elif len(flat) >= 2:
                return tuple(map(tuple, np.round(flat, 3).tolist()))
    if damaged:
        raise ValueError(f"{damaged} holds numbers that are not finite")
    return None


# AFLW2000-3D


def _recognise_aflw2000(folder: Path) -> str | None:
    found = next((p for p in first_images(folder) if _AFLW2000.fullmatch(p.stem)), None)
    if found and found.with_suffix(".mat").is_file():
        return f"AFLW2000-3D: pictures such as {found.name} with a .mat beside them"
    return None


def open_aflw2000(folder: Path, *, splits: str = "test") -> Source:
    """AFLW2000-3D.

    Args:
        folder: holds ``image00002.jpg``, ``image00002.mat`` …
        splits: ``test`` (all of it, as papers use it) or ``lists`` (``splits/{train,val,test}.txt`` of stems).

    Raises:
        UserError: no such pictures or lists.
    """
    choice("aflw2000", "splits", splits, ("test", "lists"))
    if not _recognise_aflw2000(folder):
        raise UserError(f"{folder}: no image00002.jpg with an image00002.mat; expected AFLW2000-3D")
    home = home_of_images(folder, _AFLW2000.fullmatch, lambda name: False)
    lists = _lists(home if (home / "splits").is_dir() else folder) if splits == "lists" else {}
    unused = _unused(folder, lists)

    def rows() -> Iterator[Reject | Unread]:
        keys = Keys()
        for path in images(folder):
            source = below(home, folder, path)
            if not _AFLW2000.fullmatch(path.stem):
                yield Reject(source, f"{NOT_ITS_OWN} AFLW2000-3D (image00002.jpg)", "foreign")
                continue
            split = lists.get(path.stem) if lists else "test"
            if split is None:
                yield Reject(source, "in none of the lists in splits/")
                continue
            yield Unread(_row, (keys(source), path, source, split, None))

    return Source(
        name="aflw2000",
        variant="AFLW2000-3D" + (", with the split lists beside it" if lists else ", all of it as test"),
        licence=LICENCE,
        publishable=False,
        default_crop="hopenet-0.2@landmarks",
        splits=tuple(dict.fromkeys(lists.values())) or ("test",),
        rows=rows,
        home=home,
        expected={} if lists else EXPECTED,
        notes=("angles beyond ±99° are kept and marked range=beyond99; papers leave these out", *unused),
    )


def _lists(folder: Path) -> dict[str, str]:
    """Split of each stem."""
    found: dict[str, str] = {}
    for split in ("train", "val", "test"):
        path = folder / "splits" / f"{split}.txt"
        if not path.is_file():
            raise UserError(f"{path}: not found; with splits=lists each of train, val and test.txt is needed")
        for stem in read_text(path).split():
            stem = stem.removesuffix(".jpg")
            if found.setdefault(stem, split) != split:
                raise UserError(f"{path}: {stem} appears in {found[stem]}.txt, too; a picture belongs to one split")
    return found


def _unused(folder: Path, lists: dict[str, str]) -> tuple[str, ...]:
    """A note on the lines of the lists that name no picture.

    Raises:
        UserError: none of a list does.
    """
    names = {path.stem for path in images(folder)} if lists else set()
    unused = {stem: None for stem in lists if stem not in names}
    for split in dict.fromkeys(lists.values()):
        if all(stem in unused for stem, its in lists.items() if its == split):
            first = next(stem for stem, its in lists.items() if its == split)
            raise UserError(
                f"{folder}: option splits=lists: no line of {split}.txt names a picture; its first is {first!r}, a "
                f"picture is {min(names)!r}"
            )
    return (f"splits: {len(unused):,} lines name no picture, such as {next(iter(unused))}",) if unused else ()


# 300W-LP


def _recognise_300w_lp(folder: Path) -> str | None:
    names = [s.name for s in subfolders(folder) if s.name.upper().removesuffix("_FLIP") in _SETS]
    places = [folder / name for name in names] or [folder]
    for place in places:
        found = next((p for p in first_images(place) if _300W_LP.fullmatch(p.stem)), None)
        if found and found.with_suffix(".mat").is_file():
            where = f" in {', '.join(names)}" if names else ""
            return f"300W-LP: pictures such as {found.name} with a .mat beside them{where}"
    return None


def open_300w_lp(folder: Path) -> Source:
    """300W-LP: photos of 300-W rendered from many views, and all of them mirrored.

    All views and mirrored copies of one photo have the same ``subject``. All faces in a photo of AFW share it.

    Raises:
        UserError: no such pictures.
    """
    if not _recognise_300w_lp(folder):
        raise UserError(f"{folder}: no AFW_134212_1_0.jpg or the like with a .mat; expected 300W-LP")

    home = home_of_images(folder, _300W_LP.fullmatch, lambda name: name.upper().removesuffix("_FLIP") in _SETS)

    def rows() -> Iterator[Reject | Unread]:
        keys = Keys()
        for path in images(folder):
            source = below(home, folder, path)
            if subject := photo_of(path.stem):
                yield Unread(_row, (keys(source), path, source, None, subject))
            else:
                yield Reject(source, f"{NOT_ITS_OWN} 300W-LP, so that its photo is unknown", "foreign")

    return Source(
        name="300w-lp",
        variant="300W-LP",
        licence=LICENCE,
        publishable=False,
        default_crop="hopenet-0.2@landmarks",
        splits=(),
        rows=rows,
        home=home,
        notes=(
            "split by photo: views and flips of one photo stay together",
            "angles beyond ±99° are kept and marked range=beyond99",
        ),
    )


def photo_of(stem: str) -> str | None:
    """The photo that a file of 300W-LP was made from: ``AFW_134212_1_15`` and its flip are ``AFW_134212``."""
    match = _300W_LP.fullmatch(stem)
    if not match:
        return None
    name, photo = match["set"].upper(), match["photo"].removeprefix("Flip_").removesuffix("_Flip")
    if name == "AFW":  # its last number counts the faces of a photo
        photo = photo.rpartition("_")[0] or photo
    return f"{name}_{photo}"


def _row(key: str, path: Path, source: str, split: str | None, subject: str | None) -> Raw | Reject:
    try:
        record = _labels(path)
    except (ValueError, OSError) as error:
        return Reject(source, str(error))
    return keyed(key, path, replace(record, source=source, split=split, subject=subject))


READERS: Final = (
    Reader(
        "aflw2000",
        "image00002.jpg with image00002.mat",
        _recognise_aflw2000,
        open_aflw2000,
        {"splits": ("test", "lists")},
    ),
    Reader("300w-lp", "AFW_134212_1_0.jpg (HELEN, IBUG, LFPW) with a .mat", _recognise_300w_lp, open_300w_lp),
)
