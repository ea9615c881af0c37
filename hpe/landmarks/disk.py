"""Errors with the files of ``hpe landmarks``, as messages."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hpe.core.errors import UserError, unwritable


@contextmanager
def writing(out: Path) -> Iterator[None]:
    """Around everything that writes to OUT.

    Raises:
        UserError: OUT cannot be written to, or the disk is full.
    """
    try:
        yield
    except OSError as error:
        raise unwritable(str(out), error) from error


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file of this package.

    Raises:
        UserError: the file is damaged.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError("not a JSON object")
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); remove it and run the command again") from error
    return found
