"""What ``hpe pose`` is asked to do, as its command line gives it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from hpe.core.errors import UserError
from hpe.estimators.estimator import Precision
from hpe.pose.passes import Flips

OnMismatch = Literal["refuse", "recrop", "force"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PoseOptions:
    """The options of ``hpe pose``.

    Attributes:
        estimator: YAML, ONNX file, Hopenet weights, run folder or landmark model.
        weights, name, crop: replace the estimator's own.
        out: folder of the tables; None: ``pose/`` beside the shards.
        split: process only this split of folders of shards.
        on_mismatch: what to do where the shards' crop rule is not the estimator's.
        flips: whether to average each face's angles with those of its mirror image.
        precision: of a torch network.
        compiled: run a torch network through ``torch.compile``.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        batch: faces that go through the network together; None: 16 on a CPU, 256 on a GPU.
        threads: workers of each rank; None: its share of the cores.
        direction_network: run folder of a direction network; adds its directions as a column.
        rule: file of a direction rule that ``hpe calibrate`` fitted, in place of our default.
        check: compare the finished tables with the shards' true angles.
    """

    estimator: Path
    weights: Path | None = None
    name: str | None = None
    crop: str | None = None
    out: Path | None = None
    split: str | None = None
    on_mismatch: OnMismatch = "refuse"
    flips: Flips = "none"
    precision: Precision = "fp32"
    compiled: bool = False
    device: str = "auto"
    batch: int | None = None
    threads: int | None = None
    direction_network: Path | None = None
    rule: Path | None = None
    check: bool = False


def on_mismatch_of(*, recrop: bool, force: bool) -> OnMismatch:
    """What the flags ``--recrop`` and ``--force`` ask for.

    Raises:
        UserError: both are given.
    """
    if recrop and force:
        raise UserError(
            "--recrop and --force: --recrop cuts the pictures anew, --force uses them as they are; give only one"
        )
    return "recrop" if recrop else "force" if force else "refuse"


def precision_of(text: str) -> Precision:
    """The precision of this name.

    Raises:
        UserError: there is none.
    """
    for known in get_args(Precision):
        if text == known:
            return known
    raise UserError(f"--precision {text}: expected {', '.join(get_args(Precision))}")
