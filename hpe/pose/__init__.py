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

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.pose.options import PoseOptions
    from hpe.pose.plan import pose

__all__ = ["PoseOptions", "pose"]
__getattr__ = handed_on(__name__, {"PoseOptions": "options", "pose": "plan"})
