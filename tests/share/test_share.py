"""A shared network is the trained one, says what it was trained on, and no folder of a stranger does harm."""

import base64
import hashlib
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import hpe
from hpe.core.errors import UserError
from hpe.evaluate import EvaluateOptions, evaluate
from hpe.models import checkpoints
from hpe.models.run_folder import load_config
from hpe.report.load import read_run
from hpe.report.model_card import model_card
from hpe.share import SharedNetwork, share
from hpe.share.shared import _without_places
from hpe.stream import ShardSet
from tests import made


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("shared") / "secret-place" / "shards")


@pytest.fixture(scope="module")
def run(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = made.untrained(tmp_path_factory.mktemp("shared-run") / "face", shards)
    counts = {"emotion": {"happy": 3, "sad": 4}, "direction": {"left": 7}}
    (run / "trained_on.json").write_text(json.dumps({"labels": counts, "faces": {"box": 0.7}}))
    assert evaluate(run, [ShardSet(str(shards), "val")], EvaluateOptions(workers=0, replicates=20)) == 0
    result = run / "evaluate/made-val.json"
    known = json.loads(result.read_text())
    known["about"]["command"] = f"hpe evaluate {run} {shards}"
    result.write_text(json.dumps(known))
    return run


@pytest.fixture(scope="module")
def folder(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(share(run, str(tmp_path_factory.mktemp("out") / "face")))


def copied(folder: Path, target: Path, **changes: Any) -> Path:
    """A copy whose config.json has other values at its top."""
    shutil.copytree(folder, target)
    known = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(known | changes))
    return target


PIXELS = np.random.default_rng(0).integers(0, 256, (5, made.SIDE, made.SIDE, 3)).astype(np.uint8)


def test_a_shared_folder_reads_as_its_run(run: Path, folder: Path, shards: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    one, two = (hpe.load(path, device="cpu") for path in (run, folder))
    assert [faces.to_dict() for faces in one(list(PIXELS))] == [faces.to_dict() for faces in two(list(PIXELS))]
    assert (one.name, one.crop, one.heads) == (two.name, two.crop, two.heads)
    before = sorted(folder.rglob("*"))
    assert evaluate(folder, [ShardSet(str(shards), "val")], EvaluateOptions(workers=0, replicates=20)) == 0
    assert sorted(folder.rglob("*")) == before  # results hold faces, and this folder is passed on
    results = folder.with_name(f"{folder.name}-results")
    first, second = (json.loads((path / "evaluate/made-val.json").read_text()) for path in (run, results))
    assert first["emotion"] == second["emotion"]
    assert first["about"]["trained_on"] == second["about"]["trained_on"]


def test_others_may_read_what_the_umask_allows(run: Path, folder: Path) -> None:
    for weights in (folder, checkpoints.find_checkpoint(run)):
        modes = {path.name: path.stat().st_mode for path in weights.iterdir()}
        assert len(set(modes.values())) == 1, modes


def test_the_card_has_no_metrics_of_another_checkpoint(run: Path, tmp_path: Path) -> None:
    trained_on = tmp_path / "face"
    shutil.copytree(run, trained_on, symlinks=True)
    best = checkpoints.find_checkpoint(trained_on)
    shutil.copytree(best, newer := best.with_name("step-00000099"))
    (trained_on / "checkpoints/last").unlink()
    (trained_on / "checkpoints/last").symlink_to(newer.name)
    assert "## Metrics on" in Path(share(trained_on, str(tmp_path / "a")), "README.md").read_text()
    assert "## Metrics on" not in Path(share(trained_on, str(tmp_path / "b"), which="last"), "README.md").read_text()
    (trained_on / "checkpoints/best").unlink()
    (trained_on / "checkpoints/best").symlink_to(newer.name)
    told = f"{best.name} was judged, and the best checkpoint is now {newer.name}"
    assert told not in model_card(read_run(run))
    assert told in model_card(read_run(trained_on))


def test_it_says_what_it_was_trained_on_and_no_path_of_this_machine(run: Path, folder: Path, shards: Path) -> None:
    for path in folder.iterdir():
        assert b"secret-place" not in path.read_bytes()
        assert str(run.parent).encode() not in path.read_bytes()
    card = (folder / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: hpe\n")
    assert "| made | squares | none | True |" in card.replace("  ", " ")
    assert "never trained on neutral" in card
    assert "## Metrics on" in card


def test_what_may_not_be_published_is_refused_with_the_reason(run: Path, tmp_path: Path) -> None:
    private = tmp_path / "private"
    shutil.copytree(run, private, symlinks=True)
    known = json.loads((private / "shards.json").read_text())
    (one,) = known.values()
    one |= {"dataset": "affectnet", "licence": "research only", "publishable": False}
    (private / "shards.json").write_text(json.dumps(known))
    with pytest.raises(UserError, match=r"may not be published: trained on affectnet \(research only\).*--permitted"):
        share(private, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="empty reason"):
        share(private, str(tmp_path / "out"), permitted=" ")
    share(private, str(tmp_path / "out"), permitted="letter of the authors")
    assert "it is permitted: letter of the authors" in (tmp_path / "out/README.md").read_text()
    started = copied_run(run, tmp_path / "started", f"weights: {private}")
    with pytest.raises(UserError, match="trained on affectnet"):  # its backbone was
        share(started, str(tmp_path / "second"))
    (run_without := tmp_path / "unknown").mkdir()
    shutil.copytree(run, run_without, symlinks=True, dirs_exist_ok=True)
    (run_without / "shards.json").unlink()
    with pytest.raises(UserError, match="does not record what it was trained on"):
        share(run_without, str(tmp_path / "third"))


def copied_run(run: Path, target: Path, weights: str) -> Path:
    shutil.copytree(run, target, symlinks=True)
    text = (run / "config.yaml").read_text()
    assert "weights: none" in text
    (target / "config.yaml").write_text(text.replace("weights: none", weights))
    return target


def test_a_shared_folder_is_shared_again_with_its_terms(folder: Path, tmp_path: Path) -> None:
    again = Path(share(folder, str(tmp_path / "again")))
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    assert "## Metrics on" in (again / "README.md").read_text()
    with pytest.raises(UserError, match="exists and is not empty"):
        share(folder, str(again))
    network = SharedNetwork.from_pretrained(folder)
    assert not network.training
    (bare := copied(folder, tmp_path / "bare") / "README.md").unlink()
    share(bare.parent, str(tmp_path / "third"))
    assert "## Training data" in (tmp_path / "third/README.md").read_text()


def refused(path: Path, why: str) -> None:
    with pytest.raises(UserError, match=why):
        hpe.load(path, device="cpu")


def test_configs_that_lie_are_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())["config"]

    def with_model(**changes: Any) -> dict[str, Any]:
        return config | {"model": config["model"] | changes}

    refused(
        copied(folder, tmp_path / "a", config=with_model(backbone="resnet18")), "are not the .* numbers of resnet18"
    )
    refused(copied(folder, tmp_path / "b", config=with_model(heads={"pose": {"kind": "sixd"}})), "do not fit")
    refused(copied(folder, tmp_path / "c", config=with_model(backbone="timm/hf-hub:evil/one")), "timm has no model")
    refused(copied(folder, tmp_path / "d", config=config | {"data": {"size": -3}}), r"config\.json: config")
    refused(copied(folder, tmp_path / "e", format=9), "format 9, this hpe reads 1")
    refused(copied(folder, tmp_path / "f", library_name="other"), "is not of hpe")
    refused(copied(folder, tmp_path / "g", config=["x"]), "damaged")
    refused(copied(folder, tmp_path / "h", shards={"a": "b"}), "damaged")
    refused(copied(folder, tmp_path / "i", trained_on={"labels": 3}), "damaged")
    refused(copied(folder, tmp_path / "n", trained_on={"labels": {"emotion": {"happy": -1}}, "faces": {}}), "damaged")
    refused(copied(folder, tmp_path / "o", trained_on={"labels": {"pose": {}}, "faces": {}}), "damaged")
    huge = copied(folder, tmp_path / "p")
    text = (huge / "config.json").read_text()
    (huge / "config.json").write_text(re.sub(r'("happy": )\d+', r"\g<1>1e400", text))
    refused(huge, "damaged")
    refused(copied(folder, tmp_path / "q", permitted=5), "damaged")
    deep: Any = "x"
    for _ in range(400):
        deep = [deep]
    refused(copied(folder, tmp_path / "r", config=config | {"model": deep}), "nested too deeply")
    shards = json.loads((folder / "config.json").read_text())["shards"]
    for name, size, quality in (("s", -5, 90), ("t", 10**9, 90), ("u", 64, 10**30)):
        image = {"encoding": "jpeg", "size": size, "quality": quality, "colour": "rgb"}
        lies = {key: value | {"image": image} for key, value in shards.items()}
        refused(copied(folder, tmp_path / name, shards=lies), "damaged: images of")
    for name, text in (("j", b"["), ("k", b"\xff"), ("l", b"[" * 100_000), ("m", b" " * (1 << 21))):
        (copied(folder, tmp_path / name) / "config.json").write_bytes(text)
        refused(tmp_path / name, r"config\.json: cannot be read")


def test_a_network_that_says_it_started_from_itself_is_refused(folder: Path, tmp_path: Path) -> None:
    config = json.loads((folder / "config.json").read_text())["config"]
    own = tmp_path / "own"
    copied(folder, own, terms=None, config=config | {"model": config["model"] | {"weights": str(own)}})
    with pytest.raises(UserError, match="unknown: the weights that it started from"):
        share(own, str(tmp_path / "out"))


def test_what_from_pretrained_cannot_do_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match="has no revision 'v1'"):
        SharedNetwork.from_pretrained(folder, revision="v1")
    with pytest.raises(UserError, match="token: not supported"):
        SharedNetwork.from_pretrained(folder, token="x")
    with pytest.raises(UserError, match="org/face@v1"):
        SharedNetwork.from_pretrained("org/face", revision="v1")


def test_no_password_of_an_address_is_shared(run: Path) -> None:
    config = load_config(run)
    train = [config.data.train[0].model_copy(update={"shards": "https://me:secret-word@host?sig=secret-word"})]
    plain = _without_places(config.model_copy(update={"data": config.data.model_copy(update={"train": train})}), run)
    assert "secret-word" not in plain.dump()


def test_weights_that_lie_are_refused_and_no_pickle_is_read(folder: Path, tmp_path: Path) -> None:
    wrong = copied(folder, tmp_path / "a")
    tensors = load_file(folder / "model.safetensors")
    name = next(iter(tensors))
    save_file(tensors | {name: torch.zeros(2, 2)}, wrong / "model.safetensors")
    refused(wrong, "do not fit")
    data = (folder / "model.safetensors").read_bytes()
    cut = copied(folder, tmp_path / "b")
    (cut / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(cut, "cannot read these weights")
    for other in ("pytorch_model.bin", "model.safetensors"):
        evil = copied(folder, tmp_path / other)
        (evil / "model.safetensors").unlink()
        (evil / other).write_bytes(pickle.dumps(_Bomb(str(tmp_path / "exploded"))) * 100)
        refused(evil, "no model.safetensors|cannot read these weights|are not the")
    assert not (tmp_path / "exploded").exists()
    with pytest.raises(UserError, match="one set of weights"):
        hpe.load(folder, which="last", device="cpu")


class _Bomb:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self._path,)


@pytest.mark.parametrize("name", ["hf://", "hf://one", "hf://a/b/c", "hf://../b@c", "hf://a/..", "hf://a/b c"])
def test_names_that_are_none_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"expected hf://org/name|cannot be fetched"):
        hpe.load(name, device="cpu")


class Hub(BaseHTTPRequestHandler):
    """The part of the hub's interface that pushing and loading use, in memory."""

    files: ClassVar[dict[str, bytes]] = {}
    objects: ClassVar[dict[str, bytes]] = {}
    asked: ClassVar[list[str]] = []
    sha = "a" * 40

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        pass

    @property
    def here(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"  # pyright: ignore[reportAttributeAccessIssue]

    def reply(self, content: bytes | dict[str, Any], status: int = 200, **headers: str) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def do_PUT(self) -> None:
        self.objects[self.path.rpartition("/")[2]] = self.body()
        self.reply(b"")

    def do_POST(self) -> None:
        self.asked.append(path := self.path.partition("?")[0])
        body = self.body()
        if self.headers.get("Authorization") != "Bearer secret":
            return self.reply({"error": "no login"}, 401)
        if path == "/api/repos/create":
            return self.reply({"url": f"{self.here}/org/face", "name": "org/face"})
        if path == "/api/validate-yaml":
            return self.reply({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            named = [one["path"] for one in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in named]
            return self.reply(
                {
                    "files": [
                        {"path": p, "uploadMode": m, "shouldIgnore": False} for p, m in zip(named, modes, strict=True)
                    ]
                }
            )
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            links = [{**one, "actions": {"upload": {"href": f"{self.here}/upload/{one['oid']}"}}} for one in wanted]
            return self.reply({"transfer": "basic", "objects": links})
        if path.endswith("/commit/main"):
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                elif line["key"] == "lfsFile":
                    self.files[line["value"]["path"]] = self.objects[line["value"]["oid"]]
            return self.reply(
                {"success": True, "commitUrl": f"{self.here}/org/face/commit/{self.sha}", "commitOid": self.sha}
            )
        return self.reply({"error": "unknown"}, 404)

    def do_GET(self) -> None:
        self.asked.append(path := self.path.partition("?")[0])
        if "gone" in path:
            return self.reply({"error": "no such revision"}, 404, X_Error_Code="RevisionNotFound")
        if path.startswith("/api/models/org/face/tree"):
            listed = [{"type": "file", "path": p, "size": len(d), "oid": "b" * 40} for p, d in self.files.items()]
            return self.reply(json.dumps(listed).encode(), Content_Type="application/json")
        if path.startswith("/api/models/org/face"):
            siblings = [{"rfilename": name} for name in self.files]
            return self.reply(
                {"id": "org/face", "sha": self.sha, "siblings": siblings}, Content_Type="application/json"
            )
        data = self.files.get(path.rpartition("/")[2])
        if data is None or not path.startswith("/org/face/resolve/"):
            return self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        etag = hashlib.sha256(data).hexdigest()
        return self.reply(data, ETag=f'"{etag}"', X_Repo_Commit=self.sha, X_Linked_Size=str(len(data)))

    do_HEAD = do_GET  # noqa: N815


@pytest.fixture
def hub() -> Iterator[str]:
    """The address of a hub on loopback."""
    for kept in (Hub.files, Hub.objects, Hub.asked):
        kept.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


_PROGRAM = """
import sys, numpy as np, hpe
run, pixels = sys.argv[1], np.load(sys.argv[2])
model = hpe.load(run, device="cpu")
print(model.push_to_hub("org/face"))
again = hpe.load("hf://org/face", device="cpu")
assert [faces.to_dict() for faces in again(list(pixels))] == [faces.to_dict() for faces in model(list(pixels))]
for name in ("hf://org/other", "hf://org/face@gone"):
    try:
        hpe.load(name, device="cpu")
    except hpe.UserError as error:
        print(error)
"""


def at_hub(hub: str, home: Path, *command: str, token: str = "secret") -> "subprocess.CompletedProcess[str]":
    """A process for which this hub is the hub: huggingface_hub reads its settings when it is imported."""
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=240)


@pytest.mark.slow
def test_a_network_goes_to_a_hub_and_comes_back(run: Path, hub: str, tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", PIXELS)
    done = at_hub(hub, tmp_path / "home", "-c", _PROGRAM, str(run), str(tmp_path / "pixels.npy"))
    assert done.returncode == 0, done.stderr
    address, absent, gone = done.stdout.splitlines()
    assert address == f"{hub}/org/face/commit/{Hub.sha}"
    assert absent.startswith("hf://org/other: cannot be fetched (")
    assert gone.startswith("hf://org/face@gone: ")
    assert sorted(name for name in Hub.files if not name.startswith(".")) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert all(b"secret-place" not in data for data in Hub.files.values())


@pytest.mark.slow
def test_a_hub_that_refuses_is_one_message(run: Path, hub: str, tmp_path: Path) -> None:
    done = at_hub(hub, tmp_path / "home", "-m", "hpe", "share", str(run), "hf://org/face", token="wrong")
    assert done.returncode == 2
    assert "hf://org/face: not published (" in done.stderr
    assert "Traceback" not in done.stderr
    private = tmp_path / "private"
    shutil.copytree(run, private, symlinks=True)
    (private / "shards.json").unlink()
    Hub.asked.clear()
    done = at_hub(hub, tmp_path / "home", "-m", "hpe", "share", str(private), "hf://org/face")
    assert done.returncode == 2
    assert "may not be published" in done.stderr
    assert Hub.asked == []
