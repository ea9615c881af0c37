"""The checkpoints of a run: what they hold, how they are written, found and read."""

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Self

import torch
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hpe.config.run import RunConfig
from hpe.core.errors import UserError
from hpe.core.files import sync, write_json
from hpe.models.run_folder import (
    CHECKPOINTS,
    CONFIG,
    DONE_SHARE,
    PRETRAINED,
    STATE,
    is_finite,
    logged,
    reached_epoch,
    refuse_absent,
)

SHARED_WEIGHTS: Final = "model.safetensors"
"""Of a folder of ``save_pretrained``."""
_STEP: Final = re.compile(r"step-(\d{8,})")

Position = Annotated[int, Field(ge=0, lt=2**62)]


@dataclass(frozen=True, slots=True)
class State:
    """The position of a run. Everything else follows from ``samples_seen``.

    ``unvalidated``: a signal ended the validation that was due here; a restart does it before the next step.
    """

    samples_seen: Position
    step: Position
    best: float | None = None
    best_samples: Position = 0
    ranks: int = 1
    unvalidated: bool = False

    @property
    def is_best(self) -> bool:
        """Whether the validation at this position gave the best value so far."""
        return self.best_samples == self.samples_seen and self.best is not None

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """The state of a checkpoint folder.

        Raises:
            UserError: it is damaged.
        """
        try:
            return TypeAdapter(cls).validate_json((checkpoint / STATE).read_bytes(), strict=True)
        except (OSError, ValidationError) as error:
            why = str(error)
            if isinstance(error, ValidationError):
                why = "; ".join(": ".join([*map(str, one["loc"]), one["msg"]]) for one in error.errors())
            raise UserError(
                f"{checkpoint}: damaged checkpoint (state.json: {why}); remove this folder to go on from the one before"
            ) from error


def save_checkpoint(
    run: Path,
    state: State,
    network: nn.Module,
    optimizer: Mapping[str, Any],
    *,
    ema: nn.Module | None,
    keep: int,
    best: bool,
) -> Path:
    """Write a checkpoint aside, rename it, point ``last`` (and ``best``) to it, remove old ones.

    A kill or a power cut at any moment leaves the checkpoint before, or this one; never half of it.

    Raises:
        UserError: it could not be written, most often because the disk is full; the checkpoint before is kept.
    """
    folder = run / CHECKPOINTS
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{state.step:08d}"
    _sweep(folder)  # before it is written: what a kill left needs the space of a checkpoint
    part = _aside(target)
    try:
        part.mkdir()
        save_tensors(part / "model.safetensors", _plain(network))
        if ema is not None:
            save_tensors(part / "ema.safetensors", _plain(ema))
        with (part / "optimizer.pt").open("wb") as stream:
            torch.save(dict(optimizer), stream)
        write_json(part / STATE, asdict(state))
        _sync(part)
    except (OSError, SafetensorError, RuntimeError) as error:
        shutil.rmtree(part, ignore_errors=True)
        last = saved(run)[-1:]
        why = error.__context__ if isinstance(error.__context__, OSError) else error  # below torch's own words
        raise UserError(
            f"{target}: could not be written ({str(why).partition(chr(10))[0][:200]}); free some space on this disk, "
            "then run the same command again: "
            + (f"it goes on from {last[0].name}" if last else "it starts over, because nothing is saved yet")
        ) from error
    if target.exists():  # an earlier start of the run saved this step too
        # Renamed, not removed: to remove takes longer, and a kill meanwhile would leave `last` without its target.
        target.rename(_aside(target))
    part.rename(target)
    sync(folder)  # before the links: they must never point to a name that a power cut has undone
    # `last` first: a kill between the two is mended by :func:`restore_best`. The other way round, the run would do
    # this step again, on a GPU perhaps with a worse result, and `best` would point to that.
    for name in ("last", "best") if best else ("last",):
        _link(folder / name, target)
        sync(folder)  # one after the other, and before older checkpoints go: no link may still point to one of them
    _prune(folder, keep)
    return target


def restore_best(last: Path) -> None:
    """Point ``best`` to the checkpoint that a run resumes from, if a kill came before that."""
    best = last.parent / "best"
    with suppress(UserError):  # of a damaged one the resuming tells
        if State.load(last).is_best and best.resolve() != last.resolve():
            _link(best, last)
            sync(last.parent)


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file that others may read as far as the umask lets them: safetensors' own are private.

    Raises:
        OSError, SafetensorError: it could not be written.
    """
    path.touch()
    mode = path.stat().st_mode
    save_file(dict(tensors), path, metadata={"format": "pt"})
    path.chmod(mode)


def _sync(folder: Path) -> None:
    """Wait until the files of a folder, and their names, are on the disk."""
    for path in (*folder.iterdir(), folder):
        sync(path)


def _plain(network: nn.Module) -> dict[str, Tensor]:
    return {key: value.detach().to("cpu").contiguous().clone() for key, value in network.state_dict().items()}


def _link(link: Path, target: Path) -> None:
    part = link.with_name(f".{link.name}.part")
    part.unlink(missing_ok=True)
    part.symlink_to(target.name)
    part.replace(link)


def _prune(folder: Path, keep: int) -> None:
    kept = {link.resolve() for name in ("last", "best") if (link := folder / name).exists()}
    for old in saved(folder.parent)[:-keep]:
        if old.resolve() not in kept:
            old.rename(_aside(old))  # at once it counts no longer, whenever all of it is removed
    _sweep(folder)


def _aside(checkpoint: Path) -> Path:
    """A name beside a checkpoint, not used before, that no reader takes for one."""
    return checkpoint.with_name(f".{checkpoint.name}.{os.urandom(4).hex()}.part")


def _sweep(folder: Path) -> None:
    # NFS keeps a file that some process has open, as `.nfs…`, and so its folder: a later sweep removes them.
    for part in folder.glob(".step-*.part"):
        shutil.rmtree(part, ignore_errors=True)


def saved(run: Path) -> list[Path]:
    """The finished checkpoints of a run, oldest first."""
    found = (run / CHECKPOINTS).glob("step-*")
    finished = (p for p in found if _STEP.fullmatch(p.name) and (p / STATE).is_file())
    return sorted(finished, key=lambda p: int(p.name[5:]))


def find_checkpoint(run: Path, which: str = "best") -> Path:
    """A checkpoint by ``best`` (``last`` where no best was chosen yet), ``last``, or a step's folder name.

    Raises:
        UserError: there is none.
    """
    folder = run / CHECKPOINTS
    for name in (which, "last") if which == "best" else (which,):
        if (folder / name / STATE).is_file():
            return (folder / name).resolve()
    names = [path.name for path in saved(run)]
    if which in ("last", "best") and names:  # the link points to a checkpoint that was removed
        return folder / names[-1]
    if not names:
        refuse_absent(run)
    raise UserError(f"{run}: no checkpoint {which!r}; there are {', '.join(['best', 'last', *names])}")


def not_at_its_end(run: Path, config: RunConfig, which: str) -> Iterator[str]:
    """Warnings about a run whose training goes on, or was stopped, and about a best checkpoint that is none.

    Args:
        run: folder of hpe train.
        config: its own.
        which: the checkpoint that is asked for.
    """
    if which == "best" and saved(run) and not (run / CHECKPOINTS / which).is_dir():
        yield f"No validation has chosen a best checkpoint yet: {find_checkpoint(run).name}, the newest, is taken"
    reached, wanted = reached_epoch(run), config.train.epochs
    if reached is not None and reached < DONE_SHARE * wanted and not _out_of_patience(run, config):
        taken = find_checkpoint(run, which).name
        yield f"The training is at epoch {reached:.3g} of {wanted:g}, {taken} is taken: the same `hpe train` goes on"


def _out_of_patience(run: Path, config: RunConfig) -> bool:
    """Whether ``train.patience`` has ended a run."""
    if not config.train.patience:
        return False
    with suppress(UserError):
        state = State.load(find_checkpoint(run, "last"))
        lines = (line for line in logged(run) if all(is_finite(line.get(name)) for name in ("samples", "epoch")))
        epochs = (round(line["samples"] / line["epoch"]) for line in lines if line["epoch"] > 0)
        if epoch := next(epochs, 0):
            return config.train.out_of_patience(state.samples_seen, state.best_samples, epoch) and not state.unvalidated
    return False


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file of a checkpoint.

    Raises:
        UserError: damaged or missing.
    """
    try:
        return load_file(path)
    except Exception as error:
        raise UserError(f"{path}: cannot read these weights ({str(error).splitlines()[0]})") from error


def weights_of(run: Path, which: str = "best") -> Path:
    """The weights file of a checkpoint, the averaged weights if the run has them; or of a ``save_pretrained`` folder.

    Raises:
        UserError: no such checkpoint.
    """
    if (run / PRETRAINED).is_file() and not (run / CONFIG).is_file():
        if which != "best":
            raise UserError(f"{run}: no checkpoint {which!r}; a shared network has one set of weights, best")
        if not (shared := run / SHARED_WEIGHTS).is_file():
            others = ", ".join(sorted(one.name for one in run.iterdir()))
            raise UserError(f"{run}: no {SHARED_WEIGHTS}; other formats are not read (found: {others})")
        return shared
    checkpoint = find_checkpoint(run, which)
    averaged = checkpoint / "ema.safetensors"
    return averaged if averaged.is_file() else checkpoint / "model.safetensors"


def last_checkpoint(run: Path) -> Path | None:
    """The newest checkpoint of a run, or None."""
    with suppress(UserError):
        return find_checkpoint(run, "last")
    return None
