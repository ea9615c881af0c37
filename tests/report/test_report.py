"""The report in a real browser: no complaint, no request, no script of a stranger; sorting, CSV, a phone's width."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from hpe.core.errors import UserError
from hpe.evaluate.gallery import KINDS, choose_rows, gallery, write_faces
from hpe.metrics import figures
from hpe.metrics.markdown import headline_figures, table
from hpe.report import report
from hpe.report.charts import Series, intervals, lines, ticks
from hpe.report.load import read_run
from hpe.report.model_card import model_card
from hpe.report.tables import comparison
from tests import browser
from tests.fake_run import CONFIG, HOSTILE, fake_run, predictions

needs_browser = pytest.mark.skipif(browser.found() is None, reason=f"none of {', '.join(browser.NAMES)} is installed")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs with reports, one with a hostile name."""
    folder = tmp_path_factory.mktemp("runs")
    made = [
        fake_run(folder / "joint", rows=400, faces=16),
        fake_run(folder / "<b>base & #1", rows=400, faces=0, skill=1.0, seed=4),
    ]
    report(made, folder / "compared")
    return made


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@needs_browser
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("where", ["joint/report", "<b>base & #1/report", "compared"])
def test_pages_open_quietly_and_fit_their_window(runs: list[Path], page: browser.Page, where: str, width: int) -> None:
    page.problems.clear()
    page.requests.clear()
    page.open(runs[0].parent / where / "index.html", width=width)
    assert page.run("document.documentElement.scrollWidth") <= width
    outside = """[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide, nav, pre')
        && e.getBoundingClientRect().right > innerWidth + 1).map(e => e.outerHTML.slice(0, 80))"""
    assert page.run(outside) == []
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
    assert page.run("window.hostile") is None
    assert page.run("document.querySelectorAll('svg').length") > 3


@needs_browser
def test_colours_follow_the_system_and_can_be_read(runs: list[Path], page: browser.Page) -> None:
    luminance = """(() => { const of = (text) => { const [r, g, b] = text.match(/[\\d.]+/g).map((v) => {
        v = v / 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
        return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
      const body = getComputedStyle(document.body), soft = getComputedStyle(document.querySelector('.tile dt'));
      const tile = getComputedStyle(document.querySelector('.tile'));
      return [of(body.backgroundColor), of(body.color), of(tile.backgroundColor), of(soft.color)]; })()"""
    seen = []
    for dark in (False, True):
        page.open(runs[0] / "report" / "index.html", dark=dark)
        values = page.run(luminance)
        seen.append(values[0])
        for back, ink in (values[:2], values[2:]):
            assert (max(back, ink) + 0.05) / (min(back, ink) + 0.05) >= 4.5  # WCAG AA
    assert seen[0] > 0.8
    assert seen[1] < 0.05


@needs_browser
def test_a_click_on_a_head_sorts_by_value_and_a_second_click_turns_it(runs: list[Path], page: browser.Page) -> None:
    page.open(runs[0] / "report" / "index.html")
    column = """[...document.querySelectorAll('[data-name=val-emotion] tbody tr')]
        .map((r) => Number(r.cells[6].dataset.value))"""
    before = page.run(column)
    click = "document.querySelectorAll('[data-name=val-emotion] thead button')[6].click()"
    page.run(click)
    assert page.run(column) == sorted(before, reverse=True)
    assert (
        page.run("document.querySelectorAll('[data-name=val-emotion] th')[6].getAttribute('aria-sort')") == "descending"
    )
    page.run(click)
    assert page.run(column) == sorted(before)
    page.run("document.querySelectorAll('[data-name=val-emotion] thead button')[0].click()")
    names = page.run(
        "[...document.querySelectorAll('[data-name=val-emotion] tbody tr')].map((r) => r.cells[0].textContent)"
    )
    assert names == sorted(names)


@needs_browser
def test_the_downloaded_csv_holds_values_with_both_ends(runs: list[Path], page: browser.Page) -> None:
    page.open(runs[0] / "report" / "index.html")
    text = page.run("csvOf(document.querySelector('[data-name=val-emotion]'))")
    head, first, *_ = text.split("\r\n")
    assert head.startswith("class,true,chosen,correct,precision,precision low,precision high,recall")
    made = json.loads((runs[0] / "evaluate" / "val.json").read_text())["emotion"]["per_class"]["neutral"]
    expected = ["neutral", made["support"], made["chosen"], made["correct"], made["precision"]["value"]]
    assert first.split(",")[:4] == [str(v) for v in expected[:4]]
    assert float(first.split(",")[4]) == pytest.approx(expected[4])


@needs_browser
def test_formulas_of_strangers_are_no_formulas_in_the_csv(tmp_path: Path, page: browser.Page) -> None:
    table = predictions(60)
    evil = pa.array(["=HYPERLINK(1)", "a,b", '"q"'] * 20)
    table = table.set_column(table.column_names.index("group_age"), "group_age", evil)
    (tmp_path / "evaluate").mkdir()
    pq.write_table(table, tmp_path / "evaluate" / "t.parquet")
    report([tmp_path])
    page.open(tmp_path / "report" / "index.html")
    text = page.run("csvOf(document.querySelector('[data-name=t-by-age]'))")
    lines_ = {line.split(",20")[0] for line in text.split("\r\n")[1:4]}
    assert lines_ == {"'=HYPERLINK(1)", '"a,b"', '"""q"""'}


@needs_browser
def test_switches_and_filters_change_what_is_seen(runs: list[Path], page: browser.Page) -> None:
    page.open(runs[0] / "report" / "index.html")
    seen = "[...document.querySelector('table.heat td').children].map((s) => getComputedStyle(s).display)"
    assert page.run(seen) == ["inline", "none"]
    page.run("document.querySelector('button[data-set=count]').click()")
    assert page.run(seen) == ["none", "inline"]
    left = page.run("""(() => { const s = document.querySelector('select[data-filter]');
        s.value = s.options[1].value; s.dispatchEvent(new Event('change'));
        const of = [...document.querySelectorAll('#' + s.dataset.filter + ' .face')];
        return [s.value, of.filter((f) => !f.hidden).map((f) => f.dataset.emotion), of.length]; })()""")
    assert set(left[1]) == {left[0]}
    assert len(left[1]) < left[2]


@pytest.mark.slow
def test_a_report_is_one_file_with_the_same_bytes_each_time(runs: list[Path]) -> None:
    path = runs[0] / "report" / "index.html"
    before = path.read_bytes()
    report([runs[0]])
    assert path.read_bytes() == before
    text = before.decode()
    assert "http://" not in text.replace("http://www.w3.org", "")
    assert "https://" not in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "onerror=" not in re.sub(r"&lt;.*?&gt;", "", text)


def test_hostile_keys_are_text(runs: list[Path]) -> None:
    text = (runs[0] / "report" / "index.html").read_text()
    assert HOSTILE.strip() not in text
    assert text.count("<script>") == 1
    assert "&lt;/script&gt;&lt;script&gt;" in text


def test_the_model_card_names_data_seed_figures_and_limits(runs: list[Path]) -> None:
    card = (runs[0] / "report" / "model_card.md").read_text()
    for part in ("mobilenetv3_small_100", "| seed | 3 |", "Emotion macro F1", "## Limits", "step-00008000"):
        assert part in card
    assert "commit | unknown" in card
    assert "no subjects are known" in card


def test_the_model_card_says_that_a_training_was_not_finished(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    line = json.dumps({"step": 16, "samples": 2048, "split": "train", "epoch": 1.28, "loss": 1.0})
    for settings, said in (
        ("epochs: 24", "log ends at epoch 1.28 of 24: the training was stopped early"),
        ("epochs: 24, patience: 3", "log ends at epoch 1.28 of 24: `train.patience` has ended it, or the training was"),
        ("epochs: 1.28", None),
    ):
        (run / "config.yaml").write_text(f"train: {{{settings}}}\n")
        (run / "metrics.jsonl").write_text(f"{line}\n")
        card = model_card(read_run(run))
        assert said in card if said else "log ends at epoch" not in card


def test_the_model_card_names_the_checkpoint_of_each_result(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rows=40, faces=0)
    assert "## Metrics on val\n\nCheckpoint: step-00008000.\n" in model_card(read_run(run))
    made = json.loads((run / "evaluate" / "val.json").read_text())
    del made["about"]["weights"]
    (run / "evaluate" / "val.json").write_text(json.dumps(made))
    assert "Checkpoint: " not in model_card(read_run(run))


def test_results_on_test_pictures_come_first(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rows=40, faces=0)
    made = json.loads((run / "evaluate" / "val.json").read_text())
    for name, split in (("a", "train"), ("b", "all"), ("c", "test"), ("d", ["test"]), ("val", "val")):
        (run / "evaluate" / f"{name}.json").write_text(json.dumps({**made, "about": {"title": name, "split": split}}))
    assert [one.title for one in read_run(run).evaluations] == ["c", "val", "a", "b", "d"]
    assert model_card(read_run(run)).index("Metrics on c") < model_card(read_run(run)).index("Metrics on a")


def test_an_unfinished_study_is_named_as_one(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("study: x\n")
    with pytest.raises(UserError, match="not finished"):
        read_run(tmp_path)


def test_names_of_strangers_bring_neither_html_nor_links_into_the_model_card(runs: list[Path]) -> None:
    card = (runs[1] / "report" / "model_card.md").read_text()
    assert card.startswith("# Model card: &lt;b>base & #1")
    assert "\\[a](javascript:1)" in table(["name"], [["[a](javascript:1)"]])


def test_the_gallery_shows_mistakes_hits_and_pose_errors(runs: list[Path]) -> None:
    table = predictions(300)
    rows = choose_rows(table, 90)
    truth, p = table["emotion"].to_numpy(), np.array(table["emotion_p"].to_pylist())
    wrong = np.flatnonzero(p.argmax(1) != truth)
    for emotion in range(8):  # the surest mistake of every emotion is among them
        own = wrong[truth[wrong] == emotion]
        assert own[p[own].max(1).argmax()] in rows
    assert rows == choose_rows(table, 90)
    assert len(rows) <= 90


def test_damaged_faces_are_counted_and_left_out(tmp_path: Path) -> None:
    table = predictions(40)
    keys, shards = table["key"].to_pylist(), table["shard"].to_pylist()
    write_faces(tmp_path / "f.parquet", keys[:2], shards[:2], [b"\xff\xd8\xff broken", b"<svg onload=1>"])
    pictures = dict(zip(zip(shards[:2], keys[:2], strict=True), [b"\xff\xd8\xff broken", b"<svg/>"], strict=True))
    faces, damaged = gallery(table, pictures)
    assert faces == []
    assert damaged >= 2
    assert KINDS == ("mistake", "hit", "pose")


@pytest.mark.parametrize("kept", ["config.yaml", "metrics.jsonl", "evaluate"])
def test_a_run_with_only_one_of_its_parts_has_a_page(runs: list[Path], tmp_path: Path, kept: str) -> None:
    source = runs[0] / kept
    (shutil.copytree if source.is_dir() else shutil.copy)(source, tmp_path / kept)
    assert report([tmp_path])[0].read_text().count("<h1>") == 1
    card = (tmp_path / "report" / "model_card.md").read_text()
    assert ("was not evaluated" in card) == (kept != "evaluate")


def test_a_run_without_the_emotion_head_says_so(tmp_path: Path) -> None:
    (tmp_path / "evaluate").mkdir()
    table = predictions(60).drop_columns(["emotion_p", "valence_hat", "arousal_hat", "direction_p"])
    pq.write_table(table, tmp_path / "evaluate" / "pose.parquet")
    text = report([tmp_path])[0].read_text()
    assert "Emotion is not evaluated: the run has no emotion predictions." in text
    assert "Geodesic error" in text


def test_json_of_another_version_is_made_anew_from_the_predictions(tmp_path: Path) -> None:
    (tmp_path / "evaluate").mkdir()
    pq.write_table(predictions(60), tmp_path / "evaluate" / "val.parquet")
    (tmp_path / "evaluate" / "val.json").write_text(json.dumps({"schema": 0}))
    assert "Emotion accuracy" in report([tmp_path])[0].read_text()


def test_a_result_of_an_older_checkpoint_is_told_in_the_terminal_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    (run / "evaluate").mkdir(parents=True)
    (run / "checkpoints/step-00000002").mkdir(parents=True)
    (run / "checkpoints/best").symlink_to("step-00000002")
    pq.write_table(predictions(60), run / "evaluate/val.parquet")
    about = {"identity": {"checkpoint": "best"}, "weights": "/gone/step-00000001/model.safetensors"}
    told = "val: step-00000001 was judged, and the best checkpoint is now step-00000002: run `hpe evaluate` again"
    (run / "evaluate/val.json").write_text(json.dumps({"schema": 0, "about": about}))
    report([run])
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "neither config.yaml, metrics.jsonl nor evaluate/"),
        ({"evaluate/val.json": "{"}, "not JSON"),
        ({"evaluate/val.json": "[]"}, "not the metrics"),
        ({"evaluate/val.parquet": "PAR1"}, "cannot be read"),
        ({"config.yaml": "a: [1"}, "cannot be read"),
        ({"config.yaml": "a: &a [x, x]\nb: [*a, *a]"}, "aliases"),
        ({"config.yaml": "[" * 5000}, "cannot be read"),
        ({"evaluate/val.json": "[" * 100_000}, "not JSON"),
    ],
)
def test_damaged_runs_are_refused_in_words(tmp_path: Path, files: dict[str, str], message: str) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        report([tmp_path])
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("section", ["emotion", "interval", "pose", "by", "cells"])
def test_figures_that_hold_what_they_cannot_are_refused_in_words(
    runs: list[Path], tmp_path: Path, section: str
) -> None:
    evaluation = next(path for path in (runs[0] / "evaluate").glob("*.json"))
    (tmp_path / "evaluate").mkdir()
    made = json.loads(evaluation.read_text()) | {section: [1]}
    (tmp_path / "evaluate" / evaluation.name).write_text(json.dumps(made))
    with pytest.raises(UserError, match=r"damaged .*evaluate` again"):
        report([tmp_path])


def test_a_comparison_does_not_overwrite_a_run_s_own_page(runs: list[Path]) -> None:
    with pytest.raises(UserError, match="has its own page there"):
        report(runs, runs[0] / "report")


def test_runs_that_are_absent_or_named_twice_are_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run or study"):
        report([tmp_path / "none"])
    with pytest.raises(UserError, match="named twice"):
        report([runs[0], runs[0]])


def test_the_comparison_tells_what_differs_and_tests_it_on_the_same_samples(runs: list[Path]) -> None:
    text = (runs[0].parent / "compared" / "index.html").read_text()
    assert "McNemar" in text
    assert "&lt;b&gt;base &amp; #1" in text
    assert "./../%3Cb%3Ebase%20%26%20%231/report/index.html" in text
    made = [figures(pq.read_table(run / "evaluate" / "val.parquet"), replicates=5) for run in runs]
    better = max(one["emotion"]["accuracy"]["value"] for one in made)
    assert f'class="best">{100 * better:.1f}' in text
    assert CONFIG.count("seed") == 1
    assert "None: the configs are the same" in text


def result_on(run: Path, data: str, *, name: str = "val", title: str = "FER+ test") -> Path:
    """A second result of the run, or its own one, as of shards with this content."""
    made = json.loads((run / "evaluate" / "val.json").read_text())
    made["about"] |= {"title": title, "identity": {"data": data, "paths": data}}
    pq.write_table(pq.read_table(run / "evaluate" / "val.parquet"), run / "evaluate" / f"{name}.parquet")
    (run / "evaluate" / f"{name}.json").write_text(json.dumps(made))
    return run


def test_no_two_tables_share_an_id_where_two_datasets_share_a_name(tmp_path: Path) -> None:
    runs = [result_on(fake_run(tmp_path / name, rows=40, faces=0), data=name) for name in ("a", "b")]
    ids = re.findall(r' id="([^"]*)"', report(runs, tmp_path / "all")[-1].read_text())
    assert sorted(ids) == sorted(set(ids))


@needs_browser
def test_each_button_saves_the_table_above_it(tmp_path: Path, page: browser.Page) -> None:
    runs = [result_on(fake_run(tmp_path / name, rows=40, faces=0), data=name) for name in ("a", "b")]
    page.open(report(runs, tmp_path / "all")[-1])
    saved = page.run("""(() => { const blobs = [];
        URL.createObjectURL = (blob) => { blobs.push(blob); return 'about:blank'; };
        HTMLAnchorElement.prototype.click = () => {};
        for (const button of document.querySelectorAll('[data-csv]')) button.click();
        return Promise.all(blobs.map((blob) => blob.text())); })()""")
    assert saved == page.run("[...document.querySelectorAll('table.data')].map(csvOf)")
    assert [text.split("\r\n")[1].split(",")[0] for text in saved[:2]] == ["a", "b"]


def test_a_run_is_never_tested_against_itself(tmp_path: Path) -> None:
    runs = [result_on(fake_run(tmp_path / name, rows=40, faces=0), data="same") for name in ("a", "b")]
    result_on(runs[0], data="same", name="final", title="FER+ test (final)")
    text = report(runs, tmp_path / "all")[-1].read_text()
    assert "Metrics on FER+ test<" in text
    assert text.count('data-value="a"') == text.count('data-value="b"') == 2  # its metrics, and the one pair


def test_the_best_run_of_a_column_is_the_one_that_errs_less_or_agrees_more() -> None:
    made = [(name, figures(predictions(200, skill=skill), replicates=5)) for name, skill in (("a", 0.2), ("b", 6.0))]
    errors = {"Calibration error", "Pose MAE", "Geodesic error", "Pose MAE, ±99° only"}
    table = comparison(made, "compared")
    assert errors < {*table.head}
    assert {one.name for one in headline_figures(made[0][1]) if one.lower_is_better} == errors
    for place, title in enumerate(table.head[1:], start=1):
        values = [row[place].value for row in table.rows]
        best = (min if title in errors else max)(values)  # type: ignore[type-var]
        assert [row[place].best for row in table.rows] == [value == best for value in values]


def test_ticks_are_round_and_cover_the_range() -> None:
    rng = np.random.default_rng(0)
    for low, span in zip(rng.normal(0, 100, 200), 10 ** rng.uniform(-5, 6, 200), strict=True):
        made = ticks(low, low + span)
        assert made[0] <= low + 1e-9 * span
        assert made[-1] >= low + span - 1e-9 * span
        assert 2 <= len(made) <= 8
    assert ticks(3, 3)[0] < 3 < ticks(3, 3)[-1]


@pytest.mark.parametrize("value", [0.0, 0.156, 12.3])
def test_a_value_without_an_interval_is_drawn_from_zero_and_not_into_what_cannot_be(value: float) -> None:
    drawn = re.findall(r'class="tick"[^>]*>([^<]*)<', str(intervals([("run", value, None, None)], title="t")))
    assert drawn[0] == "0"
    assert float(drawn[-1]) >= value


def test_a_chart_of_many_points_keeps_its_means_and_stays_small() -> None:
    rng = np.random.default_rng(0)
    points = [(float(i), float(v)) for i, v in enumerate(rng.normal(5, 1, 100_000))]
    drawn = lines([Series("loss<", points)], title='a "title" <b>', x_label="samples")
    assert len(drawn) < 12_000
    assert "<b>" not in drawn
    assert lines([], title="t", x_label="x") == ""


def test_out_takes_the_page_of_one_run_and_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rows=60, faces=4)
    before = sorted(run.rglob("*"))
    assert report([run], tmp_path / "deep" / "out") == [tmp_path / "deep" / "out" / "index.html"]
    assert (tmp_path / "deep" / "out" / "model_card.md").is_file()
    assert sorted(run.rglob("*")) == before


@pytest.mark.parametrize(
    ("terms", "shown"), [(["True"], True), (["False"], False), (["True", "False"], False), (None, False)]
)
def test_a_public_page_shows_only_faces_whose_terms_allow_it(
    tmp_path: Path, terms: list[str] | None, shown: bool
) -> None:
    run = fake_run(tmp_path / "run", rows=60, faces=40)
    figures = next((run / "evaluate").glob("*.json"))
    made = json.loads(figures.read_text())
    if terms:
        made["about"]["publishable"] = terms
    figures.write_text(json.dumps(made))
    (own,) = report([run], tmp_path / "own")
    assert "data:image/jpeg" in own.read_text()
    (public,) = report([run], tmp_path / "public", public=True)
    assert ("data:image/jpeg" in public.read_text()) is shown


def test_an_out_that_cannot_be_a_folder_is_one_message(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rows=60, faces=4)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"--out .*file/below: cannot be made \(Not a directory\)"):
        report([run], tmp_path / "file" / "below")


def test_the_model_card_speaks_of_the_heads_that_the_run_has(tmp_path: Path) -> None:
    run = fake_run(tmp_path / "run", rows=60, faces=4)
    text = CONFIG.replace("{emotion: {}, direction: {}, pose: {kind: bins66}}", "{direction: {}, emotion: null}")
    (run / "config.yaml").write_text(text)
    report([run])
    card = (run / "report" / "model_card.md").read_text()
    assert "Predicts direction of the head (forward, left, right, up, down) of one face from a cropped picture" in card
    assert "| trained on | data/fake (split train) |" in card
    (run / "config.yaml").write_text(text.replace("mobilenetv3_small_100", "angles"))
    report([run])
    assert "of one face from its three angles" in (run / "report" / "model_card.md").read_text()
