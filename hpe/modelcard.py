"""A run's model card in Markdown: what it was made from, how well it reads, and where not to trust it."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from hpe.figures.markdown import cell, headline, percent, table
from hpe.report_data import Evaluation, Run

_RARE: Final = 30
_WEAK_SHARE: Final = 0.5
_DONE_SHARE: Final = 0.999
"""Of the epochs: the last step may end a little before them."""
_READS: Final = {
    "emotion": "emotion (AffectNet's eight)",
    "direction": "direction of the head (forward, left, right, up, down)",
    "pose": "head pose (yaw, pitch, roll)",
    "affect": "valence and arousal",
}


def model_card(run: Run) -> str:
    """The card of a run; what is not known is said to be unknown."""
    parts = [
        f"# Model card: {cell(run.name)}",
        f"Reads {_reads(run)} of one face {_source(run)}. Written by `hpe report`.",
        "## Made from",
        table(["what", "value"], list(_origin(run))),
    ]
    if not run.evaluations:
        parts += ["## Figures", "None: the run was not evaluated (`hpe evaluate RUN SHARDS`)."]
    for one in run.evaluations:
        rows = [(name, value, f"{n:,}") for name, value, n in headline(one.figures)]
        parts += [f"## Figures on {cell(one.name)}", table(["figure", "value (95 % interval)", "samples"], rows)]
    parts += ["## Limits", "\n".join(f"- {limit}" for limit in _limits(run))]
    parts += ["## Config", _fenced(run.config_text or "unknown: no config.yaml in the run folder", "yaml")]
    return "\n\n".join(parts) + "\n"


def _reads(run: Run) -> str:
    """What the run's heads read; a run that names none is judged by its evaluations."""
    heads = _at(run.config, ("model", "heads"))
    on = [name for name in _READS if isinstance(heads, Mapping) and heads.get(name) is not None]
    if not on:
        judged = {"emotion": "per_class", "direction": "per_class", "pose": "all"}
        on = [name for name, key in judged.items() if any(key in one.figures[name] for one in run.evaluations)]
    told = [_READS[name] for name in on] or ["what is not known here"]
    return " and ".join([", ".join(told[:-1]), told[-1]] if len(told) > 1 else told)


def _source(run: Run) -> str:
    angles = _at(run.config, ("model", "backbone")) == "angles"
    return "from its three angles" if angles else "from a cropped picture"


def _origin(run: Run) -> Iterator[tuple[str, str]]:
    config = run.config
    for title, path in (
        ("backbone", ("model", "backbone")),
        ("trained on", ("data", "train")),
        ("chosen on", ("data", "val")),
        ("seed", ("seed",)),
    ):
        value = _at(config, path)
        yield title, "unknown" if value is None else _told(value)
    facts: dict[str, str] = {}
    for one in run.evaluations:
        facts |= {f"{one.name}: {name}": _short(value) for name, value in one.about.items() if name != "name"}
    yield from facts.items()
    if not any("commit" in name for name in facts):
        yield "commit", "unknown"


def _at(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _told(value: Any) -> str:
    """A setting as a sentence would say it: shards first, then what else is said of them."""
    if isinstance(value, list):
        return "; ".join(map(_told, value))
    if isinstance(value, Mapping) and "shards" in value:
        said = {k: v for k, v in value.items() if k != "shards" and v is not None and (k, v) != ("weight", 1.0)}
        more = ", ".join(f"{key.replace('pose', 'pose tables')} {text}" for key, text in said.items())
        return _told(value["shards"]) + (f" ({more})" if more else "")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_told(text)}" for key, text in value.items())
    return str(value)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"{', '.join(map(str, value[:3]))} and {len(value) - 3} more"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _limits(run: Run) -> Iterator[str]:
    reached = max((value for _, value in run.curves.get("epoch", {}).get("train", [])), default=None)
    wanted = _at(run.config, ("train", "epochs"))
    if reached is not None and isinstance(wanted, int | float) and reached < _DONE_SHARE * wanted:
        yield (
            f"Its log ends at epoch {reached:.3g} of {wanted:g}: the training was stopped early or is not finished, "
            "and the figures are of what it had come to."
        )
    for one in run.evaluations:
        yield from _limits_of(one)
    yield (
        "Expressions are not feelings: the labels say what annotators saw in a picture. Do not use this for "
        "decisions about people."
    )
    yield "Figures hold for faces cropped by the same rule as the shards named above, and for people like theirs."


def _limits_of(one: Evaluation) -> Iterator[str]:
    made, name = one.figures, cell(one.name)
    for head in ("emotion", "direction"):
        section = made[head]
        if "per_class" not in section:
            yield f"{name}: {head} was not judged ({section['reason']})."
            continue
        classes = section["per_class"].items()
        rare = [f"{label} ({c['support']})" for label, c in classes if c["support"] < _RARE]
        if rare:
            yield f"{name}: few samples of {', '.join(rare)}; their figures are uncertain."
        weak = [
            f"{label} ({percent(c['recall'])})"
            for label, c in classes
            if c["recall"]["value"] is not None and c["recall"]["value"] < _WEAK_SHARE
        ]
        if weak:
            yield f"{name}: more than half missed of {', '.join(weak)}."
    if "all" not in made["pose"]:
        yield f"{name}: head pose was not judged ({made['pose']['reason']})."
    if made["interval"]["unit"] == "image":
        yield f"{name}: no subjects are known, so intervals treat pictures of one person as independent."


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
