#!/usr/bin/env bash
# Usage: launch/tpu_sync.sh [--dry-run] [--commit COMMIT]
#
# Brings a commit of this repository to all workers, and says which: HEAD, or COMMIT. Only commits
# travel; uncommitted changes would silently stay behind and so are an error, but not with --commit.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
commit=
while (($#)); do
  if [[ $1 == --commit ]]; then
    commit=${2:?--commit needs a commit, such as HEAD}
    shift
  else
    only_options "$1"
  fi
  shift
done
read_settings

if [[ -z $commit ]]; then
  commit=HEAD
  changes=$(ask "" git status --porcelain)
  [[ -z $changes ]] || die "not committed:
$changes
Commit or delete these, or send the last commit without them: launch/tpu_sync.sh --commit HEAD"
fi
commit=$(ask "$commit" git rev-parse --verify "$commit")
run git log -1 --oneline "$commit"
# A bundle rather than an archive: the workers then have a repository, and metrics.json the commit.
run git bundle create launch/erc_jax.bundle HEAD "$commit"
run gcloud compute tpus tpu-vm scp launch/erc_jax.bundle "$TPU_NAME:erc_jax.bundle" "${place[@]}" --worker=all
on_workers all "rm -rf erc_jax/source && git clone --quiet --no-checkout erc_jax.bundle erc_jax/source && git -C erc_jax/source checkout --quiet --detach $commit"
