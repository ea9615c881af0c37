"""Trackers get the values of the log and the config, and none of them can end a training."""

import json
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from accelerate import tracking
from accelerate.tracking import GeneralTracker
from accelerate.utils import LoggerType

from hpe.config.run import FREE, differences
from hpe.core.errors import UserError
from hpe.train import train
from tests import made


class Recorder(GeneralTracker):
    """A tracker in the place of MLflow's, that keeps what it gets."""

    name = "mlflow"
    requires_logging_directory = False
    opened: ClassVar[list["Recorder"]] = []

    def __init__(self, project: str, **settings: Any) -> None:
        super().__init__()
        self.project, self.settings = project, settings
        self.config: dict[str, Any] = {}
        self.logged: list[tuple[int | None, dict[str, float]]] = []
        self.finished = 0
        self.opened.append(self)

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished += 1


class Unreachable(Recorder):
    """Its server is there at the start and gone later."""

    def log(self, values: dict[str, float], step: int | None = None, **_: Any) -> None:
        super().log(values, step)
        raise ConnectionError("no route to\nhost")


class Refused(Recorder):
    """It cannot start."""

    def start(self) -> None:
        raise PermissionError("wrong key")


def stand_in(monkeypatch: pytest.MonkeyPatch, kind: type[Recorder]) -> list[Recorder]:
    torch.set_num_threads(1)
    monkeypatch.setattr(kind, "opened", [])
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "mlflow", kind)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType.MLFLOW])
    return kind.opened


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made.shards(tmp_path_factory.mktemp("trackers") / "shards", counts=(24,), val=8)


def test_a_tracker_gets_the_config_and_the_values_of_the_log(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = stand_in(monkeypatch, Recorder)
    config = made.config(shards, tmp_path / "run", "train.trackers=[mlflow]")
    assert train(config) == 0
    (one,) = opened
    assert (one.project, one.settings, one.finished) == ("hpe", {"run_name": "run"}, 1)
    assert one.config["train.learning_rate"] == 2e-3
    assert one.config["train.trackers"] == "['mlflow']"
    assert all(isinstance(value, bool | int | float | str) for value in one.config.values())
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    stated = [
        (line["samples"], {f"{name}/{line['split']}": line[name] for name in line if name not in MARKS})
        for line in lines
        if line["split"] != "start"
    ]
    assert one.logged == stated
    assert any("emotion/macro_f1/val" in values for _, values in one.logged)


MARKS = ("step", "samples", "split")


def test_none_is_opened_unless_the_config_names_it(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = stand_in(monkeypatch, Recorder)
    assert train(made.config(shards, tmp_path / "run")) == 0
    assert opened == []


def test_a_tracker_that_fails_is_named_once_and_the_training_goes_on(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = stand_in(monkeypatch, Unreachable)
    assert train(made.config(shards, tmp_path / "run", "train.trackers=[mlflow]")) == 0
    assert len(opened[0].logged) == 1
    told = capsys.readouterr().err
    assert told.count("tracker mlflow failed") == 1
    assert "ConnectionError: no route to host" in told


def test_a_tracker_that_cannot_start_is_one_message(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stand_in(monkeypatch, Refused)
    with pytest.raises(UserError, match=r"train\.trackers: mlflow cannot start: PermissionError: wrong key; set it up"):
        train(made.config(shards, tmp_path / "run", "train.trackers=[mlflow]"))


def test_a_missing_package_is_one_message_before_anything_is_written(shards: Path, tmp_path: Path) -> None:
    config = made.config(shards, tmp_path / "run", "train.trackers=[dvclive, comet_ml]")
    with pytest.raises(UserError) as caught:
        train(config)
    told = str(caught.value)
    assert "train.trackers: dvclive is not installed; `pip install dvclive`" in told
    assert "train.trackers: comet_ml is not installed; `pip install comet-ml`" in told
    assert not (tmp_path / "run").exists()


def test_trackers_may_change_when_a_run_resumes(shards: Path, tmp_path: Path) -> None:
    plain, tracked = (made.config(shards, tmp_path / "run", *more) for more in ((), ("train.trackers=[wandb]",)))
    assert "train.trackers" in FREE
    assert differences(plain, tracked) == []
