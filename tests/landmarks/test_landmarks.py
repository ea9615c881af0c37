"""Face points: alignment, features, regressors and the comparison on faces whose angles are known."""

import fcntl
import json
import math
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import scipy.io
import skops.io
import torch
from scipy.spatial.transform import Rotation
from sklearn.multioutput import MultiOutputRegressor
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVR
from threadpoolctl import threadpool_limits

from hpe.core import geometry
from hpe.core.errors import UserError
from hpe.landmarks.align import angles_of, fitted_rotations, heads_of, lifted, rotations_of
from hpe.landmarks.compare import CompareOptions, _people, _split, compare
from hpe.landmarks.features import AlignedFeatures, SeedFeatures
from hpe.landmarks.model import MODEL, LandmarkModel
from hpe.landmarks.pnp import GENERIC_SIX, solve_pnp
from hpe.landmarks.regress import FEATURES, MODELS, KernelSvr, SoftScaler, StackedRegressor, regressor, split, tuned
from hpe.landmarks.report import markdown, plot_comparison
from hpe.landmarks.scores import scores
from hpe.landmarks.seed import seed_row
from hpe.landmarks.table import Faces, read_faces, read_mat_faces, usable
from hpe.landmarks.topology import MESH468, POINTS68, topology_of

RNG = np.random.default_rng(7)


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


def _shape() -> np.ndarray:
    """A symmetric head of 68 points."""
    shape = RNG.normal(size=(68, 3)) * (60, 80, 40)
    for one, other in POINTS68.pairs:
        shape[other] = shape[one] * (-1, 1, 1)
    middle = [k for k in range(68) if POINTS68.mirror[k] == k]
    shape[middle, 0] = 0
    return shape


SHAPE = _shape()
DEFORMS = RNG.normal(size=(3, 68, 3)) * 4


def _faces(count: int, seed: int = 0, noise: float = 0.3) -> Faces:
    """Heads that differ in three ways, seen from everywhere in front, by geometry's own projection."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform((-70, -35, -40), (70, 35, 40), (count, 3))
    heads = SHAPE + np.einsum("nk,kpd->npd", rng.normal(size=(count, 3)), DEFORMS)
    seen = geometry.project(torch.from_numpy(heads), geometry.rotation_from_euler(torch.from_numpy(angles))).numpy()
    seen = seen * rng.uniform(0.5, 2, (count, 1, 1)) + rng.uniform(100, 300, (count, 1, 3))
    return Faces(tuple(map(str, range(count))), seen + rng.normal(size=seen.shape) * noise, angles)


def test_rotations_are_those_of_geometry():
    angles = RNG.uniform((-89, -80, -170), (89, 80, 170), (50, 3))
    np.testing.assert_allclose(
        rotations_of(angles), geometry.rotation_from_euler(torch.from_numpy(angles)).numpy(), atol=1e-12
    )


@pytest.mark.parametrize("angles", [(95.0, 10.0, -5.0), (-98.5, -3.0, 20.0), (40.0, 70.0, 60.0), (0.0, 0.0, 0.0)])
def test_angles_of_labels_beyond_90_degrees_come_back(angles):
    np.testing.assert_allclose(angles_of(rotations_of(np.array([angles])))[0], angles, atol=1e-9)


def test_angles_name_the_same_rotation_whatever_the_branch():
    turns = Rotation.random(200, np.random.default_rng(1)).as_matrix()
    np.testing.assert_allclose(rotations_of(angles_of(turns)), turns, atol=1e-9)


def test_a_rigid_head_is_aligned_exactly_wherever_it_is_and_however_large():
    angles = RNG.uniform(-60, 60, (20, 3))
    seen = geometry.project(torch.from_numpy(SHAPE), geometry.rotation_from_euler(torch.from_numpy(angles))).numpy()
    shape = heads_of(SHAPE[None] * (1.0, -1.0, 1.0))[0]
    fitted = fitted_rotations(shape, heads_of(seen * 3.7 + (50.0, -20.0, 9.0)))
    np.testing.assert_allclose(angles_of(fitted), angles, atol=1e-8)


def test_depth_is_lifted_from_x_and_y_of_a_rigid_head():
    angles = RNG.uniform(-60, 60, (20, 3))
    seen = geometry.project(torch.from_numpy(SHAPE), geometry.rotation_from_euler(torch.from_numpy(angles))).numpy()
    shape = heads_of(SHAPE[None] * (1.0, -1.0, 1.0))[0]
    flat = heads_of(seen * (1.0, 1.0, 0.0))
    np.testing.assert_allclose(angles_of(fitted_rotations(shape, lifted(shape, flat))), angles, atol=1e-8)


@pytest.mark.parametrize("topology", [MESH468, POINTS68], ids=lambda topology: topology.name)
def test_mirroring_twice_changes_nothing(topology):
    assert (topology.mirror[topology.mirror] == np.arange(topology.count)).all()
    left_eye, right_eye, left_mouth, right_mouth = topology.six[2:]
    assert topology.mirror[left_eye] == right_eye
    assert topology.mirror[left_mouth] == right_mouth
    assert [topology.mirror[k] for k in topology.six[:2]] == list(topology.six[:2])


def test_points_of_an_unknown_topology_are_refused():
    with pytest.raises(UserError, match="5 points"):
        topology_of(5)


def test_seed_features_do_not_change_with_place_and_size():
    faces = _faces(5)
    for which, columns in (("six", 12), ("all", 136)):
        features = SeedFeatures(which)
        once = features.columns(faces.points)
        assert once.shape == (5, columns)
        np.testing.assert_allclose(features.columns(faces.points * 2.5 + 40), once, atol=1e-9)
    assert np.isfinite(SeedFeatures("all").columns(np.zeros((1, 68, 3)))).all()


def test_aligned_features_do_not_change_with_place_and_size_and_turn_with_the_mirror():
    faces = _faces(120)
    features = AlignedFeatures(10).fit(faces.points, faces.angles)
    np.testing.assert_allclose(features.columns(faces.points * 1.7 - 30), features.columns(faces.points), atol=1e-8)
    mirrored = features.fitted(POINTS68.mirrored(faces.points))
    flip = np.diag((-1.0, 1.0, 1.0))
    np.testing.assert_allclose(mirrored, flip @ features.fitted(faces.points) @ flip, atol=1e-6)


def test_the_true_missing_rotation_gives_the_true_angles():
    faces = _faces(60)
    features = AlignedFeatures(5).fit(faces.points, faces.angles)
    _, targets = features.training(faces.points, faces.angles)
    np.testing.assert_allclose(features.angles(faces.points, targets[:60]), faces.angles, atol=1e-7)


def test_features_learn_from_the_given_faces_only():
    faces = _faces(100)
    other = Faces(faces.keys, faces.points.copy(), faces.angles)
    other.points[60:] += RNG.normal(size=(40, 68, 3)) * 50
    rows = [AlignedFeatures(8).fit(f.points[:60], f.angles[:60]).columns(faces.points) for f in (faces, other)]
    np.testing.assert_array_equal(rows[0], rows[1])


def test_scaler_of_power_1_is_scikit_learns():
    columns = RNG.normal(size=(50, 4)) * (1, 10, 0.1, 0) + 3
    np.testing.assert_allclose(SoftScaler().fit(columns).transform(columns), StandardScaler().fit_transform(columns))


@pytest.mark.parametrize("gamma", ["scale", 0.05])
def test_kernel_svr_is_scikit_learns_svr(gamma):
    columns, asked = RNG.normal(size=(80, 6)), RNG.normal(size=(20, 6))
    targets = np.stack((np.sin(columns[:, 0]) * 9, columns[:, 1] * 3 + 2), 1)
    settings = {"C": 5.0, "gamma": gamma, "epsilon": 0.3}
    reference = MultiOutputRegressor(SVR(**settings)).fit(columns, targets).predict(asked)
    np.testing.assert_allclose(KernelSvr(**settings).fit(columns, targets).predict(asked), reference, atol=1e-6)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("model", list(MODELS))
def test_every_regressor_uses_its_scaler_and_comes_back_from_disk(model, tmp_path):
    faces = _faces(90)
    fitted = regressor("all", model, MODELS[model].settings("all")[0]).fit(faces.points, faces.angles)
    scaler = fitted.pipeline_.named_steps["scaler"]
    np.testing.assert_allclose(scaler.mean_, SeedFeatures("all").columns(faces.points).mean(0))
    seen = fitted.predict(faces.points[:9])
    assert seen.shape == (9, 3)
    LandmarkModel(fitted, "points68", "all", model, None, 1.0).save(tmp_path)
    np.testing.assert_allclose(LandmarkModel.load(tmp_path).angles(faces.points[:9]), seen, atol=1e-5)


def test_aligned_svr_beats_the_best_rotation_and_the_seeds_features():
    train, test = _faces(300, seed=1), _faces(100, seed=2)
    errors = {}
    for features, settings in (("aligned", MODELS["svr"].aligned_grid[1]), ("all", MODELS["svr"].grid[0])):
        fitted = regressor(features, "svr", settings).fit(train.points, train.angles)
        errors[features] = np.abs(fitted.predict(test.points) - test.angles).mean()
    rigid = AlignedFeatures(1).fit(train.points, train.angles).fitted(test.points)
    errors["rigid"] = np.abs(angles_of(rigid) - test.angles).mean()
    assert errors["aligned"] < 0.5 * min(errors["all"], errors["rigid"])


def test_tuning_takes_the_setting_that_is_best_on_inner_folds():
    faces = _faces(150)
    settings, errors = tuned(faces.points, faces.angles, "all", "ridge")
    assert len(errors) == len(MODELS["ridge"].grid)
    assert settings == MODELS["ridge"].grid[int(errors.argmin())]
    assert errors.max() > errors.min()


def test_a_stack_weights_the_better_member_more():
    faces = _faces(200)
    good = MODELS["ridge"].pipeline({"alpha": 1.0})
    bad = MODELS["lasso"].pipeline({"alpha": 1e3})
    stack = StackedRegressor(FEATURES["aligned"](), [good, bad]).fit(faces.points, faces.angles)
    assert (stack.weights_ >= 0).all()
    assert (stack.weights_[:, 0] > 0.8).all()


def test_solve_pnp_finds_the_pose_of_its_own_face():
    angles = np.array([(0.0, 0.0, 0.0), (40.0, 0.0, 0.0), (0.0, 25.0, 0.0), (0.0, 0.0, 30.0), (-35.0, -15.0, 20.0)])
    turn = geometry.rotation_from_euler(torch.from_numpy(angles))
    seen = geometry.project(torch.from_numpy(GENERIC_SIX), turn).numpy()
    points = np.zeros((5, 68, 3))
    points[:, list(POINTS68.six), :2] = 225 + seen[..., :2] * 450 / (2000 - seen[..., 2:])
    np.testing.assert_allclose(solve_pnp(points, 450.0), angles, atol=0.1)


def test_faces_that_cannot_be_used_are_dropped_and_counted():
    faces = _faces(6)
    faces.points[0, 3, 1] = np.nan
    faces.points[1] = 5.0
    faces.angles[2, 1] = np.nan
    faces.angles[3, 2] = -972.0
    kept, dropped = usable(faces)
    assert kept.keys == ("4", "5")
    assert dropped == {
        "points that are not finite": 1, "all points in one place": 1, "no angles": 1, "an angle beyond ±99°": 1,
    }  # fmt: skip
    assert len(usable(faces, limit_degrees=math.inf)[0]) == 3


def test_scores_are_those_of_numpy_and_scikit_learn():
    from sklearn.metrics import mean_absolute_error, r2_score

    truth = RNG.uniform(-60, 60, (200, 3))
    predicted = truth + RNG.normal(size=(200, 3)) * (1, 2, 3)
    found = scores(predicted, truth)
    np.testing.assert_allclose(found.mae, mean_absolute_error(truth, predicted, multioutput="raw_values"))
    np.testing.assert_allclose(found.r2, r2_score(truth, predicted, multioutput="raw_values"))
    np.testing.assert_allclose(found.mse_radians2, np.square(np.deg2rad(predicted - truth)).mean())
    turn = [Rotation.from_euler("ZYX", a[:, [2, 0, 1]], degrees=True) for a in (predicted, truth)]
    np.testing.assert_allclose(found.geodesic, np.rad2deg((turn[0].inv() * turn[1]).magnitude()).mean())
    low, high = found.mean_mae_interval
    assert low < found.mean_mae < high < low + 0.5


@pytest.fixture
def small_seed(monkeypatch):
    monkeypatch.setattr("hpe.landmarks.compare.PUBLISHED_MSE_RADIANS2", {"SVR": 0.0178})


def test_a_comparison_is_resumed_scored_and_saved(tmp_path, small_seed):
    faces = _faces(120)
    options = CompareOptions(models=["ridge", "knn"], features=["six", "aligned"])
    first = compare(faces, tmp_path, options, workers=1)
    folds = {path: path.stat().st_mtime_ns for path in (tmp_path / "folds").glob("*-*.json")}
    assert len(folds) == 2 * 2 * 5 + 1
    (tmp_path / "folds" / "aligned-ridge-2.json").unlink()
    second = compare(faces, tmp_path, options, workers=1)
    changed = [path.name for path, when in folds.items() if path.stat().st_mtime_ns != when]
    assert changed == ["aligned-ridge-2.json"]
    assert [row["scores"] for row in second["rows"]] == [row["scores"] for row in first["rows"]]
    assert (second["chosen"]["features"], second["chosen"]["model"]) == ("aligned", "ridge")
    text = markdown(json.loads((tmp_path / "compare.json").read_text()))
    assert text.count("| ridge |") == 2
    assert "solve-pnp" in text
    plot_comparison(second, tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000
    model = LandmarkModel.load(tmp_path / "model")
    assert np.abs(model.angles(faces.points) - faces.angles).mean() < 3
    broken = faces.points[:2].copy()
    broken[1, 0] = np.nan
    assert np.isnan(model.angles(broken)).all(1).tolist() == [False, True]
    with pytest.raises(UserError, match="other faces"):
        compare(_faces(121), tmp_path, options, workers=1)


def test_two_comparisons_do_not_write_to_one_folder(tmp_path):
    (tmp_path / "folds").mkdir()
    with (tmp_path / "folds" / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="another comparison"):
            compare(_faces(120), tmp_path, CompareOptions(models=["ridge"], features=["six"]), workers=1)
    done = compare(
        _faces(120), tmp_path, CompareOptions(models=["ridge"], features=["six"], seed_rows=False), workers=1
    )
    assert done["seed"] == []
    assert "seed" not in markdown(done)
    assert not list((tmp_path / "folds").glob("seed-*"))


def test_outer_predictions_do_not_see_their_own_labels(tmp_path, small_seed):
    faces = _faces(120)
    noise = Faces(faces.keys, faces.points, np.random.default_rng(3).permutation(faces.angles))
    done = compare(noise, tmp_path, CompareOptions(models=["knn"], features=["all"]), workers=1)
    assert max(next(row for row in done["rows"] if row["model"] == "knn")["scores"]["r2"]) < 0.15


def test_too_few_faces_and_unknown_names_are_refused(tmp_path):
    for folds in (5, 2):
        with pytest.raises(UserError, match=r"50 usable faces .*: expected 100 or more, with any .* more pictures"):
            compare(_faces(50), tmp_path, CompareOptions(folds=folds))
    unlabelled = Faces(_faces(120).keys, _faces(120).points, np.full((120, 3), np.nan))
    with pytest.raises(UserError, match=r"0 usable faces \(120 dropped: no angles\): .*\(--labels\)"):
        compare(unlabelled, tmp_path)
    with pytest.raises(UserError, match="'svm'"):
        compare(_faces(120), tmp_path, CompareOptions(models=["svm"]))


def test_advice_on_folds_can_be_followed(tmp_path):
    with pytest.raises(UserError, match=r"7 outer folds need 140; use --folds 6"):
        compare(_faces(120), tmp_path, CompareOptions(folds=7))
    fitted = compare(
        _faces(120), tmp_path, CompareOptions(folds=6, models=["ridge"], features=["six"], seed_rows=False), workers=1
    )
    assert fitted["folds"] == 6


def test_the_least_number_of_faces_is_enough_for_the_hungriest_regressor(tmp_path):
    done = compare(_faces(100), tmp_path, CompareOptions(folds=2, models=["knn"], seed_rows=False), workers=1)
    assert done["faces"] == 100


def test_the_seeds_way_reports_radians_squared():
    row = seed_row("SVR", *(lambda faces: (faces.points, faces.angles))(_faces(150)))
    assert row["test_faces"] == 30
    assert 0 < row["mse_radians2"] < 0.2


def test_a_model_file_of_foreign_types_is_refused(tmp_path):
    faces = _faces(60)
    fitted = regressor("all", "ridge", {"alpha": 1.0}).fit(faces.points, faces.angles)
    LandmarkModel(fitted, "points68", "all", "ridge", None, None).save(tmp_path)
    with zipfile.ZipFile(tmp_path / MODEL) as archive:
        assert not any(name.endswith((".pkl", ".pickle")) for name in archive.namelist())
    skops.io.dump(Path("/etc"), tmp_path / MODEL)
    with pytest.raises(UserError, match=r"[Pp]ath"):
        LandmarkModel.load(tmp_path)
    (tmp_path / MODEL).write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(UserError, match="not a model"):
        LandmarkModel.load(tmp_path)
    with pytest.raises(UserError, match=r"model\.skops"):
        LandmarkModel.load(tmp_path / "nowhere")


def test_a_tree_that_leads_nowhere_is_refused(tmp_path):
    faces = _faces(60)
    settings = MODELS["forest"].settings("all")[0]
    fitted = regressor("all", "forest", settings).fit(faces.points, faces.angles)
    tree = fitted.pipeline_.named_steps["regressor"].estimators_[0].tree_
    state = tree.__getstate__()
    state["nodes"]["left_child"][0] = 10**6
    tree.__setstate__(state)
    LandmarkModel(fitted, "points68", "all", "forest", None, None).save(tmp_path)
    with pytest.raises(UserError, match="lead down"):
        LandmarkModel.load(tmp_path)


def test_tables_that_are_none_are_refused(tmp_path):
    (tmp_path / "x.npz").write_bytes(b"no archive")
    np.savez(tmp_path / "y.npz", stems=np.array(["a"]), points=np.zeros((1, 68, 2)))
    np.savez(tmp_path / "z.npz", stems=np.array([{"a": 1}], dtype=object), points=np.zeros((1, 68, 3)))
    for path, found in (("x.npz", "not an .npz"), ("y.npz", "shape"), ("z.npz", "not an .npz"), (".", "faces-")):
        with pytest.raises(UserError, match=found):
            read_faces(tmp_path / path)
    with pytest.raises(UserError, match="pt3d_68"):
        read_mat_faces(tmp_path)


@pytest.mark.real
def test_mesh_pairs_are_the_nearest_mirrored_points_of_real_faces(shared):
    faces, dropped = usable(read_faces(shared / "data/aflw2000_mediapipe468.npz", shared / "data/aflw2000"))
    assert len(faces) == 1843
    assert dropped == {"an angle beyond ±99°": 10}
    heads, turns = heads_of(faces.points), rotations_of(faces.angles)
    mean = (heads @ turns.transpose(0, 2, 1)).mean(0)
    gaps = np.linalg.norm((mean * (-1, 1, 1))[:, None] - mean[None], axis=2)
    assert (gaps.argmin(1) == MESH468.mirror).all()


@pytest.mark.real
def test_own_68_points_of_real_faces_give_their_angles_within_one_degree(shared):
    faces, _ = usable(read_mat_faces(shared / "data/aflw2000"))
    assert len(faces) == 1969
    rows = np.random.default_rng(0).permutation(len(faces))
    train, test = rows[:700], rows[700:1200]
    fitted = regressor("aligned", "ridge", {"alpha": 1.0}).fit(faces.points[train], faces.angles[train])
    assert np.abs(fitted.predict(faces.points[test]) - faces.angles[test]).mean() < 1.0


def test_no_outer_fold_parts_a_person():
    people = np.repeat(np.arange(7), 30)
    for fold in range(5):
        train, test = _split(len(people), people, 5, fold)
        assert not set(people[train]) & set(people[test])
        assert len(train) + len(test) == len(people)
    faces = _faces(120)
    assert _people(faces) is None
    assert _people(replace(faces, subjects=tuple(map(str, range(120))))) is None
    assert _people(replace(faces, subjects=(None,) * 120)) is None
    known = replace(faces, subjects=tuple(str(row % 3) for row in range(120)))
    people = _people(known)
    assert people is not None
    assert np.unique(people).size == 3
    with pytest.raises(UserError, match="people: 3; expected one or more for each of 5 outer folds; use --folds 3"):
        compare(known, Path("/nowhere"), CompareOptions(folds=5))


def test_faces_of_unknown_people_are_split_one_by_one_and_the_others_by_person(tmp_path):
    faces = _faces(120)
    subjects = tuple(None if row < 5 else str(row % 10) for row in range(120))
    people = _people(replace(faces, subjects=subjects))
    assert people is not None
    assert np.unique(people).size == 10 + 5
    assert all(len({subjects[row] for row in np.flatnonzero(people == one)}) == 1 for one in people)
    options = CompareOptions(models=["ridge"], features=["six"], seed_rows=False)
    done = compare(replace(faces, subjects=subjects), tmp_path, options, workers=1)
    assert (done["people"], done["faces_of_unknown_people"]) == (10, 5)
    assert "by person (10; 5 faces of unknown people split at random)" in markdown(done)
    with pytest.raises(UserError, match="other faces, people or folds"):
        compare(replace(faces, subjects=(*subjects[1:], "0")), tmp_path, options, workers=1)


@pytest.mark.parametrize(("people", "folds"), [(7, 3), (2, 2)])
def test_no_inner_fold_parts_a_person(people, folds):
    numbers = np.arange(60) % people
    parts = split(60, numbers, 3, 1)
    assert len(parts) == folds
    assert not any(set(numbers[train]) & set(numbers[test]) for train, test in parts)
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in parts])), np.arange(60))


def test_tuning_and_stacking_learn_nothing_from_other_views_of_a_held_out_person():
    once = _faces(60)
    noise = np.random.default_rng(3).permutation(once.angles)  # a view helps only where its person is known
    points, angles, people = np.repeat(once.points, 4, 0), np.repeat(noise, 4, 0), np.repeat(np.arange(60), 4)
    assert tuned(points, angles, "six", "knn")[1].min() < 5
    assert tuned(points, angles, "six", "knn", people)[1].min() > 15
    members = [MODELS["knn"].pipeline({"n_neighbors": 3}), MODELS["ridge"].pipeline({"alpha": 1e6})]
    weights = [
        StackedRegressor(FEATURES["six"](), members).fit(points, angles, known).weights_ for known in (None, people)
    ]
    assert (weights[0][:, 0] > 0.9).all()
    assert (weights[1][:, 0] < 0.5).all()


def test_views_of_a_photo_of_300w_lp_have_its_name_wherever_their_points_come_from(tmp_path):
    stems = ("AFW_134212_1_0", "AFW_134212_1_1", "AFW_134212_2_0", "IBUG_Flip_image_003_1_0", "image00002")
    photos = ("AFW_134212", "AFW_134212", "AFW_134212", "IBUG_image_003_1", None)
    for stem in stems:
        scipy.io.savemat(tmp_path / f"{stem}.mat", {"Pose_Para": np.zeros((1, 7)), "pt3d_68": SHAPE.T})
    own = read_mat_faces(tmp_path)
    assert dict(zip(own.keys, own.subjects or (), strict=True)) == dict(zip(stems, photos, strict=True))
    np.savez(tmp_path / "points.npz", stems=np.array([f"AFW/{stems[0]}.jpg", *stems[1:]]), points=np.stack([SHAPE] * 5))
    assert read_faces(tmp_path / "points.npz", tmp_path).subjects == photos


def test_a_stack_is_refused_without_its_members_and_left_out_with_a_word_where_nobody_chose_it(tmp_path):
    for models, features, lacks in (
        (["stack"], ["aligned"], "svr, network, forest, knn"),
        (["svr", "stack"], ["aligned"], "network, forest, knn"),
        (["stack", "svr", "network", "forest", "knn"], ["six"], "aligned features"),
    ):
        with pytest.raises(UserError, match=f"'stack': without {lacks}; it combines svr, network, forest, knn on ali"):
            compare(_faces(120), tmp_path, CompareOptions(models=models, features=features))
    assert not list(tmp_path.iterdir())


def test_by_default_the_stack_is_compared_where_its_features_are(tmp_path, monkeypatch):
    monkeypatch.setattr("hpe.landmarks.compare.MODELS", {"ridge": MODELS["ridge"]})
    monkeypatch.setattr("hpe.landmarks.compare.STACKED", ("ridge",))
    monkeypatch.setattr("hpe.landmarks.regress.STACKED", ("ridge",))
    told = {}
    for features in ("six", "aligned"):
        options = CompareOptions(features=[features], folds=2, seed_rows=False)
        told[features] = markdown(compare(_faces(120), tmp_path / features, options, workers=1))
    assert "Not compared: stack, because it needs aligned features." in told["six"]
    assert "Not compared" not in told["aligned"]
    assert "| stack |" in told["aligned"]


def test_faces_beside_the_labelled_one_are_dropped_and_counted():
    faces = replace(_faces(4), labelled=np.array((True, False, True, True)))
    faces.angles[1:3] = np.nan
    kept, dropped = usable(faces)
    assert kept.keys == ("0", "3")
    assert dropped == {"not the labelled face of its picture": 1, "no angles": 1}
