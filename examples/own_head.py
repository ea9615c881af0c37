"""A head and a loss of your own: yaw with its uncertainty, by the likelihood of the von Mises distribution.

    hpe pack synthetic shards/heads --size 64 --option count=2000 --option people=60 --option size=64
    python examples/own_head.py shards/heads --epochs 3

The von Mises distribution is the normal distribution of angles: it knows that -179 and 179 degrees are neighbours. The
head gives a direction and a concentration, so each face gets a yaw and how sure the network is of it. To keep a head in
hpe itself, with configs, metrics and reports, see "A head" in docs/architecture.md.
"""

import argparse
import math

import torch
from torch import Tensor, nn

import hpe
from hpe.data.batch import Batch
from hpe.data.normalise import IMAGENET, prepare
from hpe.models.backbones import build_backbone


class YawNetwork(nn.Module):
    """Any backbone of hpe (torchvision's, ``timm/NAME``, ``tiny``) with one linear layer on top."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.backbone, features = build_backbone(backbone)
        self.head = nn.Linear(features, 2)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Yaw in radians, and its concentration (about 1 / variance): both [batch]."""
        # One vector: its angle is the yaw, its length the concentration. Nothing jumps at 180 degrees.
        x, y = self.head(self.backbone(images)).unbind(1)
        return torch.atan2(y, x), torch.hypot(x, y).clamp(min=1e-3)


def von_mises_loss(yaw: Tensor, concentration: Tensor, truth: Tensor) -> Tensor:
    """Negative log-likelihood of each face, [batch]; i0e is scaled, so that large concentrations do not overflow."""
    log_bessel = torch.log(torch.special.i0e(concentration)) + concentration
    return math.log(2 * math.pi) + log_bessel - concentration * torch.cos(truth - yaw)


def mean_where(each: Tensor, mask: Tensor) -> Tensor:
    """The mean over the faces that have the label."""
    return torch.where(mask, each, 0).sum() / mask.sum().clamp(min=1)


def truth_of(batch: Batch) -> Tensor:
    """Yaw in radians, [batch]."""
    return torch.deg2rad(batch.angles[:, 0])


parser = argparse.ArgumentParser(description="A head and a loss of your own.")
parser.add_argument("shards", help="folder that hpe pack wrote, whose records have angles")
parser.add_argument("--backbone", default="tiny")
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
chosen = parser.parse_args()

torch.manual_seed(0)
network = YawNetwork(chosen.backbone)
reading = hpe.Reading(size=chosen.size, workers=1)
train = hpe.Stream([hpe.ShardSet(chosen.shards, split="train")], reading)
val = hpe.Stream([hpe.ShardSet(chosen.shards, split="val")], reading)
steps = max(int(chosen.epochs * train.samples / chosen.batch), 1)
optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3)
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=max(steps, 2))

with train.endless(seed=0, batch=chosen.batch) as loader:
    for step in range(steps):
        batch = next(loader).batch
        yaw, concentration = network(prepare(batch, IMAGENET))
        loss = mean_where(von_mises_loss(yaw, concentration, truth_of(batch)), batch.angles_mask)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 0:
            print(f"step {step} of {steps}, loss {loss.item():.3f}")

network.eval()
errors, stated = [], []
with torch.no_grad(), val.once(batch=chosen.batch) as loader:
    for loaded in loader:
        batch = loaded.batch
        yaw, concentration = network(prepare(batch, IMAGENET))
        turned = torch.remainder(yaw - truth_of(batch) + math.pi, 2 * math.pi) - math.pi
        errors.append(torch.rad2deg(turned.abs())[batch.angles_mask])
        stated.append(torch.rad2deg(concentration.rsqrt())[batch.angles_mask])
error, sd = torch.cat(errors), torch.cat(stated)
print(f"yaw: mean absolute error {error.mean():.2f} degrees on {len(error)} faces of val")
sure = sd <= sd.median()
print(f"the surer half: {error[sure].mean():.2f}, the other half: {error[~sure].mean():.2f}")
