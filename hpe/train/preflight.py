"""Reasons a run cannot start, found before its first step.

:func:`reasons_against` collects them, one line per problem; :func:`hpe.train.setup.prepare_job` raises all at once.
"""

import copy
import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import torch

from hpe.config.run import RunConfig
from hpe.core.console import count_of
from hpe.core.devices import cuda
from hpe.core.labels import BINS_REACH_DEGREES
from hpe.core.ranks import Ranks
from hpe.models.multitask import MultiTask, Outputs
from hpe.stream import Counts, LabelSource, Stream
from hpe.train.datasets import balance_of
from hpe.train.optim import frozen_norms
from hpe.train.selection import FIGURES

_ROWS: Final = 1024
_FEW: Final = 30


def reasons_against(
    config: RunConfig,
    network: MultiTask | None,
    streams: Mapping[str, Stream],
    counts: Mapping[str, Counts],
    ranks: Ranks,
) -> list[str]:
    """Everything that speaks against a run, one line per problem.

    Args:
        config: of the run; ``train.batch`` may be ``auto``.
        network: with its frozen layers; None: it could not be built.
        streams: of ``train`` and ``val``, as far as they could be opened.
        counts: the labels of each stream.
        ranks: this process among those of the job.
    """
    problems = impossible(config, ranks)
    batch = config.train.batch
    if batch != "auto" and "train" in streams:
        problems += all_small(config, streams["train"].samples, batch)
    on_angles = network is not None and network.takes_angles
    of = " with angles" if on_angles else ""
    for split, stream in streams.items():
        if on_angles and not counts[split].angles:
            problems.append(
                f"model.backbone: {config.model.backbone} takes the angles as its input, and no sample of data.{split} "
                "has angles; use shards with angles, or pose tables with data.angles: pose"
            )
        else:
            problems += unlabelled_heads(config.model.heads.on, stream, counts[split], split, of)
    if network is not None:
        problems += sizes_refused(network, config) or without_gradient(network, config)
        # Only now: a batch that does not divide among the ranks is a problem already, and its share may be 0.
        if batch != "auto" and not problems:
            problems += pieces_refused(network, config, batch // ranks.world)
    return problems


def remarks(config: RunConfig, train: Stream, val: Stream, counts: Counts) -> Iterator[str]:
    """What is allowed, but may not be what the user meant; ``counts`` are those of ``train``."""
    if val.samples < _FEW:
        yield (
            f"data.val: of {count_of(val.samples, 'image')} the best checkpoint is chosen nearly by chance; "
            "`--which last` of the other commands takes the newest one"
        )
    if train.reading.labels.needs_pose:
        for split, sets in (("train", config.data.train), ("val", config.data.val)):
            for number, one in enumerate(sets):
                if one.pose is None:
                    yield (
                        f"data.{split}.{number}: no pose tables are named (pose:); its angles and directions come from "
                        "its records"
                    )
    named = config.data.train
    if len(named) > 1:
        draws = train.draws_per_epoch(balance := balance_of(config.data))
        rare = " on average" if balance else ""
        for number, (one, parts, draw) in enumerate(zip(named, train.counts, draws, strict=True)):
            shards = one.shards if isinstance(one.shards, str) else f"{one.shards[0]} …"
            yield f"data.train.{number} ({shards}): {sum(parts):,} samples, each {draw:.3g} × per epoch{rare}"
    pose = config.model.heads.pose
    if pose is not None and pose.kind == "bins66" and counts.wide:
        yield (
            f"data.train: {counts.wide:,} of {counts.angles:,} faces with angles have an angle of "
            f"{BINS_REACH_DEGREES:g}° or more in either direction; model.heads.pose.kind: bins66 has no bins for them "
            "and ignores them, as Hopenet does; sixd learns from all"
        )


def impossible(config: RunConfig, ranks: Ranks) -> list[str]:
    """What cannot work on this machine, or contradicts itself, whatever the data."""
    settings, problems = config.train, []
    if settings.batch == "auto":
        if settings.micro_batch:
            problems.append("train.batch: auto finds what fits in memory as one piece; leave train.micro_batch out")
    elif settings.batch % ranks.world:
        lower = settings.batch // ranks.world * ranks.world
        ways = f"{lower} or {lower + ranks.world}" if lower else f"{ranks.world}"
        problems.append(f"train.batch: {settings.batch} samples do not divide among {ranks.world} ranks; use {ways}")
    labels = LabelSource(config.data.angles, config.data.direction)
    if labels.needs_pose and not any(one.pose for one in config.data.train):
        problems.append(
            "data.train: data.angles or data.direction needs pose tables, but no dataset names any; add pose: to one"
        )
    heads = config.model.heads
    known = [name for head in heads.on for name in FIGURES[head]]
    if settings.select not in ("auto", *known):
        problems.append(
            f"train.select: {settings.select!r} is not a metric of these heads; use auto or {', '.join(known)}"
        )
    if not any(getattr(heads, head).weight for head in heads.on):
        problems.append(f"model.heads: the weights of {', '.join(heads.on)} are all 0; give one a weight above 0")
    if settings.schedule == "one-cycle" and settings.warmup_epochs:
        problems.append(
            f"train.warmup_epochs: {settings.warmup_epochs:g} does not work with train.schedule: one-cycle, "
            "which has its own warm-up over the first 30 % of the run; remove warmup_epochs, or use the schedule cosine"
        )
    if config.model.backbone == "angles" and settings.small_size:
        problems.append("train.small_size: the backbone angles takes no images; remove small_size and small_epochs")
    if config.model.backbone == "angles" and heads.pose:
        problems.append("model.heads.pose: the backbone angles takes the angles as its input; remove the pose head")
    return problems


@torch.no_grad()
def sizes_refused(network: MultiTask, config: RunConfig) -> list[str]:
    """The image sizes that the backbone does not support: some have a fixed size, some need more pixels."""
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
            problems.append(
                f"{name}: {config.model.backbone} does not accept images of {size} pixels ({why}); use another size "
                "or another model.backbone"
            )
    network.train()
    return problems


def without_gradient(network: MultiTask, config: RunConfig) -> list[str]:
    """Parameters that no output depends on. They would never learn, and DDP fails on them in its second step."""
    size = config.data.size
    shape = (2, 3) if network.takes_angles else (2, 3, size, size)
    try:
        missing = unreached(network, shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        why = str(error).partition("\n")[0][:160]
        return [f"model.backbone: {config.model.backbone} cannot be trained on images of {size} pixels ({why})"]
    if not missing:
        return []
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    return [
        f"model.backbone: {config.model.backbone} has {len(missing)} parameters that get no gradient "
        f"({', '.join(missing[:3])}{more}); name their layers in model.freeze, or use another backbone"
    ]


def unreached(network: MultiTask, shape: tuple[int, ...]) -> list[str]:
    """The names of trainable parameters that no output depends on in training. The network is not changed.

    Follows the graph from the outputs back to the parameters, as DDP does. Runs on the ``meta`` device, which needs
    neither memory nor arithmetic; on the CPU if a layer needs real numbers.
    """
    try:
        return _unreached(network, shape, torch.device("meta"))
    except RuntimeError:
        return _unreached(network, shape, torch.device("cpu"))


def _unreached(network: MultiTask, shape: tuple[int, ...], device: torch.device) -> list[str]:
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    state = {name: torch.empty_like(v, device=device).copy_(v.detach()) for name, v in named}
    trained = {
        name: state[name].requires_grad_()
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and not name.startswith("log_variance.")  # those weigh the losses
    }
    network.train()
    outputs: Outputs = torch.func.functional_call(network, state, (torch.zeros(shape, device=device),))
    ahead, seen = [output.grad_fn for output in outputs.values()], set()
    while ahead:
        node = ahead.pop()
        if node is not None and node not in seen:
            seen.add(node)
            ahead += [before for before, _ in node.next_functions]
    reached = {id(node.variable) for node in seen if hasattr(node, "variable")}
    return [name for name, value in trained.items() if id(value) not in reached]


@torch.no_grad()
def pieces_refused(network: MultiTask, config: RunConfig, share: int) -> list[str]:
    """A line if some pieces of a rank's batch have a single image and the network cannot learn from one."""
    piece = share // -(-share // (config.train.micro_batch or share))
    if piece > 1 or network.takes_angles or (config.train.sync_batch_norm and cuda()):
        return []
    small = config.train.small_size if config.train.small_epochs else None
    size = small or config.data.size
    trial = copy.deepcopy(network).train()
    for norm in frozen_norms(trial):
        norm.eval()
    try:
        trial(torch.zeros(1, 3, size, size))
    except ValueError as error:  # a batch norm of one value
        name = "train.batch" if config.train.micro_batch is None else "train.micro_batch"
        why = f"{config.model.backbone} cannot learn from one image of {size} pixels at a time"
        return [f"{name}: {why} ({str(error).partition(':')[0].lower()}); give every rank two or more images"]
    return []


def all_small(config: RunConfig, samples: int, batch: int) -> list[str]:
    """A line if every step of the run would learn from small images, as can happen with few steps."""
    settings = config.train
    steps = steps_of(settings.epochs, samples, batch)
    if settings.small_size and (steps - 1) * batch < settings.small_epochs * samples:
        return [
            f"train.small_epochs: {settings.small_epochs:g} of {settings.epochs:g} epochs take all {steps:,} steps, so "
            f"none learns from images of {config.data.size} pixels; lower it, or lower train.batch"
        ]
    return []


def steps_of(epochs: float, samples: int, batch: int) -> int:
    """Steps of a run: its epochs over the samples, rounded up to whole batches; 1 or more."""
    return -(-max(1, round(epochs * samples)) // batch)


_LABEL_SOURCE: Final = {
    "emotion": "pack shards with emotions, or switch this head off",
    "direction": "name pose tables (pose:) and one of their rules (data.direction: ours), or switch this head off",
    "pose": "use shards with angles, or pose tables with data.angles: pose, or switch this head off",
    "affect": "use shards with valence and arousal, or switch this head off",
}


def unlabelled_heads(heads: Iterable[str], stream: Stream, counts: Counts, split: str, of: str = "") -> list[str]:
    """The heads for which no sample of a split has a label, one line per head; ``of``: which samples are counted."""
    return [_unlabelled(stream, head, split, of) for head in heads if not _labels(counts, head)]


def _labels(counts: Counts, head: str) -> int:
    match head:
        case "emotion":
            return sum(counts.emotion)
        case "direction":
            return sum(counts.direction)
        case "pose":
            return counts.angles
    return counts.affect


def _unlabelled(stream: Stream, head: str, split: str, of: str) -> str:
    """Why a head has no label in a split; for poses, which of the three angles the records lack."""
    why = f"no sample of data.{split}{of} has its label"
    if head == "pose" and not stream.reading.labels.needs_pose:
        records = [one for _, _, one in itertools.islice(stream.records(), _ROWS) if one is not None]
        missing = [name for name in ("yaw", "pitch", "roll") if all(getattr(one, name) is None for one in records)]
        if 0 < len(missing) < 3:
            way = " (hpe pack pointing04 --option roll=upright takes it as 0)" if missing == ["roll"] else ""
            lack = " and no ".join(missing) + way
            why = f"it needs yaw, pitch and roll, and the samples of data.{split} have no {lack}"
    return f"model.heads.{head}: {why}; {_LABEL_SOURCE[head]}"
