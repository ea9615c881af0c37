"""Opens a training run: builds and checks everything that it needs, before the first step."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import torch

from hpe.config.run import DataConfig, RunConfig
from hpe.core.distributed import Ranks, accelerator, agree, device, share_cores, some_problem, some_rank
from hpe.core.errors import UserError
from hpe.core.labels import BINS_REACH_DEGREES
from hpe.core.precision import Precision, chosen_precision, lacks_precision
from hpe.models import run_folder
from hpe.models.build import build_network
from hpe.models.multitask import MultiTask
from hpe.models.run_folder import State
from hpe.stream import Balance, Counts, Loader, Stream
from hpe.train.auto_batch import find_batch
from hpe.train.datasets import open_stream
from hpe.train.log import Damages, Log
from hpe.train.losses import HeadLoss, head_losses
from hpe.train.optim import freeze
from hpe.train.preflight import (
    all_small,
    impossible,
    pieces_refused,
    sizes_refused,
    steps_of,
    unlabelled_heads,
    without_gradient,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

VISIBLE_SECONDS: Final = 60
"""How long a rank waits for a checkpoint that rank 0 sees. Caches of network file systems last less than that."""
_LOOK_SECONDS: Final = 0.5
_LEAST_STEPS: Final = 20
"""Least steps per epoch with ``train.batch: auto``. A larger batch can be faster, but leaves too few steps to learn."""


@dataclass(frozen=True)
class Job:
    """A run that is ready to start: everything here has been checked."""

    config: RunConfig
    ranks: Ranks
    accelerator: "Accelerator"
    run: Path
    network: MultiTask
    losses: dict[str, HeadLoss]
    train: Stream
    val: Stream
    resume: Path | None
    damage: Damages
    precision: Precision

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
        assert isinstance(self.config.train.batch, int)  # `open_job` replaces `auto` before it makes a Job
        return self.config.train.batch

    @property
    def total_samples(self) -> int:
        """Samples of the whole run, in whole batches."""
        return steps_of(self.config.train.epochs, self.epoch_samples, self.batch) * self.batch

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
            balance=_balance(data),
        )

    def validation(self) -> Loader:
        """The validation batches of this rank: over all ranks, every sample once."""
        return self.val.once(batch=self.batch, rank=self.ranks.rank, ranks=self.ranks.world)

    def last(self) -> Path | None:
        """The newest checkpoint."""
        return run_folder.last_checkpoint(self.run)

    def say(self, text: str) -> None:
        """Print a line on rank 0."""
        self.ranks.say(f"{self.run}: {text}")

    def say_figures(self, state: State, figures: Mapping[str, float]) -> None:
        """Print one line of validation metrics."""
        shown = {n: v for n, v in figures.items() if n.endswith(("/accuracy", "/macro_f1", "/mae", "/rmse"))}
        mark = " *" if state.best_samples == state.samples_seen else ""
        epoch = state.samples_seen / self.epoch_samples
        self.say(f"epoch {epoch:.4g}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()) + mark)

    def finish(self, state: State, log: Log) -> None:
        """Report the end of the run."""
        best = f"best {self.selection} {state.best:.4g}" if state.best is not None else "no metric to choose a best one"
        self.say(f"done: {state.samples_seen:,} samples, {state.step:,} steps, {best}")
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


@contextmanager
def open_job(config: RunConfig, ranks: Ranks, *, change_precision: bool = False) -> Iterator[Job]:
    """Check a config against the machine and the shards, and lock its run folder for this job.

    ``train.precision: auto`` and ``train.batch: auto`` become what they mean here, or what the run has used so far.
    ``change_precision``: a run that has begun may continue in another precision.

    Raises:
        UserError: everything that is wrong, one problem per line.
    """
    run = Path(config.run)
    built = _build(_with_recorded_batch(run, config), ranks)
    config, network, train = built.config, built.network, built.train
    for note in _notes(built):
        ranks.say(f"{run}: {note}")
    if network.takes_angles:
        _fit_scale(network, train)
    losses = head_losses(config.model.heads, {"emotion": built.counts.emotion, "direction": built.counts.direction})
    # Before the trial steps of `find_batch`, so that they are timed with the threads of the training.
    share_cores(config.data.workers)
    precision = _precision(run, config, change=change_precision)
    here = _same_accelerator(config, precision, ranks)
    if config.train.precision != precision.name:
        ranks.say(f"{run}: precision {precision.name}: {precision.why}")
    config = _with_train(config, precision=precision.name)
    if config.train.batch == "auto":
        most = train.samples // (_LEAST_STEPS * ranks.world)
        found = find_batch(config, network, losses, largest=most, ranks=ranks.world, accelerator=here)
        ranks.say(f"{run}: train.batch: auto is {found} over {ranks.world} ranks")
        config = _with_train(config, batch=found)
    if problem := all_small(config, train.samples):
        raise UserError(problem)
    with _folder(run, config, ranks, change_precision=change_precision) as resume:
        damage = Damages(f"{run}: rank {ranks.rank}")
        yield Job(config, ranks, here, run, network, losses, train, built.val, resume, damage, precision)


@dataclass(frozen=True)
class _Built:
    """What a config names, built without a problem; the config has its normalisation (mean and std filled in)."""

    config: RunConfig
    network: MultiTask
    train: Stream
    val: Stream
    counts: Counts
    """Labels of the training data."""


def _build(config: RunConfig, ranks: Ranks) -> _Built:
    """The streams and the network of a config.

    Later checks run although earlier ones failed: a user mends all problems at once, not one per start.

    Raises:
        UserError: everything that is wrong, one problem per line.
    """
    problems = impossible(config, ranks)
    with _collect(problems):
        config = run_folder.with_normalisation(config)
    streams: dict[str, Stream] = {}
    for split, named in (("train", config.data.train), ("val", config.data.val)):
        with _collect(problems):
            streams[split] = open_stream(config.data, named)
    counts = {split: stream.label_counts() for split, stream in streams.items()}
    for split, count in counts.items():
        problems += unlabelled_heads(config.model.heads.on, streams[split], count, split)
    network = _network(config, ranks, problems)
    if problems or network is None:
        raise UserError("\n".join(dict.fromkeys(problems)))  # train and val may share a problem: print it once
    return _Built(config, network, streams["train"], streams["val"], counts["train"])


def _network(config: RunConfig, ranks: Ranks, problems: list[str]) -> MultiTask | None:
    """The network with its frozen layers, or None; what is wrong with it is added to the problems."""
    with _collect(problems):
        torch.manual_seed(config.seed)
        network = build_network(config.model, learned_weights=config.train.balance_losses == "learned")
        problems += [
            f"model.freeze: {config.model.backbone} has no layer named {name!r}; it has "
            + ", ".join(name for name, _ in network.backbone.named_children())
            for name in freeze(network, config.model.freeze)
        ]
        problems += sizes_refused(network, config) or without_gradient(network, config)
        # Only now: a batch that does not divide among the ranks is a problem already, and its share may be 0.
        if config.train.batch != "auto" and not problems:
            problems += pieces_refused(network, config, config.train.batch // ranks.world)
        return network
    return None


def _notes(built: _Built) -> Iterator[str]:
    """What is allowed, but may not be what the user meant."""
    if built.train.reading.labels.needs_pose:
        for name in _without_tables(built.config.data):
            yield f"{name}: no pose tables are named (pose:); its angles and directions come from its records"
    yield from _draws(built)
    pose, counts = built.config.model.heads.pose, built.counts
    if pose is not None and pose.kind == "bins66" and counts.wide:
        yield (
            f"data.train: {counts.wide:,} of {counts.angles:,} faces with angles have an angle of "
            f"{BINS_REACH_DEGREES:g}° or more in either direction; model.heads.pose.kind: bins66 has no bins for them "
            "and ignores them, as Hopenet does; sixd learns from all"
        )


def _draws(built: _Built) -> Iterator[str]:
    """How often each of several datasets is drawn."""
    named, train = built.config.data.train, built.train
    if len(named) == 1:
        return
    draws = train.draws_per_epoch(_balance(built.config.data))
    for number, (one, counts, draw) in enumerate(zip(named, train.counts, draws, strict=True)):
        shards = one.shards if isinstance(one.shards, str) else f"{one.shards[0]} …"
        yield f"data.train.{number} ({shards}): {sum(counts):,} samples, each {draw:.3g} × per epoch"


def _balance(data: DataConfig) -> Balance | None:
    return Balance() if data.sampling == "balanced" else None


def _without_tables(data: DataConfig) -> list[str]:
    return [
        f"data.{split}.{number}"
        for split, sets in (("train", data.train), ("val", data.val))
        for number, one in enumerate(sets)
        if one.pose is None
    ]


def _with_train(config: RunConfig, **settings: Any) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=settings)})


def _precision(run: Path, config: RunConfig, *, change: bool) -> Precision:
    """The precision of this start: that of the config; for ``auto`` that of the run so far, else what the rule chooses.

    Raises:
        UserError: this machine does not support the precision of the run so far.
    """
    asked = config.train.precision
    before = run_folder.load_config(run).train.precision if (run / run_folder.CONFIG).is_file() else None
    if asked != "auto" or before is None or change:
        return chosen_precision(asked)
    if before == "auto":  # an older hpe did not record what it meant
        rule = chosen_precision(asked)
        return Precision(rule.name, f"{rule.why}; the precision of the run until now was not recorded")
    if (why := lacks_precision(before, device())) is not None:
        rule = chosen_precision(asked)
        raise UserError(
            f"{run}: train.precision: this run was trained in {before} until now, which this machine does not "
            f"support: {why}. To continue in {rule.name}, which changes its arithmetic from here on, add "
            f"--change-precision; or continue on a machine that supports {before}"
        )
    slow = lacks_precision(before, device(), emulated=True)
    return Precision(before, "as in this run until now" + (f" ({slow}: expect it to be slow)" if slow else ""))


def _same_accelerator(config: RunConfig, precision: Precision, ranks: Ranks) -> "Accelerator":
    """Accelerate's object for a precision that is the same on all ranks. A collective call.

    Raises:
        UserError: the ranks' devices differ, and so does the precision that they would use.
    """
    here = accelerator(precision.name)
    # Every rank compares and all fail together: a rank that left alone would leave the others waiting for it.
    if some_rank(agree(precision.name) != precision.name):
        raise UserError(
            f"train.precision: {config.train.precision} is {precision.name} on rank {ranks.rank} and differs between "
            "ranks, because their devices differ; set a precision that all of them support"
        )
    return here


def _with_recorded_batch(run: Path, config: RunConfig) -> RunConfig:
    """The config with the batch that an earlier start found, if it says ``auto``."""
    if config.train.batch != "auto" or not (run / run_folder.CONFIG).is_file():
        return config
    return _with_train(config, batch=run_folder.load_config(run).train.batch)


@contextmanager
def _collect(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems += str(error).splitlines()


def _fit_scale(network: MultiTask, stream: Stream) -> None:
    """Scale the inputs of a network of angles by the least and largest training angles.

    Every rank reads all samples, so all ranks get the same scale.
    """
    with stream.once(batch=1024) as loader:
        angles = [loaded.batch.angles[loaded.batch.angles_mask] for loaded in loader]
    network.backbone.fit_scale(torch.cat(angles))  # pyright: ignore[reportCallIssue]


@contextmanager
def _folder(run: Path, config: RunConfig, ranks: Ranks, *, change_precision: bool) -> Iterator[Path | None]:
    """Lock the run folder on rank 0, for all ranks; yields the checkpoint to resume from, or None.

    Rank 0 chooses the checkpoint: on a network file system, nodes may see different checkpoints for a while.
    """
    with ExitStack() as stack:
        problem = found = None
        if ranks.main:
            try:
                stack.enter_context(run_folder.claim(run, config, change_precision=change_precision))
                found = run_folder.last_checkpoint(run)
            except UserError as error:
                problem = str(error)
        if problem := agree(problem):
            raise UserError(problem)
        said = agree(None if found is None else json.dumps({"name": found.name, "files": _sizes(found)}))
        if said is None:
            yield None
            return
        chosen = json.loads(said)
        checkpoint = run / run_folder.CHECKPOINTS / chosen["name"]
        if problem := some_problem(_await(checkpoint, chosen["files"], ranks)):
            raise UserError(problem)
        yield checkpoint


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def _await(checkpoint: Path, files: Mapping[str, int], ranks: Ranks) -> str | None:
    """Wait until this rank sees the checkpoint as rank 0 does; if it does not within a minute, what is wrong."""
    start, told = time.monotonic(), False
    while True:
        try:
            seen = _sizes(checkpoint)
        except OSError as error:
            seen, why = {}, f"{error.strerror or error}"
        else:
            why = "files are missing or not whole: " + ", ".join(n for n, size in files.items() if seen.get(n) != size)
        if all(seen.get(name) == size for name, size in files.items()):
            return None
        waited = time.monotonic() - start
        if waited >= VISIBLE_SECONDS:
            return (
                f"{checkpoint}: rank 0 resumes from this checkpoint, but it cannot be seen here after {waited:.0f} s "
                f"({why}); put the run into a folder that all nodes share"
            )
        if not told:
            print(f"{checkpoint}: rank {ranks.rank} waits until it sees this checkpoint", file=sys.stderr, flush=True)
            told = True
        time.sleep(_LOOK_SECONDS)
