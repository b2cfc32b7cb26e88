#!/usr/bin/env bash
# Usage: launch/tpu_stop.sh [--dry-run]
#
# Tells the run on all workers to stop, which it does once its state is saved; launch/tpu_run.sh goes on
# from there. Prints the exit codes: 75 is "stopped and saved". The TPU stays, and goes on costing.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
only_options "$@"
read_settings

on_workers all "bash erc_jax/source/launch/worker.sh stop"
