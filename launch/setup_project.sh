#!/usr/bin/env bash
# Usage: launch/setup_project.sh [--dry-run]
#
# Once per project: enables the APIs, and makes the bucket of STORE, which the TPU's workers may write
# to. An NFS export you make yourself.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
only_options "$@"
read_settings

run gcloud services enable compute.googleapis.com tpu.googleapis.com storage.googleapis.com "${project[@]}"
[[ $STORE == gs://* ]] || exit 0

# Checkpoints are written under another name and then renamed, folders and all: only a bucket with a
# hierarchical namespace does that in one step.
run gcloud storage buckets create "$STORE" "${project[@]}" --location="${ZONE%-*}" \
  --uniform-bucket-level-access --enable-hierarchical-namespace
number=$(ask 123456789012 gcloud projects describe "$PROJECT" --format='value(projectNumber)')
run gcloud storage buckets add-iam-policy-binding "$STORE" --role=roles/storage.objectUser \
  --member="serviceAccount:$number-compute@developer.gserviceaccount.com"
