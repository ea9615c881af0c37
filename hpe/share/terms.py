"""May a network be published? The datasets that it was trained on, and what their terms allow."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpe.core.errors import UserError
from hpe.models.run_folder import is_run, load_config, pretrained, training_sets

_SHOWN = ("dataset", "variant", "licence", "publishable")
_WAY_OUT = (
    "ask who gives the dataset; if you may publish weights trained on it, say why with --permitted 'REASON' "
    "(permitted=… in Python), which the model card quotes"
)


def trained_on(run: Path, after: Collection[Path] = ()) -> list[dict[str, Any]]:
    """The datasets of a run's training and of the run that its weights started from, each once.

    Args:
        run: its folder.
        after: runs that started from this one: a config can name its own run.

    Raises:
        UserError: a record is damaged.
    """
    if (known := pretrained(run)) is not None and isinstance(terms := known.get("terms"), list):
        return [dict(one) for one in terms if isinstance(one, dict)]
    found = [{name: one.get(name) for name in _SHOWN} for one in training_sets(run)]
    start = load_config(run).model.weights
    if start not in ("none", "hub"):
        before = Path(start)
        runs = {*after, run.resolve()}
        followed = is_run(before) and before.resolve() not in runs
        found += trained_on(before, runs) if followed else [_unknown(start)]
    return [one for at, one in enumerate(found) if one not in found[:at]]


def _unknown(start: str) -> dict[str, Any]:
    return {"dataset": f"unknown: the weights that it started from ({Path(start).name})", "publishable": None}


def refuse_unpublishable(run: Path, sets: Sequence[Mapping[str, Any]], permitted: str | None) -> None:
    """Refuse to publish what a dataset's terms forbid, or what nothing is known about.

    Args:
        run: for the message.
        sets: of :func:`trained_on`.
        permitted: the user's own statement that it is allowed.

    Raises:
        UserError: it may not be published.
    """
    if permitted is not None:
        if not permitted.strip():
            raise UserError("--permitted: an empty reason; say why these weights may be published")
        return
    if not sets:
        raise UserError(f"{run}: may not be published: it does not record what it was trained on; {_WAY_OUT}")
    for one in sets:
        if one.get("publishable") is not True:
            terms = one.get("licence") or "no terms are known"
            raise UserError(f"{run}: may not be published: trained on {one.get('dataset')} ({terms}); {_WAY_OUT}")
