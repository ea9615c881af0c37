"""``hpe report``, ``hpe runs`` and ``hpe association``: pages, lists and tables for people to read.

In reading order:

    page.py          the command: a run's page, and one that compares several
    load.py          what a page reads: config, curves, evaluations
    tables.py        metrics as tables with sortable cells
    cells.py         a study's tables: their cells, JSON and Markdown
    charts.py        charts as inline SVG
    model_card.py    the model card
    runs.py          ``hpe runs``: runs side by side
    association.py   ``hpe association``: JSON, Markdown, a heat map
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpe.report.page import report

__all__ = ["report"]


def __getattr__(name: str) -> object:
    # Late, so that a file of this room can be imported without everything that its command needs.
    if name in __all__:
        from hpe.report import page

        return getattr(page, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
