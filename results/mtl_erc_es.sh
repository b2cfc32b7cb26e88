#!/usr/bin/env bash
# Every run behind the tables of Mtl-ERC-ES in docs/results.md; a run that is finished is only scored again.
#   results/mtl_erc_es.sh DATA RUNS
# DATA holds meld/, emorynlp/, dailydialog/ (original files) and iemocap/ (JSON lines); see docs/data.md.
# On two fast CPU cores 21 minutes. Then: python results/tables.py RUNS
set -euo pipefail
data=${1:?folder of the corpora} runs=${2:?folder for the runs}

train() { # workdir, config, further flags
  local workdir=$1 config=$2
  shift 2
  python -m erc_jax.main --config "$config" --config.data.source="$data/$config" \
    --config.seeds=3 --workdir "$runs/$workdir" "$@"
}

for corpus in meld emorynlp iemocap dailydialog; do
  train "$corpus" "$corpus"
done
for corpus in emorynlp iemocap; do
  train "$corpus-without-shift" "$corpus" --config.tasks.shift=False
  train "$corpus-without-sentiment" "$corpus" --config.tasks.sentiment=False
  train "$corpus-without-both" "$corpus" --config.tasks.shift=False --config.tasks.sentiment=False
done
train iemocap-first-shift iemocap --config.data.first_shift=strong_negative
