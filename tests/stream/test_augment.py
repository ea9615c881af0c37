"""Augmentation: labels judged by geometry, pictures by independent arithmetic, draws by their position."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.spatial.transform import Rotation
from torch import Tensor
from torchvision.transforms.v2 import functional as tv

from hpe.config.run import AugmentConfig
from hpe.core.geometry import project, rotation_from_euler
from hpe.core.labels import Direction
from hpe.data.batch import Batch
from hpe.data.normalise import IMAGENET, MEAN, STD, prepare
from hpe.stream.augment import Augmentation, augment, turned_angles
from hpe.train.losses import LossSettings, head_loss, label_mask, with_targets

EVERYTHING = Augmentation(
    crop_scale=(0.6, 1.1), crop_ratio=(0.9, 1.1), shift=0.1, rotate=15, flip=0.5, brightness=0.3, contrast=0.3,
    saturation=0.3, grey=0.2, blur=0.3, erase=0.3, randaugment=6,
)  # fmt: skip


def batch_of(rows: int, size: int = 24, seed: int = 0) -> Batch:
    made = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (rows, size, size, 3), dtype=torch.uint8, generator=made).permute(0, 3, 1, 2)
    emotion = torch.randint(0, 8, (rows,), generator=made)
    true = torch.ones(rows, dtype=torch.bool)
    return Batch(
        tuple(f"k{n}" for n in range(rows)), images, emotion, torch.eye(8)[emotion], true,
        torch.randint(0, 5, (rows,), generator=made), true, torch.rand(rows, 3, generator=made) * 80 - 40, true,
        torch.rand(rows, 2, generator=made), true,
    )  # fmt: skip


def pixels(images: Tensor) -> Tensor:
    """Back from normalised to 0..255."""
    return (images * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)) * 255


def tensors(batch: Batch) -> list[Tensor]:
    return [getattr(batch, name) for name in Batch.__slots__ if name not in ("keys", "images")]


def test_nothing_switched_on_is_the_normalised_picture() -> None:
    batch = batch_of(5)
    images, labels = augment(batch, Augmentation(), seed=0, position=0)
    assert torch.equal(images, prepare(batch, IMAGENET))
    assert torch.allclose(images, tv.normalize(batch.images / 255, list(MEAN), list(STD)), atol=1e-5)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert all(torch.equal(a, b) for a, b in zip(tensors(labels), tensors(batch), strict=True))


@pytest.mark.parametrize("settings", [EVERYTHING, Augmentation(flip=0.5), Augmentation(blur=1.0)])
def test_a_sample_is_augmented_by_its_position_alone(settings: Augmentation) -> None:
    """So ranks, and a resumed run, augment as one uninterrupted process would."""
    batch = batch_of(12)
    before = batch.images.clone()
    whole, labels = augment(batch, settings, seed=4, position=1000)
    assert torch.equal(batch.images, before)
    for start, stop in ((0, 5), (5, 12)):
        part, part_labels = augment(batch[slice(start, stop)], settings, seed=4, position=1000 + start)
        assert torch.equal(part, whole[start:stop])
        assert torch.equal(part_labels.angles, labels.angles[start:stop])
    other, _ = augment(batch, settings, seed=4, position=1012)
    assert not torch.equal(other, whole)


def test_a_flip_mirrors_the_head_that_the_labels_describe() -> None:
    """The projected points of the mirrored head are the mirror image of the projected points."""
    batch = batch_of(40)
    images, flipped = augment(batch, Augmentation(flip=1.0), seed=0, position=0)
    assert torch.equal(images, prepare(replace(batch, images=tv.horizontal_flip(batch.images)), IMAGENET))
    head = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(1))
    mirrored_head = head * torch.tensor((-1.0, 1.0, 1.0))  # a face is symmetric about its middle plane
    seen = project(head, rotation_from_euler(batch.angles))
    expected = seen * torch.tensor((-1.0, 1.0, 1.0))
    assert torch.allclose(project(mirrored_head, rotation_from_euler(flipped.angles)), expected, atol=1e-5)
    for before, after in zip(batch.direction.tolist(), flipped.direction.tolist(), strict=True):
        names = Direction(before).name, Direction(after).name
        assert names in {("LEFT", "RIGHT"), ("RIGHT", "LEFT")} or names[0] == names[1] not in ("LEFT", "RIGHT")
    assert torch.equal(flipped.emotion, batch.emotion)


def test_about_half_is_flipped_at_one_half() -> None:
    batch = batch_of(2000, size=4)
    _, flipped = augment(batch, Augmentation(flip=0.5), seed=0, position=0)
    share = (flipped.angles[:, 0] == -batch.angles[:, 0]).float().mean()
    assert 0.45 < share < 0.55


def test_a_rotation_turns_the_projected_head_with_the_picture() -> None:
    """SciPy turns the points in the picture; ours turns the angles."""
    angles = torch.tensor([[30.0, 20.0, 10.0], [-50.0, 5.0, -25.0], [0.0, 0.0, 0.0]])
    degrees = torch.tensor([12.0, -30.0, 17.0])
    head = torch.randn(1, 20, 3, generator=torch.Generator().manual_seed(2))
    seen = project(head, rotation_from_euler(angles)).numpy()
    # Clockwise on the screen is positive about z where y points down.
    expected = np.stack(
        [Rotation.from_euler("z", d, degrees=True).apply(p) for d, p in zip(degrees.tolist(), seen, strict=True)]
    )
    turned = turned_angles(angles, degrees)
    assert np.allclose(project(head, rotation_from_euler(turned)).numpy(), expected, atol=1e-5)
    assert torch.allclose(turned[2].abs(), torch.tensor([0.0, 0.0, 17.0]), atol=1e-4)


def test_the_picture_turns_as_far_as_the_angles_say() -> None:
    """A dot right of the centre moves clockwise on the screen by the degrees that the frontal roll has got."""
    size = 101
    images = torch.zeros(1, size, size, 3, dtype=torch.uint8)
    images[0, 48:53, 83:88] = 255
    batch = replace(batch_of(1, size), images=images.permute(0, 3, 1, 2), angles=torch.zeros(1, 3))
    turned, labels = augment(batch, Augmentation(rotate=40), seed=3, position=8)
    seen = pixels(turned)[0, 0]
    rows, columns = torch.meshgrid(torch.arange(size) - 50.0, torch.arange(size) - 50.0, indexing="ij")
    clockwise = torch.rad2deg(torch.atan2((seen * rows).sum(), (seen * columns).sum()))
    head = project(torch.tensor([[[1.0, 0.0, 0.0]]]), rotation_from_euler(labels.angles))[0, 0]
    expected = torch.rad2deg(torch.atan2(head[1], head[0]))
    assert abs(float(clockwise)) > 5
    assert float(clockwise) == pytest.approx(float(expected), abs=0.5)


def test_a_crop_is_torchvisions_crop_and_resize() -> None:
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    image = torch.stack((2 * x + y, x + 2 * y, 190 - x - y)).to(torch.uint8)[None]
    batch = replace(batch_of(1, 64), images=image)
    cropped, _ = augment(batch, Augmentation(crop_scale=(0.25, 0.25)), seed=11, position=5)
    seen = pixels(cropped)[0]
    # A linear picture stays linear: steps shrink to half, and it starts within the picture.
    assert torch.allclose((seen[0, 20:40, 41] - seen[0, 20:40, 40]), torch.full((20,), 1.0), atol=0.2)
    assert torch.allclose((seen[1, 41, 20:40] - seen[1, 40, 20:40]), torch.full((20,), 1.0), atol=0.2)
    assert seen.min() >= 0
    assert not torch.equal(seen[0, 1:-1, 1:-1], torch.zeros(62, 62))


def test_colour_changes_are_torchvisions() -> None:
    """Each is linear in its factor, so the factor follows from the result, and torchvision must agree with it."""
    batch = batch_of(40, size=8)
    batch = replace(batch, images=(100 + batch.images // 5).to(torch.uint8))
    names = {"brightness": tv.adjust_brightness, "contrast": tv.adjust_contrast, "saturation": tv.adjust_saturation}
    for name, reference in names.items():
        images, _ = augment(batch, Augmentation(**{name: 0.5}), seed=1, position=3)  # pyright: ignore[reportArgumentType]
        factors = []
        for plain, changed in zip(batch.images / 255, pixels(images) / 255, strict=True):
            none = reference(plain, 0.0)
            factors.append(float(((changed - none) * (plain - none)).sum() / (plain - none).square().sum()))
            assert torch.allclose(reference(plain, factors[-1]), changed, atol=2 / 255)
        assert 0.5 <= min(factors) < 0.8 < 1.2 < max(factors) <= 1.5


def test_blur_smooths_and_keeps_the_mean_and_erase_blanks_a_rectangle() -> None:
    batch = batch_of(64, size=48)
    blurred, _ = augment(batch, Augmentation(blur=1.0), seed=0, position=0)
    plain = prepare(batch, IMAGENET)
    assert torch.allclose(blurred.mean((2, 3)), plain.mean((2, 3)), atol=0.05)
    erased, _ = augment(batch, Augmentation(erase=1.0), seed=0, position=0)
    blank = (erased == 0).all(1)
    assert torch.equal(erased[~blank[:, None].expand_as(erased)], plain[~blank[:, None].expand_as(plain)])
    for row in blank:
        rows, columns = row.any(1), row.any(0)
        assert int(row.sum()) == int(rows.sum()) * int(columns.sum())
    assert 0.02 < float(blank.float().mean()) < 0.2


def test_mixup_mixes_targets_as_pictures_and_leaves_unlabelled_samples_alone() -> None:
    batch = batch_of(32)
    mask = torch.ones(32, dtype=torch.bool)
    mask[::4] = False
    batch = replace(batch, emotion_mask=mask)
    images, mixed = augment(batch, Augmentation(mixup=0.8), seed=0, position=0)
    assert torch.allclose(mixed.emotion_target.sum(1), torch.ones(32), atol=1e-6)
    plain = prepare(batch, IMAGENET)
    assert torch.equal(images[::4], plain[::4])
    assert torch.equal(mixed.emotion_target[::4], batch.emotion_target[::4])
    changed = (images != plain).flatten(1).any(1)
    assert int(changed.sum()) > 10
    for row in torch.nonzero(changed).flatten().tolist():
        # Which partner and which share explain the picture? They must explain the target too.
        others = [o for o in range(32) if o != row]
        ways = torch.stack([(plain[o] - plain[row]).flatten() for o in others])
        part = (ways @ (images[row] - plain[row]).flatten()) / ways.square().sum(1)
        left = (ways * part[:, None] - (images[row] - plain[row]).flatten()).square().sum(1)
        best = int(left.argmin())
        assert left[best] < 1e-3
        assert -1e-6 <= part[best] <= 0.5 + 1e-6
        expected = torch.lerp(batch.emotion_target[row], batch.emotion_target[others[best]], part[best])
        assert torch.allclose(mixed.emotion_target[row], expected, atol=1e-4)


def test_everything_at_once_stays_finite_and_in_range() -> None:
    images, _ = augment(batch_of(64), replace(EVERYTHING, mixup=0.4, randaugment=10), seed=0, position=0)
    assert images.isfinite().all()
    assert pixels(images).min() > -1
    assert pixels(images).max() < 256


def test_the_config_offers_every_change_with_the_same_default() -> None:
    offered = {name: field.default for name, field in AugmentConfig.model_fields.items()}
    assert offered == {field.name: field.default for field in fields(Augmentation)}


def test_mixup_mixes_the_majority_where_votes_do_not_count() -> None:
    """Each picture has one grey value, so that the mixture's shares can be read from it."""
    rows = torch.arange(8)
    grey = (rows * 32).to(torch.uint8)[:, None, None, None].expand(8, 3, 4, 4)
    votes = torch.full((8, 8), 1 / 8)
    batch = replace(batch_of(8, 4), images=grey, emotion=rows, emotion_target=votes)
    losses = {"emotion": LossSettings(soft=False)}
    images, mixed = augment(with_targets(batch, losses), Augmentation(mixup=0.8), seed=0, position=0)
    shown = pixels(images)[:, 0, 0, 0] / 32  # Σ share · class
    assert (shown - rows).abs().max() > 0.5
    assert torch.allclose(mixed.emotion_target @ rows.float(), shown, atol=1e-4)
    assert ((mixed.emotion_target > 0).sum(1) <= 2).all()
    logits = torch.randn(8, 8)
    partner = torch.where(mixed.emotion_target > 0, mixed.emotion_target, 2.0).scatter(1, rows[:, None], 2.0).argmin(1)
    share = mixed.emotion_target[rows, rows]
    apart = [F.cross_entropy(logits, classes, reduction="none") for classes in (rows, partner)]
    expected = share * apart[0] + (1 - share) * apart[1]
    assert torch.allclose(head_loss("emotion", logits, mixed, losses["emotion"]), expected, atol=1e-5)


def profiles(yaws: Tensor) -> Batch:
    rows = len(yaws)
    draw = torch.Generator().manual_seed(3)
    pitch, roll = (torch.rand(2, rows, generator=draw) * 40 - 20).unbind()
    return replace(batch_of(rows, 8), angles=torch.stack((yaws, pitch, roll), 1))


def test_a_rotation_loses_no_face_that_the_bins_hold() -> None:
    """Faces near and beyond a profile: Euler angles of a turned picture leave ±99°, as SciPy's do."""
    batch = profiles(torch.linspace(-130, 130, 521))
    loss = LossSettings(largest_degrees=99.0)
    _, turned = augment(batch, Augmentation(rotate=30), seed=0, position=0, largest_degrees=99.0)
    before, after = label_mask("pose", batch, loss), label_mask("pose", turned, loss)
    assert torch.equal(before, after)
    assert int(before.sum()) == int((batch.angles.abs() < 99).all(1).sum())
    still = (turned.angles == batch.angles).all(1)
    assert not still[batch.angles[:, 0].abs() < 60].any()  # only where a rotation would lose a face it is left out
    assert still[(batch.angles[:, 0].abs() > 92) & before].float().mean() > 0.2
    part, labels = augment(batch[100:200], Augmentation(rotate=30), seed=0, position=100, largest_degrees=99.0)
    whole, _ = augment(batch, Augmentation(rotate=30), seed=0, position=0, largest_degrees=99.0)
    assert torch.allclose(labels.angles, turned.angles[100:200], atol=1e-4)
    assert torch.allclose(part, whole[100:200], atol=1e-4)


def test_a_face_that_is_not_turned_keeps_its_picture_upright() -> None:
    batch = profiles(torch.linspace(92, 98, 40))
    images, labels = augment(batch, Augmentation(rotate=30), seed=0, position=0, largest_degrees=99.0)
    still = (labels.angles == batch.angles).all(1)
    assert 0 < int(still.sum()) < len(batch)
    unturned = (images - prepare(batch, IMAGENET)).flatten(1).abs().amax(1) < 1e-3
    assert torch.equal(unturned, still)


def test_turned_angles_are_the_turned_rotation_and_near_the_angles_before() -> None:
    batch = profiles(torch.linspace(-120, 120, 241))
    small = torch.full((241,), 1e-3)
    turned = turned_angles(batch.angles, small)
    assert torch.allclose(rotation_from_euler(turned), rotation_from_euler(batch.angles), atol=1e-3)
    away = (batch.angles[:, 0].abs() - 90).abs() > 1  # but for the gimbal lock itself
    assert torch.allclose(turned[away], batch.angles[away], atol=0.1)
