"""What command lines share: a mistake in the flags is one line and exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Flags in full, described by the module's docstring."""

    def __init__(self, **kwargs):
        super().__init__(
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        """Ends the command; argparse would print its usage too."""
        self.exit(2, f"error: {' '.join(message.split())}; see --help\n")
