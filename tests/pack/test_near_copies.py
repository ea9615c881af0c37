"""Copies: found like a comparison of everything with everything, and not where pictures merely resemble."""

import io
from itertools import pairwise

import numpy as np
from PIL import Image, ImageFilter

from hpe.pack.near_copies import (
    NEAR_BITS,
    Copy,
    copies,
    difference_hash,
    difference_hashes,
    exact_digest,
    near_pairs,
    thinned,
)


def picture(seed: int, side: int = 96) -> Image.Image:
    """Smooth blobs, as a face is: not noise, whose hash changes at random after a JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def grey(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("L"))


def distance(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one) ^ int.from_bytes(other)).bit_count()


def hashed(*images: Image.Image) -> np.ndarray:
    return np.stack([np.frombuffer(difference_hash(grey(image)), np.uint8) for image in images])


def test_a_recompressed_or_resized_picture_is_near_and_another_is_not():
    first = picture(1)
    stream = io.BytesIO()
    first.save(stream, "JPEG", quality=60)
    again = Image.open(stream)
    bigger = first.resize((150, 150), Image.Resampling.BILINEAR)
    own = difference_hash(grey(first))
    assert distance(own, difference_hash(grey(again))) <= NEAR_BITS
    assert distance(own, difference_hash(grey(bigger))) <= NEAR_BITS
    assert distance(own, difference_hash(grey(picture(2)))) > 40
    assert distance(own, difference_hash(grey(first.filter(ImageFilter.GaussianBlur(0.5))))) <= NEAR_BITS


def test_hashes_of_many_pictures_are_those_of_each_alone():
    rng = np.random.default_rng(3)
    shapes = [(64, 64), (96, 48), (12, 40), (224, 224), (64, 64)] * 40
    pictures = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
    pictures[7] = np.full((224, 224), 9, np.uint8)
    together = difference_hashes([thinned(one) for one in pictures])
    assert together == [difference_hash(one) for one in pictures]

    def plainly(grey: np.ndarray) -> bytes:
        few = grey[:: max(1, grey.shape[0] // 48), :: max(1, grey.shape[1] // 48)].astype(int)
        down, across = (
            np.arange(parts + 1) * length // parts for length, parts in zip(few.shape, (16, 17), strict=True)
        )
        cells = np.array([[few[a:b, c:d].mean() for c, d in pairwise(across)] for a, b in pairwise(down)])
        return np.packbits(cells[:, :-1] > cells[:, 1:]).tobytes()

    assert together[0] == plainly(pictures[0])
    assert together[3] == plainly(pictures[3])
    assert together[2] == together[7] == bytes(32)


def test_flat_and_tiny_pictures_are_like_nothing():
    flat, tiny = Image.new("RGB", (64, 64), "#777"), picture(1, 10)
    assert not np.concatenate([hashed(flat), hashed(tiny)]).any()
    assert not list(near_pairs(np.zeros((5, 32), np.uint8)))


def test_near_pairs_are_those_of_comparing_everything():
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 256, (300, 32), np.uint8)
    for i in range(100):  # planted: 0 to 24 bits away from an earlier one
        hashes[200 + i] = hashes[i]
        for bit in rng.choice(256, i % 25, replace=False):
            hashes[200 + i, bit // 8] ^= 1 << (bit % 8)
    numbers = [int.from_bytes(row.tobytes()) for row in hashes]
    expected = {
        (i, j): bits
        for j in range(300)
        for i in range(j)
        if (bits := (numbers[i] ^ numbers[j]).bit_count()) <= NEAR_BITS
    }
    found = [tuple(row) for portion in near_pairs(hashes) for row in portion.tolist()]
    assert len(found) == len(set(found))
    assert {(i, j): bits for i, j, bits in found} == expected
    assert len(expected) > 50


def test_a_thousand_copies_are_999_pairs():
    hashes = np.repeat(np.random.default_rng(1).integers(0, 256, (1, 32), np.uint8), 1000, 0)
    assert sum(len(portion) for portion in near_pairs(hashes)) == 999


def _bytes(*texts: str) -> np.ndarray:
    return np.stack([np.frombuffer(exact_digest(text.encode()), np.uint8) for text in texts])


def test_the_copy_in_test_stays_and_the_one_in_train_goes():
    near = np.random.default_rng(2).integers(0, 256, (4, 32), np.uint8)
    exact = _bytes("a", "b", "a", "c")
    assert copies(exact, near, [2, 0, 0, 1], [None] * 4) == [Copy(2, 0, None)]


def test_dropping_copies_leaves_none_near_another():
    rng = np.random.default_rng(3)
    near = np.repeat(rng.integers(0, 256, (20, 32), np.uint8), 5, 0)
    for row in near:
        row[rng.integers(32)] ^= 1 << int(rng.integers(8))
    exact = _bytes(*(str(i // 2) for i in range(100)))
    found = copies(exact, near, rng.integers(0, 3, 100).tolist(), [None] * 100)
    gone = {copy.copy for copy in found}
    assert len(gone) == 80
    stay = [i for i in range(100) if i not in gone]
    assert not list(near_pairs(near[stay]))


def test_frames_of_one_person_are_no_copies():
    near = np.repeat(np.random.default_rng(4).integers(0, 256, (1, 32), np.uint8), 3, 0)
    exact = _bytes("a", "b", "c")
    assert not copies(exact, near, [2, 2, 0], ["Ada"] * 3)
    assert [copy.copy for copy in copies(exact, near, [2, 2, 0], ["Ada", "Bob", "Cyd"])] == [0, 1]


def test_faces_of_one_picture_are_no_copies():
    near = np.repeat(np.random.default_rng(4).integers(0, 256, (1, 32), np.uint8), 4, 0)
    exact = _bytes("a", "b", "b", "c")
    photos = ["1.png", "2.png", "2.png", "1.png"]
    assert [copy.copy for copy in copies(exact, near, [2] * 4, [None] * 4, photos)] == [1]
    assert [copy.copy for copy in copies(exact, near, [2] * 4, [None] * 4)] == [1, 2, 3]
