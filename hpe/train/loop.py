"""``hpe train``: streamed, multi-task, distributed, exactly resumable.

A run is a function of (config, seed, samples seen, number of ranks). The order of samples, augmentation, learning rate
and epochs follow from the samples seen alone, so a run killed on eight GPUs resumes on four with the same samples.
Dropout also depends on the rank and the number of ranks, and batch norms see the samples of their own rank, unless
``train.sync_batch_norm`` is on.
"""

import math
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Final

from hpe.config.run import RunConfig, TrainConfig
from hpe.core.console import say
from hpe.core.distributed import Ranks, some_rank
from hpe.core.errors import EXIT_AGAIN, EXIT_INCOMPLETE, EXIT_OK, NotFiniteError
from hpe.core.signals import Interrupted, Signals, signals
from hpe.data.batch import Batch
from hpe.models.run_folder import State
from hpe.train.console import Screen, screen
from hpe.train.log import Log
from hpe.train.metrics import HeadMetrics, better
from hpe.train.setup import Job, open_job, prepare_job
from hpe.train.step import Learner
from hpe.train.trackers import open_trackers

_SIGNAL_GRACE_SECONDS: Final = 5.0
"""A signal ends a wait for images of one of several ranks only after so long: until then all stop together."""


def train(config: RunConfig, *, change_precision: bool = False) -> int:
    """Train, or go on training, the run of a config, as one rank of the job.

    ``change_precision``: a run that has begun may go on in another precision.

    Returns:
        The exit code: 0; 1 when samples could not be read (they are named); 75 when a signal asked to stop
        and everything is saved.

    Raises:
        UserError: the config cannot work; every reason is in the message.
        NotFiniteError: the loss became NaN or infinite.
    """
    ranks = Ranks.from_environment()
    code = _train(config, ranks, change_precision=change_precision)
    # Last, when everything is written: as soon as one rank leaves with an error, a launcher kills the others.
    return EXIT_INCOMPLETE if some_rank(code == EXIT_INCOMPLETE) else code


def plan(config: RunConfig, *, change_precision: bool = False) -> None:
    """Check a run as :func:`train` does and print what it would do; trains nothing and writes nothing.

    Raises:
        UserError: the config cannot work; every reason is in the message.
    """
    ranks = Ranks.from_environment()
    job = prepare_job(config, ranks, change_precision=change_precision)
    if ranks.main:
        print(job.plan())


def _train(config: RunConfig, ranks: Ranks, *, change_precision: bool) -> int:
    with ExitStack() as stack:
        job = stack.enter_context(open_job(config, ranks, change_precision=change_precision))
        learner = Learner(job.config, job.network, job.losses, job.epoch_samples, ranks, job.accelerator)
        state = learner.load(job.resume) if job.resume else State(samples_seen=0, step=0)
        settings = job.config.train
        if settings.layer_decay != 1 or settings.head_rate != 1:
            job.say("\n  ".join(["parts that learn at rates of their own:", *learner.groups]))
        trackers = stack.enter_context(open_trackers(job.accelerator, job.config, ranks))
        log = Log(job.run, ranks, state.samples_seen, unvalidated=state.unvalidated, trackers=trackers)
        stack.enter_context(log)
        log.start(state.step, state.samples_seen, {"precision": job.precision.name, "why": job.precision.why})
        shown = stack.enter_context(
            screen(f"train {job.run.name}", job.total_samples, done=state.samples_seen, epochs=settings.epochs)
        )
        try:
            return loop(job, learner, state, log, shown, stack.enter_context(signals()))
        except NotFiniteError as error:
            raise NotFiniteError(f"{job.run}: {error}; the last good checkpoint is {job.last() or 'none'}") from error
        finally:
            job.damage.close()


def loop(job: Job, learner: Learner, state: State, log: Log, shown: Screen, signal: Signals) -> int:
    """Train from a state to the end of the run, or until a signal; the exit code, as of :func:`train`."""
    settings = job.config.train
    learner.start(state)
    stop, alone = False, job.ranks.world == 1
    with job.batches(state.samples_seen) as loader:
        if state.unvalidated:  # a signal ended the validation that was due here
            state, stop = _validate_and_save(job, learner, state, log, shown, signal)
        while not stop and not _done(job, state):
            try:
                with signal.ending_wait(after_seconds=0.0 if alone else _SIGNAL_GRACE_SECONDS):
                    loaded = next(loader)
            except Interrupted:  # a store may be silent for minutes, and a scheduler kills sooner
                return _interrupted(job, learner, state)
            after = replace(state, samples_seen=loaded.samples_seen, step=state.step + 1)
            now = due(state, after, settings, epoch_samples=job.epoch_samples, total_samples=job.total_samples)
            # `step` returns whether any rank asked to stop, one step later: the same answer on all ranks, and none
            # waits for it. No sample is lost by that: the state that is saved below includes this step.
            stop = learner.step(loaded, state, stop=signal.received, logged=now.log)
            state = replace(after, unvalidated=now.validation)  # due, not yet done
            shown.advance(job.batch)
            if now.log:
                shown.train(learner.log(state, log, loader))
                job.damage.tell(loader)
            if now.validation and not stop:
                state, stop = _validate_and_save(job, learner, state, log, shown, signal)
            elif stop or now.checkpoint:
                learner.save(job.run, state)
        job.damage.tell(loader)
    if stop:
        job.say(
            f"stopped by a signal after {state.samples_seen:,} samples; saved: run the same command again to resume"
        )
        return EXIT_AGAIN
    job.finish(state, log)
    return EXIT_INCOMPLETE if job.damage.count else EXIT_OK


def _interrupted(job: Job, learner: Learner, state: State) -> int:
    """End a start whose wait for images a signal has ended. Several ranks cannot save then: the others wait for it.

    Raises:
        SystemExit: one of several ranks leaves at once. Any collective call would meet the one that the others are in.
    """
    if job.ranks.world == 1 and state.step:
        learner.save(job.run, state)
    last = job.last() or "nothing"
    told = f"stopped by a signal while waiting for images; saved is {last}; run the same command again to resume"
    say(f"{job.run}: {told}")  # on whichever rank it is
    if job.ranks.world > 1:
        raise SystemExit(EXIT_AGAIN)
    return EXIT_AGAIN


@dataclass(frozen=True, slots=True)
class Due:
    """What follows a step."""

    log: bool
    validation: bool
    checkpoint: bool


def due(before: State, after: State, settings: TrainConfig, *, epoch_samples: int, total_samples: int) -> Due:
    """What follows the step from one state to the next: a pure function, so that all ranks and restarts agree.

    A validation is due where a multiple of ``validate_epochs`` is reached or passed, as batches seldom end on one.
    The first step is logged, so that a user sees at once that the run learns.
    """
    between = settings.validate_epochs * epoch_samples
    passed = after.samples_seen // between > before.samples_seen // between
    validation = passed or after.samples_seen >= total_samples
    return Due(
        log=validation or before.step == 0 or after.step % settings.log_steps == 0,
        validation=validation,
        checkpoint=bool(settings.checkpoint_steps) and after.step % settings.checkpoint_steps == 0,
    )


def _done(job: Job, state: State) -> bool:
    return state.samples_seen >= job.total_samples or _out_of_patience(job, state)


def _out_of_patience(job: Job, state: State) -> bool:
    settings = job.config.train
    patience = settings.patience * settings.validate_epochs * job.epoch_samples
    # Patience counts from the last improvement, at the earliest from where images grow (`train.small_size`): values
    # from small images say nothing about those from large ones.
    start = max(state.best_samples, settings.small_epochs * job.epoch_samples)
    return bool(patience) and state.samples_seen - start >= patience


def _validate_and_save(
    job: Job, learner: Learner, state: State, log: Log, shown: Screen, signal: Signals
) -> tuple[State, bool]:
    """Validate and save: the state with the best value so far, and whether a signal asks to stop.

    A signal ends a validation within a few batches, on all ranks alike. What is saved then stays ``unvalidated``, so
    the restart validates first.
    """
    metrics = HeadMetrics(job.config.model.heads.on)
    batches = _UntilAsked(job, learner, signal)
    seen = learner.validate(batches, metrics, state.samples_seen)
    if not batches.stopped:
        state = _judged(job, learner, state, log, shown, metrics)
        log.faces(state.samples_seen, seen)
    learner.save(job.run, state)
    return state, batches.stopped


def _judged(job: Job, learner: Learner, state: State, log: Log, shown: Screen, metrics: HeadMetrics) -> State:
    """Report the metrics of a validation: the state with the best value so far, no longer ``unvalidated``."""
    state = replace(state, unvalidated=False)
    figures, confusions = metrics.figures()
    shown.val(figures)
    log.scalars("val", state.step, state.samples_seen, figures)
    log.confusions(state.samples_seen, confusions)
    value = figures.get(job.selection)
    larger = learner.size_before(state.samples_seen) > learner.size_before(state.best_samples)
    # With `train.small_size` a run begins with small images. Their best value does not count once images are larger.
    if value is not None and better(job.selection, value, None if larger else state.best):
        state = replace(state, best=value, best_samples=state.samples_seen)
    if broken := [name for name, figure in figures.items() if not math.isfinite(figure)]:
        job.say(f"WARNING: the network's output is NaN or infinite for some validation samples: {', '.join(broken)}")
    job.say_figures(state, figures)
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
