"""``hpe study``: the thesis from shards and pose tables to its tables, in one command that can be killed and goes on.

::

    STUDY/
        study.yaml                     resolved config
        pose/                          pose tables with the study's own direction network, where it trains one
        sets/baseline/ sets/proposed/  balanced shards with their pose tables
        runs/SET-MODEL-seedK/          run folders; done.json marks the finished ones
        logs/                          what each run said
        study.json  study.md           the tables
        report/index.html              the same to look at
"""

import itertools
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from hpe.core.errors import EXIT_AGAIN, EXIT_INCOMPLETE, EXIT_OK, UserError
from hpe.core.files import locked, rename_aside, write_text
from hpe.core.progress import Bar, progress
from hpe.study.config import (
    AUTO,
    DIRECTION_ALONE,
    DIRECTION_SET,
    EMOTION_ALONE,
    FROM_RECORDS,
    HOG,
    NATURAL,
    NETWORK_RULE,
    RUNS,
    SETS,
    STAMP,
    NetworkConfig,
    StudyConfig,
    changes,
    load_study,
    run_config,
    run_folder,
    seeds_of,
)
from hpe.study.jobs import BoostJob, Job, Outcome, TrainJob, Trial, missing, run_jobs
from hpe.study.sets import (
    TRUE_RULE,
    BalancedSet,
    Sources,
    balanced_sets,
    label_directions,
    rules_held,
    sources,
    tables_of_records,
)

LOGS: Final = "logs"
_LOCK: Final = ".lock"


def study(config: StudyConfig, *, jobs: int, new: bool) -> int:
    """Do what is missing of a study, and write its tables.

    Args:
        jobs: runs at a time.
        new: set an earlier study of this folder aside.

    Returns:
        The exit code: 1 when a run failed (it is named; the tables hold the others), 75 when stopped.

    Raises:
        UserError: a mistake in the config or the data, before anything is trained.
    """
    from hpe.report import report
    from hpe.study import tables

    _check(config)
    with _held(config, new=new):
        directions = _direction_jobs(config)
        own = _own_network(config)
        ended: list[Outcome] = []
        if own is not None and missing(own):
            _say("the direction network comes first: the proposed set needs its directions")
            ended, stopped = _run("study: direction network", [own], config, 1)
            if stopped:
                return _stopped(config)
            if missing(own):
                raise UserError(f"{own.run}: {ended[-1].problem or 'did not finish'}")
        given = sources(config, own.run if own else None)
        sets = balanced_sets(config, given)
        phases = {
            "study: networks": [*directions, *_network_jobs(config, given, sets)],
            "study: AdaBoost": _boost_jobs(config, given, sets),
        }
        for title, phase in phases.items():
            more, stopped = _run(title, phase, config, jobs)
            ended += more
            if stopped:
                return _stopped(config)
        failed = [one for one in ended if one.problem]
        print(tables.write(config, given))
        for page in report([config.folder]):
            print(page)
    for one in failed:
        print(f"hpe: {one.run}: {one.problem}", file=sys.stderr, flush=True)
    if failed:
        _say(f"{len(failed)} runs failed, the tables lack them; mend the cause and run the same command again")
    return EXIT_INCOMPLETE if any(one.code != EXIT_OK for one in ended) else EXIT_OK


def _say(text: str) -> None:
    print(f"study: {text}", file=sys.stderr, flush=True)


def _stopped(config: StudyConfig) -> int:
    _say(f"stopped; finished runs in {config.folder / RUNS} are kept: the same command goes on")
    return EXIT_AGAIN


def _check(config: StudyConfig) -> None:
    """Every backbone takes the study's pictures; every weights file is there.

    Raises:
        UserError: all that is wrong.
    """
    import torch

    from hpe.models.backbones import outline

    problems = []
    direction = config.directions.networks if config.directions else []
    named = [(f"networks.{one.name}", one) for one in config.networks]
    for where, network in [*named, *((f"directions.networks.{one.name}", one) for one in direction)]:
        if network.weights not in ("none", "hub") and not Path(network.weights).is_file():
            problems.append(f"{where}.weights: {network.weights}: no such file; expected none, hub or a file")
        if network.backbone == "angles" and where.startswith("networks"):
            problems.append(f"{where}.backbone: angles reads no pictures and so no emotion; it belongs to directions")
            continue
        try:
            backbone, _ = outline(network.backbone, stem=network.stem)
            shape = (2, 3) if network.backbone == "angles" else (2, 3, config.pictures.size, config.pictures.size)
            backbone(torch.empty(shape, device="meta"))
        except UserError as error:
            problems.append(f"{where}: {error}")
        except (RuntimeError, ValueError, AssertionError) as error:
            problems.append(
                f"{where}: {network.backbone} cannot take pictures of {config.pictures.size} pixels "
                f"({str(error).splitlines()[0][:120]}); use another pictures.size"
            )
    if problems:
        raise UserError("\n".join(problems))


@contextmanager
def _held(config: StudyConfig, *, new: bool) -> Iterator[None]:
    """Hold the study's folder for this process; what is refused before the first run leaves nothing there.

    Raises:
        UserError: something else is there, another process works here, or the config has changed.
    """
    folder = config.folder
    with ExitStack() as stack:
        try:
            if new and (folder / STAMP).is_file():
                with _lock(folder):
                    aside = rename_aside(folder)
                _say(f"the earlier study is now {aside}")
            folder.mkdir(parents=True, exist_ok=True)
            strangers = sorted(path.name for path in folder.iterdir() if path.name != _LOCK)
            if strangers and not (folder / STAMP).is_file():
                raise UserError(f"{folder}: not a study, but it holds {', '.join(strangers[:5])}; give another study:")
            stack.enter_context(_lock(folder))
            if not _begun(folder):  # sets and tables may be of another config, or of shards that were packed again
                _clear(folder)
            elif (folder / STAMP).is_file() and (changed := changes(load_study(folder), config)):
                raise UserError(
                    f"{folder}: this study was started with another config; give another study:, or --new to set "
                    "it aside\n" + "\n".join(f"  {line}" for line in changed)
                )
            write_text(folder / STAMP, config.dump())
        except OSError as error:
            raise UserError(f"study: cannot write to {folder} ({error}); choose another folder") from error
        try:
            yield
        except UserError:
            if not _begun(folder):
                _clear(folder)
                if not {path.name for path in folder.iterdir()} - {STAMP, _LOCK}:
                    shutil.rmtree(folder, ignore_errors=True)
            raise


def _begun(folder: Path) -> bool:
    return (folder / RUNS).exists() or (folder / LOGS).exists()


def _clear(folder: Path) -> None:
    """Remove what a study makes before its first run."""
    for made in ("sets", "pose"):
        shutil.rmtree(folder / made, ignore_errors=True)


def _lock(folder: Path) -> AbstractContextManager[None]:
    return locked(folder / _LOCK, f"{folder}: another process is doing this study; wait for it, or give another study:")


def _run(title: str, jobs: Sequence[Job], config: StudyConfig, processes: int) -> tuple[list[Outcome], bool]:
    todo = sum(bool(missing(job)) for job in jobs)
    if not todo:
        return [], False
    with progress(title, len(jobs), unit="runs", done=len(jobs) - todo) as bar:
        return run_jobs(jobs, config.folder / LOGS, processes, lambda outcome: _told(outcome, bar))


def _told(outcome: Outcome, bar: Bar) -> None:
    bar.advance()
    how = outcome.problem.splitlines()[0] if outcome.problem else f"done in {outcome.seconds:,.0f} s"
    _say(f"{outcome.run.name}: {'stopped' if outcome.code == EXIT_AGAIN else how}")


def _direction_jobs(config: StudyConfig) -> list[TrainJob]:
    """The runs of Table 3.4."""
    if config.directions is None:
        return []
    shards, pose = Path(config.directions.shards), Path(config.directions.pose)
    if config.directions.pose == FROM_RECORDS:
        pose = tables_of_records(shards, config.folder / "pose" / f"{DIRECTION_SET}-{FROM_RECORDS}")
    labelled = label_directions(shards, pose, config.folder / "pose" / DIRECTION_SET)
    test = Trial("test", str(shards), "test", str(labelled))
    return [
        TrainJob(
            run_config(
                config, network, run=run_folder(config, DIRECTION_SET, network.name, seed), seed=seed,
                shards=shards, pose=labelled, direction=TRUE_RULE, heads=DIRECTION_ALONE,
            ),
            (test,), config.replicates,
        )
        for network, seed in itertools.product(config.directions.networks, config.seeds)
    ]  # fmt: skip


def _own_network(config: StudyConfig) -> TrainJob | None:
    """The run whose directions the proposed set takes, where the study trains one itself."""
    network = config.angle_network
    wanted = {getattr(config.sets, name).rule for name in SETS} & {AUTO, NETWORK_RULE}
    if network is None or not wanted or NETWORK_RULE in rules_held(config):
        return None
    own = run_folder(config, DIRECTION_SET, network.name, config.seeds[0])
    return next(job for job in _direction_jobs(config) if job.run == own)


def _tests(config: StudyConfig, given: Sources, sets: dict[str, BalancedSet]) -> tuple[Trial, ...]:
    found = [Trial(name, str(one.shards), "test", str(one.pose)) for name, one in sets.items()]
    if config.natural_test:
        found.append(Trial(NATURAL, str(given.shards), "test", str(given.pose)))
    return tuple(found)


def _network_jobs(config: StudyConfig, given: Sources, sets: dict[str, BalancedSet]) -> list[TrainJob]:
    tests = _tests(config, given, sets)

    def job(network: NetworkConfig, name: str, seed: int) -> TrainJob:
        made = run_config(
            config, network, run=run_folder(config, name, network.name, seed), seed=seed,
            shards=sets[name].shards, pose=sets[name].pose, direction=sets[name].rule, heads=EMOTION_ALONE,
        )  # fmt: skip
        return TrainJob(made, tests, config.replicates)

    return [job(one, name, seed) for seed in config.seeds for one in config.networks for name in one.sets]


def _boost_jobs(config: StudyConfig, given: Sources, sets: dict[str, BalancedSet]) -> list[BoostJob]:
    tests = _tests(config, given, sets)
    return [
        BoostJob(
            run_folder(config, name, one.name, seed), one,
            None if one.features == HOG else run_folder(config, name, one.features, seed),
            Trial("train", str(sets[name].shards), "train", str(sets[name].pose)),
            sets[name].rule, seed, tests, config.replicates,
        )
        for one in config.boosted for seed in seeds_of(config, one.name) for name in one.sets
    ]  # fmt: skip
