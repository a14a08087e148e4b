"""Which interpreter launch/environment.sh makes .venv with, and when it does anew.

Stand-ins for interpreters answer about their version, and refuse to make a .venv.
"""

import os
import shutil
import subprocess

import pytest

from tests.launch.scripts import ROOT


@pytest.fixture
def clone(tmp_path):
    """A folder with the launcher, a lock, and `bin` alone before /usr/bin on PATH."""
    for folder in ("launch", "bin"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / "launch/environment.sh", tmp_path / "launch")
    (tmp_path / "requirements.lock").write_text("absl-py==2.5.1\n")
    for name in ("python3.11", "python3.12", "python3"):
        interpreter(tmp_path / "bin" / name, None)
    return tmp_path


def interpreter(path, version: str | None) -> None:
    """Writes a stand-in of that version; of None, one that does not run."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new_enough = version is not None and tuple(map(int, version.split())) >= (3, 11)
    answer = f"echo {version}; exit {0 if new_enough else 1}" if version else "exit 127"
    path.write_text(
        f'#!/bin/sh\nif [ "$1" = -c ]; then {answer}; fi\n'
        f'echo "$(basename "$0") $*" >>"{path.parent}/called"; exit 1\n'
    )
    path.chmod(0o755)


def source(clone, **more) -> tuple[int, str, str]:
    """Exit code, standard error, and what interpreters in `bin` were called with."""
    env = {"PATH": f"{clone}/bin{os.pathsep}{os.environ['PATH']}", **more}
    done = subprocess.run(
        ["bash", "-euc", "source launch/environment.sh"],
        cwd=clone,
        env=env,
        capture_output=True,
        text=True,
        timeout=30,
    )
    called = clone / "bin" / "called"
    return done.returncode, done.stderr, called.read_text() if called.exists() else ""


def installed(clone, version: str) -> None:
    interpreter(clone / ".venv/bin/python", version)
    shutil.copy(clone / "requirements.lock", clone / ".venv")


def test_the_first_interpreter_that_runs_is_taken(clone):
    interpreter(clone / "bin/python3.12", "3 12")
    interpreter(clone / "bin/python3", "3 13")
    assert source(clone)[2] == "python3.12 -m venv .venv\n"


def test_the_named_interpreter_is_taken(clone):
    interpreter(clone / "bin/python3.11", "3 11")
    interpreter(clone / "bin/mine", "3 12")
    assert source(clone, PYTHON="mine")[2] == "mine -m venv .venv\n"


@pytest.mark.parametrize("named", [{}, {"PYTHON": "python3"}, {"PYTHON": "/none"}])
def test_old_or_missing_interpreters_end_with_one_line(clone, named):
    interpreter(clone / "bin/python3", "3 9")
    code, error, called = source(clone, **named)
    assert (code, called) == (2, "")
    assert error == (
        "error: Python 3.11 or newer is needed: install it, or set PYTHON to it\n"
    )


def test_a_finished_environment_stays_whatever_is_on_path(clone):
    installed(clone, "3 11")
    interpreter(clone / "bin/python3.12", "3 12")
    assert source(clone) == (0, "", "")
    interpreter(clone / "bin/python3.11", "3 11")
    assert source(clone, PYTHON="python3.11") == (0, "", "")


def test_another_version_in_PYTHON_makes_the_environment_anew(clone):
    installed(clone, "3 11")
    interpreter(clone / "bin/python3.12", "3 12")
    assert source(clone, PYTHON="python3.12")[2] == "python3.12 -m venv .venv\n"
    assert not (clone / ".venv").exists()
