"""What a training job stands on: its folder, its streams, its network, each checked before the first step."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import torch

from hpe.config.run import DataConfig, RunConfig, ShardsConfig, differences
from hpe.core.distributed import (
    Precision,
    Ranks,
    accelerator,
    agree,
    chosen_precision,
    cuda,
    device,
    lacks_precision,
    share_cores,
    some_problem,
    some_rank,
    unused_gpu,
)
from hpe.core.errors import UserError
from hpe.core.files import locked, rename_aside, write_text
from hpe.core.labels import BINS_REACH_DEGREES
from hpe.models import run_folder
from hpe.models.multitask import MultiTask
from hpe.models.run_folder import State
from hpe.stream import Balance, Counts, LabelSource, Loader, Reading, ShardSet, Stream
from hpe.stream.augment import Augmentation
from hpe.train.auto_batch import Trial, largest_that_fits, where_doubling_stops_paying
from hpe.train.log import METRICS, TENSORBOARD, Damages, Log
from hpe.train.losses import HeadLoss
from hpe.train.optim import freeze
from hpe.train.preflight import (
    all_small,
    impossible,
    pieces_refused,
    sizes_refused,
    steps_of,
    unlabelled,
    without_gradient,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

LOCK: Final = ".lock"
VISIBLE_SECONDS: Final = 60
"""How long a rank waits for a checkpoint that rank 0 sees: caches of network file systems last less."""
_LOOK_SECONDS: Final = 0.5
_LEAST_STEPS: Final = 20
"""Of an epoch, where the batch is found: a network learns by steps."""


@dataclass(frozen=True)
class Job:
    """A run that can start: everything here has been checked."""

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
        """The validation figure that chooses the best checkpoint."""
        return self.config.selection

    @property
    def epoch_samples(self) -> int:
        """Samples of the training data."""
        return self.train.samples

    @property
    def batch(self) -> int:
        """Samples of a step, over all ranks."""
        assert isinstance(self.config.train.batch, int)  # `auto` was found before the job was opened
        return self.config.train.batch

    @property
    def total_samples(self) -> int:
        """Samples that the run sees in all: whole batches."""
        return steps_of(self.config.train.epochs, self.epoch_samples, self.batch) * self.batch

    def batches(self, samples_seen: int) -> Loader:
        """This rank's training batches from a position on."""
        data = self.config.data
        return self.train.endless(
            seed=self.config.seed,
            batch=self.batch,
            samples_seen=samples_seen,
            rank=self.ranks.rank,
            ranks=self.ranks.world,
            window=data.window,
            balance=Balance() if data.sampling == "balanced" else None,
        )

    def validation(self) -> Loader:
        """This rank's validation batches: every sample once over all ranks."""
        return self.val.once(batch=self.batch, rank=self.ranks.rank, ranks=self.ranks.world)

    def last(self) -> Path | None:
        """The newest checkpoint."""
        return _last(self.run)

    def say(self, text: str) -> None:
        """A line for people, from rank 0."""
        if self.ranks.main:
            print(f"{self.run}: {text}", file=sys.stderr, flush=True)

    def say_figures(self, state: State, figures: Mapping[str, float]) -> None:
        """One line of validation figures."""
        shown = {n: v for n, v in figures.items() if n.endswith(("/accuracy", "/macro_f1", "/mae", "/rmse"))}
        mark = " *" if state.best_samples == state.samples_seen else ""
        epoch = state.samples_seen / self.epoch_samples
        self.say(f"epoch {epoch:.4g}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()) + mark)

    def finish(self, state: State, log: Log) -> None:
        """The last words of a run that is done."""
        best = f"best {self.selection} {state.best:.4g}" if state.best is not None else "no figure to choose by"
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
    """Check a config against the machine and the shards, and hold its run folder for this process.

    ``train.precision: auto`` becomes what it means here, or what the run has used until now. ``change_precision``: a
    run that has begun may go on in another precision.

    Raises:
        UserError: everything that is wrong, one problem a line.
    """
    run = Path(config.run)
    config = _with_batch_of(run, config)
    problems = impossible(config, ranks)
    with _collect(problems):
        config = run_folder.with_normalisation(config)
    streams: dict[str, Stream] = {}
    for split in ("train", "val"):
        with _collect(problems):
            streams[split] = _stream(config.data, getattr(config.data, split))
    counts = {split: stream.label_counts() for split, stream in streams.items()}
    for split, count in counts.items():
        problems += [
            unlabelled(streams[split], head, split) for head in config.model.heads.on if not _labels(count, head)
        ]
    network = None
    with _collect(problems):
        torch.manual_seed(config.seed)
        network = run_folder.build_network(config.model, learned_weights=config.train.balance_losses == "learned")
        problems += [
            f"model.freeze: {config.model.backbone} has no layer named {name!r}; it has "
            + ", ".join(name for name, _ in network.backbone.named_children())
            for name in freeze(network, config.model.freeze)
        ]
        problems += sizes_refused(network, config) or without_gradient(network, config)
        if config.train.batch != "auto" and not problems:
            problems += pieces_refused(network, config, config.train.batch // ranks.world)
    if problems or network is None:
        raise UserError("\n".join(dict.fromkeys(problems)))  # train and val may share what is missing
    if ranks.main and streams["train"].reading.labels.needs_pose:
        for name in _without_tables(config.data):
            told = "no pose tables are named (pose:), its angles and directions are those of its records"
            print(f"{run}: {name}: {told}", file=sys.stderr, flush=True)
    if ranks.main and (told := _left_out(config, counts["train"])):
        print(f"{run}: {told}", file=sys.stderr, flush=True)
    if network.takes_angles:
        _fit_scale(network, streams["train"])
    losses = {head: _head_loss(config, head, counts["train"]) for head in config.model.heads.on}
    share_cores(config.data.workers)
    precision = _precision(run, config, change=change_precision)
    here = accelerator(precision.name)
    if some_rank(agree(precision.name) != precision.name):
        raise UserError(
            f"train.precision: {config.train.precision} is {precision.name} on rank {ranks.rank} and differs among the "
            "ranks, whose devices are not alike; give the one that all of them can do"
        )
    if ranks.main and config.train.precision != precision.name:
        print(f"{run}: precision {precision.name}: {precision.why}", file=sys.stderr, flush=True)
    config = _with_train(config, precision=precision.name)
    if config.train.batch == "auto":
        found = _found_batch(config, network, losses, streams["train"].samples, ranks, here)
        if ranks.main:
            print(f"{run}: train.batch: auto is {found} over {ranks.world} ranks", file=sys.stderr, flush=True)
        config = _with_train(config, batch=found)
    assert isinstance(config.train.batch, int)
    if problem := all_small(config, streams["train"].samples, config.train.batch):
        raise UserError(problem)
    with _folder(run, config, ranks, change_precision=change_precision) as resume:
        damage = Damages(f"{run}: rank {ranks.rank}")
        sets = streams["train"], streams["val"]
        yield Job(config, ranks, here, run, network, losses, *sets, resume, damage, precision)


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
    """The precision of this start: what the config says; with ``auto`` that of the run so far, else the rule's.

    Raises:
        UserError: this machine cannot do the one of the run so far.
    """
    asked = config.train.precision
    before = run_folder.load_config(run).train.precision if (run / run_folder.CONFIG).is_file() else None
    if asked != "auto" or before is None or change:
        return chosen_precision(asked)
    if before == "auto":  # an older hpe has not written down what it was
        rule = chosen_precision(asked)
        return Precision(rule.name, f"{rule.why}; which one the run used until now was not recorded")
    if (why := lacks_precision(before, device())) is not None:
        rule = chosen_precision(asked)
        raise UserError(
            f"{run}: train.precision: this run has learned in {before} until now, which this machine cannot do: {why}. "
            f"To go on in {rule.name}, which changes its arithmetic from here on, add --change-precision; or go on on "
            f"a machine that does {before}"
        )
    slow = lacks_precision(before, device(), emulated=True)
    return Precision(before, "as this run has used until now" + (f" ({slow}: expect it to be slow)" if slow else ""))


def _with_batch_of(run: Path, config: RunConfig) -> RunConfig:
    """The config with the batch that an earlier start has found, where it says ``auto``."""
    if config.train.batch != "auto" or not (run / run_folder.CONFIG).is_file():
        return config
    return _with_train(config, batch=run_folder.load_config(run).train.batch)


def _found_batch(
    config: RunConfig,
    network: MultiTask,
    losses: dict[str, HeadLoss],
    samples: int,
    ranks: Ranks,
    here: "Accelerator",
) -> int:
    """The batch over all ranks: what every one of them can do."""
    trial = Trial(
        network,
        losses,
        size=config.data.size,
        augmentation=Augmentation(**config.augment.model_dump()),
        device=here.device,
        autocast=lambda: here.autocast(),
        copies=(ranks.world > 1) + bool(config.train.ema),
    )
    largest = samples // (_LEAST_STEPS * ranks.world)
    if here.device.type == "cuda":
        found = largest_that_fits(trial.step, largest=largest)
    else:
        found = where_doubling_stops_paying(trial.seconds, largest=largest)
    lowest = here.gather(torch.tensor([found], device=here.device))
    assert isinstance(lowest, torch.Tensor)
    return int(lowest.min()) * ranks.world


@contextmanager
def _collect(problems: list[str]) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        problems += str(error).splitlines()


def shard_sets(named: list[ShardsConfig]) -> list[ShardSet]:
    """A config's datasets as the stream takes them."""
    return [ShardSet(one.shards, one.split, one.pose, one.weight) for one in named]


def reading(data: DataConfig, *, workers: int | None = None) -> Reading:
    """How a config's samples are read."""
    return Reading(
        size=data.size,
        colour="grey" if data.grey else "rgb",
        labels=LabelSource(data.angles, data.direction),
        decoder=decoder_of(data.decoder),
        damaged=data.damaged,
        workers=data.workers if workers is None else workers,
    )


def decoder_of(setting: str) -> Literal["cpu", "gpu"]:
    """Who decodes: ``auto`` is the GPU where there is one.

    Raises:
        UserError: the GPU is asked for, and there is none.
    """
    if setting == "gpu" and not cuda():
        why = unused_gpu()
        raise UserError(f"data.decoder: gpu: torch sees no GPU here{f': {why}' if why else ''}; use cpu or auto")
    return "gpu" if setting != "cpu" and cuda() else "cpu"


def _stream(data: DataConfig, named: list[ShardsConfig]) -> Stream:
    return Stream(shard_sets(named), reading(data))


def _labels(counts: Counts, head: str) -> int:
    match head:
        case "emotion":
            return sum(counts.emotion)
        case "direction":
            return sum(counts.direction)
        case "pose":
            return counts.angles
    return counts.affect


def _head_loss(config: RunConfig, head: str, counts: Counts) -> HeadLoss:
    settings = getattr(config.model.heads, head)
    if head == "pose":
        limit = BINS_REACH_DEGREES if settings.kind == "bins66" else float("inf")
        return HeadLoss(settings.weight, alpha=settings.alpha, largest_degrees=limit)
    if head == "affect":
        return HeadLoss(settings.weight)
    weights = prior = None
    # On the CPU: this rank's device is not set yet, and `cuda` would be the first GPU on every rank.
    found = torch.tensor(getattr(counts, head), dtype=torch.float32)
    if settings.imbalance == "weights":
        weights = torch.where(found > 0, found.sum() / (len(found) * found.clamp(min=1)), 0.0)
    elif settings.imbalance == "logit-adjustment":
        prior = ((found + 1) / (found + 1).sum()).log()
    return HeadLoss(
        settings.weight,
        smoothing=settings.smoothing,
        class_weights=weights,
        log_prior=prior,
        soft=getattr(settings, "votes", True),
    )


def _left_out(config: RunConfig, counts: Counts) -> str | None:
    """What the bins of the pose head do not learn from, where there is any."""
    pose = config.model.heads.pose
    if pose is None or pose.kind != "bins66" or not counts.wide:
        return None
    return (
        f"data.train: {counts.wide:,} of {counts.angles:,} faces with angles have one of {BINS_REACH_DEGREES:g}° or "
        "more, either way; model.heads.pose.kind: bins66 has no bins for them and leaves them out, as Hopenet does; "
        "sixd learns from all"
    )


def _fit_scale(network: MultiTask, stream: Stream) -> None:
    with stream.once(batch=1024) as loader:
        angles = [loaded.batch.angles[loaded.batch.angles_mask] for loaded in loader]
    network.backbone.fit_scale(torch.cat(angles))  # pyright: ignore[reportCallIssue]


@contextmanager
def _folder(run: Path, config: RunConfig, ranks: Ranks, *, change_precision: bool) -> Iterator[Path | None]:
    """Hold the run's folder on rank 0, for all; the checkpoint to go on from, or None.

    Rank 0 chooses the checkpoint: what a folder on a network holds may look different from node to node for a while.
    """
    with ExitStack() as stack:
        problem = found = None
        if ranks.main:
            try:
                stack.enter_context(_claim(run, config, change_precision=change_precision))
                found = _last(run)
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
    """Wait until this rank sees the checkpoint as rank 0 does; what is wrong where it does not within a minute."""
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
                f"{checkpoint}: rank 0 resumes from this checkpoint, and it cannot be seen here after {waited:.0f} s "
                f"({why}); put the run into a folder that all nodes share"
            )
        if not told:
            print(f"{checkpoint}: rank {ranks.rank} waits until it sees this checkpoint", file=sys.stderr, flush=True)
            told = True
        time.sleep(_LOOK_SECONDS)


@contextmanager
def _claim(run: Path, config: RunConfig, *, change_precision: bool = False) -> Iterator[None]:
    stack = ExitStack()
    try:
        run.mkdir(parents=True, exist_ok=True)
        strangers = sorted(p.name for p in run.iterdir() if p.name != LOCK)
        if strangers and not (run / run_folder.CONFIG).exists():
            raise UserError(f"{run}: not a run folder, but it holds {', '.join(strangers[:5])}; give another run:")
        for name, kind in ((run_folder.CHECKPOINTS, Path.is_dir), (TENSORBOARD, Path.is_dir), (METRICS, Path.is_file)):
            if (run / name).exists() and not kind(run / name):
                raise UserError(f"{run / name}: is not what hpe train makes there; remove it, or give another run:")
        stack.enter_context(locked(run / LOCK, _taken(run)))
    except OSError as error:
        raise UserError(f"run: cannot write to {run} ({error.strerror}); choose another folder") from error
    with stack:
        if (run / run_folder.CONFIG).exists():
            before = run_folder.load_config(run)
            if change_precision or before.train.precision == "auto":
                before = _with_train(before, precision=config.train.precision)
            changed = differences(before, config)
            way = "give another run:, or --new to start over"
            if any(line.startswith("train.precision:") for line in changed):
                way += ", or --change-precision to go on in another precision"
            if changed:
                raise UserError(
                    f"{run}: this run was started with another config; {way}\n"
                    + "\n".join(f"  {line}" for line in changed)
                )
        write_text(run / run_folder.CONFIG, config.dump())
        run_folder.remember_shards(run, config)
        yield


def _last(run: Path) -> Path | None:
    with suppress(UserError):
        return run_folder.find_checkpoint(run, "last")
    return None


def set_aside(run: Path) -> Path | None:
    """Rename an earlier run of this name to ``NAME.1``, ``NAME.2`` …; where it is now, or None.

    Raises:
        UserError: the folder is no run, or one that another process is training.
    """
    if not run.exists() or not any(run.iterdir()):
        return None
    run_folder.load_config(run)
    with locked(run / LOCK, _taken(run)):
        return rename_aside(run)


def _taken(run: Path) -> str:
    return f"{run}: another process is training this run; wait for it, or give another run:"
