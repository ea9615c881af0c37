"""What a network reads in an image, as Python objects: a :class:`Face` for each face, :class:`Faces` for the image."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Literal, overload

import numpy as np

from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.annotate import FINER, Marker, Overlay, angles_note, card, photo, with_axes, with_cube
from hpe.data.crops import Box
from hpe.predict.face_finders import FoundFace
from hpe.predict.network import Answerer, Answers

if TYPE_CHECKING:
    import pandas
    from PIL.Image import Image

    from hpe.predict.given import Image as GivenImage

Row = dict[str, Any]
"""A row of the table of ``hpe predict``: column → value."""
BOX: Final = ("x0", "y0", "x1", "y1")
MARKERS: Final[dict[str, Marker]] = {"axes": with_axes, "cube": with_cube}
_CARD_SIDES: Final = (256, 512)


def columns(heads: Sequence[str]) -> dict[str, type]:
    """The columns of a network's table, and their types (``float`` is single precision)."""
    found: dict[str, type] = {"source": str, "key": str, "face": int, **dict.fromkeys(BOX, float), "score": float}
    if "emotion" in heads:
        found |= {"emotion": str, **{f"emotion_{name}": float for name in EMOTIONS}}
    if "direction" in heads or "pose" in heads:
        found["direction"] = str
    if "direction" in heads:
        found |= {f"direction_{name}": float for name in DIRECTIONS}
    if "pose" in heads:
        found |= {**dict.fromkeys(ANGLES, float), **{f"{angle}_sd": float for angle in ANGLES}}
    if "affect" in heads:
        found |= {"valence": float, "arousal": float}
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """One face and what the network reads in it. None: the network has no such head, or gave no finite number.

    Attributes:
        box: x0, y0, x1, y1 in pixels of the upright image; the whole image where no detector looked for faces.
        score: the detector's; None without a detector.
        heads: what the network reads, among ``emotion``, ``direction``, ``pose`` and ``affect``.
        emotion: the most probable one.
        probabilities: of each emotion; they sum to 1.
        direction: ``forward``, ``left``, ``right``, ``up`` or ``down``, as the viewer sees it; by the angles where the
            network has no head for it, and None where they do not decide.
        direction_probabilities: of each direction; None without a head for it.
        yaw, pitch, roll: degrees; yaw is positive towards the left edge of the image, pitch upwards,
            ``R = Rz(roll) Ry(yaw) Rx(pitch)``.
        deviations: their standard deviations in degrees; None for a network that gives none.
        valence, arousal: -1 to 1.
    """

    box: Box
    score: float | None = None
    heads: tuple[str, ...] = field(default=(), repr=False)
    emotion: str | None = None
    probabilities: Mapping[str, float] | None = None
    direction: str | None = None
    direction_probabilities: Mapping[str, float] | None = None
    yaw: float | None = None
    pitch: float | None = None
    roll: float | None = None
    deviations: tuple[float, float, float] | None = None
    valence: float | None = None
    arousal: float | None = None

    @classmethod
    def of(cls, box: Box, score: float | None, heads: Sequence[str], answers: Answers, row: int) -> "Face":
        """The face in one row of a network's answers; numbers have the digits of single precision."""
        found: Row = {}
        if (shares := _shares(answers.emotion_p, row, EMOTIONS)) is not None:
            found |= {"emotion": max(shares, key=lambda name: shares[name]), "probabilities": shares}
        if answers.direction is not None and answers.direction[row] >= 0:
            found["direction"] = DIRECTIONS[int(answers.direction[row])]
        found["direction_probabilities"] = _shares(answers.direction_p, row, DIRECTIONS)
        if (angles := _numbers(answers.angles, row)) is not None:
            found |= dict(zip(ANGLES, angles, strict=True))
        found["deviations"] = _numbers(answers.deviations, row)
        if (affect := _numbers(answers.affect, row)) is not None:
            found["valence"], found["arousal"] = affect
        return cls(
            box=tuple(round(side, 2) for side in box),  # pyright: ignore[reportArgumentType]
            score=None if score is None else round(score, 6),
            heads=tuple(heads),
            **found,
        )

    @property
    def angles(self) -> tuple[float, float, float] | None:
        """Yaw, pitch and roll in degrees, or None."""
        if self.yaw is None or self.pitch is None or self.roll is None:
            return None
        return self.yaw, self.pitch, self.roll

    @property
    def unanswered(self) -> bool:
        """Whether a head of the network gave NaN or infinity for this face."""
        known = {"emotion": self.emotion, "pose": self.yaw, "affect": self.valence}
        return any(head in self.heads and value is None for head, value in known.items())

    def to_dict(self) -> Row:
        """The columns of ``hpe predict`` from ``x0`` on; a column of every head that the network has."""
        row: Row = {**dict(zip(BOX, self.box, strict=True)), "score": self.score}
        if "emotion" in self.heads:
            row["emotion"] = self.emotion
            row |= {f"emotion_{name}": (self.probabilities or {}).get(name) for name in EMOTIONS}
        if "direction" in self.heads or "pose" in self.heads:
            row["direction"] = self.direction
        if "direction" in self.heads:
            row |= {f"direction_{name}": (self.direction_probabilities or {}).get(name) for name in DIRECTIONS}
        if "pose" in self.heads:
            row |= {angle: getattr(self, angle) for angle in ANGLES}
            row |= dict(zip([f"{angle}_sd" for angle in ANGLES], self.deviations or (None,) * 3, strict=True))
        if "affect" in self.heads:
            row |= {"valence": self.valence, "arousal": self.arousal}
        return row

    def overlay(self) -> Overlay:
        """What is drawn on the face."""
        return Overlay(
            self.box,
            self.angles,
            None if self.direction is None else DIRECTIONS.index(self.direction),
            None if self.probabilities is None else [self.probabilities[name] for name in EMOTIONS],
            "" if self.angles is None else angles_note(self.angles),
        )

    def __getitem__(self, column: str) -> Any:
        """A column of :meth:`to_dict`: what ``read`` gave until 0.1; use the attributes."""
        _warn_of_columns(column)
        return self.to_dict()[column]


@dataclass(frozen=True, slots=True)
class Faces(Sequence[Face]):
    """The faces of one image, the largest first. An image that gives none has a :attr:`problem`.

    It is a sequence: ``faces[0]``, ``len(faces)``, ``for face in faces``. ``faces[0]`` of an image without a face
    raises a UserError that names the image and the problem, so that none is passed over unseen.

    Attributes:
        source: the path, the shard, or the place of an array in the list that was given.
        key: the sample's key in a shard, else the file's stem or empty.
        width, height: of the upright image in pixels; 0 if it could not be read.
        faces: see above.
        problem: why there is no face: ``no face found``, or why the image could not be read.
        unread: whether the image could not be read.
        heads: what the network reads.
        image: what was given; :meth:`draw` draws on it.
    """

    source: str
    key: str
    width: int
    height: int
    faces: tuple[Face, ...]
    problem: str | None = None
    unread: bool = False
    heads: tuple[str, ...] = ()
    image: "GivenImage | None" = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.faces)

    def __iter__(self) -> Iterator[Face]:
        return iter(self.faces)

    @overload
    def __getitem__(self, index: int) -> Face: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Face, ...]: ...
    @overload
    def __getitem__(self, index: str) -> Any: ...
    def __getitem__(self, index: int | slice | str) -> "Face | tuple[Face, ...] | Any":
        if isinstance(index, str):
            _warn_of_columns(index)
            return self[0].to_dict()[index]
        if not self.faces and isinstance(index, int):
            raise UserError(f"{self.name}: {self.problem}")
        return self.faces[index]

    @property
    def name(self) -> str:
        """The image in messages."""
        return f"{self.source}, {self.key}" if self.source.endswith(".tar") else self.source

    def to_dict(self) -> Row:
        """Everything as plain values that JSON takes: the image, and a dict per face."""
        about = {name: getattr(self, name) for name in ("source", "key", "width", "height", "problem")}
        return about | {"faces": [face.to_dict() for face in self.faces]}

    def rows(self) -> list[Row]:
        """The rows of ``hpe predict``, one per face."""
        known = {"source": self.source, "key": self.key}
        return [known | {"face": number} | face.to_dict() for number, face in enumerate(self.faces)]

    def to_pandas(self) -> "pandas.DataFrame":
        """A row per face, with the columns of ``hpe predict``; of several images:
        ``pandas.concat(faces.to_pandas() for faces in model(paths))``.
        """
        import pandas

        return pandas.DataFrame(self.rows(), columns=list(columns(self.heads)))

    def draw(self, marker: Literal["axes", "cube"] = "axes") -> "Image":
        """The image with its faces' angles, directions and emotions drawn on it, as ``hpe predict --draw`` does.

        An image file is read again.

        Raises:
            UserError: the image cannot be read, or there is no such marker.
        """
        from PIL.Image import fromarray

        from hpe.predict.given import pixels_of

        if marker not in MARKERS:
            raise UserError(f"draw: marker {marker!r}: expected {' or '.join(MARKERS)}")
        if self.image is None:
            raise UserError(f"{self.name}: {self.problem or 'its pixels are not kept'}: nothing to draw on")
        picture = fromarray(pixels_of(self.image, self.name))
        return drawn(picture, self.faces, MARKERS[marker])


def answered(found: Sequence[FoundFace], answerer: Answerer, batch: int) -> list[Face]:
    """What a network reads in faces that were found, so many at once."""
    faces: list[Face] = []
    for start in range(0, len(found), batch):
        part = found[start : start + batch]
        answers = answerer.answer(np.stack([one.face for one in part]))
        faces += [Face.of(one.box, one.score, answerer.heads, answers, row) for row, one in enumerate(part)]
    return faces


def tell_without_axes(heads: Iterable[str]) -> None:
    """Say that a network without a pose head has neither axes nor a cube to draw."""
    if "pose" not in heads:
        say("predict: this network reads no angles: drawn is what else it reads, without axes or cube")


def drawn(
    image: "Image",
    faces: Sequence[Face],
    marker: Marker,
    labels: Sequence[str] = (),
    *,
    finer: int = FINER,
    widen: bool = True,
) -> "Image":
    """An image with its faces drawn on it: beside it if the one face is the whole image, else into it.

    Args:
        image: RGB.
        faces: in its pixels.
        marker: axes or cube.
        labels: of the faces, drawn above their boxes in photos.
        finer: see :class:`hpe.data.annotate.Overlay`.
        widen: see :func:`hpe.data.annotate.photo`.
    """
    names = labels or [""] * len(faces)
    marks = [replace(face.overlay(), label=name, finer=finer) for face, name in zip(faces, names, strict=True)]
    if len(faces) == 1 and faces[0].score is None and faces[0].box == (0, 0, image.width, image.height):
        return card(image, marks[0], height=int(np.clip(image.height, *_CARD_SIDES)), marker=marker)
    return photo(image, marks, marker, widen=widen)


def _shares(values: np.ndarray | None, row: int, names: Sequence[str]) -> dict[str, float] | None:
    found = _numbers(values, row)
    return None if found is None else dict(zip(names, found, strict=True))


def _numbers(values: np.ndarray | None, row: int) -> tuple[Any, ...] | None:
    """The shortest decimal numbers for these single-precision ones; None if one is NaN or infinite."""
    if values is None or not np.isfinite(values[row]).all():
        return None
    return tuple(float(str(value)) for value in values[row].astype(np.float32))


def _warn_of_columns(column: str) -> None:
    warnings.warn(
        f"face[{column!r}]: use the attributes of hpe.Face, or face.to_dict(); columns by name will go",
        DeprecationWarning,
        stacklevel=3,
    )
