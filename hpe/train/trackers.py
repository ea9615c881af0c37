"""Trackers beside TensorBoard, on request (``train.trackers``): Weights & Biases and others, through Accelerate."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from hpe.config.run import RunConfig, leaves
from hpe.core.console import say
from hpe.core.distributed import some_problem
from hpe.core.errors import UserError
from hpe.core.ranks import Ranks

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.tracking import GeneralTracker

PROJECT: Final = "hpe"
"""The project, or experiment, of a tracker that has such."""
_RUN_NAMES: Final = {
    "clearml": "task_name", "mlflow": "run_name", "swanlab": "experiment_name", "trackio": "name", "wandb": "name",
}  # fmt: skip
"""How each tracker calls the name of a run, where Accelerate hands it on."""


def lacking(names: Sequence[str]) -> Iterator[str]:
    """One line for each tracker whose package is not installed here."""
    if not names:
        return  # Accelerate is imported for trackers alone
    from accelerate.tracking import filter_trackers

    for name in names:
        if not filter_trackers([name], logging_dir="."):
            package = name.replace("_", "-")
            yield f"train.trackers: {name} is not installed; `pip install {package}`, or leave it out"


class Trackers:
    """Hands values on to trackers. One that fails is named and left out from then on: the training is worth more."""

    def __init__(self, opened: Sequence["GeneralTracker"] = ()) -> None:
        self._opened = list(opened)

    def scalars(self, split: str, samples: int, values: Mapping[str, float]) -> None:
        """Values of a split, under the names that TensorBoard has, with samples seen as the step."""
        named = {f"{name}/{split}": value for name, value in values.items()}
        for tracker in tuple(self._opened):
            try:
                tracker.log(named, step=samples)
            except Exception as error:
                self._opened.remove(tracker)
                say(f"WARNING: the tracker {_name(tracker)} failed, and gets no more values: {_one_line(error)}")

    def close(self) -> None:
        """Let every tracker send what it has."""
        for tracker in self._opened:
            try:
                tracker.finish()
            except Exception as error:
                say(f"WARNING: the tracker {_name(tracker)} did not finish: {_one_line(error)}")
        self._opened.clear()


@contextmanager
def open_trackers(accelerator: "Accelerator", config: RunConfig, ranks: Ranks) -> Iterator[Trackers]:
    """The trackers of a config, started on rank 0, with its settings; none on the others. A collective call.

    Raises:
        UserError: one cannot start, on every rank.
    """
    names, run = config.train.trackers, Path(config.run)
    problem = None
    if names and ranks.main:
        from accelerate.tracking import filter_trackers

        try:
            accelerator.log_with = filter_trackers(list(names), logging_dir=run)
            named = {name: {_RUN_NAMES[name]: run.name} for name in names if name in _RUN_NAMES}
            accelerator.init_trackers(PROJECT, config=_flat(config), init_kwargs=named)
        except Exception as error:
            problem = (
                f"train.trackers: {', '.join(names)} cannot start: {_one_line(error)}; set it up as its own "
                "documentation says, or leave it out"
            )
    if told := some_problem(problem) if names else None:
        raise UserError(told)
    trackers = Trackers(accelerator.trackers if names and ranks.main else ())
    try:
        yield trackers
    finally:
        trackers.close()


def _flat(config: RunConfig) -> dict[str, Any]:
    """Every setting by its dotted key, in the types that all trackers take."""
    plain = leaves(config.model_dump(mode="json"))
    return {key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in plain}


def _name(tracker: "GeneralTracker") -> str:
    return str(getattr(tracker, "name", type(tracker).__name__))  # each has one, but not the class above them


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
