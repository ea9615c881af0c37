#!/usr/bin/env bash
# sbatch --nodes 2 launch/slurm.sh train CONFIG                          # or without `train`
# sbatch --nodes 2 launch/slurm.sh pose SHARDS --estimator E             # evaluate, too, runs on many processes
# sbatch --ntasks-per-node 1 launch/slurm.sh pack auto RAW OUT           # other commands run in one task
# sbatch --array 1-5 launch/slurm.sh train CONFIG --set seed=%a --run runs/seed-%a     # %a: the number in the array
# sbatch --gpus-per-node 0 --ntasks-per-node 4 launch/slurm.sh train CONFIG            # no GPUs, or no --gres
# HPE="apptainer exec --nv hpe.sif hpe" sbatch …          another way to call hpe
#
# One task per GPU. Ten minutes before the end of --time the ranks get SIGUSR1, save, and leave with exit code 75; the
# job then puts itself back into the queue and resumes where it stood. Choose --time much longer than these ten minutes
# plus the start, or shorten them: --signal USR1@120. `scancel` gives the ranks time to save, too, but ends the job.
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
case ${1:-} in
  "")
    echo "usage: sbatch --nodes N launch/slurm.sh COMMAND [arguments of hpe COMMAND]" >&2
    exit 2
    ;;
  *.yaml | *.yml) set -- train "$@" ;;
esac
set -- "${@//%a/${SLURM_ARRAY_TASK_ID:-%a}}"

MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))
export MASTER_ADDR MASTER_PORT
export OMP_NUM_THREADS="${SLURM_CPUS_PER_TASK:-1}" TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"
# Since Slurm 22.05 srun no longer takes --cpus-per-task from sbatch: each rank, and its data workers, would get one core.
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
  export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
fi

# When a rank fails, srun ends the others and exits with the highest code of all: of a mistake (2) and of a rank that
# saved because of it (75) with 75. The cause is the rank that srun reports first, so its reports are written down.
ends=$(mktemp) || exit 1
report='^srun: error: [^ ]*: tasks\{0,1\} [^:]*: '
exec 3> >(trap "" TERM USR1 && exec sed -u -e h -e "s/$report//w $ends" -e g >&2)
reports=$!
# srun in the background, so that this shell sees signals and hands them on. Where hpe is called, words may follow.
# shellcheck disable=SC2086
srun --kill-on-bad-exit=1 --wait=0 ${HPE:-hpe} "$@" 2>&3 3>&- &
ranks=$!
exec 3>&-
ended=
trap 'signalled=yes; kill -USR1 "$ranks" 2>/dev/null' USR1
trap 'signalled=yes; ended=yes; kill -TERM "$ranks" 2>/dev/null' TERM
# A signal ends `wait` early, with a code of its own; another `wait` tells srun's, even where srun has just ended.
while
  signalled=
  wait "$ranks"
  status=$?
  [ -n "$signalled" ]
do :; done
wait "$reports"
first=$(head -n 1 "$ends")
rm -f "$ends"
case $first in
  "Exited with exit code "*) status=${first##* } ;;
  Killed | "Out Of Memory") status=137 ;;
esac

shows() { scontrol show job "$SLURM_JOB_ID" | grep "$1" >/dev/null; }

# The ranks' exit codes: 75 is saved; 138 and 143 are ended by SIGUSR1 and SIGTERM before there was anything to save.
again=
case $status in
  75) again=saved ;;
  138) again="ended by the time limit's warning before anything was saved" ;;
  143)
    if shows PreemptTime=2; then
      again="pre-empted before anything was saved"
    elif [ -z "$ended" ]; then
      echo "hpe: a rank was ended by SIGTERM before anything was saved: another rank has failed, see above"
    fi
    ;;
esac
if [ -n "$ended" ]; then
  # This shell gets SIGTERM where Slurm itself ends the job. After a pre-emption it has requeued the job already.
  if shows "Restarts=$((${SLURM_RESTART_COUNT:-0} + 1))"; then
    echo "hpe: pre-empted; Slurm has requeued $SLURM_JOB_ID"
  else
    echo "hpe: $SLURM_JOB_ID was cancelled${again:+ ($again)}; submit it again to resume"
  fi
elif [ "$status" -eq 138 ] && [ "${SLURM_RESTART_COUNT:-0}" -gt 0 ]; then
  echo "hpe: $again, and after a restart again; ask for a longer --time, or a later warning with --signal USR1@SECONDS"
elif [ -n "$again" ]; then
  echo "hpe: $again; requeued as $SLURM_JOB_ID"
  if [ "$SECONDS" -lt 120 ]; then
    echo "hpe: after only $SECONDS s: with a longer --time, or a later warning, fewer starts are needed"
  fi
  scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit "$status"
