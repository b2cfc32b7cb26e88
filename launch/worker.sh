#!/usr/bin/env bash
# Usage: launch/worker.sh [--dry-run] mount STORE | install | start COMMAND... | state | stop
#
# What a worker of the TPU does when the scripts on your computer tell it to; it has the checkout in
# ~/erc_jax/source, Python in ~/erc_jax/venv and the run's log and exit code in ~/erc_jax/run.
#   mount STORE       mounts the bucket or NFS export as /mnt/erc_jax
#   install           installs Python, JAX and erc_jax
#   start COMMAND...  starts it in the background, under keep_running.sh
#   state             prints running, the exit code of the run that has ended, or none
#   stop              tells the run to stop, waits until it has, and prints its exit code
set -euo pipefail
source "$(dirname "$0")/common.sh"
while [[ ${1:-} == -* ]]; do
  common_option "$1"
  shift
done
record=$HOME/erc_jax/run

# A fresh machine updates itself, and holds apt's locks for some minutes.
apt_install() {
  local attempt
  for attempt in {1..20}; do
    run sudo apt-get -qq update \
      && run sudo env DEBIAN_FRONTEND=noninteractive apt-get -qq install --yes "$1" && return
    remark "apt failed, attempt $attempt of 20; again in 15 seconds."
    sleep 15
  done
  die "apt could not install $1"
}

mount_store() {
  ! mountpoint --quiet /mnt/erc_jax || return 0
  run sudo mkdir -p /mnt/erc_jax
  if [[ $1 == gs://* ]]; then
    local key=/usr/share/keyrings/cloud.google.asc repository=https://packages.cloud.google.com/apt
    run bash -c "curl -fsSL $repository/doc/apt-key.gpg | sudo tee $key > /dev/null"
    run bash -c "echo \"deb [signed-by=$key] $repository gcsfuse-\$(lsb_release -cs) main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list"
    apt_install gcsfuse
    run sudo chown "$(id -un)" /mnt/erc_jax
    # Without these caches each worker sees at once what the others wrote.
    run gcsfuse --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "${1#gs://}" /mnt/erc_jax
  else
    apt_install nfs-common
    run sudo mount -t nfs "$1" /mnt/erc_jax
    run sudo chmod 1777 /mnt/erc_jax
  fi
}

install_packages() {
  # TPU images come with Python 3.10, too old for JAX; uv fetches a newer one.
  run python3 -m pip install --quiet --user uv
  run ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 ~/erc_jax/venv
  run ~/.local/bin/uv pip install --quiet --python ~/erc_jax/venv/bin/python --editable ~/erc_jax/source'[tpu]'
}

state() {
  if [[ -e $record/exit ]]; then
    cat "$record/exit"
  elif grep -qs keep_running "/proc/$(cat "$record/pid" 2> /dev/null)/cmdline"; then
    echo running
  else
    echo none # never started; or on an earlier life of this machine
  fi
}

start() {
  [[ $(state) != running ]] || die "a run is going on here; launch/tpu_stop.sh stops it"
  run mkdir -p "$record"
  run rm -f "$record/exit"
  run cd "$HOME/erc_jax/source"
  # Nothing ties it to the connection: a session of its own, and no files shared with it.
  run bash -c "setsid nohup launch/keep_running.sh --exit-file $record/exit $(quoted "$@") \
>> $record/log 2>&1 < /dev/null 3>&- & echo \$! > $record/pid"
}

stop() {
  if [[ $dry_run || $(state) == running ]]; then
    run bash -c "kill -TERM \$(cat $record/pid)"
    while [[ $(state) == running && -z $dry_run ]]; do sleep 1; done
  fi
  [[ $dry_run ]] || state
}

case ${1:-} in
  mount) mount_store "${2:?which bucket or NFS export?}" ;;
  install) install_packages ;;
  start) start "${@:2}" ;;
  state) state ;;
  stop) stop ;;
  *) die "unknown: ${1:-}; $0 --help shows what there is" ;;
esac
