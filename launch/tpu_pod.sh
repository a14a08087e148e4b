#!/usr/bin/env bash
# A Cloud TPU slice, from a queued request to a trained run, one step a subcommand:
#   bash launch/tpu_pod.sh create  --name=N --zone=Z --type=v5litepod-16 [--spot]
#   bash launch/tpu_pod.sh install --name=N --zone=Z --nfs=SERVER:/SHARE
#   bash launch/tpu_pod.sh run     --name=N --zone=Z -- --config=RECIPE \
#       --workdir=/mnt/pacx/runs/mae ...
#   bash launch/tpu_pod.sh wait    --name=N --zone=Z      # again, if the line dropped
#   bash launch/tpu_pod.sh stop    --name=N --zone=Z      # saves and ends the run
#   bash launch/tpu_pod.sh collect --name=N --zone=Z --workdir=/mnt/... --target=runs/mae
#   bash launch/tpu_pod.sh delete  --name=N --zone=Z
# A slice costs money from the moment it is active until it is deleted.
# Options:
#   --project=P          gcloud's configured one where not given
#   --runtime=V          the TPU software version of --type where not given
#   --spot               cheaper, may be taken away at any time
#   --valid_until=6h     how long the request may wait
#   --nfs=SERVER:/SHARE  mounted at /mnt/pacx on every worker; the workdir lies there
#   --dry-run            print the commands, run none
# `run` and `wait` end with 0 when all workers did, 75 when the run was stopped or the
# slice was taken away (create, install and run again: it goes on), else with the error's
# code. Logs: WORKDIR/logs/worker_HOST.log.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

step=${1:-}
[ $# -eq 0 ] || shift
name="" zone="" project="" type="" runtime="" spot="" valid_until="" nfs="" workdir=""
target="" dry_run="" poll=${PACX_POLL_SECONDS:-15}
while [ $# -gt 0 ]; do
  case $1 in
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --project=*) project=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --spot) spot=yes ;;
    --valid_until=*) valid_until=${1#*=} ;;
    --nfs=*) nfs=${1#*=} ;;
    --workdir=*) workdir=${1#*=} ;;
    --target=*) target=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    --)
      shift
      break
      ;;
    *) fail "unknown option $1: see the head of launch/tpu_pod.sh" ;;
  esac
  shift
done
[[ $name =~ ^[a-z]([a-z0-9-]{0,60}[a-z0-9])?$ ]] ||
  fail "--name=$name: give a name of a-z, 0-9 and -, a letter first"
[ -n "$zone" ] || fail "give --zone"
place=(--zone="$zone")
[ -z "$project" ] || place+=(--project="$project")

do_it() { # runs a command, or prints it
  if [ -n "$dry_run" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

on_workers() { # runs $1 on every worker, or on the one that $2 names
  do_it gcloud compute tpus tpu-vm ssh "$name" "${place[@]}" --worker="${2:-all}" \
    --command="$1"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format='value(state.state)'
}

create() {
  [ -n "$type" ] || fail "create: give --type, such as v5litepod-16"
  if [ -z "$runtime" ]; then
    case $type in
      v4-*) runtime=tpu-ubuntu2204-base ;;
      v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
      v5p-*) runtime=v2-alpha-tpuv5 ;;
      v6e-*) runtime=v2-alpha-tpuv6e ;;
      *) fail "--type=$type: give --runtime too" ;;
    esac
  fi
  local request=(gcloud compute tpus queued-resources create "$name" "${place[@]}"
    --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime")
  [ -z "$spot" ] || request+=(--spot)
  [ -z "$valid_until" ] || request+=(--valid-until-duration="$valid_until")
  do_it "${request[@]}"
  [ -z "$dry_run" ] || return 0
  local now last=""
  while true; do
    now=$(state)
    [ "$now" = "$last" ] || echo "$name: $now"
    last=$now
    case $now in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDING | SUSPENDED)
        echo "error: the request $name is $now: delete it, then create it again" >&2
        exit 1
        ;;
    esac
    sleep "$poll"
  done
}

install() {
  [[ $nfs =~ ^[A-Za-z0-9._-]+:/[A-Za-z0-9._/-]*$ ]] ||
    fail "--nfs=$nfs: give SERVER:/SHARE, which every worker can mount"
  local archive
  archive=$(mktemp -d)
  # shellcheck disable=SC2064 # its value now
  trap "rm -rf '$archive'" EXIT
  do_it git archive --format=tar.gz --output="$archive/pacx.tar.gz" HEAD
  do_it gcloud compute tpus tpu-vm scp "$archive/pacx.tar.gz" "$name:pacx.tar.gz" \
    "${place[@]}" --worker=all
  # The workers' own Python is older than 3.11: uv brings one.
  on_workers "set -e
sudo mkdir -p /mnt/pacx
if ! mountpoint -q /mnt/pacx; then
  command -v mount.nfs >/dev/null || sudo apt-get install -y -qq nfs-common
  sudo mount -t nfs -o hard,nconnect=8 $nfs /mnt/pacx
fi
rm -rf pacx && mkdir pacx && tar -xzf pacx.tar.gz -C pacx && cd pacx
python3 -m pip install --quiet --user uv==0.13.9
uv=\$HOME/.local/bin/uv
\$uv venv --quiet --python 3.11 .venv
\$uv pip install --quiet --require-hashes -r requirements.lock -r launch/requirements.tpu.lock
\$uv pip install --quiet --no-deps --no-build-isolation -e ."
}

run() {
  for argument in "$@"; do
    case $argument in --workdir=*) workdir=${argument#*=} ;; esac
  done
  [[ $workdir == /mnt/pacx/* ]] ||
    fail "run: give -- --workdir=/mnt/pacx/...: all workers write to it"
  local arguments
  arguments=$(printf '%q ' "$@")
  # Detached, so that a lost connection stops nothing. Python gets the worker's signals;
  # the shell around it stays to note the exit code.
  on_workers "set -e
cd ~/pacx
if [ -e ~/pacx.pid ] && kill -0 \$(cat ~/pacx.pid) 2>/dev/null; then
  echo 'error: a run is under way here: wait for it, or stop it' >&2; exit 2
fi
rm -f ~/pacx.exit ~/pacx.pid
mkdir -p $(printf %q "$workdir")/logs
export JAX_COMPILATION_CACHE_DIR=\$(.venv/bin/python launch/compile_cache.py)
setsid nohup bash -c '.venv/bin/python -m pacx_jax.main --distributed=auto \"\$@\" &
echo \$! >~/pacx.pid; wait \$!; echo \$? >~/pacx.exit' pacx $arguments \
  >>$(printf %q "$workdir")/logs/worker_\$(hostname).log 2>&1 </dev/null &"
  [ -n "$dry_run" ] || wait_for
}

wait_for() { # until every worker has ended
  local answer codes
  # A process that is gone and left no exit code went down with its worker.
  local ask="gone=0
until [ -e ~/pacx.exit ]; do
  sleep $poll
  [ ! -e ~/pacx.pid ] || kill -0 \$(cat ~/pacx.pid) 2>/dev/null || gone=\$((gone + 1))
  [ \$gone -lt 3 ] || echo 75 >~/pacx.exit
done
echo pacx exit \$(cat ~/pacx.exit)"
  if [ -n "$dry_run" ]; then
    on_workers "$ask"
    return 0
  fi
  until answer=$(on_workers "$ask"); do
    if [ "$(state)" != ACTIVE ]; then
      echo "the slice $name was taken away: delete it, create, install and run again" >&2
      exit 75
    fi
    sleep "$poll"
  done
  codes=$(sed -n 's/^pacx exit \([0-9]*\)$/\1/p' <<<"$answer" | sort -un)
  [ -n "$codes" ] || fail "no worker of $name said how its run ended"
  local code
  for code in $codes; do
    case $code in 0 | 75) ;; *) exit "$code" ;; esac
  done
  [[ $codes != *75* ]] || exit 75
}

case $step in
  create) create ;;
  install) install ;;
  run) run "$@" ;;
  wait) wait_for ;;
  stop) on_workers "kill -TERM \$(cat ~/pacx.pid)" ;;
  collect)
    [ -n "$workdir" ] && [ -n "$target" ] || fail "collect: give --workdir and --target"
    [ ! -e "$target" ] || fail "--target=$target exists: give a new folder"
    do_it mkdir -p "$(dirname "$target")"
    do_it gcloud compute tpus tpu-vm scp --recurse "$name:$workdir" "$target" \
      "${place[@]}" --worker=0
    ;;
  delete)
    do_it gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
    ;;
  *) fail "give create, install, run, wait, stop, collect or delete, not '$step'" ;;
esac
