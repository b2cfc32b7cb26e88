#!/usr/bin/env bash
# Usage: launch/tpu_status.sh [--dry-run] [--wait]
#
# Tells the state of the TPU and, once it is READY, that of the run on each worker: running, its exit
# code, or none. --wait only returns when the TPU is READY, and fails if it can no longer become so.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
wait=
for word; do
  if [[ $word == --wait ]]; then wait=1; else only_options "$word"; fi
done
read_settings

state=$(tpu_state)
while [[ $wait && $state != READY ]]; do
  if [[ $state == NONE || $state == FAILED ]] || is_lost "$state"; then
    die "the TPU $TPU_NAME is $state, it will not become READY: launch/tpu_delete.sh, then tpu_create.sh"
  fi
  remark "The TPU is $state; asking again in $poll seconds."
  sleep "$poll"
  state=$(tpu_state)
done
remark "The TPU is $state."
if [[ $state == READY && -z $wait ]]; then
  states=$(run_states)
  remark "The run on the workers: ${states//$'\n'/, }."
fi
