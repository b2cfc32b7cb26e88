#!/usr/bin/env bash
# Usage: launch/tpu_create.sh [--dry-run]
#
# Asks for the TPU of the settings. It costs money from when it is READY until launch/tpu_delete.sh.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
only_options "$@"
read_settings

options=(--node-id="$TPU_NAME" --accelerator-type="$ACCELERATOR_TYPE" --runtime-version="$RUNTIME_VERSION")
[[ $SPOT == no ]] || options+=(--spot)
# An NFS export knows users by their numbers, which only OS Login makes the same on all workers.
[[ $STORE == gs://* ]] || options+=(--metadata=enable-oslogin=TRUE)
run gcloud compute tpus queued-resources create "$TPU_NAME" "${place[@]}" "${options[@]}"
