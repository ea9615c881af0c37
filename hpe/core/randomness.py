"""Random numbers as pure functions: the same key gives the same numbers, on every machine and version.

A library's generator has a state to carry and a sequence that may change with its version; a hash has
neither, so the order of samples and their augmentation follow from (seed, position) alone.
"""

import numpy as np
from jaxtyping import Float64, Int64, UInt64

_MASK = 0xFFFFFFFFFFFFFFFF


def hashes(*key: int, count: int) -> UInt64[np.ndarray, " count"]:
    """``count`` pseudo-random 64-bit numbers, a function of ``key`` (splitmix64; Steele et al., 2014)."""
    return _splitmix(np.arange(count, dtype=np.uint64) + _state(*key))


def permutation(*key: int, count: int) -> Int64[np.ndarray, " count"]:
    """A permutation of 0 .. count - 1, a function of ``key``."""
    return np.argsort(hashes(*key, count=count), kind="stable")


def uniforms(*key: int, positions: Int64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    """A number in [0, 1) per position, a function of ``key`` and that position."""
    bits = _splitmix(positions.astype(np.uint64) + _state(*key))
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _state(*key: int) -> np.uint64:
    state = np.zeros(1, np.uint64)
    for part in key:
        state = _splitmix(state ^ np.uint64(part & _MASK))
    return state[0]


def _splitmix(x: UInt64[np.ndarray, " n"]) -> UInt64[np.ndarray, " n"]:
    x = (x + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)  # arrays wrap without a warning
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
