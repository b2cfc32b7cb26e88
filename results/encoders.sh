#!/usr/bin/env bash
# Every run behind the table of fine-tuned encoders in docs/results.md; a finished run is only scored again.
#   results/encoders.sh DATA RUNS [ENCODER …]     by default all-MiniLM-L6-v2 and all-mpnet-base-v2
# DATA holds meld/ and emorynlp/ with the original files; see docs/data.md.
# On two CPU cores about an hour and a half, nearly all of it for MPNet.
# Then: python results/encoder_tables.py RUNS
set -euo pipefail
data=${1:?folder of the corpora} runs=${2:?folder for the runs}
shift 2
encoders=("$@")
[ ${#encoders[@]} -gt 0 ] || encoders=(all-MiniLM-L6-v2 all-mpnet-base-v2)

run() { # workdir, config, corpus, further flags
  local workdir=$1 config=$2 corpus=$3
  shift 3
  python -m erc_jax.main --config "$config" --config.data.source="$data/$corpus" \
    --workdir "$runs/$workdir" "$@"
}

for encoder in "${encoders[@]}"; do
  corpora=(meld)
  [ "$encoder" = all-MiniLM-L6-v2 ] && rate=5e-5 || rate=3e-5
  [ "$encoder" = all-MiniLM-L6-v2 ] && corpora+=(emorynlp)
  for corpus in "${corpora[@]}"; do
    # The encoder; Mtl-ERC-ES on its features; and on the published encoder's, for comparison.
    run "$corpus-$encoder" "$corpus:encoder" "$corpus" \
      --config.encoder="$encoder" --config.train.learning_rate=$rate
    run "$corpus-$encoder-mtl" "$corpus" "$corpus" \
      --config.encoder="$runs/$corpus-$encoder" --config.seeds=3
    # MiniLM's is a run of results/mtl_erc_es.sh too: with the same RUNS it is not made twice.
    [ "$encoder" = all-MiniLM-L6-v2 ] && frozen=$corpus || frozen=$corpus-$encoder-frozen
    run "$frozen" "$corpus" "$corpus" --config.encoder="$encoder" --config.seeds=3
  done
done
