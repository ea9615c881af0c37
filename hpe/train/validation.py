"""A validation in the middle of a training, and the checkpoint behind it."""

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from hpe.core.signals import Signals
from hpe.data.batch import Batch
from hpe.models.checkpoints import State
from hpe.train.log import Log
from hpe.train.selection import better
from hpe.train.setup import Job
from hpe.train.step import Learner

if TYPE_CHECKING:
    from hpe.train.metrics import HeadMetrics


def validate_and_save(job: Job, learner: Learner, state: State, log: Log, signal: Signals) -> tuple[State, bool]:
    """Validate, then save: the state with the best value so far, and whether a signal asks to stop.

    A signal ends a validation within a few batches, on all ranks alike. What is saved then stays ``unvalidated``, so
    the restart validates first.
    """
    from hpe.train.metrics import HeadMetrics  # late: torchmetrics takes longer to import than torch

    metrics = HeadMetrics(job.config.model.heads.on)
    batches = _UntilAsked(job, learner, signal)
    seen = learner.validate(batches, metrics, state.samples_seen)
    if not batches.stopped:
        state = _judged(job, learner, state, log, metrics)
        log.faces(state.samples_seen, seen)
    learner.save(job.run, state)
    return state, batches.stopped


def _judged(job: Job, learner: Learner, state: State, log: Log, metrics: "HeadMetrics") -> State:
    """Report the metrics of a validation: the state with the best value so far, no longer ``unvalidated``."""
    state = replace(state, unvalidated=False)
    figures, confusions = metrics.figures()
    log.scalars("val", state.step, state.samples_seen, figures)
    log.confusions(state.samples_seen, confusions)
    value = figures.get(job.selection)
    larger = learner.size_before(state.samples_seen) > learner.size_before(state.best_samples)
    # With `train.small_size` a run begins with small images. Their best value does not count once images are larger.
    # Of equal values the later one counts, as that network has learned longer. With `patience` the first one does:
    # the run would not end while a value stays.
    tied = value is not None and value == state.best and not job.config.train.patience
    if value is not None and (tied or better(job.selection, value, None if larger else state.best)):
        state = replace(state, best=value, best_samples=state.samples_seen)
    if broken := [name for name, figure in figures.items() if not math.isfinite(figure)]:
        job.say(f"WARNING: the network's output is NaN or infinite for some validation samples: {', '.join(broken)}")
    job.say_figures(state, figures, tied=tied)
    return state


class _UntilAsked:
    """This rank's validation batches, until some rank has caught a signal.

    Attributes:
        stopped: whether they ended so.
    """

    def __init__(self, job: Job, learner: Learner, signal: Signals) -> None:
        self._job, self._learner, self._signal, self.stopped = job, learner, signal, False

    def __iter__(self) -> Iterator[Batch]:
        # The last, short batch may be missing on some ranks. `some_rank_asked` is a collective call: a rank that made
        # it alone would wait for ever, so only whole batches, which every rank has, may call it. `Job.validation` uses
        # the batch size of the training, over all ranks.
        whole = self._job.val.samples // self._job.batch
        with self._job.validation() as loader:
            for number, loaded in enumerate(loader):
                if number < whole and self._learner.some_rank_asked(self._signal.received):
                    self.stopped = True
                    break
                yield loaded.batch
            self._job.damage.tell(loader)
