#!/usr/bin/env bash
# Usage: launch/tpu_delete.sh [--dry-run] [--yes]
#
# Deletes the TPU and the request for it; with --yes, without asking. A run that is going on there is
# lost from its last checkpoint on: launch/tpu_stop.sh first. STORE stays.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
options=(--force) # the TPU first, then the request for it
for word; do
  if [[ $word == --yes ]]; then options+=(--quiet); else only_options "$word"; fi
done
read_settings

run gcloud compute tpus queued-resources delete "$TPU_NAME" "${place[@]}" "${options[@]}"
