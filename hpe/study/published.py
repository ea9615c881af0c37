"""The results that the thesis published, for comparison with ours.

All come from the author's tables as ``thesis/README.md`` in the project's shared folder gives them. Shares are
fractions (0.46, not 46); directions and emotions are in our order unless a name states otherwise. The README lacks
Tables 3.2, 3.3, 4.3, 4.4, 4.7 and 4.8, and so does this file.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int

from hpe.core.labels import EMOTIONS, Emotion

_COLUMNS: Final = (
    Emotion.ANGER, Emotion.CONTEMPT, Emotion.DISGUST, Emotion.FEAR,
    Emotion.HAPPY, Emotion.NEUTRAL, Emotion.SAD, Emotion.SURPRISE,
)  # fmt: skip
"""The order of the thesis' columns."""

Grid = Int[np.ndarray, "5 8"]
"""Direction × emotion, both in our order."""


def _grid(*rows: tuple[int, ...]) -> Grid:
    """Rows forward, left, right, up, down; columns from the thesis' order into ours."""
    grid = np.zeros((len(rows), len(EMOTIONS)), np.int64)
    grid[:, list(_COLUMNS)] = rows
    grid.setflags(write=False)
    return grid


IMAGES: Final = _grid(
    (1504, 1334, 1454, 2052, 1661, 1823, 1554, 1769),
    (411, 310, 371, 361, 347, 397, 391, 412),
    (367, 251, 337, 281, 300, 380, 387, 376),
    (788, 399, 750, 1058, 553, 706, 972, 1005),
    (1194, 1323, 709, 507, 1356, 913, 896, 663),
)
"""Table 3.1: AffectNet images per direction (by the direction network) and emotion; 32,622 in all."""

DIRECTION_ACCURACY: Final = {"angles": 0.85, "googlenet": 0.84, "mobilenet_v3_small": 0.83, "resnet18": 0.82}
"""Table 3.4 by backbone; ``angles`` is the small network on the three angles."""


@dataclass(frozen=True, slots=True)
class Published:
    """The thesis' results on one balanced set.

    Attributes:
        sizes: images for training, validation, test.
        models: accuracy and macro F1 by backbone (``adaboost`` for AdaBoost).
        correct: correct predictions per direction and emotion, of the model that the thesis shows.
        per_cell: test images of each direction and emotion.
        table_numbers: of the table of models, of the correct predictions, and of their spread by direction and by
            emotion.
    """

    sizes: tuple[int, int, int]
    models: dict[str, tuple[float, float]]
    correct: Grid
    per_cell: int
    table_numbers: tuple[str, str, str, str]


BASELINE: Final = Published(
    (3200, 1600, 800),
    {
        "mobilenet_v3_small": (0.46, 0.4623),
        "googlenet": (0.43, 0.4285),
        "resnet18": (0.17, 0.1395),
        "vgg16": (0.13, 0.0554),
        "alexnet": (0.12, 0.0278),
        "adaboost": (0.12, 0.0277),
    },
    _grid(
        (8, 6, 9, 5, 17, 10, 9, 6),
        (5, 13, 9, 9, 13, 13, 6, 8),
        (10, 13, 9, 7, 12, 11, 9, 9),
        (5, 7, 8, 11, 14, 10, 8, 6),
        (7, 7, 9, 7, 14, 12, 6, 8),
    ),
    20,
    ("4.1", "4.2", "4.3", "4.4"),
)
"""Tables 4.1 and 4.2: directions by the hand-made threshold tree."""

PROPOSED: Final = Published(
    (8840, 1200, 1200),
    {
        "mobilenet_v3_small": (0.52, 0.5177),
        "googlenet": (0.52, 0.5160),
        "resnet18": (0.49, 0.4920),
        "adaboost": (0.16, 0.1658),
        "vgg16": (0.12, 0.1277),
        "alexnet": (0.12, 0.1276),
    },
    _grid(
        (14, 19, 12, 13, 24, 11, 14, 20),
        (12, 15, 14, 17, 16, 18, 17, 18),
        (8, 16, 16, 18, 24, 16, 14, 15),
        (11, 15, 14, 14, 25, 14, 12, 14),
        (9, 13, 12, 15, 24, 16, 18, 17),
    ),
    30,
    ("4.5", "4.6", "4.7", "4.8"),
)
"""Tables 4.5 and 4.6: directions by the direction network."""

SETS: Final = {"baseline": BASELINE, "proposed": PROPOSED}
