"""``hpe study``: the thesis from shards and pose tables to its tables, in one command that can be killed and resumed.

::

    STUDY/
        study.yaml                     resolved config
        pose/                          pose tables with the study's own direction network, where it trains one
        sets/baseline/ sets/proposed/  balanced shards with their pose tables
        runs/SET-MODEL-seedK/          run folders; done.json marks the finished ones
        logs/                          output of each run
        study.json  study.md           the tables
        report/index.html              the tables as a page
"""

import itertools
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Final

from hpe.config.run import HeadsConfig
from hpe.core.console import say
from hpe.core.errors import EXIT_AGAIN, EXIT_INCOMPLETE, EXIT_OK, UserError, unwritable
from hpe.core.files import locked, rename_aside, write_text
from hpe.core.progress import Bar, progress
from hpe.core.ranks import Ranks
from hpe.data.shard_files import refuse_remote
from hpe.study.config import (
    CONFIG_FILE,
    DIRECTION_ALONE,
    DIRECTION_SET,
    EMOTION_ALONE,
    FROM_RECORDS,
    HOG,
    NATURAL,
    NETWORK_RULE,
    RUNS,
    NetworkConfig,
    StudyConfig,
    changes,
    every_network,
    load_study,
    run_config,
    run_folder,
    seeds_of,
    trial_config,
)
from hpe.study.jobs import BoostJob, JobResult, NamedShards, StudyJob, TrainJob, missing_tests, run_jobs
from hpe.study.sets import (
    TRUE_RULE,
    BalancedSet,
    StudyData,
    add_true_directions,
    available_rules,
    balanced_sets,
    pose_tables_from_records,
    study_data,
)

LOGS: Final = "logs"
_LOCK: Final = ".lock"
_ALONE: Final = Ranks(0, 1, 0, 1)
"""A study trains each network on one process."""


def study(config: StudyConfig, *, jobs: int, new: bool) -> int:
    """Do what is missing of a study, and write its tables.

    Args:
        config: the study.
        jobs: number of runs at a time.
        new: set an earlier study of this folder aside.

    Returns:
        The exit code: 1 when a run failed (it is named; the tables contain the others), 75 when stopped.

    Raises:
        UserError: a mistake in the config or the data, before anything is trained.
    """
    from hpe.report import report
    from hpe.study.thesis_tables import write_tables

    _check(config)
    with _study_folder(config, new=new):
        direction_jobs = _direction_jobs(config)
        ended: list[JobResult] = []
        network = _network_for_proposed_set(config)
        if network is not None and missing_tests(network):
            _say("training the direction network first: the proposed set needs its directions")
            ended, stopped = _run("study: direction network", [network], config, 1)
            if stopped:
                return _stopped(config)
            if missing_tests(network):
                raise UserError(f"{network.run}: {ended[-1].problem or 'did not finish'}")
        data = study_data(config, network.run if network else None)
        sets = balanced_sets(config, data)
        # AdaBoost comes last, as it may use the features of a network.
        phases: dict[str, Sequence[StudyJob]] = {
            "study: networks": [*direction_jobs, *_network_jobs(config, data, sets)],
            "study: AdaBoost": _boost_jobs(config, data, sets),
        }
        for title, phase in phases.items():
            more, stopped = _run(title, phase, config, jobs)
            ended += more
            if stopped:
                return _stopped(config)
        print(write_tables(config, data))
        for page in report([config.folder]):
            print(page)
    failed = [one for one in ended if one.problem]
    for one in failed:
        say(f"hpe: {one.run}: {one.problem}")
    if failed:
        _say(f"{len(failed)} runs failed and are absent from the tables; fix the cause and run the same command again")
    return EXIT_INCOMPLETE if any(one.code != EXIT_OK for one in ended) else EXIT_OK


def _say(text: str) -> None:
    say(f"study: {text}")


def _stopped(config: StudyConfig) -> int:
    _say(f"stopped; finished runs in {config.folder / RUNS} are kept; run the same command again to resume")
    return EXIT_AGAIN


def _check(config: StudyConfig) -> None:
    """Check that the shards are local, that every network can be trained on the study's images, and that every file of
    weights exists.

    Raises:
        UserError: every mistake found.
    """
    for named in (config.shards, config.pose, *([config.directions.shards] if config.directions else [])):
        refuse_remote(named, "`hpe balance` makes local sets of remote shards; or copy the folder here first")
    if problems := [problem for one in every_network(config) for problem in _network_problems(config, *one)]:
        raise UserError("\n".join(problems))


def _network_problems(config: StudyConfig, where: str, network: NetworkConfig, heads: HeadsConfig) -> Iterator[str]:
    import torch

    from hpe.models.backbones import outline
    from hpe.train.preflight import impossible

    size = config.pictures.size
    if network.weights not in ("none", "hub") and not Path(network.weights).is_file():
        yield f"{where}.weights: {network.weights}: no such file; expected none, hub or a file"
    if network.backbone == "angles" and where.startswith("networks"):
        yield (
            f"{where}.backbone: angles reads the angles alone, not the image, and so no emotion; it belongs under "
            "directions"
        )
        return
    yield from (f"{where}: {problem}" for problem in impossible(trial_config(config, network, heads), _ALONE))
    try:
        backbone, _ = outline(network.backbone, stem=network.stem)
        # On the meta device only shapes are computed, which needs neither time nor memory.
        backbone(torch.empty((2, 3) if network.backbone == "angles" else (2, 3, size, size), device="meta"))
    except UserError as error:
        yield f"{where}: {error}"
    except (RuntimeError, ValueError, AssertionError) as error:
        yield (
            f"{where}: {network.backbone} cannot take pictures of {size} pixels "
            f"({str(error).splitlines()[0][:120]}); use another pictures.size"
        )


@contextmanager
def _study_folder(config: StudyConfig, *, new: bool) -> Iterator[None]:
    """Hold the study's folder for this process; a refusal before the first run leaves nothing there.

    Raises:
        UserError: the folder holds something else, another process works there, or the config has changed.
    """
    folder = config.folder
    with ExitStack() as stack:
        try:
            if new and (folder / CONFIG_FILE).is_file():
                with _lock(folder):
                    aside = rename_aside(folder)
                _say(f"the earlier study is now {aside}")
            folder.mkdir(parents=True, exist_ok=True)
            others = sorted(path.name for path in folder.iterdir() if path.name != _LOCK)
            if others and not (folder / CONFIG_FILE).is_file():
                raise UserError(
                    f"{folder}: not a study, but it holds {', '.join(others[:5])}; choose another `study` folder"
                )
            stack.enter_context(_lock(folder))
            if not _has_runs(folder):  # sets and tables may be of another config, or of shards that were packed again
                _remove_sets(folder)
            elif (folder / CONFIG_FILE).is_file() and (changed := changes(load_study(folder), config)):
                raise UserError(
                    f"{folder}: this study was started with another config; choose another `study` folder, or start "
                    "over with --new\n" + "\n".join(f"  {line}" for line in changed)
                )
            write_text(folder / CONFIG_FILE, config.dump())
        except OSError as error:
            raise unwritable(f"study: {folder}", error, "choose another folder") from error
        # Outside of the block above: an OSError of a run must not be reported as a folder that cannot be written to.
        try:
            yield
        except UserError:
            if not _has_runs(folder):
                _remove_sets(folder)
                if not {path.name for path in folder.iterdir()} - {CONFIG_FILE, _LOCK}:
                    shutil.rmtree(folder, ignore_errors=True)
            raise


def _has_runs(folder: Path) -> bool:
    return (folder / RUNS).exists() or (folder / LOGS).exists()


def _remove_sets(folder: Path) -> None:
    """Remove what a study makes before its first run."""
    for made in ("sets", "pose"):
        shutil.rmtree(folder / made, ignore_errors=True)


def _lock(folder: Path) -> AbstractContextManager[None]:
    return locked(
        folder / _LOCK, f"{folder}: another process runs this study; wait for it, or choose another `study` folder"
    )


def _run(title: str, jobs: Sequence[StudyJob], config: StudyConfig, processes: int) -> tuple[list[JobResult], bool]:
    """Do the jobs that are not done, with progress; see :func:`hpe.study.jobs.run_jobs`."""
    todo = sum(bool(missing_tests(job)) for job in jobs)
    if not todo:
        return [], False
    with progress(title, len(jobs), unit="runs", done=len(jobs) - todo) as bar:
        return run_jobs(jobs, config.folder / LOGS, processes, lambda result: _show(result, bar))


def _show(result: JobResult, bar: Bar) -> None:
    bar.advance()
    how = result.problem.splitlines()[0] if result.problem else f"done in {result.seconds:,.0f} s"
    _say(f"{result.run.name}: {'stopped' if result.code == EXIT_AGAIN else how}")


def _direction_jobs(config: StudyConfig) -> list[TrainJob]:
    """The runs of Table 3.4."""
    if config.directions is None:
        return []
    shards, pose = Path(config.directions.shards), Path(config.directions.pose)
    if config.directions.pose == FROM_RECORDS:
        pose = pose_tables_from_records(shards, config.folder / "pose" / f"{DIRECTION_SET}-{FROM_RECORDS}")
    labelled = add_true_directions(shards, pose, config.folder / "pose" / DIRECTION_SET)
    test = NamedShards("test", str(shards), "test", str(labelled))
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


def _network_for_proposed_set(config: StudyConfig) -> TrainJob | None:
    """The run whose directions the proposed set uses, where the study trains that network itself."""
    network = config.angle_network
    if network is None or not config.sets_may_need_network or NETWORK_RULE in available_rules(config):
        return None
    run = run_folder(config, DIRECTION_SET, network.name, config.seeds[0])
    return next(job for job in _direction_jobs(config) if job.run == run)


def _tests(config: StudyConfig, data: StudyData, sets: dict[str, BalancedSet]) -> tuple[NamedShards, ...]:
    found = [NamedShards(name, str(one.shards), "test", str(one.pose)) for name, one in sets.items()]
    if config.natural_test:
        found.append(NamedShards(NATURAL, str(data.shards), "test", str(data.pose)))
    return tuple(found)


def _network_jobs(config: StudyConfig, data: StudyData, sets: dict[str, BalancedSet]) -> list[TrainJob]:
    tests = _tests(config, data, sets)

    def job(network: NetworkConfig, name: str, seed: int) -> TrainJob:
        made = run_config(
            config, network, run=run_folder(config, name, network.name, seed), seed=seed,
            shards=sets[name].shards, pose=sets[name].pose, direction=sets[name].rule, heads=EMOTION_ALONE,
        )  # fmt: skip
        return TrainJob(made, tests, config.replicates)

    # Seeds in the outer loop: a study that is stopped early has every model once, rather than one model completely.
    return [job(one, name, seed) for seed in config.seeds for one in config.networks for name in one.sets]


def _boost_jobs(config: StudyConfig, data: StudyData, sets: dict[str, BalancedSet]) -> list[BoostJob]:
    tests = _tests(config, data, sets)
    return [
        BoostJob(
            run_folder(config, name, one.name, seed), one,
            None if one.features == HOG else run_folder(config, name, one.features, seed),
            NamedShards("train", str(sets[name].shards), "train", str(sets[name].pose)),
            sets[name].rule, one.seed_of_trees(seed), tests, config.replicates,
        )
        for one in config.boosted for seed in seeds_of(config, one.name) for name in one.sets
    ]  # fmt: skip
