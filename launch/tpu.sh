# shellcheck shell=bash
# What the TPU scripts share: the settings, and commands on the TPU's workers. Sourced.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
cd "$(dirname "${BASH_SOURCE[0]}")/.." # the root of the repository: all paths are from there

settings=${ERC_JAX_SETTINGS:-launch/settings.sh}
names=(PROJECT ZONE TPU_NAME ACCELERATOR_TYPE RUNTIME_VERSION SPOT STORE)
unset "${names[@]}" # what the environment holds under these names is somebody else's

# shellcheck disable=SC2034
poll=${ERC_JAX_POLL:-60} # seconds between two looks at what is being waited for

# Call it after the options are read, so that --help needs no settings.
read_settings() {
  local name
  [[ -e $settings ]] || die "$settings does not exist: copy launch/settings.example.sh to it and edit it"
  # shellcheck source=launch/settings.example.sh
  source "$settings"
  for name in "${names[@]}"; do
    [[ ${!name:-} ]] || die "$name is not set in $settings; launch/settings.example.sh says what it is"
  done
  [[ $SPOT == yes || $SPOT == no ]] || die "SPOT=$SPOT in $settings: expected yes or no"
  [[ $STORE =~ ^gs://[^/]+$ || $STORE =~ ^[^:/]+:/ ]] \
    || die "STORE=$STORE in $settings: expected a bucket, gs://NAME, or an NFS export, HOST:/FOLDER"
  project=(--project="$PROJECT")
  place=("${project[@]}" --zone="$ZONE")
}

# RUN names a folder below runs/: one word without surprises.
check_run_name() {
  [[ ${1:-} =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]*$ ]] \
    || die "'${1:-}' does not do as the name of a run: letters, digits, _, . and -; $0 --help"
}

# on_workers WORKER COMMAND-LINE: runs it in the home folder of worker WORKER, a number or all.
on_workers() {
  run gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" --worker="$1" --command="$2"
}

# READY; or what the request for the TPU is waiting for or has ended in, or NONE if there is none.
tpu_state() {
  local request node
  request=$(ask "${1:-ACTIVE}" gcloud compute tpus queued-resources list "${place[@]}" \
    --filter="name~/$TPU_NAME\$" --format='value(state.state)') || return
  if [[ $request != ACTIVE ]]; then
    echo "${request:-NONE}"
    return
  fi
  # The request can stay ACTIVE for a while after its TPU was preempted.
  node=$(ask READY gcloud compute tpus tpu-vm list "${place[@]}" \
    --filter="name~/$TPU_NAME\$" --format='value(state)') || return
  echo "${node:-PREEMPTED}"
}

# Whether a TPU in this state is gone for good, while its request still has to be deleted.
is_lost() {
  [[ $1 =~ ^(SUSPENDED|PREEMPTED|TERMINATED|STOPPED)$ ]]
}

# For each worker: running, the exit code of the run that has ended, or none.
run_states() {
  ask "${1:-running}" gcloud compute tpus tpu-vm ssh "$TPU_NAME" "${place[@]}" --worker=all \
    --command='bash erc_jax/source/launch/worker.sh state || echo none' \
    | grep -Ex 'running|none|[0-9]+'
}
