"""The description of a head-pose network (the YAML beside its weights), and how its outputs are read by it."""

from typing import Annotated, Final, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from hpe.config.strict_yaml import Section
from hpe.core.errors import UserError
from hpe.core.geometry import euler_from_rotation, rotation_from_6d
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.data.crops import CropRule
from hpe.models.multitask import BIN_DEGREES, BINS, bins_deviation, bins_mean

Angle = Literal["yaw", "pitch", "roll"]
Kind = Literal["bins66-lower", "bins66-centre", "euler", "sixd", "matrix"]
Sign = Literal[-1, 1]
Layout = Literal["nchw", "nhwc"]

VALUES: Final[dict[Kind, tuple[int, ...]]] = {
    "bins66-lower": (3, BINS), "bins66-centre": (3, BINS), "euler": (3,), "sixd": (6,), "matrix": (3, 3),
}  # fmt: skip
"""Shape of one face's raw output, the angles stacked."""
HEAD_VALUES: Final = {"emotion": len(EMOTIONS), "direction": len(DIRECTIONS), "affect": 2}
"""Values per face of the heads beside the pose."""
NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
"""Names of estimators, as each becomes a folder."""
IMAGENET_MEAN: Final = (0.485, 0.456, 0.406)
IMAGENET_STD: Final = (0.229, 0.224, 0.225)


class InputSpec(Section):
    """The network's input: a square of ``size`` pixels, ``(value / 255 - mean) / std`` by channel.

    ``grey`` is the luma (ITU-R 601) in all three channels. ``layout``: the order of the dimensions of an ONNX network,
    channels before rows and columns (``nchw``, as PyTorch exports) or after them (``nhwc``, as from TensorFlow).
    """

    name: str | None = None
    size: Annotated[int, Field(ge=16, le=1024)] = 224
    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    layout: Layout = "nchw"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (
        IMAGENET_STD
    )


class Signs(Section):
    """Factor from the network's angle to ours (yaw + to the picture's left edge, pitch + up)."""

    yaw: Sign = 1
    pitch: Sign = 1
    roll: Sign = 1


class OutputSpec(Section):
    """The network's output.

    Attributes:
        kind: logits of Hopenet's 66 bins, read at their lower edges or centres; Euler angles; the 6D
            representation or the matrix of a rotation ``Rz(roll) · Ry(yaw) · Rx(pitch)``.
        names: the outputs, in the order of ``order``: one per angle, or a single one with all.
        order: which angle comes first, second, third (bins and Euler only).
        unit: of Euler angles.
        deviations: an output with the standard deviation of each angle in degrees, in the order of the angles; None:
            that of the bins' distribution, or none.
    """

    kind: Kind
    names: list[str] | None = None
    order: tuple[Angle, Angle, Angle] = ("yaw", "pitch", "roll")
    signs: Signs = Signs()
    unit: Literal["degrees", "radians"] = "degrees"
    deviations: str | None = None

    @model_validator(mode="after")
    def _each_output_once(self) -> Self:
        if self.deviations is not None and self.deviations in (self.names or ()):
            raise ValueError(f"deviations: {self.deviations!r} is an output of the pose, too; name another output")
        return self

    @field_validator("order")
    @classmethod
    def _each_once(cls, order: tuple[Angle, Angle, Angle]) -> tuple[Angle, Angle, Angle]:
        if set(order) != set(ANGLES):
            raise ValueError(f"expected yaw, pitch and roll, each once, found {', '.join(order)}")
        return order

    @field_validator("names")
    @classmethod
    def _one_or_three(cls, names: list[str] | None) -> list[str] | None:
        if names is not None and len(names) not in (1, 3):
            raise ValueError(f"expected one output or three, found {len(names)}")
        return names


class HeadOutputs(Section):
    """Names of a network's outputs beside the pose, as ``hpe export`` writes them.

    Attributes:
        emotion, direction: a probability per class, in the order of :mod:`hpe.core.labels`.
        affect: valence and arousal.
    """

    emotion: str | None = None
    direction: str | None = None
    affect: str | None = None

    @property
    def named(self) -> dict[str, str]:
        """Head → output, of the heads that there are."""
        return {head: name for head in HEAD_VALUES if (name := getattr(self, head)) is not None}


class LearnedSpec(Section):
    """What a network was trained on, as ``hpe export`` writes it: evaluations on other datasets depend on it.

    Attributes:
        emotion, direction: names of the classes with training samples; None: unknown.
        faces: how large the faces are in their images, by ``box`` or ``landmarks``; empty: unknown.
    """

    emotion: list[str] | None = None
    direction: list[str] | None = None
    faces: dict[str, Annotated[float, Field(gt=0, lt=100)]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _known(self) -> Self:
        for head, names in (("emotion", EMOTIONS), ("direction", DIRECTIONS)):
            if unknown := [name for name in getattr(self, head) or () if name not in names]:
                raise ValueError(f"{head}: {', '.join(unknown)}: expected some of {', '.join(names)}")
        return self

    @property
    def classes(self) -> dict[str, tuple[int, ...]]:
        """The classes of each head by number."""
        known = {"emotion": EMOTIONS, "direction": DIRECTIONS}
        return {
            head: tuple(at for at, name in enumerate(names) if name in chosen)
            for head, names in known.items()
            if (chosen := getattr(self, head)) is not None
        }


class EstimatorSpec(Section):
    """A network: its weights (a path from the YAML's folder), input, outputs and crop rule.

    ``crop`` lists the rules of the training images where they have several; empty: unknown. ``output`` is its pose,
    None where it has none.
    """

    weights: str
    name: Annotated[str, Field(pattern=NAME)] | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    crop: str | list[str]
    input: InputSpec = InputSpec()
    output: OutputSpec | None = None
    heads: HeadOutputs = HeadOutputs()
    learned: LearnedSpec = LearnedSpec()

    @model_validator(mode="after")
    def _outputs_once(self) -> Self:
        pose = [] if self.output is None else [*(self.output.names or ()), self.output.deviations]
        named = [name for name in (*pose, *self.heads.named.values()) if name is not None]
        if double := next((name for name in named if named.count(name) > 1), None):
            raise ValueError(f"output {double!r} is named twice; each output of the network is one thing")
        return self

    @field_validator("crop")
    @classmethod
    def _rules(cls, crop: str | list[str]) -> str | list[str]:
        if isinstance(crop, str):
            return str(CropRule.parse(crop))
        return [str(CropRule.parse(rule)) for rule in crop]

    @property
    def crops(self) -> frozenset[CropRule]:
        """The crop rules of the training images, as far as they are known."""
        return frozenset(map(CropRule.parse, [self.crop] if isinstance(self.crop, str) else self.crop))


def read_output(
    outputs: tuple[Tensor, ...], spec: OutputSpec
) -> tuple[Float[Tensor, "batch 3"], Float[Tensor, "batch 3"]]:
    """Yaw, pitch, roll in degrees and our signs, and their standard deviations (NaN where there are none).

    Args:
        outputs: three tensors (one per angle) or one; each ``[batch, …]`` with the values of ``VALUES``; then, where
            the description names them, the deviations [batch 3].
        spec: how to read them.

    Raises:
        UserError: the number of values per face is not that of the kind.
    """
    if any(output.ndim == 0 for output in outputs):
        raise UserError("the network gives one number for all faces together; expected values for each face")
    stated = None
    if spec.deviations is not None:
        *poses, stated = outputs
        outputs = tuple(poses)
    raw = outputs[0] if len(outputs) == 1 else torch.stack([output.flatten(1) for output in outputs], 1)
    values = VALUES[spec.kind]
    raw = raw.reshape(len(raw), -1).float()
    expected = torch.Size(values).numel()
    if raw.shape[1] != expected:
        raise UserError(f"the network gives {raw.shape[1]} values per face, {spec.kind} has {expected}")
    raw = raw.reshape(len(raw), *values)
    if stated is not None:
        deviations = stated.float()
    elif values == (3, BINS):
        deviations = bins_deviation(raw)
    else:
        deviations = torch.full((len(raw), 3), torch.nan, device=raw.device)
    match spec.kind:
        case "bins66-lower":
            angles = bins_mean(raw)
        case "bins66-centre":
            angles = bins_mean(raw, BIN_DEGREES / 2)
        case "euler":
            angles = torch.rad2deg(raw) if spec.unit == "radians" else raw
        case "sixd":
            angles = euler_from_rotation(rotation_from_6d(raw))
        case "matrix":
            angles = euler_from_rotation(raw)
    # Column by column, with plain numbers: indexing by a list, or a tensor of signs, would be copied to the device
    # while the host waits.
    order = spec.order if spec.kind in ("bins66-lower", "bins66-centre", "euler") else ANGLES
    places = [order.index(angle) for angle in ANGLES]
    signed = [angles[:, place] * getattr(spec.signs, angle) for angle, place in zip(ANGLES, places, strict=True)]
    return torch.stack(signed, 1), torch.stack([deviations[:, place] for place in places], 1)
