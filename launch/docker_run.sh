#!/usr/bin/env bash
# Usage: launch/docker_run.sh [--dry-run] [--cuda] RUN FLAGS...
#
# Builds the image, for CPUs or with --cuda for NVIDIA GPUs, and runs `python -m erc_jax.main FLAGS`
# in it, into runs/RUN of this checkout. `docker stop erc_jax_RUN` lets it save its state first.
# Example: launch/docker_run.sh --cuda meld --config meld
set -euo pipefail
source "$(dirname "$0")/common.sh"
cd "$(dirname "$0")/.."
device=cpu gpus=()
while [[ ${1:-} == -* ]]; do
  if [[ $1 == --cuda ]]; then device=cuda gpus=(--gpus all); else common_option "$1"; fi
  shift
done
(($#)) || die "which run? $0 --help shows how"

run docker build --file launch/Dockerfile --build-arg "DEVICE=$device" --tag "erc_jax:$device" .
run mkdir -p runs
# As you, so that the files in runs/ are yours.
run docker run --rm --name "erc_jax_$1" --stop-timeout 120 --user "$UID:${GROUPS[0]}" "${gpus[@]}" \
  --volume ./runs:/runs --volume erc_jax_cache:/cache "erc_jax:$device" --workdir "/runs/$1" "${@:2}"
