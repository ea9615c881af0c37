"""The global sequence, written down on 2026-11-26 from the version before the stream became a WebDataset pipeline.

A run that an older version began must see the same samples when it goes on. The numbers are those of the samples in
:mod:`tests.stream.tiny`'s folder; the second dataset of the mix counts from 100.
"""

from pathlib import Path
from typing import Any, Final

import pytest

from hpe.stream import Balance, Loader, ShardSet, Stream
from tests.stream.tiny import make, stream, taken

BATCHES = 8
BATCH = 5
_NUMBERS: Final = {
    "one dataset": (
        "8 15 16 11 19 17 18 14 13 10 12 9 23 7 22 24 21 20 5 6 33 26 3 30 1 28 32 0 31 4 25 27 2 29 0 29 27 4 5 6"
    ),
    "mixed": (
        "8 15 16 11 104 19 105 17 107 108 106 18 14 102 13 103 10 12 9 101 100 105 23 7 22 24 21 104 20 5 100 6 "
        "106 33 102 108 101 103 26 3"
    ),
    "balanced": (
        "14 15 31 8 12 17 19 11 5 26 33 18 13 19 9 12 16 27 25 26 5 33 1 29 2 32 10 5 3 30 26 28 33 24 12 19 5 12 24 4"
    ),
    "balanced, two datasets": (
        "14 15 101 8 105 31 12 103 19 5 108 11 18 26 13 33 9 16 27 102 19 108 25 1 106 29 17 12 10 2 26 32 102 "
        "107 5 33 5 105 3 30"
    ),
    "once": ("0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31 32 33"),
}
PINNED: Final = {name: [int(n) for n in text.split()] for name, text in _NUMBERS.items()}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sequence")
    # Emotions in unequal shares and out of step with the shards, so that balancing has something to do.
    one = make(folder / "one", emotion=lambda n: (0, 0, 0, 1, 0, 2, 0)[n % 7])
    two = make(folder / "two", (4, 2, 3), emotion=lambda n: n % 3)
    return one.folder, two.folder


def read(name: str, folders: tuple[Path, Path], workers: int = 0) -> Stream:
    weights = {"mixed": (2.0, 1.0), "balanced, two datasets": (1.0, 1.0)}.get(name, (1.0,))
    sets = [ShardSet(str(folder), weight=weight) for folder, weight in zip(folders, weights, strict=False)]
    return stream(*sets, workers=workers)


def loader(name: str, shards: Stream, seen: int = 0, **part: Any) -> Loader:
    if name == "once":
        return shards.once(batch=BATCH, **part)
    balance = Balance("emotion") if name.startswith("balanced") else None
    return shards.endless(seed=11, batch=BATCH, window=2, balance=balance, samples_seen=seen, **part)


def numbers(loader: Loader, batches: int = BATCHES) -> list[list[int]]:
    """By batch, the samples' numbers."""
    return [
        [int(key[-4:]) + 100 * key.startswith("two") for key in loaded.batch.keys] for loaded in taken(loader, batches)
    ]


@pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 3), (2, 1), (3, 0), (3, 1)])
@pytest.mark.parametrize("name", list(PINNED))
def test_the_global_sequence_is_what_it_was(folders: tuple[Path, Path], name: str, ranks: int, workers: int) -> None:
    shards = read(name, folders, workers)
    parts = [numbers(loader(name, shards, rank=rank, ranks=ranks)) for rank in range(ranks)]
    together = [n for number in range(BATCHES) for part in parts if number < len(part) for n in part[number]]
    assert together == PINNED[name]


@pytest.mark.parametrize(("seen", "ranks", "workers"), [(1, 2, 0), (13, 3, 1), (7, 1, 3)])
@pytest.mark.parametrize("name", [name for name in PINNED if name != "once"])
def test_resumed_at_an_odd_position_on_other_ranks_it_goes_on_where_it_was(
    folders: tuple[Path, Path], name: str, seen: int, ranks: int, workers: int
) -> None:
    shards, batches = read(name, folders, workers), (BATCHES * BATCH - seen) // BATCH
    parts = [numbers(loader(name, shards, seen, rank=rank, ranks=ranks), batches) for rank in range(ranks)]
    together = [n for number in range(batches) for part in parts for n in part[number]]
    assert together == PINNED[name][seen : seen + batches * BATCH]
