"""What a training job stands on: its folder, its streams, its network, each checked before the first step."""

import copy
import itertools
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

import torch

from hpe import runs
from hpe.augment import Augmentation
from hpe.batchsize import Trial, largest_that_fits, where_doubling_stops_paying
from hpe.config import DataConfig, RunConfig, ShardsConfig, differences
from hpe.errors import UserError
from hpe.files import locked, rename_aside, write_text
from hpe.log import METRICS, TENSORBOARD, Damages, Log
from hpe.losses import HeadLoss
from hpe.metrics import FIGURES
from hpe.models.multitask import MultiTask
from hpe.optim import freeze, frozen_norms
from hpe.ranks import Ranks, accelerator, agree, cuda, leave_a_core, precision_of
from hpe.runs import State
from hpe.stream import Balance, Counts, LabelSource, Loader, Reading, ShardSet, Stream

if TYPE_CHECKING:
    from accelerate import Accelerator

LOCK: Final = ".lock"
_ROWS: Final = 1024
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
        """Samples that the run sees in all: its epochs, rounded up to whole batches, of which there is one or more."""
        return _steps(self.config, self.epoch_samples) * self.batch

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
                "learning_rate": settings.learning_rate,
                "seed": self.config.seed,
            },
            {} if state.best is None else {f"best/{self.selection}": state.best},
        )


@contextmanager
def open_job(config: RunConfig, ranks: Ranks) -> Iterator[Job]:
    """Check a config against the machine and the shards, and hold its run folder for this process.

    Raises:
        UserError: everything that is wrong, one problem a line.
    """
    run = Path(config.run)
    config = _with_batch_of(run, config)
    problems = _impossible(config, ranks)
    streams: dict[str, Stream] = {}
    for split in ("train", "val"):
        with _collect(problems):
            streams[split] = _stream(config.data, getattr(config.data, split))
    counts = {split: stream.label_counts() for split, stream in streams.items()}
    for split, count in counts.items():
        problems += [
            f"model.heads.{head}: {_lack(streams[split], head, split)}; {_LABEL_SOURCE[head]}"
            for head in config.model.heads.on
            if not _labels(count, head)
        ]
    network = None
    with _collect(problems):
        torch.manual_seed(config.seed)
        network = runs.build_network(config.model, learned_weights=config.train.balance_losses == "learned")
        problems += [
            f"model.freeze: {config.model.backbone} has no layer named {name!r}; it has "
            + ", ".join(name for name, _ in network.backbone.named_children())
            for name in freeze(network, config.model.freeze)
        ]
        problems += _sizes_refused(network, config)
        if config.train.batch != "auto" and not problems:
            problems += _pieces_refused(network, config, config.train.batch // ranks.world)
    if problems or network is None:
        raise UserError("\n".join(dict.fromkeys(problems)))  # train and val may share what is missing
    if ranks.main and streams["train"].reading.labels.needs_pose:
        for split in ("train", "val"):
            for number, one in enumerate(getattr(config.data, split)):
                if one.pose is None:
                    told = "no pose tables are named (pose:), its angles and directions are those of its records"
                    print(f"{run}: data.{split}.{number}: {told}", file=sys.stderr, flush=True)
    if network.takes_angles:
        _fit_scale(network, streams["train"])
    losses = {head: _head_loss(config, head, counts["train"]) for head in config.model.heads.on}
    leave_a_core(config.data.workers)
    here = accelerator(precision_of(config.train.precision))
    if config.train.batch == "auto":
        found = _found_batch(config, network, losses, streams["train"].samples, ranks, here)
        if ranks.main:
            print(f"{run}: train.batch: auto is {found} over {ranks.world} ranks", file=sys.stderr, flush=True)
        config = _with_batch(config, found)
    if problem := _all_small(config, streams["train"].samples):
        raise UserError(problem)
    with _folder(run, config, ranks) as resume:
        damage = Damages(f"{run}: rank {ranks.rank}")
        yield Job(config, ranks, here, run, network, losses, streams["train"], streams["val"], resume, damage)


def _with_batch(config: RunConfig, batch: int | str) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update={"batch": batch})})


def _with_batch_of(run: Path, config: RunConfig) -> RunConfig:
    """The config with the batch that an earlier start has found, where it says ``auto``."""
    if config.train.batch != "auto" or not (run / runs.CONFIG).is_file():
        return config
    return _with_batch(config, runs.load_config(run).train.batch)


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


_LABEL_SOURCE: Final = {
    "emotion": "pack shards with emotions, or switch this head off",
    "direction": "name pose tables (pose:) and a rule of theirs (data.direction: ours), or switch this head off",
    "pose": "use shards with angles, or pose tables with data.angles: pose, or switch this head off",
    "affect": "use shards with valence and arousal, or switch this head off",
}


@torch.no_grad()
def _sizes_refused(network: MultiTask, config: RunConfig) -> list[str]:
    """The sizes of pictures that the backbone cannot take: some are made for one, some need more pixels."""
    if network.takes_angles:
        return []
    problems = []
    network.eval()
    for name, size in (("data.size", config.data.size), ("train.small_size", config.train.small_size)):
        try:
            if size is not None:
                network(torch.zeros(1, 3, size, size))
        except (RuntimeError, ValueError, AssertionError) as error:
            why = str(error).partition("\n")[0][:160]
            problems.append(f"{name}: {config.model.backbone} does not take pictures of {size} pixels ({why})")
    network.train()
    return problems


@torch.no_grad()
def _pieces_refused(network: MultiTask, config: RunConfig, share: int) -> list[str]:
    """What speaks against learning from a rank's share of a batch in pieces, where some are of a single picture."""
    piece = share // -(-share // (config.train.micro_batch or share))
    if piece > 1 or network.takes_angles or (config.train.sync_batch_norm and cuda()):
        return []
    size = config.train.small_size or config.data.size
    trial = copy.deepcopy(network).train()
    for norm in frozen_norms(trial):
        norm.eval()
    try:
        trial(torch.zeros(1, 3, size, size))
    except ValueError as error:  # a batch norm of one value
        name = "train.batch" if config.train.micro_batch is None else "train.micro_batch"
        told = f"{config.model.backbone} cannot learn from one picture of {size} pixels at a time"
        return [f"{name}: {told} ({str(error).partition(':')[0].lower()}); give every rank two or more"]
    return []


def _steps(config: RunConfig, samples: int) -> int:
    """Steps of a run on so many samples: one or more."""
    assert isinstance(config.train.batch, int)  # `auto` was found before
    return -(-max(1, round(config.train.epochs * samples)) // config.train.batch)


def _all_small(config: RunConfig, samples: int) -> str | None:
    """What speaks against small pictures first: with few steps even the last may learn from them."""
    settings = config.train
    assert isinstance(settings.batch, int)
    steps = _steps(config, samples)
    if settings.small_size and (steps - 1) * settings.batch < settings.small_epochs * samples:
        return (
            f"train.small_epochs: {settings.small_epochs:g} of {settings.epochs:g} epochs are all {steps:,} steps; "
            f"none is left for pictures of {config.data.size} pixels: lower it, or train.batch"
        )
    return None


def _lack(stream: Stream, head: str, split: str) -> str:
    """What a head's label is short of: for poses, the angles that some of the first records could have had."""
    if head == "pose" and not stream.reading.labels.needs_pose:
        records = [one for _, _, one in itertools.islice(stream.records(), _ROWS) if one is not None]
        missing = [name for name in ("yaw", "pitch", "roll") if all(getattr(one, name) is None for one in records)]
        if 0 < len(missing) < 3:
            way = " (hpe pack pointing04 --option roll=upright takes it as 0)" if missing == ["roll"] else ""
            lack = " and no ".join(missing) + way
            return f"it needs yaw, pitch and roll, and the samples of data.{split} have no {lack}"
    return f"no sample of data.{split} has its label"


def _impossible(config: RunConfig, ranks: Ranks) -> list[str]:
    """What cannot work on this machine or with itself, whatever the data."""
    settings, problems = config.train, []
    if settings.batch == "auto":
        if settings.micro_batch:
            problems.append("train.batch: auto finds what fits in one piece; leave train.micro_batch out")
    elif settings.batch % ranks.world:
        lower = settings.batch // ranks.world * ranks.world
        ways = f"{lower} or {lower + ranks.world}" if lower else f"{ranks.world}"
        problems.append(f"train.batch: {settings.batch} samples do not divide among {ranks.world} ranks; use {ways}")
    if settings.precision == "fp16" and not cuda():
        problems.append("train.precision: fp16 needs a GPU; use bf16, fp32 or auto on a CPU")
    heads = config.model.heads
    known = [name for head in heads.on for name in FIGURES[head]]
    if settings.select not in ("auto", *known):
        problems.append(
            f"train.select: {settings.select!r} is no figure of these heads; use auto or {', '.join(known)}"
        )
    if not any(getattr(heads, head).weight for head in heads.on):
        problems.append(f"model.heads: the weights of {', '.join(heads.on)} are all 0; nothing would be learned")
    if config.model.backbone == "angles" and settings.small_size:
        problems.append(
            "train.small_size: the backbone angles reads no pictures; leave small_size and small_epochs out"
        )
    if config.model.backbone == "angles" and heads.pose:
        problems.append("model.heads.pose: the backbone angles reads the angles; there is nothing left to predict")
    return problems


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
        raise UserError("data.decoder: gpu: torch sees no GPU here; use cpu or auto")
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
        limit = 99.0 if settings.kind == "bins66" else float("inf")
        return HeadLoss(settings.weight, alpha=settings.alpha, largest_degrees=limit)
    if head == "affect":
        return HeadLoss(settings.weight)
    weights = prior = None
    device = torch.device("cuda", torch.cuda.current_device()) if cuda() else torch.device("cpu")
    found = torch.tensor(getattr(counts, head), dtype=torch.float32, device=device)
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


def _fit_scale(network: MultiTask, stream: Stream) -> None:
    with stream.once(batch=_ROWS) as loader:
        angles = [loaded.batch.angles[loaded.batch.angles_mask] for loaded in loader]
    network.backbone.fit_scale(torch.cat(angles))  # pyright: ignore[reportCallIssue]


@contextmanager
def _folder(run: Path, config: RunConfig, ranks: Ranks) -> Iterator[Path | None]:
    """Hold the run's folder on rank 0, for all; the checkpoint to go on from, or None."""
    with ExitStack() as stack:
        problem = None
        if ranks.main:
            try:
                stack.enter_context(_claim(run, config))
            except UserError as error:
                problem = str(error)
        if problem := agree(problem):
            raise UserError(problem)
        yield _last(run)


@contextmanager
def _claim(run: Path, config: RunConfig) -> Iterator[None]:
    stack = ExitStack()
    try:
        run.mkdir(parents=True, exist_ok=True)
        strangers = sorted(p.name for p in run.iterdir() if p.name != LOCK)
        if strangers and not (run / runs.CONFIG).exists():
            raise UserError(f"{run}: not a run folder, but it holds {', '.join(strangers[:5])}; give another run:")
        for name, kind in ((runs.CHECKPOINTS, Path.is_dir), (TENSORBOARD, Path.is_dir), (METRICS, Path.is_file)):
            if (run / name).exists() and not kind(run / name):
                raise UserError(f"{run / name}: is not what hpe train makes there; remove it, or give another run:")
        stack.enter_context(locked(run / LOCK, _taken(run)))
    except OSError as error:
        raise UserError(f"run: cannot write to {run} ({error.strerror}); choose another folder") from error
    with stack:
        if (run / runs.CONFIG).exists() and (changed := differences(runs.load_config(run), config)):
            raise UserError(
                f"{run}: this run was started with another config; give another run:, or --new to start over\n"
                + "\n".join(f"  {line}" for line in changed)
            )
        write_text(run / runs.CONFIG, config.dump())
        runs.remember_shards(run, config)
        yield


def _last(run: Path) -> Path | None:
    with suppress(UserError):
        return runs.find_checkpoint(run, "last")
    return None


def set_aside(run: Path) -> Path | None:
    """Rename an earlier run of this name to ``NAME.1``, ``NAME.2`` …; where it is now, or None.

    Raises:
        UserError: the folder is no run, or one that another process is training.
    """
    if not run.exists() or not any(run.iterdir()):
        return None
    runs.load_config(run)
    with locked(run / LOCK, _taken(run)):
        return rename_aside(run)


def _taken(run: Path) -> str:
    return f"{run}: another process is training this run; wait for it, or give another run:"
