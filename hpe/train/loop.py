"""``hpe train``: streamed, multi-task, distributed, exactly resumable.

A run is a function of (config, seed, samples seen): the order of samples, augmentation, dropout, learning
rate and epochs all follow from one counter, so a run killed on eight GPUs goes on with four.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace

from hpe.config.run import RunConfig
from hpe.core.distributed import Ranks, Signals, signals, some_rank
from hpe.core.errors import EXIT_AGAIN, EXIT_INCOMPLETE, EXIT_OK, NotFiniteError
from hpe.data.batch import Batch
from hpe.models.run_folder import State
from hpe.train.console import Screen, screen
from hpe.train.log import Log
from hpe.train.metrics import HeadMetrics, better
from hpe.train.setup import Job, open_job
from hpe.train.step import Learner


def train(config: RunConfig, *, change_precision: bool = False) -> int:
    """Train, or go on training, the run of a config, as one rank of the job.

    ``change_precision``: a run that has begun may go on in another precision.

    Returns:
        The exit code: 0; 1 when samples could not be read (they are named); 75 when a signal asked to stop
        and everything is saved.

    Raises:
        UserError: the config cannot work; every reason is in the message.
        NotFiniteError: the loss is no number any more.
    """
    ranks = Ranks.from_environment()
    code = _train(config, ranks, change_precision=change_precision)
    # Asked when everything is written: a launcher ends the other ranks with the first that leaves with an error.
    return EXIT_INCOMPLETE if some_rank(code == EXIT_INCOMPLETE) else code


def _train(config: RunConfig, ranks: Ranks, *, change_precision: bool) -> int:
    with ExitStack() as stack:
        job = stack.enter_context(open_job(config, ranks, change_precision=change_precision))
        learner = Learner(job.config, job.network, job.losses, job.epoch_samples, ranks, job.accelerator)
        state = learner.load(job.resume) if job.resume else State(samples_seen=0, step=0)
        if (job.config.train.layer_decay, job.config.train.head_rate) != (1.0, 1.0):
            job.say("\n  ".join(["parts that learn at rates of their own:", *learner.groups]))
        log = stack.enter_context(Log(job.run, ranks, state.samples_seen, unvalidated=state.unvalidated))
        log.start(state.step, state.samples_seen, {"precision": job.precision.name, "why": job.precision.why})
        shown = stack.enter_context(
            screen(f"train {job.run.name}", job.total_samples, done=state.samples_seen, epochs=config.train.epochs)
        )
        try:
            return loop(job, learner, state, log, shown, stack.enter_context(signals()))
        except NotFiniteError as error:
            raise NotFiniteError(f"{job.run}: {error}; the last good checkpoint is {job.last() or 'none'}") from error
        finally:
            job.damage.close()


def loop(job: Job, learner: Learner, state: State, log: Log, shown: Screen, caught: Signals) -> int:
    """Step from a state to the run's end, or until a signal; the exit code, as of :func:`train`."""
    settings = job.config.train
    learner.start(state)
    stop = False
    with job.batches(state.samples_seen) as loader:
        while not stop and (state.unvalidated or not _done(job, state)):
            if not state.unvalidated:  # else a signal has ended the validation that was due here, and it comes first
                loaded = next(loader)
                due = _validation_due(job, state, loaded.samples_seen)
                logged = due or state.step == 0 or (state.step + 1) % settings.log_steps == 0
                stop = learner.step(loaded, state, stop=caught.caught is not None, logged=logged)
                shown.advance(loaded.samples_seen - state.samples_seen)
                state = replace(state, samples_seen=loaded.samples_seen, step=state.step + 1, unvalidated=due)
                if logged:
                    shown.train(learner.log(state, log, loader))
                    job.damage.tell(loader)
            validated = False
            if state.unvalidated and not stop:
                state = _validate(job, learner, state, log, shown, caught)
                validated, stop = not state.unvalidated, state.unvalidated
            if validated or stop or (settings.checkpoint_steps and state.step % settings.checkpoint_steps == 0):
                learner.save(job.run, state, best=validated and state.best_samples == state.samples_seen)
        job.damage.tell(loader)
    if stop:
        job.say(f"stopped by a signal after {state.samples_seen:,} samples; saved: the same command goes on")
        return EXIT_AGAIN
    job.finish(state, log)
    return EXIT_INCOMPLETE if job.damage.count else EXIT_OK


def _done(job: Job, state: State) -> bool:
    return state.samples_seen >= job.total_samples or _out_of_patience(job, state)


def _validation_due(job: Job, state: State, samples_seen: int) -> bool:
    """Whether the step from a state to a position ends an interval between validations, or the run."""
    between = job.config.train.validate_epochs * job.epoch_samples
    return samples_seen // between > state.samples_seen // between or samples_seen >= job.total_samples


def _out_of_patience(job: Job, state: State) -> bool:
    settings = job.config.train
    patience = settings.patience * settings.validate_epochs * job.epoch_samples
    since = max(state.best_samples, settings.small_epochs * job.epoch_samples)
    return bool(patience) and state.samples_seen - since >= patience


def _validate(job: Job, learner: Learner, state: State, log: Log, shown: Screen, caught: Signals) -> State:
    """Metrics on the validation split: the state with the best figure so far, no longer ``unvalidated``.

    A signal ends it within a few batches, on all ranks alike; then the state is what it was.
    """
    metrics = HeadMetrics(job.config.model.heads.on)
    batches = _UntilAsked(job, learner, caught)
    seen = learner.validate(batches, metrics, state.samples_seen)
    if batches.stopped:
        return state
    state = replace(state, unvalidated=False)
    figures, confusions = metrics.figures()
    shown.val(figures)
    log.scalars("val", state.step, state.samples_seen, figures)
    log.confusions(state.samples_seen, confusions)
    log.faces(state.samples_seen, seen)
    value = figures.get(job.selection)
    larger = learner.size_before(state.samples_seen) > learner.size_before(state.best_samples)
    if value is not None and better(job.selection, value, None if larger else state.best):  # forgets small pictures'
        state = replace(state, best=value, best_samples=state.samples_seen)
    if broken := [name for name, figure in figures.items() if not math.isfinite(figure)]:
        job.say(f"WARNING: the network gives no finite numbers for some validation samples: {', '.join(broken)}")
    job.say_figures(state, figures)
    return state


class _UntilAsked:
    """This rank's validation batches, until some rank has caught a signal.

    Attributes:
        stopped: whether they ended so.
    """

    def __init__(self, job: Job, learner: Learner, caught: Signals) -> None:
        self._job, self._learner, self._caught, self.stopped = job, learner, caught, False

    def __iter__(self) -> Iterator[Batch]:
        # A last, short batch is not there on every rank, and ranks that ask must ask together.
        shared = self._job.val.samples // self._job.batch
        with self._job.validation() as loader:
            for number, loaded in enumerate(loader):
                if number < shared and self._learner.some_rank(self._caught.caught is not None):
                    self.stopped = True
                    break
                yield loaded.batch
            self._job.damage.tell(loader)
