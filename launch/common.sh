# shellcheck shell=bash
# What all scripts share: options, and commands that are shown before they are run. Sourced.
set -euo pipefail
shopt -s inherit_errexit # a failure within $(...) counts, too
exec 3>&1                # where a dry run prints, also from within $(...)

dry_run=${ERC_JAX_DRY_RUN:-}
script=$(realpath "$0")

die() {
  echo "Error: $*" >&2
  exit 2
}

# The comment at the head of the script that was started.
help() {
  sed -n '/^# Usage/,/^\([^#]\|#[^ ]\|$\)/{s/^# //p;s/^#$//p}' "$script"
  exit
}

common_option() {
  case $1 in
    --help | -h) help ;;
    --dry-run) export ERC_JAX_DRY_RUN=1 dry_run=1 ;; # also for scripts that this one starts
    *) die "unknown option $1; $0 --help shows what there is" ;;
  esac
}

# For a script that takes no arguments.
only_options() {
  local word
  for word; do
    [[ $word == -* ]] || die "unexpected argument $word; $0 --help shows what there is"
    common_option "$word"
  done
}

# The command as a line that can be pasted into a shell.
quoted() {
  local word line=
  for word; do
    [[ $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]] || word=${word@Q}
    line+=" $word"
  done
  echo "${line:1}"
}

show() {
  if [[ $dry_run ]]; then quoted "$@" >&3; else echo "+ $(quoted "$@")" >&2; fi
}

run() {
  show "$@"
  [[ $dry_run ]] || "$@"
}

# ask ASSUMED COMMAND...: what COMMAND answers; in a dry run, ASSUMED.
ask() {
  show "${@:2}"
  if [[ $dry_run ]]; then echo "$1"; else "${@:2}"; fi
}

# A remark among the commands.
remark() {
  if [[ $dry_run ]]; then echo "# $*" >&3; else echo "$*" >&2; fi
}
