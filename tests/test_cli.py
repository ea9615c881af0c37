"""The command line's frame: help with examples that parse, versions, completion, refusals in one message."""

import errno
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from hpe import __main__ as entry
from hpe import cli
from hpe.core.errors import UserError
from hpe.core.files import locked

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "numpy", "pandas", "accelerate", "pyarrow", "datasets", "matplotlib")


def commands(group: object = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], TyperCommand]]:
    """Every command with its words, groups opened."""
    group = group or typer.main.get_command(cli.app)
    assert isinstance(group, TyperGroup)
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, (*path, name))
        else:
            assert isinstance(command, TyperCommand)
            yield (*path, name), command


EVERY = list(commands())


def hpe_command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("hpe")  # completion is told for the script's name
    return subprocess.run([script, *arguments], capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize(("path", "command"), EVERY, ids=[" ".join(path) for path, _ in EVERY])
def test_every_command_shows_an_example_that_parses(path: tuple[str, ...], command: TyperCommand) -> None:
    examples = re.findall(r"`(hpe [^`]+)`", re.sub(r"\s*\n\s*", " ", command.help or ""))
    mine = [shlex.split(example)[1:] for example in examples]
    mine = [words for words in mine if tuple(words[: len(path)]) == path]
    assert mine, f"hpe {' '.join(path)} has no example of itself"
    for words in mine:
        command.make_context(path[-1], words[len(path) :])  # raises where an option is not there


def test_every_option_and_argument_has_a_help_text() -> None:
    silent = [
        (" ".join(path), parameter.name)
        for path, command in EVERY
        for parameter in command.params
        if not getattr(parameter, "help", None)
    ]
    assert silent == []


def panel(one: object) -> str | None:
    """The heading under which rich shows a command or an option."""
    return getattr(one, "rich_help_panel", None)


def test_help_groups_the_commands_in_the_order_of_the_pipeline() -> None:
    top = typer.main.get_command(cli.app)
    assert isinstance(top, TyperGroup)
    groups = {panel(command): None for command in top.commands.values()}
    assert list(groups) == ["Data", "Pose", "Training", "Evaluation", "Study", "Tools"]
    assert panel(top.commands["landmarks"]) == "Pose"


@pytest.mark.parametrize("name", ["pack", "pose", "evaluate", "predict"])
def test_a_command_of_many_options_groups_all_of_them(name: str) -> None:
    options = [one for one in dict(EVERY)[(name,)].params if isinstance(one, TyperOption)]
    assert len(options) > 8
    assert {panel(one) for one in options} == {"What to read and write", "How", "Machine"}


def test_the_configs_of_the_examples_come_with_hpe() -> None:
    told = " ".join(command.help or "" for _, command in EVERY)
    named = set(re.findall(r"configs/[\w/]+\.yaml", told))
    assert named
    assert [name for name in named if not (ROOT / name).is_file()] == []


def test_help_loads_nothing_heavy() -> None:
    script = (
        "import sys; sys.argv = ['hpe', '--help']\n"
        "from hpe.__main__ import main\n"
        "try: main()\n"
        f"except SystemExit: print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr == "[]\n"
    for path, _ in EVERY:
        assert path[0] in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_shown(shell: str) -> None:
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # or it is of the shell, if any, above this process
    done = hpe_command("--show-completion", shell, **named)
    assert done.returncode == 0
    assert f"_HPE_COMPLETE=complete_{shell}" in done.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_completion_is_shown_for_the_shell_above() -> None:
    script = Path(sys.executable).with_name("hpe")
    called = f"{shlex.quote(str(script))} --show-completion; exit $?"  # a bash that ends so stays while hpe runs
    done = subprocess.run(["bash", "-c", called], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "_HPE_COMPLETE=complete_bash" in done.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash here")
def test_bash_completes_a_command() -> None:
    done = hpe_command(_HPE_COMPLETE="complete_bash", COMP_WORDS="hpe eva", COMP_CWORD="1")
    assert done.stdout.split() == ["evaluate"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("no-such-command",), "no-such-command"),
        (("train",), "config"),
        (("train", "absent.yaml"), "absent.yaml"),
        (("train", "absent.yaml", "--epochs", "3"), "use --set train.epochs=3"),
        (("train", "absent.yaml", "--batch-size", "8"), "use --set train.batch=8"),
        (("train", "absent.yaml", "--output", "x"), "--output; use --run "),
        (("predict", "absent", "a.jpg", "--detector", "mtcnn"), "--detector; use --faces "),
        (("predict", "absent", "a.jpg", "--output-dir=x"), "--output-dir; use --out "),
        (("pack", "folders", "a", "b", "--faces", "hog"), "--faces; use --detector "),
        (("pose", "shards", "-e", "absent", "--cuda"), "--cuda; use --device "),
        (("evaluate", "absent", "shards", "--checkpoint", "last"), "--checkpoint; use --which "),
        (("app", "absent", "--deviec", "cpu"), "Possible options: --device"),
        (("evaluate", "absent", "shards", "--batch", "many"), "--batch"),
        (("demo", "--count", "3"), "--count"),
        (("demo", "--count", "1000000000"), "--count"),
        (("configs", "/dev/null/x"), "/dev/null/x"),
    ],
)
def test_a_mistake_is_one_message_and_exit_code_2(arguments: tuple[str, ...], told: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "hpe", *arguments], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


ABSENT = "runs/nime: no such run or estimator; expected a run folder, .*; did you mean runs/mine"
UNTRAINED = (
    "runs/mine: this run is not trained yet: it has no checkpoint; train it with `hpe train runs/mine/config.yaml`"
)
TRAINING = "runs/busy: this run has no checkpoint yet; another process is training it: wait for the first one"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("predict", "runs/nime", "a.jpg"), ABSENT),
        (("evaluate", "runs/nime", "shards"), ABSENT),
        (("export", "runs/nime", "a.onnx"), ABSENT),
        (("share", "runs/nime", "shared"), ABSENT),
        (("pose", "shards", "-e", "runs/nime"), ABSENT),
        (("pose", "shards", "-e", "runs/done", "--direction-network", "runs/nime"), ABSENT),
        (("app", "run/nime"), "did you mean runs/mine"),
        (("report", "runs/nime"), "runs/nime: no such run or study; .*; did you mean runs/mine"),
        (("predict", "runs/mine", "a.jpg"), UNTRAINED),
        (("export", "runs/mine", "a.onnx"), UNTRAINED),
        (("evaluate", "runs/busy", "shards"), TRAINING),
        (("predict", "runs", "a.jpg"), "runs: holds runs, and is none; give one of them: runs/busy, runs/done, "),
        (("evaluate", "shards", "runs/done"), "shards: shards that `hpe pack` wrote; .* Were two arguments swapped"),
    ],
)  # fmt: skip
def test_a_network_that_is_not_there_is_told_before_torch_is_loaded(
    arguments: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    for name in ("mine", "busy", "done"):
        (tmp_path / "runs" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / name / "config.yaml").touch()
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards/manifest.json").touch()
    (tmp_path / "runs/mine/checkpoints/.step-00000001.part").mkdir()  # a kill left it
    (tmp_path / "runs/mine/checkpoints/.step-00000001.part/state.json").touch()
    (tmp_path / "runs/done/checkpoints/step-00000001").mkdir()
    (tmp_path / "runs/done/checkpoints/step-00000001/state.json").touch()
    script = (
        f"import sys; sys.argv = ['hpe', *{arguments!r}]\n"
        "from hpe.__main__ import main\n"
        "try: main()\n"
        "finally: print('torch is loaded:', 'torch' in sys.modules, file=sys.stderr)"
    )
    leave = "import hpe.core.ranks as ranks; ranks.leave = sys.exit"  # the real one ends without a `finally`
    with locked(tmp_path / "runs/busy/.lock", "taken"):
        done = subprocess.run(
            [sys.executable, "-c", f"import sys; {leave}\n{script}"], capture_output=True, text=True, cwd=tmp_path
        )
    assert done.returncode == 2
    message, _, loaded = done.stderr.strip().rpartition("\n")
    assert re.search(told, message)
    assert loaded == "torch is loaded: False"


def ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException) -> tuple[int, str]:
    """Exit code and message of a command line whose command raises this."""

    def fails() -> None:
        raise error

    monkeypatch.setattr(cli, "app", fails)
    monkeypatch.setattr("hpe.core.signals.end_on_signals", lambda: None)  # the signals of this process are pytest's
    with pytest.raises(SystemExit) as end:
        entry.main()
    assert isinstance(end.value.code, int)
    return end.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "kind", ["ENOENT", "EACCES", "ENAMETOOLONG", "ELOOP", "ENOSPC", "EROFS", "EEXIST", "ENOTDIR", "EISDIR"]
)
def test_trouble_with_files_that_nobody_foresaw_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    number = getattr(errno, kind)
    code, told = ends(monkeypatch, capsys, OSError(number, os.strerror(number), "some/\udcffplace"))
    assert code == 2
    assert re.fullmatch(rf"hpe: 'some/\\+udcffplace': {os.strerror(number).lower()}; .+\n", told)


def patience(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What a rank waits for others to tell, by a clock that only this wait moves."""
    waited: list[float] = []
    monkeypatch.setattr(entry, "time", SimpleNamespace(sleep=waited.append, monotonic=lambda: sum(waited)))
    return waited


def test_a_mistake_that_no_other_rank_has_told_is_told_after_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waited = patience(monkeypatch)
    monkeypatch.setattr("hpe.core.ranks.from_parent", lambda: None)
    monkeypatch.setenv("RANK", "3")
    assert ends(monkeypatch, capsys, UserError("a.tar, face: no picture")) == (
        2,
        "hpe: rank 3: a.tar, face: no picture\n",
    )
    assert 9 < sum(waited) < 11
    waited.clear()
    lost = RuntimeError(f"[{GLOO}/pair.cc:538] Connection closed by peer [127.0.0.1]:62162")
    # of the rank that is to tell: its launcher ends this one meanwhile
    assert ends(monkeypatch, capsys, lost) == (1, f"hpe: rank 3 stops because another rank is gone: {lost}\n")
    assert 9 < sum(waited) < 11


def test_a_rank_that_is_ended_while_another_is_to_tell_is_silent(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("hpe.core.ranks.from_parent", lambda: None)
    ended = SimpleNamespace(sleep=lambda _: os.kill(os.getpid(), signal.SIGTERM), monotonic=time.monotonic)
    monkeypatch.setattr(entry, "time", ended)
    monkeypatch.setenv("RANK", "3")
    assert ends(monkeypatch, capsys, UserError("a.tar, face: no picture")) == (2, "")


GLOO = "/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp"
TROUBLE = "NCCL error in: /pytorch/torch/csrc/distributed/c10d/NCCLUtils.hpp:268, {}, NCCL version 2.21.5"
REMOTE = "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely."
SYSTEM = (
    "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error. "
    "It can be also caused by unexpected exit of a remote peer."
)
INVALID = "ncclInvalidUsage: This usually reflects invalid usage of NCCL library."
INTERNAL = "ncclInternalError: Internal check failed."
CUDA = "ncclUnhandledCudaError: Call to CUDA function failed."


def nccl(trouble: str, explained: str, last: str | None = None) -> RuntimeError:
    """An error of NCCL as torch words it."""
    reason = "" if last is None else f"\nLast error:\n{last}\n"
    return dist.DistBackendError(f"{TROUBLE.format(trouble)}\n{explained}{reason}")


# In the words that torch 2.15 gave where one of two processes was killed or never came, and, of NCCL, in those of
# reports to NCCL's and PyTorch's trackers.
A_PEER_IS_GONE = [
    RuntimeError(f"[{GLOO}/pair.cc:545] Read error [127.0.0.1]:62162: Connection reset by peer. This is typically …"),
    RuntimeError(f"[{GLOO}/pair.cc:561] Connection closed by peer [127.0.0.1]:16782. This is typically caused by …"),
    RuntimeError(f"[{GLOO}/unbound_buffer.cc:78] Timed out waiting 3000ms for recv operation to complete"),
    dist.DistNetworkError("Failed to recv, got 0 bytes. Connection was likely closed. Did the remote server crash?"),
    dist.DistNetworkError("Broken pipe"),
    dist.DistStoreError("wait timeout after 300000ms, keys: /default_pg/0//cuda//0"),
    dist.DistBackendError(
        "[1] is setting up NCCL communicator and retrieving ncclUniqueId from [0] via c10d key-value store by key '0', "
        "but store->get('0') got error: Connection reset by peer"
    ),
    nccl(
        "remote process exited or there was a network error",
        REMOTE,
        "socketProgressOpt: Call to recv from 172.16.0.2<33759> failed : Connection reset by peer",
    ),
    nccl("internal error", INTERNAL, "Net : Connection closed by remote peer user<50260>"),
]
OTHER_TROUBLE = [
    (
        nccl("invalid usage", INVALID, "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 5000"),
        2,
        "Duplicate GPU detected : rank 1 and rank 0 both on CUDA device 5000; start at most one process per GPU",
    ),
    (
        nccl("internal error", INTERNAL, "Bootstrap : no socket interface found"),
        2,
        "Bootstrap : no socket interface found; set NCCL_SOCKET_IFNAME",
    ),
    (
        nccl("unhandled system error", SYSTEM, "Error while creating shared memory segment /dev/shm/nccl-8Yk2hk"),
        1,
        "version 2.21.5: Error while creating shared memory segment /dev/shm/nccl-8Yk2hk; `hpe doctor`",
    ),
    (nccl("unhandled system error", SYSTEM), 1, "version 2.21.5; `hpe doctor`"),
    (
        nccl("unhandled cuda error", CUDA, "Cuda failure 999 'unknown error'"),
        1,
        "version 2.21.5: Cuda failure 999 'unknown error'; `hpe doctor`",
    ),
    (
        RuntimeError(f"[enforce fail at {GLOO}/device.cc:84] ifa != nullptr. Unable to find address for: eth77"),
        2,
        "Unable to find address for: eth77; set GLOO_SOCKET_IFNAME",
    ),
    (
        dist.DistNetworkError(
            "The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, "
            "code: -98, name: EADDRINUSE, message: address already in use"
        ),
        2,
        "where another process of this machine listens already, such as another training; set MASTER_PORT to a free",
    ),
    (
        dist.DistNetworkError(
            "The client socket has timed out after 2000ms while trying to connect to (node0, 29500)."
        ),
        2,
        "MASTER_ADDR:MASTER_PORT is node0:29500, but the ranks cannot connect there (The client socket has timed out "
        "after 2000ms while trying to connect to (node0, 29500)); start rank 0 there",
    ),
    (
        dist.DistStoreError("Timed out after 601 seconds waiting for clients. 1/2 clients joined."),
        2,
        "waiting for clients. 1/2 clients joined; start as many ranks as WORLD_SIZE",
    ),
]


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [*((error, 1, "rank 1 stops because another rank is gone: ") for error in A_PEER_IS_GONE), *OTHER_TROUBLE],
)
def test_trouble_among_ranks_is_one_message_with_the_cause(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RuntimeError, code: int, told: str
) -> None:
    monkeypatch.setattr("hpe.core.ranks.from_parent", lambda: None)
    patience(monkeypatch)
    for name, value in {"RANK": "1", "MASTER_ADDR": "node0", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    ended, line = ends(monkeypatch, capsys, error)
    assert (ended, line.count("\n")) == (code, 1)
    assert told in line
    assert str(error).partition("\n")[0].rstrip(".") in line
    assert ("another rank is gone" in line) == (error in A_PEER_IS_GONE)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("gloo, nccl and a broken pipe: timed out waiting, connection closed by peer"),
        RuntimeError("Expected to have finished reduction in the prior iteration before starting a new one."),
        dist.DistError("a kind of torch's trouble that hpe does not know"),
    ],
)
def test_an_error_beside_others_that_only_sounds_like_them_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RuntimeError
) -> None:
    monkeypatch.setattr("hpe.core.ranks.from_parent", lambda: None)
    monkeypatch.setenv("RANK", "1")
    code, told = ends(monkeypatch, capsys, error)
    assert code == 1
    assert told.startswith("Traceback")
    assert told.endswith(f"{error}\n")


FULL = (
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.52 GiB is free."
)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (torch.OutOfMemoryError(f"{FULL} Of the allocated memory 70 GiB is allocated by PyTorch."), FULL),
        (
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors"),
            "CUDA error: out of memory CUDA kernel errors.",
        ),
    ],
)
def test_a_full_gpu_is_one_message_with_the_settings_that_need_less(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: RuntimeError, said: str
) -> None:
    code, told = ends(monkeypatch, capsys, error)
    assert (code, told.count("\n")) == (1, 1)
    assert told.startswith(f"hpe: rank 0: {said} hpe train: ")
    assert all(setting in told for setting in ("train.micro_batch", "train.batch=auto", "--batch"))


def test_a_name_that_cannot_be_printed_is_one_message(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UnicodeEncodeError) as caught:
        "\udcff.jpg".encode()
    code, told = ends(monkeypatch, capsys, caught.value)
    assert code == 2
    assert "udcff.jpg" in told
    assert "rename" in told


def test_what_may_be_our_own_fault_keeps_its_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, told = ends(monkeypatch, capsys, OSError(errno.EBADF, "Bad file descriptor"))
    assert code == 1
    assert told.startswith("Traceback")
    assert told.endswith("OSError: [Errno 9] Bad file descriptor\n")


@pytest.mark.parametrize("how", [KeyboardInterrupt(), SystemExit(130)])
def test_ctrl_c_is_one_line_and_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], how: BaseException
) -> None:
    assert ends(monkeypatch, capsys, how) == (130, "hpe: interrupted\n")


def test_ctrl_c_while_modules_load_is_one_line_and_130() -> None:
    script = (
        "import builtins, sys\n"
        "from hpe.__main__ import main\n"
        "real = builtins.__import__\n"
        "def stopped(name, *more):\n"
        "    if name == 'typer': raise KeyboardInterrupt\n"
        "    return real(name, *more)\n"
        "builtins.__import__ = stopped\n"
        "main()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "hpe: interrupted\n")


def test_a_closed_pipe_is_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {shlex.quote(sys.executable)} -m hpe configs | head -n 0"],
        capture_output=True,
        text=True,
    )
    assert "Traceback" not in done.stderr


def stub_python(folder: Path, version: tuple[int, int]) -> Path:
    """A Python of another version, as far as the Makefile asks."""
    stub = folder / "python"
    lie = (
        f"import sys; sys.version_info = type('V', (tuple,), {{}})({(*version, 0, 'final', 0)}); exec(sys.argv.pop(1))"
    )
    stub.write_text(
        f'#!/bin/sh\n[ "$1" = -c ] || {{ echo "asked for $*"; exit 9; }}\nexec {sys.executable} -c "{lie}" "$2"\n'
    )
    stub.chmod(0o700)
    return stub


@pytest.mark.skipif(not shutil.which("make"), reason="no make here")
@pytest.mark.parametrize("version", [(3, 10), (3, 15), (2, 7)])
def test_another_python_is_refused_in_one_line_that_says_which_is_needed(
    tmp_path: Path, version: tuple[int, int]
) -> None:
    command = ["make", "-C", str(ROOT), "install", f"VENV={tmp_path}/venv", f"PYTHON={stub_python(tmp_path, version)}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 2
    refusal, *rest = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert rest == []
    assert "needs Python 3.11 to 3.14" in refusal
    assert "{}.{}".format(*version) in refusal
    assert not (tmp_path / "venv").exists()


def test_the_makefile_and_pip_ask_for_the_same_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11,<3.15"
    assert "(3, 11) <= sys.version_info[:2] < (3, 15)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "found <= 14" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["runs/a #b", "2024"])
def test_the_folder_of_a_run_is_the_one_that_was_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("data: {train: [{shards: s}], val: [{shards: s}]}\nmodel: {heads: {emotion: {}}}\n")
    trained: list[str] = []
    monkeypatch.setattr("hpe.train.plan", lambda loaded, **_: trained.append(loaded.run), raising=False)
    cli.train(config, run=Path(name), dry_run=True)
    assert trained == [name]


def test_a_training_that_has_ended_is_followed_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "run: runs/r\ndata: {train: [{shards: s, split: train}], val: [{shards: absent/s, split: val, pose: p}]}\n"
        "model: {heads: {emotion: {}}}\n"
    )
    for code, told in ((0, "next: hpe evaluate runs/r absent/s --pose p\n"), (75, "")):
        monkeypatch.setattr("hpe.train.train", lambda *_, code=code, **__: code, raising=False)
        with pytest.raises(typer.Exit) as ended:
            cli.train(config)
        assert (ended.value.exit_code, capsys.readouterr().err) == (code, told)
