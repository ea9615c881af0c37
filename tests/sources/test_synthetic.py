"""Rendered heads: the picture shows the pose, the expression and the person that its labels name."""

import inspect
from collections import Counter
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from hpe.data.crops import CropRule, box_around
from hpe.sources import synthetic
from hpe.sources.synthetic import (
    DIRECTIONS,
    EMOTIONS,
    Head,
    Shot,
    cast,
    express,
    head_at,
    heads,
    landmarks,
    mirrored,
    model_points,
    outline,
    person,
    render,
    shot,
    split_of,
    wild,
)
from hpe.sources.synthetic.anatomy import LANDMARKS
from hpe.sources.synthetic.shots import ACTION_UNITS, CELLS, PITCH_BORDER, YAW_BORDER

SIZE = 64
POSES = [(0, 0, 0), (30, 0, 0), (-30, 0, 0), (0, 30, 0), (0, -30, 0), (0, 0, 25), (20, -15, -30), (-25, 20, 15)]
WIDE = [*POSES, (88, 10, 5), (-80, 0, -40), (10, 58, 20), (-10, -58, 0)]


def calm(yaw: float = 0, pitch: float = 0, roll: float = 0, *, emotion: int = 0, index: int = 0) -> Shot:
    """A shot without noise, blur or chance in the expression, lit from the front."""
    return replace(
        shot(0, index),
        yaw=yaw,
        pitch=pitch,
        roll=roll,
        emotion=emotion,
        intensity=1.0,
        units=express(emotion, 1.0),
        gaze=(0.0, 0.0),
        light=(0.0, 0.0, 1.0),
        blobs=0.0,
        blur=0.0,
        noise=0.0,
    )


def bare(person_id: int = 0) -> Head:
    """A person without anything that could cover the eyes or the mouth."""
    return replace(person(0, person_id), glasses=False, beard=0.0, hair_style="cropped", parting=0.0)


def by_scipy(points: np.ndarray, seen: Shot) -> np.ndarray:
    """Pixels of head-frame points, by SciPy: F Rᵀ X, scaled to the picture and moved to the shot's centre."""
    turn = Rotation.from_euler("xyz", [seen.pitch + seen.tilt, seen.yaw, seen.roll], degrees=True)
    x, y, z = turn.inv().apply(points).T
    return SIZE * (0.5 + np.array(seen.centre) + seen.scale * np.stack([x, -y], axis=1) / (1 - seen.near * z)[:, None])


def changed(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The mean place (x, y) in pixels of what differs between two pictures, weighted by how much."""
    weight = np.abs(first.astype(float) - second.astype(float)).sum(axis=2)
    rows, columns = np.indices(weight.shape) + 0.5
    return np.array([(columns * weight).sum(), (rows * weight).sum()]) / weight.sum()


def direction_of(seen: Shot) -> str:
    if abs(seen.yaw) > YAW_BORDER:
        return "left" if seen.yaw > 0 else "right"
    if abs(seen.pitch) > PITCH_BORDER:
        return "up" if seen.pitch > 0 else "down"
    return "forward"


@pytest.mark.parametrize(("yaw", "pitch", "roll"), WIDE)
def test_landmarks_are_projected_with_scipys_rotation(yaw: float, pitch: float, roll: float) -> None:
    for number in range(4):
        seen = replace(shot(0, number), yaw=yaw, pitch=pitch, roll=roll)
        expected = by_scipy(model_points(person(0, number), seen), seen)
        np.testing.assert_allclose(landmarks(person(0, number), seen, SIZE), expected, atol=1e-6)


@pytest.mark.parametrize(("yaw", "pitch", "roll"), POSES)
@pytest.mark.parametrize("part", ["iris", "lip"])
def test_eyes_and_mouth_stand_in_the_picture_where_scipy_turns_them(
    yaw: float, pitch: float, roll: float, part: str
) -> None:
    seen = calm(yaw, pitch, roll)
    for number in (0, 3):
        head = replace(bare(number), wide=1.0 if number else 0.85)
        seen = replace(seen, near=0.0 if number else 0.18)
        red, blue = (replace(head, **{part: colour}) for colour in [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0)])
        found = changed(render(red, seen, SIZE), render(blue, seen, SIZE))
        names = ("left eye", "right eye") if part == "iris" else ("upper lip", "lower lip")
        points = by_scipy(model_points(head, seen), seen)[[LANDMARKS.index(name) for name in names]]
        # the nearer of two eyes shows more of itself, so their common centre lies a little off
        assert np.abs(found - points.mean(axis=0)).max() < 2.5


@pytest.mark.parametrize(
    ("yaw", "pitch", "axis", "sign"), [(40, 0, 0, -1), (-40, 0, 0, 1), (0, 35, 1, -1), (0, -35, 1, 1)]
)
def test_yaw_turns_to_image_left_and_pitch_looks_up(yaw: float, pitch: float, axis: int, sign: int) -> None:
    head = bare()
    seen, frontal = calm(yaw, pitch), calm()
    blind = replace(head, iris=(1.0, 0.0, 1.0), lip=(1.0, 0.0, 1.0))
    moved = changed(render(head, seen, SIZE), render(blind, seen, SIZE))
    still = changed(render(head, frontal, SIZE), render(blind, frontal, SIZE))
    assert sign * (moved - still)[axis] > 4


@pytest.mark.parametrize("emotion", range(len(EMOTIONS)))
def test_the_mirrored_head_is_the_mirrored_picture(emotion: int) -> None:
    for number, (yaw, pitch, roll) in list(enumerate(POSES))[emotion % 2 :: 2]:
        seen = replace(calm(yaw, pitch, roll, emotion=emotion, index=number), light=(0.6, 0.3, 0.742))
        head = person(0, number)
        other = replace(head, parting=-head.parting)
        picture, mirror = render(head, seen, SIZE), render(other, mirrored(seen), SIZE)
        far = np.abs(picture[:, ::-1].astype(int) - mirror).max(axis=2)
        # a ray on the very edge of a part may fall to either side
        assert (far > 4).mean() < 0.01


def test_the_same_numbers_give_the_same_bytes_in_any_order() -> None:
    arguments: dict[str, Any] = {"seed": 3, "people": 20, "size": 48}
    forth = [head_at(index, **arguments) for index in range(6)]
    back = [head_at(index, **arguments) for index in reversed(range(6))][::-1]
    for one, two, three in zip(forth, back, heads(6, **arguments), strict=True):
        assert one[0] == two[0] == three[0]
        assert one[1].tobytes() == two[1].tobytes() == three[1].tobytes()
        assert one[2] == two[2] == three[2]


def test_another_index_person_or_seed_gives_another_picture() -> None:
    pictures = [render(person(seed, who), shot(seed, index), 32) for seed, who, index in np.ndindex(2, 2, 3)]
    assert len({picture.tobytes() for picture in pictures}) == len(pictures)


def test_heads_are_drawn_only_when_asked_for() -> None:
    endless = heads(10**12, seed=0, people=20, size=16)
    assert inspect.isgenerator(endless)
    key, picture, labels = next(endless)
    assert key == "head0000-0000000"
    assert picture.shape == (16, 16, 3)
    assert picture.dtype == np.uint8
    assert labels.subject == "head0000"


def test_no_person_stands_in_two_splits_and_their_shares_are_as_stated() -> None:
    splits: dict[str, set[str]] = {}
    for _, _, labels in heads(80, seed=0, people=40, size=8):
        splits.setdefault(labels.subject, set()).add(labels.split)
    assert len(splits) == 40
    assert all(len(found) == 1 for found in splits.values())
    assert Counter(split_of(who) for who in range(200)) == {"train": 140, "val": 30, "test": 30}
    assert {split_of(who) for who in range(7)} == {"train", "val", "test"}


def test_every_split_holds_every_emotion_in_every_direction_alike() -> None:
    people, turns = 20, 40
    # the direction of the few shots between two poses may be the neighbour's
    counts: dict[str, Counter[tuple[int, str]]] = {split: Counter() for split in ("train", "val", "test")}
    emotions: dict[str, Counter[int]] = {split: Counter() for split in counts}
    for index in range(people * turns):
        shown = cast(index, seed=1, people=people)
        who, seen = shown.person_id, shown.seen
        counts[split_of(who)][seen.emotion, direction_of(seen)] += 1
        emotions[split_of(who)][seen.emotion] += 1
    for split, found in counts.items():
        assert len(found) == CELLS
        assert len(set(emotions[split].values())) == 1


def test_shots_of_two_splits_are_never_the_same() -> None:
    drawn = [cast(index, seed=0, people=20).seen for index in range(200)]
    assert len({seen.grain for seen in drawn}) == len(drawn)


def test_poses_are_wide_and_thin_at_the_borders() -> None:
    drawn = [shot(2, index) for index in range(2000)]
    yaw, pitch, roll = np.array([(seen.yaw, seen.pitch, seen.roll) for seen in drawn]).T
    near = (np.abs(np.abs(yaw) - YAW_BORDER) < 3) | (np.abs(np.abs(pitch) - PITCH_BORDER) < 3)
    assert near.mean() < 0.02
    assert (np.minimum(np.abs(yaw) / YAW_BORDER, np.abs(pitch) / PITCH_BORDER) < 1).all()
    assert yaw.min() < -80
    assert yaw.max() > 80
    assert pitch.min() < -55
    assert pitch.max() > 55
    assert np.abs(roll).max() <= 40
    shares = Counter(direction_of(seen) for seen in drawn)
    assert all(0.15 < shares[name] / len(drawn) < 0.26 for name in DIRECTIONS)


@pytest.mark.parametrize("yaw", [0, 45, -45])
def test_an_expression_changes_unseen_faces_as_it_changes_others(yaw: float) -> None:
    """Judged by the nearest mean change of eight people's pictures, for four others, at 0.6 of the intensity."""

    def changes(people: range, intensity: float) -> np.ndarray:
        rows = []
        for who in people:
            seen = replace(calm(yaw), scale=0.43, centre=(0.0, 0.0), ambient=0.6)
            faces = [
                render(
                    bare(who), replace(seen, units=express(emotion, intensity, side=-1 if yaw < 0 else 1)), 48
                ).astype(float)
                for emotion in range(len(EMOTIONS))
            ]
            rows.append([(face - faces[0]).ravel() for face in faces[1:]])
        return np.array(rows)

    known = changes(range(8), 1.0).mean(axis=0)
    known /= np.linalg.norm(known, axis=1, keepdims=True)
    found = (changes(range(8, 12), 0.6) @ known.T).argmax(axis=2)
    assert (found == np.arange(len(EMOTIONS) - 1)).mean() > 0.8  # chance is 1/7


def test_a_smile_lifts_the_corners_of_the_mouth_and_surprise_drops_the_jaw() -> None:
    head, row = bare(), LANDMARKS.index
    neutral, happy, sad, surprise = (model_points(head, calm(emotion=e)) for e in (0, 1, 2, 3))
    corner, low, brow = row("left mouth corner"), row("lower lip"), row("left brow inner")
    assert sad[corner, 1] < neutral[corner, 1] < happy[corner, 1]
    assert surprise[low, 1] < neutral[low, 1] - 0.1
    assert sad[brow, 1] > neutral[brow, 1] > model_points(head, calm(emotion=6))[brow, 1]


def test_contempt_is_the_one_sided_expression() -> None:
    for emotion in range(len(EMOTIONS)):
        units = np.array(express(emotion, 1.0, side=1))
        assert units.shape == (len(ACTION_UNITS), 2)
        assert (units[:, 0] != units[:, 1]).any() == (EMOTIONS[emotion] == "contempt")
        np.testing.assert_array_equal(units[:, ::-1], express(emotion, 1.0, side=-1))


def test_valence_and_arousal_follow_emotion_and_intensity() -> None:
    half = replace(calm(emotion=1), intensity=0.5)
    full = calm(emotion=1)
    assert half.valence == full.valence / 2 > 0
    assert calm(emotion=0).valence == calm(emotion=0).arousal == 0
    assert calm(emotion=4).arousal > 0 > calm(emotion=2).arousal


def test_the_box_holds_the_face() -> None:
    for index in range(20):
        _, picture, labels = head_at(index, seed=0, people=20, size=SIZE)
        shown = cast(index, seed=0, people=20)
        who, seen = shown.person_id, shown.seen
        x0, y0, x1, y1 = labels.box
        assert 0 <= x0 < x1 <= picture.shape[1]
        assert 0 <= y0 < y1 <= picture.shape[0]
        inner = landmarks(person(0, who), seen, SIZE)[
            [LANDMARKS.index(n) for n in ("left eye", "right eye", "upper lip")]
        ]
        slack = 0.02 * SIZE
        assert (inner >= [x0 - slack, y0 - slack]).all()
        assert (inner <= [x1 + slack, y1 + slack]).all()


def test_a_scene_scales_with_the_picture() -> None:
    """The same head at twice the size, halved again, is the head: no length is fixed in pixels."""
    seen = calm(20, 5, 10, emotion=1)
    small = render(bare(), seen, 64).astype(float)
    large = render(bare(), seen, 128).astype(float).reshape(64, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(small - large).mean() < 2


def test_contact_sheets_show_every_emotion_in_every_direction() -> None:
    sheet = synthetic.contact_sheet(size=24)
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] > len(EMOTIONS) * 24
    assert sheet.shape[1] > len(DIRECTIONS) * 24
    assert synthetic.people_sheet(size=16, rows=2, columns=3).shape[1] > 3 * 16


def test_a_wild_picture_is_the_square_around_its_landmarks_whatever_the_pose() -> None:
    rule = CropRule.parse(f"square-{wild.CROP}@landmarks")
    for index in range(30):
        head = wild.wild_person(0, index)
        seen = wild.wild_shot(0, index, head)
        points = by_scipy(outline(head, seen), seen)
        np.testing.assert_allclose(rule.apply(box_around(points)), (0, 0, SIZE, SIZE), atol=1e-6)
        named = by_scipy(model_points(head, seen), seen)  # the chin is one of the outline
        assert np.abs(points - named[LANDMARKS.index("chin")]).sum(axis=1).min() < 1e-6


def test_wild_pictures_are_the_same_in_any_order_and_alike_in_nothing_else() -> None:
    arguments: dict[str, Any] = {"seed": 3, "people": 20, "size": 32, "look": "wild"}
    forth = [head_at(index, **arguments) for index in range(12)]
    back = [head_at(index, **arguments) for index in reversed(range(12))][::-1]
    for one, two in zip(forth, back, strict=True):
        assert one[1].tobytes() == two[1].tobytes()
        assert one[0] == two[0]
        assert one[2] == two[2]
    assert len({picture.tobytes() for _, picture, _ in forth}) == 12


def test_wild_poses_reach_from_profile_to_profile_and_keep_within_the_bins() -> None:
    head = wild.wild_person(0, 0)
    shots = [wild.wild_shot(0, index, head) for index in range(400)]
    poses = np.array([seen.turn for seen in shots])
    assert max(abs(seen.pitch - (seen.turn[1] - wild.TILT)) for seen in shots) < 1e-9
    assert np.abs(poses).max() < 99
    assert np.histogram(poses[:, 0], range(-90, 91, 30))[0].min() > 15
    assert np.abs(poses.mean(axis=0)).max() < 5
    both = (np.abs(poses[:, 0]) > 40) & (np.abs(poses[:, 1]) > 15)
    assert both.sum() > 20  # unlike the studio's: turned and raised at once


@pytest.mark.parametrize(("seed", "expected"), [(None, "fixed"), (5, "changed")])
def test_everything_about_a_wild_picture_changes_but_its_pose(seed: int | None, expected: str) -> None:
    """The scene alone, drawn anew, leaves no pixel of the background and little of the head as it was."""
    head = wild.wild_person(0, 1)
    seen = wild.wild_shot(0, 1, head)
    first = render(head, seen, SIZE, wild.scene(0, 1, head, seen))
    again = render(head, seen, SIZE, wild.scene(0 if seed is None else seed, 1, head, seen))
    far = np.abs(first.astype(int) - again).max(axis=2)
    assert (far.max() == 0) == (expected == "fixed")
    if expected == "changed":
        assert (far > 8).mean() > 0.8
