"""The only training loop. Objectives and configs differ between stages; it does not.

Its order is the resume contract: mesh, pipeline, abstract state, shardings, then init
or restore, then for each step: read a batch, update, log, evaluate, save. Saved at step
N means N updates done and N batches read; batch N is the next one.
"""

from __future__ import annotations

import contextlib
import pathlib
import sys
import time

import jax
import ml_collections
import numpy as np
import tqdm

from pacx_jax import (
    checkpoint,
    metrics,
    model_folder,
    objectives,
    optim,
    physiology,
    sharding,
    step,
)
from pacx_jax.input import pipeline, quarantine, sources, transforms
from pacx_jax.types import Objective, PacxError


def train(config, workdir: str) -> dict[str, float]:
    """Trains `config.objective` in `workdir` to `config.total_steps`, resuming there.

    Returns:
      The last evaluation's metrics ("val/...").
    """
    started = time.perf_counter()
    mesh = sharding.make_mesh(config.num_devices)
    sharding.check_batch_size(config.global_batch_size, mesh)
    opened = open_sources(config)
    config = with_label_names(config, opened)
    objective = objectives.make(config, mesh)
    data = Data(config, workdir, objective, mesh, opened)

    tx = optim.make(config.optim, config.total_steps)
    keys = jax.random.split(jax.random.key(config.seed), 3)
    init_key, step_key, eval_key = keys

    def init(key, loaded):
        params = objective.init(key)
        return step.make_state({**params, **loaded}, objective, tx)

    loaded = load_parts(objective)
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
    batches = data.train(start)
    bar = progress_bar(config, start)
    clock = time.perf_counter()
    for i in range(start, config.total_steps):
        state, values = train_step(state, next(batches), step_key)
        n = i + 1
        last = n == config.total_steps
        row = {}
        if n % config.log_every == 0 or last:
            row = {k: float(v) for k, v in jax.device_get(values).items()}
            check_finite(row, n)
            bar.set_postfix(loss=f"{row['loss']:.4f}", refresh=False)
            now = time.perf_counter()
            writer.write_timing(n, {"seconds": now - clock})
            clock = now
        if n % config.eval_every == 0 or last:
            final = evaluate(eval_step, state, data.val(), objective, eval_key, mesh)
            row |= final
        if row:
            writer.write(n, row)
        if final and n % config.eval_every == 0 or last:
            writer.flush()
            saver.save_if_best(state, n, final)
        if n % config.save_every == 0 or last:
            writer.flush()
            saver.save(state, n)
        bar.update()
    bar.close()
    batches.close()
    saver.close()
    writer.close()
    return final


def open_sources(config) -> dict[str, sources.Source]:
    """The train and validation splits of `config.data`, by name."""
    splits = (config.data.train_split, config.data.val_split)
    return {split: sources.open_source(config.data, split) for split in splits}


def with_label_names(config, opened):
    """config with `data.label_columns` filled in; () stands for all of the data's.

    Raises:
      PacxError: a column that the data do not have.
    """
    names = opened[config.data.train_split].label_names
    unknown = sorted(set(config.data.label_columns) - set(names))
    if unknown:
        raise PacxError(
            f"config.data.label_columns {unknown}: {config.data.path} has the labels "
            f"{', '.join(names) or '(none)'}"
        )
    config = ml_collections.ConfigDict(config.to_dict())
    config.data.label_columns = tuple(config.data.label_columns) or names
    return config


class Data:
    """Train and validation batches of a run, and the cached embeddings they join."""

    def __init__(self, config, workdir, objective: Objective, mesh, opened):
        self.config, self.mesh, self.sources = config, mesh, opened
        self.rows = sharding.local_rows(config.global_batch_size, mesh)
        self.quarantine = quarantine.Quarantine(
            str(pathlib.Path(workdir) / "quarantine.jsonl"), config.data.max_bad_share
        )
        data = ml_collections.ConfigDict(config.data.to_dict())
        data.modalities = objective.modalities
        self.transforms = {
            train: transforms.make(data.transform, data, train=train)
            for train in (True, False)
        }
        self.tables = {}
        if config.get("physiology") == "cached":
            for split in opened:
                self._add_embeddings(split, workdir)
        self.columns = {
            split: [source.label_names.index(n) for n in config.data.label_columns]
            for split, source in self.sources.items()
        }
        self.caches = {s: config.data.cache and pipeline.Cache() for s in opened}

    def _add_embeddings(self, split, workdir):
        """Cached embeddings of a split, without the examples that have none."""
        config, source, tables = self.config, self.sources[split], {}
        for m in config.loss.modalities:
            tables[f"{m}_embedding"] = physiology.embeddings(
                source,
                m,
                objectives.distill.load_source(config, m),
                config.data,
                self.mesh,
                cache_dir=config.cache_dir or pathlib.Path(workdir) / "cache",
                batch_size=config.global_batch_size,
                quarantine=self.quarantine,
            )
        bad = np.any([np.isnan(t).any(1) for t in tables.values()], axis=0)
        if bad.any():  # a wrong pairing would be worse than a pair less
            good = np.flatnonzero(~bad)
            self.sources[split] = sources.Subset(source, good)
            tables = {name: table[good] for name, table in tables.items()}
        if config.data.shuffle_pairs:  # a control: breaks the pairing, keeps the rest
            rng = np.random.default_rng([config.seed, *split.encode()])
            order = rng.permutation(len(self.sources[split]))
            tables = {name: table[order] for name, table in tables.items()}
        self.tables[split] = tables

    def train(self, start_step: int):
        """Global batches from number `start_step` on, without end."""
        config, split = self.config, self.config.data.train_split
        batches = pipeline.train_batches(
            self.sources[split],
            self.transforms[True],
            global_batch_size=config.global_batch_size,
            seed=config.seed,
            start_step=start_step,
            rows=self.rows,
            cache=self.caches[split],
            threads=config.data.threads,
            quarantine=self.quarantine,
        )
        with contextlib.closing(batches):
            for batch in batches:
                yield self._put(batch, split)

    def val(self):
        """The validation set once, in order; the last batch is padded (mask 0)."""
        config, split = self.config, self.config.data.val_split
        batches = pipeline.eval_batches(
            self.sources[split],
            self.transforms[False],
            global_batch_size=config.global_batch_size,
            rows=self.rows,
            cache=self.caches[split],
            threads=config.data.threads,
            quarantine=self.quarantine,
        )
        with contextlib.closing(batches):
            for batch in batches:
                yield self._put(batch, split)

    def _put(self, batch, split):
        index = batch.pop("index")
        for name, table in self.tables.get(split, {}).items():
            batch[name] = table[index]
        for name in ("labels", "label_mask"):
            if name in batch:
                batch[name] = batch[name][:, self.columns[split]]
        return sharding.put_batch(batch, self.mesh)


def load_parts(objective: Objective) -> dict:
    """The parameter subtrees that `objective.pretrained` names, from their folders."""
    loaded = {}
    for part, folder in objective.pretrained.items():
        if part == "encoder":
            loaded[part] = model_folder.load(folder, "vit").params
            continue
        tree = checkpoint.read_params(folder)
        if part not in tree:
            raise PacxError(f"{folder} has no {part!r} among its parameters")
        loaded[part] = tree[part]
    return loaded


def evaluate(eval_step, state, batches, objective, key, mesh) -> dict[str, float]:
    """Metrics over the validation set, each named "val/..."."""
    collected = []
    for i, batch in enumerate(batches):
        mask = batch.pop("mask")
        out = eval_step(state, batch, jax.random.fold_in(key, i))
        mask = jax.jit(lambda m: m, out_shardings=sharding.replicated(mesh))(mask)
        out, mask = jax.device_get((out, mask))
        collected.append({k: v[mask > 0.5] for k, v in out.items()})
    if not sum(len(next(iter(c.values()))) for c in collected):
        raise PacxError("the validation split is empty: see config.data.val_split")
    names = collected[0]
    whole = {k: np.concatenate([c[k] for c in collected]) for k in names}
    return {f"val/{k}": v for k, v in objective.summarize(whole).items()}


def check_finite(row: dict[str, float], n: int) -> None:
    """Stops the run at a loss that is not a number."""
    if not np.isfinite(row["loss"]):
        raise PacxError(
            f"the loss is {row['loss']} at step {n}: lower config.optim.peak_lr or use "
            "config.dtype=float32; the last checkpoint is kept"
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
