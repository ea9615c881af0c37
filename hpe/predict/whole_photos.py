"""Do images that are used whole look like whole photos? A warning before the work, from their sizes and a detector."""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.data.crops import CropRule
from hpe.data.detect import DETECTORS, WAYS_TO_INSTALL, installed, open_detector
from hpe.data.images import DecodeError, decode_rgb, image_size
from hpe.predict.inputs import ImageFile, Input
from hpe.predict.network import Predictor

_MOST_SIZES: Final = 64
"""Images whose size is looked at, chosen evenly: their headers are read in a few milliseconds."""
_MOST_DETECTED: Final = 4
_LONGEST: Final = 1.4
"""Longer side over shorter side; detectors' boxes of faces stay below."""
_LARGEST: Final = 1280
"""Shorter side of a crop of one face, pixels."""
_SMALLEST_FACE: Final = 1 / 3
"""Width of the face over the picture's shorter side: what a detector sees in a crop of one face is wider."""
_DETECTED_SIDE: Final = 800


def _way_out(predictor: Predictor) -> str:
    """How to find the faces with what is installed; a landmark model reads nothing but angles."""
    found = installed()
    ways = "" if found else f" ({'; '.join(WAYS_TO_INSTALL.values())})"
    mesh = ", or use a landmark model as the network" * (tuple(predictor.heads) == ("pose",))
    return f"Detect the faces with --faces {' or '.join(found or DETECTORS)}{ways}{mesh}"


def whole_photos(inputs: Sequence[Input], predictor: Predictor, labelled: Iterable[Path] = ()) -> list[str]:
    """A warning if image files that are used whole are not what the network was trained on, else nothing.

    A network that is known to have been trained on crops gets it always; otherwise some images are looked at. It is
    not an error, because the files may be crops of one face all the same.
    """
    known = sorted(str(rule) for rule in predictor.crops)
    cropped = frozenset(labelled)
    whole = [one.path for one in inputs if isinstance(one, ImageFile) and one.path.resolve() not in cropped]
    if not whole:
        return []
    if known and str(CropRule()) not in known:
        worse = "its angles are wrong by 20° and more" if "pose" in predictor.heads else "do not trust what it reads"
        return [
            f"WARNING: images are used whole (--faces given), but {predictor.name} was trained on crops, "
            f"{' or '.join(known)}: on whole photos {worse}. {_way_out(predictor)}"
        ]
    chosen = [whole[at * len(whole) // min(len(whole), _MOST_SIZES)] for at in range(min(len(whole), _MOST_SIZES))]
    looks = sorted(filter(None, map(_look, chosen)), key=lambda look: -look.photo_like)
    by_size = [look for look in looks if look.photo_like > 1]
    seen = _with_several_faces(looks[:_MOST_DETECTED])
    if not by_size and not seen:
        return []
    evidence = seen or f"{by_size[0].path.name} has {by_size[0].width:,} × {by_size[0].height:,} pixels"
    photos = f"{len(by_size):,} of {len(looks):,} images that were looked at" if by_size else "some images"
    return [
        f"WARNING: each image is used whole, as one face (--faces given), but {photos} may be whole photos: "
        f"{evidence}. {_way_out(predictor)}"
    ]


@dataclass(frozen=True, slots=True)
class _Look:
    path: Path
    width: int
    height: int

    @property
    def photo_like(self) -> float:
        """Above 1: longer or larger than a crop of one face."""
        short, long = sorted((self.width, self.height))
        return max(long / short / _LONGEST, short / _LARGEST)


def _look(path: Path) -> _Look | None:
    with suppress(DecodeError, OSError):  # it is named when it is read
        return _Look(path, *image_size(path))
    return None


def _with_several_faces(looks: Sequence[_Look]) -> str | None:
    """What a detector sees in the first image that is not a crop of one face; None: nothing, or no detector."""
    names = installed()
    if not names or not looks:
        return None
    detector = open_detector(names[0])
    for look in looks:
        with suppress(DecodeError, OSError):
            picture = decode_rgb(look.path.read_bytes())
            step = -(-max(picture.shape[:2]) // _DETECTED_SIDE)
            faces = detector.detect([picture[::step, ::step]])[0]
            if len(faces) > 1:
                return f"{names[0]} finds {len(faces)} faces in {look.path.name}"
            if faces and (faces[0][0][2] - faces[0][0][0]) * step < _SMALLEST_FACE * min(look.width, look.height):
                return f"the face that {names[0]} finds in {look.path.name} is small"
    return None
