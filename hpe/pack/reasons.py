"""Why rows did not become samples: equal faults counted together, and the values that a column cannot have."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

from hpe.core.labels import nearest_label

_MOST_VALUES: Final = 5
_LONGEST_VALUE: Final = 24
_QUOTED: Final = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|-?[\d.]+"""
_VALUE: Final = re.compile(rf"(?P<what>[a-z]\w*) (?P<value>{_QUOTED})(?: \([^)]*\))? is (?:none of|not) ")
"""How the reason for a value begins that its column cannot have: ``emotion 'glad' is none of``."""
_MARKS: Final = str.maketrans(dict.fromkeys("|<>`*[]\"'", "?"))
"""What Markdown and HTML would read as their own."""


def category(reason: str) -> str:
    """The kind of a reason, so that equal faults are counted together: without file names, quotations, numbers, and
    the text after a colon (kept once where a file is named or something cannot be read)."""
    kind = _PLACE.sub("", reason)
    kind = _PARTICULAR.sub(_in_general, kind)
    head, *rest = kind.split(": ")
    if head.startswith("cannot be"):
        rest = [piece for piece in rest if not piece.startswith("*.")]
    elif not head.startswith("*."):
        return head
    return ": ".join((head, *rest[:1]))


_PLACE: Final = re.compile(r" \([^\s()]+:\d+\)$")
_PARTICULAR: Final = re.compile(
    r"(?P<range>-?[\d,]+\.\.-?[\d,]+)|(?P<quoted>'[^']*'|\"[^\"]*\")|(?P<file>[^\s:()]*[^\s:().]\.(?P<ending>[A-Za-z]\w{1,4})\b)"
    r"(?P<line>:\d+)?|(?<![A-Za-z_])[-+±]?\d+(?:[,.]\d+)*(?![A-Za-z_])"
)


def _in_general(found: re.Match[str]) -> str:
    if found["range"]:
        return found["range"]
    if found["quoted"]:
        return "'…'"
    return f"*.{found['ending']}" if found["file"] else "N"


def values(reasons: Iterable[str]) -> dict[str, dict[str, int]]:
    """The most frequent values that a column cannot have, by the :func:`category` of their reason.

    They come from foreign files: each is shortened, without line breaks and without characters that steer a terminal or
    mean something in Markdown.
    """
    found: dict[str, Counter[str]] = {}
    for reason in reasons:
        if match := _VALUE.match(reason):
            found.setdefault(category(reason), Counter())[_plain(match["value"])] += 1
    return {kind: dict(counted.most_common(_MOST_VALUES)) for kind, counted in sorted(found.items())}


def _plain(value: str) -> str:
    text = value[1:-1] if value[0] in "'\"" else value  # of a repr, which has escaped what cannot be printed
    text = text.translate(_MARKS)
    return (text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…") or "''"


def values_note(kind: str, counted: Mapping[str, Any]) -> str:
    """These values in words: ``glad 4, sadd 3 (did you mean sad?)``; empty: this kind of reason has none.

    Args:
        kind: a category.
        counted: ``values`` and ``reasons`` of the counts of a manifest.
    """
    few = counted.get("values", {}).get(kind, {})
    what = kind.partition(" ")[0]
    texts = []
    for value, count in few.items():
        near = nearest_label(value, what)
        texts.append(f"{value} {count:,}" + (f" (did you mean {near}?)" if near else ""))
    if few and (others := counted["reasons"][kind] - sum(few.values())):
        texts.append(f"others {others:,}")
    return ", ".join(texts)
