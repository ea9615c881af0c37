"""The command ``hpe export``: read a network, write it as ONNX, compare the two, and only then keep the file."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch

import hpe
from hpe.config.strict_yaml import dump
from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.core.files import aside, refuse_unwritable, write_text
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.core.progress import progress
from hpe.data.batch import Batch
from hpe.data.crops import CropRule
from hpe.data.normalise import MEAN, STD
from hpe.data.shard_files import names_folder
from hpe.estimators.load import HOPENET_CROP, sha256_of
from hpe.estimators.onnx import one_thread
from hpe.estimators.spec import HEAD_VALUES, EstimatorSpec, HeadOutputs, InputSpec, LearnedSpec, OutputSpec
from hpe.estimators.weights import load_hopenet
from hpe.export.deployed import Deployed
from hpe.export.graph import INPUT, OPSET, describe, quantise, write_graph
from hpe.export.parity import Parity, compare, stacked
from hpe.models.build import load_run
from hpe.models.hopenet import Hopenet
from hpe.models.multitask import MultiTask
from hpe.models.run_folder import CONFIG, TrainedOn, crop_rules, refuse_absent, training_sets
from hpe.stream import Loader, Reading, ShardSet, Stream
from hpe.train.datasets import reading as reading_of
from hpe.train.datasets import shard_sets
from hpe.train.log import Damages

PRECISIONS: Final = ("fp32", "fp16", "int8")
CONVENTION: Final = (
    "degrees; yaw, pitch, roll; R = Rz(roll) Ry(yaw) Rx(pitch); yaw is positive towards the left edge of the image, "
    "pitch is positive upwards"
)
_HOPENET_SIZE: Final = 224
_BATCH: Final = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """The options of ``hpe export``.

    Attributes:
        which: checkpoint of a run: ``best``, ``last`` or a step's folder name.
        precision: ``fp32``, ``fp16`` or ``int8``.
        shards: images to compare on, and to calibrate int8 with; None: the run's validation shards.
        split: of a folder of shards.
        images: how many.
        force: replace files that exist.
    """

    which: str = "best"
    precision: str = "fp32"
    shards: str | None = None
    split: str = "val"
    images: int = 512
    force: bool = False


@dataclass(frozen=True)
class _Source:
    """A trained network, and what its export needs to say about itself."""

    name: str
    network: MultiTask | Hopenet
    weights: Path
    crops: frozenset[CropRule]
    size: int
    grey: bool
    trained_on: Sequence[Mapping[str, Any]]
    learned: LearnedSpec
    val: tuple[list[ShardSet], Reading] | None


def export(source: Path, out: Path, options: ExportOptions) -> Parity:
    """Write a network as ``out`` (ONNX) and a YAML beside it that describes it, once both agree on real images.

    Args:
        source: a run folder, or released Hopenet weights.
        out: the file, with the suffix ``.onnx``.
        options: see :class:`ExportOptions`.

    Raises:
        UserError: it cannot be exported, or the exported network answers differently; nothing is written then.
    """
    described = out.with_suffix(".yaml")
    _refuse(out, described, options)
    found = _read(source, options.which)
    stream = _images(found, source, options)
    deployed = Deployed(found.network, half=options.precision == "fp16").eval()
    with TemporaryDirectory(prefix="hpe-export-") as folder:
        file = Path(folder) / "network.onnx"
        say(f"{out}: exporting {found.name} (opset {OPSET}, {options.precision})")
        outputs = write_graph(deployed, found.size, file)
        if options.precision == "int8":
            say(f"{out}: calibrating on up to {min(options.images, stream.samples):,} images")
            quantise(file, calibrated := file.with_name("int8.onnx"), _calibration(stream, options.images))
            file = calibrated
        describe(file, _metadata(found, options.precision))
        parity = _compared(found, file, stream, options.images)
        if options.precision == "fp32" and parity.problems:
            raise UserError(
                f"{out}: not written, the exported network is not the one of {source}: {'; '.join(parity.problems)}"
            )
        digest = sha256_of(file)
        described.unlink(missing_ok=True)  # it names the sha256 of the file before
        with aside(out) as part:
            shutil.copyfile(file, part)
    write_text(described, _yaml(found, out, outputs, digest, options.precision, parity))
    return parity


def _refuse(out: Path, described: Path, options: ExportOptions) -> None:
    if out.suffix != ".onnx":
        raise UserError(f"{out}: expected a file name that ends in .onnx")
    if options.precision not in PRECISIONS:
        raise UserError(f"--precision {options.precision}: expected {', '.join(PRECISIONS)}")
    for path in (out, described):
        if path.exists() and not (options.force and path.is_file()):
            raise UserError(f"{path} exists; choose another name, or give --force to replace it")
    refuse_unwritable(out, str(out))


def _read(source: Path, which: str) -> _Source:
    refuse_absent(source)
    if not source.is_dir():
        network, crops = load_hopenet(source), frozenset((CropRule.parse(HOPENET_CROP),))
        return _Source(source.stem, network, source, crops, _HOPENET_SIZE, False, (), LearnedSpec(), None)
    network, config, weights = load_run(source, which)
    if network.takes_angles:
        raise UserError(f"{source}: this run's input is angles (backbone angles), not images; nothing to export")
    return _Source(
        name=source.resolve().name,
        network=network,
        weights=weights,
        crops=crop_rules(source),
        size=config.data.size,
        grey=config.data.grey,
        trained_on=training_sets(source),
        learned=_learned(TrainedOn.load(source)),
        val=(shard_sets(config.data, "val"), reading_of(config.data, workers=0)),
    )


def _learned(trained: TrainedOn) -> LearnedSpec:
    names = {"emotion": EMOTIONS, "direction": DIRECTIONS}
    classes = {head: [names[head][at] for at in learned] for head, learned in trained.classes.items()}
    return LearnedSpec(**classes, faces=dict(trained.faces))


def _images(found: _Source, source: Path, options: ExportOptions) -> Stream:
    """The images on which the two networks are compared."""
    reading = Reading(size=found.size, colour="grey" if found.grey else "rgb")
    if options.shards is not None:
        split = options.split if names_folder(options.shards) else None
        return Stream([ShardSet(options.shards, split)], reading)
    if found.val is None:
        raise UserError(f"{source}: give shards with real faces to compare on: --shards FOLDER --split val")
    try:
        return Stream(*found.val)
    except UserError as error:
        raise UserError(
            f"{source / CONFIG}: data.val cannot be read ({error}); give other shards to compare on: --shards FOLDER"
        ) from error


def _batches(loader: Loader, images: int) -> Iterator[Batch]:
    """The first ``images`` images that can be read.

    Raises:
        UserError: there is none.
    """
    left = images
    for loaded in loader:
        rows = [row for row, readable in enumerate(loaded.readable) if readable][:left]
        left -= len(rows)
        if rows:
            yield loaded.batch.take(rows)
        if not left:
            return
    if left == images:
        raise UserError("no image of these shards can be read; give others with --shards")


def _calibration(stream: Stream, images: int) -> Iterator[np.ndarray]:
    with stream.once(batch=_BATCH) as loader:
        for batch in _batches(loader, images):
            yield batch.images.float().numpy()


def _compared(found: _Source, file: Path, stream: Stream, images: int) -> Parity:
    """The two networks' answers on some images of a stream."""
    import onnxruntime

    original = Deployed(found.network).eval()
    session = onnxruntime.InferenceSession(str(file), one_thread(), providers=["CPUExecutionProvider"])
    names = [one.name for one in session.get_outputs()]
    first, second, labels = [], [], []
    total = min(images, stream.samples)
    with (
        stream.once(batch=_BATCH) as loader,
        progress("compare", total, unit="images") as shown,
        torch.inference_mode(),
    ):
        for batch in _batches(loader, images):
            pixels = batch.images.float().contiguous()
            first.append({name: values.numpy() for name, values in original.named(pixels).items()})
            second.append(dict(zip(names, session.run(names, {INPUT: pixels.numpy()}), strict=True)))
            labels.append(
                {
                    "emotion": np.where(batch.emotion_mask, batch.emotion, -1),
                    "direction": np.where(batch.direction_mask, batch.direction, -1),
                    "angles": np.where(batch.angles_mask[:, None], batch.angles, np.nan).astype(np.float32),
                }
            )
            shown.advance(len(batch))
        damages = Damages(f"{found.name}:")
        damages.tell(loader)
        damages.close()
    return compare(stacked(first), stacked(second), stacked(labels))


def _metadata(found: _Source, precision: str) -> dict[str, Any]:
    """What the graph says about itself, as JSON values."""
    return {
        "version": hpe.__version__,
        "name": found.name,
        "weights_sha256": sha256_of(found.weights),
        "precision": precision,
        "opset": OPSET,
        "input": {
            "name": INPUT,
            "layout": "NCHW",
            "size": found.size,
            "colour": "luma in three channels (ITU-R 601)" if found.grey else "RGB",
            "values": "0 to 255 as float; the graph normalises them",
        },
        "normalisation": {
            "mean": found.network.mean.tolist() if isinstance(found.network, MultiTask) else MEAN,
            "std": found.network.std.tolist() if isinstance(found.network, MultiTask) else STD,
        },
        "crop": _crop(found),
        "emotion": list(EMOTIONS),
        "direction": list(DIRECTIONS),
        "angles": CONVENTION,
        "learned": found.learned.model_dump(mode="json"),
        "trained_on": [
            {name: one.get(name) for name in ("dataset", "variant", "licence", "publishable")}
            for one in found.trained_on
        ],
    }


def _crop(found: _Source) -> str | list[str]:
    rules = sorted(map(str, found.crops))
    return rules[0] if len(rules) == 1 else rules


def _yaml(found: _Source, out: Path, outputs: list[str], digest: str, precision: str, parity: Parity) -> str:
    """The description that makes the file an estimator, for ``hpe pose``, ``evaluate`` and ``predict``."""
    pose = None
    if "angles" in outputs:
        pose = OutputSpec(kind="euler", names=["angles"], deviations="deviations" if "deviations" in outputs else None)
    spec = EstimatorSpec(
        weights=out.name,
        name=None,
        sha256=digest,
        crop=_crop(found),
        input=InputSpec(
            name=INPUT,
            size=found.size,
            colour="grey" if found.grey else "rgb",
            mean=(0.0, 0.0, 0.0),  # (value / 255 - 0) / (1 / 255): the values themselves
            std=(1 / 255, 1 / 255, 1 / 255),
        ),
        output=pose,
        heads=HeadOutputs(**{name: name for name in HEAD_VALUES if name in outputs}),
        learned=found.learned,
    )
    lines = [
        f"{found.name}, exported by hpe {hpe.__version__} ({precision}, opset {OPSET}).",
        "The graph normalises its input itself: it takes RGB values of 0 to 255.",
        *([f"Angles: {CONVENTION}."] if pose is not None else ()),
        f"Compared with the original on {parity.images:,} images:",
        *(f"  {line}" for line in parity.lines()),
    ]
    text = "".join(f"# {line}\n" for line in lines)
    return text + dump(spec.model_dump(mode="json", exclude_none=True))
