"""Results are named by what they judge; no result replaces another one's."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.data.shards import Manifest, write_shard
from hpe.evaluate.subject import Subject
from hpe.models.views import PLAIN, Views
from hpe.report.page import report
from hpe.stream import ShardSet
from hpe.stream.shard_sets import Shard
from tests import made
from tests.evaluate.test_evaluate import said, untrained
from tests.stream.tiny import pose_table


def packed(folder: Path, dataset: str, *, first: int = 0, splits: tuple[str, ...] = ("test",)) -> Path:
    """Shards of a dataset, twelve samples per split."""
    folder.mkdir(parents=True)
    infos = []
    for number, split in enumerate(splits):
        samples = [said()(i, one) for i, one in enumerate(made.samples(12, start=first + 12 * number))]
        infos.append(write_shard(folder / f"{split}-000000.tar", split, samples))
    Manifest(dataset, "squares", "none", True, "none", {"size": made.SIDE}, tuple(infos)).save(folder)
    return folder


def evaluated(run: Path, *arguments: str | Path) -> None:
    command = ["evaluate", str(run), *map(str, arguments), "--workers", "0", "--precision", "fp32"]
    done = CliRunner().invoke(app, command)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output


def results(run: Path) -> dict[str, str]:
    """Titles by the names of the files."""
    files = sorted((run / "evaluate").glob("[!.]*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8"))["about"]["title"] for path in files}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return untrained(tmp_path / "run")


def test_another_dataset_gets_another_name_and_its_own_heading(run: Path, tmp_path: Path) -> None:
    evaluated(run, raf := packed(tmp_path / "raf", "raf-db"))
    evaluated(run, packed(tmp_path / "shards" / "ck", "folders", first=40))
    assert results(run) == {"ck-test": "ck test", "raf-db-test": "RAF-DB test"}
    before = {path.name: path.read_bytes() for path in (run / "evaluate").iterdir()}
    evaluated(run, raf)  # the same command again rewrites its own files, the same
    assert {path.name: path.read_bytes() for path in (run / "evaluate").iterdir()} == before
    (page,) = report([run])
    for text in (page.read_text(encoding="utf-8"), (page.parent / "model_card.md").read_text(encoding="utf-8")):
        assert "Metrics on RAF-DB test" in text
        assert "Metrics on ck test" in text


def test_two_folders_of_one_name_are_told_apart_and_each_finds_its_own_file_again(run: Path, tmp_path: Path) -> None:
    one, other = packed(tmp_path / "a" / "mine", "table"), packed(tmp_path / "b" / "mine", "table", first=40)
    for shards in (one, other, one, other):
        evaluated(run, shards)
    assert results(run) == {"mine-test": "mine test", "mine-test-b_mine": "mine test (b/mine)"}
    shutil.move(other, tmp_path / "moved")  # recognised by its content
    evaluated(run, tmp_path / "moved")
    assert len(results(run)) == 3, "another folder name is another usual name"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (("--flips",), "raf-db-test-flips"),
        (("--centre", "0.9"), "raf-db-test-centre0.9"),
        (("--which", "last"), "raf-db-test-last"),
        (("--which", "step-00000000"), "raf-db-test-step-00000000"),
    ],
)
def test_what_changes_a_result_changes_its_name(run: Path, tmp_path: Path, options: tuple[str, ...], name: str) -> None:
    shards = packed(tmp_path / "raf", "raf-db")
    evaluated(run, shards)
    evaluated(run, shards, *options)
    assert set(results(run)) == {"raf-db-test", name}


def test_a_project_that_was_moved_finds_its_results_again(tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    shards = packed(old / "raf", "raf-db")
    run = untrained(old / "run")
    (info,) = Manifest.load(shards).shards
    (shards / "pose").mkdir()
    for name in ("here", "there"):
        pose_table(shards / "pose" / name, info, [one.key for one in made.samples(12)])
    evaluated(run, shards, "--pose", shards / "pose" / "here")
    evaluated(run, shards, "--pose", shards / "pose" / "there")
    found = results(run)
    assert found == {
        "raf-db-test-here": "RAF-DB test (labels of here)",
        "raf-db-test-there": "RAF-DB test (labels of there)",
    }
    old.rename(new)
    evaluated(new / "run", new / "raf", "--pose", new / "raf" / "pose" / "here")
    assert results(new / "run") == found


def subject_of(
    folders: Sequence[Path], *, pose: Path | None = None, flips: bool = False, which: str = "best"
) -> Subject:
    sets = [ShardSet(str(one), pose=None if pose is None else str(pose)) for one in folders]
    shards = [[Shard(str(one / name), name) for name in ("test-000000.tar", "test-000001.tar")] for one in folders]
    return Subject.of(sets, shards, views=Views(flips=flips), which=which, precision=None)


def written(folder: Path, subject: Subject) -> str:
    """The name of a result in a folder of results, where its JSON then lies."""
    name, title = subject.name_in(folder, None)
    about = {"title": title, "identity": dict(subject.identity)}
    (folder / f"{name}.json").write_text(json.dumps({"about": about}), encoding="utf-8")
    return name


def test_no_long_name_is_cut_where_it_tells_results_apart(tmp_path: Path) -> None:
    sets = [tmp_path / f"顔 dataset number {number}" for number in range(9)]
    subjects = [subject_of(sets, flips=flips, which=which) for flips in (True, False) for which in ("best", "last")]
    subjects += [subject_of([*sets, tmp_path / more]) for more in "ab"]
    names = [written(tmp_path, one) for one in subjects]
    assert len(set(names)) == len(names)
    assert names == [one.stem for one in subjects]
    assert max(len(name.encode()) for name in names) <= 120
    assert [written(tmp_path, one) for one in subjects] == names


def test_however_many_results_share_a_name_none_replaces_another(tmp_path: Path) -> None:
    subjects = [subject_of([tmp_path / "raf"], pose=tmp_path / str(i) / "ours") for i in range(5)]
    names = [written(tmp_path, one) for one in subjects]
    assert len(set(names)) == 5
    assert [written(tmp_path, one) for one in subjects] == names


def test_a_chosen_name_that_belongs_to_another_result_is_refused(run: Path, tmp_path: Path) -> None:
    raf, ck = packed(tmp_path / "raf", "raf-db"), packed(tmp_path / "ck", "folders", first=40)
    evaluated(run, raf, "--name", "final")
    kept = (run / "evaluate" / "final.json").read_bytes()
    with pytest.raises(UserError, match=r"--name final: .* is the result on RAF-DB test \(final\) .*, not on ck test"):
        evaluated(run, ck, "--name", "final")
    assert (run / "evaluate" / "final.json").read_bytes() == kept
    evaluated(run, raf, "--name", "final")
    assert results(run) == {"final": "RAF-DB test (final)"}


def test_all_splits_are_judged_together(run: Path, tmp_path: Path) -> None:
    evaluated(run, packed(tmp_path / "raf", "raf-db", splits=("train", "val", "test")), "--split", "all")
    assert results(run) == {"raf-db-all": "RAF-DB all"}
    assert json.loads((run / "evaluate" / "raf-db-all.json").read_text())["rows"] == 36


def test_a_result_that_does_not_say_what_it_is_of_is_not_replaced(run: Path, tmp_path: Path) -> None:
    raf = packed(tmp_path / "raf", "raf-db")
    evaluated(run, raf, "--name", "test")
    path = run / "evaluate" / "test.json"
    whole = json.loads(path.read_text(encoding="utf-8"))
    del whole["about"]["identity"]
    path.write_text(json.dumps(whole), encoding="utf-8")
    with pytest.raises(UserError, match=r"--name test: .* is the result on something that cannot be read, not on RAF"):
        evaluated(run, raf, "--name", "test")


def test_runs_are_compared_on_the_same_samples_alone(tmp_path: Path) -> None:
    raf, same = packed(tmp_path / "raf", "raf-db"), packed(tmp_path / "copy", "raf-db")
    other = packed(tmp_path / "other", "raf-db", first=40)
    runs = [untrained(tmp_path / name) for name in ("one", "two", "three")]
    for run, shards in zip(runs, (raf, same, other), strict=True):
        evaluated(run, shards)
    assert [list(results(run)) for run in runs] == [["raf-db-test"]] * 3
    page = report(runs, tmp_path / "all")[-1].read_text(encoding="utf-8")
    assert "Not evaluated on RAF-DB test, raf: three." in page
    assert "Not evaluated on RAF-DB test, other: one, two." in page


def test_shards_without_a_manifest_are_named_by_their_file(run: Path, tmp_path: Path) -> None:
    folder = packed(tmp_path / "raf", "raf-db")
    (folder / "manifest.json").unlink()
    evaluated(run, folder / "test-000000.tar")
    assert results(run) == {"test-000000": "test-000000"}


def test_a_part_of_a_split_says_so(run: Path, tmp_path: Path) -> None:
    folder = packed(tmp_path / "raf", "raf-db", splits=("test",))
    manifest = Manifest.load(folder)
    more = write_shard(folder / "test-000001.tar", "test", made.samples(9, start=90))
    replace(manifest, shards=(*manifest.shards, more)).save(folder)
    evaluated(run, folder)
    evaluated(run, folder / "test-000000.tar")
    assert list(results(run).values()) == ["RAF-DB test", "RAF-DB test, 1 of 2 shards"]


def test_no_password_of_an_address_is_in_a_name() -> None:
    shards = [Shard("https://me:secret@host/train-000000.tar?sig=secret", "train-000000.tar", 8, "0" * 64)]
    subject = Subject.of([ShardSet("https://me:secret@host/")], [shards], views=PLAIN, which="best", precision=None)
    assert "secret" not in str(subject)
