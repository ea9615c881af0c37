"""Readers of head-pose datasets: signs, photos and people, and the counts of the real sets."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from scipy.spatial.transform import Rotation

from hpe.core.errors import UserError
from hpe.data.crops import box_around
from hpe.sources import Raw, Reject, Source, open_source, recognise
from hpe.sources.biwi import angles_of
from hpe.sources.faces3d import photo_of
from hpe.sources.mat import mat_arrays


def picture(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 30), (90, 20, 30)).save(path)
    return path


def samples(source: Source) -> dict[str, Raw]:
    return {raw.record.source or "": raw for raw in source.read() if isinstance(raw, Raw)}


def rejects(source: Source) -> dict[str, str]:
    return {row.source: row.reason for row in source.read() if isinstance(row, Reject)}


# 300W-LP and AFLW2000-3D


def mat(path: Path, degrees: tuple[float, float, float], **arrays: np.ndarray) -> None:
    """A picture's ``.mat``: pitch, yaw, roll, in radians, then translation and scale."""
    pose = np.concatenate((np.deg2rad(degrees), [10, 20, 0, 1e-3]))[None]
    scipy.io.savemat(picture(path).with_suffix(".mat"), {"Pose_Para": pose, **arrays})


def test_pose_para_is_pitch_yaw_roll_in_radians(tmp_path: Path) -> None:
    mat(tmp_path / "image00002.jpg", (-20, 35, 5), pt3d_68=np.arange(204.0).reshape(3, 68))
    mat(tmp_path / "image00004.jpg", (0, 120, 0), pt2d=np.array([[-1, 10, 30.0], [-1, 20, 40.0]]))
    assert recognise(tmp_path).name == "aflw2000"
    source = open_source("auto", tmp_path)
    first, second = (raw.record for raw in samples(source).values())
    assert (first.pitch, first.yaw, first.roll) == pytest.approx((-20, 35, 5), abs=1e-3)
    assert first.landmarks is not None
    assert first.landmarks[3] == (3, 71)
    assert first.groups == {}
    assert second.groups == {"range": "beyond99"}
    assert second.landmarks == ((10, 20), (30, 40))  # -1 is "not visible"
    assert box_around(np.array(second.landmarks)) == (10, 20, 30, 40)
    assert source.splits == ("test",)


def test_the_lists_of_aflw2000_give_the_splits(tmp_path: Path) -> None:
    for n, name in enumerate(("train", "val", "test")):
        mat(tmp_path / f"image0000{n}.jpg", (0, 0, 0))
        (tmp_path / "splits").mkdir(exist_ok=True)
        (tmp_path / "splits" / f"{name}.txt").write_text(f"image0000{n}\n")
    mat(tmp_path / "image00009.jpg", (0, 0, 0))
    source = open_source("aflw2000", tmp_path, splits="lists")
    assert [raw.record.split for raw in samples(source).values()] == ["train", "val", "test"]
    assert rejects(source) == {"image00009.jpg": "in none of the lists in splits/"}
    (tmp_path / "splits" / "val.txt").write_text("image00001\nimage00000\n")
    with pytest.raises(UserError, match=r"image00000 appears in train\.txt, too"):
        open_source("aflw2000", tmp_path, splits="lists")
    (tmp_path / "splits" / "val.txt").unlink()
    with pytest.raises(UserError, match=r"val\.txt: not found"):
        open_source("aflw2000", tmp_path, splits="lists")
    with pytest.raises(UserError, match="splits is 'some'; expected one of test, lists"):
        open_source("aflw2000", tmp_path, splits="some")


def test_a_bad_mat_is_rejected_with_its_reason(tmp_path: Path) -> None:
    names = ("ok", "missing", "garbage", "zero", "object", "short", "nan", "huge")
    files = {name: tmp_path / f"image0000{n}.jpg" for n, name in enumerate(names)}
    for path in files.values():
        mat(path, (1, 2, 3))
    of = {name: path.with_suffix(".mat") for name, path in files.items()}
    of["missing"].unlink()
    of["garbage"].write_bytes(b"MATLAB 5.0 MAT-file" + bytes(range(256)) * 3)
    of["zero"].write_bytes(b"")
    scipy.io.savemat(of["object"], {"Pose_Para": np.array([[{"a": 1}, "x"]], object)})
    scipy.io.savemat(of["short"], {"Pose_Para": np.zeros((1, 2))})
    scipy.io.savemat(of["nan"], {"Pose_Para": np.full((1, 7), np.nan)})
    scipy.io.savemat(of["huge"], {"Pose_Para": np.zeros((300, 600))})
    source = open_source("aflw2000", tmp_path)
    assert [*samples(source)] == ["image00000.jpg"]
    said = {names[int(name[9])]: reason for name, reason in rejects(source).items()}
    assert said.keys() == set(names) - {"ok"}
    assert said["missing"] == "missing image00001.mat"
    assert "Pose_Para is not an array of real numbers" in said["object"]
    assert "no three angles" in said["short"]
    assert "no three angles" in said["nan"]
    assert "more than the" in said["huge"]


@pytest.mark.parametrize("compressed", [True, False])
def test_mat_files_are_read_as_scipy_reads_them(tmp_path: Path, compressed: bool) -> None:
    random = np.random.default_rng(0)
    arrays = {f"a{n}": (random.normal(size=(3, n + 1)) * 100).astype(kind) for n, kind in enumerate("dfbBhHiIqQ")}
    arrays |= {"text": np.array("words"), "s": np.array([[1.0]]), "empty": np.zeros((0, 0))}
    path = tmp_path / "a.mat"
    scipy.io.savemat(path, arrays, do_compression=compressed)
    expected = {name: value for name, value in scipy.io.loadmat(path).items() if name in arrays and name != "text"}
    got = mat_arrays(path, tuple(expected))
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert np.array_equal(got[name], value.astype(float))


@pytest.mark.real
def test_real_mat_files_are_read_as_scipy_reads_them(shared: Path) -> None:
    names = ("Pose_Para", "pt2d", "pt3d_68", "roi", "Shape_Para")
    paths = [*sorted((shared / "data" / "aflw2000").glob("*.mat"))[::20]]
    paths += (shared / "data" / "300w_lp_mini").glob("*.mat")
    assert len(paths) == 160
    for path in paths:
        expected, got = scipy.io.loadmat(path), mat_arrays(path, names)
        assert got.keys() == expected.keys() & set(names)
        for name, value in got.items():
            assert np.array_equal(value, expected[name].astype(float))


@pytest.mark.parametrize(
    ("stem", "photo"),
    [
        ("AFW_134212_1_15", "AFW_134212"), ("AFW_134212_2_0", "AFW_134212"),
        ("AFW_Flip_134212_1_15", "AFW_134212"), ("HELEN_1051618982_1_0", "HELEN_1051618982_1"),
        ("HELEN_Flip_1051618982_1_11", "HELEN_1051618982_1"), ("IBUG_image_003_1_0", "IBUG_image_003_1"),
        ("LFPW_image_train_0001_3", "LFPW_image_train_0001"), ("portrait", None),
    ],
)  # fmt: skip
def test_views_and_flips_of_a_photo_share_its_name(stem: str, photo: str | None) -> None:
    assert photo_of(stem) == photo


def test_flips_in_a_folder_of_their_own_share_the_photo(tmp_path: Path) -> None:
    for name in ("AFW/AFW_1_1_0.jpg", "AFW/AFW_1_1_1.jpg", "AFW_Flip/AFW_1_1_0.jpg", "HELEN/HELEN_2_1_0.jpg"):
        mat(tmp_path / name, (1, 2, 3))
    picture(tmp_path / "AFW" / "Thumbs.jpg")
    assert recognise(tmp_path).name == "300w-lp"
    source = open_source("auto", tmp_path)
    assert [raw.record.subject for raw in samples(source).values()] == ["AFW_1", "AFW_1", "AFW_1", "HELEN_2_1"]
    assert len({raw.key for raw in samples(source).values()}) == 4
    assert "AFW/Thumbs.jpg" in rejects(source)


# Pointing'04


def pointing(folder: Path, name: str, text: str | None = "x.jpg\n\nFace\n192\n137\n126\n94\n") -> None:
    path = picture(folder / name)
    if text is not None:
        path.with_suffix(".txt").write_text(text)


def test_pan_is_yaw_tilt_is_pitch_and_the_box_has_a_centre(tmp_path: Path) -> None:
    pointing(tmp_path, "Person08/person08123-30+45.jpg")
    pointing(tmp_path, "Person08/personne08224+0-15.jpg")
    pointing(tmp_path, "Person09/person09146+0+0.jpg")
    pointing(tmp_path, "Front/personne09146+0+0.jpg", None)
    pointing(tmp_path, "Person09/person09147+0+0.jpg", None)
    pointing(tmp_path, "Person09/person09148+0+0.jpg", "x\n\nFace\n1\n2\n")
    pointing(tmp_path, "Person09/person09149+0+95.jpg")
    pointing(tmp_path, "Person09/cat.jpg")
    assert recognise(tmp_path).name == "pointing04"
    source = open_source("auto", tmp_path)
    down_left, right, front = (raw.record for raw in samples(source).values())
    assert (down_left.yaw, down_left.pitch, down_left.roll) == (45, -30, None)
    assert (right.yaw, right.pitch) == (-15, 0)
    assert down_left.box == (129, 90, 255, 184)
    assert (down_left.subject, right.subject, front.subject) == ("person08", "person08", "person09")
    said = rejects(source)
    assert said["Front/personne09146+0+0.jpg"] == "another file of Person09/person09146+0+0.jpg"
    assert said["Person09/person09147+0+0.jpg"] == "missing person09147+0+0.txt"
    assert "no Face with centre" in said["Person09/person09148+0+0.jpg"]
    assert "beyond ±90" in said["Person09/person09149+0+95.jpg"]
    assert "not named as" in said["Person09/cat.jpg"]


def test_roll_of_pointing04_is_zero_where_its_people_are_taken_as_upright(tmp_path: Path) -> None:
    pointing(tmp_path, "Person08/person08123-30+45.jpg")
    (record,) = (raw.record for raw in samples(open_source("pointing04", tmp_path, roll="upright")).values())
    assert (record.yaw, record.pitch, record.roll) == (45, -30, 0)
    with pytest.raises(UserError, match="option roll is 'level'; expected one of unknown, upright"):
        open_source("pointing04", tmp_path, roll="level")


def test_the_thesis_folders_of_pointing04_give_directions(tmp_path: Path) -> None:
    pointing(tmp_path, "Left/personne08123-30+45.jpg", None)
    pointing(tmp_path, "Forward/personne08146+0+0.jpg", None)
    source = open_source("auto", tmp_path)
    assert source.name == "pointing04"
    assert [raw.record.direction for raw in samples(source).values()] == [0, 1]
    assert source.default_crop.endswith("@detector")


# BIWI

CALIBRATION = "500 0 320\n0 500 240\n0 0 1\n\n0 0 0 0\n\n1 0 0\n0 1 0\n0 0 1\n\n-25 5 0\n\n640 480\n"


def biwi(folder: Path, sequence: str, rotation: np.ndarray, number: int = 3) -> None:
    picture(folder / "hpdb" / sequence / f"frame_{number:05d}_rgb.png")
    lines = [" ".join(f"{v:.7f}" for v in row) for row in rotation]
    (folder / "hpdb" / sequence / f"frame_{number:05d}_pose.txt").write_text("\n".join(lines) + "\n\n25 -5 1000\n")


def test_biwi_is_hopenets_convention(tmp_path: Path) -> None:
    # Hopenet's datasets.BIWI transposes R and negates roll and yaw: with scipy, R of the file is the product
    # below for the angles that must come out.
    yaw, pitch, roll = 30.0, -20.0, 10.0
    rotation = Rotation.from_euler("ZYX", (-roll, -yaw, pitch), degrees=True).as_matrix().T
    assert angles_of(rotation) == pytest.approx((yaw, pitch, roll), abs=1e-3)
    biwi(tmp_path, "01", rotation)
    biwi(tmp_path, "02", np.eye(3))
    biwi(tmp_path, "21", np.eye(3))
    (tmp_path / "hpdb/01/rgb.cal").write_text(CALIBRATION)
    assert recognise(tmp_path).name == "biwi"
    source = open_source("auto", tmp_path)
    first, second, third = (raw.record for raw in samples(source).values())
    assert (first.yaw, first.pitch, first.roll) == pytest.approx((yaw, pitch, roll), abs=1e-3)
    assert first.box == (265, 185, 375, 295)  # 220 mm at 1 m with f = 500, about the optical axis
    assert (second.box, second.subject) == (None, "person02")
    assert third.subject == "person02"  # recorded twice
    assert source.default_crop.endswith("@detector")
    with pytest.raises(UserError, match=r"no readable rgb\.cal in 02, 21"):
        open_source("biwi", tmp_path, frame="rgb")


def test_the_rgb_cameras_frame_is_turned_by_its_calibration(tmp_path: Path) -> None:
    turn = Rotation.from_euler("y", 2, degrees=True).as_matrix()
    lines: list[str] = [*CALIBRATION.splitlines()]
    lines[6:9] = [" ".join(map(str, row)) for row in turn]
    biwi(tmp_path, "01", np.eye(3))
    (tmp_path / "hpdb/01/rgb.cal").write_text("\n".join(lines))
    depth = next(iter(samples(open_source("biwi", tmp_path)).values())).record
    rgb = next(iter(samples(open_source("biwi", tmp_path, frame="rgb")).values())).record
    assert depth.yaw == pytest.approx(0)
    assert abs(rgb.yaw or 0) == pytest.approx(2, abs=1e-3)


def test_a_protocol_of_biwi_is_named_by_the_shards_and_decides_split_crop_and_camera(tmp_path: Path) -> None:
    for number in range(1, 25):
        biwi(tmp_path, f"{number:02d}", np.eye(3))
        (tmp_path / f"hpdb/{number:02d}/rgb.cal").write_text(CALIBRATION)

    def opened(**options: str) -> tuple[Source, list[str | None]]:
        source = open_source("biwi", tmp_path, **options)
        return source, [raw.record.split for raw in samples(source).values()]

    source, split = opened()
    assert (source.splits, set(split), source.default_crop) == ((), {None}, "square-1.2@box")
    source, split = opened(protocol="hopenet")
    assert (source.splits, set(split), source.expected) == (("test",), {"test"}, {"test": 15_678})
    assert source.variant.startswith("protocol hopenet: all frames as test")
    source, split = opened(protocol="fsanet")
    assert (set(split), source.default_crop) == ({"test"}, "margin-0.4@detector")
    source, split = opened(protocol="fsanet-70-30")
    assert (split.count("train"), split.count("test")) == (16, 8)
    assert source.notes[0].startswith("test: sequences ")
    assert opened(protocol="fsanet-70-30")[1] == split
    source, _ = opened(protocol="biwi+")
    assert source.variant.endswith("angles in the rgb camera's frame")


def test_the_test_sequences_of_biwi_can_be_named_and_people_in_both_splits_are_noted(tmp_path: Path) -> None:
    for number in ("02", "03", "21"):
        biwi(tmp_path, number, np.eye(3))
    source = open_source("biwi", tmp_path, protocol="fsanet-70-30", test="21+03")
    split = {raw.record.source[:2]: raw.record.split for raw in samples(source).values() if raw.record.source}
    assert split == {"02": "train", "03": "test", "21": "test"}
    assert source.notes == ("test: sequences 03, 21 of 2 people; 21 show people of the other split, too",)
    with pytest.raises(UserError, match="'25' is none of the sequences 02, 03, 21"):
        open_source("biwi", tmp_path, protocol="fsanet-70-30", test="25")
    with pytest.raises(UserError, match="no sequence is left"):
        open_source("biwi", tmp_path, protocol="fsanet-70-30", test="02+03+21")
    with pytest.raises(UserError, match="is for protocol=fsanet-70-30"):
        open_source("biwi", tmp_path, protocol="hopenet", test="02")
    with pytest.raises(UserError, match="expected one of people, hopenet, fsanet, fsanet-70-30, biwi\\+"):
        open_source("biwi", tmp_path, protocol="mtcnn")


def test_a_list_of_biwis_frames_decides_frames_and_boxes(tmp_path: Path) -> None:
    for number in (3, 4, 5):
        biwi(tmp_path, "01", np.eye(3), number)
    frames = tmp_path / "frames.txt"
    frames.write_text("01/frame_00003_rgb.png 10 20 30 50\n\n01/frame_00005 1 2 3 4\n02/frame_00009 1 2 3 4\n")
    source = open_source("biwi", tmp_path, protocol="fsanet", frames=str(frames))
    assert [raw.record.box for raw in samples(source).values()] == [(10, 20, 30, 50), (1, 2, 3, 4)]
    assert rejects(source) == {"01/frame_00004_rgb.png": "not in the list of frames="}
    assert source.late_notes() == ("frames: 1 of 3 listed ones are not here, such as 02/frame_00009",)
    assert (source.default_crop, source.expected) == ("margin-0@box", {})
    assert source.variant.endswith("the 3 frames of frames.txt")

    arrays = tmp_path / "Biwi_plus.npz"
    np.savez(arrays, images=np.array(["01/frame_00004_rgb.png"]), bbox=np.array([[10, 20, 30, 40]]))
    source = open_source("biwi", tmp_path, protocol="hopenet", frames=str(arrays))
    assert [raw.record.box for raw in samples(source).values()] == [(10, 20, 40, 60)]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "lists no frame"),
        (b"01/frame_00003 1 2 3", "is not a frame"),
        (b"../../etc/passwd", "is not a frame"),
        (b"01/frame_00003 9 9 1 1", "9 9 1 1 is no box"),
        (b"01/frame_00003 nan 0 1 1", "is no box"),
        (b"\xff\xfe", "can't decode"),
        (None, "No such file"),
    ],
)
def test_a_list_that_is_none_is_refused(tmp_path: Path, content: bytes | None, why: str) -> None:
    biwi(tmp_path, "01", np.eye(3))
    if content is not None:
        (tmp_path / "frames.txt").write_bytes(content)
    with pytest.raises(UserError, match=why):
        open_source("biwi", tmp_path, frames=str(tmp_path / "frames.txt"))


def test_a_list_of_pickled_objects_is_not_opened(tmp_path: Path) -> None:
    biwi(tmp_path, "01", np.eye(3))
    for name, images in (("pickle", np.array(["01/frame_00003"], object)), ("short", np.array(["01/frame_00003"] * 2))):
        np.savez(tmp_path / f"{name}.npz", images=images, bbox=np.ones((1, 4)))
        with pytest.raises(UserError, match=r"allow_pickle=False|bbox is"):
            open_source("biwi", tmp_path, frames=str(tmp_path / f"{name}.npz"))
    (tmp_path / "text.npz").write_text("no archive")
    with pytest.raises(UserError, match=r"text\.npz"):
        open_source("biwi", tmp_path, frames=str(tmp_path / "text.npz"))
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros(9 << 20), bbox=np.ones((1, 4)))
    with pytest.raises(UserError, match="more than the 67,108,864 allowed"):
        open_source("biwi", tmp_path, frames=str(tmp_path / "bomb.npz"))


MIRRORED = "1 0 0 0 1 0 0 0 -1 1 1 1"


def test_a_bad_pose_of_biwi_is_rejected(tmp_path: Path) -> None:
    for number, text in enumerate(("", "1 2 3", "a b c", "2 0 0 0 2 0 0 0 2 1 1 1", "nan " * 12, None, MIRRORED)):
        biwi(tmp_path, "01", np.eye(3), number)
        pose = tmp_path / "hpdb/01" / f"frame_{number:05d}_pose.txt"
        pose.unlink() if text is None else pose.write_text(text)
    source = open_source("biwi", tmp_path)
    assert not samples(source)
    assert len(rejects(source)) == 7
    assert rejects(source)["01/frame_00003_rgb.png"].endswith("not a rotation")
    assert rejects(source)["01/frame_00004_rgb.png"].endswith("not all numbers are finite")
    assert rejects(source)["01/frame_00006_rgb.png"].endswith("not a rotation")


# The real sets


def counted(folder: Path) -> tuple[str, list[Raw], list[Reject]]:
    source = open_source("auto", folder)
    rows = [*source.read()]
    raws = [row for row in rows if isinstance(row, Raw)]
    assert len({raw.key for raw in raws}) == len(raws)
    # The size that the reader documents is the size of the real set; of 300W-LP only a part is here.
    items = [row for row in rows if isinstance(row, Raw) or row.kind == "bad"]
    assert sum(source.expected.values()) == (0 if source.name == "300w-lp" else len(items))
    return source.name, raws, [row for row in rows if isinstance(row, Reject)]


@pytest.mark.real
def test_aflw2000_has_2000_pictures_1969_of_them_within_99_degrees(shared: Path) -> None:
    name, raws, rejected = counted(shared / "data" / "aflw2000")
    within = [raw for raw in raws if "range" not in raw.record.groups]
    assert (name, len(raws), len(within), rejected) == ("aflw2000", 2000, 1969, [])
    assert all(
        max(abs(raw.record.yaw or 0), abs(raw.record.pitch or 0), abs(raw.record.roll or 0)) <= 99 for raw in within
    )
    # image00078 looks to the picture's left, and that is positive yaw.
    (raw,) = (raw for raw in raws if raw.key == "image00078")
    assert raw.record.yaw == pytest.approx(40.8, abs=0.1)
    lists = open_source("aflw2000", shared / "data" / "aflw2000", splits="lists")
    assert Counter(r.record.split for r in samples(lists).values()) == {"train": 1400, "val": 300, "test": 300}


@pytest.mark.real
def test_pointing04_has_2790_pictures_of_15_people_and_the_published_box(shared: Path) -> None:
    name, raws, rejected = counted(shared / "data" / "pointing04")
    assert (name, len(raws), len(rejected)) == ("pointing04", 2790, 30)
    assert set(Counter(raw.record.subject for raw in raws).values()) == {186}
    (raw,) = (raw for raw in raws if raw.record.source == "Person01/person01100-90+0.jpg")
    assert raw.record.box == (129, 190, 255, 284)  # centre 192, 237 and 126 × 94
    assert {raw.record.pitch for raw in raws} == {0, *(s * a for a in (15, 30, 60, 90) for s in (1, -1))}


@pytest.mark.real
def test_300w_lp_has_60_pictures_and_no_photo_with_a_single_view(shared: Path) -> None:
    name, raws, rejected = counted(shared / "data" / "300w_lp_mini")
    assert (name, len(raws), rejected) == ("300w-lp", 60, [])
    assert set(Counter(raw.record.subject for raw in raws)) == {"AFW_134212", "AFW_261068"}
    assert all(raw.record.landmarks and len(raw.record.landmarks) > 2 for raw in raws)


@pytest.mark.real
def test_ferplus_has_every_picture_but_those_that_are_no_emotion(shared: Path) -> None:
    name, raws, rejected = counted(shared / "data" / "ferplus")
    assert (name, len(raws) + len(rejected)) == ("ferplus", 28558 + 3579 + 3573)
    assert {row.reason for row in rejected} == {"winner unknown", "winner NF"}
    parts = Counter(raw.record.split for raw in raws)
    assert parts == {"train": 28385, "val": 3555, "test": 3545}
    counts = Counter((raw.record.groups["votes"], raw.record.split) for raw in raws)
    assert {split: counts["tied", split] for split in parts} == {"train": 1445, "val": 159, "test": 174}
    # As many as src/ferplus.py of FER+'s repository keeps in its mode "majority".
    assert {split: counts["majority", split] for split in parts} == {"train": 25045, "val": 3191, "test": 3137}
    # The data's readme counts contempt where it wins alone.
    alone = Counter(
        raw.record.split for raw in raws if raw.record.emotion == 7 and raw.record.groups["votes"] != "tied"
    )
    assert alone == {"train": 165, "val": 26, "test": 27}
