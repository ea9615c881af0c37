"""``hpe train``: streamed, multi-task, distributed, exactly resumable.

In reading order:

    loop.py          the training loop
    timetable.py     what follows a step, and when a run ends
    step.py          one optimizer step, validation, checkpoints
    validation.py    a validation in the middle of a training, and the checkpoint behind it
    losses.py        one loss per head, masked where the label is missing
    selection.py     the metrics by name, and which of two values is the better one
    metrics.py       validation metrics, exact over any number of ranks
    optim.py         parameter groups and the learning rate
    average.py       the moving average of the weights
    setup.py         opens a run: builds and checks everything that it needs
    resume.py        what the run folder decides: recorded settings, the lock, the checkpoint
    datasets.py      the datasets that a config names, as streams
    preflight.py     reasons a run cannot start, found before its first step
    auto_batch.py    ``train.batch: auto``
    trackers.py      other trackers, such as Weights & Biases and MLflow, on request
    log.py           metrics.jsonl, TensorBoard, one line on the terminal
    console.py       progress bar and live table on a terminal
    sample_grid.py   validation images with predictions
"""

from typing import TYPE_CHECKING

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.train.loop import next_command, plan, train

__all__ = ["next_command", "plan", "train"]
__getattr__ = handed_on(__name__, dict.fromkeys(__all__, "loop"))
