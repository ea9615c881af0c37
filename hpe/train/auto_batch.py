"""How many samples a step takes where the config says ``train.batch: auto``: a power of two for each rank.

On a GPU it doubles until memory runs out and takes the last that went through; on a CPU it doubles as long as
that makes the network notably faster. The trial runs on a copy of the network, each rank for itself, with the
augmentation, the losses and the optimizer of the run.
"""

import copy
import gc
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final

import torch

from hpe.config.run import RunConfig
from hpe.core.errors import UserError
from hpe.core.labels import EMOTIONS
from hpe.data.batch import Batch
from hpe.models.multitask import MultiTask
from hpe.stream.augment import Augmentation, augment
from hpe.train.losses import LossSettings, head_loss

if TYPE_CHECKING:
    from accelerate import Accelerator

SMALLEST: Final = 4
_WORTH_DOUBLING: Final = 1.05
_LEAST_STEPS: Final = 20
"""Least steps per epoch. A larger batch can be faster, but leaves too few steps to learn."""
_PASSES: Final = 3


def largest_that_fits(step: Callable[[int], object], *, largest: int) -> int:
    """The last power of two, from 4 to ``largest``, whose ``step`` does not run out of memory.

    Raises:
        UserError: not even the smallest does.
    """
    fits = 0
    batch = SMALLEST
    while batch <= max(largest, SMALLEST):
        try:
            step(batch)
        except torch.OutOfMemoryError:
            break
        fits, batch = batch, 2 * batch
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if not fits:
        raise UserError(
            f"train.batch: auto: a step on {SMALLEST} samples does not fit into the device's memory; "
            "use a smaller network or data.size"
        )
    return fits


def where_doubling_stops_paying(step_seconds: Callable[[int], float], *, largest: int) -> int:
    """The smallest power of two, from 4 to ``largest``, whose double brings less than 5 % more samples a second."""
    batch = SMALLEST
    rate = batch / step_seconds(batch)
    while 2 * batch <= largest:
        doubled = 2 * batch / step_seconds(2 * batch)
        if doubled < _WORTH_DOUBLING * rate:
            break
        batch, rate = 2 * batch, doubled
    return batch


def find_batch(
    config: RunConfig,
    network: MultiTask,
    losses: dict[str, LossSettings],
    *,
    samples: int,
    ranks: int,
    accelerator: "Accelerator",
) -> int:
    """The batch over all ranks. A collective call: the rank with the least memory or speed decides.

    ``samples``: of an epoch.
    """
    # At least one step must learn from images of the full size.
    after_small = int((config.train.epochs - config.train.small_epochs) * samples)
    largest = max(1, min(samples // _LEAST_STEPS, after_small) // ranks)
    device = accelerator.device
    trial = Trial(
        network,
        losses,
        size=config.data.size,
        augmentation=Augmentation(**config.augment.model_dump()),
        device=device,
        autocast=lambda: accelerator.autocast(),
        copies=(ranks > 1) + bool(config.train.ema),
    )
    if device.type == "cuda":
        found = largest_that_fits(trial.step, largest=largest)
    else:
        found = where_doubling_stops_paying(trial.seconds, largest=largest)
    lowest = accelerator.gather(torch.tensor([found], device=device))
    assert isinstance(lowest, torch.Tensor)
    return int(lowest.min()) * ranks


class Trial:
    """Training steps of a given size on made-up samples.

    Args:
        network: copied, and left as it is.
        losses: of its heads.
        size: side of the pictures.
        augmentation: of the run.
        device: where the run trains.
        autocast: opens a mixed-precision block.
        copies: of the weights that the run will hold beside the network and its gradients (average, buckets).
    """

    def __init__(
        self,
        network: MultiTask,
        losses: dict[str, LossSettings],
        *,
        size: int,
        augmentation: Augmentation,
        device: torch.device,
        autocast: Callable[[], AbstractContextManager[None]],
        copies: int,
    ) -> None:
        self._network = copy.deepcopy(network).to(device, memory_format=torch.channels_last).train()  # pyright: ignore[reportCallIssue]
        self._held = [copy.deepcopy(self._network) for _ in range(copies)]
        self._optimizer = torch.optim.AdamW(self._network.parameters(), lr=0.0)
        self._losses = {head: settings.to(device) for head, settings in losses.items()}
        self._size, self._augmentation = size, augmentation
        self._device, self._autocast = device, autocast

    def step(self, batch: int) -> None:
        """One step on ``batch`` samples.

        Raises:
            torch.OutOfMemoryError: they do not fit.
        """
        self._optimizer.zero_grad()
        made, by = _made_up(batch, self._size, self._device), self._network.normalisation
        images, samples = augment(made, self._augmentation, seed=0, position=0, by=by)
        with self._autocast():
            outputs = self._network(samples.angles if self._network.takes_angles else images)
        losses = [head_loss(head, outputs[head], samples, settings).mean() for head, settings in self._losses.items()]
        torch.stack(losses).sum().backward()
        self._optimizer.step()
        if self._device.type == "cuda":  # the host waits: what a step needs is known when it is done
            torch.cuda.synchronize(self._device)

    def seconds(self, batch: int) -> float:
        """The quickest of three steps, after one to warm up."""
        self.step(batch)
        taken = []
        for _ in range(_PASSES):
            start = time.perf_counter()
            self.step(batch)
            taken.append(time.perf_counter() - start)
        return min(taken)


def _made_up(rows: int, size: int, device: torch.device) -> Batch:
    every = torch.ones(rows, dtype=torch.bool, device=device)
    classes = torch.zeros(rows, dtype=torch.int64, device=device)
    return Batch(
        keys=("",) * rows,
        images=torch.full((rows, 3, size, size), 128, dtype=torch.uint8, device=device),
        emotion=classes,
        emotion_target=torch.full((rows, len(EMOTIONS)), 1 / len(EMOTIONS), device=device),
        emotion_mask=every,
        direction=classes,
        direction_mask=every,
        angles=torch.zeros(rows, 3, device=device),
        angles_mask=every,
        affect=torch.zeros(rows, 2, device=device),
        affect_mask=every,
    )
