"""``hpe demo``: the whole pipeline on rendered heads, as the very commands that a user would type.

pack → train (a pose estimator) → pose → train (the joint network, on several processes) → evaluate → report.
"""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hpe.errors import UserError
from hpe.files import write_json

STAMP: Final = "demo.json"
_BOUNDS: Final = {"emotion accuracy": 0.90, "direction accuracy": 0.90, "pose MAE": 5.0}


@dataclass(frozen=True, slots=True)
class Stage:
    """One command of the demo."""

    name: str
    arguments: tuple[str, ...]


def configs() -> Path:
    """The folder of the configs: in the wheel inside the package, in a checkout beside it."""
    package = Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


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
    both = [f"data.{split}.0.shards={shards}" for split in ("train", "val")]
    tabled = [f"data.{split}.0.pose={tables}" for split in ("train", "val")]
    options = [f"count={count}", f"people={people}", f"seed={seed}", "size=64"]
    return [
        Stage("pack", ("pack", "synthetic", str(shards), "--size", "64", *_each("--option", options))),
        Stage(
            "train pose",
            ("train", str(configs() / "demo_pose.yaml"), "--run", str(pose), *_sets(both, seed)),
        ),
        Stage("pose", ("pose", str(shards), "--estimator", str(pose), "--name", "demo")),
        Stage(
            "train joint",
            (
                *("train", str(configs() / "demo_multitask.yaml"), "--run", str(joint)),
                *("--processes", str(processes), *_sets([*both, *tabled], seed)),
            ),
        ),
        Stage("evaluate", ("evaluate", str(joint), str(shards), "--split", "test")),
        Stage("report", ("report", str(joint))),
    ]


def _sets(settings: Sequence[str], seed: int) -> list[str]:
    return _each("--set", [*settings, f"seed={seed}"])


def _each(flag: str, values: Sequence[str]) -> list[str]:
    return [part for value in values for part in (flag, value)]


def demo(out: Path, *, seed: int, processes: int, count: int, people: int, new: bool) -> None:
    """Run every stage; what an earlier, interrupted demo has finished is not done again.

    Raises:
        UserError: the folder holds something else, or a demo with other settings; or a stage failed.
    """
    settings = {"seed": seed, "processes": processes, "count": count, "people": people}
    _claim(out, settings, new=new)
    start = time.monotonic()
    todo = stages(out, seed=seed, processes=processes, count=count, people=people)
    for number, stage in enumerate(todo, 1):
        print(f"\n[{number}/{len(todo)}] hpe {shlex.join(stage.arguments)}", file=sys.stderr, flush=True)
        _run(stage)
    _summary(out, settings, time.monotonic() - start)


def _claim(out: Path, settings: dict[str, int], *, new: bool) -> None:
    stamp = out / STAMP
    if new and stamp.exists():
        number = next(n for n in range(1, 10**6) if not out.with_name(f"{out.name}.{n}").exists())
        out.rename(out.with_name(f"{out.name}.{number}"))
    try:
        out.mkdir(parents=True, exist_ok=True)
        if stamp.exists():
            before = json.loads(stamp.read_text(encoding="utf-8"))
            if before != settings:
                raise UserError(
                    f"{out}: an earlier demo used {before}, this one {settings}; "
                    "give --out another folder, or --new to set the earlier one aside"
                )
        elif any(out.iterdir()):
            raise UserError(f"{out}: not empty, and no demo has made it; give --out another folder")
        write_json(stamp, settings)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{out}: cannot write the demo here ({error}); give --out another folder") from error


def _run(stage: Stage) -> None:
    """Run a command in a process group of its own, which ends with this process."""
    process = subprocess.Popen([sys.executable, "-m", "hpe", *stage.arguments], start_new_session=False)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)  # the terminal has told it too; a pipe or a script has not
        process.wait()
        raise
    if code:
        raise UserError(
            f"the stage {stage.name!r} ended with exit code {code} (see above); "
            "run the same command again to go on from there"
        )


def _summary(out: Path, settings: dict[str, int], seconds: float) -> None:
    found = json.loads((out / "multitask" / "evaluate" / "test.json").read_text(encoding="utf-8"))
    print(f"\nDemo on rendered people never seen in training (seed {settings['seed']}), {seconds / 60:.1f} minutes")
    for name, value, unit in headline(found):
        bound = _BOUNDS[name]
        good = value <= bound if unit else value >= bound
        relation = "at most" if unit else "at least"
        print(f"  {name:20}{value:8.3f}{unit}   {'ok' if good else 'LOW'} ({relation} {bound:g}{unit} expected)")
    print(f"\n  report       {(out / 'multitask' / 'report' / 'index.html').resolve()}")
    print(f"  faces        {(out / 'shards').resolve()}/contact-*.png")
    print(f"  TensorBoard  tensorboard --logdir {shlex.quote(os.fspath(out))}")


def headline(found: dict) -> list[tuple[str, float, str]]:
    """Emotion accuracy, direction accuracy and pose MAE of an evaluation."""
    return [
        ("emotion accuracy", found["emotion"]["accuracy"]["value"], ""),
        ("direction accuracy", found["direction"]["accuracy"]["value"], ""),
        ("pose MAE", found["pose"]["all"]["mae"]["value"], "°"),
    ]
