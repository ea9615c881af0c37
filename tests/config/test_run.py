"""Configs: strict, every mistake at once, each with its place."""

from pathlib import Path

import pytest

from hpe.config.run import RunConfig, differences
from hpe.config.strict_yaml import load, parse, paths_to, setting
from hpe.core.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs"
GOOD = """\
run: runs/x
data:
  train: [{shards: a, split: train}]
  val:
    - shards: a
      split: val
model:
  backbone: tiny
  heads: {emotion: {}}
train:
  learning_rate: 1e-3
"""


def test_defaults_are_written_out_and_come_back() -> None:
    config = parse(GOOD, "run.yaml", RunConfig)
    assert config.train.learning_rate == 0.001
    assert parse(config.dump(), "dump", RunConfig) == config


ODD_NAMES = (
    "a #b",
    "2024",
    "1e3",
    ".5",
    "1:30",
    "2024-01-01",
    "no",
    "null",
    "~",
    "*a",
    "[x]",
    "a: b",
    " a",
    'a"b',
    "é🙂",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_folder_of_any_name_comes_back_from_set_and_from_a_dump(name: str) -> None:
    config = parse(GOOD, "run.yaml", RunConfig, [setting("run", name)])
    assert config.run == name
    assert parse(config.dump(), "dump", RunConfig) == config


def test_a_usual_folder_is_set_without_quotes() -> None:
    assert setting("data.train.0.shards", "/mnt/data 1/ferplus_64-é") == "data.train.0.shards=/mnt/data 1/ferplus_64-é"


def test_every_mistake_comes_at_once_with_line_and_column() -> None:
    bad = GOOD.replace("backbone", "backbon").replace("1e-3", "fast").replace("run: runs/x", "run: 3")
    with pytest.raises(UserError) as caught:
        parse(bad, "run.yaml", RunConfig)
    lines = str(caught.value).splitlines()
    assert any(line.startswith("run.yaml:1:1: run: ") for line in lines)
    assert any(line.startswith("run.yaml:8:3: model.backbon: unknown key; did you mean 'backbone'") for line in lines)
    assert any(line.startswith("run.yaml:11:3: train.learning_rate: ") and "'fast'" in line for line in lines)
    assert lines[0] == "3 mistakes:"
    assert len(lines) == 4


def test_a_tab_is_answered_with_what_to_type_instead() -> None:
    with pytest.raises(UserError, match=r"run\.yaml:2:1: not YAML: a tab; indent with spaces, not tabs"):
        parse("data:\n\tsize: 64\n", "run.yaml", RunConfig)


def test_the_path_of_a_key_is_one_that_set_takes() -> None:
    assert [*paths_to(RunConfig, "epochs")] == ["train.epochs"]
    for path in paths_to(RunConfig, "shards"):
        assert "given" in parse(GOOD, "run.yaml", RunConfig, ["data.val=[{shards: b}]", f"{path}=given"]).dump()
    assert [*paths_to(RunConfig, "processe")] == []


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (("split: train", "splt: train"), "did you mean 'split'"),
        (("heads: {emotion: {}}", "heads: {}"), "no head is on"),
        (("heads: {emotion: {}}", "heads: {emotion: {conditioned_on_pose: true}}"), "needs the pose head"),
        (("learning_rate: 1e-3", "learning_rate: -1"), "greater than 0"),
        (("learning_rate: 1e-3", "learning_rate: .nan"), "learning_rate"),
        (("train: [{shards: a, split: train}]", "train: []"), "data.train"),
        (("learning_rate: 1e-3", "small_epochs: 2"), "2 epochs of small images need train.small_size"),
        (("learning_rate: 1e-3", "small_epochs: 2\n  small_size: 224"), "224 is not below data.size, 224"),
        (
            ("learning_rate: 1e-3", "small_epochs: 10\n  small_size: 112"),
            "10 epochs of small images leave no epoch at data.size, because train.epochs is 10",
        ),
        (("train:\n  learning", "train: &a\n  learning"), None),
    ],
)
def test_what_cannot_work_is_refused(change: tuple[str, str], told: str | None) -> None:
    text = GOOD.replace(*change)
    assert text != GOOD
    if told is None:
        parse(text, "run.yaml", RunConfig)
        return
    with pytest.raises(UserError, match=told.replace(".", r"\.")):
        parse(text, "run.yaml", RunConfig)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "- 1",
        "a: [",
        "run: x\nrun: y",
        "a: &x 1\nb: *x",
        "? [1]\n: 2",
        "a: !!python/object/apply:os.system [ls]",
        "a: " + "[" * 500,
        "".join(" " * depth + "a:\n" for depth in range(500)),
        "a: &a [x, x, x]\n"
        + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        "? !!binary aGk=\n: 1",
        "run: 2020-01-01",
    ],
)
def test_what_is_no_config_is_told_in_one_message(text: str) -> None:
    with pytest.raises(UserError, match=r"run\.yaml"):
        parse(text, "run.yaml", RunConfig)


def test_set_changes_a_value_and_names_itself_when_wrong() -> None:
    config = parse(GOOD, "run.yaml", RunConfig, ["train.batch=32", "data.train.0.weight=2", "augment.flip=0.5"])
    assert (config.train.batch, config.data.train[0].weight, config.augment.flip) == (32, 2.0, 0.5)
    for wrong in ("train.batch=many", "train.bach=3", "train", "data.train.7.weight=1", "seed.x=1"):
        with pytest.raises(UserError, match="--set " + wrong.replace(".", r"\.")):
            parse(GOOD, "run.yaml", RunConfig, [wrong])


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("[1", r"not YAML: expected ',' or '\]'"),
        ("[" * 500, "more than 32 deep"),
        ("{a: &a [x, x], b: [*a, *a]}", "aliases"),
        ("!!python/object/apply:os.system [ls]", "not YAML: could not determine a constructor"),
        ("2020-01-01", "found '2020-01-01'"),
    ],
)
def test_a_value_of_set_that_is_no_value_is_told_in_one_line(value: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as caught:
        parse(GOOD, "run.yaml", RunConfig, [f"train.keep={value}"])
    assert str(caught.value).startswith("--set train.keep=")
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("model.freeze.0.x=1", "the config has no model.freeze.0.x"),
        ("augment.crop_scale.0.a=1", "the config has no augment.crop_scale.0.a"),
        ("train.²=1", "unknown key"),
        (f"data.train.{'1' * 5000}=1", "the list has 1 items"),
        ("train.epochs=1e307", "less than or equal to 1000000"),
    ],
)
def test_a_path_or_value_of_set_that_no_config_has_is_told_in_one_message(given: str, told: str) -> None:
    lists = GOOD.replace("heads:", "freeze: [layer1]\n  heads:") + "augment: {crop_scale: [0.8, 1.0]}\n"
    with pytest.raises(UserError, match=told) as caught:
        parse(lists, "run.yaml", RunConfig, [given])
    assert str(caught.value).startswith("--set ")


def test_differences_name_what_changes_the_learning_and_nothing_else() -> None:
    before = parse(GOOD, "a", RunConfig)
    after = parse(GOOD, "a", RunConfig, ["train.batch=32", "data.workers=7", "run=elsewhere"])
    assert differences(before, after) == ["train.batch: 256 -> 32"]


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_of_the_repository_loads(path: Path) -> None:
    load(path, RunConfig)
