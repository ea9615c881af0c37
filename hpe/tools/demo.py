"""``hpe demo``: the whole pipeline on rendered heads, as the very commands that a user would type.

pack → train (a pose estimator) → pose → train (the joint network, on several processes) → evaluate → report.
"""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.config import recipes
from hpe.config.strict_yaml import setting
from hpe.core.errors import EXIT_AGAIN, EXIT_OK, EXIT_USAGE, UserError
from hpe.core.files import locked, rename_aside, write_json
from hpe.core.launch import refuse_processes, several
from hpe.core.ranks import end_with_parent

STAMP: Final = "demo.json"
LOCK: Final = ".lock"
_SIGNALS: Final = {signal.SIGINT: signal.SIGINT, signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM}
_BOUNDS: Final = {"emotion accuracy": 0.90, "direction accuracy": 0.90, "pose MAE": 5.0}


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of the demo."""

    name: str
    arguments: tuple[str, ...]


def stages(out: Path, *, seed: int, processes: int, count: int, people: int) -> list[Stage]:
    """The demo's commands.

    Args:
        out: folder of everything that the demo writes.
        seed: of the heads and of both trainings.
        processes: for the joint training.
        count, people: how many pictures of how many people.
    """
    shards, pose, joint = out / "shards", out / "pose", out / "multitask"
    tables = shards / "pose" / "demo"
    both = [setting(f"data.{split}.0.shards", str(shards)) for split in ("train", "val")]
    tabled = [setting(f"data.{split}.0.pose", str(tables)) for split in ("train", "val")]
    options = [f"count={count}", f"people={people}", f"seed={seed}", "size=64"]
    return [
        Stage("pack", ("pack", "synthetic", str(shards), "--size", "64", *_each("--option", options))),
        Stage(
            "train pose",
            ("train", str(recipes.folder() / "demo_pose.yaml"), "--run", str(pose), *_sets(both, seed)),
        ),
        Stage("pose", ("pose", str(shards), "--estimator", str(pose), "--name", "demo")),
        Stage(
            "train joint",
            (
                *("train", str(recipes.folder() / "demo_multitask.yaml"), "--run", str(joint)),
                *("--processes", str(processes), *_sets([*both, *tabled, setting("model.weights", str(pose))], seed)),
            ),
        ),
        Stage("evaluate", ("evaluate", str(joint), str(shards), "--split", "test", "--name", "test")),
        Stage("report", ("report", str(joint))),
    ]


def _sets(settings: Sequence[str], seed: int) -> list[str]:
    return _each("--set", [*settings, f"seed={seed}"])


def _each(flag: str, values: Sequence[str]) -> list[str]:
    return [part for value in values for part in (flag, value)]


def demo(out: Path, *, seed: int, processes: int | None, count: int, people: int, new: bool) -> int:
    """Run every stage; what an earlier, interrupted demo has finished is not done again.

    Args:
        out, seed, count, people: see :func:`stages`.
        processes: for the joint training; None: two, or one where there is a single GPU.
        new: set the folder of an earlier demo aside.

    Returns:
        The exit code: 0; 75 when a signal stopped a stage, which has saved what it had.

    Raises:
        UserError: the folder holds something else, a demo with other settings, or one that still runs; or a
            stage failed.
    """
    settings = {"seed": seed, "count": count, "people": people}
    start = time.monotonic()
    if processes is None:
        processes = several()
    refuse_processes(processes)  # rather than after the minutes of the stages before
    todo = stages(out, seed=seed, processes=processes, count=count, people=people)
    with _claim(out, settings, new=new):
        for number, stage in enumerate(todo, 1):
            print(f"\n[{number}/{len(todo)}] hpe {shlex.join(stage.arguments)}", file=sys.stderr, flush=True)
            try:
                finished = _run(stage)
            except UserError:
                _forget_if_empty(out)
                raise
            if not finished:
                print(f"hpe: stopped in {stage.name!r}; run the same command again to resume", file=sys.stderr)
                return EXIT_AGAIN
        _summary(out, settings, time.monotonic() - start)
    return EXIT_OK


def _claim(out: Path, settings: dict[str, int], *, new: bool) -> ExitStack:
    """The demo's folder, for this process alone as long as the returned context is entered."""
    stamp = out / STAMP
    try:
        if new and stamp.exists():
            with _lock(out):
                rename_aside(out)
        out.mkdir(parents=True, exist_ok=True)
        if not stamp.exists() and any(path.name != LOCK for path in out.iterdir()):
            raise UserError(f"{out}: is not empty, and was not made by a demo; choose another folder with --out")
        with ExitStack() as on_error:
            on_error.enter_context(_lock(out))
            before = _read_stamp(stamp) if stamp.exists() else settings
            if before != settings:
                raise UserError(
                    f"{out}: an earlier demo used {before}, this one {settings}; "
                    "choose another folder with --out, or start over with --new"
                )
            write_json(stamp, settings)
            return on_error.pop_all()
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"{out}: cannot write the demo here ({error}); choose another folder with --out") from error


def _read_stamp(stamp: Path) -> dict[str, int]:
    """The settings of the demo that made this folder; a spoilt file is a user's mistake."""
    try:
        found = json.loads(stamp.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError("not a mapping")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"{stamp}: is damaged, so the settings of the demo in this folder are unknown; "
            "start over with --new, or choose another folder with --out"
        ) from error
    return found


def _forget_if_empty(out: Path) -> None:
    """Take the stamp away where the demo has made nothing: its settings then bind no later one."""
    if all(path.is_dir() or path in {out / STAMP, out / LOCK} for path in out.rglob("*")):
        (out / STAMP).unlink(missing_ok=True)


def _lock(out: Path) -> AbstractContextManager[None]:
    return locked(out / LOCK, f"{out}: another demo is running here; wait for it, or choose another folder with --out")


def _run(stage: Stage) -> bool:
    """Run a command to its end; False when a signal to this process, handed on, has stopped it.

    The command has a session of its own, so that a Ctrl-C reaches it once: the second one would end a training
    before it has saved.
    """
    caught: list[int] = []

    def hand_on(number: int, _frame: object) -> None:
        caught.append(number)
        process.send_signal(_SIGNALS[signal.Signals(number)])

    command = [sys.executable, "-m", "hpe", *stage.arguments]
    process = subprocess.Popen(command, start_new_session=True, preexec_fn=end_with_parent)
    before = {number: signal.signal(number, hand_on) for number in _SIGNALS}
    try:
        code = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if code and not caught:
        way_out = "correct that first" if code == EXIT_USAGE else "run the same command again to resume there"
        raise UserError(f"the stage {stage.name!r} ended with exit code {code} (see above); {way_out}")
    return not caught


def _summary(out: Path, settings: dict[str, int], seconds: float) -> None:
    found = json.loads((out / "multitask" / "evaluate" / "test.json").read_text(encoding="utf-8"))
    print(f"\nDemo on rendered people that were not in training (seed {settings['seed']}), {seconds / 60:.1f} minutes")
    for name, value, unit in headline(found):
        bound = _BOUNDS[name]
        good = value <= bound if unit else value >= bound
        relation = "at most" if unit else "at least"
        print(f"  {name:20}{value:8.3f}{unit}   {'ok' if good else 'LOW'} ({relation} {bound:g}{unit} expected)")
    print(f"\n  report       {(out / 'multitask' / 'report' / 'index.html').resolve()}")
    print(f"  faces        {(out / 'shards').resolve()}/contact-*.jpg")
    print(f"  TensorBoard  {_tensorboard()} --logdir {shlex.quote(os.fspath(out))}")


def _tensorboard() -> str:
    """How to call TensorBoard here, also where the environment's programs are not on the PATH."""
    if shutil.which("tensorboard"):
        return "tensorboard"
    return shlex.quote(os.fspath(Path(sys.executable).absolute().parent / "tensorboard"))


def headline(found: dict) -> list[tuple[str, float, str]]:
    """Emotion accuracy, direction accuracy and pose MAE of an evaluation."""
    return [
        ("emotion accuracy", found["emotion"]["accuracy"]["value"], ""),
        ("direction accuracy", found["direction"]["accuracy"]["value"], ""),
        ("pose MAE", found["pose"]["all"]["mae"]["value"], "°"),
    ]
