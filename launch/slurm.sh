#!/usr/bin/env bash
# Usage: sbatch [OPTIONS OF SBATCH] launch/slurm.sh RUN FLAGS...
#        bash launch/slurm.sh --dry-run RUN FLAGS...
#
# Runs `python -m erc_jax.main FLAGS` into runs/RUN as one process per task, with the python of the
# environment that is active when it is submitted, from the root of the repository, which has to be on
# a file system that all nodes share. JAX gives the n-th task of a node the n-th GPU that it sees: ask
# for GPUs per node, not per task, and for as many tasks.
# Example: sbatch --nodes=2 --gpus-per-node=4 --ntasks-per-node=4 launch/slurm.sh meld --config meld
# Preempted, or two minutes before its time is up, it saves its state, and the job is queued again.
#SBATCH --job-name=erc_jax
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=erc_jax-%j.log
set -euo pipefail
root=${SLURM_SUBMIT_DIR:-$(dirname "$0")/..} # SLURM runs a copy of this file, from elsewhere
source "$root/launch/common.sh"
cd "$root"
while [[ ${1:-} == -* ]]; do
  common_option "$1"
  shift
done
(($#)) || die "which run? $0 --help shows how"

# After 75 the run is to go on, and after 143, by which SIGTERM ends it while it does not train. Only if
# the job still counts as running: after scancel it does not, and where SLURM itself has taken the job
# back into the queue, neither.
queue_again() {
  [[ $dry_run || $1 == 75 || $1 == 143 ]] || return 0
  local state
  state=$(ask RUNNING squeue --noheader --jobs="${SLURM_JOB_ID:-JOB}" --format=%T)
  [[ $state != RUNNING ]] || run scontrol requeue "${SLURM_JOB_ID:-JOB}"
}
trap 'queue_again $?' EXIT

# Sourced, so that it is this very shell that hears the signal: B: sends it to no other process.
source launch/keep_running.sh srun python -m erc_jax.main --workdir "runs/$1" --distributed auto "${@:2}"
