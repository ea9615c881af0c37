"""A training is killed without warning, started again, and must end where an untouched one ends."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

from hpe.config.run import RunConfig
from hpe.config.strict_yaml import load
from hpe.core.ranks import end_with_parent
from hpe.models import checkpoints
from hpe.models.checkpoints import State
from hpe.tools.gpucheck import Row, attempt
from hpe.tools.gpucheck.place import Place
from hpe.train import train

_CHECKPOINTS: Final = 10
"""In a run: the kill comes after the second."""
_POLL_SECONDS: Final = 0.01
_NAME: Final = "kill and resume"


def resume(place: Place) -> Iterator[Row]:
    """Check 7: ``hpe train``, killed with SIGKILL after its second checkpoint, resumes and finishes."""
    yield attempt(_NAME, lambda: _resumed(place))


def _resumed(place: Place) -> Row:
    steps = place.sizes.resume_steps
    killed, whole = Path(_write(place, "killed")), Path(_write(place, "whole"))
    first = _train(place, killed)
    saved = _kill_after(first, killed)
    # The very last one may have been written, but not yet be the one to resume from.
    written = {path: when for path, when in _times(killed).items() if int(path.name.removeprefix("step-")) <= saved}
    _finished(_train(place, killed))
    if code := train(load(_config_of(whole), RunConfig)):
        raise RuntimeError(f"an untouched training ended with exit code {code}")
    state, expected = (State.load(checkpoints.find_checkpoint(run, "last")) for run in (killed, whole))
    difference = largest_difference(killed, whole)
    values = {
        "killed_after_steps": saved,
        "samples_seen": state.samples_seen,
        "expected_samples": steps * place.sizes.batch,
        "largest_weight_difference": difference,
    }
    return judged(
        values,
        again=any(_times(killed).get(path) != when for path, when in written.items()),
        whole=expected.samples_seen,
        exact=place.kind == "cpu",
    )


def judged(values: dict[str, float], *, again: bool, whole: int, exact: bool) -> Row:
    """The row of a run that was killed and resumed.

    Args:
        values: what was measured.
        again: whether the second start wrote checkpoints that the first had written: then it did not resume.
        whole: samples that the untouched run has seen.
        exact: whether the weights must be equal: on a CPU they are, GPUs add in any order.
    """
    seen, expected, difference = (
        values[name] for name in ("samples_seen", "expected_samples", "largest_weight_difference")
    )
    text = f"killed after step {values['killed_after_steps']:.0f}, finished with {seen:,.0f} samples seen"
    apart = f"weights differ by at most {difference:.2g} from those of an untouched run"
    if again:
        return Row(_NAME, "bad", "the second start began anew instead of resuming", values)
    if not seen == expected == whole:
        wanted = f"expected {expected:,.0f} (the untouched run has {whole:,})"
        return Row(_NAME, "bad", f"{text}, {wanted}", values)
    if exact and difference != 0:
        return Row(_NAME, "bad", f"{apart}; on a CPU they must be equal", values)
    return Row(_NAME, "ok", f"{text}; {apart}", values)


def _write(place: Place, name: str) -> str:
    """A run's config beside its folder; the folder."""
    steps = place.sizes.resume_steps
    config = place.config(
        name, "model.backbone=tiny", "train.optimizer=sgd", f"train.checkpoint_steps={max(1, steps // _CHECKPOINTS)}",
        f"train.keep={2 * _CHECKPOINTS}", steps=steps,
    )  # fmt: skip
    _config_of(Path(config.run)).parent.mkdir(parents=True, exist_ok=True)
    _config_of(Path(config.run)).write_text(config.dump(), encoding="utf-8")
    return config.run


def _config_of(run: Path) -> Path:
    return run.with_name(f"{run.name}.yaml")


def _train(place: Place, run: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "hpe", "train", str(_config_of(run))],
        env=place.environment(), stdout=2,  # into the check's log
        start_new_session=True, preexec_fn=partial(end_with_parent, signal.SIGKILL),
    )  # fmt: skip


def _kill_after(process: subprocess.Popen[bytes], run: Path) -> int:
    """Kill a training and its readers when it has saved twice; the step of its last checkpoint."""
    try:
        while len(checkpoints.saved(run)) < 2:
            if process.poll() is not None:
                raise RuntimeError(f"hpe train ended with exit code {process.returncode} before it could be killed")
            time.sleep(_POLL_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise RuntimeError(f"hpe train ended with exit code {process.returncode} before it could be killed")
    return State.load(checkpoints.find_checkpoint(run, "last")).step


def _finished(process: subprocess.Popen[bytes]) -> None:
    try:
        if code := process.wait():
            raise RuntimeError(f"hpe train ended with exit code {code}")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _times(run: Path) -> dict[Path, int]:
    """When each checkpoint was written."""
    return {path: (path / "state.json").stat().st_mtime_ns for path in checkpoints.saved(run)}


def largest_difference(one: Path, other: Path) -> float:
    """Between the weights that two runs ended with."""
    weights = [
        checkpoints.load_tensors(checkpoints.find_checkpoint(run, "last") / "model.safetensors") for run in (one, other)
    ]
    if weights[0].keys() != weights[1].keys():
        raise RuntimeError("the two runs hold other weights")
    return max(float((weights[0][name].double() - weights[1][name].double()).abs().max()) for name in weights[0])
