"""Foreign ``.npz`` files: whatever is wrong with one, it is one kind of error."""

import io
import zipfile

import numpy as np
import pytest

from hpe.data.arrays import read_npz


def _npz(member: bytes) -> bytearray:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("a.npy", member)
    return bytearray(file.getvalue())


def _npy(count: int) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({count},), }}".encode()
    header += b" " * (117 - len(header)) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def test_arrays_are_read_by_name() -> None:
    file = io.BytesIO()
    np.savez(file, a=np.arange(3), b=np.ones(2))
    file.seek(0)
    b, a = read_npz(file, ("b", "a"), 1 << 20)
    assert (a.tolist(), b.tolist()) == ([0, 1, 2], [1.0, 1.0])
    file.seek(0)
    with pytest.raises(ValueError, match="c is not a file"):
        read_npz(file, ("c",))


def test_damage_is_one_kind_of_error() -> None:
    corrupt, encrypted = _npz(_npy(3)), _npz(_npy(3))
    corrupt[45:60] = b"\xff" * 15
    for at in (6, encrypted.find(b"PK\x01\x02") + 8):
        encrypted[at] |= 1
    for data, why in (
        (b"", "not a zip file"),
        (corrupt, "Error -3|CRC"),
        (encrypted, "encrypted"),
        (_npz(_npy(10**13)), "allocate|array"),
        (_npz(_npy(100)), "reading array data"),
        (_npz(b"no array"), "a is no array"),
        (_npz(b""), "a is no array"),
    ):
        with pytest.raises(ValueError, match=why):
            read_npz(io.BytesIO(bytes(data)), ("a",))
    with pytest.raises(ValueError, match="more than the 10 allowed"):
        read_npz(io.BytesIO(bytes(_npz(_npy(0)))), ("a",), 10)
