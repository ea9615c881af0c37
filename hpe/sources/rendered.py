"""Rendered heads (:mod:`hpe.sources.synthetic`) as a source: any number of them, from a seed alone.

On disk: nothing. Every picture is rendered when it is read.
Labels: exact yaw, pitch, roll in degrees in our signs, emotion, valence, arousal, direction, face box, person.
Splits: train, val and test, by person.
Licence: rendered by this package; no rights of others.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import Float

from hpe.core.errors import UserError
from hpe.core.labels import Direction
from hpe.data.records import Record
from hpe.sources.base import Raw, Reader, Reject, Source

Look = Literal["studio", "wild"]
_LARGEST_SIDE: Final = 1024
_MOST_DIGITS: Final = 20


@dataclass(frozen=True, slots=True)
class RenderedHead:
    """One head, rendered when it is read: only these numbers travel to a worker process."""

    index: int
    seed: int
    people: int
    size: int
    look: Look

    def read(self) -> bytes:
        """The head as PNG."""
        from PIL import Image

        from hpe.sources.synthetic import head_at

        _, picture, _ = head_at(self.index, seed=self.seed, people=self.people, size=self.size, look=self.look)
        out = io.BytesIO()
        Image.fromarray(picture).save(out, "PNG", compress_level=1)
        return out.getvalue()


def open_rendered(
    path: Path,
    *,
    count: str = "4000",
    people: str = "40",
    seed: str = "0",
    size: str = "224",
    look: str = "studio",
) -> Source:
    """Rendered heads with exact angles and emotions; split by person.

    Args:
        path: ignored.
        count: how many pictures.
        people: how many people they show.
        seed: same seed, same pictures.
        size: side of a picture in pixels.
        look: studio (clear poses and expressions before plain backgrounds) or wild (as varied as photos).

    Raises:
        UserError: an option is not a whole number in its range, or no look of these two.
    """
    if look not in get_args(Look):
        raise UserError(f"source rendered: option look is {look[:40]!r}; expected studio or wild")
    from hpe.sources.synthetic.wild import CROP

    chosen: Look = look  # pyright: ignore[reportAssignmentType]
    pictures = _whole("count", count, 1, 10**8)
    persons = _whole("people", people, 1, 10**6)
    start = _whole("seed", seed, 0, 2**31 - 1)
    side = _whole("size", size, 16, _LARGEST_SIDE)

    def rows() -> Iterator[Raw | Reject]:
        from hpe.sources.synthetic import cast, face_box, outline, project, split_of

        for index in range(pictures):
            shown = cast(index, seed=start, people=persons, look=chosen)
            seen, name = shown.seen, f"head{shown.person_id:04d}"
            record = Record(
                emotion=int(seen.emotion), valence=seen.valence, arousal=seen.arousal,
                yaw=seen.yaw, pitch=seen.pitch, roll=seen.roll, direction=direction_of(seen.yaw, seen.turn[1]),
                box=face_box(shown.head, seen, side),
                landmarks=_points(project(outline(shown.head, seen), seen, side)) if chosen == "wild" else None,
                subject=name, source=f"seed{start}/{index}", split=split_of(shown.person_id),
            )  # fmt: skip
            yield Raw(f"{name}-{index:07d}", RenderedHead(index, start, persons, side, chosen), record)

    return Source(
        name="synthetic",
        variant=f"{pictures:,} heads of {persons} people, seed {start}, {side} px"
        + ("" if chosen == "studio" else f", look {chosen}"),
        licence="rendered by this package; no rights of others",
        publishable=True,
        # The wild look frames its pictures so: the crop is the whole picture, and its name tells how to crop a photo.
        default_crop="none" if chosen == "studio" else f"square-{CROP}@landmarks",
        splits=("train", "val", "test"),
        rows=rows,
        total=pictures,
    )


def direction_of(yaw: float, pitch: float) -> Direction:
    """The direction of a rendered head. Its borders are 25° of yaw and 20° of pitch; few heads lie close to them."""
    turned, raised = yaw / 25, pitch / 20
    if max(abs(turned), abs(raised)) < 1:
        return Direction.FORWARD
    if abs(turned) >= abs(raised):
        return Direction.LEFT if turned > 0 else Direction.RIGHT
    return Direction.UP if raised > 0 else Direction.DOWN


def _points(found: Float[np.ndarray, "points 2"]) -> tuple[tuple[float, float], ...]:
    return tuple((round(x, 2), round(y, 2)) for x, y in found.tolist())


def _whole(option: str, text: str, least: int, most: int) -> int:
    if not text.isdecimal() or len(text) > _MOST_DIGITS or not least <= int(text) <= most:
        raise UserError(
            f"source rendered: option {option} is {text[:40]!r}; expected a whole number of {least}..{most}"
        )
    return int(text)


READERS: Final = (
    Reader("synthetic", "no input; it renders heads", lambda path: None, open_rendered, {"look": get_args(Look)}),
)
