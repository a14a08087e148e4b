"""The error that every command shows as one line."""

from __future__ import annotations


class PacxError(Exception):
    """An error in the user's input: shown as one line, without a stack trace.

    The message names the file, field or value and says what to do. It may quote the
    contents of files, so line breaks become spaces, and other characters that cannot
    be printed, which a terminal might obey, are escaped.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(str(message)))


_LONGEST = 3000  # characters of a message


def one_line(text: str) -> str:
    """Text that may quote files, as one line that a terminal cannot obey."""
    return "".join(map(_printable, " ".join(text.splitlines())))[:_LONGEST]


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
