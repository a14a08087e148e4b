#!/usr/bin/env bash
# One run as several processes of this machine, each with its own devices.
#   bash launch/local.sh --num_processes=2 --devices=4 --config=RECIPE --workdir=DIR ...
# Options, before those of pacx_jax.main:
#   --num_processes=2   how many
#   --devices=1         devices of each
#   --platform=cpu      simulated devices; gpu: those of CUDA_VISIBLE_DEVICES in order,
#                       or 0, 1, ... where it is not set
#   --port=N            the coordinator's; the default is a free one
#   --grace=60          seconds from a stop or a failure until what still runs is killed
#   --dry-run           print the commands, run none
# Process 0 writes to the terminal, process I to WORKDIR/logs/process_I.log; of a WORKDIR
# in a bucket (gs://, s3://) to a temporary folder that is printed. TERM, INT and
# HUP are passed on as TERM. When one process fails, the others are stopped. The exit code
# is that of the first that failed, 75 (stopped: the same command goes on from the last
# checkpoint) only if none did otherwise. 134 is a process that lost another: 75 too.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

fail() {
  echo "error: $*" >&2
  exit 2
}

num_processes=2 devices=1 platform=cpu port="" grace=60 dry_run=""
while [ $# -gt 0 ]; do
  case $1 in
    --num_processes=*) num_processes=${1#*=} ;;
    --devices=*) devices=${1#*=} ;;
    --platform=*) platform=${1#*=} ;;
    --port=*) port=${1#*=} ;;
    --grace=*) grace=${1#*=} ;;
    --dry-run) dry_run=yes ;;
    *) break ;;
  esac
  shift
done
for name in num_processes devices grace ${port:+port}; do
  [[ ${!name} =~ ^[1-9][0-9]{0,5}$ ]] ||
    fail "--$name=${!name}: give a whole number of at least 1"
done
workdir=""
for argument in "$@"; do
  case $argument in
    --workdir=*) workdir=${argument#*=} ;;
    --num_processes=* | --devices=* | --platform=* | --port=* | --grace=* | --dry-run)
      fail "$argument: local.sh's own options go before those of pacx_jax.main" ;;
  esac
done
logs=$workdir/logs
case $workdir in
  "") fail "give --workdir=DIR" ;;
  gs://* | s3://*) logs="" ;;
  [A-Za-z]*:/*) fail "--workdir=$workdir: give a folder, gs://BUCKET/... or s3://..." ;;
esac

case $platform in
  cpu) ;;
  gpu)
    if [ -n "${CUDA_VISIBLE_DEVICES:-}" ]; then
      IFS=, read -ra gpus <<<"$CUDA_VISIBLE_DEVICES"
    else
      mapfile -t gpus < <(seq 0 $((num_processes * devices - 1)))
    fi
    [ ${#gpus[@]} -ge $((num_processes * devices)) ] ||
      fail "$num_processes processes of $devices GPUs need $((num_processes * devices))," \
        "CUDA_VISIBLE_DEVICES=$CUDA_VISIBLE_DEVICES names ${#gpus[@]}"
    ;;
  *) fail "--platform=$platform: choose cpu or gpu" ;;
esac

if [ -z "$port" ]; then # the first free one, from a place of this process's own
  port=$((20000 + $$ % 20000))
  while (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do port=$((port + 1)); done
fi

command_of() { # sets `command` to what process $1 runs
  local mine
  if [ "$platform" = cpu ]; then
    local flag="--xla_force_host_platform_device_count=$devices"
    command=(env JAX_PLATFORMS=cpu XLA_FLAGS="${XLA_FLAGS:+$XLA_FLAGS }$flag")
  else
    mine=$(IFS=,; echo "${gpus[*]:$(($1 * devices)):devices}")
    command=(env CUDA_VISIBLE_DEVICES="$mine")
  fi
  command+=(python -m pacx_jax.main "${@:2}" --coordinator="localhost:$port"
    --num_processes="$num_processes" --process_id="$1")
}

if [ -n "$dry_run" ]; then
  for ((i = 0; i < num_processes; i++)); do
    command_of "$i" "$@"
    printf '%q ' "${command[@]}"
    echo
  done
  exit 0
fi

if ! command -v python >/dev/null; then
  [ -x .venv/bin/python ] ||
    fail "no python on PATH: source .venv/bin/activate (README.md says how to make it)"
  export PATH="$PWD/.venv/bin:$PATH"
fi

declare -A running=()
code=0 deadline=""
stop() { # asks all that still run to save and end
  deadline=$((SECONDS + grace))
  local pid
  for pid in "${running[@]}"; do kill -TERM "$pid" 2>/dev/null || true; done
}
trap stop TERM INT HUP

JAX_COMPILATION_CACHE_DIR=$(python launch/compile_cache.py)
export JAX_COMPILATION_CACHE_DIR
if [ -z "$logs" ]; then
  logs=$(mktemp -d)
  echo "logs of the other processes: $logs"
fi
mkdir -p "$logs"
for ((i = 0; i < num_processes; i++)); do
  command_of "$i" "$@"
  if [ "$i" -eq 0 ]; then
    "${command[@]}" </dev/null &
  else
    "${command[@]}" </dev/null >>"$logs/process_$i.log" 2>&1 &
  fi
  running[$i]=$!
done

ended() { # process $1 has: with which exit code, and what follows from it
  local status=0
  wait "${running[$1]}" || status=$?
  unset "running[$1]"
  if [ "$status" -eq 143 ] && [ -n "$deadline" ]; then
    status=75 # asked to stop before it could answer: nothing is lost
  elif [ "$status" -eq 134 ]; then
    echo "process $1 of $num_processes lost another one: start the run again" >&2
    status=75 # JAX's abort of a process that lost another
  fi
  [ "$status" -ne 0 ] || return 0
  if [ "$code" -eq 0 ] || [ "$code" -eq 75 ]; then code=$status; fi
  [ "$status" -eq 75 ] || {
    echo "process $1 of $num_processes failed with exit code $status" >&2
    [ "$1" -eq 0 ] || tail -n 3 "$logs/process_$1.log" >&2
  }
  [ -n "$deadline" ] || stop
}

while [ ${#running[@]} -gt 0 ]; do
  for i in "${!running[@]}"; do
    kill -0 "${running[$i]}" 2>/dev/null || ended "$i"
  done
  if [ -n "$deadline" ] && [ "$SECONDS" -ge "$deadline" ]; then
    for pid in "${running[@]}"; do kill -KILL "$pid" 2>/dev/null || true; done
  fi
  sleep 0.2
done
exit "$code"
