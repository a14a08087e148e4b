"""The batches of a run: sources, transforms and cached embeddings, as config says."""

from __future__ import annotations

import contextlib
import pathlib

import ml_collections
import numpy as np

from pacx_jax import sharding
from pacx_jax.errors import PacxError
from pacx_jax.input import (
    pipeline,
    prefetch,
    quarantine,
    sources,
    subsets,
    transforms,
)
from pacx_jax.objectives import distill
from pacx_jax.run import embedding_cache, fingerprints
from pacx_jax.types import Objective


def open_sources(config) -> dict[str, sources.Source]:
    """The train and validation splits of `config.data`, by name."""
    data = config.data
    splits = (data.train_split, data.val_split)
    opened = {split: sources.open_source(data, split) for split in splits}
    train = opened[data.train_split]
    return opened | {data.train_split: subsets.few_labels(train, data)}


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
        self.workdir = workdir
        self.rows = sharding.local_rows(config.global_batch_size, mesh)
        self.quarantine = quarantine.Quarantine(
            str(pathlib.Path(workdir) / "quarantine.jsonl"), config.data.max_bad_share
        )
        data = ml_collections.ConfigDict(config.data.to_dict())
        data.modalities = objective.modalities
        if config.objective == "distill" and "ecg" in objective.modalities:
            ecg_folder = distill.load_source(config, "ecg")
            data.ecg_decimate = ecg_folder.preprocessing["decimate"]
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
        """Cached embeddings of a split; an example without one is in quarantine."""
        config, source, tables = self.config, self.sources[split], {}
        for m in config.loss.modalities:
            tables[f"{m}_embedding"] = embedding_cache.embeddings(
                source,
                m,
                distill.load_source(config, m),
                config.data,
                self.mesh,
                cache_dir=config.cache_dir or pathlib.Path(workdir) / "cache",
                batch_size=config.global_batch_size,
                quarantine=self.quarantine,
            )
        if config.data.shuffle_pairs:  # a control: breaks the pairing, keeps the rest
            finite = [np.isfinite(table).all(1) for table in tables.values()]
            good = np.flatnonzero(
                np.all(finite, axis=0)
            )  # no good image gets a bad row
            rng = np.random.default_rng([config.seed, *split.encode()])
            order = np.arange(len(source))
            order[good] = good[rng.permutation(len(good))]
            tables = {name: table[order] for name, table in tables.items()}
        self.tables[split] = tables

    def fingerprints(self) -> dict[str, str | int]:
        """What identifies the data: of each split its hash and size, and the tables."""
        found = {}
        for split, source in self.sources.items():
            found[f"{split}.examples"] = len(source)
            found[f"{split}.fingerprint"] = source.fingerprint
            if split in self.tables:
                found[f"{split}.embeddings"] = fingerprints.of_tree(self.tables[split])
        return found

    def sample_names(self, step: int) -> list[str]:
        """Names of the samples of a training batch, in order, after replacements."""
        split = self.config.data.train_split
        stream = pipeline.train_batches(
            self.sources[split],
            self.transforms[True],
            seed=self.config.seed,
            start_step=step,
            **self._reading(split) | {"rows": None, "threads": 0},
        )
        with contextlib.closing(stream):
            index = next(stream)["index"]
        return [self.sources[split].name(int(i)) for i in index]

    def train(self, start_step: int) -> prefetch.Prefetch:
        """Global batches from number `start_step` on, without end."""
        split, config = self.config.data.train_split, self.config
        stream = pipeline.train_batches(
            self.sources[split],
            self.transforms[True],
            seed=config.seed,
            start_step=start_step,
            workers=config.data.get("workers", 0),  # not in older workdirs
            **self._reading(split),
        )
        return self._on_devices(stream, split)

    def val(self) -> prefetch.Prefetch:
        """The validation set once, in order; the last batch is padded (mask 0)."""
        split = self.config.data.val_split
        stream = pipeline.eval_batches(
            self.sources[split], self.transforms[False], **self._reading(split)
        )
        return self._on_devices(stream, split)

    def _reading(self, split) -> dict:
        return {
            "global_batch_size": self.config.global_batch_size,
            "rows": self.rows,
            "cache": self.caches[split],
            "threads": self.config.data.threads,
            "quarantine": self.quarantine,
        }

    def _on_devices(self, stream, split) -> prefetch.Prefetch:
        """The stream's batches with what they join, put on the devices ahead."""
        count = self.config.data.get("prefetch_to_device", 0)  # not in older workdirs
        return prefetch.Prefetch(stream, lambda batch: self._put(batch, split), count)

    def _put(self, batch, split):
        index = batch["index"] if "mask" in batch else batch.pop("index")
        for name, table in self.tables.get(split, {}).items():
            batch[name] = table[index]
        for name in ("labels", "label_mask"):
            if name in batch:
                batch[name] = batch[name][:, self.columns[split]]
        return sharding.put_batch(batch, self.mesh)
