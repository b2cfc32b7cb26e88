#!/usr/bin/env bash
# Usage: launch/tpu_resume.sh [--dry-run] [--delete] RUN FLAGS...
#
# Sees a run through to its end, from whatever state things are in: asks for the TPU if there is none
# or it was preempted; brings this checkout's commit there, the same one each time; installs; and
# starts the run, or goes on with it. Ends with the run's exit code, once that is 0 (finished), a
# mistake (1, 2), or a crash that launch/keep_running.sh gave up on. --delete deletes the TPU then.
# It needs a computer that stays on and connected; stopped and started again, it picks up the thread.
set -euo pipefail
source "$(dirname "$0")/tpu.sh"
delete=
while [[ ${1:-} == -* ]]; do
  if [[ $1 == --delete ]]; then delete=1; else common_option "$1"; fi
  shift
done
read_settings
check_run_name "${1:-}"

changes=$(ask "" git status --porcelain)
[[ -z $changes ]] || die "not committed, and so not part of the run; commit or delete these first:
$changes"
commit=$(ask HEAD git rev-parse --verify HEAD)

look_again() {
  remark "Failed: $1. That can be the network, or a preemption; looking again in $poll seconds."
  sleep "$poll"
}
failures=0
try() {
  if "$@"; then
    failures=0
  else
    failures=$((failures + 1))
    ((failures < 5)) || give_up "failed 5 times in a row: $(quoted "$@")"
    look_again "$(quoted "$@")"
  fi
}
prepare_and_run() {
  launch/tpu_sync.sh --commit "$commit" && launch/tpu_install.sh && launch/tpu_run.sh "$@"
}
end() {
  if [[ $delete ]]; then launch/tpu_delete.sh --yes; else remark "The TPU costs until launch/tpu_delete.sh."; fi
  exit "$1"
}
give_up() {
  echo "Error: $1" >&2
  end 1
}

assumed_request=SUSPENDED assumed_run=none # a dry run tells the story of one preemption
while true; do
  state=$(tpu_state "$assumed_request") || {
    look_again "asking for the state of the TPU"
    continue
  }
  remark "The TPU is $state."
  if [[ $state == NONE ]]; then
    try launch/tpu_create.sh
    assumed_request=ACTIVE
    continue
  elif is_lost "$state"; then
    try launch/tpu_delete.sh --yes
    assumed_request=NONE
    continue
  elif [[ $state == FAILED ]]; then
    run gcloud compute tpus queued-resources describe "$TPU_NAME" "${place[@]}"
    give_up "the request for the TPU failed, see above; when that is put right: launch/tpu_delete.sh, then again"
  elif [[ $state != READY ]]; then
    sleep "$poll"
    continue
  fi

  states=$(run_states "$assumed_run") || {
    look_again "asking for the state of the run"
    continue
  }
  remark "The run on the workers: ${states//$'\n'/, }."
  error=$(grep -Evx 'running|none|0|75' <<< "$states" | sort -n | tail -1) || true
  case $states in
    # A worker that fails alone, or whose machine was started anew, leaves the others waiting for it.
    *running*)
      if [[ $error || $states == *none* ]]; then try launch/tpu_stop.sh; else sleep "$poll"; fi
      ;;
    *none*) try prepare_and_run "$@" ;;
    *)
      [[ -z $error ]] || end "$error"
      [[ $states == *75* ]] || end 0
      try launch/tpu_run.sh "$@"
      ;;
  esac
  assumed_run=0
done
