"""Images as a Python program has them: paths, bytes, PIL images, arrays and tensors, checked and as RGB pixels."""

from pathlib import Path
from typing import Any, Final, Literal, get_args

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor

from hpe.core.errors import UserError
from hpe.data.images import DecodeError, RGBImage, decode_rgb, picture_rgb

Colour = Literal["rgb", "bgr"]
Image = str | Path | bytes | Pillow.Image | np.ndarray | Tensor
"""An image: the path of a file, the bytes of one, a PIL image, or pixels.

Pixels are an array ``[height, width, 3]`` or a tensor ``[3, height, width]``, of uint8 from 0 to 255, or of floats
from 0 to 1 (as torchvision and scikit-image have them); an array ``[height, width]`` is grey. The order of the colours
is red, green, blue, unless ``colour="bgr"`` says otherwise (OpenCV).
"""
_LARGEST_SIDE: Final = 1 << 16


def pixels_of(image: Image, name: str, colour: Colour = "rgb", *, max_pixels: int | None = None) -> RGBImage:
    """The RGB pixels of an image, upright.

    Args:
        image: see :data:`Image`.
        name: of the image in messages.
        colour: order of the colours of an array or a tensor.
        max_pixels: of an encoded image; None: the usual limit.

    Raises:
        UserError: it is no image, it cannot be read, or its numbers are not what :data:`Image` describes.
    """
    if colour not in get_args(Colour):
        raise UserError(f"colour={colour!r}: expected {' or '.join(map(repr, get_args(Colour)))}")
    limit: dict[str, Any] = {} if max_pixels is None else {"max_pixels": max_pixels}
    match image:
        case np.ndarray():
            return _in_order(_of_array(image, name), colour)
        case Tensor():
            return _in_order(_of_tensor(image, name), colour)
    if colour != "rgb":
        raise UserError(f"{name}: colour={colour!r} is for arrays and tensors; the file or PIL image states its own")
    try:
        match image:
            case str() | Path():
                return decode_rgb(Path(image).read_bytes(), **limit)
            case bytes():
                return decode_rgb(image, **limit)
            case Pillow.Image():
                return picture_rgb(image)
    except (DecodeError, OSError) as error:
        raise UserError(f"{name}: {getattr(error, 'strerror', None) or error}") from error
    raise UserError(f"{name}: {type(image).__name__}: expected a path, bytes, a PIL image, a NumPy array or a tensor")


def _in_order(pixels: RGBImage, colour: Colour) -> RGBImage:
    return np.ascontiguousarray(pixels if colour == "rgb" else pixels[..., ::-1])


def _of_tensor(image: Tensor, name: str) -> RGBImage:
    found = f"a tensor of {str(image.dtype).removeprefix('torch.')} {list(image.shape)}"
    if image.ndim == 4:
        raise UserError(f"{name}: {found} is several images; give list(images)")
    if image.ndim != 3 or image.shape[0] not in (1, 3):
        way_out = "give image.permute(2, 0, 1)" if image.ndim == 3 and image.shape[2] in (1, 3) else ""
        raise UserError(_unfit(name, found, "[3, height, width], or [1, height, width] for grey", way_out))
    if image.dtype in (torch.bfloat16, torch.float16):
        image = image.float()
    array = image.detach().cpu().permute(1, 2, 0).numpy()
    return _of_numbers(array, name, found)


def _of_array(image: np.ndarray, name: str) -> RGBImage:
    found = f"an array of {image.dtype} {list(image.shape)}"
    if image.ndim == 4:
        raise UserError(f"{name}: {found} is several images; give list(images)")
    array = image[..., None] if image.ndim == 2 else image
    if array.ndim != 3 or array.shape[2] not in (1, 3):
        way_out = ""
        if image.ndim == 3 and image.shape[0] in (1, 3):
            way_out = "give image.transpose(1, 2, 0), or a torch tensor, whose first dimension are the colours"
        elif image.ndim == 3 and image.shape[2] == 4:
            way_out = "give image[..., :3], without the transparency"
        raise UserError(_unfit(name, found, "[height, width, 3], or [height, width] for grey", way_out))
    return _of_numbers(array, name, found)


def _unfit(name: str, found: str, expected: str, way_out: str) -> str:
    return f"{name}: {found}: expected {expected}" + (f"; {way_out}" if way_out else "")


def _of_numbers(array: np.ndarray, name: str, found: str) -> RGBImage:
    """uint8 pixels of three channels."""
    if 0 in array.shape:
        raise UserError(f"{name}: {found} is empty: it has no pixels")
    if max(array.shape) > _LARGEST_SIDE:
        raise UserError(f"{name}: {found}: a side of more than {_LARGEST_SIDE:,} pixels")
    if array.dtype != np.uint8:
        if array.dtype.kind != "f":
            raise UserError(
                f"{name}: {found}: expected uint8 from 0 to 255, or floats from 0 to 1; if its values are 0 to 255, "
                "give image.astype('uint8')"
            )
        array = _bytes_of(array, name, found)
    return np.repeat(array, 3, 2) if array.shape[2] == 1 else array


def _bytes_of(array: np.ndarray, name: str, found: str) -> np.ndarray:
    """uint8 of floats from 0 to 1."""
    if not np.isfinite(array).all():
        raise UserError(f"{name}: {found} contains NaN or infinity")
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 1:
        way_out = "if its values are 0 to 255, give image.round().astype('uint8')"
        if low < 0:
            way_out = "a normalised image must be given as it was before its normalisation"
        raise UserError(f"{name}: {found} from {low:g} to {high:g}: expected floats from 0 to 1; {way_out}")
    return (array * 255).round().astype(np.uint8)
