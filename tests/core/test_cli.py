"""How commands end: an error of the user's is one line, a bug keeps its stack trace."""

import errno
import os

import jax
import jax.numpy as jnp
import pytest

from data.cohort import generate
from pacx_jax import cli, export
from pacx_jax.commands import replay
from pacx_jax.errors import PacxError


def raising(error):
    @cli.command
    def main():
        raise error

    return main


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PacxError("config.dtype\n'int8': choose"), "config.dtype 'int8': choose"),
        (PermissionError(errno.EACCES, "denied", "a/b"), "a/b: denied"),
        (OSError("no such device"), "no such device"),
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a/b"), "a/b: no space left"),
    ],
)
def test_an_error_of_the_users_is_one_line(error, line, capsys):
    assert raising(error)() == cli.FAILED
    err = capsys.readouterr().err
    assert err.startswith(f"error: {line}") and err.count("\n") == 1


def test_a_bug_keeps_its_stack_trace():
    with pytest.raises(ZeroDivisionError):
        raising(ZeroDivisionError("division by zero"))()


def test_an_interrupted_command_ends_with_130():
    assert raising(KeyboardInterrupt())() == 130


def test_a_command_returns_what_its_main_returns():
    assert cli.command(lambda: None)() == 0
    assert cli.command(lambda code: code)(1) == 1


def test_a_bucket_is_refused_by_flags_that_take_local_paths(capsys, monkeypatch):
    @cli.command
    def main(argv):
        parser = cli.Parser(remote=("out",))
        parser.add_argument("--out")
        parser.add_argument("--target")
        parser.parse_args(argv)

    assert main(["--out=s3://bucket/a", "--target=a/s3:"]) == 0
    for flag, text in (
        ("--target=s3://bucket/a", "--target=s3://bucket/a: give a local path; `gcl"),
        ("--out=gcs://bucket/a", "gcs://bucket/a: did you mean gs://bucket/a?"),
    ):
        assert main([flag]) == cli.FAILED
        assert capsys.readouterr().err.startswith(f"error: {text}")
    assert generate.main(["--target=gs://bucket/cohort"]) == 2
    assert "gs:/bucket/cohort: give a local folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("module", "function", "arguments"),
    [
        (export, "_export", ["--workdir=runs/x"]),
        (replay, "replay", ["--workdir=runs/x", "--step=1"]),
    ],
)
def test_memory_of_the_device_that_runs_out_is_one_line(
    module, function, arguments, capsys, monkeypatch
):
    def allocate(*args):
        jnp.zeros((2**45,)).block_until_ready()

    with pytest.raises(jax.errors.JaxRuntimeError):
        allocate()
    monkeypatch.setattr(module, function, allocate)
    assert module.main(arguments) == cli.FAILED
    err = capsys.readouterr().err
    assert err.startswith("error: the devices' memory does not hold this step (140")
    assert "JAX_PLATFORMS=cpu" in err and err.count("\n") == 1


def test_help_ends_in_a_default_that_says_something(capsys):
    parser = cli.Parser()
    parser.add_argument("--size", type=int, default=32, help="of a batch")
    parser.add_argument("--name", default="", help="of the run")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    shown = capsys.readouterr().out
    assert "of a batch (default: 32)" in shown and "of the run\n" in shown
