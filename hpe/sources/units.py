"""Which unit the angles and boxes of a table have: what is not stated is asked for once, before anything is written.

Radians read as degrees, or fractions of a picture read as pixels, give samples that look whole and are wrong. Whether a
table could be meant so is decided on all of its rows: AFLW2000 has angles of −972° among its faces.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from hpe.core.errors import UserError
from hpe.data.crops import Box

ASK: Final = "ask"
ANGLES: Final = (ASK, "degrees", "radians")
BOXES: Final = (ASK, "pixels", "fractions")
_NEARLY_ALL: Final = 0.95
"""Of AFLW2000's angles in radians 1.5 % lie beyond ±π; heads that all but look ahead have a third of theirs in degrees
beyond ±3."""
_LARGEST_FRACTION: Final = 1.5
"""A box may reach over the picture's border; no face has sides of so few pixels."""


@dataclass(slots=True)
class _Sizes:
    """How large numbers are: how many there are, how many are at most ``limit``, and how many are beyond twice that."""

    limit: float
    total: int = 0
    small: int = 0
    large: int = 0
    largest: float = 0.0

    def add(self, size: float) -> None:
        self.total += 1
        self.small += size <= self.limit
        self.large += size > 2 * self.limit
        self.largest = max(self.largest, size)

    @property
    def all_small(self) -> bool:
        return self.largest > 0 and self.small >= _NEARLY_ALL * self.total

    @property
    def mostly_large(self) -> bool:
        return self.large > self.total / 2


class Units:
    """The sizes of all angles and boxes of a dataset.

    Args:
        where: the dataset, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._angles = _Sizes(math.pi + 0.01)
        self._boxes = _Sizes(_LARGEST_FRACTION)
        self._box: Box | None = None

    def add(self, angles: Iterable[float | None], box: Box | None = None) -> None:
        """Count a row: its angles, and the sides of its box."""
        for angle in angles:
            if angle is not None:
                self._angles.add(abs(angle))
        if box is not None:
            self._boxes.add(max(map(abs, box)))
            self._box = self._box or box

    def check(self, *, angles: str, boxes: str) -> None:
        """Refuse units that are not stated and could be either, and stated ones that cannot be.

        Args:
            angles: one of ``ANGLES``.
            boxes: one of ``BOXES``.

        Raises:
            UserError: the message names the option.
        """
        found = self._angles
        if angles == ASK and found.all_small:
            raise UserError(
                f"{self._where}: {_of(found.small, found.total)} angles lie within ±π (the largest is "
                f"{found.largest:g}), as radians do: give their unit with --option angles=radians "
                "or --option angles=degrees"
            )
        if angles == "radians" and found.mostly_large:
            raise UserError(
                f"{self._where}: option angles=radians, but {found.large:,} of {found.total:,} angles are beyond ±2π "
                f"(the largest is {found.largest:g}): use --option angles=degrees"
            )
        found = self._boxes
        example = ", ".join(f"{side:g}" for side in self._box or ())
        if boxes == ASK and found.all_small:
            raise UserError(
                f"{self._where}: {_of(found.small, found.total)} boxes have sides of 0 to 1 (such as {example}), as "
                "fractions of a picture have: give their unit with --option boxes=fractions or --option boxes=pixels"
            )
        if boxes == "fractions" and found.mostly_large:
            raise UserError(
                f"{self._where}: option boxes=fractions, but {found.large:,} of {found.total:,} boxes have sides far "
                f"beyond 1 (such as {example}): use --option boxes=pixels"
            )


def _of(some: int, total: int) -> str:
    return f"all {total:,}" if some == total else f"{some:,} of {total:,}"
