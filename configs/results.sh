#!/usr/bin/env bash
# The measurements that need hours of a CPU or a GPU, one command each (docs/results.md: "To be measured with more time").
#   FERPLUS=raw/ferplus POINTING04=raw/Pointing04 AFLW2000=raw/AFLW2000 LWPOSE=lwpose66.onnx configs/results.sh WHAT
# WHAT: ferplus      FER+ from scratch, the long recipe
#       joint        emotion alone, + direction, + pose, both, and emotion conditioned on pose: the same network and
#                    budget; ARMS="alone with-both" runs some of these
#       pointing04   direction and pose on Pointing'04, by a random split and by person
#       aflw2000     pose on AFLW2000's own splits
#       cross        AFLW2000's network on Pointing'04, and the other way round; FER+'s on rendered heads
#       study        the thesis' study on FER+, three seeds
# SEEDS="0 1 2" are the seeds, OUT=runs/results the folder, MORE="--set train.batch=256" goes to every training. Run it
# again to resume: what is packed and trained is not done again. Results are copied to RESULTS=docs/results as JSON.
set -euo pipefail
what=${1:-help} seeds=${SEEDS:-0 1 2} out=${OUT:-runs/results} results=${RESULTS:-docs/results} more=${MORE:-}
here=$(cd "$(dirname "$0")" && pwd)

pack() { # SHARDS, then what hpe pack takes before and after it
    [ -f "$out/shards/$1/summary.md" ] || hpe pack "$2" "$3" "$out/shards/$1" "${@:4}"
}

ferplus() {
    pack ferplus ferplus "${FERPLUS:?where FER+ lies}" --crop keep
    hpe pose "$out/shards/ferplus" --estimator "$here/estimators/lwpose66.yaml" \
        --weights "${LWPOSE:?the file lwpose66.onnx}" --force
}

train() { # NAME CONFIG SEED SHARDS, then more settings
    local shards=$out/shards/$4
    # shellcheck disable=SC2086 # several words
    hpe train "$here/$2" --run "$out/$1-seed$3" --set "seed=$3" --set "data.train.0.shards=\"$shards\"" \
        --set "data.val.0.shards=\"$shards\"" "${@:5}" $more
}

evaluate() { # NAME SEED SHARDS, then more options of hpe evaluate
    hpe evaluate "$out/$1-seed$2" "$out/shards/$3" --flips --name "$3" "${@:4}"
    keep "$out/$1-seed$2/evaluate/$3.json" "$results/$1-$3-seed$2.json" "configs/results.sh $what, seed $2"
}

keep() { # FILE, WHERE, HOW: what a comparison needs of a result, with how, by what and where it was made
    python - "$@" "$(git -C "$here" rev-parse HEAD 2> /dev/null || echo unknown)" << 'EOF'
import json, os, platform, shutil, subprocess, sys

source, target, how, commit = sys.argv[1:]
with open(source) as opened:
    found = json.load(opened)
by = found.pop("by", {})  # whole in the run's own file; FER+'s paper counts the faces with a majority of votes
found["emotion_by"] = {
    name: {group: one["emotion"]["accuracy"] for group, one in groups.items() if "accuracy" in one.get("emotion", {})}
    for name, groups in by.items()
    if name == "direction" or name.startswith("group_")
}
for name in ("by_yaw", "by_pitch"):
    found.get("pose", {}).pop(name, None)
for name in ("shards", "pose tables"):  # where they lie on this machine
    found.get("about", {}).pop(name, None)
cpu = next((line.split(":")[1].strip() for line in open("/proc/cpuinfo") if line.startswith("model name")), platform.machine())
gpus = []
if smi := shutil.which("nvidia-smi"):
    answer = subprocess.run([smi, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True)
    gpus = answer.stdout.splitlines() if answer.returncode == 0 else []
made = {"command": how, "commit": commit, "machine": ", ".join([cpu, f"{os.cpu_count()} cores", *gpus])}
with open(target, "w") as opened:
    json.dump({"made": made} | found, opened, indent=1)
    opened.write("\n")
EOF
}

on_ferplus() { # NAME CONFIG, then more settings: trained and judged on FER+, every seed
    local tables=$out/shards/ferplus/pose/lwpose66
    for seed in $seeds; do
        train "$1" "$2" "$seed" ferplus --set "data.train.0.pose=\"$tables\"" --set "data.val.0.pose=\"$tables\"" "${@:3}"
        evaluate "$1" "$seed" ferplus --pose "$tables"
    done
}

start() { # the networks of FER+ that the others start from: their backbones know faces, and the angles of lwpose66
    ARMS=with-both "$0" joint
}

case $what in ferplus | joint | pointing04 | aflw2000 | cross | study) mkdir -p "$results" ;; esac
case $what in
ferplus)
    ferplus
    on_ferplus ferplus-long ferplus_long.yaml
    ;;
joint)
    ferplus
    direction='direction: {weight: 0.3}' pose='pose: {kind: bins66, alpha: 0.02, weight: 0.1}'
    declare -A heads=(
        [alone]='emotion: {dropout: 0.2}'
        [with-direction]="emotion: {dropout: 0.2}, $direction"
        [with-pose]="emotion: {dropout: 0.2}, $pose"
        [with-both]="emotion: {dropout: 0.2}, $direction, $pose"
        [conditioned]="emotion: {dropout: 0.2, conditioned_on_pose: true}, $direction, $pose"
    )
    runs=()
    for arm in ${ARMS:-alone with-both conditioned with-direction with-pose}; do
        on_ferplus "$arm" ferplus_small.yaml --set "model.heads={${heads[$arm]}}"
        for seed in $seeds; do runs+=("$out/$arm-seed$seed"); done
    done
    # Accuracy by direction (forward against turned) is in `emotion_by` of each JSON, and on this page.
    hpe report "${runs[@]}" --out "$out/joint"
    ;;
pointing04)
    start
    raw=${POINTING04:?where Pointing\'04 lies}
    pack pointing04-by-person pointing04 "$raw" --size 128 --option roll=upright
    lists=$out/lists
    if [ ! -f "$lists/test.txt" ]; then # a random split, as the thesis has it: the same people in all parts
        mkdir -p "$lists"
        (cd "$raw" && find Person* -name '*.jpg' | LC_ALL=C sort) |
            python -c 'import random, sys; lines = sys.stdin.readlines(); random.Random(0).shuffle(lines); print(*lines, sep="", end="")' \
                > "$lists/all.txt"
        sed -n '1,279p' "$lists/all.txt" > "$lists/val.txt"
        sed -n '838,$p' "$lists/all.txt" > "$lists/train.txt"
        sed -n '280,837p' "$lists/all.txt" > "$lists/test.txt"
        rm "$lists/all.txt"
    fi
    pack pointing04-random pointing04 "$raw" --size 128 --option roll=upright --splits "$lists"
    for split in by-person random; do
        for seed in $seeds; do
            train "pointing04-$split" pointing04_direction.yaml "$seed" "pointing04-$split" \
                --set "data.train=[{shards: \"$out/shards/pointing04-$split\", split: train}]" \
                --set model.backbone=resnet14 --set model.stem=standard --set "model.weights=\"$out/with-both-seed$seed\""
            evaluate "pointing04-$split" "$seed" "pointing04-$split"
        done
    done
    ;;
aflw2000)
    start
    pack aflw2000 aflw2000 "${AFLW2000:?where AFLW2000 lies}" --size 128 --crop square-1.4@landmarks --option splits=lists
    for seed in $seeds; do
        train aflw2000 aflw2000_pose.yaml "$seed" aflw2000 \
            --set model.backbone=resnet14 --set model.stem=standard --set "model.weights=\"$out/with-both-seed$seed\""
        evaluate aflw2000 "$seed" aflw2000
    done
    ;;
cross)
    "$0" aflw2000
    "$0" pointing04
    [ -f "$out/shards/rendered/summary.md" ] || hpe pack synthetic "$out/shards/rendered" --size 64 \
        --option look=wild --option count=2000 --option people=400
    for seed in $seeds; do
        evaluate aflw2000 "$seed" pointing04-by-person --split all
        evaluate pointing04-by-person "$seed" aflw2000 --split all
        evaluate with-both "$seed" rendered --split all
    done
    ;;
study)
    pack ferplus-study ferplus "${FERPLUS:?where FER+ lies}" --size 48 --grey
    hpe pose "$out/shards/ferplus-study" -e "$here/estimators/lwpose66.yaml" \
        --weights "${LWPOSE:?the file lwpose66.onnx}" --force
    # shellcheck disable=SC2086 # several words
    hpe study "$here/study/ferplus_reduced.yaml" --jobs "${JOBS:-2}" --set "study=\"$out/study\"" --set "seeds=[${seeds// /,}]" \
        --set "shards=\"$out/shards/ferplus-study\"" --set "pose=\"$out/shards/ferplus-study/pose/lwpose66\"" $more
    keep "$out/study/study.json" "$results/study.json" "configs/results.sh study, seeds $seeds"
    ;;
*)
    sed -n '2,12p' "$0"
    exit 2
    ;;
esac
