#!/usr/bin/env bash
# sbatch --nodes 2 launch/slurm.sh CONFIG [hpe train's options]
# One task a GPU. Ten minutes before the end (or at a pre-emption) the ranks get SIGUSR1 or SIGTERM, save, and
# leave with exit code 75; the job then puts itself back into the queue and resumes where it stood.
#SBATCH --job-name=hpe
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -uo pipefail
if [ "$#" -lt 1 ]; then
  echo "usage: sbatch --nodes N launch/slurm.sh CONFIG [options of hpe train]" >&2
  exit 2
fi

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}"

# srun in the background, so that this shell sees signals and hands them on.
srun --kill-on-bad-exit=1 hpe train "$@" &
ranks=$!
trap 'signalled=yes; kill -USR1 "$ranks" 2>/dev/null' USR1
trap 'signalled=yes; kill -TERM "$ranks" 2>/dev/null' TERM
# A signal ends `wait` early, with a code of its own; another `wait` tells srun's, even where srun has just ended.
while
  signalled=
  wait "$ranks"
  status=$?
  [ -n "$signalled" ]
do :; done

if [ "$status" -eq 75 ]; then
  echo "hpe: saved; requeued as $SLURM_JOB_ID"
  scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$status"
