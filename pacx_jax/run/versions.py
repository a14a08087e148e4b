"""The code that each session of a run was trained by: WORKDIR/sessions.jsonl.

One object a session: `step` it began after, `pacx_jax` and `jax` versions, `commit` of
the checkout ("" where this is none, "... with changes" where files differ from it),
`devices`.
"""

from __future__ import annotations

import json
import pathlib
import subprocess

import jax

import pacx_jax
from pacx_jax.distributed import processes

FILE = "sessions.jsonl"
_ROOT = pathlib.Path(pacx_jax.__file__).parents[1]


def record(workdir: str, step: int) -> None:
    """Adds a line for the session that goes on after `step`."""
    if not processes.is_first():
        return
    first = jax.devices()[0]
    row = {
        "step": step,
        "pacx_jax": pacx_jax.__version__,
        "commit": commit(_ROOT),
        "jax": jax.__version__,
        "devices": f"{jax.device_count()} {first.device_kind}",
    }
    with (pathlib.Path(workdir) / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def commit(root: pathlib.Path) -> str:
    """The commit of a checkout; "" for a folder that is none, or without git."""
    if not (root / ".git").exists():  # an environment may lie in another's checkout
        return ""
    try:
        found = _git(root, "rev-parse", "--short=12", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return ""
    return f"{found} with changes" if changed else found


def _git(root: pathlib.Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    done.check_returncode()
    return done.stdout.strip()
