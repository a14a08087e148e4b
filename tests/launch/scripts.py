"""Runs the launchers with tests/launch/fakes before everything else on PATH."""

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
FAKES = ROOT / "tests" / "launch" / "fakes"
ARGUMENTS = ["--config=configs/mae_vitb16.py", "--config.seed=3"]


def environment(fake: pathlib.Path, **more: str) -> dict[str, str]:
    """Fakes first on PATH, notes of theirs in `fake`, nothing of a real cluster."""
    out = ("SLURM", "CUDA", "JAX_COMPILATION")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(out)}
    path = f"{FAKES}{os.pathsep}{kept['PATH']}"
    fixed = {"PATH": path, "FAKE": str(fake), "VIRTUAL_ENV": "none", "XLA_FLAGS": ""}
    fixed |= {"PACX_POLL_SECONDS": "0.1", "XDG_CACHE_HOME": str(fake / "cache")}
    return kept | fixed | more


def start(fake, script, *arguments, behaviour="exit 0", **more) -> subprocess.Popen:
    (fake / "behaviour").write_text(behaviour)
    return subprocess.Popen(
        ["bash", f"launch/{script}", *map(str, arguments)],
        cwd=ROOT,
        env=environment(fake, **more),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(fake, script, *arguments, **more) -> tuple[int, str]:
    """Exit code and output."""
    process = start(fake, script, *arguments, **more)
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()  # what waits for ever would outlive the tests
    return process.returncode, output


def seen(fake, index: int) -> list[str]:
    """Arguments of what stood in for process `index`."""
    return (fake / f"process_{index}.args").read_text().splitlines()


def seen_environment(fake, index: int) -> dict[str, str]:
    lines = (fake / f"process_{index}.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if "=" in line)
