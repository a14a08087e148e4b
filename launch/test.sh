#!/usr/bin/env bash
# The tests: 8 simulated CPU devices, tiny models. Arguments go to pytest.
#   bash launch/test.sh           what CI runs, at most 10 minutes on two cores
#   bash launch/test.sh --all     the full matrices too
# Two processes share the files of tests; -n 0 takes one, for a debugger.
set -euo pipefail
# In the order of tests/conftest.py, long files first.
workers=(-n 2 --dist=loadfile --no-loadscope-reorder)
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [ "${1:-}" = "--all" ]; then
  shift
  exec python -m pytest "${workers[@]}" "$@"
fi
exec python -m pytest "${workers[@]}" -m "not full" "$@"
