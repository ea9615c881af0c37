"""One optimizer step, validation and checkpoints of a run; the loop around them is in ``hpe.train.loop``.

The host queues work for the GPU ahead of time. If the host waits for a result, it queues no new work, and the GPU runs
dry. So a step only reads numbers of the step before, and only copies from page-locked memory. Where the host does
wait, a comment says so (``tests/train/test_devices.py`` finds the places).
"""

import math
import pickle
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from hpe.config.run import RunConfig
from hpe.core.errors import NotFiniteError, UserError
from hpe.core.ranks import Ranks
from hpe.data.batch import Batch
from hpe.data.normalise import prepare
from hpe.models.backbones import synchronised
from hpe.models.checkpoints import State, load_tensors, save_checkpoint
from hpe.models.multitask import MultiTask, Outputs
from hpe.stream import Loaded, Loader
from hpe.stream.augment import Augmentation, augment, scaled
from hpe.train import optim
from hpe.train.average import MovingAverage
from hpe.train.log import Log
from hpe.train.losses import LossSettings, head_loss, label_mask, with_targets
from hpe.train.sample_grid import SHOWN

if TYPE_CHECKING:
    from accelerate import Accelerator

    from hpe.train.metrics import HeadMetrics

_MIX: Final = 0x9E3779B97F4A7C15
"""Splits one seed into many (Steele et al., SplitMix)."""


class _Later:
    """Numbers on their way from the device, to be read while it is busy with later work.

    To read a number of the device at once makes the host wait for all the work before it; then the device runs out of
    work and waits for the host.
    """

    def __init__(self, values: Tensor) -> None:
        self._values = values.to("cpu", non_blocking=True)  # from a GPU: a copy into page-locked memory, not awaited
        self._arrived = None
        if values.is_cuda:
            self._arrived = torch.cuda.Event()
            self._arrived.record(torch.cuda.current_stream(values.device))

    def read(self) -> list[float]:
        """The numbers; the host waits for their copy alone, not for what the device was given after it."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return [float(value) for value in self._values]


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
        losses: dict[str, LossSettings],
        epoch_samples: int,
        ranks: Ranks,
        accelerator: "Accelerator",
    ) -> None:
        settings = config.train
        self.config, self.epoch_samples, self.ranks = config, epoch_samples, ranks
        self.augmentation = Augmentation(**config.augment.model_dump())
        self.accelerator, self.device = accelerator, accelerator.device
        self.losses = {head: loss.to(self.device) for head, loss in losses.items()}
        on_gpu = self.device.type == "cuda"
        if on_gpu:  # Images have one size, so the search for the fastest algorithms pays. Runs may find different ones.
            torch.backends.cudnn.benchmark = True
        network = network.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        if settings.sync_batch_norm and on_gpu and ranks.world > 1:
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
        # On a CPU it takes a third of the time of torch's own choice, a loop over parameters, but does not skip there
        # what a gradient scaler tells it to skip (torch 2.15).
        fused = on_gpu or accelerator.scaler is None or None
        optimizer = optim.build_optimizer(settings.optimizer, groups, settings.learning_rate, fused=fused)
        self.ema = MovingAverage(network, settings.ema) if settings.ema else None
        self._own_norms = _counting_norms(network, self.frozen_norms) if ranks.world > 1 else []
        # The loader stays out of `prepare`: Accelerate would send rank 0's batches to all ranks, and over shards that
        # are split among nodes skip half of the data. The learning-rate schedule stays out, too: a prepared scheduler
        # steps once per rank.
        self.model, self.optimizer = self.accelerator.prepare(network, optimizer)
        # DDP would send rank 0's buffers before every step: unnecessary, `_average_norms` keeps the buffers equal.
        if ranks.world > 1:
            self.model.broadcast_buffers = False
        self.call = torch.compile(self.model) if settings.compile else self.model
        self._pending: tuple[tuple[str, ...], State, _Later] | None = None
        self._stopping = False
        self._asked: _Later | None = None
        # Since the last log, on this rank: the sum of losses by head, then the number of labels by head.
        self._sums = torch.zeros(2 * len(losses), dtype=torch.float64, device=self.device)
        self._norm = torch.zeros((), device=self.device)
        self._train()
        self.start_interval(State(samples_seen=0, step=0))

    def _train(self) -> None:
        self.model.train()
        for norm in self.frozen_norms:
            norm.eval()

    def start_interval(self, state: State) -> None:
        """Begin an interval of the log here.

        ``_waited_seconds`` is the loader's count at that point: 0 for a new loader; :meth:`log` sets it afterwards.
        """
        self._sums.zero_()
        self._since, self._since_samples, self._waited_seconds = time.monotonic(), state.samples_seen, 0.0

    @contextmanager
    def untimed(self) -> Iterator[None]:
        """Validations and checkpoints happen in such a block, so that the log's speed is that of learning alone."""
        start = time.monotonic()
        yield
        self._since += time.monotonic() - start

    def step(self, loaded: Loaded, state: State, *, asked_here: bool, measure_gradient: bool) -> bool:
        """One optimizer step from a state, on this rank's part of a global batch.

        Args:
            loaded: the part.
            state: where the run is before the step.
            asked_here: a signal has asked this rank to stop.
            measure_gradient: for the log.

        Returns:
            Whether some rank has been asked to stop: the same answer on all ranks, one step after the question, so
            that no host waits for its device.

        Raises:
            NotFiniteError: the loss of the step before was not finite.
        """
        optim.set_rate(self.optimizer.optimizer, self.rate(state))
        self._seed(state)
        if not self.network.training:  # after a validation; asked, as it costs 0.8 ms to tell every module
            self._train()
        batch = with_targets(self._received(loaded.batch), self.losses)
        images, batch = augment(
            batch,
            self.augmentation,
            seed=self.config.seed,
            position=loaded.first,
            by=self.network.normalisation,
            largest_degrees=self.losses["pose"].largest_degrees if "pose" in self.losses else math.inf,
        )
        inputs = batch.angles if self.network.takes_angles else scaled(images, self.size(state.samples_seen))
        counts, asked = self.count_labels(batch, asked_here=asked_here)
        sums = self.forward_backward(inputs, batch, counts)
        if self.config.train.clip or measure_gradient:
            self.clip_gradients()
        skipped = self.update()
        self._sums += sums
        numbers = torch.stack((sums[: len(self.losses)].sum(), asked, skipped.double()))
        stopping = self._settle()
        # After _settle, which corrects the count of averaged steps if the scaler skipped the step before.
        if self.ema is not None:
            self.ema.update(self.network, skipped=None if self.accelerator.scaler is None else skipped)
        self._pending = (batch.keys, state, _Later(numbers))
        return stopping

    def _received(self, batch: Batch) -> Batch:
        """A batch on the device, with the labels that this network can learn from or be judged by."""
        batch = batch.to(self.device)  # first: what is computed on the CPU lies in memory that is not page-locked
        return batch.only_with_angles() if self.network.takes_angles else batch

    def count_labels(self, batch: Batch, *, asked_here: bool) -> tuple[Tensor, Tensor]:
        """Labels per head in the global batch; and how many ranks are asked to stop. A collective call."""
        counts = [label_mask(head, batch, loss).sum() for head, loss in self.losses.items()]  # after augmentation
        # `full` fills on the device. `tensor(number, device=…)` copies from the host, which waits for the copy.
        asked = torch.full((), float(asked_here), dtype=torch.float64, device=self.device)
        # One message for all numbers. All ranks get the same sums: they divide by the same, and stop at the same step.
        # Divided by its own count, a rank with few labels would weigh each of them more than the others do.
        shared = self.accelerator.reduce(torch.stack([*(c.double() for c in counts), asked]), "sum")
        assert isinstance(shared, Tensor)
        return shared[:-1], shared[-1]

    def forward_backward(self, inputs: Tensor, batch: Batch, counts: Tensor) -> Tensor:
        """Gradients of this rank's samples, as parts of the global batch; by heads: loss sums, then label counts."""
        pieces = -(-len(batch) // (self.config.train.micro_batch or len(batch)))
        bounds = [len(batch) * piece // pieces for piece in range(pieces + 1)]
        sums = torch.zeros_like(self._sums)
        for start, end in pairwise(bounds):
            rows = slice(start, end)
            # Ranks exchange gradients once, with the last piece. Without `no_sync` DDP would send them with each.
            with nullcontext() if end == len(batch) else self.accelerator.no_sync(self.model):
                with self.accelerator.autocast():
                    outputs = self.call(inputs[rows])
                total, parts = self._total(outputs, batch[rows], counts, pieces)
                # DDP divides the sum over ranks by their number, but the loss is divided by the global count already.
                # Without the factor, N ranks would give 1/N of the gradient of one.
                self.accelerator.backward(total * self.ranks.world)
            sums += parts
        return sums

    def clip_gradients(self) -> None:
        """Measure the gradient's norm, for the log, and shorten the gradient to ``train.clip`` where that is on."""
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.train.clip or math.inf)
        assert isinstance(norm, Tensor)
        self._norm = norm

    def update(self) -> Tensor:
        """One step of the optimizer; true, on the device, where the gradient scaler skipped it."""
        scaler = self.accelerator.scaler
        before = None if scaler is None else scaler._scale.clone()  # pyright: ignore[reportOptionalMemberAccess]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._average_norms()
        if before is None:
            return torch.zeros((), dtype=torch.bool, device=self.device)
        # A scaler lowers its scale after an infinite gradient and only then. Compared
        # on the device: to read the scale on the host is to wait for the device.
        return scaler._scale < before  # pyright: ignore[reportOptionalMemberAccess, reportOptionalOperand]

    def _average_norms(self) -> None:
        """Give every rank the mean of all ranks' batch-norm statistics.

        The norms of a rank see only its own samples. Running statistics are linear, so their mean after every step
        covers the samples of all ranks (timm's ``distribute_bn`` does so once per epoch). It also keeps the
        ranks equal: moving average, validation and checkpoint may use any rank's.
        """
        if not self._own_norms:
            return
        # Looked up at every step: Accelerate's `prepare` has replaced the tensors of the buffers.
        both = (one for norm in self._own_norms for one in (norm.running_mean, norm.running_var))
        statistics = [one for one in both if one is not None]
        mean = self.accelerator.reduce(torch.cat(statistics), "mean")
        assert isinstance(mean, Tensor)
        torch._foreach_copy_(statistics, mean.split([len(one) for one in statistics]))

    def _total(self, outputs: Outputs, batch: Batch, counts: Tensor, pieces: int) -> tuple[Tensor, Tensor]:
        """The loss of one piece, for the gradient; and its values, detached, in the order of ``_sums``."""
        total = torch.zeros((), device=counts.device)
        parts = []
        for (head, settings), count in zip(self.losses.items(), counts, strict=True):
            summed = head_loss(head, outputs[head], batch, settings).sum()
            mean = summed / count.clamp(min=1).to(summed.dtype)
            if head in self.network.log_variance:
                log_variance = self.network.log_variance[head]
                # Learned weights after Kendall, Gal and Cipolla (2018). The totals of all pieces and ranks are added:
                # with its share in each, `log_variance` counts once. In a batch without a label of this head it does
                # not count: its gradient, 1 whatever the loss, would raise the head's weight at every such step.
                share = (count > 0).to(mean.dtype) / (pieces * self.ranks.world)
                mean = torch.exp(-log_variance) * mean + log_variance * share
            total = total + settings.weight * mean
            parts.append((summed.detach().double(), label_mask(head, batch, settings).sum().double()))
        return total, torch.stack([value for part in zip(*parts, strict=True) for value in part])

    def _settle(self) -> bool:
        """Check the step before, once; whether some rank asked to stop in it.

        Its numbers have been on their way since it ended, and the device now works on this step. So the host waits only
        if it is more than a step ahead. Reading the numbers of this step would make it wait every time.
        """
        if self._pending is None:
            return self._stopping
        keys, state, numbers = self._pending
        self._pending = None
        loss, asked, skipped = numbers.read()
        if not math.isfinite(loss):
            raise NotFiniteError(
                f"the loss became {loss} at step {state.step + 1} ({state.samples_seen:,} samples seen) "
                f"with the samples {', '.join(keys[:8])}{' …' if len(keys) > 8 else ''} on rank {self.ranks.rank}"
            )
        if self.ema is not None and skipped:
            self.ema.steps -= 1
        self._stopping |= asked > 0
        return self._stopping

    def some_rank_asked(self, here: bool) -> bool:
        """Whether ``here`` was true on some rank at the *previous* call (at the first: False).

        The same answer on all ranks. A collective call that waits for none of them.

        ``hpe.core.distributed.some_rank`` answers at once; for that it waits for the device and for the slowest rank.
        """
        shared = self.accelerator.reduce(torch.full((1,), float(here), device=self.device), "sum")
        assert isinstance(shared, Tensor)
        before, self._asked = self._asked, _Later(shared)
        return before is not None and before.read()[0] > 0

    def _seed(self, state: State) -> None:
        """Dropout depends on seed, samples seen, rank and number of ranks alone, never on what ran before."""
        seed = (self.config.seed * _MIX + state.samples_seen * self.ranks.world + self.ranks.rank) % 2**63
        if self.device.type == "cuda":
            torch.manual_seed(seed)
        else:  # the other keeps a seed, and a stack trace, for GPUs that are not in use: 0.4 ms
            torch.default_generator.manual_seed(seed)

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
        """The side of the images that the step from a position learns from."""
        settings = self.config.train
        if settings.small_size and position < settings.small_epochs * self.epoch_samples:
            return settings.small_size
        return self.config.data.size

    def size_before(self, samples_seen: int) -> int:
        """The side of the images of the step that ended at a position."""
        assert isinstance(self.config.train.batch, int)
        return self.size(max(0, samples_seen - self.config.train.batch))

    def log(self, state: State, log: Log, loader: Loader) -> dict[str, float]:
        """Report the figures since the last call, and return them; speeds are of all ranks. A collective call."""
        shared = self.accelerator.reduce(self._sums, "sum")
        assert isinstance(shared, Tensor)
        # The host waits for the device here, once for every `train.log_steps` steps.
        *sums, norm = torch.cat((shared, self._norm[None])).tolist()
        heads = len(self.losses)
        figures, total = {}, 0.0
        for place, (head, settings) in enumerate(self.losses.items()):
            if labels := sums[heads + place]:
                figures[f"{head}/loss"] = sums[place] / labels
                total += settings.weight * figures[f"{head}/loss"]
        seconds = max(time.monotonic() - self._since, 1e-9)
        samples = state.samples_seen - self._since_samples
        waited = loader.waited_seconds - self._waited_seconds
        figures |= {
            "loss": total,
            "learning_rate": self.rate(state),
            "gradient_norm": norm,
            "speed/images_per_second": samples / seconds,
            "speed/waiting_for_data": min(1.0, waited / seconds),
            "epoch": state.samples_seen / self.epoch_samples,
        }
        if self.device.type == "cuda":
            figures["speed/device_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        log.scalars("train", state.step, state.samples_seen, figures)
        self.start_interval(state)
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
        """Add validation batches to the metrics, at the size learned last; returns the first few, for the image log."""
        size = self.size_before(samples_seen)
        network, by = self.evaluated.eval(), self.network.normalisation
        metrics.to(self.device)  # the host waits here, once: sums made on the CPU are copied
        seen: list[tuple[Batch, Outputs]] = []
        for read in batches:
            batch = self._received(read)
            inputs = batch.angles if self.network.takes_angles else scaled(prepare(batch, by), size)
            with self.accelerator.autocast():
                outputs = network(inputs)
            metrics.update(outputs, batch)
            if sum(len(one) for one, _ in seen) < SHOWN:
                # Not awaited: the metrics are read from the device later, and then these have arrived.
                few = {head: values[:SHOWN].to("cpu", non_blocking=True) for head, values in outputs.items()}
                seen.append((read[:SHOWN].clone(), few))  # copied: a worker's memory is used again
        return seen

    def save(self, run: Path, state: State) -> None:
        """Write a checkpoint on rank 0; the others wait.

        Raises:
            NotFiniteError: the loss or the weights became NaN or infinite; nothing is written.
        """
        self._settle()
        # The gradient of another rank may have made the weights NaN while this rank's loss was finite. The host waits.
        if not bool(torch.stack([torch.isfinite(weight).all() for weight in self.network.parameters()]).all()):
            raise NotFiniteError(
                f"the weights became NaN or infinite after step {state.step} ({state.samples_seen:,} samples seen)"
            )
        if self.ranks.main:
            optimizer = {"optimizer": self.optimizer.optimizer.state_dict()}
            if self.accelerator.scaler is not None:
                optimizer["scaler"] = self.accelerator.scaler.state_dict()
                if self.ema is not None:  # fewer than steps: the scaler skips some
                    optimizer["averaged"] = {"steps": self.ema.steps}
            save_checkpoint(
                run,
                replace(state, ranks=self.ranks.world),
                self.network,
                optimizer,
                ema=None if self.ema is None else self.ema.module,
                keep=self.config.train.keep,
                best=state.is_best,
            )
        self.accelerator.wait_for_everyone()

    def load(self, checkpoint: Path) -> State:
        """Resume from a checkpoint, which another number of ranks may have written.

        Raises:
            UserError: it is damaged, or does not fit the config.
        """
        state = State.load(checkpoint)
        # One guard per file, so that the message names the one that is damaged.
        with _readable(checkpoint / "model.safetensors") as file:
            self.network.load_state_dict(load_tensors(file))
        if self.ema is not None:
            with _readable(checkpoint / "ema.safetensors") as file:
                self.ema.module.load_state_dict(load_tensors(file))
                self.ema.steps = state.step  # corrected by _load_optimizer if the scaler has skipped steps
        with _readable(checkpoint / "optimizer.pt") as file:
            self._load_optimizer(file)
        return state

    def _load_optimizer(self, file: Path) -> None:
        with warnings.catch_warnings(action="ignore", category=UserWarning):  # of pickle protocols
            saved = torch.load(file, map_location="cpu", weights_only=True)
        if self.ema is not None and "averaged" in saved:
            self.ema.steps = int(saved["averaged"]["steps"])
        own = self.optimizer.optimizer.param_groups
        for group, mine in zip(saved["optimizer"]["param_groups"], own, strict=False):
            group["fused"] = mine["fused"]  # a property of this machine, not of the one that saved
        self.optimizer.optimizer.load_state_dict(saved["optimizer"])
        if self.accelerator.scaler is not None and "scaler" in saved:
            self.accelerator.scaler.load_state_dict(saved["scaler"])


@contextmanager
def _readable(file: Path) -> Iterator[Path]:
    """Turn every failure to read a file of a checkpoint into one message that names the file.

    Raises:
        UserError: it is damaged, or does not fit the config.
    """
    damaged = f"{file.parent}: damaged checkpoint ({file.name}"
    try:
        yield file
    except pickle.UnpicklingError as error:  # its own text advises to load without the safety check
        raise UserError(
            f"{damaged} holds more than tensors and numbers); remove this folder to go on from the one before"
        ) from error
    except (OSError, RuntimeError, ValueError, LookupError, TypeError, AttributeError, EOFError) as error:
        cause = error.__cause__ if isinstance(error, UserError) and error.__cause__ else error  # the path is named
        raise UserError(
            f"{damaged}: {' '.join(str(cause).split())[:200]}); "
            "remove this folder to go on from the one before, or use the version of hpe that wrote it"
        ) from error


def _counting_norms(network: nn.Module, frozen: list[nn.Module]) -> list[nn.modules.batchnorm._BatchNorm]:
    """Norms whose statistics change in training, each rank's on its own: SyncBatchNorm's are alike everywhere."""
    fixed = set(map(id, frozen))
    return [
        norm
        for norm in network.modules()
        if isinstance(norm, nn.modules.batchnorm._BatchNorm) and not isinstance(norm, nn.SyncBatchNorm)
        if norm.track_running_stats and id(norm) not in fixed
    ]
