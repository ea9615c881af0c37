"""``hpe pose`` and ``hpe calibrate``: the head pose of every face in shards, one table per shard.

In reading order:

    options.py     what the command is asked to do
    plan.py        the command: which shards, which crop, which tables
    preflight.py   refusals before hours of work
    passes.py      the pass on one rank: read, compute, write
    check.py       ``--check``: tables against true angles
    calibrate.py   ``hpe calibrate``: our direction rule, fitted
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpe.pose.options import PoseOptions
    from hpe.pose.plan import pose

__all__ = ["PoseOptions", "pose"]


def __getattr__(name: str) -> object:
    # Imported late, so that importing one file of this package does not import everything that the command needs.
    if name == "pose":
        from hpe.pose.plan import pose

        return pose
    if name == "PoseOptions":
        from hpe.pose.options import PoseOptions

        return PoseOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
