#!/usr/bin/env bash
# Usage: launch/check_costs.sh [--dry-run]
#
# Lists what the project has, in all zones, of the things that these scripts make or need and that
# cost money. Exit code 0: nothing; 1: what is listed.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
only_options "$@"
read_settings

found=
look_for() {
  local lines
  lines=$(ask "" "${@:2}" "${project[@]}")
  [[ $lines ]] || return 0
  found=1
  echo "$1:"
  echo "$lines"
}
look_for "requests for TPUs" gcloud compute tpus queued-resources list --zone=- --format='value(name,state.state)'
look_for "TPUs" gcloud compute tpus tpu-vm list --zone=- --format='value(name,state)'
look_for "machines" gcloud compute instances list --format='value(name,zone,status)'
look_for "disks" gcloud compute disks list --format='value(name,zone,sizeGb)'
look_for "buckets" gcloud storage buckets list --format='value(name)'
[[ $STORE == gs://* ]] || look_for "file servers" gcloud filestore instances list --format='value(name,tier)'
[[ -z $found ]] || exit 1
[[ $dry_run ]] || remark "Nothing of this is left in $PROJECT."
