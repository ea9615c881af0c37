"""Opens a training run: builds and checks everything that it needs, before the first step."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch

from hpe.config.run import RunConfig
from hpe.core.devices import share_cores
from hpe.core.distributed import agree, common_accelerator
from hpe.core.errors import UserError, mistakes
from hpe.core.precision import Precision, training_precision
from hpe.core.ranks import Ranks
from hpe.data.face_sizes import face_shares
from hpe.models.build import build_network
from hpe.models.checkpoints import State, last_checkpoint
from hpe.models.multitask import MultiTask
from hpe.models.run_folder import TrainedOn
from hpe.stream import Counts, Loader, Stream
from hpe.train.auto_batch import find_batch
from hpe.train.datasets import all_angles, balance_of, open_stream
from hpe.train.log import Damages, Log
from hpe.train.losses import LossSettings, loss_settings
from hpe.train.optim import freeze
from hpe.train.preflight import reasons_against, remarks, steps_of
from hpe.train.resume import claim, recall
from hpe.train.selection import unit_of
from hpe.train.timetable import Timetable
from hpe.train.trackers import lacking

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True)
class Job:
    """A run that can start: everything here has been checked."""

    config: RunConfig
    ranks: Ranks
    accelerator: "Accelerator"
    network: MultiTask
    losses: dict[str, LossSettings]
    train: Stream
    val: Stream
    labels: Counts
    """Of the training data."""
    precision: Precision
    damage: Damages
    resume: Path | None = None
    """The checkpoint to resume from."""

    @property
    def run(self) -> Path:
        """The run folder."""
        return Path(self.config.run)

    @property
    def selection(self) -> str:
        """The validation metric that chooses the best checkpoint."""
        return self.config.selection

    @property
    def epoch_samples(self) -> int:
        """Samples of the training data."""
        return self.train.samples

    @property
    def batch(self) -> int:
        """Samples per step, over all ranks."""
        assert isinstance(self.config.train.batch, int)  # `prepare_job` replaces `auto` before it makes a Job
        return self.config.train.batch

    @property
    def total_samples(self) -> int:
        """Samples of the whole run, in whole batches."""
        return self.total_steps * self.batch

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        return steps_of(self.config.train.epochs, self.epoch_samples, self.batch)

    @property
    def timetable(self) -> Timetable:
        """When the run logs, validates, saves and ends."""
        return Timetable(self.config.train, self.epoch_samples, self.total_samples, self.config.data.size)

    def plan(self) -> str:
        """What the run would do, as a text: the resolved config, samples, steps and precision."""
        share = self.batch // self.ranks.world
        lines = (
            self.config.dump().rstrip(),
            "",
            f"samples: {self.train.samples:,} for training, {self.val.samples:,} for validation",
            f"steps: {self.total_steps:,} in {self.config.train.epochs:g} epochs, {self.batch:,} images each"
            + (f" ({share:,} on each of {self.ranks.world} ranks)" if self.ranks.world > 1 else ""),
            f"precision: {self.precision.name} ({self.precision.why})",
            f"parameters: {sum(one.numel() for one in self.network.parameters()):,}",
        )
        return "\n".join(lines)

    def batches(self, samples_seen: int) -> Loader:
        """The training batches of this rank, from a position on."""
        data = self.config.data
        return self.train.endless(
            seed=self.config.seed,
            batch=self.batch,
            samples_seen=samples_seen,
            rank=self.ranks.rank,
            ranks=self.ranks.world,
            window=data.window,
            balance=balance_of(data),
        )

    def validation(self) -> Loader:
        """The validation batches of this rank: over all ranks, every sample once."""
        return self.val.once(batch=self.batch, rank=self.ranks.rank, ranks=self.ranks.world)

    def trained_on(self) -> TrainedOn:
        """What the run folder records of the training data; reads some of the shards."""
        heads, counts = self.config.model.heads, self.labels
        labels = {"emotion": counts.emotion} if heads.emotion else {}
        labels |= {"direction": counts.direction} if heads.direction else {}
        local = [Path(shard.url) for shards in self.train.sets for shard in shards if not shard.remote]
        return TrainedOn(labels, face_shares(local))

    def last(self) -> Path | None:
        """The newest checkpoint."""
        return last_checkpoint(self.run)

    def say(self, text: str) -> None:
        """Print a line on rank 0."""
        self.ranks.say(f"{self.run}: {text}")

    def say_figures(self, state: State, figures: Mapping[str, float], *, tied: bool) -> None:
        """Print one line of validation metrics; ``tied``: the value is as good as the best one before."""
        shown = {n: v for n, v in figures.items() if n.endswith(("/accuracy", "/macro_f1", "/mae", "/rmse"))}
        texts = [f"{name} {value:.4g}{unit_of(name)}" for name, value in shown.items()]
        # A validation comes with the first batch that ends on an epoch or behind it: 2.002 epochs are two.
        epoch = round(state.samples_seen / self.epoch_samples, 2)
        best = f" ({'as good as the' * tied or 'the'} best {self.selection} so far)" if state.is_best else ""
        self.say(f"epoch {epoch:.6g}: {', '.join(texts)}{best}")

    def say_done(self, state: State) -> None:
        """Print the line of a run that has ended."""
        best = "no metric to choose a best one"
        if state.best is not None:
            best = f"best {self.selection} {state.best:.4g}{unit_of(self.selection)}"
        self.say(f"done: {state.samples_seen:,} samples, {state.step:,} steps, {best}")

    def log_end(self, state: State, log: Log) -> None:
        """Record settings and result of a run that has ended."""
        settings = self.config.train
        log.hyperparameters(
            {
                "backbone": self.config.model.backbone,
                "heads": ", ".join(self.config.model.heads.on),
                "batch": self.batch,
                "epochs": settings.epochs,
                "precision": settings.precision,
                "learning_rate": settings.learning_rate,
                "seed": self.config.seed,
            },
            {} if state.best is None else {f"best/{self.selection}": state.best},
        )


def prepare_job(config: RunConfig, ranks: Ranks, *, change_precision: bool = False) -> Job:
    """Check a config against the machine, the shards and its run folder; writes nothing. A collective call.

    ``train.precision: auto`` and ``train.batch: auto`` become what they mean here, or what the run has used so far.
    ``change_precision``: a run that has begun may continue in another precision.

    Raises:
        UserError: everything that is wrong, one problem per line.
    """
    asked = config.train.precision
    config, recorded = recall(config, change_precision=change_precision)
    # Later checks run although earlier ones failed: a user mends all problems at once, not one per start.
    problems: list[str] = []
    streams: dict[str, Stream] = {}
    network = precision = None
    parts: tuple[Literal["train", "val"], ...] = ("train", "val")
    for part in parts:
        with _collect(problems):
            streams[part] = open_stream(config.data, part)
    with _collect(problems):
        torch.manual_seed(config.seed)
        network = build_network(config.model, learned_weights=config.train.balance_losses == "learned")
        freeze(network, config.model.freeze)
    on_angles = network is not None and network.takes_angles
    counts = {split: stream.label_counts(only_with_angles=on_angles) for split, stream in streams.items()}
    with _collect(problems):
        precision = training_precision(asked, recorded, run=config.run)
    problems += lacking(config.train.trackers)
    problems += reasons_against(config, network, streams, counts, ranks)
    if problems or network is None or precision is None:
        raise UserError(mistakes(problems))
    train = streams["train"]
    for remark in remarks(config, train, streams["val"], counts["train"]):
        ranks.say(f"{config.run}: {remark}")
    if network.takes_angles:
        # Every rank reads all angles, so all ranks scale their inputs alike.
        network.backbone.fit_scale(all_angles(train))  # pyright: ignore[reportCallIssue]
    classes = {"emotion": counts["train"].emotion, "direction": counts["train"].direction}
    losses = loss_settings(config.model.heads, classes)
    # Before the trial steps of `find_batch`, so that they are timed with the threads of the training.
    share_cores(config.data.workers)
    here = common_accelerator(precision.name, asked=asked)
    if asked != precision.name:
        ranks.say(f"{config.run}: precision {precision.name}: {precision.why}")
    # Rank 0 decides, as it does about the checkpoint: for a while, another node may not see what the run has recorded.
    # To look for a batch is a collective call, in which it would be alone.
    known = agree(json.dumps(config.train.batch))
    assert known is not None
    batch = json.loads(known)
    if batch == "auto":
        batch = find_batch(config, network, losses, samples=train.samples, ranks=ranks.world, accelerator=here)
        ranks.say(f"{config.run}: train.batch: auto is {batch} over {ranks.world} ranks")
    chosen = config.train.model_copy(update={"precision": precision.name, "batch": batch})
    config = config.model_copy(update={"train": chosen})
    damage = Damages(f"{config.run}: rank {ranks.rank}")
    return Job(config, ranks, here, network, losses, train, streams["val"], counts["train"], precision, damage)


@contextmanager
def open_job(config: RunConfig, ranks: Ranks, *, change_precision: bool = False) -> Iterator[Job]:
    """The job of :func:`prepare_job`, with its run folder locked, where its messages are logged.

    Raises:
        UserError: as of :func:`prepare_job`; or another process trains in the folder.
    """
    job = prepare_job(config, ranks, change_precision=change_precision)
    with claim(job.config, ranks, job.trained_on) as resume:
        yield replace(job, resume=resume)


@contextmanager
def _collect(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems += str(error).splitlines()
