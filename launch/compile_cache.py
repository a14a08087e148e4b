"""Prints the folder in which JAX keeps compiled programs of this kind of machine.

  export JAX_COMPILATION_CACHE_DIR=$(python launch/compile_cache.py)

What the launchers set, so that a run that starts again compiles nothing. It lies in
$XDG_CACHE_HOME or ~/.cache and may be deleted at any time. A JAX_COMPILATION_CACHE_DIR
that is set already is kept; set to nothing, nothing is kept.

JAX names a program by its operations, jaxlib, XLA's flags and the kind of device. Of a
CPU that kind is "cpu": code for one could stop another at an instruction that it lacks.
So the folder's name has the CPU's instructions, and nodes of two kinds share nothing.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import sys

NAME = "JAX_COMPILATION_CACHE_DIR"
_CPU = ("vendor_id", "cpu family", "model", "model name", "flags")  # of x86
_CPU += ("CPU implementer", "CPU architecture", "CPU part", "Features")  # of ARM


def cpu(cpuinfo: str = "/proc/cpuinfo") -> str:
    """A name that only CPUs of the same model and instructions share."""
    try:
        text = pathlib.Path(cpuinfo).read_text("utf-8", errors="replace")
    except OSError:  # no Linux
        text = f"model name: {platform.processor()} {platform.platform()}"
    first = text.strip().split("\n\n")[0].splitlines()
    facts = [line for line in first if line.split(":")[0].strip() in _CPU]
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:12]
    return f"{platform.machine() or 'cpu'}_{digest}"


def folder(base: str | os.PathLike | None = None) -> str:
    """The folder, made; "" if there is to be none or it cannot be written.

    Args:
      base: where it lies unless the environment names it; None = the user's cache.
    """
    if NAME in os.environ:
        return os.environ[NAME]
    base = base or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    path = pathlib.Path(base).expanduser() / "pacx_jax" / "compiled" / cpu()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK | os.X_OK):
            raise PermissionError(13, "not writable")
    except (OSError, RuntimeError) as e:  # RuntimeError: no home
        print(
            f"warning: {path}: {e}: compiled programs are not kept; set {NAME} to a "
            "folder for them",
            file=sys.stderr,
        )
        return ""
    return str(path)


if __name__ == "__main__":
    print(folder())
