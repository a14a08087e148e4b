"""What every command shares: its parser, errors as one line, exit codes."""

from __future__ import annotations

import argparse
import functools
import io
import os
import sys
from collections.abc import Callable, Collection
from typing import NoReturn

from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.stores import urls

FAILED = 2  # exit code of an error that the user can mend
INTERRUPTED = 130  # by Ctrl-C
_SAY_NOTHING = (None, "", [], argparse.SUPPRESS)  # as defaults of flags


class Parser(argparse.ArgumentParser):
    """Flags in full, described by the module's docstring.

    Args:
      remote: names of the flags that take gs:// and s3://; others refuse them.
    """

    def __init__(self, *, remote: Collection[str] = (), **kwargs):
        self._remote = remote
        if sys.argv[0].startswith("pacx "):  # of pacx_jax/commands/__init__.py
            kwargs["prog"] = sys.argv[0]
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def add_argument(self, *names, **about):
        """argparse's, whose help ends in the default where that says something."""
        default, text = about.get("default"), about.get("help") or ""
        says = default is not False and default not in _SAY_NOTHING
        if says and "default" not in text:
            about["help"] = f"{text} (default: %(default)s)".lstrip()
        return super().add_argument(*names, **about)

    def parse_known_args(self, args=None, namespace=None):
        args = sys.argv[1:] if args is None else args
        found, rest = super().parse_known_args(list(map(at_home, args)), namespace)
        for name, value in vars(found).items():
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str) and name not in self._remote:
                    refuse_remote(f"--{name}", text)
                elif isinstance(text, str):
                    urls.is_remote(text)  # refuses what is nearly a URL
        return found, rest

    def error(self, message: str) -> NoReturn:
        """Ends the command; argparse would print its usage too."""
        self.exit(FAILED, f"error: {' '.join(message.split())}; see --help\n")


def refuse_remote(flag: str, path: str) -> None:
    """PacxError for gs:// and s3:// where only a local path goes."""
    if urls.is_remote(path):
        raise PacxError(
            f"{flag}={path}: give a local path; `gcloud storage cp -r` and `aws s3 cp "
            "--recursive` copy from and to buckets"
        )


def at_home(argument: str) -> str:
    """A flag whose value begins with ~/, which shells do not expand after `--x=`.

    PacxError for one that ends in a carriage return, which would be of a file's name.
    """
    if argument.endswith("\r"):
        raise PacxError(
            f"flag {argument!r}: it ends in a carriage return, as a script with "
            "Windows' line ends has it; mend that by sed -i 's/\\r$//' SCRIPT"
        )
    name, equals, value = argument.partition("=")
    if equals and name.startswith("-") and (value + "/").startswith("~/"):
        return f"{name}={os.path.expanduser(value)}"
    return argument


def command(main: Callable[..., int | None]) -> Callable[..., int]:
    """Decorates a command's main: an error of the user's is one line and exit code 2.

    What `describe` does not know is a bug, and keeps its stack trace.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> int:
        print_any_letter()
        try:
            return main(*args, **kwargs) or 0
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return INTERRUPTED
        except Exception as error:
            text = describe(error)
            if not text:
                raise
        print(f"error: {text}", file=sys.stderr)
        return FAILED

    return wrapped


def print_any_letter() -> None:
    """Lets stdout escape letters that its encoding lacks, such as those of a path."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def describe(error: BaseException) -> str:
    """One line for an error that the user can mend; "" for a bug."""
    if isinstance(error, OSError) and error.filename:
        if files.is_full(error):
            return files.full_disk(error.filename)
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, (PacxError, OSError)):
        return " ".join(str(error).split())
    if "RESOURCE_EXHAUSTED" in str(error):
        from pacx_jax import target  # imports jax, which not every command needs

        return target.out_of_memory(error, "JAX_PLATFORMS=cpu computes on the host")
    return ""
