"""``hpe evaluate``: every sample once; predictions as a table, figures from the table.

In reading order:

    measure.py   predict every sample once, write the table, compute the metrics
    gallery.py   which faces a report shows, with predictions drawn on them
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpe.evaluate.measure import evaluate

__all__ = ["evaluate"]


def __getattr__(name: str) -> object:
    # Late, so that a file of this room can be imported without all that its command stands on.
    if name in __all__:
        from hpe.evaluate import measure

        return getattr(measure, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
