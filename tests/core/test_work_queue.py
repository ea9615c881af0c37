"""Items of a job are each done, whenever a rank dies."""

import torch.distributed as dist

from hpe.core.ranks import Ranks
from hpe.core.work_queue import Claims


def first_of_two(store: "dist.Store", total: int) -> Claims:
    return Claims(store, Ranks(rank=0, world=2, local_rank=0, local_world=2), total, dead_seconds=0.3)


def left_over(mine: Claims) -> list[int]:
    """What rank 0 has to do for others, after its own items."""
    for item in mine:
        mine.finish(item)
    found = []
    for item in mine.abandoned():
        if item is not None:
            found.append(item)
            mine.finish(item)
    return found


def test_an_item_whose_rank_died_before_it_said_so_is_done_by_the_first() -> None:
    store = dist.HashStore()
    store.add("next", 1)  # item 0 is taken, and its rank gone
    assert left_over(first_of_two(store, 3)) == [0]


def test_an_item_whose_rank_died_over_it_is_done_by_the_first() -> None:
    store = dist.HashStore()
    other = iter(Claims(store, Ranks(rank=1, world=2, local_rank=1, local_world=2), 4))
    assert (next(other), next(other)) == (0, 1)
    Claims(store, Ranks(rank=1, world=2, local_rank=1, local_world=2), 4).finish(0)
    assert left_over(first_of_two(store, 4)) == [1]


def test_an_item_that_was_finished_last_of_all_is_not_waited_for() -> None:
    store = dist.HashStore()
    other = Claims(store, Ranks(rank=1, world=2, local_rank=1, local_world=2), 1)
    other.finish(next(iter(other)))  # killed right after
    assert left_over(first_of_two(store, 1)) == []


def test_no_items_are_done_at_once() -> None:
    assert left_over(first_of_two(dist.HashStore(), 0)) == []
