"""Which faces a report shows, and these faces with their predictions drawn on them."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from hpe.core.errors import UserError
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.annotate import Overlay, with_axes
from hpe.data.images import DecodeError, decode_rgb
from hpe.metrics import pose
from hpe.metrics.columns import guesses, labels, numbers, texts

if TYPE_CHECKING:
    import pyarrow as pa

KINDS: Final = ("mistake", "hit", "pose")
SHOWN_SIDE: Final = 184
_MOST_FACE_PIXELS: Final = 4_000_000
_QUALITY: Final = 82


@dataclass(frozen=True, slots=True)
class GalleryFace:
    """A face of the gallery.

    Attributes:
        kind: one of :data:`KINDS`.
        picture: data URI of the image.
        key: of the sample.
        truth, choice: names of the true and the predicted emotion.
        sure: probability of the predicted emotion.
        direction, direction_choice: names of the true and the predicted direction.
        geodesic: error of the pose in degrees.
    """

    kind: str
    picture: str
    key: str
    truth: str | None
    choice: str | None
    sure: float | None
    direction: str | None
    direction_choice: str | None
    geodesic: float | None


def choose_rows(table: "pa.Table", most: int = 200) -> list[int]:
    """Rows of a predictions table whose faces are kept beside it; deterministic.

    One third each: the mistakes and the hits with the highest confidence (both in turn over the true emotions), and
    the largest errors of the pose. :func:`write_faces` writes them.
    """
    return sorted({row for rows in _ranked(table, max(most // 3, 1)).values() for row in rows})


def write_faces(path: Path, keys: Sequence[str], shards: Sequence[str | None], jpegs: Sequence[bytes]) -> None:
    """Write ``evaluate/NAME.faces.parquet``: ``key``, ``shard`` and ``jpeg``, the network's input."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from hpe.core.files import aside

    columns = {"key": pa.array(keys, pa.string()), "shard": pa.array(shards, pa.string())}
    with aside(path) as part:
        pq.write_table(pa.table(columns | {"jpeg": pa.array(jpegs, pa.binary())}), part)


def read_faces(path: Path) -> dict[tuple[str | None, str], bytes]:
    """Encoded images by (shard, key); empty if there is no such file.

    Raises:
        UserError: the file is damaged.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if not path.is_file():
        return {}
    try:
        table = pq.read_table(path)
        shards = texts(table, "shard") or [None] * table.num_rows
        keys = texts(table, "key") or []
        pictures = table["jpeg"].cast(pa.binary()).to_pylist()
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path}: cannot be read ({str(error).splitlines()[0]}); run hpe evaluate again") from error
    return {(s, k): p for s, k, p in zip(shards, keys, pictures, strict=False) if k is not None and p}


def gallery(
    table: "pa.Table", pictures: Mapping[tuple[str | None, str], bytes], most_of_a_kind: int = 24
) -> tuple[list[GalleryFace], int]:
    """The faces to show, the clearest examples first, and the number of images that could not be decoded."""
    keys, shards = texts(table, "key") or [], texts(table, "shard") or [None] * table.num_rows
    here = [row for row, pair in enumerate(zip(shards, keys, strict=True)) if pair in pictures]
    if not here:
        return [], 0
    cut = table.take(here)
    captions, faces, damaged = _captions(cut), [], 0
    for kind, rows in _ranked(cut, most_of_a_kind).items():
        for row in rows:
            place = here[row]
            try:
                picture = _drawn(pictures[shards[place], str(keys[place])], captions["angles"][row])
            except DecodeError:
                damaged += 1
                continue
            fields = {
                name: captions[name][row] for name in ("truth", "choice", "sure", "direction", "direction_choice")
            }
            faces.append(GalleryFace(kind, picture, str(keys[place]), **fields, geodesic=captions["geodesic"][row]))
    return faces, damaged


def _drawn(data: bytes, angles: tuple[float, float, float] | None) -> str:
    """A data URI of the face with its axes."""
    pixels = decode_rgb(data, max_pixels=_MOST_FACE_PIXELS)
    image = Image.fromarray(pixels).resize((SHOWN_SIDE, SHOWN_SIDE), Image.Resampling.LANCZOS)
    margin = 0.1 * SHOWN_SIDE
    image = with_axes(image, Overlay((margin, margin, SHOWN_SIDE - margin, SHOWN_SIDE - margin), angles))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _captions(table: "pa.Table") -> dict[str, list[Any]]:
    """The values of the captions, one per row."""
    rows = table.num_rows
    captions: dict[str, list[Any]] = {"sure": [None] * rows, "angles": [None] * rows, "geodesic": [None] * rows}
    for column, names, truth_to, choice_to in (
        ("emotion", EMOTIONS, "truth", "choice"),
        ("direction", DIRECTIONS, "direction", "direction_choice"),
    ):
        truth, guess = labels(table, column, len(names)), guesses(table, column, len(names))
        captions[truth_to] = [None] * rows if truth is None else _names(names, truth.value, truth.mask)
        captions[choice_to] = [None] * rows if guess is None else _names(names, guess.choice, guess.mask)
        if column == "emotion" and guess is not None and guess.probability is not None:
            captions["sure"] = [
                float(p.max()) if m else None for p, m in zip(guess.probability, guess.mask, strict=True)
            ]
    guess = numbers(table, [f"{name}_hat" for name in ANGLES])
    if guess is not None:
        captions["angles"] = [tuple(map(float, v)) if m else None for v, m in zip(guess.value, guess.mask, strict=True)]
    errors = _geodesic(table)
    if errors is not None:
        captions["geodesic"] = [float(e) if np.isfinite(e) else None for e in errors]
    return captions


def _names(names: Sequence[str], value: np.ndarray, mask: np.ndarray) -> list[str | None]:
    return [str(names[v]) if m else None for v, m in zip(value, mask, strict=True)]


def _geodesic(table: "pa.Table") -> np.ndarray | None:
    truth, guess = numbers(table, ANGLES), numbers(table, [f"{name}_hat" for name in ANGLES])
    if truth is None or guess is None:
        return None
    errors = pose.errors_degrees(guess.value, truth.value)[:, pose.MEASURES.index("geodesic")]
    return np.where(truth.mask & guess.mask, errors, np.nan)


def _ranked(table: "pa.Table", most: int) -> dict[str, list[int]]:
    """Rows of each kind, the clearest examples first."""
    ranked: dict[str, list[int]] = {kind: [] for kind in KINDS}
    truth, guess = labels(table, "emotion", len(EMOTIONS)), guesses(table, "emotion", len(EMOTIONS))
    if truth is not None and guess is not None:
        sure = np.ones(table.num_rows) if guess.probability is None else guess.probability.max(1)
        known, right = truth.mask & guess.mask, truth.value == guess.choice
        for kind, rows in (("mistake", known & ~right), ("hit", known & right)):
            ranked[kind] = _dealt(np.flatnonzero(rows), truth.value, sure)[:most]
    errors = _geodesic(table)
    if errors is not None:
        finite = np.flatnonzero(np.isfinite(errors))
        ranked["pose"] = [int(row) for row in finite[np.argsort(-errors[finite], kind="stable")]][:most]
    return ranked


def _dealt(rows: np.ndarray, emotion: np.ndarray, sure: np.ndarray) -> list[int]:
    """Rows by decreasing confidence, the emotions in turn, so that one emotion cannot fill the page."""
    turns = []
    for index in range(len(EMOTIONS)):
        own = rows[emotion[rows] == index]
        own = own[np.argsort(-sure[own], kind="stable")]
        turns += [(turn, index, int(row)) for turn, row in enumerate(own)]
    return [row for _, _, row in sorted(turns)]
