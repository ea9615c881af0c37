"""Which part of a picture is the face: named crop rules, written into manifests and estimators.

The rule matters: one and the same head-pose network errs by 4.2° or 5.5° on AFLW2000 by the crop alone. A
rule is a text such as ``square-1.4@landmarks``: a shape, its factor, and the box that it starts from.

Who decides, in order:

    1. Stored pictures: ``--crop`` of ``hpe pack``, else ``default_crop`` of the reader (hpe/sources/). The choice is
       made in pack/dataset.py and applied in pack/shard.py. The manifest records it.
    2. ``hpe pose``: the estimator's own rule. If it differs from the manifest's, pose/plan.py refuses, cuts the
       stored picture again (``--recrop``), or takes it as it is (``--force``).
    3. ``hpe predict`` with a detector (``--faces mtcnn``): ``--crop``, else the rule of the network's training images,
       applied to the detector's box (predict/read_faces.py: ``_rule``). With ``--faces given`` images of a raw dataset
       are cropped by its own labels (``labelled_faces`` there); all others are used whole.

``data/images.py: crop_resize`` cuts and resizes in each case (not with ``--crop keep``, which stores the original
bytes); this file only computes boxes.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

import numpy as np
from jaxtyping import Float

from hpe.core.errors import UserError
from hpe.data.records import Record

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels; x1 and y1 are outside the box."""
Shape = Literal["none", "square", "margin", "hopenet"]
Basis = Literal["box", "landmarks", "detector"]

_RULE: Final = re.compile(r"(square|margin|hopenet)-(\d+(?:\.\d+)?)@(box|landmarks|detector)")


@dataclass(frozen=True, slots=True)
class CropRule:
    """A crop rule.

    - ``none``: the whole picture, of which ``crop_resize`` takes the centred square; resized and encoded again.
    - ``square-F@B``: a square with the centre of box B and F times its longer side.
    - ``margin-F@B``: box B grown by F of its width (height) on each side.
    - ``hopenet-K@B``: the crop of Hopenet's AFLW2000 test (K = 0.2): sequential and in place, as its code.

    B is the dataset's ``box``, the box around its ``landmarks``, or the ``detector``'s box.
    """

    shape: Shape = "none"
    factor: float = 0.0
    basis: Basis = "box"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The rule of a text; ``keep``, the word of ``hpe pack`` for original bytes, is ``none``: whole pictures.

        Raises:
            UserError: not a rule.
        """
        if text in ("none", "keep"):
            return cls()
        if match := _RULE.fullmatch(text):
            shape, factor, basis = match.groups()
            return cls(shape, float(factor), basis)  # pyright: ignore[reportArgumentType]
        shapes = ", ".join(f"{s}-F@B" for s in get_args(Shape)[1:])
        raise UserError(
            f"crop rule {text!r}: expected none, keep, {shapes} with a factor F and B one of "
            f"{', '.join(get_args(Basis))}; for example square-1.4@landmarks"
        )

    def __str__(self) -> str:
        return "none" if self.shape == "none" else f"{self.shape}-{self.factor:g}@{self.basis}"

    def apply(self, box: Box) -> Box:
        """The crop's box, which may reach over the picture's border (filled with black)."""
        x0, y0, x1, y1 = box
        match self.shape:
            case "none":
                return box
            case "square":
                half = self.factor * max(x1 - x0, y1 - y0) / 2
                x, y = (x0 + x1) / 2, (y0 + y1) / 2
                return x - half, y - half, x + half, y + half
            case "margin":
                dx, dy = self.factor * (x1 - x0), self.factor * (y1 - y0)
                return x0 - dx, y0 - dy, x1 + dx, y1 + dy
            case "hopenet":
                return hopenet_test_box(box, self.factor)

    def box(self, record: Record) -> Box:
        """The crop's box by the box or the landmarks of a record; not for ``none``, which is the whole picture.

        Raises:
            ValueError: the record lacks what the rule starts from.
        """
        if self.basis == "landmarks" and record.landmarks is not None:
            return self.apply(box_around(np.asarray(record.landmarks)))
        if self.basis == "box" and record.box is not None:
            return self.apply(record.box)
        raise ValueError(f"no {self.basis} in the record to crop {self} from")


def hopenet_test_box(box: Box, k: float = 0.2) -> Box:
    """The crop of Hopenet's ``datasets.AFLW2000`` (natanielruiz/deep-head-pose): each side in turn."""
    x0, y0, x1, y1 = box
    x0 -= 2 * k * abs(x1 - x0)
    y0 -= 2 * k * abs(y1 - y0)
    x1 += 2 * k * abs(x1 - x0)
    y1 += 0.6 * k * abs(y1 - y0)
    return x0, y0, x1, y1


def box_text(box: Box) -> str:
    """A box for a message: ``1, 2.5, 3, 4``."""
    return ", ".join(f"{side:g}" for side in box)


def box_around(points: Float[np.ndarray, "points 2"]) -> Box:
    """The box around visible points; points with a negative or missing coordinate are not visible.

    Raises:
        ValueError: fewer than two visible points.
    """
    seen = points[np.isfinite(points).all(1) & (points >= 0).all(1)]
    if len(seen) < 2:
        raise ValueError(f"{len(seen)} visible landmarks, a box needs two")
    (x0, y0), (x1, y1) = seen.min(0), seen.max(0)
    return float(x0), float(y0), float(x1), float(y1)
