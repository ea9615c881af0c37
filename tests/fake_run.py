"""A run folder with plausible predictions, for the tests of figures and report (nothing was trained)."""

import io
import json
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from hpe.evaluate.gallery import write_faces
from hpe.metrics import figures, to_markdown
from hpe.sources.synthetic.heads import Labels, head_at

HOSTILE = '</script><script>window.hostile=1</script><img src=x onerror="window.hostile=1">|\n'
CONFIG = """\
model: {backbone: mobilenetv3_small_100, heads: {emotion: {}, direction: {}, pose: {kind: bins66}}}
data:
  train: [{shards: data/fake, split: train}]
  val: [{shards: data/fake, split: val}]
seed: 3
train: {learning_rate: 0.0003, samples: 512000}
"""


@lru_cache(maxsize=1)
def rendered(count: int = 48) -> list[tuple[bytes, Labels]]:
    """JPEGs and labels of rendered heads."""
    made = []
    for index in range(count):
        _, picture, labels = head_at(index, seed=5, people=60, size=112)
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=88)
        made.append((buffer.getvalue(), labels))
    return made


def predictions(rows: int = 1200, skill: float = 1.6, seed: int = 0) -> pa.Table:
    """A predictions table: faces turned sideways are read worse, contempt is taken for happy, and so on."""
    truth = np.random.default_rng(99)
    emotion = truth.integers(8, size=rows)
    yaw, pitch, roll = truth.normal(0, 28, rows), truth.normal(-3, 14, rows), truth.normal(0, 9, rows)
    yaw[rows - rows // 100 :] = truth.uniform(99, 130, rows // 100)
    for row, (_, labels) in enumerate(rendered()[:rows]):
        emotion[row], yaw[row], pitch[row], roll[row] = labels.emotion, labels.yaw, labels.pitch, labels.roll
    direction = np.select([yaw > 20, yaw < -20, pitch > 14, pitch < -16], [1, 2, 3, 4], 0)
    valence = np.clip(truth.normal(0, 0.45, rows), -1, 1)
    arousal = np.clip(truth.normal(0.1, 0.35, rows), -1, 1)
    age = [("child", "adult", "elder")[i] for i in truth.integers(3, size=rows)]

    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (rows, 8)) + np.array([0.4, 0.3, 0, 0, -0.3, -0.2, 0, -0.5])
    sharp = skill * (1 - np.minimum(np.abs(yaw), 90) / 160)
    logits[np.arange(rows), emotion] += sharp * np.where(emotion == 1, 2.0, 1.1)
    logits[np.arange(rows), np.array([2, 7, 0, 4, 3, 6, 5, 1])[emotion]] += 0.7
    p = np.exp(1.4 * logits)
    p /= p.sum(1, keepdims=True)
    q = rng.normal(0, 1, (rows, 5))
    q[np.arange(rows), direction] += 3
    q = np.exp(q) / np.exp(q).sum(1, keepdims=True)
    sd = 2.5 + np.abs(yaw) / 25
    columns = {
        "key": [f"{i:06d}" for i in range(rows)],
        "shard": [f"fake-{i // 400:06d}.tar" for i in range(rows)],
        "split": ["val"] * rows,
        "emotion": pa.array(emotion, pa.int8()),
        "emotion_p": pa.FixedSizeListArray.from_arrays(p.astype(np.float32).ravel(), 8),
        "direction": pa.array(direction, pa.int8()),
        "direction_p": pa.FixedSizeListArray.from_arrays(q.astype(np.float32).ravel(), 5),
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "yaw_hat": yaw * 0.97 + rng.normal(0, sd),
        "pitch_hat": pitch * 0.95 + rng.normal(0, 3.5, rows),
        "roll_hat": roll + rng.normal(0, 2.4, rows),
        "yaw_sd": sd,
        "pitch_sd": np.full(rows, 3.5),
        "roll_sd": np.full(rows, 2.0),
        "valence": valence,
        "arousal": arousal,
        "valence_hat": 0.8 * valence + rng.normal(0, 0.2, rows),
        "arousal_hat": 0.6 * arousal + rng.normal(0, 0.2, rows),
        "source": [f"val_set/images/{i}.jpg" for i in range(rows)],
        "group_age": age,
    }
    return pa.table(columns)


def learning(skill: float, seed: int) -> str:
    """Lines of a ``metrics.jsonl``, the last one cut off as by a kill."""
    rng = np.random.default_rng(seed)
    lines = []
    for step in range(0, 8001, 50):
        done = step / 8000
        falls = 2.1 * np.exp(-2.2 * done * skill / 1.6) + 0.15
        train = {"loss": falls + rng.normal(0, 0.06), "learning_rate": 3e-4 * (1 + np.cos(np.pi * done)) / 2}
        lines.append({"step": step, "samples": step * 64, "split": "train", **train})
        if step % 500 == 0 and step:
            f1 = 0.12 + 0.26 * skill * (1 - np.exp(-3 * done)) + rng.normal(0, 0.008)
            val = {"loss": falls + 0.12 + 0.2 * done, "emotion/accuracy": f1 + 0.02, "emotion/macro_f1": f1}
            val |= {"pose/mae": 3.4 + 9 * np.exp(-4 * done) + rng.normal(0, 0.1)}
            val |= {"direction/accuracy": 0.88 - 0.5 * np.exp(-5 * done)}
            lines.append({"step": step, "samples": step * 64, "split": "val", **val})
    return "".join(json.dumps(line) + "\n" for line in lines) + '{"step": 8050, "sam'


def fake_run(folder: Path, *, rows: int = 1200, skill: float = 1.6, seed: int = 0, faces: int = 48) -> Path:
    """Write a run folder as `hpe train` and `hpe evaluate` would; its first key is hostile."""
    (folder / "evaluate").mkdir(parents=True)
    (folder / "config.yaml").write_text(CONFIG, encoding="utf-8")
    (folder / "metrics.jsonl").write_text(learning(skill, seed), encoding="utf-8")
    table = predictions(rows, skill, seed)
    keys = [HOSTILE, *table["key"].to_pylist()[1:]]
    table = table.set_column(0, "key", pa.array(keys))
    pq.write_table(table, folder / "evaluate" / "val.parquet")
    shown = rendered()[: min(faces, rows)]
    shards = table["shard"].to_pylist()[: len(shown)]
    write_faces(folder / "evaluate" / "val.faces.parquet", keys[: len(shown)], shards, [jpeg for jpeg, _ in shown])
    made = figures(table, replicates=300)
    weights = f"{folder}/checkpoints/step-00008000/ema.safetensors"
    made["about"] = {"name": "val", "weights": weights, "shards": ["fake-000000.tar", "fake-000001.tar"]}
    (folder / "evaluate" / "val.json").write_text(json.dumps(made, allow_nan=False), encoding="utf-8")
    (folder / "evaluate" / "val.md").write_text(to_markdown(made), encoding="utf-8")
    return folder
