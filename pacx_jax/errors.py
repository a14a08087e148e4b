"""The error that every command shows as one line."""

from __future__ import annotations


class PacxError(Exception):
    """An error in the user's input, shown as one line without a stack trace.

    The message names the file, field or value and says what to do. It may quote the
    contents of files, so line breaks become spaces, and other unprintable characters,
    which a terminal might obey, are escaped.
    """

    def __init__(self, message: object = ""):
        text = " ".join(str(message).splitlines())
        super().__init__("".join(map(_printable, text))[:_LONGEST])


def one_line(error: BaseException, longest: int = 300) -> str:
    """What an error of another package says, or else its kind."""
    return " ".join(str(error).split())[:longest] or type(error).__name__


_LONGEST = 3000  # characters of a message


def _printable(character: str) -> str:
    return character if character.isprintable() else ascii(character)[1:-1]
