"""``hpe train``: the laws of a run, on coloured squares."""

import json
import math
import os
import pickle
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from hpe.config.run import RunConfig
from hpe.config.strict_yaml import parse
from hpe.core.errors import EXIT_AGAIN, NotFiniteError, UserError
from hpe.core.ranks import Ranks
from hpe.data.batch import Batch
from hpe.data.crops import CropRule
from hpe.data.shard_reader import read_samples
from hpe.data.shards import Manifest, Sample, write_shard
from hpe.evaluate import EvaluateOptions, evaluate
from hpe.models import checkpoints, run_folder
from hpe.models.build import build_network, load_run
from hpe.models.checkpoints import State
from hpe.models.multitask import MultiTask, Outputs
from hpe.stream import Loaded, Loader, ShardSet
from hpe.train import loop, next_command, plan, resume, train
from hpe.train import step as step_module
from hpe.train.metrics import HeadMetrics
from hpe.train.selection import better
from hpe.train.setup import open_job
from tests import made

pytestmark = pytest.mark.usefixtures("no_pictures")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("made") / "shards", unlabelled=5)


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("saved") / "run"
    assert train(made.config(folder, run, "train.checkpoint_steps=4")) == 0
    return run


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(checkpoints.find_checkpoint(run, "last") / "model.safetensors")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class KilledError(BaseException):
    """What a power cut looks like from inside."""


def killed_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original, left = step_module.Learner.step, iter(range(steps))

    def step(self: step_module.Learner, *given: object, **named: object) -> bool:
        if next(left, None) is None:
            raise KilledError
        return original(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(step_module.Learner, "step", step)


@pytest.mark.parametrize("extra", [(), ("train.ema=0.9", "train.balance_losses=learned", "augment.mixup=0.4")])
def test_killed_and_resumed_equals_never_killed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...]
) -> None:
    settings = ("train.epochs=2", "train.checkpoint_steps=4", *extra)
    whole, broken = (made.config(folder, tmp_path / name, *settings) for name in ("whole", "broken"))
    assert train(whole) == 0
    for steps in (6, 3, 5):  # the second dies before a new checkpoint, the third after one
        with monkeypatch.context() as patch, pytest.raises(KilledError):
            killed_after(steps, patch)
            train(broken)
    assert train(broken) == 0
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "broken"))

    def figures(name: str) -> list[dict]:
        lines = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        return [{k: v for k, v in json.loads(line).items() if not k.startswith("speed/")} for line in lines]

    assert [f for f in figures("whole") if f["split"] == "val"] == [f for f in figures("broken") if f["split"] == "val"]


def test_the_same_command_twice_gives_the_same_weights(folder: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert train(made.config(folder, tmp_path / name)) == 0
    first, second = (
        (checkpoints.find_checkpoint(tmp_path / name, "last") / "model.safetensors").read_bytes()
        for name in ("one", "two")
    )
    assert first == second


def test_a_run_starts_from_the_best_backbone_of_another_run(folder: Path, tmp_path: Path) -> None:
    assert train(made.config(folder, tmp_path / "first")) == 0
    start = f"model.weights={tmp_path / 'first'}"
    assert train(made.config(folder, tmp_path / "next", start, "train.learning_rate=1e-12")) == 0
    first, after = (load_run(tmp_path / name)[0].state_dict() for name in ("first", "next"))
    learned = [name for name in first if name.startswith("backbone.") and not name.endswith(("mean", "var", "tracked"))]
    head = next(name for name in first if name.startswith("heads.") and name.endswith("weight"))
    assert learned
    assert all(torch.allclose(first[name], after[name], atol=1e-6) for name in learned)
    assert not torch.equal(first[head], after[head])


def test_a_run_remembers_its_shards_crop_when_they_are_gone(folder: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    shutil.copytree(folder, shards)
    manifest = json.loads((shards / "manifest.json").read_text())
    (shards / "manifest.json").write_text(json.dumps(manifest | {"crop": "square-1.4@landmarks"}))
    assert train(made.config(shards, tmp_path / "run")) == 0
    shutil.rmtree(shards)
    assert run_folder.crop_rules(tmp_path / "run") == {CropRule.parse("square-1.4@landmarks")}
    (tmp_path / "run" / "shards.json").write_text('{"x": 3}')
    with pytest.raises(UserError, match=r"shards.json: damaged"):
        run_folder.crop_rules(tmp_path / "run")


def test_workers_and_micro_batches_of_one_norm_free_network_do_not_change_the_weights(
    folder: Path, tmp_path: Path
) -> None:
    assert train(made.config(folder, tmp_path / "none")) == 0
    assert train(made.config(folder, tmp_path / "two", "data.workers=2")) == 0
    assert same(weights(tmp_path / "none"), weights(tmp_path / "two"))


def test_a_signal_saves_and_leaves_with_its_code(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os
    import signal

    original, steps = step_module.Learner.step, []

    def step(self: step_module.Learner, *given: object, **named: object) -> bool:
        steps.append(1)
        if len(steps) == 4:
            os.kill(os.getpid(), signal.SIGUSR1)
        return original(self, *given, **named)  # type: ignore[arg-type]

    config = made.config(folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        patch.setattr(step_module.Learner, "step", step)
        assert train(config) == EXIT_AGAIN
    assert "stopped by a signal; saved is" in capsys.readouterr().err  # it did not wait for images
    saved = checkpoints.State.load(checkpoints.find_checkpoint(tmp_path / "run", "last"))
    assert 0 < saved.samples_seen < 87
    assert train(config) == 0


def test_a_loss_that_is_no_number_names_step_and_samples(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made.config(folder, tmp_path / "run", "train.learning_rate=1e30", "train.schedule=constant")
    with pytest.raises(NotFiniteError, match=r"step \d+ .* samples sample0.* last good checkpoint is none"):
        train(config)


@pytest.mark.slow
def test_eight_samples_are_learned_by_heart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.shards(tmp_path / "shards", counts=(8,), val=8)
    extra = ("augment={}", "train.epochs=150", "train.validate_epochs=150", "train.learning_rate=5e-3")
    config = made.config(folder, tmp_path / "run", *extra, f"data.val.0.shards={folder}", "data.val.0.split=train")
    assert train(config) == 0
    last = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][-1]
    assert last["emotion/accuracy"] == 1.0
    assert last["direction/accuracy"] == 1.0
    assert last["pose/mae"] < 3.0
    assert capsys.readouterr().err.count("one epoch takes about") == 1


def test_every_parameter_learns_and_only_frozen_ones_stay(folder: Path, tmp_path: Path) -> None:
    config = made.config(
        folder, tmp_path / "run", "model.freeze=[stem]", "model.heads.emotion.conditioned_on_pose=true"
    )
    torch.manual_seed(config.seed)
    before = {n: p.clone() for n, p in build_network(config.model).named_parameters()}
    assert train(config) == 0
    after = weights(tmp_path / "run")
    still = {name for name, value in before.items() if torch.equal(value, after[name])}
    assert still == {name for name in before if name.startswith("backbone.stem")}


@pytest.mark.slow
def test_the_first_epochs_see_small_pictures_and_their_best_gives_way_to_the_first_large_one(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    original, told = MultiTask.forward, HeadMetrics.figures

    def forward(self: MultiTask, inputs: torch.Tensor) -> Outputs:
        if inputs.device.type != "meta":  # a trial of shapes, before the first step
            seen.append((self.training, inputs.shape[-1]))
        return original(self, inputs)

    def worse_and_worse(self: HeadMetrics) -> tuple[dict[str, float], Mapping[str, torch.Tensor]]:
        figures, confusions = told(self)
        return figures | {"emotion/accuracy": 1 / len(seen)}, confusions

    monkeypatch.setattr(MultiTask, "forward", forward)
    monkeypatch.setattr(HeadMetrics, "figures", worse_and_worse)
    config = made.config(
        folder, tmp_path / "run", "train.epochs=4", "train.small_epochs=2", "train.small_size=16",
        "train.select=emotion/accuracy",
    )  # fmt: skip
    assert train(config) == 0
    sizes = {kind: [size for training, size in seen if training == kind] for kind in (True, False)}
    assert sizes[True] == [16] * 22 + [made.SIDE] * 22  # 87 samples an epoch, 8 a step
    judged = sizes[False][2:]  # after one of each size that was tried before the first step
    assert judged == [16] * (len(judged) // 2) + [made.SIDE] * (len(judged) // 2)
    assert State.load(checkpoints.find_checkpoint(tmp_path / "run", "best")).samples_seen == 33 * 8
    # Patience is counted from the first large pictures on: one epoch after the one that was best by being the first.
    patient = made.config(
        folder, tmp_path / "patient", "train.epochs=8", "train.small_epochs=4", "train.small_size=16",
        "train.select=emotion/accuracy", "train.patience=1",
    )  # fmt: skip
    assert train(patient) == 0
    assert State.load(checkpoints.find_checkpoint(tmp_path / "patient", "last")).samples_seen == 66 * 8


ANGLES = ("model.backbone=angles", "model.heads={direction: {}}")
REFUSED: list[tuple[Callable[[RunConfig], RunConfig] | tuple[str, ...], str]] = [
    (("model.backbone=resnet19",), "did you mean .*resnet18"),
    (("model.freeze=[nothing]",), "no layer named 'nothing'"),
    (("data.direction=ours",), "data.angles or data.direction needs pose tables"),
    (("train.precision=fp16",), "fp16 needs a GPU"),
    (("train.select=age/mae",), "train.select"),
    (("train.select=emotion/f1",), r"train.select: 'emotion/f1' is not a metric .* emotion/macro_f1"),
    (("model.heads={emotion: {weight: 0}, affect: {weight: 0}}",), "weights of emotion, affect are all 0"),
    (("model.weights=/nowhere/x.pth",), "no such weights file"),
    (
        ("train.small_epochs=0.5", "train.small_size=16", *ANGLES),
        "train.small_size: the backbone angles takes no images",
    ),
    (("model.backbone=vgg11", "data.size=16"), "data.size: vgg11 does not accept images of 16 pixels"),
    (
        ("model.backbone=resnet18", "data.size=32", "train.micro_batch=1"),
        "train.micro_batch: resnet18 cannot learn from one image of 32 pixels at a time",
    ),
    (("train.small_epochs=0.95", "train.small_size=16", "train.epochs=1"), "so none learns from images of"),
    (("model.backbone=vit_b_16", "data.size=32"), "data.size: vit_b_16 does not accept images of 32 pixels"),
    (("data.train.0.shards=/nowhere",), "/nowhere"),
]


def test_frozen_batch_norms_learn_from_one_picture_at_a_time(folder: Path, tmp_path: Path) -> None:
    frozen = "model.freeze=[conv1, bn1, layer1, layer2, layer3, layer4]"
    one = ("model.backbone=resnet18", "data.size=32", "train.micro_batch=1", "train.epochs=0.1")
    assert train(made.config(folder, tmp_path / "run", frozen, *one)) == 0


@pytest.mark.parametrize(("changes", "told"), REFUSED)
def test_what_cannot_work_is_refused_before_the_first_step(
    folder: Path, tmp_path: Path, changes: tuple[str, ...], told: str
) -> None:
    with pytest.raises(UserError, match=told):
        train(made.config(folder, tmp_path / "run", *changes))
    assert not (tmp_path / "run").exists()


def test_every_problem_is_told_at_once(folder: Path, tmp_path: Path) -> None:
    changes = ("model.backbone=resnet19", "train.precision=fp16", "data.val.0.shards=/nowhere")
    with pytest.raises(UserError) as caught:
        train(made.config(folder, tmp_path / "run", *changes))
    assert all(word in str(caught.value) for word in ("resnet19", "fp16", "/nowhere"))


def test_what_train_and_val_both_lack_is_named_with_the_keys_of_both(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        train(made.config(folder, tmp_path / "run", "data.train.0.shards=/nowhere", "data.val.0.shards=/nowhere"))
    places = [line.partition(": ")[0] for line in str(caught.value).splitlines() if "/nowhere" in line]
    assert places == ["data.train.0.shards", "data.val.0.shards"]


def test_a_pose_head_without_roll_says_that_roll_is_missing(tmp_path: Path) -> None:
    rollless = [Sample(s.key, s.image, s.extension, replace(s.record, roll=None)) for s in made.samples(16)]
    (tmp_path / "shards").mkdir()
    info = write_shard(tmp_path / "shards/train-000000.tar", "train", rollless)
    Manifest("made", "squares", "none", True, "none", {}, (info,)).save(tmp_path / "shards")
    given = (f"data.{split}.0={{shards: {tmp_path / 'shards'}, split: train}}" for split in ("train", "val"))
    with pytest.raises(UserError, match=r"needs yaw, pitch and roll, and the samples of data\.train have no roll"):
        train(made.config(tmp_path, tmp_path / "run", *given))


def test_bf16_learns_with_weights_in_fp32(folder: Path, tmp_path: Path) -> None:
    changes = ("train.precision=bf16", "train.epochs=6", "train.validate_epochs=6", "augment={}")
    assert train(made.config(folder, tmp_path / "run", *changes)) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    losses = [line["direction/loss"] for line in lines if line["split"] == "train"]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    floats = {value.dtype for value in weights(tmp_path / "run").values() if value.is_floating_point()}
    assert floats == {torch.float32}


def test_a_run_of_another_config_is_refused_with_the_difference(folder: Path, tmp_path: Path) -> None:
    assert train(made.config(folder, tmp_path / "run")) == 0
    with pytest.raises(UserError, match=r"train\.batch: 8 -> 4"):
        train(made.config(folder, tmp_path / "run", "train.batch=4"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.txt").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        train(made.config(folder, tmp_path / "other"))
    assert sorted(p.name for p in (tmp_path / "other").iterdir()) == ["thesis.txt"]


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(folder: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(made.config(folder, run, "train.checkpoint_steps=3")) == 0
    last = checkpoints.find_checkpoint(run, "last")
    (last / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(UserError, match="damaged checkpoint"):
        train(made.config(folder, run))
    import shutil

    shutil.rmtree(last)
    assert train(made.config(folder, run)) == 0


SPOILT: list[tuple[str, str | bytes]] = [
    ("state.json", '{"samples_seen": "x", "step": 1}'),
    ("state.json", '{"samples_seen": -8, "step": 1}'),
    ("state.json", '{"samples_seen": 8.5, "step": 1}'),
    ("state.json", '{"samples_seen": 8, "step": 1, "best": "good"}'),
    ("state.json", "[" * 100_000),
    ("optimizer.pt", pickle.dumps(Path)),
    ("optimizer.pt", b""),
    ("model.safetensors", (2**62).to_bytes(8, "little") + b"{}"),
]


@pytest.mark.parametrize(("name", "content"), SPOILT)
def test_a_hostile_checkpoint_is_one_message(
    folder: Path, tmp_path: Path, saved: Path, name: str, content: str | bytes
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run, symlinks=True)
    content = content.encode() if isinstance(content, str) else content
    (run / "checkpoints/last" / name).write_bytes(content)
    with pytest.raises(
        UserError, match=rf"damaged checkpoint \({name}.*remove this folder to go on from the one before"
    ):
        train(made.config(folder, run, "train.checkpoint_steps=4"))


@pytest.mark.parametrize("state", [[1], {"optimizer": None}, {"optimizer": {"state": {0: 3}, "param_groups": 5}}])
def test_an_optimizer_state_of_other_things_is_one_message(
    folder: Path, tmp_path: Path, saved: Path, state: object
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run, symlinks=True)
    torch.save(state, run / "checkpoints/last/optimizer.pt")
    with pytest.raises(UserError, match="damaged checkpoint"):
        train(made.config(folder, run, "train.checkpoint_steps=4"))


def test_a_log_of_other_bytes_is_passed_over_and_what_stands_in_its_way_is_named(
    folder: Path, tmp_path: Path, saved: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved, run, symlinks=True)
    (run / "metrics.jsonl").write_bytes(b"\xae\xff\n" + (run / "metrics.jsonl").read_bytes())
    assert train(made.config(folder, run, "train.checkpoint_steps=4")) == 0
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("mine")
    with pytest.raises(UserError, match="checkpoints: is not what hpe train makes there"):
        train(made.config(folder, run, "train.checkpoint_steps=4"))


def test_weights_that_are_no_numbers_are_never_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = step_module.Learner.step

    def step(self: step_module.Learner, loaded: Loaded, state: checkpoints.State, **named: bool) -> bool:
        stopping = original(self, loaded, state, **named)
        if state.step == 3:  # what a gradient of another rank leaves behind
            next(self.network.parameters()).data.fill_(float("nan"))
        return stopping

    monkeypatch.setattr(step_module.Learner, "step", step)
    with pytest.raises(NotFiniteError, match=r"NaN or infinite after step 4 .* checkpoint is .*step-00000002"):
        train(made.config(folder, tmp_path / "run", "train.checkpoint_steps=2"))


@pytest.mark.parametrize("head", ["emotion", "direction", "pose", "affect"])
def test_one_output_that_is_no_number_leaves_its_head_without_figures_and_the_others_with_theirs(head: str) -> None:
    heads, rows = ("emotion", "direction", "pose", "affect"), 4
    every, classes = torch.ones(rows, dtype=torch.bool), torch.arange(rows)
    batch = Batch(
        keys=tuple("abcd"), images=torch.zeros(rows, 3, 1, 1, dtype=torch.uint8), emotion=classes, emotion_mask=every,
        emotion_target=torch.eye(8)[classes], direction=classes, direction_mask=every, angles=torch.zeros(rows, 3),
        angles_mask=every, affect=torch.zeros(rows, 2), affect_mask=every,
    )  # fmt: skip
    outputs = {"emotion": torch.eye(8)[:rows], "direction": torch.eye(5)[:rows], "affect": torch.zeros(rows, 2)}
    outputs["pose"] = torch.tensor([[1.0, 0, 0, 0, 1, 0]] * rows)
    outputs[head][0] = math.nan
    metrics = HeadMetrics(heads)
    metrics.update(outputs, batch)
    figures, _ = metrics.figures()
    broken = {name for name, value in figures.items() if not math.isfinite(value)}
    assert broken == {name for name in figures if name.startswith(head) and not name.endswith("/labels")}
    assert figures.keys() >= {"emotion/ece", "direction/accuracy", "pose/mae", "affect/rmse"}


@pytest.mark.parametrize("name", ["pose/mae", "emotion/accuracy"])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_figure_that_is_no_number_is_worse_than_any(name: str, broken: float) -> None:
    assert better(name, 0.5, broken)
    assert not any(better(name, broken, than) for than in (None, 0.5, broken))


@pytest.mark.parametrize(("patience", "best"), [(0, 2), (5, 1)])
def test_of_equal_values_the_later_checkpoint_is_the_best_unless_patience_counts_from_it(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    patience: int, best: int,
) -> None:  # fmt: skip
    monkeypatch.setattr(HeadMetrics, "figures", lambda _: ({"emotion/accuracy": 0.5}, {}))
    config = made.config(
        folder, tmp_path / "run", "train.epochs=2", "train.select=emotion/accuracy", f"train.patience={patience}"
    )
    assert train(config) == 0
    epoch = config.train.batch * -(-87 // config.train.batch)  # type: ignore[operator]
    assert State.load(checkpoints.find_checkpoint(tmp_path / "run", "best")).samples_seen == best * epoch
    told = capsys.readouterr().err
    assert "data.val: of 24 images the best checkpoint is chosen nearly by chance" in told
    assert told.count("(the best emotion/accuracy so far)") == 1
    assert told.count("(as good as the best emotion/accuracy so far)") == (patience == 0)


@pytest.mark.slow
@pytest.mark.parametrize("select", ["emotion/accuracy", "pose/mae"])
def test_a_validation_without_finite_numbers_is_told_and_never_the_best(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], select: str
) -> None:
    original, judged = step_module.Learner.validate, []

    def validate(
        self: step_module.Learner, batches: Iterable[Batch], metrics: HeadMetrics, samples_seen: int
    ) -> list[tuple[Batch, Outputs]]:
        judged.append(samples_seen)
        broken = MultiTask.forward

        def forward(self: MultiTask, inputs: torch.Tensor) -> Outputs:
            return {head: values * math.nan for head, values in broken(self, inputs).items()}

        with monkeypatch.context() as here:
            if len(judged) != 2:
                here.setattr(MultiTask, "forward", forward)
            return original(self, batches, metrics, samples_seen)

    monkeypatch.setattr(step_module.Learner, "validate", validate)
    assert train(made.config(folder, tmp_path / "run", "train.epochs=3", f"train.select={select}")) == 0
    assert State.load(checkpoints.find_checkpoint(tmp_path / "run", "best")).samples_seen == judged[1]
    told = [line for line in capsys.readouterr().err.splitlines() if "NaN or infinite" in line]
    assert len(told) == 2
    assert all(select in line for line in told)


def test_a_fraction_of_a_sample_is_one_step(folder: Path, tmp_path: Path) -> None:
    assert train(made.config(folder, tmp_path / "run", "train.epochs=0.001")) == 0
    assert checkpoints.State.load(checkpoints.find_checkpoint(tmp_path / "run")).step == 1


def test_validation_samples_that_break_are_named_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = made.shards(tmp_path / "shards")
    original, steps = step_module.Learner.step, []

    def step(self: step_module.Learner, *given: object, **named: object) -> bool:
        steps.append(1)
        if len(steps) == 3:
            os.truncate(folder / "val-000000.tar", 3000)
        return original(self, *given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(step_module.Learner, "step", step)
    assert train(made.config(folder, tmp_path / "run")) == 1
    told = capsys.readouterr().err
    assert "rank 0 could not read val-000000.tar, sample10001" in told  # the first is whole in what is left of the tar
    assert "could not read … 23 samples in all" in told


def test_a_damaged_sample_is_counted_and_the_run_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.shards(tmp_path / "shards")
    tar = folder / "train-000001.tar"
    data = bytearray(tar.read_bytes())
    at = data.index(b"\xff\xd8\xff")
    data[at : at + 64] = bytes(64)
    tar.write_bytes(data)
    assert train(made.config(folder, tmp_path / "run")) == 1
    assert "could not read train-000001.tar" in capsys.readouterr().err
    with pytest.raises(UserError, match="train-000001"):
        train(made.config(folder, tmp_path / "strict", "data.damaged=fail"))


def test_a_network_learns_from_estimated_angles_and_is_validated_on_measured_ones(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tables = tmp_path / "pose"
    tables.mkdir()
    for info in Manifest.load(folder).shards:
        if info.split == "train":
            keys = [sample.key for sample in read_samples(folder / info.name)]
            angles = {name: pa.array([20.0] * len(keys), pa.float32()) for name in ("yaw", "pitch", "roll")}
            said = {"hpe.shard": info.name, "hpe.shard_sha256": info.sha256}
            table = pa.table({"key": keys} | angles).replace_schema_metadata(said)
            pq.write_table(table, tables / f"{Path(info.name).stem}.parquet")
    config = made.config(
        folder, tmp_path / "run", "data.angles=pose", f"data.train.0.pose={tables}", "train.epochs=0.2"
    )
    with open_job(config, Ranks(0, 1, 0, 1)) as job:
        with job.batches(0) as loader:
            batch = next(loader).batch
        with job.validation() as loader:
            measured = next(loader).batch
    assert (batch.angles == 20).all()
    assert batch.angles_mask.all()
    assert measured.angles_mask.any()
    assert not (measured.angles[measured.angles_mask] == 20).any()
    assert "data.val.0: no pose tables are named (pose:)" in capsys.readouterr().err


def signalled_in_validation(number: int, batch: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Ask this process to stop in a validation, before one of its batches; how many batches each validation had."""
    import signal

    original, update, seen = step_module.Learner.validate, HeadMetrics.update, []

    def validate(self: step_module.Learner, *given: object) -> object:
        seen.append(0)
        return original(self, *given)  # type: ignore[arg-type]

    def count(self: HeadMetrics, outputs: Outputs, one: Batch) -> None:
        seen[-1] += 1
        if (len(seen), seen[-1]) == (number, batch):
            os.kill(os.getpid(), signal.SIGUSR1)
        update(self, outputs, one)

    monkeypatch.setattr(step_module.Learner, "validate", validate)
    monkeypatch.setattr(HeadMetrics, "update", count)
    return seen


def test_a_signal_ends_a_validation_which_the_next_start_repeats_bit_for_bit(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ("train.epochs=2", "train.ema=0.9", "train.batch=4")  # six batches in each of two validations
    whole, broken = (made.config(folder, tmp_path / name, *settings) for name in ("whole", "broken"))
    assert train(whole) == 0
    for number, samples in ((1, 88), (2, 176)):  # in the first, and at the run's end
        with monkeypatch.context() as patch:
            batches = signalled_in_validation(number, 2, patch)
            assert train(broken) == EXIT_AGAIN
        assert batches[-1] in (2, 3)
        state = State.load(checkpoints.find_checkpoint(tmp_path / "broken", "last"))
        assert (state.samples_seen, state.unvalidated) == (samples, True)
    assert train(broken) == 0
    last = [checkpoints.find_checkpoint(tmp_path / name, "last") for name in ("whole", "broken")]
    for file in ("model.safetensors", "ema.safetensors", "optimizer.pt", "state.json"):
        assert (last[0] / file).read_bytes() == (last[1] / file).read_bytes()
    best = [checkpoints.find_checkpoint(tmp_path / name, "best") for name in ("whole", "broken")]
    assert best[0].name == best[1].name
    lines = [  # but for the line that each start of a run writes
        [
            {k: v for k, v in line.items() if not k.startswith("speed/")}
            for line in map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
            if line["split"] != "start"
        ]
        for name in ("whole", "broken")
    ]
    assert lines[0] == lines[1]


def test_a_start_that_is_killed_after_it_has_repeated_a_validation_does_not_log_it_twice(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = made.config(folder, tmp_path / "run")
    with monkeypatch.context() as patch:
        signalled_in_validation(1, 1, patch)
        assert train(config) == EXIT_AGAIN

    def killed(*_: object, **__: object) -> None:
        raise KilledError

    with monkeypatch.context() as patch, pytest.raises(KilledError):
        patch.setattr(step_module.Learner, "save", killed)
        train(config)
    assert train(config) == 0
    splits = [json.loads(line)["split"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert splits.count("val") == 1


def test_faces_that_the_bins_leave_out_are_counted_once_before_the_first_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "shards").mkdir()
    turned = [
        Sample(s.key, s.image, s.extension, replace(s.record, yaw=120.0 if number % 4 == 0 else s.record.yaw))
        for number, s in enumerate(made.samples(16))
    ]
    info = write_shard(tmp_path / "shards/train-000000.tar", "train", turned)
    Manifest("made", "squares", "none", True, "none", {}, (info,)).save(tmp_path / "shards")
    given = [f"data.{split}.0={{shards: {tmp_path / 'shards'}, split: train}}" for split in ("train", "val")]
    for kind, told in (("bins66", 1), ("sixd", 0)):
        head = f"model.heads={{pose: {{kind: {kind}}}}}"
        with open_job(made.config(tmp_path, tmp_path / kind, *given, head), Ranks(0, 1, 0, 1)):
            said = capsys.readouterr().err
        assert said.count("4 of 16 faces with angles have an angle of 99° or more") == told


def test_a_run_keeps_the_precision_that_it_used_and_the_same_command_resumes(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    settings = ("train.precision=auto", "train.epochs=0.2")
    assert train(made.config(folder, run, *settings)) == 0
    assert run_folder.load_config(run).train.precision == "bf16"
    assert "precision bf16: this CPU computes it natively" in capsys.readouterr().err
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert train(made.config(folder, run, *settings)) == 0
    assert "precision bf16: as in this run until now (this CPU has no bf16" in capsys.readouterr().err
    with pytest.raises(UserError, match="--change-precision"):
        train(made.config(folder, run, "train.precision=fp32", "train.epochs=0.2"))
    assert train(made.config(folder, run, *settings), change_precision=True) == 0
    assert run_folder.load_config(run).train.precision == "fp32"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["precision"] for line in lines if line["split"] == "start"] == ["bf16", "bf16", "fp32"]


def test_a_rank_waits_for_the_checkpoint_that_rank_0_has_chosen(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rank 1 on another node, whose view of a shared folder comes late, or never."""
    run = tmp_path / "run"
    assert train(made.config(folder, run, "train.epochs=0.2")) == 0
    checkpoint = checkpoints.find_checkpoint(run, "last")
    hidden = tmp_path / "hidden"
    checkpoint.rename(hidden)
    said = iter([None, json.dumps({"name": checkpoint.name, "files": resume._sizes(hidden)})] * 2)
    monkeypatch.setattr(resume, "agree", lambda _: next(said))
    monkeypatch.setattr(resume, "_LOOK_SECONDS", 0.01)
    config, other = made.config(folder, run), Ranks(1, 2, 0, 1)
    comes = threading.Timer(0.2, hidden.rename, [checkpoint])
    comes.start()
    with resume.claim(config, other, lambda: run_folder.TrainedOn({}, {})) as found:
        assert found is not None
        assert found.resolve() == checkpoint.resolve()
    comes.join()
    assert "rank 1 waits until it sees this checkpoint" in capsys.readouterr().err
    monkeypatch.setattr(resume, "VISIBLE_SECONDS", 0.1)
    (checkpoint / "optimizer.pt").write_bytes(b"")
    with (
        pytest.raises(UserError, match=r"cannot be seen here after 0 s \(.*not whole: optimizer.pt\).*all nodes share"),
        resume.claim(config, other, lambda: run_folder.TrainedOn({}, {})),
    ):
        pass


def test_a_validation_is_one_line_that_explains_itself_and_a_finished_run_ends_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = made.config(folder, tmp_path / "run", "train.epochs=2", "train.select=pose/mae")
    assert train(config) == 0
    # 87 samples in batches of 8: validated after 88 and 176, which are 1.011 and 2.023 epochs
    lines = [line for line in capsys.readouterr().err.splitlines() if ": epoch " in line]
    assert re.search(r"run: epoch 1\.01: .*pose/mae \d+(\.\d+)?°.* \(the best pose/mae so far\)$", lines[0])
    assert "run: epoch 2.02: " in lines[1]
    before = list((tmp_path / "run" / "tensorboard").iterdir())
    assert train(config) == 0
    assert re.search(r"done: 176 samples, 22 steps, best pose/mae [\d.]+°", capsys.readouterr().err)
    seen = []
    for path in (tmp_path / "run" / "tensorboard").iterdir():
        events = EventAccumulator(str(path)).Reload()
        tags, plugins = events.Tags(), events.summary_metadata
        seen.append(("config/text_summary" in tags["tensors"], any("hparams" in name for name in plugins)))
        if "config/text_summary" in tags["tensors"]:
            (text,) = events.Tensors("config/text_summary")
            shown = text.tensor_proto.string_val[0].decode()
            assert "\n    train:\n" in shown
            assert all(line.startswith("    ") for line in shown.splitlines())
    assert len(seen) > len(before)
    assert [sum(each) for each in zip(*seen, strict=True)] == [1, 1]  # config, HPARAMS


def test_the_next_command_names_shards_split_and_pose_tables(tmp_path: Path) -> None:
    shards = tmp_path / "my shards"
    config = made.config(made.shards(shards), tmp_path / "run", f"data.val.0.pose={tmp_path}/t")
    assert next_command(config) == f"hpe evaluate {tmp_path}/run '{shards}' --split val --pose {tmp_path}/t"
    manifest = Manifest.load(shards)
    replace(manifest, shards=(*manifest.shards, replace(manifest.shards[-1], split="test"))).save(shards)
    assert f"--split test --pose {tmp_path}/t" in next_command(config)  # `val` has chosen the checkpoint


def test_a_dry_run_prints_what_would_run_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = made.shards(tmp_path / "shards")
    config = made.config(folder, tmp_path / "run", "train.batch=9", "train.epochs=2")
    before = sorted(tmp_path.rglob("*"))
    plan(config)
    printed = capsys.readouterr().out
    # 87 training samples twice, in batches of 9: 174 / 9 = 19.3, rounded up
    assert "steps: 20 in 2 epochs, 9 images each" in printed
    assert "samples: 87 for training, 24 for validation" in printed
    assert "precision: fp32" in printed
    resolved = parse(printed.partition("\n\n")[0], "printed", RunConfig, ())
    assert resolved == config.model_copy(update={"model": resolved.model})  # its normalisation is filled in
    assert sorted(tmp_path.rglob("*")) == before


def test_a_signal_ends_a_wait_for_images_and_everything_is_saved(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A store may be silent for ten minutes; a scheduler kills a minute after its signal."""
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(made.config(folder, whole)) == 0
    plain, asked = Loader.__next__, 0

    def silent(self: Loader) -> Loaded:
        nonlocal asked
        asked += 1
        if asked == 4:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(120)
        return plain(self)

    with monkeypatch.context() as patch:
        patch.setattr(Loader, "__next__", silent)
        assert train(made.config(folder, run)) == EXIT_AGAIN
    assert "stopped by a signal while waiting for images; saved is" in capsys.readouterr().err
    assert State.load(checkpoints.find_checkpoint(run, "last")).step == 3
    assert train(made.config(folder, run)) == 0
    one, two = (load_file(checkpoints.find_checkpoint(one, "last") / "model.safetensors") for one in (whole, run))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_of_several_ranks_the_one_whose_wait_a_signal_ends_leaves_without_a_collective_call(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are in a collective call of the step: any other call of this rank would meet that one."""
    with open_job(made.config(folder, tmp_path / "run"), Ranks(0, 1, 0, 1)) as job:
        several = replace(job, ranks=Ranks(1, 2, 0, 1))
        learner = SimpleNamespace(save=lambda *_: pytest.fail("saved"))
        with pytest.raises(SystemExit) as left:
            loop._interrupted(several, learner, State(16, 2), waiting=True)  # pyright: ignore[reportArgumentType]
    assert left.value.code == EXIT_AGAIN


def test_the_logged_speed_is_that_of_learning_without_validations_and_checkpoints(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on in checkpoints alone."""
    clock = SimpleNamespace(now=0.0)
    save = step_module.Learner.save

    def slowly(self: step_module.Learner, run: Path, state: State) -> None:
        clock.now += 100
        save(self, run, state)

    monkeypatch.setattr(step_module.Learner, "save", slowly)
    monkeypatch.setattr(step_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    assert train(made.config(folder, tmp_path / "run", "train.validate_epochs=0.5", "train.checkpoint_steps=2")) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    speeds = [line["speed/images_per_second"] for line in lines if line["split"] == "train"]
    assert len(speeds) == 5
    assert min(speeds) > 1e6


def without_angles(folder: Path, every: int, *, unlabelled: bool = False) -> Path:
    """Shards in which every so many samples have no angles, and the others, if so, no direction."""
    folder.mkdir(parents=True)
    infos = []
    for split in ("train", "val"):
        bare = [
            Sample(s.key, s.image, s.extension, replace(s.record, yaw=None, pitch=None, roll=None))
            if number % every == 0
            else Sample(s.key, s.image, s.extension, replace(s.record, direction=None))
            if unlabelled
            else s
            for number, s in enumerate(made.samples(40))
        ]
        infos.append(write_shard(folder / f"{split}-000000.tar", split, bare))
    Manifest("made", "squares", "none", True, "none", {}, tuple(infos)).save(folder)
    return folder


def test_a_network_of_angles_neither_learns_nor_is_judged_where_a_face_has_none(tmp_path: Path) -> None:
    shards = without_angles(tmp_path / "shards", every=4)
    config = made.config(shards, tmp_path / "run", *ANGLES, "augment={}", "train.log_steps=1", "train.select=auto")
    assert train(config) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["direction/labels"] for line in lines if line["split"] == "val"] == [30]
    with open_job(made.config(shards, tmp_path / "other", *ANGLES, "augment={}"), Ranks(0, 1, 0, 1)) as job:
        learner = step_module.Learner(
            job.config, job.network, job.losses, job.epoch_samples, job.ranks, job.accelerator
        )
        with job.batches(0) as loader:
            loaded = next(loader)
        assert 0 < int(loaded.batch.angles_mask.sum()) < int(loaded.batch.direction_mask.sum())
        learner.step(loaded, State(0, 0), asked_here=False, measure_gradient=False)
        assert float(learner._sums[1]) == int(loaded.batch.angles_mask.sum())
    assert evaluate(tmp_path / "run", [ShardSet(str(shards), "val")], EvaluateOptions(name="val", workers=0)) == 0
    table = pq.read_table(tmp_path / "run/evaluate/val.parquet")
    assert (table.num_rows, table["direction"].null_count) == (40, 10)
    none = without_angles(tmp_path / "none", every=1)
    with pytest.raises(UserError, match="no sample has angles, the input of this network"):
        evaluate(tmp_path / "run", [ShardSet(str(none), "val")], EvaluateOptions(name="none", workers=0))


def test_a_network_of_angles_whose_labels_are_all_of_faces_without_angles_is_refused(tmp_path: Path) -> None:
    shards = without_angles(tmp_path / "shards", every=2, unlabelled=True)
    with pytest.raises(UserError, match=r"data\.val with angles has its label") as caught:
        train(made.config(shards, tmp_path / "run", *ANGLES, "augment={}"))
    assert "takes the angles as its input" not in str(caught.value)


def test_a_network_of_angles_without_any_is_refused(tmp_path: Path) -> None:
    shards = without_angles(tmp_path / "shards", every=1)
    with pytest.raises(UserError) as caught:
        train(made.config(shards, tmp_path / "run", *ANGLES, "augment={}"))
    for split in ("train", "val"):
        assert f"takes the angles as its input, and no sample of data.{split} has angles; use" in str(caught.value)
