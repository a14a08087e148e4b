"""The error that every command shows as one line."""

from __future__ import annotations


class PacxError(Exception):
    """An error in the user's input: shown as one line, without a stack trace.

    The message names the file, field or value and says what to do. It may quote the
    contents of files, so line breaks become spaces, and other characters that cannot
    be printed, which a terminal might obey, are escaped.
    """

    def __init__(self, message: object = ""):
        text = " ".join(str(message).splitlines())
        super().__init__("".join(map(_printable, text))[:_LONGEST])


_LONGEST = 3000  # characters of a message


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]


def install(extra: str) -> str:
    """The command that installs an extra; this package is in no registry."""
    return f"run pip install -e '.[{extra}]' in the checkout of this project"
