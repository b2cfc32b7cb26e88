#!/usr/bin/env bash
# Usage: launch/tpu_fetch.sh [--dry-run] RUN
#
# Copies the run from STORE to runs/RUN of this checkout. From a bucket this needs no TPU.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
while [[ ${1:-} == -* ]]; do
  common_option "$1"
  shift
done
read_settings
check_run_name "${1:-}"

run mkdir -p "runs/$1"
if [[ $STORE == gs://* ]]; then
  run gcloud storage rsync "$STORE/runs/$1" "runs/$1" --recursive
else
  run gcloud compute tpus tpu-vm scp "$TPU_NAME:/mnt/erc_jax/runs/$1" runs "${place[@]}" --worker=0 --recurse
fi
