#!/usr/bin/env bash
# Usage: launch/tpu_logs.sh [--dry-run] [WORKER]
#
# Follows what the run prints on worker 0, or WORKER, until Ctrl-C; the run does not notice.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
while [[ ${1:-} == -* ]]; do
  common_option "$1"
  shift
done
worker=${1:-0}
[[ $worker =~ ^[0-9]+$ && $# -le 1 ]] || die "which worker? A number from 0, not: $*"
read_settings

on_workers "$worker" "tail -n 100 -F erc_jax/run/log"
