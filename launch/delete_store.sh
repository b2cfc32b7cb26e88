#!/usr/bin/env bash
# Usage: launch/delete_store.sh [--dry-run] --yes
#
# Deletes the bucket of STORE with all runs in it: launch/tpu_fetch.sh first. There is no way back.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
yes=
for word; do
  if [[ $word == --yes ]]; then yes=1; else only_options "$word"; fi
done
read_settings
[[ $STORE == gs://* ]] || die "STORE=$STORE is not a bucket: delete that file server where you made it"
[[ $yes ]] || die "this deletes $STORE and all runs in it for good; say --yes if that is meant"

run gcloud storage rm "$STORE" "${project[@]}" --recursive
