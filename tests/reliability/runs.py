"""Small whole runs of every stage, in this process and in others, for these tests.

Imports nothing that starts a device: the processes that are killed are forked from one
that has only imported this.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import time

import jax
import numpy as np
import orbax.checkpoint as ocp

from pacx_jax import main, step
from pacx_jax.input import sources
from pacx_jax.run import manifest, saved_steps
from tests import report_sets, tiny

N = {"train": 20, "val": 8}  # at 8 a batch, an epoch ends after 2.5 and after 5 steps
STEPS = 20


class Patients:
    """Patients who have everything, as functions of their number."""

    label_names = ("a", "b")
    entries = ("image", "images", "mask", "ecg", "labs", "labs_mask", "labels")
    entries += ("findings", "impression")
    namespace = "tests"
    notes = ()

    def __init__(self, split: str):
        self.split, self.fingerprint = split, hashlib.sha256(split.encode()).hexdigest()

    def __len__(self) -> int:
        return N[self.split]

    def __getitem__(self, i: int) -> dict:
        if not 0 <= i < len(self):
            raise IndexError(i)
        rng = np.random.default_rng([i, *self.split.encode()])
        return {
            "image": rng.integers(0, 256, (32, 32), dtype=np.uint8),
            "images": [
                np.random.default_rng([i, k]).integers(0, 256, (32, 32), dtype=np.uint8)
                for k in range(1 + i % 3)
            ],
            "views": ["PA", "LL", "unknown"][: 1 + i % 3],
            "findings": "",
            "impression": report_sets.texts(i + 1, 1)[-1] if i % 4 else "",
            "mask": np.uint8(255 * (rng.random((32, 32)) < 0.4)),
            "ecg": rng.normal(size=(5000, 12)).astype(np.float32),
            "labs": rng.random(50, np.float32),
            "labs_mask": np.float32(rng.random(50) < 0.8),
            "labels": np.float32([i % 2, i % 3 == 0]),
        }

    def name(self, i: int) -> str:
        return f"{self.split}[{i}]"

    def patients(self) -> None:
        return None

    def studies(self) -> None:
        return None


def use_patients(monkeypatch=None) -> None:
    """Makes runs read `Patients`."""

    def open_source(data, split):
        return Patients(split)

    replaced = {"open_source": open_source, "splits": lambda data: tuple(N)}
    for name, function in replaced.items():
        if monkeypatch is None:
            setattr(sources, name, function)
        else:
            monkeypatch.setattr(sources, name, function)


def config(stage: str, folders: dict[str, str], **fields):
    """A run of 20 steps that saves at 3, 6, ..., 18 and 20."""
    common = {
        "dtype": "float32",
        "global_batch_size": 8,
        "total_steps": STEPS,
        "log_every": 1,
        "eval_every": 4,
        "save_every": 3,
        "images_every": 0,
        "data__threads": 1,
        "data__cache": True,
        "data__image_size": 16,
        "optim__warmup_steps": 2,
        "optim__peak_lr": 1e-3,
    }
    if stage == "distill":
        small = common | {"data__image_size": 32, "physiology": "cached"}
        return tiny.distill_config(folders, **(small | fields))
    if stage == "mae":
        small = {"model__variant": "mu", "model__patch_size": 8}
        small |= {"loss__mask_ratio": 0.5}
        c = tiny.config("mae_vitb16", **(common | small | fields))
        c.model.decoder.update(width=16, depth=1, num_heads=2)
        return c
    if stage in ("mvmae", "v2t"):
        small = {"model__variant": "mu", "model__patch_size": 8}
        small |= {"loss__mask_ratio": 0.5, "data__max_views": 2}
        small |= {"optim__base_batch_size": 0, "optim__warmup_start": 0.0}
        recipe = "mvmae_vitb16"
        if stage == "v2t":
            recipe = "mvmae_v2t_vitb16"
            words = pathlib.Path(folders["model_init"]).parent / "tokenizer.json"
            small |= {"data__tokenizer": str(words), "data__report_length": 16}
            small |= {"caption__width": 32, "caption__depth": 1}
            small |= {"caption__num_heads": 2, "caption__mlp_dim": 32}
        c = tiny.config(recipe, **(common | small | fields))
        c.model.decoder.update(width=32, depth=1, num_heads=2)
        return c
    if stage in ("causal", "masked"):
        folder = pathlib.Path(folders["model_init"]).parent
        small = {"model__variant": "mu", "data__report_length": 16, "stage": stage}
        small |= {"data__tokenizer": str(folder / "tokenizer.json")}
        small |= {"vq_init": str(folder / "image_tokenizer")}
        return tiny.config("chexmix_vitb", **(common | small | fields))
    if stage == "vq":
        small = {"model__widths": (8,), "model__blocks": (1,)}
        small |= {"model__codes": 16, "model__code_width": 4, "loss__decay": 0.8}
        return tiny.config("vq_f16", **(common | small | fields))
    if stage == "labs_dae":
        small = {"model__hidden": 16, "model__latent": 8}
        return tiny.config("labs_dae", **(common | small | fields))
    if stage == "ecg":
        small = {"model__base_filters": 8, "model__filters": (8, 16)}
        small |= {"model__blocks": (1, 1), "model__kernel": 4}
        small |= {"model__groups_width": 8, "data__ecg_decimate": 10}
        return tiny.config("ecg_net1d", **(common | small | fields))
    small = {"model_init": folders["model_init"], "data__image_size": 32}
    recipe = {"classify": "linear_probe", "segment": "segment"}[stage]
    return tiny.config(recipe, **(common | small | fields))


def at_update(k: int, act) -> None:
    """Calls `act` before update number k, in this process, once."""
    original = step.make_train_step
    done = []

    def make_train_step(*args):
        train_step = original(*args)

        def acting(state, batch, key):
            if int(state.step) == k - 1 and not done:
                done.append(True)
                act()
            return train_step(state, batch, key)

        return acting

    step.make_train_step = make_train_step


def slow_steps(seconds: float) -> None:
    """Waits before every update, in this process."""
    original = step.make_train_step

    def make_train_step(*args):
        train_step = original(*args)

        def waiting(*args):
            time.sleep(seconds)
            return train_step(*args)

        return waiting

    step.make_train_step = make_train_step


def record_rows(path) -> None:
    """Writes hashes of this process's rows of every batch to a file."""
    original = step.make_train_step
    rows = []

    def make_train_step(*args):
        train_step = original(*args)

        def recording(state, batch, key):
            leaf = next(iter(sorted(batch)))
            shards = [s for s in batch[leaf].addressable_shards if s.replica_id == 0]
            shards = sorted(shards, key=lambda s: s.index[0].start or 0)
            data = [row.tobytes() for s in shards for row in np.asarray(s.data)]
            rows.append([hashlib.sha256(row).hexdigest()[:16] for row in data])
            pathlib.Path(path).write_text(json.dumps(rows))
            return train_step(state, batch, key)

        return recording

    step.make_train_step = make_train_step


def ask_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def compile_for_long() -> None:
    """Compiles for about ten seconds, and says so when it is done."""

    def sorted_often(x):
        for i in range(600):
            x = jax.numpy.sort(jax.numpy.sin(x[::-1] * (i + 1.0)))
        return x

    jax.jit(sorted_often).lower(jax.ShapeDtypeStruct((64,), "float32")).compile()
    print("compiled", flush=True)


def die_in_a_save(number: int) -> None:
    """Dies when the save with this number, from 1, has written all but its manifest."""
    original, calls = manifest.write, []

    def write(*args):
        calls.append(args)
        if len(calls) == number:
            die()
        original(*args)

    manifest.write = write


def in_all(act, number: int) -> None:
    """For `start`: `act` in every process."""
    act()


def in_second(act, number: int) -> None:
    """For `start`: `act` in the second process alone."""
    if number == 1:
        act()


def state(workdir, number: int | None = None) -> dict[str, np.ndarray]:
    """Every leaf of a saved state, by default the newest."""
    folder = pathlib.Path(workdir) / "checkpoints"
    if number is None:
        number, _, damaged = saved_steps.newest(folder)
        assert not damaged
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        path = folder.absolute() / str(number) / "state"
        args = jax.tree.map(
            lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
            checkpointer.metadata(path).item_metadata.tree,
        )
        tree = checkpointer.restore(
            path, args=ocp.args.PyTreeRestore(restore_args=args)
        )
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(workdir, straight, steps=STEPS) -> None:
    """The same metrics to the byte, and the same state to the last bit."""
    got, want = ((p / "metrics.jsonl").read_text() for p in (workdir, straight))
    assert got == want and got.count("\n") == steps
    got, want = state(workdir), state(straight)
    assert got.keys() == want.keys() and len(got) > 8
    for leaf in want:
        assert got[leaf].dtype == want[leaf].dtype, leaf
        np.testing.assert_array_equal(got[leaf], want[leaf], err_msg=leaf)


def _child(config, workdir, before, devices, flags, number, log):
    """A process of a run, from its fork to its exit code."""
    with open(log, "w") as file:  # what it says, native code too
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
    os.environ["XLA_FLAGS"] = os.environ["XLA_FLAGS"].replace(
        "device_count=8", f"device_count={devices}"
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as in conftest.py
    use_patients()
    before(number)
    run = main.run

    def ready_made(_):
        main.start_processes()
        run(config, str(workdir))

    main.from_flags = ready_made
    sys.argv = ["main", *flags]
    main.main()
    os._exit(0)  # without pytest's handlers


def as_it_is(number: int) -> None:
    """For `start`: nothing happens."""


def start(config, workdir, before=as_it_is, *, count=1, devices=1, flags=None):
    """Starts the processes of a run; `before(number)` is called in each of them.

    Args:
      devices: of each process.
      flags: how they find each other; None = by flags of their own.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.reliability.runs"])
    with socket.socket() as free:
        free.bind(("localhost", 0))
        coordinator = f"localhost:{free.getsockname()[1]}"
    pathlib.Path(workdir).mkdir(parents=True, exist_ok=True)
    started = []
    for number in range(count):
        mine = flags or []
        if flags is None and count > 1:
            mine = [f"--coordinator={coordinator}", f"--num_processes={count}"]
            mine += [f"--process_id={number}"]
        log = pathlib.Path(workdir).with_suffix(f".{number}.log")
        args = (config, workdir, before, devices, mine, number, log)
        started.append(context.Process(target=_child, args=args))
        started[-1].start()
    return started


def said(workdir, number: int = 0) -> str:
    """What a process of a run wrote to its standard output and error, less Gloo's."""
    log = pathlib.Path(workdir).with_suffix(f".{number}.log").read_text()
    lines = log.splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith("[Gloo]"))


def raise_(error: BaseException) -> None:
    """For `at_update`: the run ends with an error."""
    raise error
