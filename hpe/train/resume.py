"""What a run folder decides about a start: settings recorded there, who trains in it, the checkpoint to resume from."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

from hpe.config.run import RunConfig, differences
from hpe.core.console import log_to, say
from hpe.core.distributed import agree, some_problem
from hpe.core.errors import UserError, unwritable
from hpe.core.files import leftovers, locked
from hpe.core.ranks import Ranks
from hpe.models.checkpoints import last_checkpoint, restore_best
from hpe.models.normalisation import normalisation_of
from hpe.models.run_folder import (
    CHECKPOINTS,
    CONFIG,
    LOCK,
    MESSAGES,
    METRICS,
    TENSORBOARD,
    TrainedOn,
    load_config,
    record,
    strangers_in,
    taken,
)

VISIBLE_SECONDS: Final = 60
"""How long a rank waits for a checkpoint that rank 0 sees. Caches of network file systems last less than that."""
_LOOK_SECONDS: Final = 0.5
_ELSEWHERE: Final = "choose another folder (--run FOLDER)"


def recall(config: RunConfig, *, change_precision: bool = False) -> tuple[RunConfig, str | None]:
    """The config as its run folder continues it, and the precision that the run has used until now.

    What the config leaves open (the numbers of the normalisation, ``auto``) is what the run has used. The precision is
    None for a new run, and with ``change_precision``.

    Raises:
        UserError: the run was started with another config, or its config cannot be read.
    """
    run = Path(config.run)
    before = load_config(run) if (run / CONFIG).is_file() else None
    if config.model.mean is None:
        mean, std = normalisation_of(config.model) if before is None else (before.model.mean, before.model.std)
        config = config.model_copy(update={"model": config.model.model_copy(update={"mean": mean, "std": std})})
    if before is None:
        return config, None
    used = before.train.precision
    open_settings: dict[str, Any] = {}
    if config.train.batch == "auto":
        open_settings["batch"] = before.train.batch
    if config.train.precision == "auto" and not change_precision:
        open_settings["precision"] = used
    config = _with_train(config, open_settings)
    if change_precision:
        before = _with_train(before, {"precision": config.train.precision})
    if changed := differences(before, config):
        way = f"{_ELSEWHERE}, or --new to start over"
        if any(line.startswith("train.precision:") for line in changed):
            way += ", or --change-precision to continue in another precision"
        lines = "\n".join(f"  {line}" for line in changed)
        raise UserError(f"{run}: this run was started with another config; {way}\n{lines}")
    return config, None if change_precision else used


def _with_train(config: RunConfig, settings: Mapping[str, Any]) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=dict(settings))})


@contextmanager
def claim(config: RunConfig, ranks: Ranks, trained_on: Callable[[], TrainedOn]) -> Iterator[Path | None]:
    """Lock the run folder on rank 0, for all ranks; yields the checkpoint to resume from, or None.

    Rank 0 writes the config there, and at the first start of the run what it is trained on (:func:`record`).

    Rank 0 chooses the checkpoint: on a network file system, nodes may see different checkpoints for a while.

    Raises:
        UserError: on every rank: the folder is something else or in use, or a rank does not see the checkpoint.
    """
    run = Path(config.run)
    with ExitStack() as stack:
        problem = found = None
        if ranks.main:
            try:
                stack.enter_context(claim_folder(run, config, trained_on))
                if found := last_checkpoint(run):
                    restore_best(found)
            except UserError as error:
                problem = str(error)
        if problem := agree(problem):
            raise UserError(problem)
        chosen = agree(None if found is None else json.dumps({"name": found.name, "files": _sizes(found)}))
        if chosen is None:
            yield None
            return
        read = json.loads(chosen)
        checkpoint = run / CHECKPOINTS / read["name"]
        if problem := some_problem(_await(checkpoint, read["files"], ranks)):
            raise UserError(problem)
        yield checkpoint


@contextmanager
def claim_folder(run: Path, config: RunConfig, trained_on: Callable[[], TrainedOn]) -> Iterator[None]:
    """Make or reopen the folder of a run, lock it while the block runs, write its records, and log messages there.

    Raises:
        UserError: the folder is something else, or in use.
    """
    stack = ExitStack()
    try:
        run.mkdir(parents=True, exist_ok=True)
        strangers = sorted(p.name for p in strangers_in(run))
        if strangers and not (run / CONFIG).exists():
            raise UserError(f"{run}: not a run folder: it contains {', '.join(strangers[:5])}; {_ELSEWHERE}")
        for name, kind in (
            (CHECKPOINTS, Path.is_dir), (TENSORBOARD, Path.is_dir), (METRICS, Path.is_file), (MESSAGES, Path.is_file)
        ):  # fmt: skip
            if (run / name).exists() and not kind(run / name):
                raise UserError(f"{run / name}: is not what hpe train makes there; remove it, or {_ELSEWHERE}")
        stack.enter_context(locked(run / LOCK, taken(run)))
        # Under the lock: since `recall`, another process may have started here and ended.
        recall(config, change_precision=True)
        for part in leftovers(run / CONFIG):
            part.unlink(missing_ok=True)
        record(run, config, trained_on)
        stack.enter_context(log_to(run / MESSAGES))
    except OSError as error:
        stack.close()
        raise unwritable(f"run: {run}", error, _ELSEWHERE) from error
    except BaseException:
        stack.close()
        raise
    with stack:
        yield


def _sizes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file()}


def _await(checkpoint: Path, files: Mapping[str, int], ranks: Ranks) -> str | None:
    """Wait until this rank sees the checkpoint as rank 0 does; if it does not within a minute, what is wrong."""
    start, told = time.monotonic(), False
    while True:
        try:
            seen = _sizes(checkpoint)
        except OSError as error:
            seen, why = {}, f"{error.strerror or error}"
        else:
            why = "files are missing or not whole: " + ", ".join(n for n, size in files.items() if seen.get(n) != size)
        if all(seen.get(name) == size for name, size in files.items()):
            return None
        waited = time.monotonic() - start
        if waited >= VISIBLE_SECONDS:
            return (
                f"{checkpoint}: rank 0 resumes from this checkpoint, but it cannot be seen here after {waited:.0f} s "
                f"({why}); put the run into a folder that all nodes share"
            )
        if not told:
            say(f"{checkpoint}: rank {ranks.rank} waits until it sees this checkpoint")
            told = True
        time.sleep(_LOOK_SECONDS)
