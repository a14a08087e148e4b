"""Full disks end in one line, and what was saved stays usable."""

import pathlib
import shutil
import sys
import threading

import jax
import numpy as np
import pytest
from absl.testing import flagsaver

from pacx_jax import files, loop, main
from pacx_jax.errors import PacxError
from pacx_jax.run import checkpoint, manifest


def full() -> OSError:
    """The error of a real disk that is full."""
    with pytest.raises(OSError) as error, open("/dev/full", "w") as file:
        file.write("x")
        file.flush()
    return error.value


def test_full_disk_is_known_by_its_error_or_by_the_words_in_others():
    chained = KeyError("x")
    chained.__context__ = full()
    written = ValueError("RESOURCE_EXHAUSTED: Failed to write: No space left on device")
    for error in (full(), chained, written):
        assert files.is_full(error)
    for error in (PermissionError(13, "Permission denied"), ValueError("x"), None):
        assert not files.is_full(error)


@pytest.mark.parametrize("seen", [True, False], ids=["before the save", "in it"])
def test_checkpoint_without_room_is_left_out_and_the_run_goes_on(
    tmp_path, monkeypatch, capsys, seen
):
    state = {"x": np.arange(2**18, dtype=np.float32)}
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(state, 1, {})
    assert saver.holds(1)
    with monkeypatch.context() as patched:
        if seen:
            usage = shutil.disk_usage(tmp_path)._replace(free=5 * 2**19)
            patched.setattr(shutil, "disk_usage", lambda _: usage)
        else:
            error = full()
            patched.setattr(manifest, "write", lambda *_: raise_(error))
        saver.save(state, 2, {})
        assert not saver.holds(2)
    said = capsys.readouterr().err
    assert said.startswith(f"warning: {tmp_path / 'checkpoints'}: no space left")
    assert "The run goes on without this checkpoint" in said and said.count("\n") == 1
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]
    saver.save(state, 3, {})  # there is room again
    saver.close()
    like = {"x": jax.ShapeDtypeStruct((2**18,), np.float32)}
    again = checkpoint.Checkpointer(tmp_path)
    assert again.latest_step() == 3
    np.testing.assert_array_equal(again.restore(like)[0]["x"], state["x"])
    again.close()


def raise_(error):
    raise error


def test_run_whose_last_checkpoint_found_no_room_is_not_finished(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path)
    with pytest.raises(PacxError, match="step 4 could not be saved; free some room"):
        loop.check_saved(saver, str(tmp_path), 4)
    saver.close()


class Exited(BaseException):
    """In place of the end of the process."""


@pytest.fixture
def command(monkeypatch, tmp_path):
    """main.main, where app.run is what it is given; the exit code."""

    def leave(code):
        raise Exited(code)

    def call(run):
        monkeypatch.setattr(sys, "argv", ["main", f"--workdir={tmp_path}"])
        main.flags.FLAGS(sys.argv)
        monkeypatch.setattr(main.app, "run", lambda *_, **__: run())
        monkeypatch.setattr(main.os, "_exit", leave)
        monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)
        with pytest.raises((Exited, SystemExit)) as end:
            main.main()
        return end.value.args[0]

    with flagsaver.flagsaver():
        yield call


@pytest.mark.parametrize("thread", [False, True], ids=["main", "in a thread"])
def test_full_disk_ends_the_command_with_one_line(command, tmp_path, capsys, thread):
    def run():
        try:
            raise full()
        except OSError as error:
            if not thread:
                raise
            arguments = (type(error), error, error.__traceback__, None)
            threading.excepthook(threading.ExceptHookArgs(arguments))

    assert command(run) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path}: no space left on its disk; free some")
    assert said.count("\n") == 1


def test_other_errors_are_not_taken_for_a_full_disk(command, capsys):
    def denied():
        pathlib.Path("/proc/1/nothing").write_text("x")

    assert command(denied) == 2
    assert "no space" not in capsys.readouterr().err

    def bug():
        raise ZeroDivisionError("a bug of ours")

    with pytest.raises(ZeroDivisionError):
        command(bug)
