"""What ``hpe evaluate`` judges: a run of ``hpe train``, an exported network, or another estimator."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import torch
from jaxtyping import UInt8
from torch import Tensor

from hpe.config.run import ShardsConfig
from hpe.core.devices import cores
from hpe.core.errors import UserError
from hpe.core.precision import Precision, chosen_precision
from hpe.data.batch import Batch
from hpe.data.crops import CropRule
from hpe.data.normalise import prepare
from hpe.data.prefetch import one_thread
from hpe.estimators.estimator import Estimator
from hpe.estimators.load import Compute, load_estimator
from hpe.evaluate.options import EvaluateOptions
from hpe.models.build import load_run
from hpe.models.checkpoints import not_at_its_end
from hpe.models.inference import CPU_PIECE, judge, judging_precision
from hpe.models.run_folder import TrainedOn, crop_rules, is_run, pretrained
from hpe.models.views import PLAIN, Estimates
from hpe.stream import LabelSource, Reading
from hpe.train.datasets import reading

_TABLES: Final = LabelSource("pose", "ours")
"""Labels for an estimator where pose tables are named: no config of a training says which."""


@dataclass(frozen=True, slots=True)
class Judged:
    """A network that is ready, and what is known about it.

    Attributes:
        name: for messages.
        folder: whose ``evaluate/`` gets the results.
        weights: the file.
        heads: what it predicts, among ``emotion``, ``direction``, ``pose`` and ``affect``.
        bins: whether its pose is that of 66 bins, which reach no further than 99°.
        predict: its estimates for a batch on its device.
        precision: of its arithmetic.
        recorded: the precision of its training; None: it is always judged in :attr:`precision`.
        reading: how the samples are read for it, with the labels that it was trained on.
        learned: for ``emotion`` and ``direction``, the classes with training samples; a head is missing if unknown.
        crops: the crop rules of its training images, as far as they are known.
        faces: how large the faces of its training are; empty if unknown.
        warnings: what makes its results mean less than they seem, whatever the shards.
        trained_on: the training data of a run.
        takes_angles: whether its input is the angles, so that it has no estimate for a face without them.
    """

    name: str
    folder: Path
    weights: Path
    heads: Sequence[str]
    bins: bool
    predict: Callable[[Batch], Estimates]
    precision: Precision
    recorded: str | None
    reading: Reading
    learned: Mapping[str, tuple[int, ...]]
    crops: frozenset[CropRule]
    faces: Mapping[str, float]
    warnings: Sequence[str] = ()
    trained_on: Sequence[ShardsConfig] = ()
    takes_angles: bool = False


def open_judged(network: Path, options: EvaluateOptions, device: torch.device, *, pose_tables: bool) -> Judged:
    """The network that a path names: a run folder, or what :func:`hpe.estimators.load.load_estimator` opens.

    Args:
        network: the path.
        options: of the command.
        device: where it runs.
        pose_tables: whether the shards come with pose tables.

    Raises:
        UserError: there is no such network, or an option does not fit it.
    """
    if is_run(network):
        return _of_run(network, options, device)
    return _of_estimator(network, options, device, pose_tables=pose_tables)


def _of_run(run: Path, options: EvaluateOptions, device: torch.device) -> Judged:
    if options.weights is not None:
        raise UserError(f"--weights {options.weights}: a run has its own weights; choose a checkpoint with --which")
    network, config, weights = load_run(run, options.which)
    if options.views != PLAIN and network.takes_angles:
        raise UserError(f"{run}: --flips and --centre are for networks of images; this run's input is angles")
    precision = judging_precision(options.precision, config.train.precision, device)
    network.to(device).eval()
    infer = partial(judge, network, views=options.views, precision=precision, batch=options.batch)

    def predict(samples: Batch) -> Estimates:
        return infer(samples.angles if network.takes_angles else prepare(samples, network.normalisation))

    pose, trained = config.model.heads.pose, TrainedOn.load(run)
    folder, warnings = run, list(not_at_its_end(run, config, options.which))
    if pretrained(run) is not None:  # it is passed on, and results hold faces of the dataset
        folder = run.with_name(f"{run.resolve().name}-results")
    return Judged(
        name=run.name,
        folder=options.out or folder,
        weights=weights,
        heads=config.model.heads.on,
        bins=pose is not None and pose.kind == "bins66",
        predict=predict,
        precision=precision,
        recorded=config.train.precision,
        # GPU decoders give other pixels than the CPU, and a metric must not depend on the machine.
        reading=reading(config.data.model_copy(update={"decoder": "cpu"}), workers=options.workers),
        learned=trained.classes,
        crops=crop_rules(run),
        faces=trained.faces,
        warnings=warnings,
        trained_on=config.data.train,
        takes_angles=network.takes_angles,
    )


def _of_estimator(path: Path, options: EvaluateOptions, device: torch.device, *, pose_tables: bool) -> Judged:
    if options.which != "best" or options.views.centre != PLAIN.centre:
        raise UserError(f"{path}: --which and --centre work only with a run folder of hpe train; leave them out")
    precision = Precision("fp32", "the usual one")
    if options.precision is not None:
        precision = chosen_precision(options.precision, device, asked="--precision")
    compute = Compute(device, precision.name, fall_back=True)  # pyright: ignore[reportArgumentType]
    found = load_estimator(path, compute, weights=options.weights, any_network=True)
    assert found.weights is not None
    file = found.weights
    return Judged(
        name=found.name,
        folder=options.out or file.with_name(f"{file.stem}-{file.suffix.removeprefix('.')}"),
        weights=file,
        heads=(*found.heads, *(() if found.output is None else ("pose",))),
        bins=found.output is not None and found.output.kind.startswith("bins"),
        predict=_ThreadedEstimator(found, flips=options.views.flips),
        precision=precision if found.precision is None else Precision(found.precision, "that of the estimator"),
        recorded=None,
        reading=Reading(
            size=found.input.size,
            colour="grey" if found.input.colour == "grey" else "rgb",
            labels=_TABLES if pose_tables else LabelSource(),
            workers=options.workers or 0,
        ),
        learned=found.learned,
        crops=found.crops,
        faces=found.faces,
    )


class _ThreadedEstimator:
    """An estimator's estimates, in pieces of one size: on a CPU, as many pieces at once as there are cores.

    ONNX Runtime computes each on one thread, so that no result depends on the number of cores.
    """

    def __init__(self, estimator: Estimator, *, flips: bool) -> None:
        self._estimate = partial(estimator.estimate, flips=flips)
        threads = cores() if estimator.device.type == "cpu" and not estimator.channels_last else 1
        self._pool = ThreadPoolExecutor(threads, "estimator", initializer=one_thread if threads > 1 else None)

    def __call__(self, samples: Batch) -> Estimates:
        parts: tuple[UInt8[Tensor, "batch 3 size size"], ...] = samples.images.split(CPU_PIECE)
        return Estimates.joined(list(self._pool.map(self._estimate, parts)))
