"""What an unfinished preparation belongs to, so that no other one goes on with it."""

from __future__ import annotations

import json
import pathlib
import shutil
from typing import Any

from pacx_jax import files
from pacx_jax.errors import PacxError

JOURNAL = "journal.json"
LOCK = "lock"


def begin(folder: pathlib.Path, header: dict[str, Any]) -> None:
    """Writes the journal, unless it stands there and can be gone on with.

    PacxError where it was begun with other settings and has finished shards.
    """
    try:
        before = json.loads((folder / JOURNAL).read_text())
        settings = dict(before["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        before, settings = None, header["settings"]
    changed = {
        key
        for key in settings.keys() | header["settings"].keys()
        if settings.get(key) != header["settings"].get(key)
    }
    if changed and any(folder.glob("*-*.json")):
        raise PacxError(
            f"{folder}: was begun with other settings ({', '.join(sorted(changed))}); "
            "give those to go on, or delete it"
        )
    if before != header:
        _clear(folder)
        files.write(folder / JOURNAL, json.dumps(header))


def _clear(folder: pathlib.Path) -> None:
    """Deletes what is in a folder but the lock, which this process holds."""
    # The journal first: without it nothing is gone on with.
    (folder / JOURNAL).unlink(missing_ok=True)
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()
