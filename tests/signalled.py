"""A rank of a training job whose rank 1 alone gets a signal in a validation: started by ``tests/test_ranks.py``."""

import os
import signal
import sys
from pathlib import Path

import torch

from hpe.batch import Batch
from hpe.metrics import HeadMetrics
from hpe.models.multitask import Outputs
from hpe.ranks import leave
from hpe.train import train
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
