"""The stream (contract C3): shards in, batches out, in an order that is a pure function of (seed, position).

::

    stream = Stream([ShardSet("shards/ferplus", split="train", pose="pose/x")], Reading(size=224, workers=4))
    for loaded in stream.endless(seed=0, batch=256, samples_seen=0, rank=0, ranks=1):
        images, batch = augment(loaded.batch, settings, seed=0, position=loaded.first)
        ...
        samples_seen = loaded.samples_seen
    for loaded in stream.once(batch=256, rank=0, ranks=1):
        ...

A batch's way through the files, which is also their reading order::

    trainer     shard_sets.py     what a user names → shards: files, URLs, commands
       │                          (hpe/data/store.py and remote_cache.py fetch what is not here)
       │        shard_table.py    a shard → a table: where each sample lies, and its labels; no tar is opened
       │        open_files.py     the tars that a process has open
       │        open_tables.py    a tar and its table, which fit each other
       │        stream.py         Stream: sets of shards, checked and counted
       │        order.py          batch number → positions of this rank → samples
       │        ahead.py          a process that fetches the window to come
       │        loader.py         Loader: the stages as a WebDataset pipeline, loaded by WebLoader
    reader      worker.py         the stages: positions → places → data → pixels → batch
       │        batch_block.py    the batch as one block of bytes
       │ block  shared_memory.py  where the block lies: a message names only its slot
    trainer     loader.py         (again) views of the block, nothing copied, in the order of the plan
       │        decoding.py       with decoder "gpu": JPEGs decoded on the device, one batch ahead
       │ Loaded
    device      augment.py        random changes to the whole batch
"""

from hpe.stream.batch_block import Damage, Loaded
from hpe.stream.loader import Loader
from hpe.stream.shard_sets import ShardSet, resolve
from hpe.stream.shard_table import LabelSource
from hpe.stream.stream import Balance, Counts, Stream
from hpe.stream.worker import Draft, Reading, Stage

__all__ = [
    "Balance",
    "Counts",
    "Damage",
    "Draft",
    "LabelSource",
    "Loaded",
    "Loader",
    "Reading",
    "ShardSet",
    "Stage",
    "Stream",
    "resolve",
]
