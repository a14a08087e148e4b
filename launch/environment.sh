# shellcheck shell=bash
# Sourced by the launchers: makes .venv from the lock once, and activates it.
# PYTHON names an interpreter; without it, the first of python3.11, python3.12 and python3
# that runs and is new enough.
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

# Prints the version of the interpreter $1; fails where it does not run or is too old.
python_version() {
  "$1" -c 'import sys; print(*sys.version_info[:2]); sys.exit(sys.version_info < (3, 11))' \
    2>/dev/null
}

wanted=$(python_version "${PYTHON:-.venv/bin/python}" || true)
if [ ! -x .venv/bin/python ] || ! cmp -s requirements.lock .venv/requirements.lock ||
  [ "$wanted" != "$(python_version .venv/bin/python)" ]; then
  candidates=(python3.11 python3.12 python3)
  [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
  for python in "${candidates[@]}" none; do
    if python_version "$python" >/dev/null; then break; fi
  done
  if [ "$python" = none ]; then
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
