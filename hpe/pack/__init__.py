"""``hpe pack``, ``hpe verify`` and ``hpe balance``: a raw dataset becomes clean, verified shards.

In reading order:

    dataset.py       the command: a raw dataset becomes a folder of shards
    job.py           rows are read, splits drawn, shards made
    shard.py         one shard, from raw rows to a finished tar
    splits.py        which sample is for training, validation, test
    near_copies.py   duplicate pictures
    summary.py       counts, summary.md, contact sheets
    verify.py        ``hpe verify``: do shards match their manifest?
    balance.py       ``hpe balance``: equal numbers per direction and emotion
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpe.pack.dataset import list_readers, pack, pack_source

__all__ = ["list_readers", "pack", "pack_source"]


def __getattr__(name: str) -> object:
    # Late, so that a file of this room can be imported without all that its command stands on.
    if name in __all__:
        from hpe.pack import dataset

        return getattr(dataset, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
