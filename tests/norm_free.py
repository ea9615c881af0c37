"""A rank of a training job whose backbone has no batch norm: started by ``tests/core/test_distributed.py``.

With batch norm N ranks cannot have the gradient of one (each norm sees a part of the batch); without it they
must.
"""

import sys
from pathlib import Path

import torch
from torch import nn

from hpe.core.ranks import leave
from hpe.models import build
from hpe.train import train
from tests import made


def plain_backbone(*_: object, **__: object) -> tuple[nn.Module, int]:
    """Two linear layers on the pixels."""
    layers = nn.Sequential(nn.Flatten(), nn.Linear(3 * made.SIDE**2, 16), nn.Tanh(), nn.Linear(16, 12))
    return layers, 12


if __name__ == "__main__":
    torch.set_num_threads(1)
    build.build_backbone = plain_backbone
    folder, run, *overrides = sys.argv[1:]
    leave(train(made.config(Path(folder), Path(run), *overrides)))
