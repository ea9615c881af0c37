"""Direction of a face from its angles: the thesis' threshold tree, ours, and Pointing'04's poses.

Angles come in our signs (yaw positive = the viewer's left); the thesis' tree is written in its own, with
yaw negated, and is converted here. Every rule gives ``hpe.core.labels.Direction`` as int8, with
:data:`ABSTAIN` where it does not decide. The thesis' small network is trained like any other (backbone ``angles``).
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from jaxtyping import Float, Int8

from hpe.core.errors import UserError
from hpe.core.files import write_json
from hpe.core.labels import Direction

ABSTAIN: Final = -1
PROFILE_DEGREES: Final = 90.0
DirectionRule = Callable[[Float[np.ndarray, "faces 3"], Float[np.ndarray, "faces 3"]], Int8[np.ndarray, " faces"]]
"""Angles and their standard deviations (yaw, pitch, roll; degrees) to directions."""

_F, _L, _R, _U, _D = (np.int8(direction) for direction in Direction)


def thesis_tree(angles: Float[np.ndarray, "faces 3"]) -> Int8[np.ndarray, " faces"]:
    """The hand-made threshold tree of the thesis' baseline on yaw, pitch, roll in degrees, first match wins.

    It gives all 4,800 baseline labels of the thesis' tables (``tests/data/test_directions.py``). A face without
    angles (NaN) is abstained from.
    """
    y, p, r = -angles[:, 0], angles[:, 1], angles[:, 2]
    left = (y < p) & (y < r) & (y < -15)
    right = (y > p) & (y > r) & (y > 5)
    both_negative = (p < 0) & (r < 0)
    rules = (
        (left & (p > 0) & (r < 0) & (p < 3), _L),
        (left & (p > 0) & (r < 0), _U),
        (left & both_negative & ~(p + r > -15), _D),
        (left, _L),
        (right & both_negative & (p + r > -9), _R),
        (right & (p + r > 0), _U),
        (right & (p + r < 0), _D),
        (right, _R),
        ((p > 0) & (r > 0) & (y < 0) & (p > 15), _D),
        ((p > 0) & (r > 0), _F),
        (both_negative & (y < 0) & (p < -15), _D),
        (both_negative & (y < 0) & ((r < -12) | (y < -10)), _R),
        (both_negative & (y < 0), _F),
        (p < -13, _D),
        (p + y < -10, _F),
        (y > 3, _F),
        (p > 10, _U),
        ((p < -4) & (y > 0) & (r > 0), _D),
        ((p > y) & (p > r) & (p > 0) & (y > 0), _U),
    )
    found = np.select([condition for condition, _ in rules], [label for _, label in rules], _F)
    return np.where(np.isfinite(angles).all(1), beyond_profile(angles, found), np.int8(ABSTAIN)).astype(np.int8)


def beyond_profile(
    angles: Float[np.ndarray, "faces 3"], found: Int8[np.ndarray, " faces"]
) -> Int8[np.ndarray, " faces"]:
    """Directions that a rule found; where a head is turned beyond its profile, the side that it is turned to.

    Rules are made from angles of faces, whose yaw is within ±90°. Beyond it pitch says little: at a yaw of 95° and a
    pitch of 80° the nose still points sideways.
    """
    beyond = np.abs(angles[:, 0]) > PROFILE_DEGREES
    return np.where(beyond, np.where(angles[:, 0] > 0, _L, _R), found).astype(np.int8)


_POINTING04: Final = {
    90: "......U......",
    60: "UUUUUUUUUUUUU",
    30: "RURUFUFFFLULL",
    15: "RRRRRFFFFLLLL",
    0: "RRRRFFFFLLLLL",
    -15: "RRRRRFFFFLLLL",
    -30: "RRRDFFDDDDLLL",
    -60: "DDDDDDDDDDDDD",
    -90: "......D......",
}
"""Per tilt, the direction at pan -90, -75 … +90.

Read off the thesis' 2,577 labelled Pointing'04 images: each of the 93 poses has one direction there, without
an exception, although not a regular one (tilt +30 alternates; 0, +30 is left but 0, -30 is forward).
"""


def pointing04_direction(pan: float, tilt: float) -> Direction | None:
    """The direction that the thesis gives to a pose of Pointing'04 (degrees, as in its file names), or None."""
    column, off = divmod(pan + 90, 15)
    letters = _POINTING04.get(int(tilt), "") if tilt == int(tilt) else ""
    if off or not 0 <= column < len(letters) or letters[int(column)] == ".":
        return None
    return Direction("FLRUD".index(letters[int(column)]))


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Our rule on yaw and pitch, with a confidence and an option to abstain.

    A face inside all four thresholds looks forward; outside, the axis that is the more thresholds away
    decides. The angles are taken as normal distributions around what was estimated: the confidence is the
    share of the distribution that falls to the chosen direction, and below ``least_confidence`` the rule
    abstains.

    Attributes:
        left, right, up, down: degrees, all positive, where forward ends.
        spread: factor from the estimator's own standard deviation to the one used here.
        floor: degrees added to it (in squares), for errors that the estimator does not know of.
        least_confidence: 0..1; 0 never abstains.
    """

    left: float
    right: float
    up: float
    down: float
    spread: float
    floor: float
    least_confidence: float

    def decide(self, angles: Float[np.ndarray, "faces 3"]) -> Int8[np.ndarray, " faces"]:
        """The direction of each face, never abstaining except where there are no angles (NaN)."""
        yaw, pitch = angles[:, 0], angles[:, 1]
        across = yaw / np.where(yaw >= 0, self.left, self.right)
        along = pitch / np.where(pitch >= 0, self.up, self.down)
        sideways = np.where(across > 0, _L, _R)
        upright = np.where(along > 0, _U, _D)
        found = np.where(np.abs(across) >= np.abs(along), sideways, upright)
        found = np.where(np.maximum(np.abs(across), np.abs(along)) <= 1, _F, found)
        found = beyond_profile(angles, found)
        return np.where(np.isfinite(yaw + pitch), found, np.int8(ABSTAIN)).astype(np.int8)

    def confidence(
        self, angles: Float[np.ndarray, "faces 3"], deviations: Float[np.ndarray, "faces 3"]
    ) -> Float[np.ndarray, " faces"]:
        """The share of each face's angle distribution that has the decided direction, 0..1 (NaN: no angles).

        Args:
            angles: yaw, pitch, roll, degrees.
            deviations: their standard deviations as estimated; NaN where the estimator gives none.
        """
        sigma = np.hypot(self.spread * np.nan_to_num(deviations), self.floor)
        chosen = self.decide(angles)
        agree = np.zeros(len(angles))
        for across in _QUANTILES:
            for along in _QUANTILES:
                moved = angles + sigma * np.array((across, along, 0.0))
                agree += self.decide(moved) == chosen
        return np.where(chosen == ABSTAIN, np.nan, agree / len(_QUANTILES) ** 2)

    def __call__(
        self, angles: Float[np.ndarray, "faces 3"], deviations: Float[np.ndarray, "faces 3"]
    ) -> Int8[np.ndarray, " faces"]:
        """The direction of each face, :data:`ABSTAIN` below the least confidence."""
        decided = self.decide(angles)
        if self.least_confidence <= 0:
            return decided
        sure = self.confidence(angles, deviations) >= self.least_confidence
        return np.where(sure, decided, np.int8(ABSTAIN)).astype(np.int8)

    def never_abstaining(self) -> Self:
        """The same thresholds without the option to abstain."""
        return replace(self, least_confidence=0.0)

    def save(self, path: Path, figures: Mapping[str, Any]) -> None:
        """Write the rule as JSON, with the figures that it was judged by."""
        write_json(path, {"rule": "ours", **asdict(self), "figures": dict(figures)})

    @classmethod
    def load(cls, path: Path) -> Self:
        """The rule of a file that `hpe calibrate` wrote.

        Raises:
            UserError: no such file, or not a rule.
        """
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            values = {name: float(raw[name]) for name in cls.__dataclass_fields__}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a direction rule that `hpe calibrate` wrote: {error!r}") from error
        angles = [values[name] for name in ("left", "right", "up", "down")]
        if not all(math.isfinite(value) and value >= 0 for value in values.values()) or min(angles) <= 0:
            raise UserError(f"{path}: {values}: expected finite numbers, the four thresholds above 0")
        return cls(**values)


def _normal_quantiles(count: int) -> Float[np.ndarray, " count"]:
    """Midpoints of ``count`` equally likely slices of the standard normal distribution."""
    from statistics import NormalDist

    return np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])


_QUANTILES: Final = _normal_quantiles(11)

OURS: Final = Thresholds(left=28.0, right=28.5, up=22.5, down=20.0, spread=0.0, floor=10.0, least_confidence=0.67)
"""Fitted on all 15 people of Pointing'04 (2,790 faces, against the thesis' directions) by::

    hpe pose shards/pointing04 -e configs/estimators/lwpose66.yaml --crop square-1.6@box
    hpe calibrate shards/pointing04 -e lwpose66 --out ours.json

On people that it was not fitted on (five folds): accuracy 0.813 always deciding; 0.898 of the 70.1 % that it
decides; calibration error 0.031. The estimator's own deviations did not help (spread 0). Fitted on the thesis'
Hopenet angles it comes to almost the same: 29, 31.5, 20, 19, floor 10.
"""

_POINTING04_NAME: Final = re.compile(r"person(?:ne)?\d{2}\d\d{2}([+-]\d+)([+-]\d+)")


def pointing04_direction_of_name(name: str) -> Direction | None:
    """The thesis' direction of a Pointing'04 file, by the tilt and pan in its name; None for other names."""
    match = _POINTING04_NAME.search(name)
    return pointing04_direction(float(match[2]), float(match[1])) if match else None


@dataclass(frozen=True)
class DirectionRules:
    """The rules of a pass: by name, the function and the definition that pose tables hold."""

    rules: Mapping[str, tuple[DirectionRule, str]]

    @property
    def definitions(self) -> dict[str, str]:
        """Name to definition."""
        return {name: definition for name, (_, definition) in self.rules.items()}

    def apply(
        self, angles: Float[np.ndarray, "faces 3"], deviations: Float[np.ndarray, "faces 3"]
    ) -> dict[str, Int8[np.ndarray, " faces"]]:
        """The directions by every rule."""
        return {name: rule(angles, deviations) for name, (rule, _) in self.rules.items()}


def direction_rules(ours: Thresholds, network: tuple[DirectionRule, str] | None = None) -> DirectionRules:
    """The rules of a pose table: the thesis' tree, the thesis' network where it is given, and ours.

    Args:
        ours: thresholds.
        network: the network's function and the sha256 of its weights.
    """
    rules: dict[str, tuple[DirectionRule, str]] = {
        "thesis_tree": (lambda angles, _: thesis_tree(angles), "hpe.directions.thesis_tree/1")
    }
    if network is not None:
        rules["thesis_network"] = (network[0], f"sha256:{network[1]}")
    rules["ours"] = (ours, json.dumps(asdict(ours), sort_keys=True))
    return DirectionRules(rules)
