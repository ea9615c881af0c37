"""What is seen at a terminal while a network trains."""

import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from hpe.config.run import TrainConfig
from hpe.core.progress import progress
from hpe.models.checkpoints import State
from hpe.train.console import heads_table, pace, screen
from hpe.train.loop import _Forecast
from hpe.train.timetable import Timetable

TRAIN = {
    "emotion/loss": 1.23456, "pose/loss": 40.0, "loss": 41.2, "learning_rate": 3e-4, "gradient_norm": 2.5,
    "speed/images_per_second": 1234.5, "speed/waiting_for_data": 0.03, "epoch": 1.5,
}  # fmt: skip
VAL = {"emotion/accuracy": 0.5123, "emotion/macro_f1": 0.4, "pose/mae": 4.321, "direction/accuracy": 0.75}


def rendered(**named: object) -> str:
    console = Console(file=io.StringIO(), width=100)
    console.print(heads_table(**named))  # type: ignore[arg-type]
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_each_head_has_its_loss_and_its_figures_in_one_row() -> None:
    rows = {line.split()[0]: line.split()[1:] for line in rendered(train=TRAIN, val=VAL).splitlines() if line.strip()}
    assert rows["head"] == ["loss", "accuracy", "macro", "F1", "MAE"]
    assert rows["emotion"] == ["1.23", "0.512", "0.400"]
    assert rows["pose"] == ["40", "4.32°"]
    assert rows["direction"] == ["–", "0.750"]


def test_before_the_first_validation_there_are_losses_alone() -> None:
    assert "accuracy" not in rendered(train=TRAIN, val={})


def test_the_last_line_tells_the_pace() -> None:
    assert pace({}, 10) == ""
    told = pace({**TRAIN, "speed/device_memory_gib": 12.34}, 10)
    assert told.startswith("epoch 1.50 of 10 · ")
    assert all(text in told for text in ("rate 0.0003", "gradient 2.5", "1,234 images/s", "3% waiting", "12.3 GiB"))


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("kind", "table"), [(Terminal, True), (io.StringIO, False)])
def test_a_terminal_gets_the_table_and_a_file_gets_lines(
    kind: type[io.StringIO], table: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = kind()
    monkeypatch.setattr("sys.stderr", out)
    monkeypatch.delenv("HPE_QUIET", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    with screen("train it", 100, done=20, epochs=2) as shown:
        shown.advance(80)
        shown.show("train", TRAIN)
        shown.show("val", VAL)
    assert ("macro F1" in out.getvalue()) == table
    assert ("\x1b[" in out.getvalue()) == table
    assert "train it" in out.getvalue()


@pytest.mark.parametrize("kind", [Terminal, io.StringIO])
def test_what_is_reached_is_the_count_whatever_was_counted_before(
    kind: type[io.StringIO], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = kind()
    monkeypatch.setattr("sys.stderr", out)
    monkeypatch.delenv("HPE_QUIET", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    with progress("judge", 80, unit="images") as bar:
        bar.advance(3)
        bar.reach(11)
        bar.reach(80)
        bar.reach(80)
    assert ("80/80" if kind is Terminal else "judge: 80 of 80 images") in out.getvalue()


def test_other_ranks_show_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    out = Terminal()
    monkeypatch.setattr("sys.stderr", out)
    monkeypatch.delenv("HPE_QUIET", raising=False)
    monkeypatch.setenv("RANK", "1")
    with screen("train it", 100, done=0, epochs=2) as shown:
        shown.show("train", TRAIN)
    assert out.getvalue() == ""


def test_the_time_left_counts_later_images_by_their_pixels(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """250 images, the first 100 of half the side: a quarter of the work. 40 took 20 s; 60 take 30 s, 150 take 300 s."""
    monkeypatch.delenv("HPE_QUIET", raising=False)
    monkeypatch.delenv("RANK", raising=False)
    now = [0.0]
    monkeypatch.setattr("hpe.core.progress.time", SimpleNamespace(monotonic=lambda: now[0]))
    settings = TrainConfig.model_validate({"epochs": 2.5, "batch": 40, "small_epochs": 1, "small_size": 32})
    timetable = Timetable(settings, 100, 250, 64)
    with screen("train it", 250, done=0, epochs=2.5, work=timetable.work) as shown:
        now[0] = 20.0
        shown.advance(40)
    assert "40 of 250 images, 2.0/s, 5:30 left" in capsys.readouterr().err
    assert "the training about 6 min more" in timetable.forecast(2.0, 40)  # 330 s


@pytest.mark.parametrize(
    ("waiting", "workers", "ranks", "told"), [(0.5, 2, 1, True), (0.1, 2, 1, False), (0.5, 3, 2, False)]
)
def test_readers_that_hold_up_a_training_are_told_once_where_cores_are_free(
    monkeypatch: pytest.MonkeyPatch, waiting: float, workers: int, ranks: int, told: bool
) -> None:
    monkeypatch.setattr("hpe.train.loop.cores", lambda: 8)
    said: list[str] = []
    settings = TrainConfig.model_validate({"epochs": 2, "batch": 40})
    job = SimpleNamespace(
        say=said.append,
        timetable=Timetable(settings, 4000, 8000, 64),
        config=SimpleNamespace(data=SimpleNamespace(workers=workers)),
        ranks=SimpleNamespace(local_world=ranks),
    )
    forecast = _Forecast(job, State(samples_seen=0, step=0))  # type: ignore[arg-type]
    for step in (1, 20, 40):
        forecast.tell(State(40 * step, step), {"speed/images_per_second": 100.0, "speed/waiting_for_data": waiting})
    assert said[0].startswith("one epoch takes about")
    hint = "50% of the time goes by waiting for images: raise data.workers (now 2 for each process; this machine has 8"
    assert [one.startswith(hint) for one in said[1:]] == [True] * told
