"""The stream (contract C3): shards in, batches out, in an order that is a pure function of (seed, position).

::

    stream = Stream([ShardSet("shards/ferplus", split="train", pose="pose/x")], Reading(size=224, workers=4))
    for loaded in stream.endless(seed=0, batch=256, samples_seen=0, rank=0, ranks=1):
        images, batch = augment(loaded.batch, settings, seed=0, position=loaded.first)
        ...
        samples_seen = loaded.samples_seen
    for loaded in stream.once(batch=256, rank=0, ranks=1):
        ...

In reading order:

    shard_sets.py      what a user names as shards, resolved into files
    remote_cache.py    remote shards, fetched once per node
    index.py           where each sample of a shard lies, and its labels
    order.py           which sample stands at which position
    stream.py          Stream: sets of shards, checked and counted, in one order
    worker.py          what a reader process does: positions in, images out
    batch_block.py     a batch in one block of memory
    shared_memory.py   blocks that readers fill and the trainer reads
    loader.py          the trainer's side: batches in the order of the plan
    decoding.py        batches whose JPEGs the device decodes, one ahead of the trainer
    augment.py         augmentation of whole batches on their device
"""

from hpe.stream.batch_block import Damage, Loaded
from hpe.stream.index import LabelSource
from hpe.stream.loader import Loader
from hpe.stream.shard_sets import ShardSet, resolve
from hpe.stream.stream import Balance, Counts, Stream
from hpe.stream.worker import Reading

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
