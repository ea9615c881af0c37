"""A plain PyTorch loop on hpe's stream: no config, no run folder, a network and an optimizer of your own.

    hpe pack synthetic shards/heads --size 64 --option count=2000 --option people=60 --option size=64
    python examples/plain_loop.py shards/heads --epochs 3

Start it again with more epochs: it goes on with the next sample. The position in the stream is all that a checkpoint
needs for that, and it holds for any number of processes.
"""

import argparse
from pathlib import Path

import torch
import torchvision
from torch.nn import functional

import hpe
from hpe.data.normalise import IMAGENET, prepare

parser = argparse.ArgumentParser(description="A plain PyTorch loop on hpe's stream.")
parser.add_argument("shards", help="folder that hpe pack wrote, with the splits train and val")
parser.add_argument("--epochs", type=float, default=3)
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--size", type=int, default=64, help="side of the images in pixels")
parser.add_argument("--checkpoint", type=Path, default=Path("plain_loop.pt"))
chosen = parser.parse_args()

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
torch.manual_seed(0)
network = torchvision.models.resnet18(num_classes=8).to(device)
optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
seen = 0
if chosen.checkpoint.exists():
    saved = torch.load(chosen.checkpoint, weights_only=True)
    network.load_state_dict(saved["network"])
    optimizer.load_state_dict(saved["optimizer"])
    seen = saved["seen"]
    print(f"resumed after {seen:,} samples")

reading = hpe.Reading(size=chosen.size, workers=1)
train = hpe.Stream([hpe.ShardSet(chosen.shards, split="train")], reading)
val = hpe.Stream([hpe.ShardSet(chosen.shards, split="val")], reading)
total = int(chosen.epochs * train.samples)

network.train()
with train.endless(seed=0, batch=chosen.batch, samples_seen=seen) as loader:
    while seen < total:
        loaded = next(loader)
        batch = loaded.batch.to(device)
        each = functional.cross_entropy(network(prepare(batch, IMAGENET)), batch.emotion_target, reduction="none")
        # A face without an emotion has a false mask: it counts neither in the sum nor in the mean.
        loss = (each * batch.emotion_mask).sum() / batch.emotion_mask.sum().clamp(min=1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen = loaded.samples_seen
        if seen % (10 * chosen.batch) == 0 or seen >= total:
            print(f"{seen:,} of {total:,} samples, loss {loss.item():.3f}")
torch.save({"network": network.state_dict(), "optimizer": optimizer.state_dict(), "seen": seen}, chosen.checkpoint)

network.eval()
right = labelled = 0
with torch.no_grad(), val.once(batch=chosen.batch) as loader:  # every sample exactly once
    for loaded in loader:
        batch = loaded.batch.to(device)
        guessed = network(prepare(batch, IMAGENET)).argmax(1)
        right += int(((guessed == batch.emotion) & batch.emotion_mask).sum())
        labelled += int(batch.emotion_mask.sum())
print(f"emotion accuracy {right / labelled:.3f} on {labelled} faces of val")
