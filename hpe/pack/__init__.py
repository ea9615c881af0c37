"""``hpe pack``, ``hpe index``, ``hpe verify`` and ``hpe balance``: a raw dataset becomes clean, verified shards.

In reading order:

    dataset.py      the command ``hpe pack``: folder, options and errors of the job
    options.py      the options that decide the bytes
    job.py          the steps of the job, up to the manifest
    rows.py         step 1: every row is read, checked and kept on disk
    not_taken.py    files of the dataset's folder that no row took, counted by kind
    splits.py       step 2: which sample is for training, validation, test
    shard.py        step 3: one shard, from raw rows to a finished tar
    journal.py      the record of each finished shard
    indexing.py     the index of each split; ``hpe index``
    near_copies.py  which pictures are copies of others
    duplicates.py   these copies as lines, counts and a note
    reasons.py      why rows were refused, and the values that a column cannot have
    summary.py      counts, summary.md, contact sheets
    closing.py      the last lines: what is wrong with the shards, what comes next
    verify.py       ``hpe verify``: do the shards match their manifest?
    cells.py        which samples a balanced subset takes
    balance.py      ``hpe balance``: equal numbers per direction and emotion
"""

from typing import TYPE_CHECKING

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.pack.dataset import list_readers, pack, pack_source

__all__ = ["list_readers", "pack", "pack_source"]
__getattr__ = handed_on(__name__, dict.fromkeys(__all__, "dataset"))
