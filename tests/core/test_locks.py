"""Locks: one holder, told or waited for, and gone with its process."""

import subprocess
import sys
import threading

import pytest

from pacx_jax import files
from pacx_jax.errors import PacxError


def test_second_holder_is_refused_and_a_later_one_is_not(tmp_path):
    path = tmp_path / "new" / "lock"
    with files.locked(path, "taken"):
        with pytest.raises(PacxError, match="^taken$"):
            with files.locked(path, "taken"):
                pass
    with files.locked(path, "taken"):
        pass


def test_without_a_refusal_the_second_holder_waits_for_the_first(tmp_path):
    path, order = tmp_path / "lock", []

    def second():
        with files.locked(path):
            order.append("second")

    thread = threading.Thread(target=second)
    with files.locked(path):
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
        order.append("first")
    thread.join(10)
    assert order == ["first", "second"]


def test_lock_of_a_killed_process_is_free(tmp_path):
    path = tmp_path / "lock"
    program = (
        "import sys, time; from pacx_jax import files\n"
        f"with files.locked({str(path)!r}, 'taken'):\n"
        "    print('held', flush=True); time.sleep(100)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"held\n"
    with pytest.raises(PacxError, match="taken"):
        with files.locked(path, "taken"):
            pass
    process.kill()
    process.communicate(timeout=30)
    with files.locked(path, "taken"):
        pass
