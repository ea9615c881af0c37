"""The training step on GPUs, judged without one: fake GPUs show mixed devices and waits; the rest runs for real."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import hpe
from hpe.config.run import RunConfig
from hpe.config.strict_yaml import load
from hpe.core.ranks import Ranks
from hpe.models.build import build_network
from hpe.models.checkpoints import State
from hpe.train.metrics import HeadMetrics
from hpe.train.setup import Job, open_job
from hpe.train.step import Learner
from tests import made
from tests.fake_gpu import RANK, WORLD, HostWaits, fake_rank

PACKAGE = Path(hpe.__file__).parent
CONFIGS = PACKAGE.parent / "configs"
RANKS = Ranks(RANK, WORLD, RANK, WORLD)
ONCE_AN_INTERVAL = {("train/step.py:log", "a copy from cuda to cpu")}
BEFORE_A_VALIDATION = {("train/step.py:validate", "a copy from pageable memory to cuda")}
AFTER_A_VALIDATION = {("train/metrics.py:compute", "a copy from cuda to cpu")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("devices") / "shards", counts=(64,), unlabelled=5)


@contextmanager
def learning(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Job, Learner, HostWaits]]:
    """Rank 1 of 8 with its learner, before the first step."""
    with fake_rank(monkeypatch, PACKAGE) as waits, open_job(config, RANKS) as job:
        yield job, Learner(job.config, job.network, job.losses, job.epoch_samples, RANKS, job.accelerator), waits


def places(waits: HostWaits) -> set[tuple[str, str]]:
    """Where the host has waited since this was last asked, but for what it copies to a device once and for all."""
    found = {(place, kind) for place, kind in waits.found if place != "stream/augment.py:_constant"}
    waits.found.clear()
    return found


def check(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps, log and validation of a config: nothing mixes devices, and nothing waits but what may."""
    with learning(config, monkeypatch) as (job, learner, waits):
        here = torch.device("cuda", RANK)
        tensors = [*learner.network.parameters(), *learner.network.buffers(), learner._sums]
        made_of = [one for loss in learner.losses.values() for one in (loss.class_weights, loss.log_prior)]
        tensors += [one for one in made_of if one is not None]
        assert {tensor.device for tensor in tensors} == {here}
        assert torch.backends.cudnn.benchmark
        assert all(group["fused"] for group in learner.optimizer.param_groups)
        assert job.accelerator.ddp_handler is not None
        assert job.accelerator.ddp_handler.gradient_as_bucket_view
        held = [p for group in learner.optimizer.param_groups for p in group["params"]]
        assert {*map(id, held)} == {id(p) for p in learner.network.parameters() if p.requires_grad}
        state = State(samples_seen=0, step=0)
        with job.batches(0) as loader:
            for number in range(3):
                loaded = next(loader)
                waits.found.clear() if number < 2 else None  # what is made once is made in the first two steps
                learner.step(loaded, state, asked_here=False, measure_gradient=number == 2)
                state = State(loaded.samples_seen, state.step + 1)
            assert places(waits) == set()
            noted = _Noted()
            learner.log(state, noted, loader)  # type: ignore[arg-type]
            assert places(waits) == ONCE_AN_INTERVAL
            assert "gradient_norm" in noted.figures
        metrics = HeadMetrics(job.config.model.heads.on)
        with job.validation() as loader:
            learner.validate(
                (one.batch for one in loader if not learner.some_rank_asked(False)), metrics, state.samples_seen
            )
        assert places(waits) == BEFORE_A_VALIDATION
        figures, _ = metrics.figures()
        assert places(waits) == AFTER_A_VALIDATION
        assert all(f"{head}/labels" in figures for head in job.config.model.heads.on)
        assert {tensor.device for tensor in learner.evaluated.buffers()} <= {here}


class _Noted:
    """Keeps the figures that a learner reports last."""

    def scalars(self, split: str, step: int, samples: int, values: Mapping[str, float]) -> None:
        self.figures = values


def shrunk(path: Path, folder: Path, run: Path) -> RunConfig:
    """A config of the repository on made-up squares, with a small network in place of its own."""
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    backbone = raw["model"]["backbone"]
    if backbone != "angles":
        backbone = "resnet18" if raw["model"].get("freeze") or raw["model"].get("stem") else "tiny"
    small = {"train.small_size": "16"} if raw["train"].get("small_size") else {}
    changes: dict[str, Any] = {
        "run": run, "model.backbone": backbone, "model.weights": "none", "data.size": made.SIDE, "data.workers": 0,
        "data.train": f"[{{shards: {folder}, split: train}}]", "data.val": f"[{{shards: {folder}, split: val}}]",
        "data.angles": "record", "data.direction": "record", "train.batch": 16, **small,
    }  # fmt: skip
    return load(path, RunConfig, [f"{name}={value}" for name, value in changes.items()])


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_every_config_trains_on_its_ranks_own_gpu(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(shrunk(CONFIGS / f"{name}.yaml", folder, tmp_path / "run"), monkeypatch)


MOVED = "augment={crop_scale: [0.7, 1.1], crop_ratio: [0.9, 1.1], shift: 0.1, rotate: 20, flip: 0.5, mixup: 0.4}"
COLOURED = (
    "augment={brightness: 0.3, contrast: 0.3, saturation: 0.3, grey: 0.2, blur: 0.5, erase: 0.5, randaugment: 10}"
)
CLASSES = "{emotion: {imbalance: %s, votes: false, smoothing: 0.1}, direction: {imbalance: %s, smoothing: 0.1}}"
SETTINGS = {
    "weights": (MOVED, "train.precision=bf16", f"model.heads={CLASSES % ('weights', 'weights')}"),
    "logit-adjustment": (COLOURED, f"model.heads={CLASSES % (('logit-adjustment',) * 2)}", "train.micro_batch=1"),
    "rotations, learned weights, average": (
        MOVED, "model.heads={emotion: {conditioned_on_pose: true}, pose: {kind: sixd}, affect: {}}",
        "train.balance_losses=learned", "train.ema=0.9", "train.clip=1", "train.optimizer=sgd",
    ),
    "fp16 with average and clipping": (COLOURED, "train.precision=fp16", "train.ema=0.9", "train.clip=1"),
    "frozen, layers, balance": (
        "model.backbone=resnet18", "model.freeze=[conv1, bn1, layer1]", "data.sampling=balanced",
        "train.layer_decay=0.8", "train.optimizer=adam", "train.head_rate=5",
    ),
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS.keys())
def test_every_head_loss_and_augmentation_stays_on_its_gpu(
    settings: tuple[str, ...], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check(made.config(folder, tmp_path / "run", "train.batch=16", *settings), monkeypatch)


def test_the_batch_that_fits_is_tried_on_the_ranks_own_gpu(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hpe.train.auto_batch._LEAST_STEPS", 1)
    monkeypatch.setattr(torch.Tensor, "backward", lambda *_: None)
    weighted = f"model.heads={CLASSES % ('weights', 'logit-adjustment')}"
    with learning(made.config(folder, tmp_path / "run", "train.batch=auto", weighted), monkeypatch) as (job, _, _):
        assert job.batch == WORLD  # what fits was tried without mixing devices; how much it was is made up: one each


def test_a_mixed_device_and_a_wait_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge itself can say no."""
    with fake_rank(monkeypatch, PACKAGE.parent) as waits:
        here = torch.zeros(3, device="cuda:1")
        with pytest.raises(RuntimeError, match=r"devices?"):
            torch.add(here, torch.zeros(3, device="cuda:0"))
        for wait in (
            lambda: float(here.sum()),
            lambda: here[here > 0],
            lambda: torch.zeros(3).to("cuda:1", non_blocking=True),
            lambda: torch.tensor([1.0], device="cuda:1"),
        ):
            waits.found.clear()
            wait()
            assert len(waits.found) == 1
        waits.found.clear()
        torch.zeros(3).pin_memory().to("cuda:1", non_blocking=True)
        torch.full((), 1.0, device="cuda:1")
        here.to("cpu", non_blocking=True)
        assert not waits.found


# What follows runs for real, on the CPU.


@contextmanager
def on_cpu(config: RunConfig, *, scale: float | None = None) -> Iterator[tuple[Job, Learner]]:
    """A learner on the CPU; with ``scale`` in fp16, with a gradient scaler that starts there."""
    alone = Ranks(0, 1, 0, 1)
    with open_job(config, alone) as job:
        if scale is not None:  # which Accelerate makes for a GPU alone
            job.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=10**6)
            job.accelerator.native_amp, job.accelerator.state._mixed_precision = True, "fp16"
        yield job, Learner(job.config, job.network, job.losses, job.epoch_samples, alone, job.accelerator)


def copied(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in network.named_parameters()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_a_step_that_the_scaler_skips_changes_neither_weights_nor_average_and_does_not_count(
    folder: Path, tmp_path: Path
) -> None:
    """The average is judged by the published formula, over the weights after the steps that took place."""
    changes = ("train.ema=0.9", "train.clip=1", "augment={}", "train.optimizer=sgd", "train.schedule=constant")
    # Small images: a CPU computes fp16 slowly.
    config = made.config(folder, tmp_path / "run", *changes, "data.size=16")
    taken, state = 0, State(samples_seen=0, step=0)
    with on_cpu(config, scale=2.0**22) as (job, learner), job.batches(0) as loader:
        assert learner.ema is not None
        expected = copied(learner.network)
        for _ in range(30):
            before, average = copied(learner.network), copied(learner.ema.module)
            loaded = next(loader)
            learner.step(loaded, state, asked_here=False, measure_gradient=True)
            state = State(loaded.samples_seen, state.step + 1)
            after = copied(learner.network)
            if same(before, after):
                assert same(average, copied(learner.ema.module))
                continue
            assert learner.accelerator.scaler is not None
            decay = min(0.9, (1 + taken) / (10 + taken)) if taken else 0.0
            expected = {name: decay * expected[name] + (1 - decay) * value for name, value in after.items()}
            taken += 1
            assert 0.0 < float(learner._norm) < 1e4  # of the gradient as it is, not as it was scaled
            if taken == 4:
                break
        assert taken == 4
        assert state.step > taken + 2, "nothing was skipped: the start of the scale is too low"
        for name, value in copied(learner.ema.module).items():
            torch.testing.assert_close(value, expected[name])
        learner.save(job.run, state)
        assert learner.ema.steps == taken
        saved = job.run / "checkpoints" / "last"
    with on_cpu(config, scale=1.0) as (_, again):
        assert again.load(saved).step == state.step
        assert again.ema is not None
        assert again.ema.steps == taken
        assert same(copied(again.ema.module), copied(learner.ema.module))


def test_frozen_norms_keep_their_statistics_and_the_others_learn_them(folder: Path, tmp_path: Path) -> None:
    config = made.config(folder, tmp_path / "run", "model.freeze=[stem]")
    with on_cpu(config) as (job, learner), job.batches(0) as loader:
        before = {name: value.clone() for name, value in learner.network.named_buffers() if "running" in name}
        learner.step(next(loader), State(0, 0), asked_here=False, measure_gradient=False)
        after = dict(learner.network.named_buffers())
        moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert moved == {name for name in before if not name.startswith("backbone.stem")}


@pytest.mark.filterwarnings("ignore:Guards may run slower on Python 3.13.0")
def test_a_compiled_network_learns_what_the_plain_one_does(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Graphs are taken and differentiated, and run as they are: torch's own compiler would take two minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    found = []
    for name in ("plain", "compiled"):
        changes = ("model.heads.emotion.dropout=0", "train.optimizer=sgd", "train.learning_rate=0.01", "train.clip=1")
        config = made.config(folder, tmp_path / name, f"train.compile={str(name == 'compiled').lower()}", *changes)
        with on_cpu(config) as (job, learner), job.batches(0) as loader:
            state = State(samples_seen=0, step=0)
            for _ in range(3):
                loaded = next(loader)
                learner.step(loaded, state, asked_here=False, measure_gradient=True)
                state = State(loaded.samples_seen, state.step + 1)
            found.append((copied(learner.network), float(learner._norm)))
    (plain, norm), (compiled, its) = found
    assert plain.keys() == compiled.keys()
    assert its == pytest.approx(norm, rel=1e-2)
    for name, value in plain.items():  # AdamW would turn the rounding of a gradient near zero into a whole step
        torch.testing.assert_close(compiled[name], value, rtol=0, atol=1e-4, msg=name)
    torch.manual_seed(config.seed)
    start = build_network(config.model).state_dict()
    assert max(float((value - start[name]).abs().max()) for name, value in plain.items()) > 1e-3
