"""The model card of a shared network: the card of its report, with terms and use, without paths of this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any, Final

import yaml

import hpe
from hpe.config.strict_yaml import dump
from hpe.metrics.markdown import cell, table
from hpe.models.run_folder import TrainedOn, name_of, pretrained
from hpe.report.load import Evaluation, Run, read_run
from hpe.report.model_card import model_card

_FACTS: Final = frozenset(
    (
        "name", "title", "split", "identity", "trained_on", "warnings", "precision", "views", "samples", "unreadable",
        "dataset", "variant", "licence", "publishable", "crop", "notes", "hpe", "commit",
    )
)  # fmt: skip
"""Facts of an evaluation that hold no paths; others, such as the command, stay at home."""
_PLACES: Final = ("weights", "shards", "estimated")
"""Facts that hold paths; their last parts say enough."""


def card(
    run: Path, weights: Path, config: Mapping[str, Any], sets: Sequence[Mapping[str, Any]], permitted: str | None
) -> str:
    """The README of a shared network.

    Args:
        run: its folder.
        weights: the file that is shared, of one of its checkpoints; results of others are left out.
        config: its settings without paths.
        sets: the datasets that it was trained on.
        permitted: the user's statement that it may be published, or None.
    """
    about = {
        "library_name": "hpe",
        "license": "other",
        "license_name": "see-training-data",
        "license_link": "README.md#training-data",
        "pipeline_tag": "image-classification",
        "tags": ["head-pose-estimation", "facial-expression-recognition"],
    }
    rows = [[cell(str(one.get(name))) for name in ("dataset", "variant", "licence", "publishable")] for one in sets]
    lines = [
        "## Use",
        f'```python\nimport hpe  # {hpe.__version__}\n\nmodel = hpe.load("hf://ORG/NAME")  # or the folder of these '
        'files\nprint(model("face.jpg")[0].to_dict())\n```',
        "## Training data",
        table(["dataset", "variant", "licence", "its images may be published"], rows),
        "The terms of these datasets may bind whoever uses weights that were trained on them.",
    ]
    if permitted:
        lines.append(f"Whoever published these weights states that it is permitted: {cell(permitted)}")
    front = yaml.safe_dump(about, sort_keys=False)
    return f"---\n{front}---\n\n" + "\n\n".join([_report(run, weights, config), *lines]) + "\n"


def _report(run: Path, weights: Path, config: Mapping[str, Any]) -> str:
    """The card that ``hpe report`` writes."""
    if pretrained(run) is not None:  # a shared network that is shared again
        if (run / "README.md").is_file():
            known = (run / "README.md").read_text(encoding="utf-8", errors="replace")
            return known.partition("\n---\n")[2].partition("\n## Use\n")[0].strip()
        found = Run(run, name_of(run), "", {}, {}, 0, (), TrainedOn.load(run))
    else:
        found = read_run(run)
    plain = replace(
        found,
        config=config,
        config_text=dump(dict(config)),
        evaluations=tuple(_without_places(one) for one in found.evaluations if one.is_of(weights)),
    )
    return model_card(plain).strip()


def _without_places(one: Evaluation) -> Evaluation:
    kept = {name: value for name, value in one.about.items() if name in _FACTS}
    return replace(one, about=kept | {name: _named(one.about[name]) for name in _PLACES if name in one.about})


def _named(value: Any) -> Any:
    """Paths in a fact as the names of their files."""
    if isinstance(value, list):
        return [_named(one) for one in value]
    return " ".join(PurePath(word).name or word for word in str(value).split(" "))
