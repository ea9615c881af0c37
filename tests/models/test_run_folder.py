"""Run folders: what a disk that takes no more leaves of them."""

import errno
import gc
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

import hpe
from hpe import cli
from hpe.core.errors import UserError
from hpe.core.files import locked
from hpe.core.ranks import Ranks
from hpe.estimators.load import Compute, load_estimator
from hpe.models import checkpoints
from hpe.models.build import build_network, load_run
from hpe.models.checkpoints import CHECKPOINTS, State, find_checkpoint, load_tensors, save_checkpoint
from hpe.models.run_folder import LOCK, TrainedOn, record, set_aside
from hpe.train.log import Log
from hpe.train.resume import claim_folder
from tests import made


@contextmanager
def no_file_over(size: int) -> Iterator[None]:
    """Writing beyond ``size`` bytes of a file fails, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("room", [1_000, 20_000], ids=["for no weights", "for weights without optimizer"])
def test_a_full_disk_is_one_message_and_the_checkpoint_before_stands(tmp_path: Path, room: int) -> None:
    network, momentum = torch.nn.Linear(40, 40), {"momentum": torch.ones(10_000)}
    first = save_checkpoint(tmp_path, State(8, 1), network, momentum, ema=None, keep=1, best=True)
    with no_file_over(room), pytest.raises(UserError, match=r"00000002: could not be written .*goes on from step-0+1$"):
        save_checkpoint(tmp_path, State(16, 2), network, momentum, ema=network, keep=1, best=True)
    assert sorted(p.name for p in (tmp_path / CHECKPOINTS).iterdir()) == ["best", "last", first.name]
    assert find_checkpoint(tmp_path, "last") == first
    assert torch.equal(load_tensors(first / "model.safetensors")["weight"], network.weight)
    second = save_checkpoint(tmp_path, State(16, 2), network, momentum, ema=network, keep=1, best=True)
    assert find_checkpoint(tmp_path, "last") == second


def test_everything_that_a_rename_makes_visible_is_on_the_disk_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename may outrun what it renames; only what was synced before it survives a power cut."""
    synced: set[str] = set()
    renamed: list[tuple[str, set[str], set[str]]] = []
    fsync, rename = os.fsync, Path.rename

    def recorded_fsync(number: int) -> None:
        fsync(number)
        synced.add(str(Path(f"/proc/self/fd/{number}").readlink()))

    def recorded_rename(self: Path, target: Path) -> Path:
        renamed.append((target.name, {str(self), *map(str, self.iterdir())}, set(synced)))
        return rename(self, target)

    monkeypatch.setattr("os.fsync", recorded_fsync)
    monkeypatch.setattr(Path, "rename", recorded_rename)
    network = torch.nn.Linear(4, 4)
    target = save_checkpoint(tmp_path, State(8, 1), network, {"momentum": 1}, ema=network, keep=1, best=True)
    ((name, needed, had),) = renamed
    assert name == target.name
    assert {Path(path).name for path in needed} >= {
        "model.safetensors",
        "ema.safetensors",
        "optimizer.pt",
        "state.json",
    }
    assert needed <= had
    assert str(tmp_path / CHECKPOINTS) in synced


def test_a_kill_between_the_links_does_not_lose_the_best_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever link is made when it comes: the state that a run resumes from and ``best`` agree."""
    network = torch.nn.Linear(2, 2)
    link = checkpoints._link
    for made_links in range(3):
        run = tmp_path / str(made_links)
        save_checkpoint(run, State(8, 1, best=0.5, best_samples=8), network, {}, ema=None, keep=1, best=True)
        left = iter(range(made_links))

        def killed(name: Path, target: Path, left: Iterator[int] = left) -> None:
            if next(left, None) is None:
                raise KeyboardInterrupt
            link(name, target)

        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr(checkpoints, "_link", killed)
            save_checkpoint(run, State(16, 2, best=0.9, best_samples=16), network, {}, ema=None, keep=1, best=True)
        checkpoints.restore_best(find_checkpoint(run, "last"))
        resumed = State.load(find_checkpoint(run, "last"))
        if resumed.step == 1:  # the step is done again, on a GPU perhaps with another result
            resumed = State(16, 2, best=0.5, best_samples=8)
            save_checkpoint(run, resumed, network, {}, ema=None, keep=1, best=resumed.is_best)
        later = replace(resumed, samples_seen=24, step=3)
        save_checkpoint(run, later, network, {}, ema=None, keep=1, best=later.is_best)
        best = State.load(find_checkpoint(run, "best"))
        assert best.is_best
        assert best.samples_seen == later.best_samples


def test_an_old_checkpoint_that_cannot_be_removed_now_counts_no_longer_and_is_removed_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on NFS, where a file that some process reads stays as ``.nfs…`` and its folder is not empty."""
    network, rmdir = torch.nn.Linear(2, 2), os.rmdir

    def busy(path: Any, **more: Any) -> None:
        if "step-00000001" in str(path):
            raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))
        rmdir(path, **more)

    def save(step: int) -> None:
        save_checkpoint(tmp_path, State(step, step), network, {}, ema=None, keep=1, best=False)

    save(1)
    with monkeypatch.context() as patch:
        patch.setattr("os.rmdir", busy)
        save(1)  # a start of a run that saves the same step again: the one before goes
        save(2)
        save(3)
        assert [path.name for path in checkpoints.saved(tmp_path)] == ["step-00000003"]
        assert [*(tmp_path / CHECKPOINTS).glob(".step-00000001.*.part")]
    (tmp_path / CHECKPOINTS / "step-00000002").mkdir()  # removed in part by an older version
    assert [path.name for path in checkpoints.saved(tmp_path)] == ["step-00000003"]
    save(4)
    assert not [*(tmp_path / CHECKPOINTS).glob(".step-*")]


def test_a_full_disk_loses_no_line_of_the_log(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = "".join(f'{{"samples": {at}}}\n' for at in range(1000))
    path.write_text(lines, encoding="utf-8")
    with no_file_over(100), pytest.raises(OSError, match="too large"):
        Log(tmp_path, Ranks(0, 1, 0, 1), State(2000, 1))
    assert path.read_text(encoding="utf-8") == lines


def test_a_start_that_begins_anew_shows_no_step_twice_in_tensorboard(tmp_path: Path) -> None:
    """The start before was killed before its first checkpoint."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for loss in (1.0, 2.0):
        with Log(tmp_path, Ranks(0, 1, 0, 1), State(0, 0)) as log:
            for step in (1, 2):
                log.scalars("train", step, step * 8, {"loss": loss})
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss/train")] == [(8, 2.0), (16, 2.0)]


def test_no_picture_of_a_confusion_matrix_stays_in_memory(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    gc.disable()  # what Python would find sooner or later
    try:
        with Log(tmp_path, Ranks(0, 1, 0, 1), State(0, 0)) as log:
            log.confusions(8, {"direction": torch.eye(5)})
            assert not [one for one in gc.get_objects() if type(one) is Figure]
    finally:
        gc.enable()


def begun(folder: Path) -> Path:
    """A run that has begun, and its config beside it."""
    run = folder / "run"
    run.mkdir()
    for path in (run / "config.yaml", folder / "run.yaml"):
        path.write_text(made.config(folder, run).dump(), encoding="utf-8")
    return run


def test_a_run_that_is_being_trained_is_not_set_aside(tmp_path: Path) -> None:
    run = begun(tmp_path)
    with locked(run / LOCK, "held"), pytest.raises(UserError, match="another process is training"):
        set_aside(run)
    assert set_aside(run) == tmp_path / "run.1"
    assert not run.exists()


def test_a_start_that_is_killed_before_it_has_a_config_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / LOCK).touch()
    (run / ".config.yaml.123-deadbeef.part").write_text("run: r", encoding="utf-8")
    assert set_aside(run) is None
    config = made.config(tmp_path, run, "model.mean=[0.5,0.5,0.5]", "model.std=[0.5,0.5,0.5]")
    with claim_folder(run, config, lambda: TrainedOn({}, {})):
        assert not [*run.glob(".config.yaml.*")]
    assert set_aside(run) == tmp_path / "run.1"


@pytest.mark.parametrize("launcher", [("RANK",), ("SLURM_STEP_NUM_TASKS", "SLURM_PROCID")], ids=["torchrun", "srun"])
def test_new_under_a_launcher_is_refused_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, launcher: tuple[str, ...]
) -> None:
    run = begun(tmp_path)
    for name in launcher:
        monkeypatch.setenv(name, "2")
    with pytest.raises(
        UserError,
        match=r"--new: .*rename .*run again; rename that folder yourself",
    ):
        cli.train(tmp_path / "run.yaml", new=True)
    assert run.is_dir()


def test_new_on_several_processes_is_done_once_before_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = begun(tmp_path)
    started: list[list[str]] = []
    monkeypatch.setattr("sys.argv", ["hpe", "train", "run.yaml", "--new", "-p", "2"])
    monkeypatch.setattr("hpe.core.launch.relaunch", lambda _, arguments, saves: started.append(arguments))
    monkeypatch.setattr("hpe.train.train", lambda *_, **__: 0)
    with pytest.raises(typer.Exit):
        cli.train(tmp_path / "run.yaml", new=True, processes=2)
    assert started == [["train", "run.yaml", "-p", "2"]]
    assert (tmp_path / "run.1").is_dir()
    assert not run.exists()


def test_a_run_without_a_checkpoint_is_refused_wherever_it_is_loaded(tmp_path: Path) -> None:
    (run := tmp_path / "run").mkdir()
    record(run, made.config(made.shards(tmp_path / "shards"), run), lambda: TrainedOn({}, {}))
    for load in (load_run, find_checkpoint, hpe.load, lambda path: load_estimator(path, Compute(torch.device("cpu")))):
        with pytest.raises(UserError, match="not trained yet: it has no checkpoint; train it with `hpe train"):
            load(run)
        if load is not find_checkpoint:
            with pytest.raises(UserError, match=rf"no such run or estimator; .*did you mean {run}\?"):
                load(tmp_path / "runn")


@pytest.mark.parametrize("other", ["model.backbone=resnet14", "model.stem=half"])
def test_weights_of_a_run_with_another_network_are_refused_with_the_settings_that_fit(
    tmp_path: Path, other: str
) -> None:
    shards = made.shards(tmp_path / "shards")
    settings = ["model.backbone=resnet18"] if "stem" in other else []
    run = made.untrained(tmp_path / "run", shards, *settings, other)
    config = made.config(shards, tmp_path / "new", *settings, f"model.weights={run}")
    with pytest.raises(
        UserError, match=rf"weights do not fit .*; {run} has another network: use --set {other}, or other"
    ):
        build_network(config.model)
