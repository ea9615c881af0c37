"""The predictions of a study's runs, as its tables read them."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hpe.metrics import across_seeds
from hpe.metrics.across_seeds import Judged, judge
from hpe.metrics.values import Figure
from hpe.report.load import read_predictions
from hpe.study.config import DIRECTION_SET, StudyConfig, run_folder, seeds_of
from hpe.study.sets import StudyData

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Results:
    """A study and the predictions that its finished runs have written.

    Attributes:
        config: of the study.
        data: what its sets are drawn from.
        dataset: name of the shards' dataset.
        emotions: those of each set, in our integers.
    """

    config: StudyConfig
    data: StudyData
    dataset: str
    emotions: dict[str, tuple[int, ...]]

    def judged(self, set_name: str, model: str, test: str, *, among: Collection[int] | None = None) -> Judged | None:
        """The predictions of a model's seeds on a test set; None: no run has finished.

        ``among``: the emotions to keep; None: those that the model was trained on. No other can be chosen.
        """
        tables = self._tables(set_name, model, test)
        return judge(tables, among=self.emotions[set_name] if among is None else among) if tables else None

    def judged_directions(self, model: str) -> Judged | None:
        """The predictions of a direction network's seeds; None: no run has finished."""
        tables = self._tables(DIRECTION_SET, model, "test")
        return judge(tables, "direction") if tables else None

    def _tables(self, set_name: str, model: str, test: str) -> "dict[int, pa.Table]":
        paths = {
            seed: run_folder(self.config, set_name, model, seed) / "evaluate" / f"{test}.parquet"
            for seed in seeds_of(self.config, model)
        }
        return {seed: read_predictions(path) for seed, path in paths.items() if path.is_file()}

    def summary(self, judged: Judged) -> dict[str, Figure]:
        """Accuracy and macro F1 over seeds."""
        return across_seeds.summary(judged, replicates=self.config.replicates)
