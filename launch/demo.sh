#!/usr/bin/env bash
# The whole of PaCX-MAE, or of MVMAE, on the embedded cohort, from nothing to a report.
#   bash launch/demo.sh [--method=pacx | --method=mvmae] [--full | --tiny] [--seed=N]
#                       [--seeds=N] [--target=DIR] [--split=test]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python launch/demo.py "$@"
