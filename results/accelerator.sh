#!/usr/bin/env bash
# How fast each system trains on this machine's accelerator, in float32 and in bfloat16, and what a
# seed costs when ten are trained in one program.
#   results/accelerator.sh FIGURES
# prints tables and writes them to the folder FIGURES as JSON. "Of peak" is the share of what a large
# matrix product of the same type reaches (MFU). Needs all-MiniLM-L6-v2, installed or from the hub.
set -euo pipefail
figures=${1:?folder for the figures}
mkdir -p "$figures"

measure() { # name of the figures, benchmark and its options
  for dtype in float32 bfloat16; do
    python -m erc_jax.benchmarks "${@:2}" --dtype "$dtype" --json "$figures/$1-$dtype.json"
  done
}

measure mtl_erc_es-384 mtl_erc_es --model whole --width 384
measure mtl_erc_es-1024 mtl_erc_es --model whole --width 1024
measure fmerl fmerl
measure sent_emo_context sent_emo_context
measure response response --task train
measure fine_tuning encoder --task train
measure ten_seeds scale --seeds 1 10
