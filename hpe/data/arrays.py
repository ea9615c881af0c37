"""Arrays of ``.npz`` files, which may be foreign: no pickle, no zip that unpacks to gigabytes, one kind of error."""

import zipfile
import zlib
from collections.abc import Sequence
from typing import IO

import numpy as np


def read_npz(file: IO[bytes], names: Sequence[str], most_bytes: int | None = None) -> list[np.ndarray]:
    """Some arrays of an open ``.npz``.

    Args:
        file: at its start.
        names: of the arrays.
        most_bytes: that all of its arrays may have, unpacked; None: as many as there is memory for.

    Raises:
        ValueError: it is none, it lacks one of them, it is damaged or too large, or holds Python objects.
    """
    try:
        with zipfile.ZipFile(file) as members:
            size = sum(member.file_size for member in members.infolist())
        if most_bytes is not None and size > most_bytes:
            raise ValueError(f"its arrays have {size:,} bytes, more than the {most_bytes:,} allowed")
        file.seek(0)
        with np.load(file, allow_pickle=False) as arrays:
            found = [arrays[name] for name in names]
    except KeyError as error:
        raise ValueError(str(error.args[0])) from error
    # What numpy and zipfile raise for damage and for encryption; a header can ask for any amount of memory.
    except (OSError, EOFError, MemoryError, RuntimeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(str(error) or type(error).__name__) from error
    if other := next((name for name, one in zip(names, found, strict=True) if not isinstance(one, np.ndarray)), None):
        raise ValueError(f"{other} is no array")
    return found
