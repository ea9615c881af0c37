"""What was probably meant by a path that does not exist."""

import difflib
import itertools
import os
from pathlib import Path
from typing import Final

_MOST_ENTRIES: Final = 2000
"""As many names are compared in a moment."""
_ALIKE: Final = 0.5
"""Below difflib's usual 0.6: two letters that changed places in ``mine`` leave 0.5."""
_MOST_MEANT: Final = 3


def did_you_mean(path: Path) -> str:
    """The end of a message about a path that does not exist: ``; did you mean runs/mine?``; empty: nothing is near."""
    near = _near(path)[:_MOST_MEANT]
    return f"; did you mean {' or '.join(map(str, near))}?" if near else ""


def _near(path: Path) -> list[Path]:
    if path.parent == path:
        return []
    found = []
    for parent in [path.parent] if path.parent.is_dir() else _near(path.parent):
        close = difflib.get_close_matches(path.name, _names(parent), _MOST_MEANT, _ALIKE)
        found += [parent / name for name in ([path.name] if path.name in close else close)]
    return found


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return [e.name for e in itertools.islice(entries, _MOST_ENTRIES) if not e.name.startswith(".")]
    except OSError:
        return []
