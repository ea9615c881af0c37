"""Small arrays of numbers from MATLAB 5 files, without trusting them.

``scipy.io.loadmat`` crashes the interpreter (segmentation fault) on some damaged files, and unpacks a compressed
element however large it is. This reads plain numeric arrays only, with limits. Format: MathWorks, "MAT-File Format",
the chapter on level 5.
"""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float64

from hpe.core.files import open_regular

LARGEST_FILE_BYTES: Final = 1 << 20
_LARGEST_ELEMENT_BYTES: Final = 4 << 20
_MATRIX: Final = 14
_COMPRESSED: Final = 15
_KINDS: Final = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_NUMERIC_CLASSES: Final = range(6, 16)
_COMPLEX_FLAG: Final = 0x0800
_MOST_DIMENSIONS: Final = 4


def mat_arrays(path: Path, names: tuple[str, ...]) -> dict[str, Float64[np.ndarray, "..."]]:
    """The named arrays of a small MATLAB 5 file, as float64; those that it lacks are left out.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, or is no regular file.
        ValueError: it is too large, damaged or of another version, or one of these arrays does not hold real
            numbers.
    """
    with open_regular(path) as stream:
        data = stream.read(LARGEST_FILE_BYTES + 1)
    if len(data) > LARGEST_FILE_BYTES:
        raise ValueError(f"{path.name}: more than the {LARGEST_FILE_BYTES:,} bytes of any pose file")
    try:
        return _arrays(data, names)
    except (ValueError, struct.error, zlib.error) as error:
        raise ValueError(f"{path.name}: not a MATLAB 5 file of small arrays: {error}") from error


def _arrays(data: bytes, names: tuple[str, ...]) -> dict[str, Float64[np.ndarray, "..."]]:
    order = {b"IM": "<", b"MI": ">"}.get(data[126:128])
    if order is None or not data.startswith(b"MATLAB 5.0"):
        raise ValueError(f"it starts with {data[:20]!r}")
    found = {}
    for kind, content in _elements(data[128:], order):
        if kind == _COMPRESSED:
            unpack = zlib.decompressobj()
            content = unpack.decompress(content, _LARGEST_ELEMENT_BYTES)
            if unpack.unconsumed_tail:
                raise ValueError(f"an element of more than {_LARGEST_ELEMENT_BYTES:,} bytes")
            kind, content = next(_elements(content, order), (0, b""))
        if kind == _MATRIX:
            name, array = _matrix(content, order, names)
            if array is not None:
                found[name] = array
    return found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Type and content of each data element; a small one holds its content, up to four bytes, within its tag."""
    at = 0
    while at + 8 <= len(data):
        kind, size = struct.unpack_from(f"{order}II", data, at)
        if kind >> 16:
            kind, size, start, step = kind & 0xFFFF, kind >> 16, at + 4, 8
            if size > 4:
                raise ValueError(f"a small element of {size} bytes")
        else:
            start = at + 8
            step = 8 + (size if kind == _COMPRESSED else (size + 7) // 8 * 8)
        if start + size > len(data):
            raise ValueError(f"truncated: an element of {size:,} bytes, {len(data) - start:,} are left")
        yield kind, data[start : start + size]
        at += step


def _matrix(content: bytes, order: str, names: tuple[str, ...]) -> tuple[str, Float64[np.ndarray, "..."] | None]:
    """Name and array of a matrix element; None for an array of another name."""
    parts = _elements(content, order)
    nothing = (0, b"")
    _, flags = next(parts, nothing)
    _, sizes = next(parts, nothing)
    _, name_bytes = next(parts, nothing)
    name = name_bytes.decode("latin-1")
    if name not in names:
        return name, None
    (flag,) = struct.unpack_from(f"{order}I", flags)
    if flag & 0xFF not in _NUMERIC_CLASSES or flag & _COMPLEX_FLAG:
        raise ValueError(f"{name} is not an array of real numbers (class {flag & 0xFF})")
    kind, values = next(parts, nothing)
    if kind not in _KINDS:
        raise ValueError(f"{name} holds data of type {kind}")
    numbers = np.frombuffer(values, np.dtype(order + _KINDS[kind])).astype(np.float64)
    shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes)
    if not 2 <= len(shape) <= _MOST_DIMENSIONS or min(shape) < 0 or int(np.prod(shape, dtype=object)) != len(numbers):
        raise ValueError(f"{name}: {len(numbers)} numbers for the shape {shape}")
    return name, numbers.reshape(shape, order="F")
