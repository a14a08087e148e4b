"""The batches of a run: sources, transforms and cached embeddings, as config says."""

from __future__ import annotations

import contextlib
import pathlib
import sys

import ml_collections
import numpy as np

from pacx_jax import sharding
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from pacx_jax.input import (
    findings,
    mixture,
    pipeline,
    prefetch,
    quarantine,
    sources,
    subsets,
    transforms,
)
from pacx_jax.run import embedding_cache, fingerprints, strata
from pacx_jax.types import Objective

LOOKED_AT = 256  # examples, for a modality that none of them has


def open_sources(config) -> dict[str, sources.Source]:
    """The train and validation splits of `config.data`, by name."""
    opened = sources.open_splits(config.data)
    if processes.is_first():
        notes = dict.fromkeys(note for s in opened.values() for note in s.notes)
        print(*notes, sep="\n", end="\n" if notes else "", flush=True)
    return opened


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
    """Train and validation batches of a run, and the cached embeddings they join.

    Attributes:
      sources: by split, without the studies that have none of the modalities.
      left_out: split -> which studies lack modalities, in words, where some do.
    """

    def __init__(self, config, workdir, objective: Objective, mesh, opened):
        self.config, self.mesh, self.sources = config, mesh, opened
        self.workdir, self._number = workdir, None
        self.readers = objective.readers
        self.rows = sharding.local_rows(config.global_batch_size, mesh)
        self.quarantine = quarantine.Quarantine(
            str(pathlib.Path(workdir) / "quarantine.jsonl"), config.data.max_bad_share
        )
        self.transforms = {
            train: transforms.make(
                config.data.transform,
                config.data,
                train=train,
                entries=objective.entries,
                readers=objective.readers,
            )
            for train in (True, False)
        }
        self.tables, self.left_out = {}, {}
        for split in opened:
            self._join_embeddings(split, objective.teachers)
        self._mark_missing()
        self.columns = {
            split: [
                source.label_names.index(n) if n in source.label_names else -1
                for n in config.data.label_columns
            ]
            for split, source in self.sources.items()
        }
        if "labels" in objective.entries:
            self._check_sets()
            self._check_labels()
        self._look_for_optional()
        self.caches = {s: config.data.cache and pipeline.Cache() for s in opened}

    def _look_for_optional(self) -> None:
        """A warning for an optional modality that no example looked at has."""
        split = self.config.data.train_split
        source, looked = self.sources[split], 0
        optional = {reader.name: reader for reader in self.readers if reader.optional}
        n = min(LOOKED_AT, len(source)) if optional and processes.is_first() else 0
        for i in (k * len(source) // n for k in range(n)):
            try:
                example = source[i]
                has = {
                    name: reader.load(example, source.name(i))[f"{name}_present"]
                    for name, reader in optional.items()
                }
            except PacxError:  # the quarantine's, when it is read for training
                continue
            looked += 1
            optional = {name: r for name, r in optional.items() if not has[name]}
            if not optional:
                return
        if not looked:
            return
        for name, reader in optional.items():
            print(
                f"warning: none of {looked} {split} examples, spread over all, has a "
                f"{name} ({' or '.join(reader.requires)}): it may teach nothing",
                file=sys.stderr,
            )

    def _check_sets(self) -> None:
        """PacxError where the sets of a mixture do not share labels as they must."""
        data, whole = self.config.data, ""
        if data.uncertain == "reference":  # what is missing would be 0
            whole = "data.uncertain=reference"
        if self.config.get("task") == "multiclass":  # what is missing would be a class
            whole = "config.task=multiclass"
        for source in self.sources.values():
            if hasattr(source, "sets"):
                mixture.check_labels(source, data.label_columns, whole)

    def _join_embeddings(self, split: str, teachers: dict) -> None:
        """The teachers' embeddings of a split; what has none at all is left out."""
        if not teachers:
            return
        config, source = self.config, self.sources[split]
        tables = {
            m: embedding_cache.embeddings(
                source,
                teacher,
                config.data,
                self.mesh,
                cache_dir=config.cache_dir or pathlib.Path(self.workdir) / "cache",
                batch_size=config.global_batch_size,
                quarantine=self.quarantine,
            )
            for m, teacher in teachers.items()
        }
        lacking = np.stack([np.isneginf(table).all(1) for table in tables.values()])
        if lacking.any():
            self._note_missing(split, dict(zip(tables, lacking, strict=True)))
            kept = np.flatnonzero(~lacking.all(0))
            tables = {m: table[kept] for m, table in tables.items()}
            source = self.sources[split] = subsets.Subset(source, kept)
        if config.data.shuffle_pairs:  # a control: breaks the pairing, keeps the rest
            usable = [~np.isnan(table).any(1) for table in tables.values()]
            good = np.all(usable, axis=0)  # no image gets a bad row
            rng = np.random.default_rng([config.seed, *split.encode()])
            order = strata.shuffled(good, self._strata(source), rng)
            tables = {m: table[order] for m, table in tables.items()}
        self.tables[split] = {f"{m}_embedding": table for m, table in tables.items()}

    def _strata(self, source) -> np.ndarray | None:
        """The groups within which pairs are shuffled; None: over all examples."""
        data = self.config.data
        within = tuple(data.get("shuffle_within", ()))  # not in older workdirs
        file = data.get("shuffle_table", "")
        return strata.of(source, file, within) if within or file else None

    def _note_missing(self, split: str, lacking: dict[str, np.ndarray]) -> None:
        none = int(np.all(list(lacking.values()), axis=0).sum())
        n = len(self.sources[split])
        if none == n:
            raise PacxError(
                f"no study of the {split} split has any of {', '.join(lacking)}: check "
                "config.modalities and config.data.path"
            )
        each = ", ".join(f"{m} {int(x.sum())}" for m, x in lacking.items())
        text = f"of {n} studies, without {each}"
        text += f"; {none} have none of these and are left out" if none else ""
        self.left_out[split] = text

    def _mark_missing(self) -> None:
        """Adds `<m>_present` to every split's tables if any split lacks some of m."""
        names = {name for tables in self.tables.values() for name in tables}
        for name in sorted(names):
            missing = {s: np.isneginf(t[name]).all(1) for s, t in self.tables.items()}
            if not any(rows.any() for rows in missing.values()):
                continue
            for split, rows in missing.items():
                tables = self.tables[split]
                flag = name.removesuffix("_embedding") + "_present"
                tables[flag] = (~rows).astype(np.float32)
                tables[name] = np.where(rows[:, None], 0, tables[name])

    def _check_labels(self) -> None:
        """PacxError if no training image of a folder has a label: nothing to learn.

        A prepared set's labels would have to be read for this.
        """
        split, data = self.config.data.train_split, self.config.data
        source = origin = self.sources[split]
        while hasattr(origin, "origin"):
            origin = origin.origin(0)[0]
        if not isinstance(origin, sources.FolderSource):
            return
        labels = source.labels()[:, self.columns[split]]
        if not labels.shape[1]:
            told = [n for n in origin.notes if n.startswith(findings.NEARLY)]
            if told:
                raise PacxError(f"{data.path}: {told[0]}")
            raise PacxError(
                f"{data.path}: no labels: a folder's own have to stand in a CSV, such "
                "as labels.csv with the columns path,patient_id,label (names of "
                "folders are none)"
            )
        if not subsets.known_labels(labels, data.uncertain)[1].any():
            raise PacxError(
                f"{data.path}: no image of the {split} split has a known label of "
                f"{', '.join(data.label_columns) or '(none)'}; check the table of "
                "labels, data.label_columns and data.uncertain"
            )

    def fingerprints(self) -> dict[str, str | int]:
        """What identifies the data: each split's hash and size, tables, readers."""
        found = {}
        for split, source in self.sources.items():
            found[f"{split}.examples"] = len(source)
            found[f"{split}.fingerprint"] = source.fingerprint
            for name, value in getattr(source, "fingerprints", {}).items():
                found[f"{split}.{name}.fingerprint"] = value
            if split in self.tables:
                found[f"{split}.embeddings"] = fingerprints.of_tree(self.tables[split])
        for reader in self.readers:
            if reader.fingerprint:
                found[f"{reader.name}.fingerprint"] = reader.fingerprint
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

    def shares(self, step: int) -> dict[str, float]:
        """The share of each set in training batch `step`; {} of a single set."""
        source = self.sources[self.config.data.train_split]
        if not hasattr(source, "sets"):
            return {}
        if self._number is None:
            numbers = source.set_numbers()
            number = mixture.order(source, self.config.seed)
            self._number = lambda position: numbers[number(position)]
        b = self.config.global_batch_size
        drawn = [self._number(step * b + row) for row in range(b)]
        counts = np.bincount(drawn, minlength=len(source.sets))
        return {f"share/{k}": n / b for k, n in zip(source.sets, counts, strict=True)}

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
                # A label of none of the split's sets is the column that this adds.
                padded = np.pad(batch[name], ((0, 0), (0, 1)))
                batch[name] = padded[:, self.columns[split]]
        return sharding.put_batch(batch, self.mesh)
