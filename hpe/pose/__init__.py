"""``hpe pose`` and ``hpe calibrate``: the head pose of every face in shards, one table a shard.

In reading order:

    plan.py        the command: which shards, which crop, which tables
    passes.py      the pass on one rank: read, compute, write
    check.py       ``--check``: tables against true angles
    calibrate.py   ``hpe calibrate``: our direction rule, fitted
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpe.pose.plan import pose

__all__ = ["pose"]


def __getattr__(name: str) -> object:
    # Late, so that a file of this room can be imported without all that its command stands on.
    if name in __all__:
        from hpe.pose import plan

        return getattr(plan, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
