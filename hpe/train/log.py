"""The log of a run: ``metrics.jsonl``, TensorBoard, other trackers, and the samples that could not be read."""

import gc
import json
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from torch import Tensor

from hpe.core.console import count_of, say
from hpe.core.files import write_text
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.core.ranks import Ranks
from hpe.data.batch import Batch
from hpe.models.checkpoints import State
from hpe.models.multitask import Outputs
from hpe.models.run_folder import METRICS, TENSORBOARD
from hpe.stream import Loader
from hpe.train.console import Screen
from hpe.train.sample_grid import sample_grid
from hpe.train.trackers import Trackers

_NAMED_DAMAGE: Final = 20


class Log:
    """Reports a training: on the terminal, and on rank 0 to files.

    Resumed at a state, it drops the lines that a killed start wrote after that point, so that no step appears twice;
    where the state is ``unvalidated`` also a validation at that point, because it is done again.
    """

    def __init__(
        self, run: Path, ranks: Ranks, state: State, shown: Screen | None = None, trackers: Trackers | None = None
    ) -> None:
        self.run, self._shown, samples_seen = run, shown, state.samples_seen
        self._trackers = trackers or Trackers()
        self._lines = self._board = None
        if ranks.main:
            from torch.utils.tensorboard import SummaryWriter

            self._keep_until(run / METRICS, state)
            self._lines = (run / METRICS).open("a", encoding="utf-8")
            # At the start of a run, too: one that was killed before its first checkpoint has logged steps already.
            self._board = SummaryWriter(run / TENSORBOARD, purge_step=samples_seen + 1)

    @staticmethod
    def _keep_until(path: Path, state: State) -> None:
        if not path.exists():
            return
        kept = []
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
                if entry["samples"] < state.samples_seen + (not state.unvalidated or entry["split"] != "val"):
                    kept.append(line)
            except (ValueError, KeyError, TypeError):
                continue  # the half line of a kill
        write_text(path, "".join(f"{line}\n" for line in kept))

    def start(self, state: State, chosen: Mapping[str, str]) -> None:
        """Record what the config leaves to the machine, as chosen at this start."""
        if self._lines is not None:
            begun = {"step": state.step, "samples": state.samples_seen, "split": "start"}
            self._lines.write(json.dumps(begun | dict(chosen)) + "\n")
            self._lines.flush()

    def advance(self, count: int) -> None:
        """``count`` more images are learned from."""
        if self._shown is not None:
            self._shown.advance(count)

    def scalars(self, split: str, step: int, samples: int, values: Mapping[str, float]) -> None:
        """Figures of a split at a point of training; the x axis of TensorBoard is samples seen."""
        if self._shown is not None:
            self._shown.show(split, values)
        if self._lines is None or self._board is None:
            return
        rounded = {name: float(f"{value:.6g}") for name, value in values.items() if np.isfinite(value)}
        self._lines.write(json.dumps({"step": step, "samples": samples, "split": split, **rounded}) + "\n")
        self._lines.flush()
        for name, value in rounded.items():
            self._board.add_scalar(f"{name}/{split}", value, samples)
        self._trackers.scalars(split, samples, rounded)

    def image(self, name: str, samples: int, picture: np.ndarray) -> None:
        """A picture, uint8 [height, width, 3]."""
        if self._board is not None:
            self._board.add_image(name, picture, samples, dataformats="HWC")

    def text(self, name: str, text: str) -> None:
        """A text, such as the config, shown as it is: TensorBoard reads Markdown, where an indented line is code."""
        if self._board is not None:
            self._board.add_text(name, textwrap.indent(text, "    "))

    def hyperparameters(self, settings: Mapping[str, Any], figures: Mapping[str, float]) -> None:
        """Settings and final figures, for TensorBoard's HPARAMS page."""
        if self._board is not None:
            plain = {k: v if isinstance(v, bool | int | float | str) else str(v) for k, v in settings.items()}
            self._board.add_hparams(plain, dict(figures), run_name=".")

    def confusions(self, samples: int, matrices: Mapping[str, Tensor]) -> None:
        """Confusion matrices by head (rows are truth), as pictures of shares by row."""
        if self._board is not None:
            for head, matrix in matrices.items():
                self.image(f"{head}/confusion", samples, _confusion_picture(head, matrix.numpy()))
            gc.collect()  # figures hold cycles: without this, memory grew by half a megabyte per validation

    def faces(self, samples: int, seen: Sequence[tuple[Batch, Outputs]]) -> None:
        """Validation faces with the predictions and the labels."""
        if self._board is not None and (picture := sample_grid(seen)) is not None:
            self.image("faces/val", samples, picture)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Write out what is buffered."""
        if self._lines is not None:
            self._lines.close()
        if self._board is not None:
            self._board.close()


class Damages:
    """Samples that this rank could not read: prints the first by name, and at the end how many there were.

    Attributes:
        count: samples so far, of training and validation; a sample that is read twice counts twice.
    """

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self.count = self._named = 0

    def tell(self, loader: Loader) -> None:
        """Print what a loader could not read since the last call."""
        named, count = loader.new_damage()
        for damage in named[: _NAMED_DAMAGE - self._named]:
            self._named += 1
            say(f"{self._prefix} could not read {damage}")
        self.count += count

    def close(self) -> None:
        """Print how many there were, if not all were named."""
        if self.count > self._named:
            say(f"{self._prefix} could not read … {count_of(self.count, 'sample')} in all")


def _confusion_picture(head: str, matrix: np.ndarray) -> np.ndarray:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = EMOTIONS if head == "emotion" else DIRECTIONS
    share = matrix / np.maximum(matrix.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(5, 5), dpi=100, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("truth")
    for row, column in np.ndindex(share.shape):
        colour = "white" if share[row, column] > 0.5 else "black"
        axes.text(column, row, f"{share[row, column]:.2f}", ha="center", va="center", color=colour, fontsize=8)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
