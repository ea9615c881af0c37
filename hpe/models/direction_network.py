"""The thesis' direction network: three angles to five directions, with its scaler among its weights.

The thesis scaled AffectNet's angles with another scaler than the one that the network was trained with; here
the scaler is part of the state dict, so that it cannot be separated.
"""

from typing import Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

from hpe.labels import DIRECTIONS

WIDTHS: Final = (512, 128, 64)
DROPOUT: Final = 0.2


class DirectionNetwork(nn.Module):
    """Yaw, pitch, roll in degrees (our signs) to logits of the five directions.

    Min-max scaling, then 3 → 512 → 128 → 64 → 5 with batch norm, ReLU and dropout 0.2.
    """

    lowest: Tensor
    highest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("lowest", torch.full((3,), -90.0))
        self.register_buffer("highest", torch.full((3,), 90.0))
        sizes = (3, *WIDTHS)
        self.hidden = nn.Sequential(
            *(
                layer
                for before, after in zip(sizes[:-1], sizes[1:], strict=True)
                for layer in (
                    nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU(), nn.Dropout(DROPOUT),
                )
            )
        )  # fmt: skip
        self.head = nn.Linear(WIDTHS[-1], len(DIRECTIONS))

    def fit_scaler(self, angles: Float[Tensor, "faces 3"]) -> None:
        """Take the scaler's range from the training angles.

        Raises:
            ValueError: an angle that is the same everywhere, or not finite.
        """
        lowest, highest = angles.amin(0), angles.amax(0)
        if not bool(angles.isfinite().all()) or not bool((highest > lowest).all()):
            raise ValueError("the training angles are not finite, or one of them never changes")
        self.lowest.copy_(lowest)
        self.highest.copy_(highest)

    def features(self, angles: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 64"]:
        """The last hidden layer."""
        return self.hidden((angles - self.lowest) / (self.highest - self.lowest))

    def forward(self, angles: Float[Tensor, "batch 3"]) -> Float[Tensor, "batch 5"]:
        return self.head(self.features(angles))
