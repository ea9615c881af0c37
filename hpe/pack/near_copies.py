"""Pictures that are there twice: stored as the same bytes, or so similar that one is a copy of the other.

Similarity is judged by a difference hash (Krawetz, "Kind of like that", 2013) of 16 × 16 bits, taken from the
stored picture, so that two faces of one photo differ. Two hashes within ``NEAR_BITS`` agree exactly in at
least one of ``NEAR_BITS + 1`` bands: only pictures that share a band are compared, not every pair.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

import numpy as np
import xxhash
from jaxtyping import Float64, Int64, UInt8

DIGEST_BYTES: Final = 16
HASH_BYTES: Final = 32
NEAR_BITS: Final = 15
"""Of 256. In FER+ the 335 pairs of different files within 15 bits show one photo (90 of them,
and 60 of up to 24 bits, were looked at); two photos differ in about 120, seldom in fewer than 50."""
_GRID: Final = 16
_BANDS: Final = NEAR_BITS + 1
_RUN: Final = 2048
_AT_ONCE: Final = 128
"""Pictures; 56 × 56 numbers each."""
_ENOUGH_PIXELS: Final = 48
_CONTRAST: Final = 8.0
"""Grey levels between the darkest and the brightest mean; a flatter picture is like every other flat one."""


def exact_digest(stored: bytes) -> bytes:
    """16 bytes that are the same for pictures that are stored as the same bytes."""
    return xxhash.xxh3_128_digest(stored)


def thinned(grey: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "rows columns"]:
    """Every n-th pixel of a picture: what its difference hash is made of, a few kilobytes."""
    down, across = (max(1, length // _ENOUGH_PIXELS) for length in grey.shape)
    return np.ascontiguousarray(grey[::down, ::across])


def difference_hash(grey: UInt8[np.ndarray, "height width"]) -> bytes:
    """The hash of one picture: see :func:`difference_hashes`."""
    return difference_hashes([thinned(grey)])[0]


def difference_hashes(pictures: Sequence[UInt8[np.ndarray, "rows columns"]]) -> list[bytes]:
    """256 bits of each thinned picture: of 16 × 17 mean grey levels, whether each is brighter than its right neighbour.

    Zeros for a picture too small or too flat to differ from others; such hashes are never near. Many at once: numpy's
    calls for one alone take a twentieth of the time to pack it.
    """
    hashes = [bytes(HASH_BYTES)] * len(pictures)
    by_shape: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for place, picture in enumerate(pictures):
        by_shape[picture.shape].append(place)
    for (height, width), places in by_shape.items():
        if height < _GRID or width < _GRID + 1:
            continue
        down, across, pixels = _cells(height, width)
        for at in range(0, len(places), _AT_ONCE):
            some = places[at : at + _AT_ONCE]
            # Sums of whole numbers below 2^53, so that they are the same on every machine, in any order.
            cells = (down @ np.stack([pictures[place] for place in some]).astype(np.float64) @ across) / pixels
            bits = np.packbits((cells[..., :-1] > cells[..., 1:]).reshape(len(some), -1), axis=1)
            bits[np.ptp(cells, axis=(1, 2)) < _CONTRAST] = 0
            for place, own in zip(some, bits, strict=True):
                hashes[place] = own.tobytes()
    return hashes


@lru_cache(maxsize=64)
def _cells(
    height: int, width: int
) -> tuple[Float64[np.ndarray, "16 height"], Float64[np.ndarray, "width 17"], Float64[np.ndarray, "16 17"]]:
    """Ones where a row, and where a column, lies in a cell; and how many pixels each cell has."""

    def cells(length: int, parts: int) -> Float64[np.ndarray, "parts length"]:
        edges = np.arange(parts + 1) * length // parts
        place = np.arange(length)
        return ((edges[:-1, None] <= place) & (place < edges[1:, None])).astype(np.float64)

    down, across = cells(height, _GRID), cells(width, _GRID + 1)
    return down, across.T, np.outer(down.sum(1), across.sum(1))


def near_pairs(hashes: UInt8[np.ndarray, "samples 32"]) -> Iterator[Int64[np.ndarray, "pairs 3"]]:
    """Pairs i < j of different samples whose hashes differ in at most ``NEAR_BITS`` bits, each once.

    Rows of i, j and the number of differing bits. Samples of one and the same hash are paired with the first
    of them only, so that a thousand copies are 999 pairs. Hashes of zeros are left out.
    """
    known = np.flatnonzero(hashes.any(1))
    if len(known) < 2:
        return
    unique, first, member = np.unique(hashes[known], axis=0, return_index=True, return_inverse=True)
    first = known[first]
    same = first[member.reshape(-1)]
    copies = np.flatnonzero(same != known)
    if len(copies):
        yield np.stack((same[copies], known[copies], np.zeros_like(copies)), 1)
    # The same hashes twice: as 64-bit words to count differing bits, as 16-bit bands to find candidates.
    words = np.ascontiguousarray(unique).view(np.uint64)
    bands = np.ascontiguousarray(unique).view(np.uint16)
    for band in range(_BANDS):
        for left, right in _agreeing(bands[:, band]):
            # A pair that agrees in an earlier band has been seen there.
            fresh = ~(bands[left, :band] == bands[right, :band]).any(1)
            left, right = left[fresh], right[fresh]
            bits = np.bitwise_count(words[left] ^ words[right]).sum(1, dtype=np.int64)
            close = bits <= NEAR_BITS
            if close.any():
                pair = np.sort(np.stack((first[left[close]], first[right[close]]), 1), 1)
                yield np.column_stack((pair, bits[close]))


def _agreeing(values: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs of indices of equal values, in portions that fit in memory."""
    ranked = np.argsort(values, kind="stable")
    edges = np.flatnonzero(np.diff(values[ranked])) + 1
    starts, ends = np.concatenate(([0], edges)), np.concatenate((edges, [len(ranked)]))
    lengths = ends - starts
    # All runs of one length together: a loop over runs, of which there are as many as samples, would be Python's.
    for length in np.unique(lengths[lengths > 1]):
        runs = ranked[starts[lengths == length][:, None] + np.arange(length)]
        if length <= _RUN:
            low, high = np.triu_indices(length, 1)
            step = max(1, 2_000_000 // len(low))
            for at in range(0, len(runs), step):
                some = runs[at : at + step]
                yield some[:, low].reshape(-1), some[:, high].reshape(-1)
        else:
            for run in runs:
                for i in range(1, int(length)):
                    yield run[:i], np.broadcast_to(run[i], i)


@dataclass(frozen=True, slots=True)
class Copy:
    """Sample ``copy`` shows what sample ``first`` shows: indices, and how many bits differ."""

    first: int
    copy: int
    bits: int | None
    """None: they are stored as the same bytes."""


def copies(
    exact: UInt8[np.ndarray, "samples 16"],
    near: UInt8[np.ndarray, "samples 32"],
    rank: Sequence[int],
    subjects: Sequence[str | None],
    photos: Sequence[str | None] | None = None,
) -> list[Copy]:
    """Which samples are copies of which: dropping every ``copy`` keeps one of each.

    Samples are decided in order of ``rank``, then index: one that is a copy of a sample that stays is dropped. A
    picture that is near only to a dropped one stays; otherwise a long chain of pictures, each a little different
    from the one before, would be dropped whole.

    Args:
        exact, near: :func:`exact_digest` and :func:`difference_hash` of each sample.
        rank: of two copies, the one with the smaller rank stays.
        subjects: near pictures of one subject are frames of one film, not copies: never reported.
        photos: faces of one picture are not copies of each other, either.
    """
    in_order = np.lexsort((np.arange(len(exact)), np.asarray(rank)))
    _, first, member = np.unique(exact[in_order], axis=0, return_index=True, return_inverse=True)
    original = first[member.reshape(-1)]
    found = [
        Copy(int(in_order[original[place]]), int(in_order[place]), None)
        for place in np.flatnonzero(original != np.arange(len(original))).tolist()
        if not _same(photos, int(in_order[original[place]]), int(in_order[place]))
    ]

    queue: list[int] = in_order[original == np.arange(len(original))].tolist()
    before: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for portion in near_pairs(near[queue]):
        for i, j, bits in portion.tolist():
            if not _same(subjects, queue[i], queue[j]) and not _same(photos, queue[i], queue[j]):
                before[j].append((bits, i))
    instead: dict[int, int] = {}  # of each dropped sample: the one that stays
    for j in sorted(before):
        # near_pairs joins pictures of one hash only to the first of them, which may itself be dropped by now.
        known = [(bits, instead.get(i, i)) for bits, i in before[j] if bits == 0 or i not in instead]
        if known:
            bits, instead[j] = min(known)
            found.append(Copy(queue[instead[j]], queue[j], bits))
    return sorted(found, key=lambda c: c.copy)


def _same(names: Sequence[str | None] | None, one: int, other: int) -> bool:
    return names is not None and names[one] is not None and names[one] == names[other]
