#!/usr/bin/env bash
# The whole of PaCX-MAE, MVMAE or CheXmix on simulated patients, to a report.
#   bash launch/demo.sh [--method=pacx|mvmae|chexmix] [--full | --tiny] [--seed=N]
#                       [--seeds=N] [--target=DIR] [--split=test]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python launch/demo.py "$@"
