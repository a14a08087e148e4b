"""Locks between processes. They end with their process, however that ended."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import pathlib
from collections.abc import Iterator

from absl import logging

from pacx_jax.types import PacxError


@contextlib.contextmanager
def held(path: str | os.PathLike, refusal: str = "") -> Iterator[None]:
    """Holds the lock file `path`, which is made where it is not there, and stays.

    Args:
      refusal: what PacxError says where another process holds it; "" waits for that.
    """
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError:
            raise PacxError(refusal) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise
            logging.warning("%s: this file system has no locks", path)
        yield
