"""Association, intervals and paired tests against SciPy, scikit-learn, brute force and the thesis' own table."""

import csv
import itertools
import json
import math
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats as _stats

from hpe.core import statistics
from hpe.core.errors import UserError
from hpe.core.labels import DIRECTIONS, EMOTIONS
from hpe.core.table_files import read_table
from hpe.metrics import association
from hpe.metrics.association import Crossed, accuracy_by_row, associate, cross
from hpe.metrics.paired import paired
from hpe.report.association import ShardLabels, write_association
from tests import stated
from tests.fake_run import predictions

stats: Any = _stats  # its results are named tuples that type checkers cannot see

TABLE_3_1 = """anger contempt disgust fear happy neutral sad surprise
forward 1504 1334 1454 2052 1661 1823 1554 1769
left 411 310 371 361 347 397 391 412
right 367 251 337 281 300 380 387 376
up 788 399 750 1058 553 706 972 1005
down 1194 1323 709 507 1356 913 896 663"""
TABLE_4_6 = """14 19 12 13 24 11 14 20
12 15 14 17 16 18 17 18
8 16 16 18 24 16 14 15
11 15 14 14 25 14 12 14
9 13 12 15 24 16 18 17"""

tables = st.lists(st.lists(st.integers(1, 60), min_size=3, max_size=3), min_size=2, max_size=5).map(np.array)
few = settings(max_examples=40, deadline=None)


def labelled(direction: object, emotion: object) -> pa.Table:
    return pa.table({"direction": pa.array(direction), "emotion": pa.array(emotion)})


@pytest.mark.real
def test_the_thesis_table_3_1_is_reproduced_exactly_and_its_strength_is_told(shared: Path, tmp_path: Path) -> None:
    path = shared / "thesis" / "FINALDF_Proposed.csv"
    made = write_association(path, tmp_path, rows="direction", columns="emotion", replicates=200, seed=0)
    head, *lines = TABLE_3_1.splitlines()
    for line in lines:
        name, *expected = line.split()
        row = dict(zip(made["columns"], made["counts"][made["rows"].index(name)], strict=True))
        assert [row[emotion] for emotion in head.split()] == list(map(int, expected))
    assert made["n"] == 32_622
    with path.open() as lines_read:  # the same table by another reader, into SciPy
        pairs = [(row["Direction"], row["Emotion"]) for row in csv.DictReader(lines_read)]
    crosstab = stats.contingency.crosstab(*zip(*pairs, strict=True)).count
    found = made["association"]
    assert found["chi_square"] == pytest.approx(stats.chi2_contingency(crosstab).statistic)
    assert found["cramers_v"] == pytest.approx(stats.contingency.association(crosstab, method="cramer"))
    assert found["cramers_v_corrected"]["low"] < 0.103 < found["cramers_v_corrected"]["high"]
    assert "The association is small: Cramér's V 0.103" in made["sentences"][0]
    assert found["residuals"]["tests"] == 40
    assert (tmp_path / "association.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "association.json").read_text())["n"] == 32_622
    assert "| forward | 1823 | 1661 |" in (tmp_path / "association.md").read_text()


@pytest.mark.real
def test_the_thesis_baseline_words_are_read_and_it_is_balanced_by_design(shared: Path) -> None:
    made = associate(cross(read_table(shared / "thesis" / "train_val_baseline.csv")), replicates=50)
    assert made["n"] == 4_800
    assert np.unique(made["counts"]).tolist() == [120]
    assert made["association"]["cramers_v_corrected"]["value"] == 0


@given(tables)
@few
def test_chi_square_v_and_information_are_those_of_scipy_and_scikit_learn(table: np.ndarray) -> None:
    theirs = stats.chi2_contingency(table, correction=False)
    assert statistics.chi_square(table) == pytest.approx(theirs.statistic)
    assert statistics.degrees_of_freedom(table) == theirs.dof
    assert statistics.expected_counts(table) == pytest.approx(theirs.expected_freq)
    assert statistics.cramers_v(table) == pytest.approx(stats.contingency.association(table, method="cramer"))
    nats = sk.mutual_info_score(None, None, contingency=table)
    assert statistics.mutual_information_bits(table) == pytest.approx(nats / math.log(2), abs=1e-9)


def test_residuals_of_two_by_two_are_the_root_of_chi_square() -> None:
    table = np.array([[20, 5], [11, 30]])
    chi = stats.chi2_contingency(table, correction=False).statistic
    assert np.abs(statistics.adjusted_residuals(table)) == pytest.approx(np.full((2, 2), chi**0.5))


def test_residuals_without_association_are_standard_normal() -> None:
    tables = statistics.permuted_tables(np.array([[30, 40, 50], [60, 20, 10], [25, 35, 45]]), 2000, 0)
    residuals = np.array([statistics.adjusted_residuals(one) for one in tables])
    assert residuals.mean(0) == pytest.approx(np.zeros((3, 3)), abs=0.1)
    assert residuals.std(0) == pytest.approx(np.ones((3, 3)), abs=0.07)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=7))
@few
def test_holm_rejects_what_the_step_down_procedure_rejects(p: list[float]) -> None:
    adjusted = statistics.holm(np.array(p))
    for alpha in (0.01, 0.05, 0.2, 0.7):
        rejected = set()
        for step, index in enumerate(np.argsort(p, kind="stable")):
            if p[index] * (len(p) - step) > alpha:
                break
            rejected.add(int(index))
        assert {i for i, a in enumerate(adjusted) if a <= alpha} == rejected


@pytest.mark.parametrize("table", [[[27, 0], [19, 0], [19, 0]], [[5], [7]], [[3, 4]], [[0, 0], [2, 3]]])
def test_a_table_of_one_row_or_column_stays_as_it_is(table: list[list[int]]) -> None:
    for drawn in statistics.permuted_tables(np.array(table), 20, seed=3):
        assert drawn.tolist() == table


def test_a_column_that_is_always_right_does_not_hide_a_dependence_in_the_others() -> None:
    counts = np.full((2, 2), 200)
    correct = np.array([[200, 190], [200, 120]])
    assert accuracy_by_row(counts, correct, ["a", "b"], ["sure", "hard"], replicates=500)["permutation_p"] < 0.01


def test_permuted_tables_are_shuffles_of_the_labels() -> None:
    """Same margins, and the same distribution of χ² as shuffling one by one."""
    table = np.array([[12, 5, 0], [3, 9, 0], [6, 6, 0]])
    rows, columns = (np.repeat(part, table.ravel()) for part in np.indices((3, 3)).reshape(2, -1))
    drawn = statistics.permuted_tables(table, 3000, 0)
    assert (drawn.sum(1) == table.sum(0)).all()
    assert (drawn.sum(2) == table.sum(1)).all()
    rng = np.random.default_rng(1)
    shuffled = [statistics.cross_table(rng.permutation(rows), columns, 3, 3) for _ in range(3000)]
    ours, theirs = statistics.chi_square(drawn), statistics.chi_square(np.array(shuffled))
    assert np.quantile(ours, (0.5, 0.9)) == pytest.approx(np.quantile(theirs, (0.5, 0.9)), rel=0.1)


def test_interval_of_v_covers_the_truth_where_plain_v_is_biased() -> None:
    truth = np.array([[0.2, 0.1, 0.1], [0.08, 0.12, 0.1], [0.1, 0.08, 0.12]])
    expected = np.outer(truth.sum(1), truth.sum(0))
    v = math.sqrt((((truth - expected) ** 2) / expected).sum() / 2)
    rng = np.random.default_rng(2)
    samples = rng.multinomial(300, truth.ravel(), size=150).reshape(-1, 3, 3)
    intervals = [statistics.cramers_v_interval(one, replicates=300, seed=i) for i, one in enumerate(samples)]
    covered = np.mean([low <= v <= high for low, high in intervals])
    assert 0.88 <= covered <= 1
    assert statistics.corrected_cramers_v(samples).mean() == pytest.approx(v, abs=0.02)


def test_independent_labels_are_told_to_be_negligible() -> None:
    rng = np.random.default_rng(3)
    made = associate(cross(labelled(rng.integers(5, size=3000), rng.integers(8, size=3000))), replicates=300)
    found = made["association"]
    assert found["strength"] == "negligible"
    assert found["permutation"]["p"] > 0.01
    assert found["cramers_v_corrected"]["low"] < 0.02
    assert "negligible" in made["sentences"][0]


FEW = np.array([[19, 22, 5, 9, 1, 0, 3, 0], [0, 1, 0, 0, 0, 0, 0, 1], [0, 2, 2, 0, 0, 0, 1, 0], [0] * 8,
                [4, 1, 2, 0, 1, 0, 0, 0]])  # fmt: skip
"""74 faces of FER+, one of them with contempt."""


def test_the_word_for_the_strength_is_no_more_than_the_interval_bears(tmp_path: Path) -> None:
    rows, columns = (np.repeat(part, FEW.ravel()) for part in np.indices(FEW.shape).reshape(2, -1))
    pq.write_table(labelled(rows, columns), tmp_path / "t.parquet")
    made = write_association(
        tmp_path / "t.parquet", tmp_path, rows="direction", columns="emotion", replicates=1000, seed=0
    )
    assert made["association"]["cramers_v_corrected"]["low"] == 0
    assert made["association"]["strength"] == "negligible to large"
    assert "There is an association, but 74 rows do not show how strong" in made["sentences"][0]
    assert not any("contempt" in sentence for sentence in made["sentences"])
    assert "is large" not in (tmp_path / "association.md").read_text()
    chance = np.array([[3, 4, 2], [4, 3, 3], [2, 4, 3]])
    told = associate(Crossed(("a", "b", "c"), ("x", "y", "z"), chance, 0), replicates=300)["sentences"]
    assert "With 28 rows the association cannot be distinguished from none" in told[0]
    between = np.array([[100, 60], [60, 100]])  # w is 0.25, its interval about 0.14 to 0.36
    made = associate(Crossed(("a", "b"), ("x", "y"), between, 0), replicates=300)
    assert "The association is small to medium:" in made["sentences"][0]
    assert (
        "The most frequent column is right in 50.0% of the samples, the most frequent column of each row in 62.5%."
        in (made["sentences"][2])
    )
    alike = np.array([[100, 60], [100, 50]])
    told = associate(Crossed(("a", "b"), ("x", "y"), alike, 0, "age", "mood"), replicates=300)["sentences"][2]
    assert told.startswith("Knowing the age removes ")
    assert "64.5% of the samples; the most frequent mood of each age is not right more often." in told


def test_p_of_a_cell_is_exact() -> None:
    """By adding up the hypergeometric distribution, and by shuffling."""
    found = statistics.exact_cell_p(FEW)
    assert np.isnan(found[3]).all()
    assert np.isnan(found[:, 5]).all()
    n, left, contempt = FEW.sum(), FEW[1].sum(), FEW[:, 7].sum()
    assert found[1, 7] == pytest.approx(left * contempt / n)  # the chance that the only one is among the two
    forward, happy = FEW[0].sum(), FEW[:, 1].sum()
    shares = stats.hypergeom.pmf(np.arange(n), n, forward, happy)
    assert found[0, 1] == pytest.approx(shares[shares <= shares[FEW[0, 1]] * (1 + 1e-9)].sum())
    shuffled = statistics.permuted_tables(FEW, 4000, 1)[:, 0, 1]
    rarer = np.isin(shuffled, np.flatnonzero(shares <= shares[FEW[0, 1]] * (1 + 1e-9)))
    assert rarer.mean() == pytest.approx(found[0, 1], abs=0.03)


def test_of_few_faces_without_association_hardly_ever_a_cell_is_called_different() -> None:
    wrong = 0
    for drawn in statistics.permuted_tables(FEW, 300, seed=5):
        found = associate(Crossed(DIRECTIONS, EMOTIONS, drawn, 0), replicates=20)["association"]["residuals"]
        wrong += any(p is not None and p < 0.05 for row in found["p_holm"] for p in row)
    assert wrong / 300 < 0.05 + 3 * (0.05 * 0.95 / 300) ** 0.5


def test_labels_that_decide_each_other_have_v_1() -> None:
    made = associate(cross(labelled([0, 1, 2, 3] * 30, [0, 1, 2, 3] * 30)), replicates=100)["association"]
    assert made["cramers_v"] == pytest.approx(1)
    assert made["share_of_entropy_explained"] == pytest.approx(1)
    assert made["best_guess_given_row"] == 1
    assert made["best_guess_without"] == 0.25
    assert made["strength"] == "large"


def test_words_numbers_and_the_thesis_spellings_are_one_vocabulary() -> None:
    words = cross(pa.table({"Direction": ["gaze-up", "Left", None], "EMOTION": ["Happiness", "anger", "sad"]}))
    numbers = cross(labelled([3, 1, None], [1, 6, 2]))
    assert (words.counts == numbers.counts).all()
    assert words.left_out == numbers.left_out == 1


def test_other_columns_are_crossed_as_they_are() -> None:
    made = cross(pa.table({"age": ["old", "young", "old"], "split": ["b", "a", "b"]}), "age", "split")
    assert (made.row_names, made.column_names) == (("old", "young"), ("a", "b"))
    assert made.counts.tolist() == [[0, 2], [1, 0]]


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_blank_cell_is_left_out_and_no_class_of_its_own(tmp_path: Path, form: str) -> None:
    columns = {"direction": ["left", "", "up"], "emotion": ["sad", "happy", "sad"], "age": ["old", "young", ""]}
    path = tmp_path / f"t.{form}"
    if form == "csv":  # as hpe predict writes it where a rule gives no direction
        rows = zip(*columns.values(), strict=True)
        path.write_text("\n".join(map(",".join, [columns, *rows])))
    else:
        pq.write_table(pa.table(columns), path)
    labels, ages = cross(read_table(path)), cross(read_table(path), "age", "emotion")
    assert (labels.left_out, labels.counts.sum()) == (1, 2)
    assert (ages.row_names, ages.left_out, ages.counts.sum()) == (("old", "young"), 1, 2)


def test_a_single_class_gives_a_reason_instead_of_a_strength(tmp_path: Path) -> None:
    pq.write_table(labelled([0, 0, 0], [1, 2, 2]), tmp_path / "t.parquet")
    made = write_association(
        tmp_path / "t.parquet", tmp_path / "out", rows="direction", columns="emotion", replicates=10, seed=0
    )
    assert made["association"]["value"] is None
    assert "there can be no association" in made["sentences"][0]
    assert "nan" not in (tmp_path / "out" / "association.md").read_text()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"Direction,Emotion\n0,sleepy\n", "'sleepy' found; expected 0..7 or neutral"),
        ("t.csv", b"Direction,Emotion\n7,sad\n", "column Direction: 7 found; expected 0..4 or forward"),
        ("t.csv", b"Direction,Feeling\n1,sad\n", "column emotion: not found; the table has 'Direction'"),
        ("t.csv", b"Direction,Emotion\n,sad\n", "no row of the table has both"),
        ("t.parquet", b"PAR1nonsense", "cannot be read"),
        ("t.xlsx", b"", "ends in .csv, .tsv, .parquet"),
    ],
)
def test_bad_tables_are_refused_in_words(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        associate(cross(read_table(tmp_path / name)))


def test_accuracy_depends_on_the_row_only_where_it_does() -> None:
    counts = np.full((5, 8), 30)
    same = accuracy_by_row(counts, np.full((5, 8), 15), DIRECTIONS, EMOTIONS, replicates=300)
    assert same["permutation_p"] == 1
    other = np.full((5, 8), 15)
    other[2] = 5
    made = accuracy_by_row(counts, other, DIRECTIONS, EMOTIONS, replicates=300)
    assert made["permutation_p"] < 0.01
    assert made["rows"]["right"]["value"] == pytest.approx(1 / 6)
    assert made["rows"]["right"]["high"] < made["rows"]["left"]["low"]


def test_a_mixture_of_harder_emotions_is_no_effect_of_direction() -> None:
    counts = np.array([[200, 20], [20, 200]])
    correct = np.array([[180, 4], [18, 40]])  # 90 % and 20 % right in both rows
    made = accuracy_by_row(counts, correct, ["a", "b"], ["easy", "hard"], replicates=300)
    assert made["rows"]["a"]["value"] > 2 * made["rows"]["b"]["value"]
    assert made["permutation_p"] > 0.5


def test_the_thesis_table_4_6_does_not_show_an_effect_of_direction() -> None:
    correct = np.array([list(map(int, line.split())) for line in TABLE_4_6.splitlines()])
    made = accuracy_by_row(np.full((5, 8), 30), correct, DIRECTIONS, sorted(EMOTIONS), replicates=1000)
    assert made["n"] == 1200
    assert made["rows"]["forward"]["value"] == pytest.approx(127 / 240)
    assert made["permutation_p"] > 0.05


def test_more_correct_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match="between 0 and its count"):
        accuracy_by_row(np.array([[1]]), np.array([[2]]), ["a"], ["b"])


@given(st.integers(0, 12), st.integers(0, 12))
@few
def test_mcnemar_is_the_exact_binomial_test(only_first: int, only_second: int) -> None:
    first = np.array([True] * only_first + [False] * only_second + [True, False], bool)
    second = np.array([False] * only_first + [True] * only_second + [True, False], bool)
    n = only_first + only_second
    heads = [math.comb(n, k) / 2**n for k in range(n + 1)]
    p = sum(h for h in heads if h <= heads[only_first] * (1 + 1e-9))
    assert statistics.mcnemar_exact(first, second).p == pytest.approx(p)


def test_paired_comparison_finds_the_better_network_in_any_order_of_rows() -> None:
    weak, strong = predictions(800, skill=1.0, seed=1), predictions(800, skill=2.2, seed=2)
    shuffled = strong.take(np.random.default_rng(0).permutation(800)).slice(0, 700)
    made = paired(weak, shuffled, replicates=300)
    assert made["n"] == 700
    assert made["only_in_first"] == 100
    keys = {*shuffled["key"].to_pylist()}
    kept = weak.filter(pa.array([key in keys for key in weak["key"].to_pylist()]))
    truth, p = kept["emotion"].to_numpy(), np.array(kept["emotion_p"].to_pylist())
    assert made["macro_f1"][0] == pytest.approx(sk.f1_score(truth, p.argmax(1), average="macro"))
    assert made["macro_f1_difference"]["low"] > 0
    assert made["macro_f1_p"] < 0.05
    assert made["mcnemar_p"] < 0.05


def test_a_network_does_not_differ_from_itself() -> None:
    table = predictions(300)
    made = paired(table, table, replicates=100)
    assert made["mcnemar_p"] == 1
    assert made["macro_f1_p"] == 1
    assert made["macro_f1_difference"]["value"] == 0


def test_tables_that_share_no_sample_or_repeat_one_are_refused() -> None:
    table = predictions(100)
    other = table.set_column(0, "key", pa.array([f"x{i}" for i in range(100)]))
    with pytest.raises(UserError, match="no sample in common"):
        paired(table, other)
    with pytest.raises(UserError, match="occur twice"):
        paired(table, pa.concat_tables([table, table]))


def test_every_pair_of_counts_is_a_cell() -> None:
    pairs = np.array(list(itertools.product(range(3), range(4))) * 2)
    assert (statistics.cross_table(pairs[:, 0], pairs[:, 1], 3, 4) == 2).all()


def test_an_out_that_cannot_be_a_folder_is_one_message(tmp_path: Path) -> None:
    pq.write_table(labelled([0, 1], [0, 1]), tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"--out .*: cannot be made \(Not a directory\); part of this path is a file"):
        write_association(
            tmp_path / "t.parquet", tmp_path / "t.parquet" / "below", rows="direction", columns="emotion",
            replicates=20, seed=0,
        )  # fmt: skip


def test_two_rows_tell_no_strength(tmp_path: Path) -> None:
    pq.write_table(labelled([0, 1], [0, 1]), tmp_path / "t.parquet")
    made = write_association(
        tmp_path / "t.parquet", tmp_path / "out", rows="direction", columns="emotion", replicates=20, seed=0
    )
    assert made["sentences"] == ["2 rows are too few to measure an association."]
    assert made["counts"][0][0] == made["counts"][1][1] == 1


@pytest.mark.parametrize("chi", [10.0, 1400.0, 1500.0, 1e5])
def test_the_logarithm_of_p_is_finite_where_p_is_too_small_for_a_number(chi: float) -> None:
    """With two degrees of freedom p is exp(-χ²/2); with one it is twice the normal distribution's tail."""
    assert association._log10_p(chi, 2) == pytest.approx(-chi / 2 / math.log(10))
    two_tails = (math.log(2) + stats.norm.logsf(math.sqrt(chi))) / math.log(10)
    assert association._log10_p(chi, 1) == pytest.approx(two_tails, rel=1e-6)


def test_shards_and_their_pose_tables_give_what_a_table_of_their_labels_gives(tmp_path: Path) -> None:
    shards = stated.dataset(tmp_path / "faces", {"train": 300, "val": 100}, per_shard=100)
    made = write_association(
        shards, tmp_path / "out", rows="direction", columns="emotion", replicates=20, seed=0,
        labels=ShardLabels(pose=stated.ESTIMATOR),
    )  # fmt: skip
    indexes: Any = [datasets.Dataset.from_file(str(path)).to_pandas() for path in sorted(shards.glob("*.arrow"))]
    emotions = pd.concat(indexes)[["key", "emotion"]]
    poses = pd.read_parquet(shards / "pose" / stated.ESTIMATOR)
    joined = emotions.merge(poses, on="key").rename(columns={"direction_ours": "direction"})
    joined[["direction", "emotion"]].to_parquet(tmp_path / "joined.parquet")
    same = write_association(
        tmp_path / "joined.parquet", tmp_path / "same", rows="direction", columns="emotion", replicates=20, seed=0
    )
    assert made["table"] == f"faces (directions by ours of {stated.ESTIMATOR})"
    assert {**made, "table": ""} == {**same, "table": ""}
    by_age = write_association(
        shards, tmp_path / "age", rows="group_age", columns="direction_ours", replicates=20, seed=0,
        labels=ShardLabels("val", stated.ESTIMATOR, "thesis_tree"),
    )  # fmt: skip
    assert by_age["rows"] == ["adult", "child"]
    assert set(by_age["columns"]) <= set(DIRECTIONS)
    assert by_age["n"] + by_age["left_out"] == 100


@pytest.mark.parametrize(
    ("name", "labels", "message"),
    [
        ("faces", ShardLabels(), "no sample has a label in the column direction; name pose tables with --pose"),
        ("faces", ShardLabels(rule="ours"), "--rule ours: a rule of pose tables; name them with --pose"),
        ("faces", ShardLabels(pose="other"), "pose/other: no such folder; expected pose tables"),
        (
            "faces",
            ShardLabels(pose=stated.ESTIMATOR, rule="mine"),
            "--rule mine: the tables in .* have thesis_tree",
        ),
        ("faces", ShardLabels("test", stated.ESTIMATOR), "there is no split 'test'; expected one of train"),
        ("t.csv", ShardLabels("val"), "t.csv: --split, --pose and --rule are for shards"),
        (
            ".",
            ShardLabels(),
            "no manifest.json; expected a CSV or Parquet file, or a folder where `hpe pack` has finished",
        ),
    ],
)
def test_what_of_shards_cannot_be_associated_is_one_message(
    tmp_path: Path, name: str, labels: ShardLabels, message: str
) -> None:
    stated.dataset(tmp_path / "faces", {"train": 50})
    (tmp_path / "t.csv").write_text("direction,emotion\n0,1\n")
    with pytest.raises(UserError, match=message):
        write_association(
            tmp_path / name, tmp_path / "out", rows="direction", columns="emotion", replicates=20, seed=0, labels=labels
        )
    assert not (tmp_path / "out").exists()
