"""Augmentation of whole batches on their device, a pure function of (seed, position of each sample).

Every random number is :func:`hpe.core.randomness.uniforms` of the seed, the kind of change and the sample's position in
the global sequence. So a resumed run augments as the uninterrupted one would have, and so do other numbers of
ranks (mixup apart, which pairs samples of one rank). Switching one change on leaves the draws of the others.
Nothing here makes the host wait for a GPU: what it draws travels through page-locked memory.

Labels follow the picture: a flip negates yaw and roll and swaps left and right; a rotation turns the head's
rotation matrix. What distorts the head's proportions is left to ``crop_ratio``, which is off by default.
"""

from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Final

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64
from torch import Tensor

from hpe.core.geometry import euler_from_rotation, mirror_angles, nearest_euler, rotation_from_euler
from hpe.core.labels import MIRRORED_DIRECTION
from hpe.core.randomness import permutation, uniforms
from hpe.data.batch import Batch
from hpe.data.normalise import IMAGENET, Images, Normalisation, normalised

Uniform = Float64[np.ndarray, " batch"]


@dataclass(frozen=True, slots=True)
class Augmentation:
    """What is changed at random; the default changes nothing.

    Attributes:
        crop_scale: area of the random crop as a share of the picture (above 1: zoomed out, black border).
        crop_ratio: its width through its height; other than (1, 1) squeezes the head.
        shift: how far the crop's centre may leave what fits into the picture, as a share of its side.
        rotate: degrees, uniform in ± this; the angles follow, direction labels stay. A face that would leave the
            angles that the pose head learns from (near a profile a turned picture has quite other Euler angles) is
            not turned.
        flip: probability of the mirror image.
        brightness, contrast, saturation: factors, uniform in 1 ± this.
        grey: probability of luma instead of colour.
        blur: probability of a Gaussian blur with a sigma of 0.3 to 2 pixels for each 224 of the side.
        erase: probability of a blanked rectangle of 2 to 20 % of the area (Zhong et al., 2017).
        randaugment: strength, 0 (off) to 10, of two random changes of colour and sharpness (the photometric
            part of RandAugment, Cubuk et al., 2019: turning and shearing would change the head's pose).
        mixup: alpha of the Beta distribution (Zhang et al., 2017); 0 is off. Emotion targets, valence and
            arousal are mixed; direction and angles are the stronger picture's.
    """

    crop_scale: tuple[float, float] = (1.0, 1.0)
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    shift: float = 0.0
    rotate: float = 0.0
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    grey: float = 0.0
    blur: float = 0.0
    erase: float = 0.0
    randaugment: int = 0
    mixup: float = 0.0

    @property
    def moves(self) -> bool:
        """True when pixels move other than by a flip."""
        square = self.crop_scale == (1.0, 1.0) and self.crop_ratio == (1.0, 1.0)
        return not square or self.shift > 0 or self.rotate > 0


class _Uniforms:
    """Uniform numbers by name; the names' numbers must never change, or resumed runs would differ."""

    NAMES: Final = (
        "area", "ratio", "x", "y", "rotate", "flip", "brightness", "contrast", "saturation", "grey", "blur",
        "sigma", "erase", "erase area", "erase ratio", "erase x", "erase y", "first op", "first strength",
        "second op", "second strength", "mixup",
    )  # fmt: skip

    def __init__(self, seed: int, position: int, count: int) -> None:
        self._seed, self._positions = seed, np.arange(position, position + count, dtype=np.int64)

    def __call__(self, name: str) -> Uniform:
        return uniforms(self._seed, 100 + self.NAMES.index(name), positions=self._positions)

    def between(self, name: str, low: float, high: float) -> Uniform:
        return low + (high - low) * self(name)

    def chosen(self, name: str, probability: float) -> np.ndarray:
        return np.flatnonzero(self(name) < probability)


def augment(
    batch: Batch,
    settings: Augmentation,
    *,
    seed: int,
    position: int,
    by: Normalisation = IMAGENET,
    largest_degrees: float = float("inf"),
) -> tuple[Images, Batch]:
    """Augmented, normalised images (channels-last) and the batch with labels that fit them.

    Args:
        batch: on any device; its images stay untouched.
        settings: what to change.
        seed: of the run.
        position: of the batch's first row in the global sequence (``Loaded.first``).
        by: the network's normalisation.
        largest_degrees: no rotation takes a face from below this angle to beyond it (``LossSettings.largest_degrees``).
    """
    rows = len(batch)
    draws = _Uniforms(seed, position, rows)
    images = batch.images
    if settings.flip:
        images, batch = _flip(images, batch, _on(images, draws("flip") < settings.flip))
    colours = (settings.brightness, settings.contrast, settings.saturation, settings.grey)
    if settings.moves or any(colours) or settings.blur or settings.randaugment:
        images = images.to(torch.float32) / 255
        if settings.moves:
            images, batch = _move(images, batch, settings, draws, largest_degrees)
        images = _colour(images, settings, draws)
        if settings.randaugment:
            images = _randaugment(images, settings.randaugment / 10, draws)
        if settings.blur:
            images = _blur(images, draws.chosen("blur", settings.blur), draws("sigma"))
    images = normalised(images, by)
    if settings.erase:
        images = _erase(images, settings.erase, draws)
    if settings.mixup:
        images, batch = _mixup(images, batch, settings.mixup, seed, position, draws)
    return images, batch


def _on(like: Tensor, values: np.ndarray) -> Tensor:
    """Host numbers on a tensor's device, floats as float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    tensor = tensor.float() if tensor.is_floating_point() else tensor
    if like.is_cuda:  # a copy from other memory starts when the device has nothing left to do, and the host waits
        tensor = tensor.pin_memory()
    return tensor.to(like.device, non_blocking=True)


@cache
def _constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Numbers that never change, copied to a device once: a copy in every step would make the host wait for it."""
    return torch.tensor(values, device=device)


def _per_row(like: Tensor, values: np.ndarray) -> Tensor:
    return _on(like, values)[:, None, None, None]


def scaled(images: Images, size: int) -> Images:
    """The same pictures of another side, smoothed where they shrink; channels-last."""
    if images.shape[-1] == size:
        return images
    small = F.interpolate(images, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
    return small.contiguous(memory_format=torch.channels_last)


def _flip(images: Tensor, batch: Batch, chosen: Tensor) -> tuple[Tensor, Batch]:
    swap = _constant(MIRRORED_DIRECTION, images.device)
    images = torch.where(chosen[:, None, None, None], images.flip(3), images)
    return images, replace(
        batch,
        images=images,
        angles=torch.where(chosen[:, None], mirror_angles(batch.angles), batch.angles),
        direction=torch.where(chosen, swap[batch.direction], batch.direction),
    )


def _move(
    images: Images, batch: Batch, settings: Augmentation, draws: _Uniforms, largest_degrees: float
) -> tuple[Images, Batch]:
    """One bilinear sampling for crop, shift and rotation: x' of the output looks at x of the input."""
    area = draws.between("area", *settings.crop_scale)
    low, high = np.log(settings.crop_ratio)
    ratio = np.exp(draws.between("ratio", low, high))
    width, height = np.sqrt(area * ratio), np.sqrt(area / ratio)
    # In grid_sample's units the picture reaches from -1 to 1, so a crop's centre may go 1 - its size.
    x = (2 * draws("x") - 1) * (np.maximum(1 - width, 0) + 2 * settings.shift)
    y = (2 * draws("y") - 1) * (np.maximum(1 - height, 0) + 2 * settings.shift)
    degrees = draws.between("rotate", -settings.rotate, settings.rotate)
    theta = _on(images, _sampling(width, height, x, y, degrees))
    if settings.rotate:
        turned = turned_angles(batch.angles, _on(images, degrees))
        lost = batch.angles_mask & _within(batch.angles, largest_degrees) & ~_within(turned, largest_degrees)
        # The host that draws does not know the angles, which may be on a GPU: both samplings are at hand there.
        upright = _on(images, _sampling(width, height, x, y, np.zeros_like(degrees)))
        theta = torch.where(lost[:, None, None], upright, theta)
        batch = replace(batch, angles=torch.where(lost[:, None], batch.angles, turned))
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False), batch


def _sampling(width: Uniform, height: Uniform, x: Uniform, y: Uniform, degrees: Uniform) -> np.ndarray:
    """Matrices [batch 2 3] from places in the output to places in the input."""
    cosine, sine = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    # The picture turns clockwise by `degrees` (rows count downwards), so the sampling turns back.
    return np.stack((width * cosine, width * sine, x, -height * sine, height * cosine, y), 1).reshape(-1, 2, 3)


def _within(angles: Float[Tensor, "batch 3"], largest_degrees: float) -> Bool[Tensor, " batch"]:
    return (angles.abs() < largest_degrees).all(1)


def turned_angles(angles: Float[Tensor, "batch 3"], degrees: Float[Tensor, " batch"]) -> Float[Tensor, "batch 3"]:
    """Yaw, pitch, roll of the head in a picture that is turned clockwise by ``degrees``.

    A head point X lies at ``F Rᵀ X`` (see :mod:`hpe.core.geometry`), so turning the picture by Q gives
    ``R' = R F Qᵀ F``: only for a frontal head is that an addition to roll. Of the two triples of angles that every
    rotation has, it is the one nearer to those before: a yaw of 95° stays one, and does not become 85° with pitch and
    roll upside down.
    """
    about_z = torch.stack((torch.zeros_like(degrees), torch.zeros_like(degrees), degrees), -1)
    turned = euler_from_rotation(rotation_from_euler(angles) @ rotation_from_euler(about_z))
    return nearest_euler(turned, angles)


def _luma(images: Images) -> Float[Tensor, "batch 1 height width"]:
    weights = _constant((0.299, 0.587, 0.114), images.device).view(1, 3, 1, 1)
    return (images * weights).sum(1, keepdim=True)


def _colour(images: Images, settings: Augmentation, draws: _Uniforms) -> Images:
    for name in ("brightness", "contrast", "saturation"):
        if reach := getattr(settings, name):
            factor = _per_row(images, draws.between(name, 1 - reach, 1 + reach))
            images = _COLOUR[name](images, factor)
    if settings.grey:
        chosen = _per_row(images, draws("grey") < settings.grey)
        images = torch.where(chosen, _luma(images), images)
    return images


def _brightness(images: Images, factor: Tensor) -> Images:
    return (images * factor).clamp_(0, 1)


def _contrast(images: Images, factor: Tensor) -> Images:
    mean = _luma(images).mean((1, 2, 3), keepdim=True)
    return torch.lerp(mean, images, factor).clamp_(0, 1)


def _saturation(images: Images, factor: Tensor) -> Images:
    return torch.lerp(_luma(images), images, factor).clamp_(0, 1)


_COLOUR: Final = {"brightness": _brightness, "contrast": _contrast, "saturation": _saturation}


def _sharpness(images: Images, factor: Tensor) -> Images:
    """Pillow's: 3 × 3 smoothing as the other end."""
    kernel = _constant(((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (1.0, 1.0, 1.0)), images.device) / 13
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    smooth = F.conv2d(padded, kernel.expand(3, 1, 3, 3), groups=3)
    return torch.lerp(smooth, images, factor).clamp_(0, 1)


def _posterize(images: Images, strength: Tensor) -> Images:
    levels = 2 ** (8 - 5 * strength.abs()).round()
    return (images * levels).floor().clamp_(max=levels - 1) / (levels - 1)


def _solarize(images: Images, strength: Tensor) -> Images:
    return torch.where(images >= 1 - strength.abs(), 1 - images, images)


def _autocontrast(images: Images, _: Tensor) -> Images:
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) / (high - low).clamp(min=1 / 255), images)


def _factor_of(change):
    return lambda images, strength: change(images, 1 + 0.9 * strength)


_RANDOM_OPS: Final = (
    _factor_of(_brightness), _factor_of(_contrast), _factor_of(_saturation), _factor_of(_sharpness),
    _posterize, _solarize, _autocontrast,
)  # fmt: skip


def _randaugment(images: Images, strength: float, draws: _Uniforms) -> Images:
    images = images.clone()
    for turn in ("first", "second"):
        which = (draws(f"{turn} op") * (len(_RANDOM_OPS) + 1)).astype(int)  # one more: no change
        signed = strength * (2 * draws(f"{turn} strength") - 1)
        for number, change in enumerate(_RANDOM_OPS):
            chosen = np.flatnonzero(which == number)
            if len(chosen):
                rows = _on(images, chosen)
                images[rows] = change(images[rows], _per_row(images, signed[chosen]))
    return images


def _blur(images: Images, chosen: np.ndarray, sigma_draw: Uniform) -> Images:
    if not len(chosen):
        return images
    rows = _on(images, chosen)
    sigma = (0.3 + 1.7 * sigma_draw[chosen]) * images.shape[-1] / 224
    reach = max(1, int(np.ceil(2.5 * 2.0 * images.shape[-1] / 224)))
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma[:, None]) ** 2)
    weights = _on(images, taps / taps.sum(1, keepdims=True))[:, :, None, None, None]
    height, width = images.shape[2:]
    part = F.pad(images[rows], (reach,) * 4, mode="replicate")
    part = sum(weights[:, tap] * part[:, :, tap : tap + height] for tap in range(2 * reach + 1))
    assert isinstance(part, Tensor)
    part = sum(weights[:, tap] * part[..., tap : tap + width] for tap in range(2 * reach + 1))
    return images.index_copy(0, rows, part)  # pyright: ignore[reportArgumentType]


def _erase(images: Images, probability: float, draws: _Uniforms) -> Images:
    """Blank (the mean colour, which is 0 after normalisation) one rectangle."""
    height, width = images.shape[2:]
    area, ratio = draws.between("erase area", 0.02, 0.2), np.exp(draws.between("erase ratio", -1.2, 1.2))
    half_x, half_y = np.sqrt(area * ratio) / 2, np.sqrt(area / ratio) / 2
    chosen = draws("erase") < probability
    x, y = draws("erase x"), draws("erase y")
    across = (torch.arange(width, device=images.device) + 0.5) / width
    down = (torch.arange(height, device=images.device) + 0.5) / height
    in_x = (across - _on(images, x)[:, None]).abs() < _on(images, np.where(chosen, half_x, -1.0))[:, None]
    in_y = (down - _on(images, y)[:, None]).abs() < _on(images, half_y)[:, None]
    return images * ~(in_y[:, :, None] & in_x[:, None, :])[:, None]


def _mixup(
    images: Images, batch: Batch, alpha: float, seed: int, position: int, draws: _Uniforms
) -> tuple[Images, Batch]:
    from scipy.special import betaincinv

    partner = _on(images, permutation(seed, 99, position, count=len(batch)))
    drawn = betaincinv(alpha, alpha, draws("mixup"))
    stay = _on(images, np.maximum(drawn, 1 - drawn))
    # Nothing is mixed with a sample whose labels are missing: its part of the target would be unknown.
    emotions = batch.emotion_mask & batch.emotion_mask[partner]
    affects = ~batch.affect_mask | batch.affect_mask[partner]
    stay = torch.where(emotions & affects, stay, torch.ones_like(stay))
    mixed = torch.lerp(images[partner], images, stay[:, None, None, None])
    return mixed, replace(
        batch,
        emotion_target=torch.lerp(batch.emotion_target[partner], batch.emotion_target, stay[:, None]),
        affect=torch.lerp(batch.affect[partner], batch.affect, stay[:, None]),
    )
