#!/usr/bin/env bash
# The direction network on people not in training: five folds by person over all of Pointing'04.
#   configs/direction_folds.sh RAW ESTIMATOR WEIGHTS OUT
#   configs/direction_folds.sh raw/Pointing04 configs/estimators/lwpose66.yaml lwpose66.onnx /tmp/direction
# RAW is Pointing'04 (Person01 … Person15), OUT a new folder. Three people are the test of each fold, two more
# choose the checkpoint, ten are learned from. Run it again to resume.
set -euo pipefail
raw=$1 estimator=$2 weights=$3 out=$4
here=$(cd "$(dirname "$0")" && pwd)
people=(01 02 03 04 05 06 07 08 09 10 11 12 13 14 15)

for fold in 0 1 2 3 4; do
    lists=$out/lists-$fold shards=$out/shards-$fold
    mkdir -p "$lists"
    : > "$lists/train.txt"; : > "$lists/val.txt"; : > "$lists/test.txt"
    for i in "${!people[@]}"; do
        case $(((i + 15 - fold) % 15)) in
            0 | 5 | 10) split=test ;;
            1 | 6) split=val ;;
            *) split=train ;;
        esac
        (cd "$raw" && find "Person${people[i]}" -name '*.jpg' | sort) >> "$lists/$split.txt"
    done
    hpe pack pointing04 "$raw" "$shards" --splits "$lists"
    hpe pose "$shards" -e "$estimator" --weights "$weights" --crop square-1.6@box --name angles
    hpe train "$here/direction_network.yaml" --run "$out/run-$fold" \
        --set "data.train=[{shards: \"$shards\", split: train, pose: \"$shards/pose/angles\"}]" \
        --set "data.val=[{shards: \"$shards\", split: val, pose: \"$shards/pose/angles\"}]"
    hpe evaluate "$out/run-$fold" "$shards" --pose "$shards/pose/angles" --name test
done
python - "$out" <<'EOF'
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

people, right = [], []
for fold in range(5):
    rows = pq.read_table(Path(sys.argv[1]) / f"run-{fold}/evaluate/test.parquet").to_pydict()
    people += rows["subject"]
    found = np.argmax(rows["direction_p"], 1) == rows["direction"]
    right += found.tolist()
    print(f"fold {fold}: accuracy {found.mean():.3f} on {len(found)} faces of {len(set(rows['subject']))} people")
names, place = np.unique(people, return_inverse=True)
faces, hits = np.bincount(place), np.bincount(place, right)
drawn = np.random.default_rng(0).integers(0, len(names), (10_000, len(names)))
low, high = np.quantile(hits[drawn].sum(1) / faces[drawn].sum(1), (0.025, 0.975))
print(f"all: accuracy {np.mean(right):.3f} ({low:.3f} to {high:.3f}, people drawn again) on {len(right):,} faces "
      f"of {len(names)} people; by person {hits.min() / faces[hits.argmin()]:.3f} to {(hits / faces).max():.3f}")
EOF
