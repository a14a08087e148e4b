"""Faults against saved steps: damage to files, and processes killed while they save."""

from __future__ import annotations

import contextlib
import io
import multiprocessing
import os
import pathlib
import shutil
import signal
import tempfile
import time

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.run import checkpoint, saved_steps

STEPS = (3, 6, 9)
KINDS = ("flip", "cut", "empty", "grow", "delete", "swap", "link", "extra")


def state(step: int) -> dict[str, np.ndarray]:
    """What is saved at a step, as a function of it."""
    rng = np.random.default_rng(step)
    tree = {"kernel": rng.normal(size=(64, 33)), "bias": rng.normal(size=7)}
    tree = {name: value.astype(np.float32) for name, value in tree.items()}
    return tree | {"step": np.array([step], np.int32)}


def save_steps(folder: pathlib.Path) -> None:
    """Saves `state` at STEPS."""
    steps = saved_steps.Steps(folder, keep=len(STEPS))
    for step in STEPS:
        steps.save(state(step), step, {"loss": 1.0 / step})
    steps.close()


def damage(folder: pathlib.Path, rng: np.random.Generator) -> str:
    """Damages one file of a saved step; says what it did."""
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    # Each kind of file as often as any other: Orbax has many small ones.
    names = sorted({p.name if p.suffix else p.parent.name for p in files})
    name = names[rng.integers(len(names))]
    chosen = [p for p in files if name in (p.name, p.parent.name)]
    path = chosen[rng.integers(len(chosen))]
    kind, data = KINDS[rng.integers(len(KINDS))], bytearray(path.read_bytes())
    if kind == "flip" and data:
        data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
    elif kind == "cut" and data:
        path.write_bytes(data[: rng.integers(len(data))])
    elif kind in ("flip", "cut", "empty") and data:
        path.write_bytes(b"")
    elif kind == "swap":
        other = files[rng.integers(len(files))]
        if other.read_bytes() == bytes(data):
            path.unlink()
        else:
            path.write_bytes(other.read_bytes())
    elif kind == "link":
        path.unlink()
        path.symlink_to("/nowhere")
    elif kind == "extra":
        path.with_name(f"{path.name}.1").write_bytes(data)
    elif kind == "delete" and rng.random() < 0.3:
        shutil.rmtree(path.parent if path.parent != folder else folder / "state")
    elif kind == "delete":
        path.unlink()
    else:
        path.write_bytes(bytes(data) + b"\0")
    return f"{kind} {path.relative_to(folder.parent)}"


def damaged_trial(pristine: pathlib.Path, rng: np.random.Generator) -> str:
    """Damages one to three of the saved steps; what must be restored is.

    Returns:
      What was done, for messages.

    Raises:
      AssertionError: a wrong or a lost state.
    """
    with tempfile.TemporaryDirectory() as scratch:
        folder = pathlib.Path(scratch) / "checkpoints"
        shutil.copytree(pristine, folder)
        hit = sorted(rng.choice(STEPS, size=rng.integers(1, 4), replace=False))
        told = ", ".join(damage(folder / str(step), rng) for step in hit)
        good = [step for step in STEPS if step not in hit]
        try:
            with contextlib.redirect_stderr(io.StringIO()) as said:
                found = saved_steps.Steps(folder, keep=3).newest()
        except PacxError as error:
            assert not good and "none of the saved steps" in str(error), told
            return told
        assert good and found is not None, told
        step, about = found
        assert step == good[-1] and about["step"] == step, told
        for newer in (s for s in hit if s > step):
            assert f"{newer} is damaged" in said.getvalue(), told
        for file in sorted(pristine.joinpath(str(step)).rglob("*")):
            same = folder / file.relative_to(pristine)
            assert file.is_dir() or file.read_bytes() == same.read_bytes(), told
        return told


def restored(folder: pathlib.Path) -> int | None:
    """Restores the newest step and compares it with what was saved; the step."""
    with contextlib.redirect_stderr(io.StringIO()):
        found = saved_steps.Steps(folder, keep=2).newest()
    if found is None:
        return None
    step, about = found
    got = checkpoint.restore(folder / str(step), about, state(0))
    for name, want in state(step).items():
        np.testing.assert_array_equal(got[name], want)
        assert got[name].dtype == want.dtype
    return step


def _save_for_ever(folder: str, start: int, ready) -> None:
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    steps = saved_steps.Steps(pathlib.Path(folder), keep=2)
    step = start
    while True:
        step += 1
        steps.save(state(step), step, {})
        if step == start + 1:
            steps.settle()
            ready.set()


def killed_trials(folder: pathlib.Path, rng: np.random.Generator, n: int) -> list[int]:
    """Kills a process that saves without end, n times; the steps that were found.

    Raises:
      AssertionError: a wrong state, or one older than what had been saved.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    found, last = [], 0
    for _ in range(n):
        ready = context.Event()
        args = (str(folder), last, ready)
        process = context.Process(target=_save_for_ever, args=args)
        process.start()
        assert ready.wait(120)
        time.sleep(float(rng.uniform(0, 0.3)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        step = restored(folder)
        assert step is not None and step > last, (step, last)
        last = step
        found.append(step)
    return found
