"""One precision rule, an environment that cannot change a run's arithmetic, and one GPU per rank."""

import os
import threading
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore

from hpe.config.run import RunConfig
from hpe.core import launch, notices
from hpe.core.distributed import accelerator, refuse_shared_gpus
from hpe.core.errors import UserError
from hpe.core.precision import Precision, chosen_precision, training_precision
from hpe.core.ranks import Ranks
from hpe.models.inference import judging_precision
from hpe.models.run_folder import TrainedOn
from hpe.train.resume import claim, recall
from tests import made
from tests.fake_gpu import gpus

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
ALONE = Ranks(0, 1, 0, 1)


@pytest.fixture(autouse=True)
def _told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    notices.tell_once.cache_clear()
    for name in [name for name in os.environ if name.startswith("ACCELERATE_")]:
        monkeypatch.delenv(name)


def cpu(monkeypatch: pytest.MonkeyPatch, *, bf16: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)


@pytest.mark.parametrize(
    ("name", "capability", "expected"),
    [
        ("Tesla V100", (7, 0), "fp32"),
        ("Tesla T4", (7, 5), "fp32"),
        ("NVIDIA A100", (8, 0), "bf16"),
        ("NVIDIA L4", (8, 9), "bf16"),
        ("NVIDIA H100", (9, 0), "bf16"),
        ("NVIDIA RTX 5090", (12, 0), "bf16"),
    ],
)
def test_auto_is_bf16_where_a_gpu_multiplies_it_and_not_where_it_is_emulated(
    monkeypatch: pytest.MonkeyPatch, name: str, capability: tuple[int, int], expected: str
) -> None:
    gpus(monkeypatch, name, capability)
    cpu(monkeypatch, bf16=False)
    found = chosen_precision("auto")
    assert found.name == expected
    assert ".".join(map(str, capability)) in found.why
    if expected == "fp32":
        assert name in found.why


@pytest.mark.parametrize("bf16", [True, False])
def test_auto_on_a_cpu_asks_its_instructions(monkeypatch: pytest.MonkeyPatch, bf16: bool) -> None:
    cpu(monkeypatch, bf16=bf16)
    assert chosen_precision("auto", CPU).name == ("bf16" if bf16 else "fp32")


def test_a_gpu_too_old_for_bf16_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "Tesla T4", (7, 5))
    with pytest.raises(UserError, match=r"--precision: bf16 needs .* 8\.0 .* Tesla T4.* 7\.5.* use fp16, fp32 or auto"):
        chosen_precision("bf16", asked="--precision")
    with pytest.raises(UserError, match=r"train\.precision: bf16 needs"):
        training_precision("bf16", None, run="run")
    assert chosen_precision("fp16").name == "fp16"


def test_what_no_device_here_can_do_and_what_is_no_precision_are_refused() -> None:
    with pytest.raises(UserError, match="fp16 needs a GPU"):
        chosen_precision("fp16", CPU)
    with pytest.raises(UserError, match="expected auto, bf16, fp16, fp32"):
        chosen_precision("fp8", CPU)


@pytest.mark.parametrize(
    ("asked", "recorded", "bf16", "expected"),
    [
        (None, "fp32", True, "fp32"),
        (None, "bf16", True, "bf16"),
        (None, "bf16", False, "fp32"),
        (None, "fp16", True, "fp32"),  # trained on a GPU, judged on a CPU
        (None, "auto", True, "bf16"),
        (None, "auto", False, "fp32"),
        ("bf16", "fp32", False, "bf16"),
        ("fp32", "bf16", True, "fp32"),
        ("auto", "fp32", True, "bf16"),
    ],
)
def test_a_run_is_judged_in_the_precision_of_its_training_unless_that_would_be_emulated(
    monkeypatch: pytest.MonkeyPatch, asked: str | None, recorded: str, bf16: bool, expected: str
) -> None:
    cpu(monkeypatch, bf16=bf16)
    assert judging_precision(asked, recorded, CPU).name == expected


# Accelerate's environment


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "true", "not with DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "True", "not with FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "true", "not with Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true", "not with a parallelism config"),
        ("ACCELERATE_TORCH_DEVICE", "meta", "ACCELERATE_TORCH_DEVICE is meta"),
        ("ACCELERATE_FP8_BACKEND", "fast", "Accelerate does not start: .*ACCELERATE_FP8_BACKEND"),
    ],
)
def test_an_environment_that_asks_for_another_way_of_training_is_refused(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str, told: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=told):
        accelerator("fp32")


def test_accelerates_variables_do_not_beat_the_config(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {
        "ACCELERATE_DYNAMO_BACKEND": "inductor",
        "ACCELERATE_DYNAMO_MODE": "max-autotune",
        "ACCELERATE_DYNAMO_USE_DYNAMIC": "true",
        "ACCELERATE_MIXED_PRECISION": "fp16",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    here = accelerator("fp32")
    assert here.mixed_precision == "no"
    assert here.gradient_accumulation_steps == 1
    assert here.scaler is None
    network = torch.nn.Linear(2, 2)
    assert here.prepare(network) is network  # neither compiled nor wrapped
    said = capsys.readouterr().err
    for name in ("ACCELERATE_DYNAMO_BACKEND", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
        assert f"{name}={given[name]} is not used" in said


def test_what_accelerate_config_left_in_the_home_folder_does_not_reach_the_launcher(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    left = tmp_path / "default_config.yaml"
    left.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nfsdp_config: {fsdp_version: 2}\n"
        "num_machines: 3\nnum_processes: 24\nmachine_rank: 2\nmain_process_ip: 10.0.0.1\ngpu_ids: 5,6\n"
        "mixed_precision: fp8\nuse_cpu: false\ndynamo_config: {dynamo_backend: INDUCTOR}\nenv: []\n"
        "gradient_accumulation_steps: 7\ndebug: true\n"
    )
    started: list[Namespace] = []
    for module in ("launch", "config.config_args"):
        monkeypatch.setattr(f"accelerate.commands.{module}.default_config_file", str(left))
    monkeypatch.setattr("accelerate.commands.launch.multi_gpu_launcher", started.append)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    with pytest.raises(SystemExit) as end:
        launch.relaunch(2, ["train", "x.yaml"])
    assert (end.value.code, len(started)) == (0, 1)
    found = started[0]
    assert (found.num_processes, found.num_machines, found.gpu_ids, found.mixed_precision) == (2, 1, "all", "no")
    assert (found.use_fsdp, found.dynamo_backend, found.main_process_ip, found.debug) == (False, "no", None, False)


# Devices


def test_two_ranks_on_one_gpu_are_named_by_every_rank() -> None:
    store, told = HashStore(), {}

    def rank(number: int, gpu: str) -> None:
        try:
            refuse_shared_gpus(store, Ranks(number, 3, number, 3), gpu)
        except UserError as error:
            told[number] = str(error)

    for mine, expected in ((("a 0", "a 1", "b 0"), 0), (("a 0", "a 1", "a 0"), 3)):
        store, told = HashStore(), {}
        threads = [threading.Thread(target=rank, args=(number, gpu)) for number, gpu in enumerate(mine)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(told) == expected
        assert all("ranks 0 and 2 have the same GPU (a 0)" in text for text in told.values())


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gpus(monkeypatch, "NVIDIA A100", (8, 0))
    with pytest.raises(UserError, match="--processes 2: only 1 GPU is visible"):
        launch.refuse_processes(2)


# What a run records, and how it resumes


def with_train(config: RunConfig, **settings: str) -> RunConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=settings)})


def written(run: Path, precision: str) -> RunConfig:
    config = made.config(run.parent / "shards", run, f"train.precision={precision}")
    run.mkdir()
    (run / "config.yaml").write_text(config.dump())
    return config


@pytest.mark.parametrize(
    ("recorded", "asked", "bf16", "expected"),
    [
        ("bf16", "auto", True, Precision("bf16", "as in this run until now")),
        ("fp32", "auto", True, Precision("fp32", "as in this run until now")),
        ("fp32", "bf16", True, Precision("bf16", "as asked for")),  # refused later, as any other change of the config
    ],
)
def test_auto_keeps_to_the_precision_of_the_run_so_far(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, recorded: str, asked: str, bf16: bool, expected: Precision
) -> None:
    cpu(monkeypatch, bf16=bf16)
    config = written(tmp_path / "run", recorded)
    recorded_there = recall(with_train(config, precision="auto"))[1]
    assert training_precision(asked, recorded_there, run="run") == expected


def test_a_resume_on_hardware_without_the_runs_precision_needs_a_flag(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = with_train(written(tmp_path / "run", "bf16"), precision="auto")
    gpus(monkeypatch, "Tesla T4", (7, 5))
    with pytest.raises(UserError, match=r"was trained in bf16 until now.*continue in fp32.*--change-precision"):
        training_precision("auto", recall(config)[1], run="run")
    assert training_precision("auto", recall(config, change_precision=True)[1], run="run").name == "fp32"
    fp32 = with_train(config, precision="fp32")
    with pytest.raises(UserError, match="--change-precision to continue in another") as refused:
        recall(fp32)
    assert 'train.precision: "bf16" -> "fp32"' in str(refused.value)
    with claim(recall(fp32, change_precision=True)[0], Ranks(0, 1, 0, 1), lambda: TrainedOn({}, {})):
        pass
    assert "precision: fp32" in (tmp_path / "run/config.yaml").read_text()
