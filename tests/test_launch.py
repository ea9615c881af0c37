"""The ways to start a job: launch/slurm.sh, launch/*.yaml, torchrun, and a signal that only the launcher gets."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
from torch.distributed import run

from hpe.core.errors import EXIT_AGAIN, EXIT_USAGE
from hpe.models import checkpoints
from hpe.tools import doctor
from tests import made
from tests.test_cli import EVERY

ROOT = Path(__file__).parents[1]
LAUNCHERS_OWN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
SRUN = """#!/bin/sh
echo "$OMP_NUM_THREADS $SRUN_CPUS_PER_TASK $MASTER_ADDR $MASTER_PORT $*" > srun.called
case $1:$SRUN_ENDS in
  *:"") ;;
  *) exit $SRUN_ENDS ;;
esac
"""
# As ranks that leave at once; sigwait, because a shell's or Python's own handlers may miss the first signal.
RANKS = f"""#!{sys.executable} -IS
import os, signal

awaited = [signal.SIGUSR1, signal.SIGTERM]
signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
file = os.open("srun.signal", os.O_WRONLY | os.O_CREAT)
open("srun.called", "w").write("waits")
os.write(file, b"%d" % signal.sigwait(awaited))
os._exit({EXIT_AGAIN})
"""
SCONTROL = """#!/bin/sh
echo "$*" >> scontrol.called
case $1 in
  show) case $2 in hostnames) printf 'first\\nsecond\\n' ;; *) echo "JobState=RUNNING $SHOWN" ;; esac ;;
  requeue) exit ${REQUEUE_ENDS:-0} ;;
esac
"""


def slurm(folder: Path, *arguments: str, srun: str = SRUN, **variables: str) -> subprocess.Popen[str]:
    """The batch script as Slurm starts it, with stand-ins for Slurm's programs; files lie in ``folder``."""
    for name, text in (("srun", srun), ("scontrol", SCONTROL)):
        program = folder / name
        program.write_text(text)
        program.chmod(0o700)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "40711",
        "SLURM_JOB_NODELIST": "first,second",
        "SLURM_CPUS_PER_TASK": "12",
    }
    return subprocess.Popen(
        ["bash", str(ROOT / "launch" / "slurm.sh"), *arguments],
        cwd=folder, env=environment | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def said(folder: Path, name: str) -> list[str]:
    path = folder / f"{name}.called"
    return path.read_text().splitlines() if path.exists() else []


def test_slurm_gives_the_command_to_srun_with_a_place_to_meet_threads_and_their_cores(tmp_path: Path) -> None:
    with slurm(tmp_path, "my config.yaml", "--set", "train.epochs=3", SRUN_ENDS="0") as job:
        assert job.wait(60) == 0
    assert said(tmp_path, "srun") == [
        "12 12 first 20711 --kill-on-bad-exit=1 --wait=0 hpe train my config.yaml --set train.epochs=3"
    ]
    assert said(tmp_path, "scontrol") == ["show hostnames first,second"]


@pytest.mark.parametrize(
    ("given", "started"),
    [
        (["pose", "shards", "-e", "a b.yaml"], "hpe pose shards -e a b.yaml"),
        (["train", "x.yaml", "--run", "runs/%a"], "hpe train x.yaml --run runs/7"),
        (["x.yml"], "hpe train x.yml"),
    ],
)
def test_slurm_starts_any_command_with_the_number_within_an_array(
    tmp_path: Path, given: list[str], started: str
) -> None:
    with slurm(tmp_path, *given, SRUN_ENDS="0", SLURM_ARRAY_TASK_ID="7", HPE="apptainer exec hpe.sif hpe") as job:
        assert job.wait(60) == 0
    assert said(tmp_path, "srun")[0].endswith(f"--wait=0 apptainer exec hpe.sif {started}")


@pytest.mark.parametrize(
    ("code", "shown"), [(EXIT_AGAIN, ""), (138, ""), (143, "PreemptTime=2026-11-26T06:06:24")], ids=str
)
def test_slurm_puts_a_job_back_into_the_queue_that_a_signal_has_ended(tmp_path: Path, code: int, shown: str) -> None:
    with slurm(tmp_path, "run.yaml", SRUN_ENDS=str(code), SHOWN=shown) as job:
        told, _ = job.communicate(timeout=60)
    assert job.returncode == 0
    assert said(tmp_path, "scontrol")[-1] == "requeue 40711"
    assert "; requeued as 40711" in told
    assert told.startswith("hpe: saved; ") == (code == EXIT_AGAIN)


def test_a_job_that_is_warned_again_before_it_has_saved_is_not_tried_for_ever(tmp_path: Path) -> None:
    with slurm(tmp_path, "run.yaml", SRUN_ENDS="138", SLURM_RESTART_COUNT="1") as job:
        told, _ = job.communicate(timeout=60)
    assert job.returncode == 138
    assert "requeue 40711" not in said(tmp_path, "scontrol")
    assert "ask for a longer --time" in told


def test_a_job_that_slurm_does_not_take_back_is_no_success(tmp_path: Path) -> None:
    with slurm(tmp_path, "run.yaml", SRUN_ENDS=str(EXIT_AGAIN), REQUEUE_ENDS="1") as job:
        assert job.wait(60) == EXIT_AGAIN


@pytest.mark.parametrize("code", [0, 1, 2, 130, 137, 143])
def test_slurm_sees_every_other_exit_code_of_the_ranks(tmp_path: Path, code: int) -> None:
    with slurm(tmp_path, "run.yaml", SRUN_ENDS=str(code), SHOWN="PreemptTime=None") as job:
        assert job.wait(60) == code
    assert "requeue 40711" not in said(tmp_path, "scontrol")


@pytest.mark.parametrize(
    ("reported", "code"),
    [
        (("task 0: Exited with exit code 2", "task 1: Exited with exit code 75"), 2),
        (("tasks 1-3: Exited with exit code 1", "task 0: Terminated"), 1),
        (("task 1: Killed", "task 0: Exited with exit code 75"), 137),
        (("task 1: Out Of Memory", "task 0: Exited with exit code 75"), 137),
        (("task 0: Exited with exit code 75", "task 1: Killed"), EXIT_AGAIN),
    ],
    ids=str,
)
def test_the_rank_that_fails_first_decides_about_a_job_and_not_what_the_others_do_then(
    tmp_path: Path, reported: tuple[str, ...], code: int
) -> None:
    """srun ends the others, which may have saved; and it exits with the highest code of all."""
    lines = [f"srun: error: node1: {line}" for line in reported]
    srun = SRUN + "echo 'a rank prints: task 9: Exited with exit code 9' >&2\n"
    srun += "".join(f"echo '{line}' >&2\n" for line in lines)
    with slurm(tmp_path, "run.yaml", srun=srun + f"exit {max(code, EXIT_AGAIN)}\n", SRUN_ENDS="") as job:
        _, errors = job.communicate(timeout=60)
    assert job.returncode == (0 if code == EXIT_AGAIN else code)
    assert ("requeue 40711" in said(tmp_path, "scontrol")) == (code == EXIT_AGAIN)
    assert errors.splitlines()[1:] == lines


def test_slurm_without_a_config_is_a_mistake_that_starts_nothing(tmp_path: Path) -> None:
    with slurm(tmp_path) as job:
        _, told = job.communicate(timeout=60)
    assert job.returncode == EXIT_USAGE
    assert "usage: sbatch" in told
    assert said(tmp_path, "srun") == said(tmp_path, "scontrol") == []


@pytest.mark.parametrize(
    ("number", "shown", "told"),
    [
        (signal.SIGUSR1, "Restarts=0", "saved; requeued as 40711"),
        (signal.SIGTERM, "Restarts=0", "40711 was cancelled (saved); submit it again to resume"),
        (signal.SIGTERM, "Restarts=1", "pre-empted; Slurm has requeued 40711"),
    ],
    ids=["warned", "cancelled", "pre-empted"],
)
def test_a_signal_to_slurms_script_reaches_srun_whose_code_counts(
    tmp_path: Path, number: signal.Signals, shown: str, told: str
) -> None:
    """Five times: srun's code must not be lost where it ends at once, between the script's looks at it.

    scancel and a pre-emption both end the script with SIGTERM; after a pre-emption Slurm has requeued the job itself.
    """
    for turn in range(5):
        folder = tmp_path / str(turn)
        folder.mkdir()
        with slurm(folder, "run.yaml", srun=RANKS, SHOWN=shown) as job:
            await_file(folder / "srun.called", job)
            job.send_signal(number)
            printed, _ = job.communicate(timeout=60)
        assert (folder / "srun.signal").read_text() == str(int(number))
        assert printed.splitlines()[0] == f"hpe: {told}"
        assert ("requeue 40711" in said(folder, "scontrol")) == (number == signal.SIGUSR1)
        assert job.returncode == (0 if number == signal.SIGUSR1 else EXIT_AGAIN)


def await_file(path: Path, job: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size) and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.01)
    assert path.exists(), f"{path} did not come"
    time.sleep(0.05)  # the script sets its traps right after it has started srun


def test_what_slurm_is_asked_for_fits_together() -> None:
    text = (ROOT / "launch" / "slurm.sh").read_text(encoding="utf-8")
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", text, re.MULTILINE))
    assert asked["ntasks-per-node"] == asked["gpus-per-node"]  # one process a GPU
    assert asked["signal"] == "USR1@600"  # to the steps and not to the script alone (B:), ten minutes before
    assert "\n#SBATCH --requeue\n" in text


@pytest.mark.parametrize(
    ("name", "machines", "processes"), [("cpu2", 1, 2), ("gpu1", 1, 1), ("node8", 1, 8), ("nodes", 2, 16)]
)
def test_accelerate_reads_the_launch_configs_as_they_are_meant(name: str, machines: int, processes: int) -> None:
    config = load_config_from_file(str(ROOT / "launch" / f"{name}.yaml"))
    assert isinstance(config, ClusterConfig)
    assert (config.num_machines, config.num_processes) == (machines, processes)
    assert str(config.mixed_precision) == "no"  # the run's own config decides
    assert config.distributed_type == ("NO" if processes == 1 else "MULTI_GPU")


def test_every_launch_config_is_tested() -> None:
    assert {path.stem for path in (ROOT / "launch").glob("*.yaml")} == {"cpu2", "gpu1", "node8", "nodes", "kubernetes"}


def kubernetes() -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / "launch" / "kubernetes.yaml").read_text(encoding="utf-8")))


@pytest.mark.parametrize("part", kubernetes(), ids=lambda part: part["kind"])
def test_every_field_on_kubernetes_is_one_of_the_schema_that_it_publishes(part: dict[str, Any]) -> None:
    kubernetes_validate.validate(part, kubernetes_validate.latest_version(), strict=True)


def test_the_job_on_kubernetes_starts_the_ranks_that_it_counts() -> None:
    parts = kubernetes()
    by_name = {(part["kind"], part["metadata"]["name"]): part for part in parts}
    job, service = by_name["Job", "hpe-train"]["spec"], by_name["Service", "hpe-train"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    options = dict(word.split("=", 1) for word in container["command"] if "=" in word)
    assert job["completions"] == job["parallelism"] == int(options["--nnodes"])
    assert container["resources"]["limits"]["nvidia.com/gpu"] == int(options["--nproc-per-node"])
    assert options["--master-addr"] == f"hpe-train-0.{pod['subdomain']}"
    assert service["selector"] == {"job-name": "hpe-train"}
    torchrun = run.get_args_parser().parse_args(
        [w.replace("$(JOB_COMPLETION_INDEX)", "1") for w in container["command"][1:]]
    )
    assert (torchrun.node_rank, torchrun.module, torchrun.training_script) == (1, True, "hpe")
    parses(["hpe", *container["args"]][1:])
    (saving,) = [int(one["value"]) for one in container["env"] if one["name"] == "TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]
    assert saving < pod["terminationGracePeriodSeconds"] == 120
    assert (ROOT / container["args"][1]).is_file()
    for part in parts:
        spec = part["spec"].get("template", {}).get("spec", {})
        volumes = {volume["name"] for volume in spec.get("volumes", ())}
        mounts = [mount for one in spec.get("containers", ()) for mount in one["volumeMounts"]]
        assert {mount["name"] for mount in mounts} == volumes
        claims = {v["persistentVolumeClaim"]["claimName"] for v in spec.get("volumes", ()) if "emptyDir" not in v}
        assert claims <= {name for kind, name in by_name if kind == "PersistentVolumeClaim"}


ENVIRONMENT = {name: value for name, value in os.environ.items() if name not in LAUNCHERS_OWN} | {
    "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "PYTHONPATH": str(ROOT),
    "CUDA_VISIBLE_DEVICES": "",
}
ENVIRONMENT.pop("ACCELERATE_USE_CPU", None)
PROGRAMS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("made") / "shards", counts=(16, 8), val=8)


@pytest.mark.everywhere
@pytest.mark.slow
@pytest.mark.parametrize(
    "launcher",
    [
        "accelerate launch --config_file launch/cpu2.yaml --main_process_port 0",  # as in README, but on a free port
        "torchrun --nproc_per_node 2 --rdzv-backend c10d --rdzv-endpoint localhost:0",
    ],
    ids=lambda launcher: launcher.split()[0],
)
def test_a_launcher_starts_two_ranks_on_a_cpu_that_write_a_checkpoint(
    folder: Path, tmp_path: Path, launcher: str
) -> None:
    run, file = tmp_path / "run", tmp_path / "run.yaml"
    file.write_text(made.config(folder, run).dump())
    program, *options = launcher.split()
    done = subprocess.run(
        [PROGRAMS / program, *options, "-m", "hpe", "train", str(file)],
        env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    state = checkpoints.State.load(checkpoints.find_checkpoint(run, "last"))
    assert (state.samples_seen, state.ranks) == (24, 2)


@pytest.mark.slow
@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGUSR1)], ids=["SIGTERM-SIGUSR1"])
def test_a_signal_to_the_launcher_alone_saves_and_the_same_command_goes_on(
    folder: Path, tmp_path: Path, numbers: tuple[signal.Signals, ...]
) -> None:
    run, file = tmp_path / "run", tmp_path / "run.yaml"
    file.write_text(made.config(folder, run, "train.epochs=4000", "train.checkpoint_steps=3").dump())
    command = [sys.executable, "-m", "hpe", "train", str(file), "--processes", "2"]
    seen = 0
    for number in numbers:
        with subprocess.Popen(command, env=ENVIRONMENT, cwd=ROOT, stderr=subprocess.PIPE, text=True) as job:
            deadline = time.monotonic() + 120
            while time.monotonic() < deadline and job.poll() is None and samples_seen(run) <= seen:
                time.sleep(0.1)
            written = samples_seen(run)
            os.kill(job.pid, number)
            _, told = job.communicate(timeout=60)
        assert job.returncode == EXIT_AGAIN, told
        assert samples_seen(run) >= written > seen
        assert "Traceback" not in told
        assert "saved" in told
        seen = samples_seen(run)


def samples_seen(run: Path) -> int:
    return (
        checkpoints.State.load(checkpoints.find_checkpoint(run, "last")).samples_seen if checkpoints.saved(run) else 0
    )


COMPOSE = ROOT / "docker" / "compose.yaml"
DOCKERFILE = ROOT / "docker" / "Dockerfile"


def parses(words: list[str]) -> None:
    """See that hpe's own parser takes these words behind ``hpe``."""
    name, *arguments = words
    dict(EVERY)[name,].make_context(name, arguments)


def test_the_containers_commands_are_commands_of_hpe() -> None:
    text = COMPOSE.read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]
    parses(services["demo"]["command"])
    train = [re.sub(r"\$\{\w+:-(\w+)\}", r"\1", word) for word in services["train"]["command"]]
    assert (ROOT / train[1]).is_file()
    parses(train)
    shown = re.findall(
        r"^# .*docker compose -f docker/compose\.yaml run train (.+)$", re.sub(r"\\\n# +", "", text), re.MULTILINE
    )
    assert shown
    for line in shown:
        parses(shlex.split(line))
    docker = DOCKERFILE.read_text(encoding="utf-8")
    (health,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", docker, re.MULTILINE)
    program, *words = yaml.safe_load(health)
    assert program == "hpe"
    parses(words)
    assert 'ENTRYPOINT ["hpe"]' in docker


def test_compose_builds_this_repositorys_dockerfile_and_keeps_its_folders() -> None:
    compose = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))
    train, board = compose["services"]["train"], compose["services"]["tensorboard"]
    context = (COMPOSE.parent / train["build"]["context"]).resolve()
    assert (context / train["build"]["dockerfile"]).samefile(DOCKERFILE)
    volumes = re.findall(r"^VOLUME (\[.*\])$", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE)
    kept = set(yaml.safe_load(volumes[0]))
    assert compose["services"]["demo"]["profiles"] == ["cpu"]  # so that `up` needs no second image
    assert {volume.split(":/")[-1].removesuffix(":ro") for volume in train["volumes"]} == {v.lstrip("/") for v in kept}
    named = {re.sub(r"\$\{\w+:-(\w+)\}", r"\1", v).split(":")[0] for s in (train, board) for v in s["volumes"]}
    assert named == set(compose["volumes"])
    assert train["image"] == board["image"]


def test_every_container_has_the_shared_memory_that_its_health_check_asks_for() -> None:
    services = yaml.safe_load(COMPOSE.read_text(encoding="utf-8"))["services"]
    for name in ("train", "demo"):  # the board has a check of its own
        size = re.fullmatch(r"(\d+)gb", services[name]["shm_size"])  # GiB, as Docker counts
        assert size is not None
        assert int(size[1]) > doctor._LOW_SHARED_GIB


def test_what_the_dockerfile_copies_is_there_and_enough_to_install() -> None:
    text = DOCKERFILE.read_text(encoding="utf-8")
    copied = [words for line in re.findall(r"^COPY --chown=\S+ (.+)$", text, re.MULTILINE) if (words := line.split())]
    assert len(copied) == text.count("COPY")
    sources = [source for *sources, _ in copied for source in sources]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    before = text[: text.index("make install")]
    for needed in ("pyproject.toml", "Makefile", "README.md", "LICENSE", "hpe/__init__.py"):  # what hatchling reads
        assert needed in before


def test_the_apptainer_recipe_installs_as_the_dockerfile_does() -> None:
    text = (ROOT / "docker" / "hpe.def").read_text(encoding="utf-8")
    docker = DOCKERFILE.read_text(encoding="utf-8")
    copied = [line.split()[0] for line in re.findall(r"^    (\S+ /opt/hpe/\S+)$", text, re.MULTILINE)]
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {"pyproject.toml", "Makefile", "README.md", "LICENSE", "hpe", "configs"} == set(copied)
    base, extras = re.findall(r"^From: (\S+)$|EXTRAS=(\S+)$", text, re.MULTILINE)
    assert f"ARG BASE={base[0]}\n" in docker
    assert f"EXTRAS={extras[1]}\n" in docker


def test_the_dockerfile_tells_a_base_with_another_python_which_argument_to_give() -> None:
    (check,) = re.findall(
        r"^RUN python3 -c '(.+?)' \\", DOCKERFILE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    for version, told in (((3, 11), ""), ((3, 14, 2), ""), ((3, 10), "3.10"), ((3, 15), "3.15")):
        pretended = f"import sys; sys.version_info = {version}; {check.removeprefix('import sys; ')}"
        done = subprocess.run([sys.executable, "-c", pretended], capture_output=True, text=True, check=False)
        assert (f"this base has {told}: choose another with --build-arg BASE" in done.stderr) == bool(told)
        assert done.returncode == bool(told)
