"""The training batch (contract C4)."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Final

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch of training samples (contract C4). A label that is missing has a false mask and any value.

    ``emotion_target`` is a distribution: one-hot, or the votes' shares where the dataset has votes.
    """

    keys: tuple[str, ...]
    images: UInt8[Tensor, "batch 3 height width"]
    emotion: Int64[Tensor, " batch"]
    emotion_target: Float[Tensor, "batch emotions"]
    emotion_mask: Bool[Tensor, " batch"]
    direction: Int64[Tensor, " batch"]
    direction_mask: Bool[Tensor, " batch"]
    angles: Float[Tensor, "batch 3"]
    angles_mask: Bool[Tensor, " batch"]
    affect: Float[Tensor, "batch 2"]
    affect_mask: Bool[Tensor, " batch"]

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device; copies overlap with compute where the memory is pinned."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=True))

    def only_with_angles(self) -> "Batch":
        """The same batch, where a sample without angles has no label: for a network whose input is the angles."""
        known = self.angles_mask
        return replace(
            self,
            emotion_mask=self.emotion_mask & known,
            direction_mask=self.direction_mask & known,
            affect_mask=self.affect_mask & known,
        )

    def clone(self) -> "Batch":
        """A copy in memory of its own."""
        return self._map(lambda tensor: tensor.clone())

    def pin_memory(self) -> "Batch":
        """A copy in page-locked memory, from which copies to a GPU overlap with compute."""
        return self._map(lambda tensor: tensor.pin_memory())

    def __getitem__(self, rows: slice) -> "Batch":
        return self._map(lambda tensor: tensor[rows])._with_keys(self.keys[rows])

    def take(self, rows: Sequence[int]) -> "Batch":
        """The batch of some rows."""
        return self._map(lambda tensor: tensor[list(rows)])._with_keys(tuple(self.keys[row] for row in rows))

    def _with_keys(self, keys: tuple[str, ...]) -> "Batch":
        return Batch(keys, **{name: getattr(self, name) for name in _TENSORS})

    def _map(self, function: Any) -> "Batch":
        return Batch(self.keys, **{name: function(getattr(self, name)) for name in _TENSORS})


_TENSORS: Final = tuple(f.name for f in fields(Batch) if f.name != "keys")
