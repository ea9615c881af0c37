"""A rank of a training job whose rank 1 alone gets a signal in a validation.

Started by ``tests/core/test_distributed.py``.
"""

import os
import signal
import sys
from pathlib import Path

import torch

from hpe.core.ranks import leave
from hpe.data.batch import Batch
from hpe.models.multitask import Outputs
from hpe.train import train
from hpe.train.metrics import HeadMetrics
from tests import made


def signalled(update_number: int) -> None:
    """Send SIGUSR1 to rank 1 when it adds its so many-th batch to validation metrics."""
    original, seen = HeadMetrics.update, []

    def update(self: HeadMetrics, outputs: Outputs, batch: Batch) -> None:
        seen.append(batch)
        if len(seen) == update_number and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGUSR1)
        original(self, outputs, batch)

    HeadMetrics.update = update


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, run, number, *overrides = sys.argv[1:]
    signalled(int(number))
    leave(train(made.config(Path(folder), Path(run), *overrides)))
