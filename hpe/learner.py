"""One optimizer step, validation and checkpoints of a run; the loop around them is in ``hpe.train``."""

import math
import pickle
import time
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from hpe import optim, runs
from hpe.augment import Augmentation, augment, prepare, scaled
from hpe.batch import Batch
from hpe.config import RunConfig
from hpe.errors import NotFiniteError, UserError
from hpe.log import Log
from hpe.losses import HeadLoss, head_loss, label_mask
from hpe.models.backbones import synchronised
from hpe.models.multitask import MultiTask, Outputs
from hpe.ranks import Ranks
from hpe.runs import State
from hpe.samplegrid import SHOWN
from hpe.stream import Loaded, Loader

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hpe.metrics import HeadMetrics

_MIX: Final = 0x9E3779B97F4A7C15
"""Splits one seed into many (Steele et al., SplitMix)."""


class Learner:
    """A network in training on this rank.

    Args:
        config: of the run.
        network: with the weights to start from.
        losses: what each head's loss depends on.
        epoch_samples: samples of one epoch of the training data.
        ranks: this process among those of the job.
        accelerator: its device, process group and precision.
    """

    def __init__(
        self,
        config: RunConfig,
        network: MultiTask,
        losses: dict[str, HeadLoss],
        epoch_samples: int,
        ranks: Ranks,
        accelerator: "Accelerator",
    ) -> None:
        settings = config.train
        self.config, self.losses, self.epoch_samples, self.ranks = config, losses, epoch_samples, ranks
        self.augmentation = Augmentation(**config.augment.model_dump())
        self.accelerator = accelerator
        network = network.to(self.accelerator.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if settings.sync_batch_norm and self.accelerator.device.type == "cuda" and ranks.world > 1:
            network.backbone = synchronised(network.backbone)
        self.network = network
        self.frozen_norms = optim.frozen_norms(network)
        groups = optim.parameter_groups(
            network,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            head_rate=settings.head_rate,
            layer_decay=settings.layer_decay,
        )
        self.groups = optim.describe_groups(groups)
        optimizer = optim.build_optimizer(settings.optimizer, groups, settings.learning_rate)
        self.ema = None
        if settings.ema:
            self.ema = AveragedModel(network, multi_avg_fn=optim.warming_average(settings.ema))
        # The loader stays out of `prepare`, which would dispatch batches anew, and so does the rate.
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        self.call = torch.compile(self.model) if settings.compile else self.model
        self._pending: tuple[tuple[str, ...], State, Tensor] | None = None
        self._sums = torch.zeros(2 * len(losses) + 1, dtype=torch.float64, device=self.accelerator.device)
        self._norm = torch.zeros(())
        self.start(State(samples_seen=0, step=0))

    def start(self, state: State) -> None:
        """Begin an interval of the log here."""
        self._sums.zero_()
        self._since, self._since_samples, self._waited_seconds = time.monotonic(), state.samples_seen, 0.0

    def step(self, loaded: Loaded, state: State, *, stop: bool, logged: bool) -> bool:
        """One optimizer step from a state, on this rank's part of a global batch.

        With ``logged`` the gradient's norm is measured, for the log. Returns whether some rank has asked to stop:
        all ranks answer alike, one step after it was asked, so that nobody waits for the device.

        Raises:
            NotFiniteError: the loss of the step before was not finite.
        """
        settings = self.config.train
        rate = self.rate(state)
        optim.set_rate(self.optimizer.optimizer, rate)
        self._seed(state)
        self.model.train()
        for norm in self.frozen_norms:
            norm.eval()
        batch = loaded.batch.to(self.accelerator.device)
        by = self.network.normalisation
        images, batch = augment(batch, self.augmentation, seed=self.config.seed, position=loaded.first, by=by)
        counts = [label_mask(head, batch, loss).sum() for head, loss in self.losses.items()]  # of the poses as turned
        asked = torch.tensor(float(stop), device=self.accelerator.device)
        shared = self.accelerator.reduce(torch.stack([*(c.double() for c in counts), asked.double()]), "sum")
        assert isinstance(shared, Tensor)
        inputs = batch.angles if self.network.takes_angles else scaled(images, self.size(state.samples_seen))
        sums = self._backward(inputs, batch, shared[:-1].clamp(min=1))
        if settings.clip or logged:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), settings.clip or math.inf)
            assert isinstance(norm, Tensor)
            self._norm = norm
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.ema is not None:
            self.ema.update_parameters(self.network)
        self._sums += torch.cat((sums, shared[-1:]))
        stopping = self._settle()
        self._pending = (batch.keys, state, torch.cat((sums[: len(self.losses)].sum()[None], shared[-1:])))
        return stopping

    def _backward(self, inputs: Tensor, batch: Batch, counts: Tensor) -> Tensor:
        """Gradients of this rank's samples, as parts of the global batch; per head: loss sum, label count.

        DDP averages over the ranks, so each rank's sum over the global count is multiplied by their number.
        """
        pieces = -(-len(batch) // (self.config.train.micro_batch or len(batch)))
        bounds = [len(batch) * piece // pieces for piece in range(pieces + 1)]
        sums = torch.zeros(2 * len(self.losses), dtype=torch.float64, device=counts.device)
        for start, end in pairwise(bounds):
            rows = slice(start, end)
            # Ranks exchange gradients once, with the last piece.
            with nullcontext() if end == len(batch) else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    outputs = self.call(inputs[rows])
                total, parts = self._total(outputs, batch[rows], counts, pieces)
                self.accelerator.backward(total * self.ranks.world)
            sums += parts
        return sums

    def _total(self, outputs: Outputs, batch: Batch, counts: Tensor, pieces: int) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), device=counts.device)
        parts = []
        for (head, settings), count in zip(self.losses.items(), counts, strict=True):
            summed = head_loss(head, outputs[head], batch, settings).sum()
            mean = summed / count.to(summed.dtype)
            if head in self.network.log_variance:
                log_variance = self.network.log_variance[head]
                share = 1 / (pieces * self.ranks.world)
                mean = torch.exp(-log_variance) * mean + log_variance * share
            total = total + settings.weight * mean
            parts.append((summed.detach().double(), label_mask(head, batch, settings).sum().double()))
        return total, torch.stack([value for part in zip(*parts, strict=True) for value in part])

    def _settle(self) -> bool:
        """Look at the step before: by now its numbers are there without waiting."""
        if self._pending is None:
            return False
        keys, state, (loss, asked) = self._pending
        if not math.isfinite(float(loss)):
            raise NotFiniteError(
                f"the loss became {float(loss)} at step {state.step + 1} ({state.samples_seen:,} samples seen) "
                f"with the samples {', '.join(keys[:8])}{' …' if len(keys) > 8 else ''} on rank {self.ranks.rank}"
            )
        return float(asked) > 0

    def _seed(self, state: State) -> None:
        """Dropout depends on seed, samples seen and rank alone, never on what ran before."""
        seed = (self.config.seed * _MIX + state.samples_seen * self.ranks.world + self.ranks.rank) % 2**63
        torch.manual_seed(seed)

    def rate(self, state: State) -> float:
        """The learning rate at a state."""
        settings = self.config.train
        return settings.learning_rate * optim.rate_factor(
            settings.schedule,
            state.samples_seen / self.epoch_samples,
            settings.epochs,
            warmup_epochs=settings.warmup_epochs,
            step_epochs=settings.step_epochs,
            step_factor=settings.step_factor,
        )

    def size(self, position: int) -> int:
        """The side of the pictures that a step from a position learns from."""
        settings = self.config.train
        if settings.small_size and position < settings.small_epochs * self.epoch_samples:
            return settings.small_size
        return self.config.data.size

    def size_before(self, samples_seen: int) -> int:
        """The side of the pictures of the step that has led to here."""
        assert isinstance(self.config.train.batch, int)
        return self.size(max(0, samples_seen - self.config.train.batch))

    def log(self, state: State, log: Log, loader: Loader) -> dict[str, float]:
        """Write the figures since the last call, and return them. A collective call."""
        sums = self.accelerator.reduce(self._sums, "sum")
        assert isinstance(sums, Tensor)
        heads = len(self.losses)
        figures, total = {}, 0.0
        for place, (head, settings) in enumerate(self.losses.items()):
            labels = float(sums[heads + place])
            if labels:
                figures[f"{head}/loss"] = float(sums[place]) / labels
                total += settings.weight * figures[f"{head}/loss"]
        seconds = max(time.monotonic() - self._since, 1e-9)
        samples = state.samples_seen - self._since_samples
        waited = loader.waited_seconds - self._waited_seconds
        figures |= {
            "loss": total,
            "learning_rate": self.rate(state),
            "gradient_norm": float(self._norm),
            "speed/images_per_second": samples / seconds,
            "speed/waiting_for_data": min(1.0, waited / seconds),
            "epoch": state.samples_seen / self.epoch_samples,
        }
        if self.accelerator.device.type == "cuda":
            figures["speed/device_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        log.scalars("train", state.step, state.samples_seen, figures)
        self.start(state)
        self._waited_seconds = loader.waited_seconds
        return figures

    @property
    def evaluated(self) -> nn.Module:
        """The network that is validated and used: the average where there is one."""
        return self.network if self.ema is None else self.ema.module

    @torch.no_grad()
    def validate(
        self, batches: Iterable[Batch], metrics: "HeadMetrics", samples_seen: int
    ) -> list[tuple[Batch, Outputs]]:
        """Add validation batches to the metrics, in the size that was learned last; the first few, to be looked at."""
        size = self.size_before(samples_seen)
        network, by = self.evaluated.eval(), self.network.normalisation
        if self.ranks.world > 1:  # norms count on each rank; what is judged and saved is rank 0's
            for buffer in network.buffers():
                torch.distributed.broadcast(buffer, 0)
        metrics.to(self.accelerator.device)
        seen: list[tuple[Batch, Outputs]] = []
        for batch in batches:
            batch = batch.to(self.accelerator.device)
            inputs = batch.angles if self.network.takes_angles else scaled(prepare(batch, by), size)
            with self.accelerator.autocast():
                outputs = network(inputs)
            metrics.update(outputs, batch)
            if sum(len(one) for one, _ in seen) < SHOWN:  # copied: a worker's memory is used again
                few = {head: values[:SHOWN].cpu() for head, values in outputs.items()}
                seen.append((batch[:SHOWN].clone(), few))
        return seen

    def save(self, run: Path, state: State, *, best: bool) -> None:
        """Write a checkpoint on rank 0; the others wait.

        Raises:
            NotFiniteError: there is nothing good to write: the loss or the weights are no numbers any more.
        """
        self._settle()
        # Another rank's gradient may have spoilt the weights while this rank's loss was finite.
        if not all(bool(torch.isfinite(weight).all()) for weight in self.network.parameters()):
            raise NotFiniteError(
                f"the weights are no finite numbers after step {state.step} ({state.samples_seen:,} samples seen)"
            )
        if self.ranks.main:
            optimizer = {"optimizer": self.optimizer.optimizer.state_dict()}
            if self.accelerator.scaler is not None:
                optimizer["scaler"] = self.accelerator.scaler.state_dict()
            runs.save_checkpoint(
                run,
                replace(state, ranks=self.ranks.world),
                self.network,
                optimizer,
                ema=None if self.ema is None else self.ema.module,
                keep=self.config.train.keep,
                best=best,
            )
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path) -> State:
        """Go back to a checkpoint; it may come from another number of ranks.

        Raises:
            UserError: it is damaged, or does not fit the config.
        """
        state = State.load(checkpoint)
        try:
            self.network.load_state_dict(runs.load_tensors(checkpoint / "model.safetensors"))
            if self.ema is not None:
                self.ema.module.load_state_dict(runs.load_tensors(checkpoint / "ema.safetensors"))
                self.ema.n_averaged.fill_(state.step)
            with warnings.catch_warnings(action="ignore", category=UserWarning):  # of pickle protocols
                saved = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
            self.optimizer.optimizer.load_state_dict(saved["optimizer"])
            if self.accelerator.scaler is not None and "scaler" in saved:
                self.accelerator.scaler.load_state_dict(saved["scaler"])
        except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
            raise UserError(
                f"{checkpoint}: damaged checkpoint ({' '.join(str(error).split())[:200]}); "
                "remove this folder to go on from the one before, or take the version of hpe that wrote it"
            ) from error
        except pickle.UnpicklingError as error:  # its own text advises to unpickle what it refuses
            raise UserError(
                f"{checkpoint}: damaged checkpoint (optimizer.pt holds more than tensors and numbers); "
                "remove this folder to go on from the one before"
            ) from error
        return state
