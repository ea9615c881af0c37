"""``hpe evaluate``: every sample once, on any number of ranks; predictions as a table, metrics from the table.

Each rank writes the rows of the samples that it processed. Rank 0 joins them, checks that every sample appears
once, and computes every metric from that one table. So no metric depends on the number of ranks.
"""

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from torch import Tensor

from hpe.core.console import say
from hpe.core.distributed import accelerator, agree
from hpe.core.errors import EXIT_INCOMPLETE, EXIT_OK, UserError, redacted
from hpe.core.files import aside, refuse_unwritable, write_json, write_text
from hpe.core.labels import ANGLES, DIRECTIONS, EMOTIONS
from hpe.core.progress import Bar, progress
from hpe.core.ranks import Ranks
from hpe.data.batch import Batch
from hpe.data.images import encode_jpeg
from hpe.data.provenance import about_command, about_package, about_shards
from hpe.data.shard_reader import utf8
from hpe.evaluate.gallery import choose_rows, write_faces
from hpe.evaluate.judged import Judged, open_judged
from hpe.evaluate.options import EvaluateOptions
from hpe.evaluate.subject import Subject
from hpe.evaluate.warnings import (
    answers_of,
    beyond_bins,
    copies_across_splits,
    framing_differs,
    seen_in_training,
    untrained_labels,
)
from hpe.metrics import figures, overview, to_markdown
from hpe.metrics.columns import Guesses, Numbers, guesses, numbers
from hpe.models.views import PLAIN, Estimates
from hpe.stream import Counts, LabelSource, Loaded, ShardSet, Stream
from hpe.train.log import Damages

if TYPE_CHECKING:
    import pyarrow as pa
    from accelerate import Accelerator

FOLDER: Final = "evaluate"
_USUAL: Final = EvaluateOptions()
_KEPT_FACES: Final = 200
_FACE_QUALITY: Final = 90


def evaluate(network: Path, sets: list[ShardSet], options: EvaluateOptions = _USUAL) -> int:
    """Evaluate a network on shards; writes ``evaluate/NAME.parquet``, ``.faces.parquet``, ``.json`` and ``.md``.

    The config of a run decides where angles and directions come from. Without pose tables they come from the records.

    Args:
        network: run folder, exported network, or another estimator.
        sets: the shards.
        options: see :class:`hpe.evaluate.options.EvaluateOptions`.

    Returns:
        The exit code: 1 if samples could not be read (messages give their number and names).

    Raises:
        UserError: there is no such network or checkpoint; the shards have no label of its heads; the name belongs to
            the result of something else.
    """
    if options.name is not None and (not options.name or Path(options.name).name != options.name):
        raise UserError(f"--name {options.name!r}: expected a plain file name, such as test")
    ranks = Ranks.from_environment()
    here = accelerator("fp32")  # its own precision is not used: hpe.models.inference has its own autocast block
    tables = any(one.pose for one in sets)
    judged = open_judged(network, options, here.device, pose_tables=tables)
    labels = judged.reading.labels if tables else LabelSource()
    stream = Stream(sets, replace(judged.reading, labels=labels))
    counts = _counted(stream, sets, judged)
    folder = judged.folder / FOLDER
    refuse_unwritable(folder / "results", f"--out {judged.folder}")
    precision, recorded, views = judged.precision.name, judged.recorded, options.views
    other = None if options.precision in (None, recorded) else options.precision
    subject = Subject.of(sets, stream.sets, views=views, which=options.which, precision=other)
    name, title = _name(subject, folder, options.name, ranks)
    warnings: list[str] = []
    if ranks.main:
        if recorded not in (None, precision):
            _say(name, f"precision {precision}: {judged.precision.why}")
        if labels != judged.reading.labels:
            _say(name, "no pose tables (--pose): angles and directions come from the records, where these have them")
        warnings = _warnings_before(judged, stream, counts)
        for warning in warnings:
            _say(name, f"WARNING: {warning}")
    asked = f"evaluate {judged.name} on {title}"
    mine, damaged = _predict(judged, stream, options.batch, here, ranks, asked, name)
    parts = [folder / f".{name}.rank-{rank:05d}.parquet" for rank in range(ranks.world)]
    _write(parts[ranks.rank], mine)
    here.wait_for_everyone()  # rank 0 reads what all ranks wrote
    about: dict[str, Any] = {"title": title, "split": subject.split}
    about |= {"weights": str(judged.weights), "precision": precision} | _estimated(labels, sets)
    about |= {"views": str(views)} if views != PLAIN else {}
    about |= {"identity": dict(subject.identity), "warnings": warnings, **about_command(here.device.type)}
    problem = None
    if ranks.main:
        problem = _write_results(parts, name, stream, damaged, about, judged.learned, options.replicates)
    # Only rank 0 knows the problem, and all ranks have to end with the same exit code.
    if problem := agree(problem):
        raise UserError(problem)
    if ranks.main:
        page = f"hpe report {shlex.quote(str(judged.folder))}"
        _say(name, f"{title}: written to {folder / name}.json, .md (all tables) and .parquet; next: {page}")
    return EXIT_INCOMPLETE if damaged else EXIT_OK


def _name(subject: Subject, folder: Path, named: str | None, ranks: Ranks) -> tuple[str, str]:
    """The name of the files and the title of the result, chosen by rank 0 for all ranks.

    Raises:
        UserError: the user's name belongs to the result of something else.
    """
    found: dict[str, Any] = {}
    if ranks.main:
        try:
            found["name"], found["title"] = subject.name_in(folder, named)
        except UserError as error:
            found["problem"] = str(error)
    found = json.loads(agree(json.dumps(found) if ranks.main else None) or "{}")
    if "problem" in found:
        raise UserError(found["problem"])
    return found["name"], found["title"]


def _warnings_before(judged: Judged, stream: Stream, counts: Counts) -> list[str]:
    """What the user should know of the shards before the network reads them."""
    every = [shard for shards in stream.sets for shard in shards]
    local = [Path(shard.url) for shard in every if not shard.remote]
    warnings = [*judged.warnings, *seen_in_training(judged.trained_on, every)]
    warnings += [*framing_differs(judged.crops, judged.faces, local), *copies_across_splits(local)]
    if judged.bins and counts.wide:
        warnings.append(beyond_bins(counts.wide, counts.angles))
    return warnings


def _counted(stream: Stream, sets: Sequence[ShardSet], judged: Judged) -> Counts:
    """The labels of the shards.

    Raises:
        UserError: no sample has a label of one of the heads, or the input of the network.
    """
    counts, heads = stream.label_counts(only_with_angles=judged.takes_angles), judged.heads
    if judged.takes_angles and not counts.angles:
        raise UserError(
            f"{sets[0].shards}: no sample has angles, the input of this network; give pose tables with --pose, if its "
            "config has data.angles: pose"
        )
    labels = {"emotion": sum(counts.emotion), "direction": sum(counts.direction), "pose": counts.angles}
    labels["affect"] = counts.affect
    if not any(labels[head] for head in heads):
        raise UserError(
            f"{sets[0].shards}: no sample has a label of this network's heads ({', '.join(heads)}); for predictions "
            "without metrics use hpe predict"
        )
    return counts


def _predict(
    judged: Judged, stream: Stream, batch: int, here: "Accelerator", ranks: Ranks, title: str, name: str
) -> tuple["pa.Table", int]:
    """The rows of this rank's samples, and the number of damaged samples over all ranks."""
    with (
        stream.once(batch=batch, rank=ranks.rank, ranks=ranks.world) as loader,
        progress(title, stream.samples, unit="images") as bar,
    ):
        rows = _predict_own(judged, loader, here.device, bar)
        damages = Damages(f"{name}:")
        damages.tell(loader)
        damages.close()
        total = here.reduce(torch.tensor(loader.damaged_samples, device=here.device), "sum")
        assert isinstance(total, Tensor)
        damaged = int(total)
        # All ranks are done here, but the bar of a rank without samples in the last batch is still short.
        bar.reach(stream.samples)
    return rows, damaged


def _write_results(
    parts: Sequence[Path],
    name: str,
    stream: Stream,
    damaged: int,
    about: Mapping[str, Any],
    learned: Mapping[str, Sequence[int]],
    replicates: int,
) -> str | None:
    """Join the rows of all ranks, write the results, print the headline, remove the parts; returns the user's error."""
    problem = None
    try:
        rows, folder = _join(parts), parts[0].parent
        page = write_results(
            folder, name, rows, stream, damaged=damaged, about=about, trained=learned, replicates=replicates
        )
        print(overview(page))
    except UserError as error:
        problem = str(error)
    for part in parts:
        part.unlink(missing_ok=True)
    return problem


def _join(parts: Sequence[Path]) -> "pa.Table":
    """The rows of all ranks, rank after rank."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    # A rank without samples wrote a table with only an empty key column: "default" fills in the others.
    return pa.concat_tables([pq.read_table(part) for part in parts], promote_options="default")


def _estimated(source: LabelSource, sets: Sequence[ShardSet]) -> dict[str, str]:
    """Which labels come from an estimator, because agreement with an estimator is not accuracy."""
    tables = ", ".join(str(one.pose) for one in sets if one.pose)
    labels = ["angles"] * (source.angles == "pose") + ["directions"] * (source.direction != "record")
    return {"estimated": f"{' and '.join(labels)} of {tables}"} if labels and tables else {}


def _say(name: str, text: str) -> None:
    say(f"{name}: {text}")


@torch.inference_mode()
def _predict_own(judged: Judged, loader: Iterable[Loaded], device: torch.device, bar: Bar) -> "pa.Table":
    """Predictions and truth of this rank's readable samples."""
    import pyarrow as pa

    found: list[pa.Table] = []
    for loaded in loader:
        batch = loaded.batch.to(device)
        batch = batch.only_with_angles() if judged.takes_angles else batch
        found.append(rows_of(batch, judged.predict(batch)).filter(loaded.readable))
        bar.reach(loaded.samples_seen)
    return pa.concat_tables(found) if found else pa.table({"key": pa.array([], pa.string())})


def rows_of(batch: Batch, estimates: Estimates) -> "pa.Table":
    """A batch's rows of a predictions table: truth and predictions."""
    import pyarrow as pa

    columns: dict[str, pa.Array] = {"key": pa.array(batch.keys, pa.string())}
    for head, truth, mask, shares in (
        ("emotion", batch.emotion, batch.emotion_mask, estimates.emotion_p),
        ("direction", batch.direction, batch.direction_mask, estimates.direction_p),
    ):
        columns[head] = pa.array(_numpy(truth).astype(np.int8), mask=~_numpy(mask))
        if shares is not None:
            columns[f"{head}_p"] = _lists(shares)
    columns |= _numbers(ANGLES, batch.angles, batch.angles_mask)
    if estimates.angles is not None:
        columns |= _numbers([f"{angle}_hat" for angle in ANGLES], estimates.angles)
    if estimates.deviations is not None:
        columns |= _numbers([f"{angle}_sd" for angle in ANGLES], estimates.deviations)
    columns |= _numbers(("valence", "arousal"), batch.affect, batch.affect_mask)
    if estimates.affect is not None:
        columns |= _numbers(("valence_hat", "arousal_hat"), estimates.affect)
    return pa.table(columns)


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _lists(values: Tensor) -> "pa.Array":
    import pyarrow as pa

    flat = pa.array(_numpy(values.float()).ravel(), pa.float32())
    return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])


def _numbers(names: Iterable[str], values: Tensor, mask: Tensor | None = None) -> dict[str, "pa.Array"]:
    import pyarrow as pa

    missing = None if mask is None else ~_numpy(mask)
    columns = _numpy(values.float()).T
    return {name: pa.array(column, pa.float32(), mask=missing) for name, column in zip(names, columns, strict=True)}


def write_results(
    folder: Path,
    name: str,
    rows: "pa.Table",
    stream: Stream,
    *,
    damaged: int,
    about: Mapping[str, Any],
    trained: Mapping[str, Sequence[int]],
    replicates: int,
) -> str:
    """Write predictions and their metrics; returns the metrics as Markdown.

    Args:
        folder: of the evaluation.
        name: of the files.
        rows: as :func:`rows_of` gives them, of every sample that could be read.
        stream: the samples.
        damaged: samples that could not be read.
        about: where the predictions come from: ``weights``, ``precision``, ``views`` if there are several, and which
            labels are ``estimated``; ``warnings`` so far.
        trained: for ``emotion`` and ``direction``, the classes that were learned; missing: unknown.
        replicates: bootstrap draws of the intervals.

    Raises:
        UserError: a sample appears twice, or is missing without being damaged.
    """
    table, positions = _whole(rows, stream, damaged)
    _write(folder / f"{name}.parquet", table)
    _write_gallery(folder / f"{name}.faces.parquet", table, positions, stream)
    if without := _without_number(table):
        _say(
            name,
            f"WARNING: for {without:,} of {table.num_rows:,} samples the network gave NaN; its weights are damaged or "
            "overflow: try another --which",
        )
    found = figures(table, trained=trained, replicates=replicates)
    answers = list(answers_of(table))
    for warning in answers:
        _say(name, f"WARNING: {warning}")
    warnings = [*about.get("warnings", []), *answers, *untrained_labels(found, trained)]
    urls = [shard.url for shards in stream.sets for shard in shards]
    counts = {"shards": list(map(redacted, urls)), "samples": table.num_rows, "unreadable": damaged}
    names = {"emotion": EMOTIONS, "direction": DIRECTIONS}
    learned = {head: [names[head][index] for index in classes] for head, classes in trained.items()}
    found["about"] = {"name": name, **about, **counts, "trained_on": learned} | about_shards(urls) | about_package()
    found["about"] |= {"warnings": warnings}
    write_json(folder / f"{name}.json", found)
    text = to_markdown(found, f"Metrics on {about.get('title', name)}")
    write_text(folder / f"{name}.md", text)
    return text


def _without_number(table: "pa.Table") -> int:
    """Rows for which one of the heads gave no finite number."""
    predictions: list[Guesses | Numbers | None] = [
        guesses(table, "emotion", len(EMOTIONS)),
        guesses(table, "direction", len(DIRECTIONS)),
        numbers(table, [f"{angle}_hat" for angle in ANGLES]),
        numbers(table, ("valence_hat", "arousal_hat")),
    ]
    masks = [one.mask for one in predictions if one is not None]
    return int((~np.all(masks, axis=0)).sum()) if masks else 0


def _whole(rows: "pa.Table", stream: Stream, damaged: int) -> tuple["pa.Table", list[int]]:
    """The rows in the order of the shards, with columns from the records, and their positions in the stream.

    Raises:
        UserError: a sample appears twice, or is missing without being damaged.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    records = list(stream.records())
    order = {key: place for place, (_, key, _) in enumerate(records)}
    if len(order) != len(records):
        raise UserError(f"{len(records) - len(order)} keys of these shards occur twice; evaluate the sets one by one")
    places = [order.get(key, -1) for key in rows["key"].to_pylist()]
    if len(set(places)) != len(places) or -1 in places or len(places) + damaged < len(records):
        raise UserError(
            f"{rows.num_rows:,} predictions for {len(records):,} samples, {damaged:,} damaged; expected each once. "
            "Did the shards change during the evaluation? Run hpe verify, then run this command again"
        )
    # Ranks take turns, and damaged samples have no row: sort the rows, and keep only the records that have one.
    records = [records[place] for place in sorted(places)]
    rows = rows.take(
        pc.sort_indices(  # pyright: ignore[reportAttributeAccessIssue]
            pa.chunked_array([places])
        )
    )
    rows = rows.append_column("shard", pa.array([utf8(shard) for shard, _, _ in records], pa.string()))
    for field in ("split", "subject", "source"):
        rows = rows.append_column(field, pa.array([getattr(r, field, None) for _, _, r in records], pa.string()))
    groups = sorted({group for _, _, record in records if record for group in record.groups})
    for group in groups:
        values = [record.groups.get(group) if record else None for _, _, record in records]
        rows = rows.append_column(f"group_{group}", pa.array(values, pa.string()))
    return rows, sorted(places)


def _write(path: Path, table: "pa.Table") -> None:
    import pyarrow.parquet as pq

    with aside(path) as part:
        pq.write_table(table, part, compression="zstd")


def _write_gallery(path: Path, table: "pa.Table", positions: list[int], stream: Stream) -> None:
    """Write the faces that a report shows, as the network got them."""
    chosen = choose_rows(table, _KEPT_FACES)
    keys, shards = table["key"].to_pylist(), table["shard"].to_pylist()
    rows, jpegs = [], []
    pictures = stream.images([positions[row] for row in chosen])
    for row, (key, picture) in zip(chosen, pictures, strict=True):
        if picture is not None and key == keys[row]:
            rows.append(row)
            jpegs.append(encode_jpeg(picture, _FACE_QUALITY))
    write_faces(path, [keys[row] for row in rows], [shards[row] for row in rows], jpegs)
