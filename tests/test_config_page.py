"""docs/config.md lists what a run's config really takes."""

import json
import re
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from hpe.config.run import RunConfig
from hpe.study.config import BoostedConfig, DirectionsConfig, NetworkConfig, PicturesConfig, SetConfig, StudyConfig

PAGE = Path(__file__).parents[1] / "docs/config.md"
ROW = re.compile(r"\| `([\w.]+)` \| (.+?) \| (.+?) \| (.+) \|$")


def rows() -> list[tuple[str, str, str]]:
    """Key, type and default of everything that a config may say, from the models alone."""
    return list(of_model(RunConfig, ""))


def of_model(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str, str]]:
    """A section's own keys first, then those of the sections inside it."""
    sections = []
    for name, field in model.model_fields.items():
        inner = model_in(field.annotation)
        if inner is None or is_list(field.annotation) or is_optional(field.annotation):
            yield prefix + name, kind(field.annotation), default(field.default)
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
        return "list" if model_in(annotation) else f"list of {kind(parts[0])}s"
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


def test_the_page_lists_every_key_with_its_type_and_default_and_nothing_else() -> None:
    told = [found.groups() for line in PAGE.read_text().splitlines() if (found := ROW.match(line))]
    assert [row[:3] for row in told] == rows()
    assert all(len(meaning) > 3 for *_, meaning in told)


def test_every_section_and_head_is_there() -> None:
    keys = {key for key, _, _ in rows()}
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
