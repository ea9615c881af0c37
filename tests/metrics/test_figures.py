"""Figures against scikit-learn, SciPy and formulas written out, on random and degenerate tables."""

import json
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import sklearn.metrics as sk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.transform import Rotation

from hpe.core.errors import UserError
from hpe.core.labels import EMOTIONS
from hpe.core.statistics import resampled_sums, wilson_interval
from hpe.metrics import figures, to_markdown
from hpe.metrics.markdown import headline, of_classifier
from hpe.metrics.values import Resampling, figure
from tests.fake_run import HOSTILE, predictions

classes = st.lists(st.tuples(st.integers(0, 7), st.integers(0, 7)), min_size=1, max_size=60)
settings.register_profile("few", max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("few")


def chosen(truth: Sequence[int | None], choice: Sequence[int | None]) -> pa.Table:
    return pa.table({"emotion": pa.array(truth, pa.int8()), "emotion_hat": pa.array(choice, pa.int8())})


def probable(truth: np.ndarray, p: np.ndarray) -> pa.Table:
    lists = pa.array(list(p), pa.list_(pa.float64()))
    return pa.table({"emotion": pa.array(truth, pa.int8()), "emotion_p": lists})


@given(classes)
def test_class_figures_are_those_of_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, choice = map(list, zip(*pairs, strict=True))
    made = figures(chosen(truth, choice), replicates=20)["emotion"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of what we report as absent
        assert made["accuracy"]["value"] == pytest.approx(sk.accuracy_score(truth, choice))
        true = np.unique(truth)  # a class that the dataset lacks does not enter the mean
        theirs = sk.f1_score(truth, choice, labels=true, average="macro")
        assert made["macro_f1"]["value"] == pytest.approx(theirs)
        assert made["macro_f1"]["classes"] == len(true)
        assert made["weighted_f1"]["value"] == pytest.approx(sk.f1_score(truth, choice, average="weighted"))
        assert made["balanced_accuracy"]["value"] == pytest.approx(sk.balanced_accuracy_score(truth, choice))
        assert made["confusion"] == sk.confusion_matrix(truth, choice, labels=range(8)).tolist()
        given_nan: Any = {"labels": range(8), "zero_division": np.nan}
        each: Any = sk.precision_recall_fscore_support(truth, choice, **given_nan)
    for index, name in enumerate(EMOTIONS):
        one = made["per_class"][name]
        assert one["support"] == each[3][index]
        for column, key in ((0, "precision"), (1, "recall")):
            value, theirs = one[key]["value"], each[column][index]
            assert (value is None and np.isnan(theirs)) or value == pytest.approx(theirs)
        if one["support"] + one["chosen"] == 0:
            assert one["f1"]["value"] is None
            assert one["f1"]["reason"]
        else:
            assert one["f1"]["value"] == pytest.approx(np.nan_to_num(each[2][index]))


def test_top_2_is_that_of_scikit_learn_and_equal_probabilities_earn_nothing() -> None:
    rng = np.random.default_rng(0)
    truth, p = rng.integers(8, size=300), rng.dirichlet(np.ones(8), 300)
    made = figures(probable(truth, p), replicates=20)["emotion"]
    assert made["top_2"]["value"] == pytest.approx(sk.top_k_accuracy_score(truth, p, k=2, labels=range(8)))
    flat = figures(probable(truth, np.full((300, 8), 1 / 8)), replicates=20)["emotion"]
    assert flat["top_2"]["value"] == pytest.approx(np.mean(truth < 2))


def test_calibration_error_is_the_sum_over_bins_written_out() -> None:
    rng = np.random.default_rng(1)
    truth, p = rng.integers(8, size=500), rng.dirichlet(np.full(8, 0.4), 500)
    made = figures(probable(truth, p), replicates=50)["emotion"]["calibration"]
    confidence, right = p.max(1), p.argmax(1) == truth
    expected = 0.0
    for low in np.arange(15) / 15:
        inside = (confidence > low) & (confidence <= low + 1 / 15)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert made["ece"]["value"] == pytest.approx(expected)
    assert made["negative_log_likelihood"] == pytest.approx(sk.log_loss(truth, p, labels=range(8)))
    assert sum(one["n"] for one in made["bins"]) == 500
    empty = [one for one in made["bins"] if not one["n"]]
    assert empty
    assert all(one["accuracy"]["value"] is None and one["accuracy"]["reason"] for one in empty)


def test_a_perfectly_calibrated_sure_classifier_has_error_0() -> None:
    truth = np.arange(8).repeat(3)
    made = figures(probable(truth, np.eye(8)[truth]), replicates=20)["emotion"]
    assert made["calibration"]["ece"]["value"] == 0
    assert made["accuracy"]["value"] == 1
    assert made["accuracy"]["low"] < 0.9  # 24 samples do not prove 100 %


def test_numbers_that_are_no_probabilities_have_no_calibration() -> None:
    truth = np.arange(8)
    made = figures(probable(truth, np.eye(8) * 5), replicates=20)["emotion"]
    assert made["calibration"]["value"] is None
    assert "sum to 1" in made["calibration"]["reason"]
    assert made["accuracy"]["value"] == 1


def test_seven_label_protocol_is_scikit_learn_on_what_is_left() -> None:
    rng = np.random.default_rng(2)
    truth, p = rng.integers(8, size=400), rng.dirichlet(np.ones(8), 400)
    made = figures(probable(truth, p), replicates=20)["protocols"]
    kept = truth != 7
    choice = p[kept][:, :7].argmax(1)
    assert made["affectnet_7"]["n"] == kept.sum()
    assert made["affectnet_7"]["accuracy"]["value"] == pytest.approx(np.mean(choice == truth[kept]))
    theirs = sk.f1_score(truth[kept], choice, average="macro")
    assert made["affectnet_7"]["macro_f1"]["value"] == pytest.approx(theirs)
    assert made["affectnet_8"]["accuracy"]["value"] == pytest.approx(np.mean(p.argmax(1) == truth))


def poses(truth: np.ndarray, guess: np.ndarray, **more: object) -> pa.Table:
    names = ("yaw", "pitch", "roll")
    columns = {name: truth[:, i] for i, name in enumerate(names)}
    columns |= {f"{name}_hat": guess[:, i] for i, name in enumerate(names)}
    return pa.table(columns | more)


def test_pose_figures_are_those_of_scipy_rotations() -> None:
    rng = np.random.default_rng(3)
    truth, guess = rng.uniform(-120, 120, (200, 3)), rng.uniform(-120, 120, (200, 3))
    made = figures(poses(truth, guess), replicates=20)["pose"]

    def rotations(angles: np.ndarray) -> Rotation:
        return Rotation.from_euler("ZYX", angles[:, [2, 0, 1]], degrees=True)

    a, b = rotations(guess), rotations(truth)
    geodesic = np.rad2deg((a.inv() * b).magnitude())
    cosine = np.einsum("nij,nij->nj", a.as_matrix(), b.as_matrix()).clip(-1, 1)
    other = np.stack((180 - guess[:, 0], guess[:, 1] + 180, guess[:, 2] + 180), 1)
    assert (a.inv() * rotations(other)).magnitude().max() < 1e-6, "both triples are the same rotation"
    difference = np.abs(np.stack((guess, other)) - truth) % 360
    difference = np.minimum(difference, 360 - difference)
    difference = np.take_along_axis(difference, difference.sum(2).argmin(0)[None, :, None], 0)[0]
    kept = (np.abs(truth) <= 99).all(1)
    for name, rows in (("all", slice(None)), ("within_99", kept)):
        assert made[name]["geodesic"]["value"] == pytest.approx(geodesic[rows].mean())
        assert made[name]["maev"]["value"] == pytest.approx(np.rad2deg(np.arccos(cosine))[rows].mean())
        assert made[name]["mae"]["value"] == pytest.approx(difference[rows].mean())
        assert made[name]["yaw"]["value"] == pytest.approx(difference[rows, 0].mean())
    assert made["within_99"]["dropped"] == (~kept).sum() > 0
    assert sum(one["n"] for one in made["by_yaw"]) == 200


def test_errors_in_the_order_of_biwi_plus_are_those_of_scipys_other_sequence() -> None:
    # kuhnkeF/headposeplus, hpp/calc_error.py: `ypr` is Hopenet's order, `pyr` that of Biwi+.
    rng = np.random.default_rng(5)
    truth = rng.uniform(-60, 60, (50, 3))
    guess = truth + rng.normal(0, 8, (50, 3))
    made = figures(poses(truth, guess), replicates=20)["pose"]

    def pyr(angles: np.ndarray) -> np.ndarray:
        yaw, pitch, roll = -angles.T
        turned = Rotation.from_euler("zyx", np.stack((roll, yaw, pitch), 1), degrees=True)
        return turned.as_euler("xyz", degrees=True)

    pitch, yaw, roll = np.abs(pyr(guess) - pyr(truth)).mean(0)
    other = made["order_xyz"]["all"]
    assert [other[name]["value"] for name in ("yaw", "pitch", "roll")] == pytest.approx([yaw, pitch, roll])
    assert other["mae"]["value"] == pytest.approx((yaw + pitch + roll) / 3)
    assert abs(other["mae"]["value"] - made["all"]["mae"]["value"]) > 0.05


def test_a_half_turn_counts_as_180_and_a_full_one_as_0() -> None:
    made = figures(poses(np.array([[90.0, 0, 0], [170, 0, 0]]), np.array([[-90.0, 0, 0], [-190, 0, 0]])))
    assert made["pose"]["all"]["yaw"]["value"] == pytest.approx(90)  # mean of 180 and 0


def test_affect_figures_are_written_out() -> None:
    rng = np.random.default_rng(4)
    t = rng.uniform(-1, 1, 300)
    g = 0.5 * t + rng.normal(0, 0.2, 300)
    made = figures(pa.table({"valence": t, "valence_hat": g}))
    covariance = np.cov(t, g, bias=True)
    ccc = 2 * covariance[0, 1] / (covariance[0, 0] + covariance[1, 1] + (t.mean() - g.mean()) ** 2)
    assert made["valence"]["ccc"]["value"] == pytest.approx(ccc)
    assert made["valence"]["rmse"]["value"] == pytest.approx(sk.root_mean_squared_error(t, g))
    assert made["valence"]["sagr"]["value"] == pytest.approx(np.mean(np.sign(t) == np.sign(g)))
    assert made["valence"]["ccc"]["low"] < ccc < made["valence"]["ccc"]["high"]
    assert made["arousal"]["value"] is None


def test_affect_that_never_varies_has_no_concordance() -> None:
    made = figures(pa.table({"valence": [0.3] * 5, "valence_hat": [0.3] * 5}))["valence"]
    assert made["ccc"] == {"value": None, "n": 5, "reason": "nothing varies"}
    assert made["rmse"]["value"] == 0


degenerate = st.fixed_dictionaries(
    {},
    optional={
        "emotion": st.sampled_from([[None] * 3, [2, 2, 2], [None, 7, None]]),
        "emotion_p": st.sampled_from([[None] * 3, [[0.125] * 8] * 3, [None, [1.0, *[0.0] * 7], None]]),
        "direction": st.sampled_from([[None] * 3, [4, 4, 4], [0, None, 1]]),
        "direction_p": st.sampled_from([[[0.2] * 5] * 3, [[float("nan")] * 5] * 3]),
        "yaw": st.sampled_from([[None] * 3, [0.0, 0.0, 0.0], [float("nan"), 170.0, None]]),
        "pitch": st.just([0.0, 1.0, 2.0]),
        "roll": st.just([0.0, 1.0, 2.0]),
        "yaw_hat": st.sampled_from([[0.0, 1.0, 2.0], [float("inf"), None, 3.0]]),
        "pitch_hat": st.just([0.0, 1.0, 2.0]),
        "roll_hat": st.just([0.0, 1.0, 2.0]),
        "valence": st.sampled_from([[0.0, 0.0, 0.0], [None, 1.0, None]]),
        "valence_hat": st.sampled_from([[0.0, 0.0, 0.0], [0.1, None, 1.0]]),
        "group_age": st.sampled_from([["old", None, HOSTILE], [None] * 3]),
        "subject": st.sampled_from([["a", "a", "a"], ["a", "b", None]]),
    },
)
TYPES = {"emotion": pa.int8(), "direction": pa.int8(), "group_age": pa.string(), "subject": pa.string()}
TYPES |= {"emotion_p": pa.list_(pa.float32()), "direction_p": pa.list_(pa.float32())}


@given(degenerate)
def test_whatever_is_missing_gives_json_without_nan_and_reasons(columns: dict[str, list]) -> None:
    arrays = {name: pa.array(values, TYPES.get(name, pa.float64())) for name, values in columns.items()}
    made = figures(pa.table(arrays | {"key": ["a", "b", "c"]}), replicates=10)
    json.dumps(made, allow_nan=False)

    def check(part: object) -> None:
        if isinstance(part, dict):
            if "value" in part and part["value"] is None:
                assert part["reason"]
            if part.get("value") is not None:
                assert part["n"] > 0
            for inner in part.values():
                check(inner)
        elif isinstance(part, list):
            for inner in part:
                check(inner)

    check(made)
    text = to_markdown(made)
    assert "nan" not in text.lower().replace("pan", "")
    assert all(line.count("|") > 1 for line in text.splitlines() if line.startswith("|"))


def test_cells_count_every_labelled_sample_and_name_the_empty_ones() -> None:
    table = predictions(400)
    made = figures(table, replicates=20)["cells"]
    truth, direction = table["emotion"].to_numpy(), table["direction"].to_numpy()
    right = np.array(table["emotion_p"].to_pylist()).argmax(1) == truth
    for d, row in enumerate(made["accuracy"]):
        for e, cell in enumerate(row):
            inside = (direction == d) & (truth == e)
            assert made["count"][d][e] == inside.sum()
            assert made["correct"][d][e] == (inside & right).sum()
            assert cell["n"] == inside.sum()
            if not inside.any():
                assert cell["reason"] == "empty cell"


def test_results_that_lack_a_metric_keep_their_table_with_a_dash() -> None:
    whole = figures(predictions(60), replicates=5)["emotion"]
    full = [(name, text(one)) for name, text, one in of_classifier(whole)]
    for name in ("weighted_f1", "top_2", "calibration", "chance"):
        older = {key: value for key, value in whole.items() if key != name}
        rows = [(name, text(one)) for name, text, one in of_classifier(older)]
        assert [row for row, _ in rows] == [row for row, _ in full]
        assert sorted(value for row, value in rows if (row, value) not in full) == ["–"]


def test_groups_are_the_figures_of_their_own_rows() -> None:
    table = predictions(500)
    whole = figures(table, replicates=20)
    adults = [age == "adult" for age in table["group_age"].to_pylist()]
    alone = figures(table.filter(pa.array(adults)), replicates=20)
    group = whole["by"]["group_age"]["adult"]
    assert group["rows"] == sum(adults)
    assert group["emotion"]["accuracy"] == alone["emotion"]["accuracy"]
    assert group["emotion"]["macro_f1"] == alone["emotion"]["macro_f1"]
    assert group["pose"]["geodesic"] == alone["pose"]["all"]["geodesic"]
    assert sum(one["rows"] for one in whole["by"]["yaw"].values()) == 500


def test_many_groups_are_gathered_into_one_that_says_so() -> None:
    table = chosen([1] * 100, [1] * 100).append_column("group_id", pa.array([str(i) for i in range(100)]))
    groups = figures(table, replicates=5)["by"]["group_id"]
    assert len(groups) == 41
    assert groups["(60 others)"]["rows"] == 60


def test_same_table_and_seed_give_the_same_figures() -> None:
    table = predictions(300)
    assert figures(table, replicates=50) == figures(table, replicates=50)
    other = figures(table, replicates=50, seed=1)["emotion"]["macro_f1"]
    assert other["low"] != figures(table, replicates=50)["emotion"]["macro_f1"]["low"]


def test_bootstrap_of_a_mean_has_the_textbook_error() -> None:
    values = np.random.default_rng(5).normal(3, 2, 400)
    sums = resampled_sums(values[:, None], 4000, 0)[:, 0] / 400
    assert sums.std() == pytest.approx(values.std() / 20, rel=0.05)
    assert sums.mean() == pytest.approx(values.mean(), abs=0.02)


def test_bags_of_many_samples_keep_the_width_of_the_interval() -> None:
    values = np.random.default_rng(6).exponential(1, 50_000)
    statistics = np.stack((values, np.ones(50_000)), 1)
    drawn = Resampling(np.arange(50_000), False).sums(statistics)
    assert drawn is not None
    means = drawn[:, 0] / drawn[:, 1]
    assert means.std() == pytest.approx(values.std() / 50_000**0.5, rel=0.1)


def test_pictures_of_one_subject_widen_the_interval() -> None:
    """Ten equal pictures of each person are worth one picture of each person."""
    rng = np.random.default_rng(7)
    people = rng.integers(8, size=(60, 2))
    truth, choice = people.repeat(10, axis=0).T
    choice = np.where(rng.random(60).repeat(10) < 0.5, truth, choice)
    table = chosen(truth.tolist(), choice.tolist())
    alone = figures(table)["emotion"]["accuracy"]
    subjects = pa.array([f"p{i}" for i in np.arange(60).repeat(10)])
    made = figures(table.append_column("subject", subjects))
    assert made["interval"]["unit"] == "subject"
    assert made["interval"]["units"] == 60
    width = made["emotion"]["accuracy"]["high"] - made["emotion"]["accuracy"]["low"]
    assert width / (alone["high"] - alone["low"]) == pytest.approx(10**0.5, rel=0.25)


@pytest.mark.parametrize("people", [1, 2, 5])
def test_so_few_people_that_none_could_contradict_give_no_interval_but_the_reason(people: int) -> None:
    """A sign test of five people of one mind gives p = 0.06: nothing may be claimed at 95 %."""
    assert stats.binomtest(5, 5).pvalue > 0.05 > stats.binomtest(6, 6).pvalue
    truth = [1, 2, 3, 4] * people
    table = chosen(truth, [1, 2, 3, 5] * people)
    made = figures(table.append_column("subject", pa.array([f"p{i // 4}" for i in range(len(truth))])))
    for one in (
        made["emotion"]["accuracy"],
        made["emotion"]["macro_f1"],
        made["emotion"]["per_class"]["sad"]["recall"],
    ):
        assert one["low"] is None
        assert "fewer than 6" in one["interval_reason"]
    assert "too few" in to_markdown(made)


def test_none_right_of_few_is_no_certainty() -> None:
    """Draws of twelve mistakes are twelve mistakes; Wilson's interval of 0 of 12 reaches to 24 %."""
    made = figures(chosen([1] * 12 + [2] * 20, [2] * 12 + [2] * 20))["emotion"]["per_class"]
    expected = stats.binomtest(0, 12).proportion_ci(method="wilson")
    assert made["happy"]["recall"]["high"] == pytest.approx(expected.high)
    assert made["happy"]["f1"]["value"] == 0
    assert made["happy"]["f1"]["low"] is None
    assert made["happy"]["f1"]["interval_reason"] == "the same in every draw"
    people = pa.array([f"p{i % 8}" for i in range(32)])
    made = figures(chosen([1] * 32, [2] * 32).append_column("subject", people))["emotion"]
    assert made["accuracy"]["value"] == 0
    assert made["accuracy"]["low"] is None


def test_interval_of_calibration_error_holds_its_value() -> None:
    made = figures(predictions(800))["emotion"]["calibration"]["ece"]
    assert made["low"] <= made["value"] <= made["high"]


def test_bias_corrected_interval_of_an_unbiased_figure_is_the_percentile_one() -> None:
    drawn = np.random.default_rng(8).normal(0, 1, 20_001)
    made = figure(float(np.median(drawn)), 5, drawn, reason="")
    low, high = np.quantile(drawn, (0.025, 0.975))
    assert (made["low"], made["high"]) == pytest.approx((low, high), abs=0.02)


def test_wilson_interval_solves_its_own_equation() -> None:
    """The ends are the shares p with (k/n − p)² = z² p (1 − p) / n."""
    k, n = np.array([0.0, 3, 15, 30]), np.full(4, 30.0)
    for end in wilson_interval(k, n):
        inner = (end > 1e-9) & (end < 1 - 1e-9)
        left, right = (k / n - end) ** 2, 1.959963985**2 * end * (1 - end) / n
        assert left[inner] == pytest.approx(right[inner])
    assert wilson_interval(k, n)[0][0] == 0
    assert wilson_interval(k, n)[1][3] == 1


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"emotion": pa.array([9], pa.int8())}, "column emotion, row 0: 9 found"),
        ({"emotion": ["happy"]}, "string found"),
        ({"emotion_p": pa.array([[0.5, 0.5]])}, "2 numbers found; expected 8"),
        ({"emotion_p": [3.0]}, "expected lists of 8"),
        ({"yaw": ["x"], "pitch": ["x"], "roll": ["x"]}, "expected numbers"),
        ({"key": pa.array([], pa.string())}, "no rows"),
    ],
)
def test_impossible_columns_are_refused_with_place_and_expectation(columns: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        figures(pa.table(columns))


def test_the_headline_has_the_majority_of_votes_and_one_pose_error_of_the_same_faces() -> None:
    right = [1, 1, 2, 2]
    p = np.eye(8)[[1, 1, 2, 3]].tolist()
    columns = {"emotion": right, "emotion_p": p, "group_votes": ["majority", "majority", "tied", "majority"]}
    columns |= {name: [10.0, 20.0, 30.0, 40.0] for name in ("yaw", "pitch", "roll")}
    columns |= {f"{name}_hat": [11.0, 21.0, 31.0, 41.0] for name in ("yaw", "pitch", "roll")}
    shown = {name: (value, n) for name, value, n in headline(figures(pa.table(columns), replicates=20))}
    majority = shown["Emotion accuracy, faces with a majority of votes"]
    assert (majority[0][:4], majority[1]) == ("66.7", 3)
    assert list(shown).index("Emotion accuracy, faces with a majority of votes") == 1
    assert "Pose MAE" in shown
    assert "Pose MAE, ±99° only" not in shown
    columns["yaw"] = [10.0, 20.0, 30.0, 140.0]
    assert "Pose MAE, ±99° only" in dict.fromkeys(n for n, *_ in headline(figures(pa.table(columns), replicates=20)))
