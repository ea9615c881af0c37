"""``hpe train``: streamed, multi-task, distributed, exactly resumable.

A run is a function of (config, seed, samples seen, number of ranks). The order of samples, augmentation, learning rate
and epochs follow from the samples seen alone, so a run killed on eight GPUs resumes on four with the same samples.
Dropout also depends on the rank and the number of ranks, and batch norms see the samples of their own rank, unless
``train.sync_batch_norm`` is on.
"""

import shlex
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

from hpe.config.run import RunConfig
from hpe.core.console import say
from hpe.core.devices import cores
from hpe.core.distributed import some_rank
from hpe.core.errors import EXIT_AGAIN, EXIT_INCOMPLETE, EXIT_OK, NotFiniteError
from hpe.core.ranks import Ranks
from hpe.core.signals import Interrupted, Signals, signals
from hpe.data.shard_files import names_folder
from hpe.data.shards import MANIFEST, Manifest
from hpe.models.checkpoints import State
from hpe.stream import Loaded, Loader
from hpe.train.console import screen
from hpe.train.log import Log
from hpe.train.setup import Job, open_job, prepare_job
from hpe.train.step import Learner
from hpe.train.trackers import open_trackers
from hpe.train.validation import validate_and_save

_SIGNAL_GRACE_SECONDS: Final = 5.0
"""A signal ends a wait for images of one of several ranks only after so long: until then all stop together."""

_MEASURED_STEPS: Final = 19
"""So many steps of a start are measured before it says how long it will take: the first ones, up to the second line of
the log with the default ``train.log_steps``. The very first one, in which buffers are made, is not counted."""

_LONG_WAIT: Final = 0.2
"""A share of the time that more readers would be worth."""


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


def next_command(config: RunConfig) -> str:
    """The command that evaluates the run of a config: on its validation dataset, there on ``test`` if there is one."""
    one = config.data.val[0]
    shards, split = one.shards if isinstance(one.shards, str) else one.shards[0], one.split
    if (Path(shards) / MANIFEST).is_file() and "test" in Manifest.load(Path(shards)).splits:
        split = "test"  # the validation split chose the checkpoint
    words = ["hpe", "evaluate", config.run, shards]
    words += ["--split", split] if split and names_folder(shards) else []
    words += ["--pose", one.pose] if one.pose else []
    return shlex.join(words)


def _train(config: RunConfig, ranks: Ranks, *, change_precision: bool) -> int:
    with ExitStack() as stack:
        job = stack.enter_context(open_job(config, ranks, change_precision=change_precision))
        learner = Learner(job.config, job.network, job.losses, job.epoch_samples, ranks, job.accelerator)
        state = learner.load(job.resume) if job.resume else State(samples_seen=0, step=0)
        settings = job.config.train
        if settings.layer_decay != 1 or settings.head_rate != 1:
            job.say("\n  ".join(["parts that learn at rates of their own:", *learner.groups]))
        trackers = stack.enter_context(open_trackers(job.accelerator, job.config, ranks))
        shown = stack.enter_context(
            screen(
                f"train {job.run.name}",
                job.total_samples,
                done=state.samples_seen,
                epochs=settings.epochs,
                work=job.timetable.work,
            )
        )
        log = stack.enter_context(Log(job.run, ranks, state, shown, trackers))
        log.start(state, {"precision": job.precision.name, "why": job.precision.why})
        if not state.step:  # once: a resumed run has it already
            log.text("config", job.config.dump())
        try:
            return loop(job, learner, state, log, stack.enter_context(signals()))
        except NotFiniteError as error:
            raise NotFiniteError(f"{job.run}: {error}; the last good checkpoint is {job.last() or 'none'}") from error
        finally:
            job.damage.close()


def loop(job: Job, learner: Learner, state: State, log: Log, signal: Signals) -> int:
    """Train from a state to the end of the run, or until a signal; the exit code, as of :func:`train`."""
    learner.start_interval(state)
    forecast = _Forecast(job, state)
    ended_before = job.timetable.over(state) and not state.unvalidated
    stopping = False  # whether some rank has caught a signal; it changes at the same step on all ranks
    with job.batches(state.samples_seen) as loader:
        if state.unvalidated:  # a signal ended the validation that was due here
            with learner.untimed():
                state, stopping = validate_and_save(job, learner, state, log, signal)
        while not stopping and not job.timetable.over(state):
            try:
                loaded = _next(loader, signal, job.ranks)
            except Interrupted as ended:
                return _interrupted(job, learner, state, waiting=ended.waiting)
            after = replace(state, samples_seen=loaded.samples_seen, step=state.step + 1)
            due = job.timetable.due(state, after)
            # The answer is about the step before, so that no rank waits for it. No sample is lost by that: the state
            # that is saved below includes this step.
            stopping = learner.step(loaded, state, asked_here=signal.received, measure_gradient=due.log)
            state = replace(after, unvalidated=due.validation)  # due, not yet done
            log.advance(job.batch)
            if due.log:
                forecast.tell(state, learner.log(state, log, loader))
                job.damage.tell(loader)
            with learner.untimed():
                if due.validation and not stopping:
                    state, stopping = validate_and_save(job, learner, state, log, signal)
                elif stopping or due.checkpoint:
                    learner.save(job.run, state)
        job.damage.tell(loader)
    if stopping:
        job.say(
            f"stopped by a signal after {state.samples_seen:,} samples; saved: run the same command again to resume"
        )
        return EXIT_AGAIN
    job.say_done(state)
    if not ended_before:  # TensorBoard would list the run once more
        job.log_end(state, log)
    return EXIT_INCOMPLETE if job.damage.count else EXIT_OK


class _Forecast:
    """Says once, after the first steps of a start, how long the training will take, and whether readers hold it up."""

    def __init__(self, job: Job, start: State) -> None:
        self._job, self._start, self._said = job, start, False

    def tell(self, state: State, figures: Mapping[str, float]) -> None:
        """``figures``: of the last steps, as :meth:`Learner.log` gives them."""
        if self._said or state.step - self._start.step < _MEASURED_STEPS:
            return
        self._said = True
        self._job.say(self._job.timetable.forecast(figures["speed/images_per_second"], state.samples_seen))
        waiting, workers = figures["speed/waiting_for_data"], self._job.config.data.workers
        if waiting > _LONG_WAIT and (workers + 1) * self._job.ranks.local_world < cores():
            self._job.say(
                f"{waiting:.0%} of the time goes by waiting for images: raise data.workers (now {workers} for each "
                f"process; this machine has {cores()} cores)"
            )


def _next(loader: Loader, signal: Signals, ranks: Ranks) -> Loaded:
    """The next batch, unless a signal ends the wait. A store may be silent for minutes; schedulers kill sooner."""
    with signal.ending_wait(after_seconds=_SIGNAL_GRACE_SECONDS if ranks.world > 1 else 0.0):
        return next(loader)


def _interrupted(job: Job, learner: Learner, state: State, *, waiting: bool) -> int:
    """End a start whose wait for images a signal has ended. Several ranks cannot save then: the others wait for it.

    Raises:
        SystemExit: one of several ranks leaves at once. Any collective call would meet the one that the others are in.
    """
    if job.ranks.world == 1 and state.step:
        learner.save(job.run, state)
    last = job.last() or "nothing"
    when = " while waiting for images" if waiting else ""
    told = f"stopped by a signal{when}; saved is {last}; run the same command again to resume"
    say(f"{job.run}: {told}")  # on whichever rank it is
    if job.ranks.world > 1:
        raise SystemExit(EXIT_AGAIN)
    return EXIT_AGAIN
