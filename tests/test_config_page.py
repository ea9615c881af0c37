"""docs/config.md lists every setting of a run, as hpe/config/run.py has it.

``python -m tests.test_config_page`` writes the tables of the page anew; its other text stays.
"""

import json
import re
import types
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hpe.config.run import RunConfig
from hpe.study.config import BoostedConfig, DirectionsConfig, NetworkConfig, PicturesConfig, SetConfig, StudyConfig

PAGE = Path(__file__).parents[1] / "docs/config.md"
HEAD = "| key | type | default | meaning |\n|---|---|---|---|\n"
ROW = re.compile(r"\| `([\w.]+)` \| (.+?) \| (.+?) \| (.+) \|\n")


class Row(NamedTuple):
    """One setting, as the page shows it."""

    key: str
    kind: str
    default: str
    meaning: str


def rows() -> list[Row]:
    """Everything that a config may contain, from the models alone."""
    return list(of_model(RunConfig, ""))


def of_model(model: type[BaseModel], prefix: str) -> Iterator[Row]:
    """A section's own keys first, then those of the sections inside it."""
    sections = []
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        if inner is None or is_list(field.annotation) or is_optional(field.annotation):
            meaning = " ".join((field.description or "").replace("``", "`").split())
            yield Row(prefix + name, kind(field.annotation), default(field.default), meaning)
        if inner is not None and name != "val":  # as train
            sections.append((inner, f"{prefix}{name}.{'N.' if is_list(field.annotation) else ''}"))
    for inner, path in sections:
        yield from of_model(inner, path)


def model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := model_in(part))), None)


def is_list(annotation: Any) -> bool:
    return get_origin(annotation) is list


def is_optional(annotation: Any) -> bool:
    return type(None) in get_args(annotation)


def kind(annotation: Any) -> str:
    """A type as a reader of YAML would say it."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " / ".join(f"`{part}`" for part in parts)
    if origin in (Union, types.UnionType):
        return " or ".join(kind(part) for part in parts if part is not type(None))
    if origin is list:
        return "list" if model_in(annotation) else f"list of {kind(parts[0])}" + "s" * (parts[0] is str)
    if origin is tuple:
        return f"{len(parts)} {kind(parts[0])}s"
    if hasattr(annotation, "__metadata__"):
        return kind(parts[0])
    if model_in(annotation):
        return "section"
    return {str: "text", int: "whole number", float: "number", bool: "true / false"}[annotation]


def default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value is None:
        return "–"
    return f"`{value}`" if isinstance(value, str) else f"`{json.dumps(value)}`"


def section(key: str) -> str:
    """The heading above a key's table: ``train`` for ``train.batch``."""
    parent = key.rpartition(".")[0]
    return {"": "the run", "data.train.N": "data.train.N / data.val.N"}.get(parent, parent)


def written(page: str) -> str:
    """The page with tables that hold exactly the rows of the models."""
    tables = {name: "".join(line(row) for row in some) for name, some in groupby(rows(), lambda row: section(row.key))}
    for name, table in tables.items():
        heading = f"\n## {name}\n\n{HEAD}"
        before, found, after = page.partition(heading)
        assert found, f"{PAGE.name} lacks the heading and table of {name}"
        page = before + heading + table + re.sub(rf"\A(?:{ROW.pattern})*", "", after)
    return page


def line(row: Row) -> str:
    return f"| `{row.key}` | {row.kind} | {row.default} | {row.meaning} |\n"


def test_the_page_lists_every_key_with_its_type_default_and_meaning_and_nothing_else() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert [Row(*found) for found in ROW.findall(page)] == rows(), "python -m tests.test_config_page writes them"
    assert page == written(page)


def test_every_setting_has_a_meaning() -> None:
    assert [row.key for row in rows() if len(row.meaning) < 10] == []


def test_writing_the_page_mends_a_stale_table_and_keeps_the_text() -> None:
    page = PAGE.read_text(encoding="utf-8")
    stale = page.replace("| `seed` | whole number |", "| `sead` | number |")
    assert stale != page
    assert written(stale) == page


def test_every_section_and_head_is_there() -> None:
    keys = {row.key for row in rows()}
    assert {"run", "data.train.N.shards", "augment.mixup", "model.heads.pose.kind", "train.batch"} <= keys


def test_the_page_of_the_study_names_every_key() -> None:
    page = (PAGE.parent / "study.md").read_text()
    keys = [
        *StudyConfig.model_fields,
        *SetConfig.model_fields,
        *NetworkConfig.model_fields,
        *BoostedConfig.model_fields,
    ]
    keys += [*PicturesConfig.model_fields, *DirectionsConfig.model_fields]
    assert [key for key in keys if not re.search(rf"[`.]{key}`", page)] == []


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
