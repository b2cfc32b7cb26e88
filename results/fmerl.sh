#!/usr/bin/env bash
# Every run behind the tables of FMERL in docs/results.md; a finished run is only scored again.
#   results/fmerl.sh DATA RUNS NORMS
# DATA holds mosi/ and meld/ with the original files and iemocap/ with JSON lines; see docs/data.md.
# NORMS is the CSV file of Warriner's norms.
# Then: python results/fmerl_tables.py RUNS
set -euo pipefail
data=${1:?folder of the corpora} runs=${2:?folder for the runs} norms=${3:?file of word norms}

train() { # workdir, corpus, further flags
  local workdir=$1 corpus=$2
  shift 2
  python -m erc_jax.main --config "$corpus:fmerl" --config.data.source="$data/$corpus" \
    --config.seeds=5 --workdir "$runs/$workdir" "$@"
}

# Three modalities, and each alone.
train mosi mosi
for modality in text audio visual; do
  train "mosi-$modality" mosi --config.fmerl.modalities="('$modality',)"
done

# A made-up corpus whose label needs all three, and each two of them.
python results/all_three.py "$runs/all-three-data"
all_three() { # workdir, modalities
  local workdir=$1 features=()
  shift
  for modality in "$@"; do
    features+=(--config.data.features."$modality"="$runs/all-three-data/features/$modality")
  done
  python -m erc_jax.main --config own:fmerl --config.data.source="$runs/all-three-data" \
    "${features[@]}" --config.fmerl.modalities="($(printf "'%s'," "$@"))" --workdir "$runs/$workdir"
}
all_three all-three text audio visual
all_three all-three-text-audio text audio
all_three all-three-text-visual text visual
all_three all-three-audio-visual audio visual

# Ratings by people, and by a lexicon; with and without the nets that learn them.
annotation=$runs/meld-annotation
[ -f "$annotation/annotation.json" ] || python -m erc_jax.main --mode annotate \
  --config meld --config.data.source="$data/meld" --annotator lexicon --lexicon "$norms" \
  --output "$annotation"
train iemocap iemocap
train iemocap-no-vad iemocap --config.fmerl.vad.dimensions='()'
train meld meld --config.data.annotation="$annotation"
train meld-no-vad meld --config.fmerl.vad.dimensions='()'

# An emotion that training does not see: known by its phrase alone and nothing given up for it, as in
# the paper; by name and phrase; by its name.
unseen() { # workdir, corpus, emotion, further flags
  local workdir=$1 corpus=$2 emotion=$3
  shift 3
  train "$workdir-phrase" "$corpus" --config.zero_shot.unseen="$emotion" "$@" \
    --config.fmerl.descriptions=phrase --config.zero_shot.give_up=0.0
  train "$workdir" "$corpus" --config.zero_shot.unseen="$emotion" "$@"
  train "$workdir-name" "$corpus" --config.zero_shot.unseen="$emotion" "$@" \
    --config.fmerl.descriptions=name
}
unseen iemocap-without-happy iemocap happy
unseen meld-without-fear meld fear --config.data.annotation="$annotation"
