"""The faces of a video's frames as tracks: who is who, and what the network reads in each, smoothed over time."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.crops import Box
from hpe.data.directions import OURS
from hpe.data.smoothing import LONGEST_GAP_SECONDS, SmoothedRotation, SmoothedValues
from hpe.data.tracks import Tracker
from hpe.predict.faces import Face

_BOX_HERTZ = 4.0
"""For drawing only: a detector's boxes tremble by some pixels."""


@dataclass(frozen=True, slots=True)
class TrackedFace:
    """A face of one frame.

    Attributes:
        track: the person's number in this video, 0 for the first; a face that was away for more than half a second gets
            another.
        raw: what the network reads in this frame.
        smooth: the same, smoothed over this face's frames up to this one.
    """

    track: int
    raw: Face
    smooth: Face


@dataclass
class _Filters:
    """One face's filters, and when it was last seen."""

    rotation: SmoothedRotation
    emotion: SmoothedValues
    direction: SmoothedValues
    affect: SmoothedValues
    box: SmoothedValues = field(default_factory=lambda: SmoothedValues(_BOX_HERTZ))
    seconds: float = 0.0


class FaceTracks:
    """Tracks and smooths the faces of one video.

    Args:
        hertz: cutoff of every filter for a still head: lower trembles less and lags more; ``inf`` smooths nothing.

    Attributes:
        count: tracks so far.
    """

    def __init__(self, hertz: float = 1.0) -> None:
        self._hertz, self._tracker = hertz, Tracker()
        self._filters: dict[int, _Filters] = {}

    @property
    def count(self) -> int:
        """Tracks so far."""
        return self._tracker.count

    def next(self, faces: Sequence[Face], seconds: float) -> list[TrackedFace]:
        """The faces of the next frame, in their order.

        Args:
            faces: of the frame.
            seconds: the frame's time, later than the last one.
        """
        found = []
        for track, face in zip(self._tracker.next([face.box for face in faces], seconds), faces, strict=True):
            filters = self._filters.setdefault(track, self._new())
            filters.seconds = seconds
            found.append(TrackedFace(track, face, _smoothed(face, filters, seconds)))
        self._filters = {
            track: filters for track, filters in self._filters.items()
            if seconds - filters.seconds <= LONGEST_GAP_SECONDS
        }  # fmt: skip
        return found

    def _new(self) -> _Filters:
        def values() -> SmoothedValues:
            return SmoothedValues(self._hertz)

        return _Filters(SmoothedRotation(self._hertz), emotion=values(), direction=values(), affect=values())


def _smoothed(face: Face, filters: _Filters, seconds: float) -> Face:
    """A face with everything smoothed; what is unknown in this frame stays unknown."""
    values: dict[str, Any] = {}
    if face.angles is not None:
        angles = filters.rotation.next(np.asarray(face.angles), seconds)
        values |= dict(zip(ANGLES, map(_rounded, angles), strict=True))
        values["direction"] = _by_thresholds(angles, face.deviations)
    if face.probabilities is not None:
        shares = filters.emotion.next(np.asarray([face.probabilities[name] for name in EMOTIONS]), seconds)
        values["probabilities"] = dict(zip(EMOTIONS, map(_rounded, shares), strict=True))
        values["emotion"] = EMOTIONS[int(shares.argmax())]
    if face.direction_probabilities is not None:
        shares = filters.direction.next(np.asarray([face.direction_probabilities[one] for one in DIRECTIONS]), seconds)
        values["direction_probabilities"] = dict(zip(DIRECTIONS, map(_rounded, shares), strict=True))
        values["direction"] = DIRECTIONS[int(shares.argmax())]
    if face.valence is not None and face.arousal is not None:
        affect = filters.affect.next(np.asarray((face.valence, face.arousal)), seconds)
        values["valence"], values["arousal"] = map(_rounded, affect)
    box: Box = tuple(filters.box.next(np.asarray(face.box), seconds).tolist())  # pyright: ignore[reportAssignmentType]
    return replace(face, box=box, **values)


def _by_thresholds(angles: np.ndarray, deviations: tuple[float, float, float] | None) -> str | None:
    one = angles[None].astype(np.float32)
    known = np.full_like(one, np.nan) if deviations is None else np.asarray([deviations], np.float32)
    chosen = int(OURS(one, known)[0])
    return DIRECTIONS[chosen] if chosen >= 0 else None


def _rounded(value: float) -> float:
    """The shortest decimal number in single precision, as the raw columns have."""
    return float(str(np.float32(value)))
