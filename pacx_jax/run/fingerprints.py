"""Fingerprints of a run's config and data: it goes on only with the same ones.

config.json  every field of the config
data.json    fingerprints of the data and of the weights that the run starts from
forced.jsonl what differed each time that a run was made to go on nevertheless
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import sys

import jax
import numpy as np

from pacx_jax import files, optim, sharding
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from pacx_jax.run import older

CONFIG, DATA, FORCED = "config.json", "data.json", "forced.jsonl"
DONE = "done.json"
FAILED = "failed.json"  # why the last session ended, if by an error
# Fields that change no number of a run, but for the order of sums: a stopped run goes
# on with other ones. `total_steps` is one where the learning rate stays what it was.
HARMLESS = frozenset(
    (
        "accumulate",
        "attention",
        "cache_dir",
        "data.allow_overlap",
        "data.cache",
        "data.max_bad_share",
        "data.namespace",
        "data.prefetch_to_device",
        "data.stage",
        "data.threads",
        "data.workers",
        "encoder_chunks",
        "eval_every",
        "grace_seconds",
        "images_every",
        "keep",
        "log_every",
        "loss.chunk",
        "max_skipped",
        "mesh.fsdp",
        "mesh.tensor",
        "nonfinite",
        "num_devices",
        "profile_steps",
        "remat",
        "save_every",
        "watchdog_seconds",
    )
)
# Fields that name the data: others of the same fingerprints are a copy of these.
_PLACES = {"data.path", "data.csv"}
FORCE = "--force goes on all the same, and the run is no longer what its records say"


def steps_done(workdir: str) -> int:
    """How many steps a finished run has; 0 where it is not finished."""
    path = pathlib.Path(workdir) / DONE
    if not path.exists():
        return 0
    remedy = "delete it, and the same command ends the run again"
    found = files.read_own_json(path, remedy).get("step")
    if not isinstance(found, int):
        raise PacxError(f"{path} is damaged (no step): {remedy}")
    return found


def too_few(workdir: str, done: int, wanted: int) -> str:
    """The refusal of a run that has more steps than are asked for."""
    return (
        f"{workdir} has {done} steps already, config.total_steps is {wanted}: give at "
        "least as many, or another --workdir"
    )


def check_config(config, workdir: str, *, force: bool = False) -> None:
    """A workdir belongs to one config: refuses another, and lists what differs.

    A finished run goes on with more `total_steps`, by force where that changes the
    learning rate of the steps that it has. Data may have been moved.
    """
    path = pathlib.Path(workdir) / CONFIG
    old = flat(older.upgrade(files.read_own_json(path, "restore it from a copy")))
    new = flat(json.loads(json.dumps(config.to_dict())))
    same = {k for k in new if _place(k, old.get(k)) == _place(k, new[k])}
    harmless, remedy = HARMLESS | same, FORCE
    done, steps = steps_done(workdir), (old.get("total_steps"), config.total_steps)
    if done > steps[1]:
        raise PacxError(too_few(workdir, done, steps[1]))
    if done == steps[1]:
        force, remedy = False, "it is finished: it goes on with more total_steps alone"
    elif steps[0] != steps[1] and isinstance(steps[0], int):
        was, now = (_rates(config, total, min(steps)) for total in steps)
        if (was[:-1] == now[:-1]).all():
            harmless |= {"total_steps"}
        else:
            remedy = (
                f"the learning rate follows total_steps: after step {min(steps)} it "
                f"would be {now[-1]:.3g}, not {was[-1]:.3g}; another --workdir with "
                f"--config.model_init={workdir} has a schedule of its own; {FORCE}"
            )
    moved = differences(old, new, harmless | (set(old) | set(new)) - _PLACES)
    if moved and not differences(old, new, harmless | _PLACES):
        if _same_data(config, workdir):
            harmless |= _PLACES
            if processes.is_first():
                told = f"{workdir}: {'; '.join(moved)}"
                print(f"{told}: the same data by their fingerprints", flush=True)
    refuse(old, new, harmless, workdir, "config", force, remedy)


def _place(name: str, value):
    """A field's value; of a path the form that all its spellings have."""
    if not isinstance(value, str) or not value:
        return value
    if name == "data.path":
        from pacx_jax.input import mixture  # a benchmark of the step has no grain

        return mixture.real(value)
    is_path = name in ("data.csv", "model_init") or name.endswith(".init")
    return os.path.realpath(value) if is_path else value


def _same_data(config, workdir: str) -> bool:
    """Whether the data are by their fingerprints those that the run began with."""
    from pacx_jax.input import sources  # see `_place`

    path = pathlib.Path(workdir) / DATA
    if not path.is_file():
        return False
    old = files.read_own_json(path, "restore it from a copy")
    found = sources.open_splits(config.data).items()
    return all(old.get(f"{k}.fingerprint") == s.fingerprint for k, s in found)


def _rates(config, total_steps: int, done: int) -> np.ndarray:
    """The learning rates of the steps up to `done` and of the one after it."""
    rate = optim.schedule(optim.settings(config), total_steps)
    return np.asarray(rate(np.arange(done + 1)))


def reopen(workdir: str, done: int) -> None:
    """Makes a finished run of `done` steps one that goes on.

    What was measured of those steps keeps its numbers, under a name that says so.
    """
    path = pathlib.Path(workdir)
    for file in [*path.glob("evaluation_*.json"), *path.glob("predictions_*.csv")]:
        if ".step_" not in file.name:
            file.rename(file.with_suffix(f".step_{done}{file.suffix}"))
    (path / DONE).unlink()


def record(config, fingerprints: dict[str, str | int], workdir: str) -> None:
    """Writes down what the run is of, once nothing more can be refused."""
    if processes.is_first():
        text = json.loads(json.dumps(config.to_dict(), sort_keys=True))
        files.write_json(pathlib.Path(workdir) / CONFIG, text)
        files.write_json(pathlib.Path(workdir) / DATA, fingerprints)


def check_data(
    workdir: str, fingerprints: dict[str, str | int], *, started: bool, force: bool
) -> None:
    """The same for what the run reads, where it has started.

    Raises:
      PacxError: the run has been started with other data or weights.
    """
    processes.check_agreement({f"data {k}": v for k, v in fingerprints.items()})
    path = pathlib.Path(workdir) / DATA
    if started and not path.is_file() and processes.is_first():
        _warn(f"{path} is missing: whether the data are the run's cannot be checked")
    if started and path.is_file():
        old = files.read_own_json(path, "restore it from a copy")
        refuse(old, fingerprints, frozenset(), workdir, "data", force)


def refuse(old, new, harmless, workdir, what, force, remedy=FORCE) -> None:
    """PacxError with what differs, or a warning and a line in FORCED."""
    differing = differences(old, new, harmless)
    if not differing:
        return
    text = f"{workdir} holds a run of another {what}: {'; '.join(differing)}"
    if not force:
        raise PacxError(
            f"{text}. Take another --workdir, or delete this one ({remedy})"
        )
    if processes.is_first():
        _warn(f"{text}. Forced to go on")
        with (pathlib.Path(workdir) / FORCED).open("a", encoding="utf-8") as file:
            file.write(json.dumps({what: differing}) + "\n")


def differences(old: dict, new: dict, harmless=frozenset()) -> list[str]:
    """What each field was and is, of those that differ and are not free to."""
    return [
        f"{k} was {old.get(k)!r}, is {new.get(k)!r}"
        for k in sorted(set(old) | set(new))
        if old.get(k) != new.get(k) and k not in harmless
    ]


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def flat(tree: dict, prefix: str = "") -> dict:
    """A nested dict as one of dotted names."""
    out = {}
    for k, v in tree.items():
        if isinstance(v, dict):
            out |= flat(v, f"{prefix}{k}.")
        else:
            out[prefix + k] = v
    return out


def of_tree(tree) -> str:
    """A hash of all leaves of a tree of arrays, and of their names."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        array = np.ascontiguousarray(leaf)
        digest.update(
            f"{sharding.path_name(path)} {array.shape} {array.dtype}".encode()
        )
        digest.update(array.tobytes())
    return digest.hexdigest()
