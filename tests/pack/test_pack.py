"""Packing: nothing is lost, nothing depends on chance, and a killed job ends as one that never was."""

import errno
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from hpe.cli import app
from hpe.core.errors import UserError
from hpe.core.files import Place
from hpe.data.images import decode_rgb
from hpe.data.records import Record
from hpe.data.shard_reader import read_samples
from hpe.data.shards import QUARANTINE, Manifest, Sample
from hpe.pack import pack, pack_source
from hpe.pack import shard as shardjob
from hpe.pack.closing import closing
from hpe.pack.duplicates import DUPLICATES
from hpe.pack.options import Options
from hpe.pack.reasons import category
from hpe.pack.verify import verify
from hpe.sources import readers
from hpe.sources.base import Raw, Reject, Source

SMALL = Options(crop="none", size=32, samples_per_shard=10, seed=1)


def picture(seed: int, side: int = 48) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def row(i: int, **labels: object) -> Raw:
    return Raw(f"k{i:04d}", encoded(picture(i)), Record(emotion=i % 8, source=f"raw/{i}.jpg", **labels))  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Rows:
    rows: Sequence[Raw | Reject]

    def __call__(self) -> Iterator[Raw | Reject]:
        return iter(self.rows)


def source(rows: Sequence[Raw | Reject], **changes: object) -> Source:
    made = Source("made", "by a test", "none", True, "none", (), Rows(rows))
    return replace(made, **changes)  # pyright: ignore[reportArgumentType]


def packed(out: Path, rows: Sequence[Raw | Reject], options: Options = SMALL, **changes: object) -> Manifest:
    return pack(source(rows, **changes), out, options, workers=1)


def samples(out: Path) -> dict[str, Sample]:
    shards = Manifest.load(out).shards
    return {sample.key: sample for shard in shards for sample in read_samples(out / shard.name)}


def quarantine(out: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (out / QUARANTINE).read_text().splitlines()]
    return {line["source"]: line["reason"] for line in lines}


def digests(out: Path) -> dict[str, str]:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in out.iterdir() if path.is_file()}
    assert len(found) == len(list(out.iterdir())), "nothing but files is left"
    return found


# Bad input


class Unreadable:
    def read(self) -> bytes:
        raise RuntimeError("whatever a library raises")


def _png_bomb() -> bytes:
    data = bytearray(encoded(Image.new("L", (1, 1)), "PNG"))
    data[16:24] = (60_000).to_bytes(4) * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4)
    return bytes(data)


def test_every_bad_row_is_quarantined_with_its_reason_and_none_is_lost(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    good = encoded(picture(1))
    bad: dict[str, Raw | Reject] = {
        "empty": Raw("b1", b"", Record()),
        "truncated": Raw("b2", good[: len(good) // 2], Record()),
        "text": Raw("b3", b"<html>404</html>", Record()),
        "bomb": Raw("b4", _png_bomb(), Record()),
        "missing": Raw("b5", tmp_path / "missing.jpg", Record()),
        "folder": Raw("b6", tmp_path / "folder", Record()),
        "fifo": Raw("b7", tmp_path / "fifo", Record()),
        "library": Raw("b8", Unreadable(), Record()),
        "nan": Raw("b9", good, Record(yaw=float("nan"))),
        "emotion": Raw("b10", good, Record(emotion=9)),
        "votes": Raw("b11", good, Record(emotion_votes=(1.0, -1.0))),
        "split": Raw("b12", good, Record(split="validation")),
        "twice": Raw("k0001", good, Record()),
        "reader": Reject("reader", "the CSV's row has no picture"),
    }
    rows: list[Raw | Reject] = [row(i) for i in range(30)]
    for name, item in bad.items():
        rows.append(replace(item, record=replace(item.record, source=name)) if isinstance(item, Raw) else item)
    out = tmp_path / "out"
    manifest = packed(out, rows)
    assert set(quarantine(out)) == set(bad)
    assert all(quarantine(out).values())
    assert "0 bytes" in quarantine(out)["empty"]
    assert "pixels" in quarantine(out)["bomb"]
    assert "yaw" in quarantine(out)["nan"]
    assert "an earlier row has this key" in quarantine(out)["twice"]
    assert manifest.counts["read"] == 44 == manifest.counts["samples"] + manifest.counts["quarantined"]
    assert set(samples(out)) == {f"k{i:04d}" for i in range(30)}
    assert not verify(out)


def test_a_crop_without_its_box_or_outside_the_picture_is_quarantined(tmp_path):
    boxes = {"none": None, "good": (8.0, 8.0, 40.0, 40.0), "outside": (500.0, 500.0, 600.0, 600.0), "empty": (9.0,) * 4}
    rows = [Raw(name, encoded(picture(1)), Record(box=box, source=name)) for name, box in boxes.items()]
    packed(tmp_path / "out", rows, replace(SMALL, crop="square-1@box"))
    assert set(quarantine(tmp_path / "out")) == {"none", "outside", "empty"}


@pytest.mark.parametrize("crop", ["keep", "none", "square-1@box"])
def test_a_box_outside_the_picture_or_of_no_size_is_quarantined_whether_the_crop_needs_it_or_not(tmp_path, crop):
    boxes = {
        "inside": (8.0, 8.0, 40.0, 40.0),
        "over": (-10.0, -10.0, 20.0, 20.0),
        "beside": (45.0, 8.0, 80.0, 40.0),
        "negative": (-500.0, -500.0, -400.0, -400.0),
        "giant": (-1e6, -1e6, 1e6, 1e6),
        "empty": (9.0,) * 4,
    }
    rows = [Raw(name, encoded(picture(1)), Record(box=box, source=name)) for name, box in boxes.items()]
    manifest = packed(tmp_path / "out", rows, replace(SMALL, crop=crop, val_share=0, test_share=0))
    found = quarantine(tmp_path / "out")
    assert found.keys() == {"beside", "negative", "giant", "empty"}
    assert found["beside"] == "box 45, 8, 80, 40 lies outside the picture (48 × 48)"
    said = manifest.counts["has"]["train"]
    assert (said["box"], said["box within the picture"], said["box over the border"]) == (2, 1, 1)
    assert "| box over the border | 1 | 1 |" in (tmp_path / "out" / "summary.md").read_text()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.binary(max_size=300), cut=st.integers(0, 700), at=st.integers(0, 700), kind=st.sampled_from(["JPEG", "PNG"])
)
def test_no_bytes_crash_the_packer(tmp_path_factory, data: bytes, cut: int, at: int, kind: str):
    good = encoded(picture(3), kind)
    spoiled = good[:at] + data + good[at + len(data) :]
    rows = [row(0), Raw("a", data, Record()), Raw("b", good[:cut], Record()), Raw("c", spoiled, Record())]
    manifest = packed(tmp_path_factory.mktemp("any") / "out", rows)
    assert manifest.counts["samples"] + manifest.counts["quarantined"] == 4


def test_nothing_to_pack_is_one_message(tmp_path):
    with pytest.raises(UserError, match="2 rows read, and none"):
        packed(tmp_path / "out", [Reject("a", "no picture"), Reject("b", "no picture")])
    with pytest.raises(UserError, match="of 1 row none became a sample"):
        packed(tmp_path / "other", [Raw("a", b"x", Record())])


# The same bytes


def test_bytes_depend_neither_on_workers_nor_on_the_order_of_rows(tmp_path):
    rows = [row(i, subject=f"s{i % 17}") for i in range(80)]
    rows.append(Raw("bad", b"no picture", Record(source="bad")))
    one = packed(tmp_path / "one", rows)
    pack(source(rows), tmp_path / "three", SMALL, workers=3)
    packed(tmp_path / "back", rows[::-1])
    assert one.splits == ("train", "val", "test")
    assert len(one.shards) > 6
    assert digests(tmp_path / "one") == digests(tmp_path / "three") == digests(tmp_path / "back")


def _pack_in_child(rows: list[Raw], out: Path) -> None:
    os.environ["HPE_QUIET"] = "1"
    packed(out, rows)


def _sidecars(out: Path) -> int:
    """How many shards are done; the job takes its folder away the moment it ends (a `glob` would trip over that)."""
    try:
        return sum(path.name.endswith(".tar.json") for path in (out / ".pack").iterdir())
    except FileNotFoundError:
        return 0


def test_a_job_killed_at_any_moment_ends_with_the_same_bytes(tmp_path):
    rows = [row(i) for i in range(60)] + [Raw("bad", b"no picture", Record(source="bad"))]
    packed(tmp_path / "whole", rows)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hpe.pack.dataset", "hpe.pack.shard"])
    out, rng, kills = tmp_path / "killed", np.random.default_rng(0), 0
    for finished in itertools.count(0, 2):
        child = context.Process(target=_pack_in_child, args=(rows, out))
        child.start()
        while child.is_alive() and _sidecars(out) < finished:
            time.sleep(0.0005)
        time.sleep(rng.uniform(0, 0.01))
        child.kill()
        child.join()
        if child.exitcode == 0:
            break
        assert child.exitcode == -signal.SIGKILL
        kills += 1
    assert kills >= 3
    packed(out, rows)
    assert digests(out) == digests(tmp_path / "whole")


def test_a_restart_makes_only_what_is_missing(tmp_path, monkeypatch):
    rows = [row(i) for i in range(60)]
    made: list[str] = []
    write = shardjob.write_shard

    def failing(path: Path, split: str, some: Iterator[Sample], *, place: Place):
        if len(made) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        made.append(path.name)
        return write(path, split, some, place=place)

    monkeypatch.setattr(shardjob, "write_shard", failing)
    with pytest.raises(UserError, match=r"disk is full.*3 finished shards"):
        packed(tmp_path / "out", rows)
    before = {name: (tmp_path / "out" / name).stat().st_mtime_ns for name in made}
    spoiled = tmp_path / "out" / made[0]
    spoiled.write_bytes(spoiled.read_bytes()[:-700])
    monkeypatch.setattr(shardjob, "write_shard", write)
    packed(tmp_path / "out", rows)
    packed(tmp_path / "whole", rows)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")
    assert all((tmp_path / "out" / name).stat().st_mtime_ns == before[name] for name in made[1:])


def test_every_tar_is_on_the_disk_before_the_manifest_names_it(tmp_path, monkeypatch):
    synced, fsync, save = set(), os.fsync, Manifest.save

    def sync(number: int) -> None:
        synced.add(Path(f"/proc/self/fd/{number}").readlink().name)
        fsync(number)

    def saved(self: Manifest, folder: Path) -> None:
        assert {shard.name for shard in self.shards} | {index.name for index in self.indexes} <= {
            name.split(".part")[0].lstrip(".").rsplit(".", 1)[0] if name.endswith(".part") else name for name in synced
        }
        save(self, folder)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Manifest, "save", saved)
    packed(tmp_path / "out", [row(i) for i in range(60)])
    assert "out" in synced


def test_what_a_power_cut_left_half_written_is_made_again(tmp_path, monkeypatch):
    rows = [row(i) for i in range(60)]
    packed(tmp_path / "whole", rows)
    monkeypatch.setattr("hpe.pack.summary.contact_sheets", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path / "out", rows)
    monkeypatch.undo()
    tar, other, third = sorted((tmp_path / "out").glob("*.tar"))[:3]
    tar.write_bytes(bytes(tar.stat().st_size))
    (tmp_path / "out" / ".pack" / f"{other.name}.json").write_bytes(b"")
    index = tmp_path / "out" / ".pack" / f"{third.name}.arrow"
    index.write_bytes(index.read_bytes()[:-900] + bytes(900))
    packed(tmp_path / "out", rows)
    assert digests(tmp_path / "out") == digests(tmp_path / "whole")


def test_a_full_disk_loses_nothing_that_was_written(tmp_path, monkeypatch):
    rows = [row(i) for i in range(40)]
    good = packed(tmp_path / "first", rows)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hpe.data.shards.Manifest.save", full)
    with pytest.raises(UserError, match="disk is full"):
        packed(tmp_path / "out", rows)
    assert not (tmp_path / "out" / "manifest.json").exists()
    monkeypatch.undo()
    assert packed(tmp_path / "out", rows) == good


# Refusals


def test_other_options_on_the_same_folder_are_refused_with_the_difference(tmp_path):
    rows = [row(i) for i in range(20)]
    packed(tmp_path, rows)
    before = digests(tmp_path)
    with pytest.raises(UserError, match=r"\(--quality: 95 there, 50 now\)"):
        packed(tmp_path, rows, replace(SMALL, quality=50))
    with pytest.raises(
        UserError, match=r"\(--crop: none there, keep now; --seed: 1 there, 2 now\)"
    ):  # which has no size
        packed(tmp_path, rows, replace(SMALL, crop="keep", seed=2))
    with pytest.raises(UserError, match=r"\(--drop-duplicates: none there, near now; --grey: no there, yes now\)"):
        packed(tmp_path, rows, replace(SMALL, grey=True, drop="near"))
    with pytest.raises(UserError, match=r"\(--max-megapixels: 64 there, 9 now\)"):
        packed(tmp_path, rows, replace(SMALL, max_megapixels=9))
    packed(tmp_path, rows)
    assert digests(tmp_path) == before


def test_a_raw_dataset_that_changed_under_an_unfinished_job_is_refused(tmp_path, monkeypatch):
    rows = [row(i) for i in range(20)]
    monkeypatch.setattr("hpe.pack.summary.contact_sheets", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        packed(tmp_path, rows)
    monkeypatch.undo()
    with pytest.raises(UserError, match="has changed"):
        packed(tmp_path, rows[:-1])


def test_a_folder_of_other_files_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(UserError, match="did not write"):
        packed(tmp_path, [row(1)])
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quality": 0}, "--quality"),
        ({"size": 1}, "--size"),
        ({"val_share": 0.6, "test_share": 0.5}, "--val-share"),
        ({"samples_per_shard": 0}, "--samples-per-shard"),
        ({"drop": "all"}, "--drop-duplicates"),
        ({"crop": "keep", "grey": True}, "--grey"),
        ({"crop": "tight"}, "crop rule"),
    ],
)
def test_impossible_options_are_refused_before_anything_is_written(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        packed(tmp_path / "out", [row(1)], replace(SMALL, **change))
    assert not (tmp_path / "out").exists()


def test_auto_says_what_it_recognised_and_why(tmp_path, capsys):
    for i, name in enumerate(("Happy", "Anger", "Sad") * 3):
        (tmp_path / "raw" / name).mkdir(parents=True, exist_ok=True)
        (tmp_path / "raw" / name / f"{i}.jpg").write_bytes(encoded(picture(i)))
    manifest = pack_source("auto", [str(tmp_path / "raw"), str(tmp_path / "out")], [], 1, SMALL)
    assert manifest.counts["samples"] == 9
    assert manifest.dataset in capsys.readouterr().out.splitlines()[0]
    with pytest.raises(UserError, match="KEY=VALUE"):
        pack_source("auto", [str(tmp_path / "raw"), str(tmp_path / "out")], ["oops"], 1, SMALL)
    with pytest.raises(UserError, match="expected two paths, RAW and OUT: the raw dataset"):
        pack_source("auto", [str(tmp_path / "out")], [], 1, SMALL)


# Pictures and labels


def test_box_and_landmarks_move_with_the_picture(tmp_path):
    raw = np.zeros((200, 300, 3), np.uint8)
    spots = ((120.5, 90.5), (170.5, 95.5), (140.5, 130.5))
    for x, y in spots:
        raw[int(y) - 1 : int(y) + 2, int(x) - 1 : int(x) + 2] = 255
    record = Record(box=(110.0, 80.0, 180.0, 140.0), landmarks=(*spots, (-1.0, -1.0)))
    item = Raw("a", encoded(Image.fromarray(raw), "PNG"), record)
    packed(tmp_path, [item], replace(SMALL, crop="square-1.5@landmarks", size=96, quality=100))
    stored = samples(tmp_path)["a"]
    pixels = np.asarray(Image.open(io.BytesIO(stored.image)).convert("L"), float)
    assert stored.record.landmarks is not None
    assert stored.record.landmarks[3] == (-1, -1)
    rows, columns = np.mgrid[:96, :96] + 0.5
    for x, y in stored.record.landmarks[:3]:
        near = (abs(columns - x) < 5) & (abs(rows - y) < 5)
        weight = pixels * near
        assert abs((weight * columns).sum() / weight.sum() - x) < 0.3
        assert abs((weight * rows).sum() / weight.sum() - y) < 0.3
    assert stored.record.box is not None
    x0, y0, x1, y1 = stored.record.box
    assert (x1 - x0) / (y1 - y0) == pytest.approx(70 / 60, rel=0.01)


class Finder:
    name = "finder"

    def detect(self, images: Sequence[np.ndarray]) -> list[list[tuple[tuple[float, ...], float]]]:
        face = ((30.0, 10.0, 50.0, 30.0), 0.9)
        small = ((0.0, 0.0, 5.0, 5.0), 0.9)
        return [[] if i.mean() > 250 else [face, small] if i[0, 0].max() > 250 else [face] for i in images]


def test_a_detectors_box_is_cropped_and_no_face_is_quarantined(tmp_path, monkeypatch):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[10:30, 30:50] = (200, 30, 30)
    rows = [
        Raw("face", encoded(Image.fromarray(pixels), "PNG"), Record(source="face")),
        Raw("wall", encoded(Image.new("RGB", (64, 64), "white")), Record(source="wall")),
    ]
    pixels[:5, :5] = 255
    rows += [Raw(f"two{i}", encoded(Image.fromarray(pixels), "PNG"), Record(source=f"two{i}")) for i in range(2)]
    monkeypatch.setattr("hpe.data.detect.open_detector", lambda name: Finder())
    shardjob._detector.cache_clear()
    manifest = packed(tmp_path, rows, replace(SMALL, crop="square-1@detector"))
    shardjob._detector.cache_clear()
    assert any("2 pictures with more than one face: the largest was taken" in note for note in manifest.notes)
    stored = np.asarray(Image.open(io.BytesIO(samples(tmp_path)["face"].image)), int)
    assert abs(stored - (200, 30, 30)).max() < 12
    assert "no face" in quarantine(tmp_path)["wall"]


def test_kept_pictures_are_the_original_bytes_or_upright_png(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = picture(2).resize((60, 40))
    images = {
        "jpg": encoded(picture(1)),
        "png": encoded(picture(1).convert("L"), "PNG"),
        "webp": encoded(picture(1), "WEBP"),
        "turned": encoded(wide, "JPEG", exif=exif),
        "bmp": encoded(picture(1), "BMP"),
        "palette": encoded(picture(1).convert("P"), "PNG"),
    }
    rows = [Raw(name, data, Record()) for name, data in images.items()]
    manifest = packed(tmp_path, rows, replace(SMALL, crop="keep"))
    words = "none (keep: whole pictures, bytes unchanged)"
    assert (manifest.crop, manifest.crop_in_words) == ("none", words)
    assert f"Crop: {words}. " in (tmp_path / "summary.md").read_text()
    found = samples(tmp_path)
    for name in ("jpg", "png", "webp"):
        assert (found[name].image, found[name].extension) == (images[name], name)
    assert Image.open(io.BytesIO(found["turned"].image)).size == (40, 60)
    assert found["bmp"].extension == "png"
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(found["bmp"].image))), np.asarray(picture(1)))
    assert Image.open(io.BytesIO(found["palette"].image)).mode == "RGB"
    assert Manifest.load(tmp_path).crop == "none"


def test_grey_stores_one_channel_of_the_stated_size(tmp_path):
    packed(tmp_path, [row(1)], replace(SMALL, grey=True, size=40))
    image = Image.open(io.BytesIO(samples(tmp_path)["k0001"].image))
    assert (image.mode, image.size, image.format) == ("L", (40, 40), "JPEG")


# Splits, copies and the audit


def test_the_stored_split_is_the_shards_and_nobody_is_in_two(tmp_path):
    manifest = packed(tmp_path, [row(i, subject=f"s{i % 9}") for i in range(90)])
    where: dict[str | None, set[str]] = {}
    for shard in manifest.shards:
        for sample in read_samples(tmp_path / shard.name):
            assert sample.record.split == shard.split
            where.setdefault(sample.record.subject, set()).add(shard.split)
    assert all(len(found) == 1 for found in where.values())
    assert set().union(*where.values()) == {"train", "val", "test"}


def test_lists_are_followed_and_the_rest_is_quarantined(tmp_path):
    (tmp_path / "train.txt").write_text("k0000\nraw/1.jpg\n")
    (tmp_path / "test.txt").write_text("2.jpg\n")
    packed(tmp_path / "out", [row(i) for i in range(5)], replace(SMALL, splits=tmp_path))
    assert {key: sample.record.split for key, sample in samples(tmp_path / "out").items()} == {
        "k0000": "train", "k0001": "train", "k0002": "test",
    }  # fmt: skip
    assert set(quarantine(tmp_path / "out")) == {"raw/3.jpg", "raw/4.jpg"}


def _with_copies() -> list[Raw]:
    rows = [row(i, split="train" if i < 20 else "test") for i in range(30)]
    again = encoded(picture(25), quality=90)
    rows += [
        Raw("exact", rows[26].read(), Record(emotion=1, split="train", source="exact")),
        Raw("near", again, Record(emotion=2, split="train", source="near")),
    ]
    return rows


@pytest.mark.parametrize(("drop", "gone"), [("none", set()), ("exact", {"exact"}), ("near", {"exact", "near"})])
def test_copies_across_splits_are_named_and_dropped_from_train(tmp_path, drop, gone):
    rows = _with_copies()
    manifest = packed(tmp_path, rows, replace(SMALL, drop=drop, size=64), splits=("train", "val", "test"))
    lines = [json.loads(line) for line in (tmp_path / DUPLICATES).read_text().splitlines()]
    told = {(line["first"], line["copy"]): line["kind"] for line in lines}
    expected = {("k0026", "exact"): "exact", ("k0025", "near"): "near"}
    assert told == (expected if drop != "exact" else {("k0026", "exact"): "exact"})
    assert set(samples(tmp_path)) == {raw.key for raw in rows} - gone
    assert set(quarantine(tmp_path)) == gone
    assert manifest.counts["samples"] + manifest.counts["quarantined"] == len(rows)


def test_the_audit_counts_what_the_shards_hold(tmp_path):
    rows = [
        Raw(f"k{i}", encoded(picture(i)), Record(emotion=i % 3, yaw=float(i), pitch=0.0, roll=120.0 * (i == 7)))
        for i in range(40)
    ]
    manifest = packed(tmp_path, rows, licence="research only", publishable=False)
    counted: dict[str, int] = {}
    for found in manifest.counts["emotion"].values():
        for name, count in found.items():
            counted[name] = counted.get(name, 0) + count
    assert counted == {"neutral": 14, "happy": 13, "sad": 13}
    assert sum(found.get("beyond", 0) for found in manifest.counts["angles"].values()) == 1
    text = (tmp_path / "summary.md").read_text()
    assert "39 of them within ±99°" in text
    assert "research only" in text
    assert "forbid" in text
    assert "+ to the picture's left" in text
    assert "   48 to 63 █" in text
    for name in ("neutral", "happy", "sad"):
        with Image.open(tmp_path / f"contact-{name}.jpg") as sheet:
            assert sheet.width > 900


def test_contact_sheets_are_per_emotion_and_direction_and_heads_of_known_pose_have_axes(tmp_path):
    grey = encoded(Image.new("RGB", (64, 64), "#808080"))
    records = {
        "happy": Record(emotion=1, yaw=60.0, pitch=0.0),
        "left": Record(direction=1, yaw=60.0, pitch=0.0),
        "right": Record(direction=2, yaw=-60.0, pitch=0.0, roll=0.0),
        "both": Record(emotion=1, direction=2),
        "pose": Record(yaw=60.0, pitch=0.0, roll=0.0),
        "nothing": Record(),
    }
    packed(tmp_path, [Raw(name, grey, record) for name, record in records.items()])
    found = {path.stem.removeprefix("contact-") for path in tmp_path.glob("contact-*.jpg")}
    assert found == {"happy", "direction-left", "direction-right", "poses", "unlabelled"}

    def blue(name: str) -> list[int]:
        """Columns of the first tile where the axis out of the face is painted."""
        with Image.open(tmp_path / f"contact-{name}.jpg") as opened:
            tile = np.asarray(opened)[26:122, 2:98].astype(int)
        return np.flatnonzero(((tile[..., 2] - tile[..., 0]) > 60).any(0)).tolist()

    assert np.mean(blue("direction-left")) < 48
    assert np.mean(blue("poses")) < 48
    assert np.mean(blue("direction-right")) > 48
    assert not blue("happy")
    assert not blue("unlabelled")


REAL: list[tuple[str, str, str, Callable[[dict], bool]]] = [
    ("aflw2000", "aflw2000", "square-1.4@landmarks", lambda c: c["splits"] == {"test": 2000}),
    ("pointing04", "pointing04", "square-1.6@box", lambda c: c["samples"] == 2790),
    ("300w-lp", "300w_lp_mini", "square-1.4@landmarks", lambda c: c["samples"] == 60),
]


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.parametrize(("name", "folder", "crop", "right"), REAL, ids=[name for name, *_ in REAL])
def test_real_datasets_pack_with_their_documented_counts(tmp_path, shared, name, folder, crop, right):
    raw = str(shared / "data" / folder)
    manifest = pack_source("auto", [raw, str(tmp_path / "out")], [], 2, Options(crop=crop, size=64))
    assert manifest.dataset == name
    assert right(manifest.counts)
    if name == "aflw2000":
        assert manifest.counts["angles"]["test"] == {"within": 1969, "beyond": 31}
    assert not verify(tmp_path / "out")


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("missing person01100-90+0.txt", "missing *.txt"),
        ("another file of Person01/person01146+0+0.jpg", "another file of *.jpg"),
        ("expression 8 (none) is no emotion (training.csv:12)", "expression N (none) is no emotion"),
        ("emotion 9 is not 0..7", "emotion N is not 0..7"),
        ("image00002.mat: Pose_Para holds no three angles", "*.mat: Pose_Para holds no three angles"),
        (
            "crop box 1, 2.5, 3, -4 lies outside the picture (10 × 20)",
            "crop box N, N, N, N lies outside the picture (N × N)",
        ),
        ("duplicate: shows the same as head07-1 (the same stored bytes)", "duplicate"),
        ("cannot be read: no such file", "cannot be read: no such file"),
        ("cannot be read: a1.jpg: not a regular file", "cannot be read: not a regular file"),
        ("cannot be read: empty file (0 bytes)", "cannot be read: empty file (N bytes)"),
    ],
)
def test_a_kind_of_reason_is_without_names_and_numbers(reason, kind):
    assert category(reason) == kind


def test_the_readers_are_listed_with_their_options():
    told = CliRunner().invoke(app, ["pack", "list"])
    assert told.exit_code == 0
    assert all(f"\n{name}\n" in told.output for name in readers())
    assert "--option frame=depth" in told.output


# What a hostile tester found


@pytest.mark.parametrize(
    ("expected", "note"),
    [
        ({}, None),
        ({"train": 11, "test": 2}, None),
        ({"all": 15}, "size: 13 items, 2 fewer than the 15 of the whole dataset"),
        ({"train": 10, "test": 2}, "size: 13 items, 1 more than the 12 of the whole dataset (train 10, test 2)"),
    ],
)
def test_a_dataset_of_another_size_than_documented_is_noted_and_packed(tmp_path, expected, note):
    items: list[Raw | Reject] = [*(row(i) for i in range(12)), Reject("bad.jpg", "damaged")]
    others = [Reject("a.jpg", "duplicate row", "copy"), Reject("b.jpg", "not named as a picture of", "foreign")]
    manifest = packed(tmp_path / "out", [*items, *others], expected=expected)
    assert [text for text in manifest.notes if text.startswith("size")] == ([note] if note else [])
    assert manifest.counts["samples"] == 12


def test_many_foreign_pictures_are_refused_as_another_dataset(tmp_path):
    rows: list[Raw | Reject] = [*(row(i) for i in range(60)), *(Reject(f"{i}", "?", "foreign") for i in range(21))]
    with pytest.raises(UserError, match=r"21 of 81 pictures are not named as a picture of this dataset"):
        packed(tmp_path / "out", rows)


def test_a_refused_command_leaves_nothing_so_that_the_corrected_one_works(tmp_path):
    out, rows = tmp_path / "out", [row(i) for i in range(12)]
    for options in (replace(SMALL, splits=tmp_path / "nosuch"), replace(SMALL, crop="square-1.0@box")):
        with pytest.raises(UserError, match=r"no lists there|none of the 12 rows of made has a box"):
            packed(out, rows, options)
        assert not out.exists()
    with pytest.raises(UserError, match=r"of 1 row none became a sample \(1 × "):
        packed(out, [Raw("a", b"x", Record())])
    assert not out.exists()
    (out / ".pack").mkdir(parents=True)  # of a job that was killed before its first shard
    (out / ".pack" / "options.json").write_text('{"seed": 7}')
    assert packed(out, rows).counts["samples"] == 12


def test_faces_of_one_picture_are_cut_out_and_stay_in_one_split(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = ["image,x0,y0,x1,y1,emotion"]
    for i in range(12):
        pair = Image.new("RGB", (96, 48))
        pair.paste(picture(2 * i), (0, 0))
        pair.paste(picture(2 * i + 1), (48, 0))
        pair.save(raw / f"{i:02d}.png")
        lines += [f"{i:02d}.png,0,0,48,48,happy", f"{i:02d}.png,48,0,96,48,sad"]
    (raw / "faces.csv").write_text("\n".join(lines))
    options = replace(SMALL, crop=None, val_share=0.2, test_share=0.2)
    with pytest.raises(
        UserError, match=r"several faces with a box each in 12 pictures.*--crop square-1.2@box, or give --crop none"
    ):
        pack_source("table", [str(raw), str(tmp_path / "out")], [], 1, options)
    assert not (tmp_path / "out").exists()
    manifest = pack_source("table", [str(raw), str(tmp_path / "out")], [], 1, replace(options, crop="margin-0@box"))
    assert manifest.counts["samples"] == 24
    assert not quarantine(tmp_path / "out")
    of_photo: dict[str, set[str]] = {}
    for key, sample in samples(tmp_path / "out").items():
        number = 2 * int(key[:2]) + key.endswith("=face2")
        assert np.abs(decode_rgb(sample.image).astype(int) - np.asarray(picture(number).resize((32, 32)))).mean() < 20
        assert sample.record.emotion == (2 if number % 2 else 1)
        of_photo.setdefault(key[:2], set()).add(sample.record.split or "")
    assert {len(found) for found in of_photo.values()} == {1}
    assert set().union(*of_photo.values()) == {"train", "val", "test"}
    whole = pack_source("table", [str(raw), str(tmp_path / "whole")], [], 1, replace(options, crop="none"))
    assert "faces: several in 12 pictures, and the whole picture is stored for each of them" in whole.notes


def test_rows_without_the_tables_split_and_pictures_in_two_are_noted(tmp_path):
    rows = [row(i, split="train" if i % 2 else "test") for i in range(12)] + [row(20)]
    rows.append(replace(row(0), key="again", image=encoded(picture(40)), record=replace(rows[0].record, split="train")))
    notes = packed(tmp_path / "out", rows, replace(SMALL, val_share=0), splits=("train", "test")).notes
    assert "splits: the dataset's own (train, test); 1 row without a split in train" in notes
    assert any(
        note.startswith("LEAK: 1 pictures appear in more than one split, such as raw/0.jpg in") for note in notes
    )


def test_where_nothing_can_be_packed_a_whole_reason_of_each_kind_is_told(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "t.csv").write_text("image,emotion\n" + "".join(f"img/{i}.png,happy\n" for i in range(13)))
    told = (
        rf"13 × like img/0.png: no 'img' in {raw}; if the paths start in another folder, name it with --option images="
    )
    with pytest.raises(UserError, match=told):
        pack_source("table", [str(raw), str(tmp_path / "out")], [], 1, SMALL)


@pytest.mark.parametrize(
    ("given", "told"), [(["a=1", "a=2"], "given twice"), (["a="], "has no value"), (["a"], "KEY=")]
)
def test_an_option_of_the_reader_is_given_once_with_a_value(tmp_path, given, told):
    with pytest.raises(UserError, match=told):
        pack_source("auto", [str(tmp_path), str(tmp_path / "out")], given, 1, SMALL)


def test_a_row_that_no_shard_can_hold_is_quarantined_and_the_others_are_packed(tmp_path):
    good = encoded(picture(1))
    rows = [
        *[row(i) for i in range(12)],
        Raw("a", good, Record(subject="\udcff", source="latin-\udcff")),
        Raw("b", good, Record(box=(0.0, 0.0, 1.7e308, 1.7e308), source="huge")),
    ]
    out = tmp_path / "out"
    assert packed(out, rows, replace(SMALL, size=64)).counts["samples"] == 12
    assert set(quarantine(out)) == {"latin-\udcff", "huge"}
    assert not verify(out)


def test_a_reader_that_fails_in_a_row_is_one_message(tmp_path):
    def rows() -> Iterator[Raw]:
        yield row(0)
        raise KeyError("a reader's own mistake")

    with pytest.raises(UserError, match="stopped at a row that its reader does not understand"):
        pack(replace(source([]), rows=rows), tmp_path / "out", SMALL, workers=1)


@pytest.mark.parametrize("share", [float("nan"), -0.1, 1.0])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(UserError, match="--val-share"):
        replace(SMALL, val_share=share).check()


def test_shards_do_not_go_into_the_raw_dataset_nor_through_a_loop_of_links(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for out, told in ((raw / "out", "own folder"), (tmp_path / "loop", "name another"), (tmp_path / "o", "recognised")):
        with pytest.raises(UserError, match=told):
            pack_source("auto", [str(raw), str(out)], [], 1, SMALL)
    with pytest.raises(UserError, match="cannot be"):
        pack_source("auto", ["r" * 300, str(tmp_path / "o")], [], 1, SMALL)


def test_a_raw_folder_of_another_encoding_is_packed(tmp_path):
    raw = tmp_path / os.fsdecode(b"caf\xe9")
    for name in ("happy", "sad"):
        (raw / name).mkdir(parents=True)
        for i in range(6):
            (raw / name / f"{i}.jpg").write_bytes(encoded(picture(i)))
    manifest = pack_source("auto", [str(raw), str(tmp_path / "out")], [], 1, SMALL)
    assert manifest.options["raw"] == r"caf\xe9"


def test_options_of_few_values_are_listed_with_them():
    listed = CliRunner().invoke(app, ["pack", "list"]).output
    assert "ties=first|none" in listed
    assert "angles=ask|degrees|radians" in listed


def test_nobody_reading_the_summary_is_no_mistake_of_the_shards(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hpe", "pack", "synthetic", str(tmp_path / "out"), "--size", "32"]
    options = ["--option", "count=8", "--option", "people=4", "--option", "size=32", "--workers", "1"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as job:
        assert job.stdout is not None
        assert job.stderr is not None
        job.stdout.close()
        told = job.stderr.read()
    assert "Traceback" not in told
    assert "cannot be written" not in told
    assert (tmp_path / "out" / "manifest.json").is_file()


@pytest.mark.parametrize(
    ("split", "told"), [("train", "hpe train configs/own_images.yaml"), ("test", "hpe evaluate RUN")]
)
def test_the_next_step_after_packing_is_one_that_its_splits_allow(tmp_path: Path, split: str, told: str) -> None:
    faces = tmp_path / "photos" / "happy"
    faces.mkdir(parents=True)
    for i in range(4):
        (faces / f"{i}.jpg").write_bytes(encoded(picture(i)))
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / f"{split}.txt").write_text("".join(f"happy/{i}.jpg\n" for i in range(4)))
    options = ["--splits", str(tmp_path / "lists"), "--size", "32", "--workers", "1"]
    done = CliRunner().invoke(app, ["pack", "folders", str(tmp_path / "photos"), str(tmp_path / "out"), *options])
    assert done.exit_code == 0, done.output
    step = done.output.replace("\n", " ").rpartition("Next:")[2]
    assert told in step
    assert "data.val" not in step


def words_table(raw: Path, words: Sequence[str], column: str = "emotion") -> Path:
    raw.mkdir(parents=True)
    for i in range(len(words)):
        picture(i).save(raw / f"{i}.png")
    text = "".join(f"{i}.png,{word}\n" for i, word in enumerate(words))
    (raw / "labels.csv").write_text(f"image,{column}\n{text}")
    return raw / "labels.csv"


@pytest.mark.parametrize(
    ("column", "words", "told"),
    [
        ("emotion", ["glad"] * 4 + ["sadd"] * 3 + ["sad"] * 5, "glad 4, sadd 3 (did you mean sad?)"),
        ("direction", ["lefft", "lefft", "up"], "lefft 2 (did you mean left?)"),
        ("split", ["trian", "train", "a|\x1b[31m<b>", "x" * 99], "trian 1 (did you mean train?), a?\\x1b?31m?b? 1, x"),
    ],
)
def test_words_that_cost_most_rows_are_named_counted_and_end_with_code_1(
    tmp_path: Path, column: str, words: list[str], told: str
) -> None:
    command = ["pack", "table", str(words_table(tmp_path / "raw", words, column)), str(tmp_path / "out")]
    runner = CliRunner()
    first = runner.invoke(app, [*command, "--size", "32", "--workers", "1"])
    again = runner.invoke(app, [*command, "--size", "32", "--workers", "1"])
    for done in (first, again):
        assert done.exit_code == 1, done.output
        last = done.output.rstrip().rpartition("\n")[2]
        assert last.startswith("WARNING: ")
        assert f"of {len(words)} rows are lost" in last
        assert told in last
        assert f"--option columns={column}=COLUMN" in last
        assert "Next:" not in done.output
        assert "\x1b" not in done.output
    summary = (tmp_path / "out/summary.md").read_text()
    assert f"{told}" in summary.partition("| quarantined because")[2]
    assert "x" * 60 not in summary


def test_few_words_that_are_no_label_are_named_without_a_warning(tmp_path: Path) -> None:
    table = words_table(tmp_path / "raw", ["happy"] * 3 + ["sad"] * 3 + ["sadd"])
    done = CliRunner().invoke(
        app, ["pack", "table", str(table), str(tmp_path / "out"), "--size", "32", "--workers", "1"]
    )
    assert done.exit_code == 0, done.output
    assert "sadd 1 (did you mean sad?) | 1 |" in done.output
    assert "WARNING" not in done.output


def test_where_all_rows_are_lost_their_words_are_named(tmp_path: Path) -> None:
    table = words_table(tmp_path / "raw", ["glad", "sadd", "sadd"])
    with pytest.raises(UserError, match=r"3 × like .*'glad' is none of .*: sadd 2 \(did you mean sad\?\), glad 1"):
        pack_source("table", [str(table), str(tmp_path / "out")], [], 1, SMALL)


def test_an_empty_split_and_a_class_that_train_lacks_are_named_with_the_way_out(tmp_path: Path) -> None:
    two = tmp_path / "two" / "happy"
    two.mkdir(parents=True)
    for i in range(2):
        picture(i).save(two / f"{i}.png")
    done = CliRunner().invoke(
        app, ["pack", "folders", str(two.parent), str(tmp_path / "out"), "--size", "32", "--workers", "1"]
    )
    assert done.exit_code == 0
    last = done.output.rstrip().rpartition("\n")[2]
    assert last.startswith("WARNING: no sample in val and test: too few pictures")
    assert "--test-share 0" in last
    without_test = pack_source("folders", [str(two.parent), str(tmp_path / "b")], [], 1, replace(SMALL, test_share=0))
    assert without_test.splits == ("train", "val")
    assert not [note for note in without_test.notes if "no sample" in note]
    rows = [replace(row(i), record=replace(row(i).record, split="test" if i == 3 else "train")) for i in range(8)]
    manifest = packed(tmp_path / "c", rows, replace(SMALL, val_share=0), splits=("train", "test"))
    assert manifest.notes[-1].startswith("WARNING: train has no surprise, which test has: a network cannot learn it")
    broken = [replace(one, image=b"no picture") if one.record.split == "test" else one for one in rows]
    manifest = packed(tmp_path / "d", broken, replace(SMALL, val_share=0), splits=("train", "test"))
    assert manifest.notes[-1].startswith("WARNING: no sample in test: none of the rows could become one")


@pytest.mark.parametrize(
    ("columns", "dataset", "config"),
    [
        ("emotion", "table", "configs/own_images.yaml"),
        ("yaw", "folders", "configs/pose.yaml"),
        ("emotion", "made", "CONFIG"),
    ],
)
def test_the_next_step_names_a_config_that_fits_the_labels_and_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: str, dataset: str, config: str
) -> None:
    labels = {"yaw": 3.0, "pitch": 3.0, "roll": 0.0} if columns == "yaw" else {"emotion": 1}
    rows = [Raw(f"k{i}", encoded(picture(i)), Record(source=f"{i}", **labels)) for i in range(12)]  # pyright: ignore[reportArgumentType]
    manifest = packed(tmp_path / "out", rows, name=dataset)
    monkeypatch.chdir(tmp_path)
    command = f"hpe train {config} --set data.train.0.shards=out --set data.val.0.shards=out"
    assert f"{command}; `hpe configs" in closing(manifest, "out")[0][0]
    assert "--set 'data.train.0.shards=\"out #1\"' --set" in closing(manifest, "out #1")[0][0]
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / Path(config).name).touch()
    assert closing(manifest, "out")[0][0].endswith(command) == (config != "CONFIG")


def test_every_file_of_the_raw_folder_is_a_sample_in_quarantine_or_counted_by_kind(tmp_path):
    raw, pool, out = tmp_path / "raw", tmp_path / "pool", tmp_path / "out"
    number = iter(range(100))
    for folder in (raw / "happy", raw / "sad", pool):
        folder.mkdir(parents=True)
        for name in ("a.jpg", "b.jfif", "no suffix", "Zoë.png"):
            picture(next(number)).save(folder / name, "PNG")
    (raw / "sad/more").symlink_to(pool)
    (raw / "sad/up").symlink_to(raw)
    (raw / "happy/twin.jpg").symlink_to(raw / "happy/a.jpg")
    (raw / "happy/gone.jpg").symlink_to(tmp_path / "nowhere")
    (raw / "sad/x.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(99))
    (raw / "sad/empty.png").touch()
    picture(90).save(raw / "cover.png")  # in no class folder
    for name in ("happy/poses.mat", "readme.txt", "sad/.DS_Store", "sad/notes"):
        (raw / name).write_text("no picture")
    manifest = pack_source("folders", [str(raw), str(out)], [], 1, SMALL)
    counts = manifest.counts
    assert (counts["read"], counts["samples"], counts["quarantined"]) == (14, 12, 2)
    assert sorted(map(str, quarantine(out))) == ["sad/empty.png", "sad/x.HEIC"]
    assert counts["not_packed"] == {
        ".mat": 1, ".txt": 1, "hidden (a name that begins with a dot)": 1, "without a suffix, no picture": 1,
        "link to a file that is read anyway": 1, "link to a folder that is read anyway": 1,
        "broken link (No such file or directory)": 1, "picture that no row names": 1,
    }  # fmt: skip
    entries = sum(len(files) for _, _, files in os.walk(raw, followlinks=False)) + len(list(pool.iterdir()))
    links = 2  # to folders, one of which was entered
    assert counts["read"] + sum(counts["not_packed"].values()) == entries + links - 1
    text = (out / "summary.md").read_text()
    assert "not packed: 1 × picture that no row names, such as cover.png" in text
    assert "1 × .mat" in text


def test_class_folders_of_links_into_a_pool_lose_nothing_and_name_nothing_twice(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    for folder in (raw / "train/happy", raw / "train/sad", raw / "all"):
        folder.mkdir(parents=True)
    for number in range(12):
        picture(number).save(raw / f"all/{number}.png")
        if number < 10:
            (raw / f"train/{'happy' if number % 2 else 'sad'}/{number}.png").symlink_to(raw / f"all/{number}.png")
    counts = pack_source("folders", [str(raw), str(out)], [], 1, SMALL).counts
    assert counts["samples"] == 10
    assert counts["not_packed"] == {"picture that no row names": 2}


def test_the_limit_of_megapixels_is_an_option_and_recorded_only_where_it_is_another(tmp_path):
    rows = [row(number) for number in range(12)]
    assert "max_megapixels" not in packed(tmp_path / "usual", rows).options
    manifest = packed(tmp_path / "small", [*rows, Raw("large", encoded(picture(50, 64)), Record(source="large.jpg"))],
                      replace(SMALL, max_megapixels=0.003))  # fmt: skip
    assert manifest.options["max_megapixels"] == 0.003
    assert "more than the 0.003 megapixels allowed" in quarantine(tmp_path / "small")["large.jpg"]
    assert "--max-megapixels" in quarantine(tmp_path / "small")["large.jpg"]
    for change, message in (
        ({"max_megapixels": 200}, "at most 178"),
        ({"max_megapixels": 100, "crop": "keep"}, "training reads at most 64"),
    ):
        with pytest.raises(UserError, match=message):
            packed(tmp_path / "refused", rows, replace(SMALL, **change))
