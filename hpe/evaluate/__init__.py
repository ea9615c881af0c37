"""``hpe evaluate``: every sample once; predictions as a table, metrics from the table.

In reading order:

    measure.py   predict every sample once, write the table, compute the metrics
    subject.py   what an evaluation judges, and the name of its files
    warnings.py  other framing, other labels, one answer for all
    gallery.py   which faces a report shows, with predictions drawn on them
"""

from typing import TYPE_CHECKING

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.evaluate.measure import evaluate

__all__ = ["evaluate"]
__getattr__ = handed_on(__name__, dict.fromkeys(__all__, "measure"))
