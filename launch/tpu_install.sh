#!/usr/bin/env bash
# Usage: launch/tpu_install.sh [--dry-run]
#
# On all workers: mounts STORE as /mnt/erc_jax, and installs Python, JAX for TPUs and erc_jax.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
only_options "$@"
read_settings

on_workers all "bash erc_jax/source/launch/worker.sh mount $(quoted "$STORE") && bash erc_jax/source/launch/worker.sh install"
