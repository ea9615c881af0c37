"""A run's model card in Markdown: what it was trained on, how well it predicts, and its limits."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from hpe.core.labels import EMOTIONS
from hpe.metrics.markdown import cell, conditions, headline, percent, table, warnings
from hpe.models.run_folder import DONE_SHARE
from hpe.report.load import Evaluation, Run

_RARE: Final = 30
_WEAK_SHARE: Final = 0.5
_NOT_SHOWN: Final = ("name", "title", "split", "identity", "trained_on", "warnings")
_READS: Final = {
    "emotion": "emotion",
    "direction": "direction of the head (forward, left, right, up, down)",
    "pose": "head pose (yaw, pitch, roll)",
    "affect": "valence and arousal",
}


def model_card(run: Run) -> str:
    """The card of a run; missing facts are given as unknown."""
    parts = [
        f"# Model card: {cell(run.name)}",
        f"Predicts {_reads(run)} of one face {_source(run)}. Written by `hpe report`.",
        "## Made from",
        table(["what", "value"], list(_origin(run))),
    ]
    if not run.evaluations:
        parts += ["## Metrics", "None: the run was not evaluated (`hpe evaluate RUN SHARDS`)."]
    for one in run.evaluations:
        rows = [(name, value, f"{n:,}") for name, value, n in headline(one.figures)]
        parts += [
            f"## Metrics on {cell(one.title)}",
            *[f"Checkpoint: {cell(one.checkpoint)}."] * bool(one.checkpoint),
            *map(cell, conditions(one.about)),
            table(["metric", "value (95 % interval)", "samples"], rows),
        ]
    parts += ["## Limits", "\n".join(f"- {limit}" for limit in _limits(run))]
    parts += ["## Config", _fenced(run.config_text or "unknown: no config.yaml in the run folder", "yaml")]
    return "\n\n".join(parts) + "\n"


def _reads(run: Run) -> str:
    """What the run's heads predict; if its config names none, what its evaluations contain."""
    heads = _at(run.config, ("model", "heads"))
    on = [name for name in _READS if isinstance(heads, Mapping) and heads.get(name) is not None]
    if not on:
        keys = {"emotion": "per_class", "direction": "per_class", "pose": "all"}
        on = [name for name, key in keys.items() if any(key in one.figures[name] for one in run.evaluations)]
    names = [_READS[name] + (_emotions(run) if name == "emotion" else "") for name in on] or ["something unknown"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _emotions(run: Run) -> str:
    """The emotions that the run was trained on; it gives the others too, with arbitrary probabilities."""
    of_results = (one.trained_emotions for one in run.evaluations)
    learned = run.trained.classes.get("emotion") or next((one for one in of_results if one), None)
    if learned is None:
        return " (on which emotions it was trained is not recorded)"
    names = ", ".join(name for index, name in enumerate(EMOTIONS) if index in learned)
    lacking = [name for index, name in enumerate(EMOTIONS) if index not in learned]
    return f" ({names}; never trained on {', '.join(lacking)})" if lacking else f" ({names})"


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
        yield title, "unknown" if value is None else _sentence(value)
    facts: dict[str, str] = {}
    for one in run.evaluations:
        shown = {name: value for name, value in one.about.items() if name not in _NOT_SHOWN}
        facts |= {f"{one.title}: {name}": _short(value) for name, value in shown.items()}
    yield from facts.items()
    if not any("commit" in name for name in facts):
        yield "commit", "unknown"


def _at(config: Mapping[str, Any], path: tuple[str, ...]) -> Any:
    value: Any = config
    for key in path:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


def _sentence(value: Any) -> str:
    """A setting as a part of a sentence: shards first, then their other settings."""
    if isinstance(value, list):
        return "; ".join(map(_sentence, value))
    if isinstance(value, Mapping) and "shards" in value:
        others = {k: v for k, v in value.items() if k != "shards" and v is not None and (k, v) != ("weight", 1.0)}
        more = ", ".join(f"{key.replace('pose', 'pose tables')} {text}" for key, text in others.items())
        return _sentence(value["shards"]) + (f" ({more})" if more else "")
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_sentence(text)}" for key, text in value.items())
    return str(value)


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 3:
        return f"{', '.join(map(str, value[:3]))} and {len(value) - 3} more"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _limits(run: Run) -> Iterator[str]:
    reached = max((value for _, value in run.curves.get("epoch", {}).get("train", [])), default=None)
    wanted = _at(run.config, ("train", "epochs"))
    if reached is not None and isinstance(wanted, int | float) and reached < DONE_SHARE * wanted:
        patient = "`train.patience` has ended it, or " if _at(run.config, ("train", "patience")) else ""
        yield (
            f"Its log ends at epoch {reached:.3g} of {wanted:g}: {patient}the training was stopped early or is not "
            "finished."
        )
    for one in run.evaluations:
        yield from _limits_of(one)
    yield (
        "Expressions are not feelings: the labels record what annotators saw in a picture. Do not use this model for "
        "decisions about people."
    )
    yield "The metrics hold for faces cropped by the same rule as the shards named above, and for similar people."


def _limits_of(one: Evaluation) -> Iterator[str]:
    made, name = one.figures, cell(one.title)
    yield from (f"{name}: {cell(text)}" for text in warnings(one.about))
    for head in ("emotion", "direction"):
        section = made[head]
        if "per_class" not in section:
            yield f"{name}: {head} was not evaluated ({section['reason']})."
            continue
        classes = section["per_class"].items()
        rare = [f"{label} ({c['support']})" for label, c in classes if 0 < c["support"] < _RARE]
        if rare:
            yield f"{name}: few samples of {', '.join(rare)}; their metrics are uncertain."
        weak = [
            f"{label} ({percent(c['recall'])})"
            for label, c in classes
            if c["recall"]["value"] is not None and c["recall"]["value"] < _WEAK_SHARE
        ]
        if weak:
            yield f"{name}: more than half of the samples missed of {', '.join(weak)}."
    if "all" not in made["pose"]:
        yield f"{name}: head pose was not evaluated ({made['pose']['reason']})."
    if made["interval"]["unit"] == "image":
        yield f"{name}: no subjects are known, so intervals treat pictures of one person as independent."


def _fenced(text: str, language: str) -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
