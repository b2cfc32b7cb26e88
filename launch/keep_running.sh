#!/usr/bin/env bash
# Usage: launch/keep_running.sh [--dry-run] [--restarts N] [--pause SECONDS] [--exit-file FILE] COMMAND...
#
# Runs COMMAND, and starts it again
#   in a few seconds, when it exits with 75: it was told to stop, has saved its state and goes on from
#   there, unless this script is told to stop, too, as the workers of a pod are one after the other;
#   after a pause (30 seconds), when it crashed, by a signal or any other code, N times (10) at most.
# It is not started again after 0 (finished), 1 and 2 (a mistake of the user's), and 126 and 127 (no
# such command); nor once this script has had SIGTERM or SIGINT, which it passes on to COMMAND.
# The exit code is COMMAND's last; it is also written to FILE.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# The workers of a pod crash one after the other: who outlives a peer notices within 100 seconds, so
# the first to crash has to try for longer than that.
restarts=10
pause=30
exit_file=
while (($#)); do
  case $1 in
    --restarts | --pause | --exit-file)
      (($# > 1)) || die "$1 needs a value"
      declare "$(tr - _ <<< "${1#--}")=$2"
      shift 2
      ;;
    -*)
      common_option "$1"
      shift
      ;;
    *) break ;;
  esac
done
(($#)) || die "which command is to be kept running? $0 --help shows how"
for number in "$restarts" "$pause"; do
  [[ $number =~ ^[0-9]+$ ]] || die "$number: --restarts and --pause are whole numbers"
done
if [[ $dry_run ]]; then
  show "$@"
  exit
fi

end() {
  [[ -z $exit_file ]] || echo "$1" > "$exit_file"
  exit "$1"
}

signals=0
child=
pass_on() {
  signals=$((signals + 1))
  [[ -z $child ]] || kill -s "$1" "$child" 2> /dev/null || true
}
trap 'pass_on TERM' TERM
trap 'pass_on INT' INT

# COMMAND gets a process group of its own: Ctrl-C then reaches it once, through pass_on.
set -m

# Waits so many seconds; a signal ends that, and this script.
rest() {
  sleep "$1" &
  child=$!
  wait "$child" || true
  ((signals == 0)) || end "$code"
}

crashes=0
while true; do
  show "$@"
  "$@" &
  child=$!
  while true; do
    before=$signals code=0
    wait "$child" || code=$?
    ((signals == before)) || continue # a signal ended the wait, not the child
    kill -0 "$child" 2> /dev/null || break
    sleep 1 # the child is only suspended, as SLURM does it
  done
  child=
  ((signals == 0)) || end "$code"
  case $code in
    0 | 1 | 2 | 126 | 127) end "$code" ;;
    75)
      remark "It was told to stop and saved its state: it goes on."
      rest 5
      ;;
    *)
      crashes=$((crashes + 1))
      if ((crashes > restarts)); then
        remark "It crashed with $code again, after $restarts restarts: it is left at that."
        end "$code"
      fi
      remark "It crashed with $code: it is started again in $pause seconds ($crashes of $restarts)."
      rest "$pause"
      ;;
  esac
done
