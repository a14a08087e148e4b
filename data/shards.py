"""Writes a plan's records shard by shard, so that what is finished is never made twice.

Which rows a shard has follows from the plan alone. While a set is prepared there is

  .TARGET.partial/
    journal.json        what the shards belong to: settings, entries, labels
    SPLIT-00003.json    of a finished shard: its source and sum, counts, patients, ...
    set/                what becomes the target: the shards, and at the end the rest

A shard is written under another name, synced and renamed before its JSON is written in
the same way: what has its JSON is whole, whenever the process was killed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_module

from data import journal, parallel, records
from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import quarantine

VERSION = 1  # of how rows become records; a journal of another one is not gone on with
LEAST = 256  # rows a shard, so that a small set has one
MOST = 256  # shards a split, as each is an open file in training


@dataclasses.dataclass(frozen=True)
class Shard:
    """Rows start to stop of a split: its shard number `index` of `count`."""

    split: str
    index: int
    count: int
    start: int
    stop: int

    @property
    def note(self) -> str:
        """Name of the JSON that says it is finished."""
        return f"{self.split}-{self.index:05d}.json"

    def file(self, name: str) -> str:
        """Its name in TFDS's pattern, in the set that is called `name`."""
        stem = f"{name}-{self.split}.array_record"
        return f"{stem}-{self.index:05d}-of-{self.count:05d}"


def divide(plan: records.Plan) -> list[Shard]:
    """The shards of a plan, in order."""
    shards = []
    for split, rows in plan.splits.items():
        n = len(rows)
        size = max(LEAST, -(-n // MOST))
        starts = range(0, max(n, 1), size)
        shards += [
            Shard(split, i, len(starts), start, min(start + size, n))
            for i, start in enumerate(starts)
        ]
    return shards


class Preparation:
    """A plan on its way into `folder`, the .TARGET.partial above.

    Attributes:
      done: finished shard -> what its JSON says: `source`, which identifies its rows;
        `file` and its `sha256`; `examples`, `record_bytes`; `positives` of each label;
        `digest` over the examples; `patients` and `studies` (None without);
        `unreadable`, a list of {"split", "index", "name", "reason"}.
      unreadable: the rows left out, in order; when it failed, those so far.
      made: how many examples this process made.
    """

    def __init__(
        self,
        builder: records.RecordBuilder,
        folder: pathlib.Path,
        settings: dict[str, Any],
    ):
        """Takes over what is finished; PacxError if it has other settings."""
        self._builder, self._plan, self._folder = builder, builder.plan, folder
        self.set = folder / "set"
        self.shards = divide(self._plan)
        self.done: dict[Shard, dict[str, Any]] = {}
        self.made = 0
        header = {
            "version": VERSION,
            "settings": settings,
            "entries": list(self._plan.entries),
            "label_names": list(self._plan.label_names),
        }
        journal.begin(folder, header)
        self.set.mkdir(exist_ok=True)
        self.tidy()
        self._take_over()
        self.unreadable = [r for d in self.done.values() for r in d["unreadable"]]

    def _take_over(self) -> None:
        """Keeps the finished shards that are what they would be made now.

        Their source is the same, their file is what its JSON says, and what could not
        be read of it cannot be read now either. The others are deleted.
        """
        changed = 0
        for shard in self.shards:
            path = self._folder / shard.note
            try:
                done = json.loads(path.read_text())
                source, file = done["source"], self.set / done["file"]
                whole = files.sha256(file) == done["sha256"]
            except (OSError, ValueError, KeyError, TypeError):
                continue
            if source != self._source(shard):
                changed += 1
            elif whole and not self._readable(shard, done["unreadable"]):
                self.done[shard] = done
        if changed:
            print(
                f"{self._folder}: {changed} finished shards were of other contents of "
                "the source and are made anew",
                file=sys.stderr,
            )
        known = {name for s, d in self.done.items() for name in (s.note, d["file"])}
        for path in (*self._folder.glob("*-*.json"), *self.set.iterdir()):
            if path.name not in known:
                path.unlink()

    def _source(self, shard: Shard) -> str:
        """What identifies the rows of a shard, and what else is in its file's name."""
        digest = hashlib.sha256(repr(dataclasses.astuple(shard)).encode())
        if self._plan.identity is None:
            digest.update(self._plan.fingerprint.encode())
        else:
            for row in self._plan.splits[shard.split][shard.start : shard.stop]:
                digest.update(self._plan.identity(row))
        return digest.hexdigest()

    def _readable(self, shard: Shard, unreadable: list[dict[str, Any]]) -> bool:
        """Whether one of the rows left out can be read by now."""
        rows = self._plan.splits[shard.split]
        bad = (rows[row["index"]] for row in unreadable)
        made = parallel.make_all(self._plan.make, bad, 1)
        return any(example is not None for example, _ in made)

    def tidy(self) -> None:
        """Deletes what was cut off."""
        for file in (*self._folder.glob("*.tmp"), *self.set.glob("*.tmp")):
            file.unlink()

    def kept(self) -> int:
        """How many rows are in finished shards."""
        return sum(shard.stop - shard.start for shard in self.done)

    def write(self, workers: int, max_bad_share: float) -> None:
        """Writes the shards that are not finished.

        Raises:
          PacxError: more than `max_bad_share` of a split is unreadable, or all of it.
        """
        pending = [shard for shard in self.shards if shard not in self.done]
        rows = (
            self._plan.splits[shard.split][i]
            for shard in pending
            for i in range(shard.start, shard.stop)
        )
        with contextlib.closing(
            parallel.make_all(self._builder.record, rows, workers)
        ) as made:
            for split in self._plan.splits:
                self._write_split(split, made, max_bad_share)
        order = list(self._plan.splits)
        self.unreadable.sort(key=lambda row: (order.index(row["split"]), row["index"]))

    def _write_split(self, split: str, made: Iterator, max_bad_share: float) -> None:
        shards = [shard for shard in self.shards if shard.split == split]
        n = len(self._plan.splits[split])
        ready = sum(s.stop - s.start for s in shards if s in self.done)
        self._check_share(split, max_bad_share)  # which may be another one by now
        with tqdm.tqdm(total=n, initial=ready, desc=split, unit="ex") as bar:
            for shard in shards:
                if shard not in self.done:
                    self._write_shard(shard, made, max_bad_share, bar)
        if not sum(self.done[shard]["examples"] for shard in shards):
            raise PacxError(
                f"the {split} split has no readable example{self._first_bad(split)}"
            )

    def _write_shard(
        self, shard: Shard, made: Iterator, max_bad_share: float, bar: tqdm.tqdm
    ) -> None:
        plan, rows = self._plan, self._plan.splits[shard.split]
        file = shard.file(self._builder.name)
        temporary = self.set / f"{file}.tmp"
        digest, positives = hashlib.sha256(), np.zeros(len(plan.label_names), np.int64)
        patients, studies, unreadable, size = [], [], [], 0
        source = self._source(shard)  # before it is read: later changes are seen
        # Decompressing pixels takes 80 us an image, in which no other thread runs.
        form = "group_size:1,uncompressed" if plan.raw_images else "group_size:1"
        writer = array_record_module.ArrayRecordWriter(str(temporary), form)
        for index in range(shard.start, shard.stop):
            record, reason = next(made)
            bar.update()
            if record is None:
                bad = {"split": shard.split, "index": index}
                bad |= {"name": plan.name(rows[index]), "reason": reason}
                unreadable.append(bad)
                self.unreadable.append(bad)
                self._check_share(shard.split, max_bad_share)
                continue
            writer.write(record.data)
            size += len(record.data)
            digest.update(record.digest)
            positives += record.positive
            patients.append(record.patient)
            studies.append(record.study)
        writer.close()
        files.sync(temporary)
        done = {
            "source": source,
            "file": file,
            "sha256": files.sha256(temporary),
            "examples": len(patients),
            "record_bytes": size,
            "positives": positives.tolist(),
            "digest": digest.hexdigest(),
            "patients": patients if "patient_id" in plan.entries else None,
            "studies": studies if "study_id" in plan.entries else None,
            "unreadable": unreadable,
        }
        temporary.replace(self.set / file)
        files.sync(self.set)
        files.write(self._folder / shard.note, json.dumps(done))
        self.done[shard] = done
        self.made += len(patients)

    def _check_share(self, split: str, max_bad_share: float) -> None:
        bad = sum(row["split"] == split for row in self.unreadable)
        n = len(self._plan.splits[split])
        if bad > quarantine.allowed(max_bad_share, n):
            raise PacxError(
                f"{bad} unreadable samples of {n} in the {split} split, more than "
                f"--max_bad_share={max_bad_share:g} allows{self._first_bad(split)}"
            )

    def _first_bad(self, split: str) -> str:
        reasons = [bad["reason"] for bad in self.unreadable if bad["split"] == split]
        return f"; the first: {reasons[0]}" if reasons else ""

    def content(self) -> str:
        """sha256 over all examples, in order."""
        digest = hashlib.sha256(repr(self._plan.label_names).encode())
        for shard in self.shards:
            digest.update(f"{shard.split} {self.done[shard]['digest']}\n".encode())
        return digest.hexdigest()

    def by_split(self, what: str) -> dict[str, list[Any]]:
        """split -> what the JSON of each of its shards says of something."""
        found: dict[str, list[Any]] = {split: [] for split in self._plan.splits}
        for shard in self.shards:
            found[shard.split].append(self.done[shard][what])
        return found

    def describe(self) -> None:
        """Writes TFDS's own description of the set, by which it opens it."""
        sizes, lengths = self.by_split("record_bytes"), self.by_split("examples")
        info = self._builder.info
        infos = [
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=lengths[split],
                num_bytes=sum(sizes[split]),
                filename_template=tfds.core.ShardedFileTemplate(
                    data_dir=self.set,
                    dataset_name=self._builder.name,
                    split=split,
                    filetype_suffix="array_record",
                ),
            )
            for split in self._plan.splits
        ]
        info.set_splits(tfds.core.SplitDict(infos))
        info.write_to_directory(self.set)
