"""Strict YAML: a text becomes a typed config, or one error that lists every mistake with its place."""

import difflib
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from hpe.config import recipes
from hpe.core.errors import UserError, mistakes
from hpe.core.nearest import did_you_mean

Places = dict[tuple[Any, ...], str]
"""Where each value was given, by its path in the config: ``FILE:LINE:COLUMN``, or ``--set PATH=VALUE``."""


class Section(BaseModel):
    """A part of a config: unknown keys and wrong types are errors. The text below a field is its description."""

    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


T = TypeVar("T", bound=Section)


def load(path: Path, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """The config in a YAML file, with ``--set`` overrides such as ``train.learning_rate=3e-4``.

    Raises:
        UserError: every mistake in the file and the overrides, one per line with its place.
    """
    return parse(_text_of(path), str(path), schema, overrides)


def _text_of(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{path}: cannot read this config: {reason}; expected a YAML file"
            + (recipes.way_to(path) or f" (`hpe configs` lists those of hpe){did_you_mean(path) * (not path.exists())}")
        ) from error


def parse(text: str, name: str, schema: type[T], overrides: Sequence[str] = ()) -> T:
    """As :func:`load`, from a text; messages use ``name`` as the file's name."""
    raw, places = _compose(text, name)
    for override in overrides:
        _override(raw, places, override)
    try:
        # JSON mode is strict about types, yet accepts YAML's lists where the schema has tuples. YAML's dates become
        # texts here, so that the schema refuses them as it refuses any text.
        return schema.model_validate_json(json.dumps(raw, default=str))
    except ValidationError as invalid:
        problems = _messages(invalid, schema, name, places)
        raise UserError(mistakes(problems)) from invalid
    except (TypeError, ValueError) as error:
        raise UserError(f"{name}: {error}") from error


def dump(value: Any) -> str:
    """A value as YAML that :func:`parse` reads back as it is."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def setting(path: str, value: str) -> str:
    """``PATH=VALUE`` for ``--set``, of a text that is no YAML, such as a folder: ``run="runs/a #b"``.

    It is quoted only where YAML would read something else, as people read these commands, too.
    """
    return f"{path}={value if dump(value) == f'{value}{_PLAIN}' else quoted(value)}"


def quoted(value: str) -> str:
    """A text in quotes, for YAML of one line that a program writes."""
    quotes: Any = '"'
    return yaml.dump(value, Dumper=_Dumper, default_style=quotes, allow_unicode=True, width=math.inf).rstrip("\n")


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the numbers of YAML 1.2: by YAML 1.1, PyYAML reads ``1e-3`` as a text."""


class _Dumper(yaml.SafeDumper):
    """Quotes the texts that :class:`_Loader` would read as numbers: a run folder called ``1e3``."""


for _one in (_Loader, _Dumper):
    _one.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?$"),
        list("-+.0123456789"),
    )
# Plain digits stay integers: PyYAML tries resolvers in order, and its own for integers comes first.
_PLAIN: Final = "\n...\n"
"""What PyYAML writes behind a text that needs no quotes."""
_FILE_LIMIT: Final = 1 << 20
_DEEPEST: Final = 32
_SHOWN: Final = 200
_INDEX: Final = re.compile(r"[0-9]{1,9}")
"""The number of an item of a list. ``str.isdigit`` is true of ``²``, and ``int`` refuses very many digits."""


def _compose(text: str, name: str) -> tuple[dict[str, Any], Places]:
    with _yaml_errors(name) as loader_of:
        loader = loader_of(text)
        node = loader.get_single_node()
        places: Places = {}
        if not isinstance(node, yaml.MappingNode):
            raise UserError(f"{name}: expected sections such as data:, model: and train:, found no mapping")
        _note_places(node, (), name, places)
        return loader.construct_document(node), places


@contextmanager
def _yaml_errors(name: str) -> Iterator[Callable[[str], _Loader]]:
    """Gives a function that makes a loader from a text; YAML's errors inside become one message."""
    try:
        yield partial(_loader, name=name)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}:{mark.column + 1}" if mark and not name.startswith("--set") else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        if "'\\t'" in problem:
            problem = "a tab; indent with spaces, not tabs"
        raise UserError(f"{name}{place}: not YAML: {problem}") from error
    except UserError:
        raise
    except (OverflowError, ValueError) as error:
        raise UserError(f"{name}: not a config: {error}") from error


def _loader(text: str, name: str) -> _Loader:
    """A loader for a text that cannot exhaust memory or recursion: size, depth and aliases are limited first."""
    if len(text) > _FILE_LIMIT:
        raise UserError(f"{name}: {len(text):,} characters; a config may have at most {_FILE_LIMIT:,}")
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.AliasEvent):
            raise UserError(f"{name}: YAML aliases (*name) are not allowed; write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _DEEPEST:
            raise UserError(f"{name}: lists and mappings are nested more than {_DEEPEST} deep; no config needs that")
    return _Loader(text)


def _note_places(node: yaml.Node, path: tuple[Any, ...], name: str, places: Places) -> None:
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            where = f"{name}:{key.start_mark.line + 1}:{key.start_mark.column + 1}"
            if not isinstance(key, yaml.ScalarNode) or key.value in seen:
                raise UserError(f"{where}: the key {getattr(key, 'value', key)!r} appears twice or is not a text")
            seen.add(key.value)
            places[*path, key.value] = where
            _note_places(value, (*path, key.value), name, places)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            places[*path, index] = f"{name}:{value.start_mark.line + 1}:{value.start_mark.column + 1}"
            _note_places(value, (*path, index), name, places)


def _override(raw: dict[str, Any], places: Places, given: str) -> None:
    """Apply one ``--set PATH=VALUE`` to a config as it was read, before it is checked."""
    path, value, name = _parse_override(given)
    _set(_walk(raw, path, name), path, value, name)
    places[path] = name
    for end in range(1, len(path)):  # sections that the override itself has made have no place in the file
        places.setdefault(path[:end], name)


def _parse_override(given: str) -> tuple[tuple[str | int, ...], Any, str]:
    """The path, the value (read as YAML), and the option as messages show it."""
    dotted, equals, text = given.partition("=")
    name = f"--set {given if len(given) <= _SHOWN else f'{given[:_SHOWN]}…'}"
    if not equals or not dotted:
        raise UserError(f"{name}: expected PATH=VALUE, for example --set train.learning_rate=3e-4")
    with _yaml_errors(name) as loader_of:
        value = loader_of(text).get_single_data()
    return tuple(int(part) if _INDEX.fullmatch(part) else part for part in dotted.split(".")), value, name


def _walk(raw: dict[str, Any], path: tuple[str | int, ...], name: str) -> Any:
    """The mapping or list that holds the last part of a path; sections that are missing are made."""
    at: Any = raw
    for end, (part, following) in enumerate(pairwise(path), 1):
        if isinstance(at, list) and isinstance(part, int) and part < len(at):
            at = at[part]
        elif isinstance(at, dict):
            if not isinstance(at.get(part), dict | list):
                if isinstance(following, int):
                    raise UserError(f"{name}: the config has no list {_dotted(path[:end])}")
                at[part] = {}
            at = at[part]
        else:
            raise UserError(f"{name}: the config has no {_dotted(path[:end])}")
    return at


def _dotted(path: tuple[str | int, ...]) -> str:
    return ".".join(map(str, path))


def _set(holder: Any, path: tuple[str | int, ...], value: Any, name: str) -> None:
    last = path[-1]
    if isinstance(holder, list) and not (isinstance(last, int) and last < len(holder)):
        raise UserError(f"{name}: the list has {len(holder)} items, numbered from 0")
    if not isinstance(holder, dict | list):
        raise UserError(f"{name}: the config has no {_dotted(path)}")
    holder[last] = value  # pyright: ignore[reportCallIssue, reportArgumentType] (a list by number, a mapping by name)


def _messages(invalid: ValidationError, schema: type[Section], name: str, places: Places) -> Iterator[str]:
    for error in invalid.errors(include_url=False):
        location = tuple(part for part in error["loc"] if not _is_union_tag(part))
        where = next((places[location[:end]] for end in range(len(location), 0, -1) if location[:end] in places), name)
        dotted = ".".join(map(str, location)) or "config"
        message = error["msg"].removeprefix("Value error, ")
        match error["type"]:
            case "extra_forbidden":
                known = _known_keys(schema, location[:-1])
                close = difflib.get_close_matches(str(location[-1]), known, 1)
                message = "unknown key" + (
                    f"; did you mean {close[0]!r}?" if close else f"; known keys: {', '.join(known)}"
                )
            case "missing":
                message = "is missing"
            case _ if error["type"] != "value_error":
                found = error["input"]
                shown = repr(found) if isinstance(found, str) else json.dumps(found)
                message = f"{_expected(message)}, found {shown[:80]}"
        yield f"{where}: {dotted}: {message}"


def _expected(message: str) -> str:
    """Pydantic's "Input should be …" in the words of hpe's other messages."""
    what = message.removeprefix("Input should be ")
    if what == message:
        return f"{message[0].lower()}{message[1:]}"
    if what.startswith(("greater", "less")):
        what = f"a number {what}"
    return f"expected {what.replace('a valid ', 'a ').replace('a integer', 'an integer').replace('a string', 'a text')}"


def _is_union_tag(part: object) -> bool:
    """Pydantic puts the tried member of a union into the path: ``str``, ``list[str]``."""
    return isinstance(part, str) and (part in ("str", "bool", "int", "float") or part.startswith("list["))


def _known_keys(schema: type[BaseModel], location: Sequence[Any]) -> list[str]:
    at: Any = schema
    for part in location:
        if isinstance(part, int):
            continue
        field = at.model_fields.get(part)
        at = _model_of(field.annotation) if field else None
        if at is None:
            return []
    return list(at.model_fields)


def paths_to(schema: type[BaseModel], name: str, path: str = "") -> Iterator[str]:
    """The dotted path of every key of a config with this name; of lists, in their first item."""
    for key, field in schema.model_fields.items():
        if key == name:
            yield path + key
        elif (section := _model_of(field.annotation)) is not None:
            item = ".0." if "list[" in str(field.annotation) else "."
            yield from paths_to(section, name, f"{path}{key}{item}")


def _model_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((m for a in getattr(annotation, "__args__", ()) if (m := _model_of(a))), None)
