"""The doctor: every check is one line, whatever is broken, and leaves no process behind."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hpe.tools import doctor


@pytest.fixture
def quick(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Runs the quick checks: the exit code and (state, text) of each line by its name."""

    def run(folder: Path = tmp_path) -> tuple[int, dict[str, tuple[str, str]]]:
        code = doctor.doctor(folder, quick=True)
        lines = capsys.readouterr().out.splitlines()
        return code, {line[5:19].strip(): (line[:5].strip(), line[19:]) for line in lines}

    return run


def test_a_sound_machine_has_only_good_lines(quick) -> None:
    code, found = quick()
    assert code == 0
    assert {"hpe", "packages", "processors", "disk", "order, unit", "sign", "mirror", "colour order"} <= found.keys()
    assert "bad" not in {state for state, _ in found.values()}
    assert re.search(r"torch \d", found["packages"][1])


def test_a_wrong_sign_is_found(quick, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpe.core import geometry

    right = geometry.axes_in_picture
    monkeypatch.setattr(geometry, "axes_in_picture", lambda angles: right(-angles))
    code, found = quick()
    assert code == 1
    assert found["sign"][0] == "bad"


def test_a_wrong_order_of_angles_is_found(quick, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpe.core import geometry

    right = geometry.rotation_from_euler
    monkeypatch.setattr(geometry, "rotation_from_euler", lambda angles: right(angles.flip(-1)))
    code, found = quick()
    assert code == 1
    assert found["order, unit"][0] == "bad"


def test_swapped_colours_are_found(quick, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpe.data import images

    right = images.decode_rgb
    monkeypatch.setattr(images, "decode_rgb", lambda data: right(data)[..., ::-1])
    code, found = quick()
    assert code == 1
    assert found["colour order"][0] == "bad"


def test_a_missing_package_is_one_line_and_the_other_checks_go_on(quick, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)
    monkeypatch.setattr(doctor, "_PACKAGES", (*doctor._PACKAGES, "no-such-package"))
    code, found = quick()
    assert code == 1
    assert found["devices"][0] == "bad"
    assert "torchvision.ops" in found["devices"][1]
    assert found["packages"] == ("bad", "not installed: no-such-package; run pip install hpe again")
    assert found["sign"][0] == "ok"


@pytest.mark.parametrize(("free_gib", "state"), [(500, "ok"), (5, "note"), (0.5, "bad")])
def test_little_disk_is_told(quick, monkeypatch: pytest.MonkeyPatch, free_gib: float, state: str) -> None:
    left = int(free_gib * 2**30)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(2**40, 2**40 - left, left))
    _, found = quick()
    assert found["disk"][0] == state


def test_a_folder_yet_to_be_made_is_looked_at_where_it_will_stand(quick, tmp_path: Path) -> None:
    code, found = quick(tmp_path / "not" / "there")
    assert code == 0
    assert found["disk"][1].endswith(f"free in {tmp_path}")


@pytest.mark.parametrize("kind", ["long name", "circle"])
def test_a_folder_that_cannot_be_looked_into_is_told_in_words(quick, tmp_path: Path, kind: str) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    code, found = quick(tmp_path / ("x" * 300 if kind == "long name" else kind))
    assert code == 1
    assert found["disk"][0] == "bad"
    assert found["disk"][1].endswith("choose a folder that you may read and write")
    assert "Error" not in found["disk"][1]
    assert "shared memory" in found


def test_two_processes_sum() -> None:
    (found,) = doctor._all_reduce()
    assert (found.state, found.name) == ("ok", "all-reduce")


def test_a_network_that_refuses_is_one_line_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nosuchcard0")
    (found,) = doctor._all_reduce()
    assert found.state == "bad"
    assert "nosuchcard0" in found.text
    assert "\n" not in found.text


def test_what_never_answers_is_ended(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    told = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    assert doctor._answer([sys.executable, "-c", told], os.environ, 2) == (None, "")
    assert not Path(f"/proc/{int(mark.read_text())}").exists()


def test_a_launcher_that_was_stopped_leaves_no_rank(tmp_path: Path) -> None:
    """The doctor relies on torch's launcher to end its ranks; they stand in sessions of their own."""
    ranks = f"import os, time; open(f'{tmp_path}/{{os.getpid()}}', 'w'); time.sleep(600)"
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone", "--no-python"]
    process = subprocess.Popen(
        [sys.executable, *launch, sys.executable, "-c", ranks], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(list(tmp_path.iterdir())) < 2:
        assert process.poll() is None
        time.sleep(0.05)
    process.terminate()
    process.wait(30)
    assert [one.name for one in tmp_path.iterdir() if Path(f"/proc/{one.name}").exists()] == []


@pytest.mark.parametrize(
    ("capability", "told"), [((7, 5), "fp32, or mixed with train.precision: fp16"), ((8, 0), "mixed precision bf16")]
)
def test_the_precision_of_a_gpu_is_that_of_the_training(
    quick, monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], told: str
) -> None:
    """``torch.cuda.is_bf16_supported`` counts emulation, which `auto` never chooses."""
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: "GPU")
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: type("P", (), {"name": "GPU", "total_memory": 16 * 2**30})
    )
    _, found = quick()
    assert found["GPU"] == ("ok", f"0: GPU, 16 GiB, {told}")


def test_a_gpu_that_torch_cannot_use_is_bad(quick, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(
        "hpe.core.devices.unused_gpu", lambda: "there is an NVIDIA driver, and torch cannot use it: too old"
    )
    code, found = quick()
    assert code == 1
    assert found["GPU"][0] == "bad"
    assert "torch cannot use it: too old" in found["GPU"][1]


@pytest.mark.parametrize(
    ("builds", "state"),
    [(("onnxruntime",), "ok"), (("onnxruntime-gpu",), "ok"), (("onnxruntime", "onnxruntime-gpu"), "bad"), ((), "bad")],
)
def test_one_build_of_onnx_runtime_is_right(
    quick, monkeypatch: pytest.MonkeyPatch, builds: tuple[str, ...], state: str
) -> None:
    version = doctor.importlib.metadata.version
    monkeypatch.setattr(doctor, "_installed", lambda name: name in builds)
    monkeypatch.setattr(
        doctor.importlib.metadata, "version", lambda name: "1.31" if name.startswith("onnxruntime") else version(name)
    )
    assert quick()[1]["packages"][0] == state
