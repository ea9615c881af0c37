"""``hpe landmarks compare``: every regressor on every kind of features by nested cross-validation.

Where each face's person is known (or the photo that several views show), all faces of one person are in one
outer fold, and in one inner fold. Settings are tuned on inner folds of the training part; the fitted regressor then
predicts the outer fold once. ``OUT/folds/<features>-<model>-<fold>.json`` is written when a fold is done, and the same
command run again does the missing ones.
"""

import hashlib
import json
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from hpe.core.devices import cores
from hpe.core.errors import UserError
from hpe.core.files import aside, locked, make_folder, write_json
from hpe.core.process_pool import Stopped, Workers
from hpe.core.progress import progress
from hpe.core.signals import signals
from hpe.landmarks.align import angles_of
from hpe.landmarks.disk import read_object
from hpe.landmarks.features import AlignedFeatures, Angles, Points
from hpe.landmarks.model import LandmarkModel
from hpe.landmarks.pnp import solve_pnp
from hpe.landmarks.regress import FEATURES, MODELS, STACK, STACKED, People, regressor, split, tuned
from hpe.landmarks.scores import Scores, scores
from hpe.landmarks.seed import PUBLISHED_MSE_RADIANS2, seed_row
from hpe.landmarks.table import LIMIT_DEGREES, NO_ANGLES, Faces, usable

FORMAT: Final = "hpe-landmarks-compare/1"
SUMMARY: Final = "compare.json"
STACK_FEATURES: Final = "aligned"
_FACES: Final = "faces.npz"
_LOCK: Final = "lock"
LEAST_FACES: Final = 100
LEAST_FACES_A_FOLD: Final = 20
_AFLW_WIDTH: Final = 450.0


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and how.

    Attributes:
        models: names of ``MODELS``, and ``stack``; None: all, without the stack where its features are not compared.
        features: names of ``FEATURES``.
        folds: outer folds.
        limit_degrees: faces with an angle beyond are dropped and counted (``math.inf``: none).
        picture_width: in pixels; solve-PnP takes it as the focal length.
        views: the mesh's views of the training faces, which the saved model will ask for again.
        seed_rows: add the regressors of the project that this one is modelled on, with its settings.
    """

    models: Sequence[str] | None = None
    features: Sequence[str] = tuple(FEATURES)
    folds: int = 5
    limit_degrees: float = LIMIT_DEGREES
    picture_width: float = _AFLW_WIDTH
    views: str | None = None
    seed_rows: bool = True


@dataclass(frozen=True)
class ModelResult:
    """The result of one regressor on one kind of features: a row of the table."""

    features: str
    model: str
    scores: Scores
    fit_seconds: float | None = None
    """For one outer fold, without tuning."""
    tune_seconds: float | None = None
    predict_milliseconds: float | None = None
    """Per face, from points to angles."""
    cpu_seconds: float | None = None
    """For all outer folds with tuning, on one core."""
    settings: Sequence[Any] | None = None
    """Chosen in each outer fold."""


@dataclass(frozen=True)
class _Task:
    features: str
    model: str
    fold: int
    cost: float

    @property
    def name(self) -> str:
        return f"{self.features}-{self.model}-{self.fold}"


def compare(
    faces: Faces, out: Path, options: CompareOptions = CompareOptions(), *, workers: int | None = None
) -> dict[str, Any]:
    """Compare, choose, fit the chosen regressor on all faces and save it in ``OUT/model``.

    Args:
        faces: points with angles.
        out: folder to write to.
        options: what is compared, and how.
        workers: processes; one per core by default.

    Returns:
        What ``compare.json`` holds.

    Raises:
        UserError: too few faces, an unknown name, a stack without its members, OUT holds the comparison of other
            faces, or another process is writing to it.
        Stopped: a signal was caught; finished folds are kept.
    """
    begun, given, folds = time.monotonic(), len(faces), options.folds
    workers = workers or cores()
    everyone, _ = usable(faces, limit_degrees=np.inf)
    faces, dropped = usable(faces, limit_degrees=options.limit_degrees)
    _check(faces, options, dropped)
    tasks = _tasks(options)
    seeds = tuple(PUBLISHED_MSE_RADIANS2) if options.seed_rows else ()
    with _alone(out):
        _settle(out, faces, folds)
        _save_faces(out, faces, everyone)
        _run(tasks, seeds, out, folds, workers)
    rows = [_row(out, kind, model, faces, folds) for kind, model in dict.fromkeys((t.features, t.model) for t in tasks)]
    rows.sort(key=lambda row: row.scores.mean_mae)
    # On a busy machine BLAS with one thread per core is slower than with one thread.
    with threadpool_limits(1):
        geometry = _geometry(faces, folds, options.picture_width)
    seed = [json.loads(_seed_file(out, name).read_text(encoding="utf-8")) for name in seeds]
    best = rows[0]
    final = _finished(best, faces, out, options.views)
    summary = {
        "format": FORMAT,
        "data_sha256": _digest(faces),
        "folds": folds,
        "points": faces.topology.name,
        "faces_given": given,
        "faces": len(faces),
        **_known_people(faces),
        "dropped": dropped,
        "left_out": _left_out(options),
        "rows": [asdict(row) for row in (*rows, *geometry)],
        "seed": seed,
        "chosen": {"features": best.features, "model": best.model, "settings": final, "why": _why(rows)},
        "cpu_seconds": round(sum(row.cpu_seconds or 0.0 for row in rows), 1),
        "seconds_of_this_run": round(time.monotonic() - begun, 1),
        "workers": workers,
    }
    write_json(out / SUMMARY, summary)
    return summary


def _check(faces: Faces, options: CompareOptions, dropped: dict[str, int]) -> None:
    folds, models = options.folds, _models(options)
    for what, names, known in (
        ("model", models, (*MODELS, STACK)),
        ("features", options.features, tuple(FEATURES)),
    ):
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"{what} {unknown[0]!r}: expected some of {', '.join(known)}")
    lacks = [name for name in STACKED if name not in models]
    lacks += [] if STACK_FEATURES in options.features else [f"{STACK_FEATURES} features"]
    if STACK in models and lacks:
        raise UserError(
            f"model {STACK!r}: without {', '.join(lacks)}; it combines {', '.join(STACKED)} on {STACK_FEATURES} "
            f"features; add what is missing, or leave {STACK} out"
        )
    if folds < 2:
        raise UserError(f"{folds} folds: expected 2 or more")
    people = _people(faces)
    if people is not None and (count := len(np.unique(people))) < folds:
        way = f"use --folds {count}" if count > 1 else "give faces of more people"
        raise UserError(f"people: {count}; expected one or more for each of {folds} outer folds; {way}")
    if len(faces) < (least := max(LEAST_FACES, LEAST_FACES_A_FOLD * folds)):
        lost = "; ".join(f"{count} dropped: {reason}" for reason, count in dropped.items()) or "none dropped"
        found = f"{len(faces)} usable faces ({lost})"
        most_folds = len(faces) // LEAST_FACES_A_FOLD
        if len(faces) >= LEAST_FACES:
            raise UserError(f"{found}: {folds} outer folds need {least}; use --folds {most_folds}, or give more faces")
        more = "angles for those without (--labels)" if NO_ANGLES in dropped else "more pictures with known angles"
        raise UserError(
            f"{found}: expected {LEAST_FACES} or more, with any number of folds, because with fewer the regressors "
            f"differ by chance only; give {more}"
        )


def _models(options: CompareOptions) -> Sequence[str]:
    """Those to compare; by default all, the stack only with its features."""
    return options.models or [*MODELS, *([STACK] if STACK_FEATURES in options.features else [])]


def _left_out(options: CompareOptions) -> dict[str, str]:
    """What is not compared although nobody chose models, and why."""
    return {} if options.models or STACK in _models(options) else {STACK: f"it needs {STACK_FEATURES} features"}


def _digest(faces: Faces) -> str:
    digest = hashlib.sha256(np.ascontiguousarray(faces.points).tobytes())
    digest.update(np.ascontiguousarray(faces.angles).tobytes())
    return digest.hexdigest()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Holds the folder's lock.

    Raises:
        UserError: another comparison is writing to the folder.
    """
    make_folder(out / "folds", f"{out}")
    taken = f"{out}: another comparison is writing to this folder; wait for it, or choose another folder"
    with locked(out / "folds" / _LOCK, taken):
        for part in (out / "folds").glob(".*.part"):  # of killed processes
            part.unlink()
        yield


def _settle(out: Path, faces: Faces, folds: int) -> None:
    path = out / "folds" / "settings.json"
    now: dict[str, Any] = {"data_sha256": _digest(faces), "folds": folds}
    if (people := _people(faces)) is not None:
        now["people_sha256"] = hashlib.sha256(people.tobytes()).hexdigest()
    if path.is_file() and (known := read_object(path)) != now:
        older = " (or another version of hpe made it)" if "people" in known else ""
        raise UserError(f"{out}: holds the comparison of other faces, people or folds{older}; choose another folder")
    write_json(path, now)


def _tasks(options: CompareOptions) -> list[_Task]:
    """Expensive tasks first, so that no core waits long at the end; stacks last, as they need the others."""
    slow = {"forest": 3, "svr": 4, "xgboost": 3, "network": 2}
    tasks = [
        _Task(kind, model, fold, cost)
        for model in _models(options)
        for kind in options.features
        for fold in range(options.folds)
        if model != STACK
        for cost in [slow.get(model, 1) * (0.1 if kind == "six" else 1.0)]
    ]
    tasks.sort(key=lambda task: -task.cost)
    if STACK in _models(options):
        tasks += [_Task(STACK_FEATURES, STACK, fold, 0.0) for fold in range(options.folds)]
    return tasks


def _save_faces(out: Path, faces: Faces, everyone: Faces) -> None:
    """The arrays that the worker processes read; ``everyone`` includes the outliers, as the seed did."""
    people = _people(faces)
    with aside(out / "folds" / _FACES) as part, part.open("wb") as stream:
        np.savez(
            stream,
            points=faces.points,
            angles=faces.angles,
            all_points=everyone.points,
            all_angles=everyone.angles,
            people=np.empty(0, int) if people is None else people,
        )


def _run(tasks: Sequence[_Task], names: Sequence[str], out: Path, folds: int, workers: int) -> None:
    """Write the missing files of ``OUT/folds``."""
    todo = [task for task in tasks if not _file(out, task).is_file()]
    seeds = [name for name in names if not _seed_file(out, name).is_file()]
    total = len(tasks) + len(names)
    with (
        progress("landmarks compare", total, unit="fits", done=total - len(todo) - len(seeds)) as bar,
        signals() as stop,
        Workers(workers, stop) as pool,
    ):
        for jobs in ([*seeds, *(task for task in todo if task.model != STACK)], [t for t in todo if t.model == STACK]):
            try:
                for name in pool.run(partial(_job, out=out, folds=folds), jobs):
                    bar.note(name)
                    bar.advance()
            except Stopped:
                pool.kill()  # a fold takes minutes: do not wait for it
                raise


def _job(job: "_Task | str", *, out: Path, folds: int) -> str:
    """Write one file of ``OUT/folds``, of a task or of one of the seed's regressors, and return its name."""
    with np.load(out / "folds" / _FACES) as arrays, warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # some settings bound the iterations on purpose
        if isinstance(job, str):
            write_json(_seed_file(out, job), seed_row(job, arrays["all_points"], arrays["all_angles"]))
            return f"seed {job}"
        people = arrays["people"] if arrays["people"].size else None
        write_json(_file(out, job), _fold(job, arrays["points"], arrays["angles"], people, out, folds))
        return job.name


def _file(out: Path, task: _Task) -> Path:
    return out / "folds" / f"{task.name}.json"


def _seed_file(out: Path, name: str) -> Path:
    return out / "folds" / f"seed-{name}.json"


def _people(faces: Faces) -> People | None:
    """The number of each face's person; a face of an unknown person has its own. None if no two faces share one."""
    subjects = faces.subjects or (None,) * len(faces)
    number = {name: at for at, name in enumerate(sorted({name for name in subjects if name is not None}))}
    people = [len(number) + row if name is None else number[name] for row, name in enumerate(subjects)]
    return np.asarray(people) if len(set(people)) < len(faces) else None


def _known_people(faces: Faces) -> dict[str, int | None]:
    """How many persons are kept together, and how many faces have none; None: every face is split by itself."""
    if _people(faces) is None or faces.subjects is None:
        return {"people": None, "faces_of_unknown_people": None}
    return {
        "people": len(set(faces.subjects) - {None}),
        "faces_of_unknown_people": faces.subjects.count(None),
    }


def _split(count: int, people: People | None, folds: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the training part and of the outer fold."""
    return split(count, people, folds, 0)[fold]


def _fold(task: _Task, points: Points, angles: Angles, people: People | None, out: Path, folds: int) -> dict[str, Any]:
    train, test = _split(len(points), people, folds, task.fold)
    among = None if people is None else people[train]
    begun, cpu = time.perf_counter(), time.process_time()
    settings = _settings(task, points[train], angles[train], among, out)
    tuned_at = time.perf_counter()
    fitted = regressor(task.features, task.model, settings).fit(points[train], angles[train], among)
    fitted_at = time.perf_counter()
    predicted = fitted.predict(points[test])
    ended = time.perf_counter()
    return {
        "settings": settings,
        "cpu_seconds": time.process_time() - cpu,
        "tune_seconds": tuned_at - begun,
        "fit_seconds": fitted_at - tuned_at,
        "predict_seconds": ended - fitted_at,
        "predicted": np.round(predicted, 4).tolist(),
    }


def _settings(task: _Task, points: Points, angles: Angles, people: People | None, out: Path) -> Any:
    if task.model == STACK:  # its members were tuned on this same training part
        files = [_file(out, _Task(task.features, name, task.fold, 0.0)) for name in STACKED]
        return [json.loads(file.read_text(encoding="utf-8"))["settings"] for file in files]
    return tuned(points, angles, task.features, task.model, people)[0]


def _row(out: Path, features: str, model: str, faces: Faces, folds: int) -> ModelResult:
    predicted = np.empty((len(faces), 3))
    read = []
    for fold in range(folds):
        _, test = _split(len(faces), _people(faces), folds, fold)
        read.append(json.loads(_file(out, _Task(features, model, fold, 0.0)).read_text(encoding="utf-8")))
        predicted[test] = read[-1]["predicted"]
    return ModelResult(
        features,
        model,
        scores(predicted, faces.angles),
        fit_seconds=float(np.mean([fold["fit_seconds"] for fold in read])),
        tune_seconds=float(np.mean([fold["tune_seconds"] for fold in read])),
        predict_milliseconds=1000 * sum(fold["predict_seconds"] for fold in read) / len(faces),
        cpu_seconds=sum(fold["cpu_seconds"] for fold in read),
        settings=[fold["settings"] for fold in read],
    )


def _geometry(faces: Faces, folds: int, picture_width: float) -> list[ModelResult]:
    """Two rows without regression: solve-PnP on a generic face, and the training folds' mean head turned to fit."""
    begun = time.perf_counter()
    pnp = solve_pnp(faces.points, picture_width)
    each = 1000 * (time.perf_counter() - begun) / len(faces)
    good = np.isfinite(pnp).all(1)
    rows = [
        ModelResult("six", "solve-pnp, generic face", scores(pnp[good], faces.angles[good]), predict_milliseconds=each)
    ]
    predicted = np.empty((len(faces), 3))
    for fold in range(folds):
        train, test = _split(len(faces), _people(faces), folds, fold)
        aligned = AlignedFeatures(1).fit(faces.points[train], faces.angles[train])
        predicted[test] = angles_of(aligned.fitted(faces.points[test]))
    return [*rows, ModelResult("all", "mean head, best rotation", scores(predicted, faces.angles))]


def _finished(best: ModelResult, faces: Faces, out: Path, views: str | None) -> Any:
    """Fit the chosen regressor on all faces, with the settings that most outer folds chose, and save it."""
    chosen = best.settings or ()
    often = Counter(json.dumps(settings, sort_keys=True) for settings in chosen).most_common(1)[0][0]
    settings = json.loads(often)
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = regressor(best.features, best.model, settings).fit(faces.points, faces.angles, _people(faces))
    mae = best.scores.mean_mae
    LandmarkModel(fitted, faces.topology.name, best.features, best.model, views, mae).save(out / "model")
    return settings


def _why(rows: Sequence[ModelResult]) -> str:
    best = rows[0]
    low, high = best.scores.mean_mae_interval
    text = (
        f"{best.model} on {best.features} features has the least mean MAE over the outer folds, "
        f"{best.scores.mean_mae:.2f}° ({low:.2f}–{high:.2f})"
    )
    if len(rows) > 1:
        second = rows[1]
        text += f"; next {second.model} on {second.features}, {second.scores.mean_mae:.2f}°"
    return text + ". The rows were compared and chosen on the same folds, which slightly favours the best one."
