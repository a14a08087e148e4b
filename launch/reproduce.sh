#!/usr/bin/env bash
# Tables 1 to 3 and figures 2 to 5 of PaCX-MAE, beside the published numbers.
#   bash launch/reproduce.sh --data=DIR [--out=DIR] [--seeds=N] [--encoder=NAME=DIR]
#                            [--cohort] [--tiny] [--on=slurm] [--config.FIELD=VALUE]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
exec python launch/reproduce.py "$@"
