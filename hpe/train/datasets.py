"""The datasets that a config names, as streams."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from hpe.config.run import DataConfig
from hpe.core.devices import cuda, unused_gpu
from hpe.core.errors import UserError
from hpe.stream import Balance, LabelSource, Reading, ShardSet, Stream


def open_stream(data: DataConfig, part: Literal["train", "val"]) -> Stream:
    """The samples of the datasets under ``data.train`` or ``data.val`` of a config.

    Raises:
        UserError: shards or pose tables that are missing or do not fit together; no GPU to decode on.
    """
    return Stream(shard_sets(data, part), reading(data))


def shard_sets(data: DataConfig, part: Literal["train", "val"]) -> list[ShardSet]:
    """The datasets under ``data.train`` or ``data.val`` in the form that :class:`Stream` takes."""
    named = data.train if part == "train" else data.val
    return [
        ShardSet(one.shards, one.split, one.pose, one.weight, f"data.{part}.{number}")
        for number, one in enumerate(named)
    ]


def reading(data: DataConfig, *, workers: int | None = None) -> Reading:
    """How the samples of a config are read."""
    return Reading(
        size=data.size,
        colour="grey" if data.grey else "rgb",
        labels=LabelSource(data.angles, data.direction),
        decoder=decoder_of(data.decoder),
        damaged=data.damaged,
        workers=data.workers if workers is None else workers,
        stage=data.stage,
    )


def all_angles(stream: Stream) -> Float[Tensor, "samples 3"]:
    """The angles of every sample that has them, read by this rank alone."""
    with stream.once(batch=1024) as loader:
        return torch.cat([loaded.batch.angles[loaded.batch.angles_mask] for loaded in loader])


def balance_of(data: DataConfig) -> Balance | None:
    """How classes are balanced, or None."""
    return Balance() if data.sampling == "balanced" else None


def decoder_of(setting: str) -> Literal["cpu", "gpu"]:
    """Where images are decoded: ``auto`` is the GPU if there is one.

    Raises:
        UserError: the setting is ``gpu``, and torch sees none.
    """
    if setting == "gpu" and not cuda():
        why = unused_gpu()
        raise UserError(f"data.decoder: gpu: torch sees no GPU here{f': {why}' if why else ''}; use cpu or auto")
    return "gpu" if setting != "cpu" and cuda() else "cpu"
