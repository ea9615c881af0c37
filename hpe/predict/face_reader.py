"""``hpe.load``: a network that reads images of faces, as one Python object."""

from collections.abc import Sequence
from pathlib import Path
from typing import overload

import numpy as np

from hpe.core.distributed import named_device
from hpe.core.errors import UserError
from hpe.data.images import MAX_PIXELS, DecodeError, pixels_of
from hpe.models.views import Views
from hpe.predict.network import Predictor, open_predictor
from hpe.predict.output import Row, answer_columns

Image = str | Path | bytes
"""The path of an image file, or the bytes of one."""


class FaceReader:
    """A network that is ready to read faces; :func:`load` makes it.

    Attributes:
        heads: what it predicts, among ``emotion``, ``direction``, ``pose`` and ``affect``.
        size: side of its input in pixels; images of another size are scaled.
    """

    def __init__(self, predictor: Predictor, batch: int, max_pixels: int = MAX_PIXELS) -> None:
        self._predictor, self._batch, self._max_pixels = predictor, batch, max_pixels
        self.heads, self.size = predictor.heads, predictor.size

    @overload
    def read(self, images: Image) -> Row: ...
    @overload
    def read(self, images: Sequence[Image]) -> list[Row]: ...
    def read(self, images: Image | Sequence[Image]) -> Row | list[Row]:
        """The predictions for one image, or for each of several. Each image is one face, cropped as in training.

        A row maps names to values, the same as the columns of ``hpe predict``: ``emotion`` and ``emotion_happy`` …
        (probabilities), ``direction`` and ``direction_left`` …, ``yaw``, ``pitch``, ``roll`` and ``yaw_sd`` …
        (degrees), ``valence``, ``arousal``, as far as the network has these heads. None: no value.

        Raises:
            OSError: a file cannot be read.
            UserError: the bytes are not a whole image.
        """
        if isinstance(images, str | Path | bytes):
            return self.read([images])[0]
        rows: list[Row] = []
        for start in range(0, len(images), self._batch):
            faces = [self._face(image) for image in images[start : start + self._batch]]
            answers = self._predictor.answer(np.stack(faces))
            rows += [answer_columns(answers, place) for place in range(len(faces))]
        return rows

    def _face(self, image: Image) -> np.ndarray:
        try:
            data = image if isinstance(image, bytes) else Path(image).read_bytes()
            return self._predictor.whole(data, self._max_pixels)
        except DecodeError as error:
            name = "these bytes" if isinstance(image, bytes) else str(image)
            raise UserError(f"{name}: {error}") from error


def load(
    network: str | Path,
    *,
    which: str = "best",
    weights: str | Path | None = None,
    flips: bool = False,
    centre: float = 1.0,
    precision: str | None = None,
    device: str = "auto",
    batch: int = 64,
    max_megapixels: float = MAX_PIXELS / 1e6,
) -> FaceReader:
    """Load a network that reads faces: the options are those of ``hpe predict``.

    Args:
        network: run folder of ``hpe train``, or a head-pose estimator (YAML, or .onnx with a YAML beside it).
        which: checkpoint of a run: ``best``, ``last``, or ``step-00001234``.
        weights: file to use instead of the weights that an estimator's YAML names.
        flips: average each face with its mirror image; runs only.
        centre: use a central crop with this fraction of the image's side; runs only.
        precision: ``fp32``, ``bf16``, ``fp16`` or ``auto``; default: that of the training; runs only.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch: faces that go through the network at once.
        max_megapixels: larger images are refused.

    Raises:
        UserError: there is no such network or device, or an option does not fit it.
    """
    if batch < 1:
        raise UserError(f"batch: expected 1 or more, found {batch}")
    max_pixels = pixels_of(max_megapixels)
    predictor = open_predictor(
        Path(network), named_device(device), which=which, weights=None if weights is None else Path(weights),
        views=Views(flips, centre), precision=precision, batch=batch, fall_back=device == "auto",
    )  # fmt: skip
    return FaceReader(predictor, batch, max_pixels)
