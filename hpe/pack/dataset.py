"""``hpe pack``: a raw dataset becomes clean, verified shards.

The job (``hpe.pack.job``) has three steps. The raw dataset's rows are read and kept in an unnamed file (the
labels of each picture, not the picture). Splits are drawn, and the rows of each split are ordered at random by
their keys, so that a shard is a fair sample of its split however the dataset was sorted. Then each shard is made
by one process from start to end (``hpe.pack.shard``). After a kill the same command makes only what is missing.
"""

import contextlib
import hashlib
import inspect
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

from hpe.core.console import say
from hpe.core.errors import DISK_FULL, EXIT_AGAIN, UserError, way_out
from hpe.core.files import locked, resolved, write_json
from hpe.core.process_pool import Stopped
from hpe.data.crops import CropRule
from hpe.data.shards import MANIFEST, Manifest
from hpe.pack import splits
from hpe.pack.job import Packing
from hpe.pack.journal import JOURNAL
from hpe.pack.options import MAX_MEGAPIXELS, Options
from hpe.sources import open_source, readers, recognise
from hpe.sources.base import Source, shown

_RENDERED: Final = "synthetic"
"""The one reader without a raw dataset."""
_OPTIONS_FILE: Final = "options.json"
_OPTION_WORDS: Final = {
    "drop": "--drop-duplicates", "raw": "the raw dataset", "source": "the reader", "variant": "what was found",
}  # fmt: skip
"""Recorded options that are not called as on the command line."""


def list_readers() -> str:
    """Every reader of raw datasets: what it reads, what it looks for, and its options with their defaults."""
    lines = [
        "hpe pack auto RAW OUT uses the first of these that recognises the folder; hpe pack NAME RAW OUT uses NAME."
    ]
    for reader in readers().values():
        what = " ".join((inspect.getdoc(reader.open) or "").partition("\n\n")[0].split()).replace("``", "")
        given = [p for p in inspect.signature(reader.open).parameters.values() if p.kind is p.KEYWORD_ONLY]
        lines += ["", reader.name, f"    {what}", f"    looks for: {reader.looks_for}"]
        if given:
            options = " ".join(f"--option {p.name}={'|'.join(reader.choices.get(p.name, (p.default,)))}" for p in given)
            lines.append(f"    options (the first value is the default): {options}")
    return "\n".join(lines)


def pack_source(
    name: str, paths: Sequence[str], reader_options: Sequence[str], workers: int | None, options: Options
) -> Manifest:
    """:func:`pack`, given the words of the command line.

    Args:
        name: of a reader, or ``auto``.
        paths: ``[RAW] OUT``.
        reader_options: each as KEY=VALUE.

    Raises:
        UserError: no such reader, no raw dataset, one path too many, or as :func:`pack`.
    """
    given = _key_values(reader_options)
    raw, out = _raw_and_out(name, paths)
    if name == _RENDERED:
        given.setdefault("size", str(options.size))
    try:
        if raw and Path(raw).is_dir() and resolved(Path(out)).is_relative_to(resolved(Path(raw))):
            raise UserError(f"{out}: the shards cannot lie in the raw dataset's own folder; name another one")
        if name == "auto":
            found = recognise(Path(raw))
            print(shown(f"{raw}: {found.name} ({found.why})"), flush=True)
            name = found.name
        source = open_source(name, Path(raw), **given)
    except OSError as error:
        raise UserError(
            f"{error.filename or raw}: cannot be read: {error.strerror or error}; name another folder"
        ) from error
    folder = Path(raw).name or resolved(Path(raw)).name * bool(raw)
    label = " ".join([folder, *(f"{key}={value}" for key, value in sorted(given.items()))]).strip()
    return pack(source, Path(out), options, label=shown(label), workers=workers, raw=Path(raw) if raw else None)


def _key_values(texts: Sequence[str]) -> dict[str, str]:
    given: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--option {text!r}: expected KEY=VALUE, such as splits=lists")
        if not value or key in given:
            why = "is given twice" if key in given else "has no value"
            raise UserError(f"--option {text!r}: {key} {why}; give it once, or leave it out for its default")
        given[key] = value
    return given


def _raw_and_out(name: str, paths: Sequence[str]) -> tuple[str, str]:
    if len(paths) == 1 and name == _RENDERED:
        return "", paths[0]
    if len(paths) == 2:
        return paths[0], paths[1]
    raise UserError(
        f"{' '.join(('hpe pack', name, *paths))}: expected two paths, RAW and OUT: the raw dataset "
        "and a folder for the shards (`hpe pack list` names the readers)"
    )


def pack(
    source: Source,
    out: Path,
    options: Options,
    *,
    label: str = "",
    workers: int | None = None,
    raw: Path | None = None,
) -> Manifest:
    """Write the shards of ``source`` to ``out`` and return their manifest, which is written last.

    Args:
        label: the raw dataset's name in the manifest, such as its folder's name and the reader's options.
        workers: processes; one per core when None. The bytes do not depend on it.
        raw: the raw dataset's folder: what it holds beside the rows is counted; None: nothing is counted.

    Raises:
        UserError: an impossible option, ``out`` holds something else, nothing could be packed, a full disk.
        SystemExit: stopped by a signal (75); run the same command again to resume.
    """
    options.check()
    options.check_shares(source.name, source.splits)
    workers = os.cpu_count() or 1 if workers is None else workers
    if workers < 1:
        raise UserError(f"--workers {workers}: expected 1 or more")
    try:
        recorded = _recorded(source, options, label)
        if isinstance(options.splits, Path):
            splits.Lists(options.splits)
        with _opened(out, recorded):
            if (out / MANIFEST).is_file():
                print(shown(f"{out}: finished already, nothing to do (`hpe verify {out}` checks it)"))
                return Manifest.load(out)
            return Packing(source, out, options, recorded, workers, raw).run()
    except BrokenPipeError:  # `hpe pack … | head`: the shards are finished, only the summary is not read
        raise
    except OSError as error:
        if error.errno in DISK_FULL:
            finished = len(list((out / JOURNAL).glob("*.tar.json")))
            raise UserError(
                f"{out}: the disk is full ({error.strerror}); {finished} finished shards stay. "
                "Free some space and run the same command again: it makes the missing ones"
            ) from error
        raise UserError(
            f"{error.filename or out}: cannot be written or read: {error.strerror or error}; "
            f"{way_out(error) or 'check the disk, or use another folder'}"
        ) from error
    except Stopped:
        say(f"hpe: stopped; finished shards stay in {out}; run the same command again to make the rest")
        raise SystemExit(EXIT_AGAIN) from None


def _recorded(source: Source, options: Options, label: str) -> dict[str, Any]:
    """The options as the manifest records them: only those that decide the bytes of these shards."""
    crop = source.default_crop if options.crop is None else options.crop
    if crop != "keep":
        crop = str(CropRule.parse(crop))
    recorded = asdict(options) | {"crop": crop, "source": source.name, "variant": source.variant, "raw": label}
    if isinstance(options.splits, Path):
        recorded["splits"] = f"lists {_digest_of_lists(options.splits)}"
    if options.max_megapixels == MAX_MEGAPIXELS:  # unsaid, as in the folders of older versions
        del recorded["max_megapixels"]
    if crop == "keep":
        for name in ("size", "grey", "quality"):
            del recorded[name]
    if crop.endswith("@detector"):
        from hpe.data.detect import open_detector

        recorded["detector"] = open_detector(options.detector).name
    else:
        del recorded["detector"]
    return recorded


def _digest_of_lists(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in splits.SPLITS:
        path = folder / f"{name}.txt"
        digest.update(path.read_bytes() if path.is_file() else b"")
        digest.update(b"\0")
    return digest.hexdigest()


@contextlib.contextmanager
def _opened(out: Path, recorded: Mapping[str, Any]) -> Iterator[None]:
    """Lock the folder, refuse other options than before, and remove half-written files of killed jobs."""
    work = out / JOURNAL
    new = not out.exists()
    if out.is_dir() and not work.is_dir() and not (out / MANIFEST).is_file() and any(out.iterdir()):
        raise UserError(f"{out}: holds files that `hpe pack` did not write; use an empty or a new folder")
    if out.exists() and not out.is_dir():
        raise UserError(f"{out}: is a file; expected a folder for the shards")
    work.mkdir(parents=True, exist_ok=True)
    with locked(work / "lock", f"{out}: another `hpe pack` is writing here; wait for it, or stop it"):
        _refuse_other_options(out, recorded)
        for folder in (out, work):
            for part in folder.glob(".*.part"):
                part.unlink(missing_ok=True)
        if not (out / MANIFEST).is_file():
            write_json(work / _OPTIONS_FILE, recorded)
        try:
            yield
        except BaseException:
            if not any(out.glob("*.tar")):  # nothing was made: the next command may have other options
                shutil.rmtree(work, ignore_errors=True)
                if new:
                    shutil.rmtree(out, ignore_errors=True)
            raise
    if (out / MANIFEST).is_file():
        shutil.rmtree(work)


def _refuse_other_options(out: Path, recorded: Mapping[str, Any]) -> None:
    before: Any = None
    if (out / MANIFEST).is_file():
        before = Manifest.load(out).options
    elif (out / JOURNAL / _OPTIONS_FILE).is_file():
        if not any(out.glob("*.tar")):  # nothing was finished: other options may start afresh
            for path in (out / JOURNAL).glob("*.tar.json"):
                path.unlink()
            return
        with contextlib.suppress(ValueError):
            before = json.loads((out / JOURNAL / _OPTIONS_FILE).read_text(encoding="utf-8"))
    if not isinstance(before, dict):
        return
    # What only one of the two has follows from another option that differs: --crop keep has no size. Only the limit of
    # megapixels is not recorded where it is the usual one.
    usual = {"max_megapixels": MAX_MEGAPIXELS}
    one, other = usual | before, usual | dict(recorded)
    differences = [
        f"{_OPTION_WORDS.get(name, '--' + name.replace('_', '-'))}: {_in_words(one[name])} there, "
        f"{_in_words(other[name])} now"
        for name in sorted(one.keys() & other.keys())
        if one[name] != other[name]
    ]
    if differences or one.keys() != other.keys():
        raise UserError(
            f"{out}: was packed with other options ({'; '.join(differences) or 'of an older version'}); use the same "
            "options or another folder, or delete this one"
        )


def _in_words(value: Any) -> str:
    """The recorded value of an option as a user would say it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "the default" if value is None else str(value)
