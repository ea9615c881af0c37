"""``hpe study``: the thesis from shards and pose tables to its tables.

In reading order:

    rebuild.py         the command: every model, set and seed, then the tables
    config.py          the config of a study, and of each of its runs
    sets.py            pose tables with directions, and the balanced sets
    jobs.py            the runs, on several processes
    adaboost.py        the thesis' classical model
    thesis_tables.py   the thesis' tables, our results beside the published ones
    published.py       the thesis' published results
    compare.py         tables that compare models, with tests
    results.py         the predictions of the runs, as the tables read them
"""

from typing import TYPE_CHECKING

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.study.rebuild import study

__all__ = ["study"]
__getattr__ = handed_on(__name__, dict.fromkeys(__all__, "rebuild"))
