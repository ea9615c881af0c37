"""``hpe report``, ``hpe runs`` and ``hpe association``: pages, lists and tables for people to read.

How a metric reaches the page:

    1. evaluate/measure.py: rows_of makes one row per sample; the rows become RUN/evaluate/NAME.parquet
    2. metrics.figures computes every metric from this table; the result is RUN/evaluate/NAME.json
    3. load.py reads both files, page.py makes the page
    4. tables.py turns the metrics into tables
    5. templates/run.html lays out tables and charts
    The headline values are those of metrics/markdown.py: headline_figures.

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

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.report.page import report

__all__ = ["report"]
__getattr__ = handed_on(__name__, dict.fromkeys(__all__, "page"))
