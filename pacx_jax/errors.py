"""The error that every command shows as one line."""

from __future__ import annotations


class PacxError(Exception):
    """An error in the user's input, shown as one line without a stack trace.

    The message names the file, field or value and says what to do. It may quote the
    contents of files, so line breaks become spaces, and other unprintable characters,
    which a terminal might obey, are escaped.
    """

    def __init__(self, message: object = ""):
        super().__init__(_shown(" ".join(str(message).splitlines())))


_LONGEST = 3000  # characters of a message


def one_line(found: object, longest: int = 300) -> str:
    """What an error of another package, or text that may quote files, says.

    One line that a terminal cannot obey; an error without words gives its kind.
    """
    return _shown(" ".join(str(found).split()) or type(found).__name__)[:longest]


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)[:_LONGEST]


# What setup.py has in no extra, as it would replace packages of the lock.
_AFTER = dict.fromkeys(("onnx", "web"), " and pip install --no-deps 'jax2onnx>=0.17'")


# What a model card says, whose reader may not have this project.
INSTALL = (
    "pacx_jax is in no registry, and a package of that name on PyPI is not this one: "
    "run `pip install -e .` in the checkout of this project."
)


def install(extra: str) -> str:
    """The command that installs an extra; this package is in no registry."""
    command = f"pip install -e '.[{extra}]'{_AFTER.get(extra, '')}"
    return f"run {command} in the checkout of this project"
