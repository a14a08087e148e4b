#!/usr/bin/env bash
# A Cloud TPU slice, from a queued request to a trained run, one step a subcommand:
#   bash launch/tpu_pod.sh create  --name=N --zone=Z --type=v5litepod-16 [--spot]
#                                       # again, if it ended while the request waits
#   bash launch/tpu_pod.sh install --name=N --zone=Z
#   bash launch/tpu_pod.sh run     --name=N --zone=Z -- --config=RECIPE \
#       --workdir=gs://BUCKET/runs/mae --config.data.path=gs://BUCKET/prepared/chexpert
#   bash launch/tpu_pod.sh wait    --name=N --zone=Z      # again, if the line dropped
#   bash launch/tpu_pod.sh stop    --name=N --zone=Z      # saves and ends the run
#   bash launch/tpu_pod.sh collect --name=N --zone=Z --workdir=gs://... --target=runs/mae
#   bash launch/tpu_pod.sh delete  --name=N --zone=Z
# A slice costs money from the moment it is active until it is deleted.
# Options:
#   --project=P          gcloud's configured one where not given
#   --runtime=V          the TPU software version of --type where not given
#   --spot               cheaper, may be taken away at any time
#   --valid_until=6h     how long the request may wait
#   --nfs=SERVER:/SHARE  mounted at /mnt/pacx on every worker, for a --workdir there
#   --dry-run            print the commands, run none
# `run` and `wait` end with 0 when all workers did, 75 when the run was stopped, a worker
# was lost or the slice was taken away (create, install and run again: it goes on), else
# with the error's code. Logs: WORKDIR/logs/worker_HOST.log; of a WORKDIR in a bucket
# ~/pacx_logs/worker_HOST.log on each worker.
# `create` and `wait` ask every PACX_POLL_SECONDS (15), and end with a line after
# PACX_MAX_FAILURES (10) questions in a row without an answer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

step=${1:-}
[ $# -eq 0 ] || shift
name="" zone="" project="" type="" runtime="" spot="" valid_until="" nfs="" workdir=""
target="" dry_run="" poll=${PACX_POLL_SECONDS:-15} attempts=${PACX_MAX_FAILURES:-10}
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
[[ $poll =~ ^[0-9]{1,5}(\.[0-9]+)?$ ]] ||
  fail "PACX_POLL_SECONDS=$poll: give seconds, such as 15"
[[ $attempts =~ ^[1-9][0-9]{0,5}$ ]] ||
  fail "PACX_MAX_FAILURES=$attempts: give a whole number of at least 1"
place=(--zone="$zone")
[ -z "$project" ] || place+=(--project="$project")
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
errors=$scratch/errors # what gcloud said of the last question

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

state() { # of the request; fails where there is no answer
  local now
  now=$(gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
    --format='value(state.state)' 2>"$errors") && [ -n "$now" ] && echo "$now"
}

last_error() { # the line of $errors that says why, not how gcloud went on from there
  awk '{ sub(/\r$/, "") }
    /ttempting to connect|^Retrying:|^Failed to execute|^#####|return code \[/ {
      other = $0; next
    }
    /^Traceback|^Exception in thread|^ |^$/ { next }
    /^ERROR: / { error = $0 }
    { last = $0 }
    END {
      if (!last) last = other ? other : "no reason given"
      print substr(error ? error : last, 1, 200)
    }' "$errors"
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
  local now last="" advice failures=0 code=0
  do_it "${request[@]}" || code=$?
  [ -z "$dry_run" ] || return 0
  if [ "$code" -ne 0 ]; then # since an earlier `create` asked for it?
    state >/dev/null || exit "$code"
    echo "$name was requested before, with --type and --spot of then: waiting for that"
  fi
  while true; do
    if now=$(state); then
      failures=0
      [ "$now" = "$last" ] || echo "$name: $now"
      last=$now
      case $now in
        ACTIVE) return 0 ;;
        CREATING | ACCEPTED | PROVISIONING | WAITING_FOR_RESOURCES) advice="" ;;
        FAILED | SUSPENDING | SUSPENDED) advice="delete it, then create it again" ;;
        DELETING) advice="create it again once it is gone" ;;
        *) advice="no state to wait in; see what it is, or delete it" ;;
      esac
      [ -z "$advice" ] || {
        echo "error: the request $name is $now: $advice" >&2
        exit 1
      }
    else
      failures=$((failures + 1))
      [ "$failures" -lt "$attempts" ] ||
        fail "the request $name may still be queued, and is billed once active, but" \
          "gcloud does not say ($(last_error)): create it again to wait on, or delete it"
    fi
    sleep "$poll"
  done
}

install() {
  local mount=""
  if [ -n "$nfs" ]; then
    [[ $nfs =~ ^[A-Za-z0-9._-]+:/[A-Za-z0-9._/-]*$ ]] ||
      fail "--nfs=$nfs: give SERVER:/SHARE, which every worker can mount"
    mount="sudo mkdir -p /mnt/pacx
if ! mountpoint -q /mnt/pacx; then
  command -v mount.nfs >/dev/null || sudo apt-get install -y -qq nfs-common
  sudo mount -t nfs -o hard,nconnect=8 $nfs /mnt/pacx
fi"
  fi
  do_it git archive --format=tar.gz --output="$scratch/pacx.tar.gz" HEAD
  do_it gcloud compute tpus tpu-vm scp "$scratch/pacx.tar.gz" "$name:pacx.tar.gz" \
    "${place[@]}" --worker=all
  # The workers' own Python is older than 3.11: uv brings one.
  on_workers "set -e
$mount
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
  local arguments logs
  case $workdir in
    gs://* | s3://*) logs="\$HOME/pacx_logs" ;;
    /mnt/pacx/*) logs=$(printf %q "$workdir")/logs ;;
    *) fail "run: give -- --workdir=gs://BUCKET/..., s3://... or, with --nfs," \
      "/mnt/pacx/...: all workers write to it" ;;
  esac
  arguments=$(printf '%q ' "$@")
  # Detached, so that a lost connection stops nothing. Python gets the worker's signals;
  # the shell around it stays to note the exit code. Its number is there before we leave:
  # without one, `wait` says that nothing was started.
  on_workers "set -e
cd ~/pacx
if [ -e ~/pacx.pid ] && kill -0 \$(cat ~/pacx.pid) 2>/dev/null; then
  echo 'error: a run is under way here: wait for it, or stop it' >&2; exit 2
fi
rm -f ~/pacx.exit ~/pacx.pid
mkdir -p $logs
export JAX_COMPILATION_CACHE_DIR=\$(.venv/bin/python launch/compile_cache.py)
setsid nohup bash -c '.venv/bin/python -m pacx_jax.main --distributed=auto \"\$@\" &
echo \$! >~/pacx.pid; wait \$!; echo \$? >~/pacx.exit' pacx $arguments \
  >>$logs/worker_\$(hostname).log 2>&1 </dev/null &
for _ in \$(seq 100); do [ ! -s ~/pacx.pid ] || break; sleep 0.1; done"
  [ -n "$dry_run" ] || wait_for
}

wait_for() { # until every worker has ended
  local answer codes who why now failures=0
  # A process that is gone and left no exit code went down with its worker. The workers
  # answer after a while even if it runs: one that cannot be reached is noticed then.
  local ask="[ -e ~/pacx.exit ] || [ -e ~/pacx.pid ] || { echo pacx never; exit; }
gone=0
for _ in \$(seq 20); do
  [ ! -s ~/pacx.exit ] || { echo pacx exit \$(cat ~/pacx.exit); exit; }
  sleep $poll
  kill -0 \$(cat ~/pacx.pid) 2>/dev/null || gone=\$((gone + 1))
  [ \$gone -lt 3 ] || [ -s ~/pacx.exit ] || echo 75 >~/pacx.exit
done
echo pacx runs"
  if [ -n "$dry_run" ]; then
    on_workers "$ask"
    return 0
  fi
  while true; do
    if answer=$(on_workers "$ask" 2>"$errors"); then
      failures=0
      ! grep -q '^pacx never$' <<<"$answer" ||
        fail "nothing was started on $(grep -c '^pacx never$' <<<"$answer") workers of" \
          "$name: start it by run"
      grep -q '^pacx runs$' <<<"$answer" || break
      continue
    fi
    failures=$((failures + 1))
    who=$(grep -oE 'worker [0-9]+' "$errors" | tail -n 1 || true)
    who="${who:-a worker} of $name" why=$(last_error)
    if now=$(state) && [ "$now" != ACTIVE ]; then
      echo "the slice $name was taken away: delete it, create, install and run again" >&2
      exit 75
    fi
    [ "$failures" -lt "$attempts" ] ||
      fail "$who did not answer $failures times in a row, last: $why;" \
        "what was started goes on: mend this, then wait again"
    [ "$failures" -gt 1 ] || echo "$who did not answer, asking again: $why" >&2
    sleep "$poll"
  done
  codes=$(sed -n 's/^pacx exit \([0-9]*\)$/\1/p' <<<"$answer" | sort -un)
  [ -n "$codes" ] || fail "no worker of $name said how its run ended"
  local code
  for code in $codes; do # 134: JAX aborts who lost another; 143: stopped as it started
    case $code in 0 | 75 | 134 | 143) ;; *) exit "$code" ;; esac
  done
  [ "$codes" = 0 ] || exit 75
}

stop() { # asks all workers to save and end
  local answer
  local ask="[ -e ~/pacx.exit ] || ! kill -TERM \$(cat ~/pacx.pid) || echo pacx stops"
  ask="{ $ask; } 2>/dev/null"
  if [ -n "$dry_run" ]; then
    on_workers "$ask"
    return 0
  fi
  answer=$(on_workers "$ask")
  grep -q '^pacx stops$' <<<"$answer" || fail "nothing runs on $name: nothing to stop"
}

case $step in
  create) create ;;
  install) install ;;
  run) run "$@" ;;
  wait) wait_for ;;
  stop) stop ;;
  collect)
    [ -n "$workdir" ] && [ -n "$target" ] || fail "collect: give --workdir and --target"
    [ ! -e "$target" ] || fail "--target=$target exists: give a new folder"
    case $workdir in # without the states, whose form is a bucket's own
      gs://*) copy=(gcloud storage rsync --recursive --exclude='(checkpoints|best)/.*') ;;
      s3://*) copy=(aws s3 cp --recursive --exclude='checkpoints/*' --exclude='best/*') ;;
      *) copy=() ;;
    esac
    if [ ${#copy[@]} -gt 0 ]; then
      do_it mkdir -p "$target"
      do_it "${copy[@]}" "$workdir" "$target"
      exit
    fi
    do_it mkdir -p "$(dirname "$target")"
    do_it gcloud compute tpus tpu-vm scp --recurse "$name:$workdir" "$target" \
      "${place[@]}" --worker=0
    ;;
  delete)
    do_it gcloud compute tpus queued-resources delete "$name" "${place[@]}" --force --quiet
    ;;
  *) fail "give create, install, run, wait, stop, collect or delete, not '$step'" ;;
esac
