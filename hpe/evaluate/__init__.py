"""``hpe evaluate``: every sample once; predictions as a table, metrics from the table.

In reading order:

    measure.py   predict every sample once, write the table, compute the metrics
    options.py   the command's options
    judged.py    what is judged: a run, or an estimator
    subject.py   what an evaluation judges, and the name of its files
    warnings.py  other framing, other labels, one answer for all
    gallery.py   which faces a report shows, with predictions drawn on them
"""

from typing import TYPE_CHECKING

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.evaluate.measure import evaluate
    from hpe.evaluate.options import EvaluateOptions

__all__ = ["EvaluateOptions", "evaluate"]
__getattr__ = handed_on(__name__, {"EvaluateOptions": "options", "evaluate": "measure"})
