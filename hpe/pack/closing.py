"""What ``hpe pack`` says in the end: what is wrong with the finished shards, and what comes next."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from hpe.config.recipes import way_to
from hpe.config.strict_yaml import setting
from hpe.core.errors import EXIT_INCOMPLETE, EXIT_OK
from hpe.core.labels import DIRECTIONS, EMOTIONS, SPLITS
from hpe.data.shards import QUARANTINE, Manifest
from hpe.pack.reasons import values_note

WARNING: Final = "WARNING: "
_LOUD: Final = (WARNING, "LEAK: ")
"""How the notes begin that are repeated after all others."""
_TABLES: Final = ("table", "huggingface")
_OWN: Final = ("folders", *_TABLES)
"""Readers of anybody's pictures, which have no config of their own."""


def split_warnings(counted: Mapping[str, Any], wanted: Iterable[str], planned: Iterable[str], drawn: bool) -> list[str]:
    """What speaks against a training on these splits.

    Args:
        counted: the counts of the manifest.
        wanted: splits that should have samples.
        planned: those that have rows.
        drawn: whether the splits are random.
    """
    found = []
    empty = [split for split in SPLITS if split in set(wanted) and not counted["splits"].get(split)]
    if refused := [split for split in empty if split in set(planned)]:
        found.append(f"{WARNING}no sample in {_listed(refused)}: none of the rows could become one ({QUARANTINE})")
    if few := [split for split in empty if split not in refused]:
        fewer = ", or draw no test with --test-share 0" if {"val", "test"} <= set(wanted) else ""
        found.append(
            f"{WARNING}no sample in {_listed(few)}: too few pictures, or people, to draw from; add some, one for each "
            f"split at least{fewer}, and pack into a new folder"
        )
    for head, names in (("emotion", EMOTIONS), ("direction", DIRECTIONS)):
        of = counted.get(head, {})
        train = of.get("train", {})
        lacking = {
            name: [split for split in SPLITS if of.get(split, {}).get(name)] for name in names if not train.get(name)
        }
        if any(train.get(name) for name in names) and (lost := {n: where for n, where in lacking.items() if where}):
            parts = "; ".join(f"{name}, which {_listed(where)} {_has(where)}" for name, where in lost.items())
            way = ", or draw other splits with --seed" * drawn
            found.append(f"{WARNING}train has no {parts}: a network cannot learn it; add pictures of it{way}")
    return found


def _listed(names: Iterable[str]) -> str:
    return " and ".join(names)


def _has(names: list[str]) -> str:
    return "has" if len(names) == 1 else "have"


def lost_warnings(counted: Mapping[str, Any], dataset: str) -> list[str]:
    """A warning where more than half of the rows are lost because a column holds other words than expected."""
    found = []
    for kind, count in _lost(counted).items():
        what, other = kind.partition(" ")[0], ""
        if dataset in _TABLES:
            other = f", or add a column with the expected ones and name it with --option columns={what}=COLUMN"
        found.append(
            f"{WARNING}{count:,} of {counted['read']:,} rows are lost: {kind}: {values_note(kind, counted)}; correct "
            f"these words{other}; then pack into a new folder"
        )
    return found


def _lost(counted: Mapping[str, Any]) -> dict[str, int]:
    reasons = counted.get("reasons", {})
    return {kind: reasons[kind] for kind in counted.get("values", {}) if 2 * reasons[kind] > counted["read"]}


def closing(manifest: Manifest, out: str) -> tuple[list[str], int]:
    """The last lines of the command, and its exit code: 1 where most rows were lost for the words in them."""
    quoted = shlex.quote(out)
    written = f"Written to {quoted}; check the images in {quoted}/contact-*.jpg."
    loud = [note for note in manifest.notes if note.startswith(_LOUD)]
    if _lost(manifest.counts):
        return [f"Written to {quoted}, without most of the rows.", *loud], EXIT_INCOMPLETE
    return [
        f"{written} Next: hpe pose {quoted} --estimator ESTIMATOR for angles, or {_next(manifest, out)}",
        *loud,
    ], EXIT_OK


def _next(manifest: Manifest, out: str) -> str:
    if "train" not in manifest.splits:
        return f"hpe evaluate RUN {shlex.quote(out)} --split {manifest.splits[0]}"
    config, way = _config(manifest)
    command = f"hpe train {config} {_set('train', out)}"
    if "val" not in manifest.splits:
        return f"{command} (it validates on a val split, which other shards must have{way})"
    return f"{command} {_set('val', out)}{way}"


def _set(split: str, out: str) -> str:
    return f"--set {shlex.quote(setting(f'data.{split}.0.shards', out))}"


def _config(manifest: Manifest) -> tuple[str, str]:
    """The config that fits the labels of anybody's pictures, and how to get it."""
    if manifest.dataset in _OWN:
        labelled = {name for of in manifest.counts.get("emotion", {}).values() for name in of}
        name = "own_images" if labelled & set(EMOTIONS) else "pose" if "angles" in manifest.counts else None
        if name is not None:
            path = Path("configs", f"{name}.yaml")
            return str(path), "" if path.is_file() else way_to(path)
    return "CONFIG", "; `hpe configs` lists those that come with hpe"
