# shellcheck shell=bash
# Sourced by the launchers: makes .venv from the lock once, and activates it.
# PYTHON names another interpreter than python3.11 or python3.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
if [ ! -x .venv/bin/python ] || ! cmp -s requirements.lock .venv/requirements.lock; then
  python=${PYTHON:-$(command -v python3.11 || command -v python3 || true)}
  if [ -z "$python" ] || ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'
  then
    echo "error: Python 3.11 or newer is needed: install it, or set PYTHON to it" >&2
    exit 2
  fi
  echo "installing into .venv (once, a few minutes) ..."
  rm -rf .venv
  "$python" -m venv .venv || {
    echo "error: 'python -m venv' failed: install your system's python3-venv" >&2
    exit 2
  }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes \
    -r requirements.lock || {
    echo "error: installing requirements.lock failed: see the lines above" >&2
    exit 2
  }
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps \
    --no-build-isolation -e . || exit 2
  cp requirements.lock .venv/requirements.lock # last: marks a finished installation
fi
export PATH="$PWD/.venv/bin:$PATH"
