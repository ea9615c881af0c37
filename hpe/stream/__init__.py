"""The stream (contract C3): shards in, batches out, in an order that is a pure function of (seed, position).

::

    stream = Stream([ShardSet("shards/ferplus", split="train", pose="pose/x")], Reading(size=224, workers=4))
    for loaded in stream.endless(seed=0, batch=256, samples_seen=0, rank=0, ranks=1):
        images, batch = augment(loaded.batch, settings, seed=0, position=loaded.first)
        ...
        samples_seen = loaded.samples_seen
    for loaded in stream.once(batch=256, rank=0, ranks=1):
        ...
"""

from hpe.stream.datasets import Balance, Counts, Stream
from hpe.stream.loader import Loader
from hpe.stream.packed import Damage, Loaded
from hpe.stream.readers import Reading
from hpe.stream.shelf import LabelSource
from hpe.stream.sources import ShardSet, resolve

__all__ = [
    "Balance",
    "Counts",
    "Damage",
    "LabelSource",
    "Loaded",
    "Loader",
    "Reading",
    "ShardSet",
    "Stream",
    "resolve",
]
