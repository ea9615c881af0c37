"""How ``hpe pack`` makes a stored picture of a raw one: crop, side, colour, quality."""

from dataclasses import dataclass

from hpe.data.crops import CropRule


@dataclass(frozen=True, slots=True)
class Recipe:
    """What is done with every picture.

    Attributes:
        crop: the rule, or None to keep the original bytes.
        size: side of the stored picture in pixels; no meaning where the original is kept.
        grey: one channel instead of three.
        quality: of the JPEG, 1..100.
        detector: which one finds the faces, for rules that start from the detector's box.
        max_pixels: larger raw pictures are refused.
    """

    crop: CropRule | None
    size: int
    grey: bool
    quality: int
    detector: str = "mtcnn"
    max_pixels: int = 64_000_000
