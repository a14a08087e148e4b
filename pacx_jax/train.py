"""The only training loop. Objectives and configs differ between stages; it does not.

Its order is the resume contract: mesh, pipeline, abstract state, shardings, then init
or restore, then for each step: read a batch, update, log, evaluate, save. Saved at step
N means N updates done and N batches read; batch N is the next one.
"""

from __future__ import annotations

import json
import pathlib
import sys
import time

import jax
import numpy as np
import tqdm
from absl import logging

from pacx_jax import (
    batches,
    checkpoint,
    metrics,
    model_folder,
    objectives,
    optim,
    overlap,
    sharding,
    step,
)
from pacx_jax.types import Objective, PacxError


def train(config, workdir: str) -> dict[str, float]:
    """Trains `config.objective` in `workdir` to `config.total_steps`, resuming there.

    Returns:
      The last evaluation's metrics ("val/...").
    """
    started = time.perf_counter()
    mesh = sharding.make_mesh(config.num_devices)
    sharding.check_batch_size(config.global_batch_size, mesh)
    opened = batches.open_sources(config)
    overlap.account(config, workdir, opened[config.data.train_split])
    config = batches.with_label_names(config, opened)
    objective = objectives.make(config, mesh)
    data = batches.Data(config, workdir, objective, mesh, opened)

    if "labels" in objective.modalities:  # which output of the head is which
        names = json.dumps(list(config.data.label_columns))
        (pathlib.Path(workdir) / "labels.json").write_text(names + "\n", "utf-8")

    tx = optim.make(optim.settings(config), config.total_steps)
    keys = jax.random.split(jax.random.key(config.seed), 3)
    init_key, step_key, eval_key = keys

    def init(key, loaded):
        params = objective.init(key)
        return step.make_state({**params, **loaded}, objective, tx)

    loaded = load_parts(objective, init_key)
    abstract = jax.eval_shape(init, init_key, loaded)
    shardings = sharding.tree_shardings(abstract, mesh)
    train_step = step.make_train_step(objective, tx, mesh, shardings)
    eval_step = step.make_eval_step(objective, mesh, shardings)

    saver = checkpoint.Checkpointer(
        workdir, keep=config.keep, best=config.best, mode=config.best_mode
    )
    start = saver.latest_step() or 0
    if start:
        like = jax.tree.map(
            lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s),
            abstract,
            shardings,
        )
        state = saver.restore(like)
    else:
        state = jax.jit(init, out_shardings=shardings)(init_key, loaded)
    del loaded

    writer = metrics.MetricsWriter(workdir, start)
    writer.write_timing(start, {"setup_seconds": time.perf_counter() - started})
    final = {}
    stream = data.train(start)
    bar = progress_bar(config, start)
    clock = time.perf_counter()
    try:
        for i in range(start, config.total_steps):
            state, values = train_step(state, next(stream), step_key)
            n = i + 1
            last = n == config.total_steps
            log, check, save = (
                n % every == 0 or last
                for every in (config.log_every, config.eval_every, config.save_every)
            )
            row = {}
            if log or check or save:  # what is not finite must not be saved
                now = {k: float(v) for k, v in jax.device_get(values).items()}
                check_finite(now, n)
            if log or check:
                row = now
            if log:
                bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
                writer.write_timing(n, {"seconds": time.perf_counter() - clock})
                clock = time.perf_counter()
            if check:
                val = data.val()
                final = evaluate(eval_step, state, val, objective, eval_key, mesh)
                row |= final
            if row:
                writer.write(n, row)
            if check:
                writer.flush()
                saver.save_if_best(state, n, final)
            if save:
                writer.flush()
                saver.save(state, n)
            bar.update()
    finally:  # a save under way when an error comes is a save still
        bar.close()
        stream.close()
        saver.close()
        writer.close()
    return final or metrics.last_evaluation(workdir)


def load_parts(objective: Objective, key: jax.Array) -> dict:
    """The parameter subtrees that `objective.pretrained` names, from their folders.

    Raises:
      PacxError: a folder without that part, or with one of another architecture.
    """
    loaded = {}
    expected = jax.eval_shape(objective.init, key)
    for part, folder in objective.pretrained.items():
        model = model_folder.load(folder)
        if part == "encoder":
            loaded[part] = model.params
        elif model.heads and part in model.heads.params:
            loaded[part] = model.heads.params[part]
        elif not (pathlib.Path(folder) / "checkpoints").is_dir():
            raise PacxError(
                f"{folder} holds no {part}: give a run's workdir, or for an MAE "
                "--config.model_init_parts='(\"encoder\",)' to start that anew"
            )
        else:
            tree = checkpoint.read_params(folder)
            if part not in tree:
                raise PacxError(f"{folder} has no {part!r} among its parameters")
            loaded[part] = tree[part]
        shapes = [
            {sharding.path_name(path): leaf.shape for path, leaf in leaves}
            for leaves, _ in map(
                jax.tree_util.tree_flatten_with_path, (loaded[part], expected[part])
            )
        ]
        names = sorted(set(shapes[0]) | set(shapes[1]))
        wrong = [n for n in names if shapes[0].get(n) != shapes[1].get(n)]
        logging.info("%s starts from %s", part, folder)
        if wrong:
            has, wants = (s.get(wrong[0]) for s in shapes)
            raise PacxError(
                f"{folder}: its {part} is not that of config.model: {len(wrong)} "
                f"parameters differ, such as {wrong[0]}: {has} there, {wants} here"
            )
    return loaded


def evaluate(eval_step, state, val_batches, objective, key, mesh) -> dict[str, float]:
    """Metrics over the validation set, each named "val/..."."""
    outputs, _ = collect(eval_step, state, val_batches, key, mesh)
    return {f"val/{k}": v for k, v in objective.summarize(outputs).items()}


def collect(eval_step, state, val_batches, key, mesh):
    """Every real example's outputs, {name: (n, ...)}, and its index in the source."""
    gather = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))
    collected = []
    for i, batch in enumerate(val_batches):
        mask, index = batch.pop("mask"), batch.pop("index")
        out = eval_step(state, batch, jax.random.fold_in(key, i))
        out, mask, index = jax.device_get((out, gather(mask), gather(index)))
        out = {k: v[mask > 0.5] for k, v in (out | {"index": index}).items()}
        collected.append(out)
    whole = {k: np.concatenate([c[k] for c in collected]) for k in collected[0]}
    return whole, whole.pop("index")


def check_finite(row: dict[str, float], n: int) -> None:
    """Stops the run at a loss or gradient that is not a number."""
    for name in ("loss", "grad_norm"):
        if not np.isfinite(row[name]):
            raise PacxError(
                f"the {name} is {row[name]} at step {n}: lower config.optim.peak_lr or "
                "use config.dtype=float32; the last checkpoint is kept"
            )


def progress_bar(config, start: int) -> tqdm.tqdm:
    """A bar on standard error, silent where there is no terminal."""
    return tqdm.tqdm(
        total=config.total_steps,
        initial=start,
        desc=config.name,
        unit="step",
        disable=not sys.stderr.isatty() or jax.process_index() > 0,
    )
