#!/usr/bin/env bash
# Every run behind the tables of emotion-aware replies in docs/results.md; a finished run is only scored again.
#   results/response.sh DATA RUNS
# DATA holds dailydialog/ and tec/ with the original files; see docs/data.md. Each run takes about an hour on one
# core; the floor under their perplexity half a minute.
# Then: python results/response_tables.py RUNS
set -euo pipefail
data=${1:?folder of the corpora} runs=${2:?folder for the runs}

for tasks in R R+E6; do
  python -m erc_jax.main --config "dailydialog:response,tasks=$tasks,size=tiny" \
    --config.data.source="$data" --workdir "$runs/$tasks"
done
python results/ngram_perplexity.py "$data" --model "$runs/R/model"
