#!/usr/bin/env bash
# Usage: launch/tpu_run.sh [--dry-run] RUN FLAGS...
#
# Starts `python -m erc_jax.main FLAGS` on all workers, into runs/RUN of STORE, or goes on with what is
# there. It runs in the background, whatever becomes of this connection: launch/tpu_logs.sh shows it.
# Example: launch/tpu_run.sh meld --config meld --config.seeds=5
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
while [[ ${1:-} == -* ]]; do
  common_option "$1"
  shift
done
read_settings
check_run_name "${1:-}"

command=(../venv/bin/python -m erc_jax.main --workdir "/mnt/erc_jax/runs/$1" --distributed auto "${@:2}")
on_workers all "bash erc_jax/source/launch/worker.sh start $(quoted "${command[@]}")"
