"""What all builders share: a plan of examples, made in parallel, written by TFDS.

A builder says which rows each split has and how one row becomes an example; this file
runs that in threads, leaves out what cannot be read, and writes ArrayRecord without
TensorFlow.
"""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
import tqdm
from array_record.python import array_record_data_source, array_record_module

from pacx_jax.input import images, quarantine
from pacx_jax.types import PacxError

_CHUNK = 16  # rows a worker gets at a time


@dataclasses.dataclass(frozen=True)
class Plan:
    """What there is to prepare.

    Attributes:
      splits: split -> its rows, any kind of thing.
      make: row -> example, called from several threads. PacxError leaves the row out.
      name: row -> what the row is called in messages.
      entries: names of the entries of every example (see pacx_jax/input/sources.py).
      label_names: names of the labels.
      fingerprint: sha256 of what identifies the source.
      ecg_shape: shape of an ECG, stored as int16.
      ecg_scale: factor from the stored integers to the source's unit.
      lead_order: "standard" or "mimic".
      raw_images: images are stored as pixels, not as files.
      published: "train" or "train+val" -> "images" or a label -> published count.
      files: name -> contents of what else is written beside the records.
      report: what else the summary says, for JSON.
      notes: lines to tell about the source and its splits.
      complete: makes the plan whole where that takes long, as it need not for a
        target that is finished; None = it is.
    """

    splits: Mapping[str, Sequence[Any]]
    make: Callable[[Any], dict[str, Any]]
    name: Callable[[Any], str]
    entries: tuple[str, ...]
    label_names: tuple[str, ...]
    fingerprint: str
    ecg_shape: tuple[int, int] = (5000, 12)
    ecg_scale: float = 1.0
    lead_order: str = "standard"
    raw_images: bool = False
    published: Mapping[str, Mapping[str, int]] = dataclasses.field(default_factory=dict)
    files: Mapping[str, bytes] = dataclasses.field(default_factory=dict)
    report: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()
    complete: Callable[[], Plan] | None = None


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Writes a plan's examples in the plan's order.

    Attributes after `download_and_prepare`:
      counts: split -> examples written.
      positives: split -> label -> how many are 1.
      unreadable: {"split", "index", "name", "reason"} of each row left out.
      content: sha256 over all examples.
    """

    name = "records"
    VERSION = tfds.core.Version("1.0.0")
    description = ""

    def __init__(
        self, *, plan: Plan, workers: int = 1, max_bad_share: float = 1.0, **kwargs: Any
    ):
        self._plan, self._workers, self._max_bad_share = plan, workers, max_bad_share
        self.counts: dict[str, int] = {}
        self.positives: dict[str, dict[str, int]] = {}
        self.unreadable: list[dict[str, Any]] = []
        self._digest = hashlib.sha256(repr(plan.label_names).encode())
        super().__init__(file_format="array_record", **kwargs)

    @property
    def content(self) -> str:
        return self._digest.hexdigest()

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        kinds = {
            "image": lambda: (
                _tensor((None, None, None), np.uint8)
                if self._plan.raw_images
                else tfds.features.Image(shape=(None, None, None))
            ),
            "path": text,
            "patient_id": text,
            "hadm_id": text,
            "labels": lambda: _tensor((len(self._plan.label_names),), np.float32),
            "ecg": lambda: _tensor(self._plan.ecg_shape, np.int16),
            "labs": lambda: _tensor((50,), np.float32),
            "labs_mask": lambda: _tensor((50,), np.float32),
        }
        features = {entry: kinds[entry]() for entry in self._plan.entries}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # training shuffles; the order is the source's
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self._plan.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        plan, rows = self._plan, self._plan.splits[split]
        self.counts[split] = 0
        positives = np.zeros(len(plan.label_names), np.int64)
        made = _make_all(plan.make, rows, self._workers)
        bar = tqdm.tqdm(made, total=len(rows), desc=split, unit="ex", leave=True)
        for index, (example, reason) in enumerate(bar):
            if example is None:
                name = plan.name(rows[index])
                self.unreadable.append(
                    {"split": split, "index": index, "name": name, "reason": reason}
                )
                self._check_share(split)
                continue
            self._add_to_digest(split, example)
            self.counts[split] += 1
            if "labels" in example:
                positives += example["labels"] == 1
            yield index, example
        names = plan.label_names
        self.positives[split] = dict(zip(names, positives.tolist(), strict=True))
        if not self.counts[split]:
            raise PacxError(
                f"the {split} split has no readable example{self._first_bad(split)}"
            )

    def _check_share(self, split: str) -> None:
        bad = sum(row["split"] == split for row in self.unreadable)
        n = len(self._plan.splits[split])
        if bad > quarantine.allowed(self._max_bad_share, n):
            raise PacxError(
                f"{bad} unreadable samples of {n} in the {split} split, more than "
                f"--max_bad_share={self._max_bad_share:g} allows"
                f"{self._first_bad(split)}"
            )

    def _first_bad(self, split: str) -> str:
        reasons = [bad["reason"] for bad in self.unreadable if bad["split"] == split]
        return f"; the first: {reasons[0]}" if reasons else ""

    def _add_to_digest(self, split: str, example: dict[str, Any]) -> None:
        self._digest.update(split.encode())
        for key in sorted(example):
            value = example[key]
            data = value.encode() if isinstance(value, str) else value
            data = data if isinstance(data, bytes) else np.ascontiguousarray(data)
            size = len(data) if isinstance(data, bytes) else data.nbytes
            self._digest.update(f"\0{key}\0{size}\0".encode())
            self._digest.update(data)


def store_image(data: bytes | np.ndarray, size: int, name: str) -> bytes:
    """The bytes to store: shrunk once so that the shorter side is `size` pixels.

    size 0, or an image already small enough, keeps a file's bytes. What is shrunk
    from a JPEG is stored as JPEG of quality 95; PNGs and arrays as PNG, without loss.
    Of a DICOM nothing but its grey levels is stored, as PNG.
    Files are decoded in any case, so that damaged ones are found now.
    """
    is_file = isinstance(data, bytes)
    image = images.decode(data, name) if is_file else data
    if size == 0 or min(image.shape[:2]) <= size:
        keep = is_file and not images.is_dicom(data)
        return data if keep else images.encode_png(image)
    image = images.shrink(image, size)
    is_jpeg = is_file and data[:2] == b"\xff\xd8"
    return images.encode_jpeg(image) if is_jpeg else images.encode_png(image)


def with_raw_images(plan: Plan) -> Plan:
    """The plan with each image as uint8 (h, w, 1 or 3), what decoding it gives.

    The pixels are those of the files it would store, so training on either is the same
    to the byte; raw ones take more room and less time to read.
    """
    if "image" not in plan.entries:
        raise PacxError(
            f"--store=raw: this set has no images ({', '.join(plan.entries)}); leave "
            "--store out"
        )

    def make(row: Any) -> dict[str, Any]:
        example = plan.make(row)
        pixels = images.decode(example["image"], plan.name(row))
        return example | {"image": pixels.reshape(*pixels.shape[:2], -1)}

    return dataclasses.replace(plan, make=make, raw_images=True)


def uncompress(folder: pathlib.Path) -> None:
    """Writes a raw set's records again, uncompressed.

    Decompressing one (zstd, as TFDS writes) takes 80 us more than reading it, in which
    no other thread runs.
    """
    for path in sorted(folder.glob("*.array_record*")):
        stored = array_record_data_source.ArrayRecordDataSource([str(path)])
        plain = path.with_name(f".{path.name}")
        options = "group_size:1,uncompressed"
        writer = array_record_module.ArrayRecordWriter(str(plain), options)
        for i in range(len(stored)):
            writer.write(stored[i])
        writer.close()
        plain.replace(path)


def labs_entries(
    percentiles: np.ndarray, mask: np.ndarray, name: str
) -> dict[str, np.ndarray]:
    """Entries `labs` and `labs_mask` float32 (50,); missing values keep their number.

    PacxError when all are missing, or when one that the mask calls observed (1) is
    not a number.
    """
    observed = mask > 0
    if not observed.any():
        raise PacxError(f"{name}: all laboratory values are missing")
    if not np.isfinite(percentiles[observed]).all():
        raise PacxError(
            f"{name}: NaN in laboratory values that the mask calls observed"
        )
    return {
        "labs": np.nan_to_num(percentiles).astype(np.float32),
        "labs_mask": observed.astype(np.float32),
    }


def read_bytes(path: Any) -> bytes:
    """A file's bytes; PacxError when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise PacxError(f"{path}: cannot be read ({error.strerror})") from None


def _tensor(shape: tuple[int, ...], dtype: Any) -> tfds.features.Tensor:
    # Raw bytes are read a hundred times faster than lists of numbers.
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")


def _make_chunk(
    make: Callable[[Any], dict[str, Any]], rows: Sequence[Any]
) -> list[tuple[dict[str, Any] | None, str]]:
    made = []
    for row in rows:
        try:
            made.append((make(row), ""))
        except PacxError as error:
            made.append((None, str(error)))
    return made


def _make_all(
    make: Callable[[Any], dict[str, Any]], rows: Sequence[Any], workers: int
) -> Iterator[tuple[dict[str, Any] | None, str]]:
    """(example, "") or (None, reason) of each row, in order, in constant memory.

    Threads serve as well as processes, which would take seconds to start: decoding,
    resizing and encoding leave the interpreter free, and one writer limits both.
    """
    chunks = (rows[i : i + _CHUNK] for i in range(0, len(rows), _CHUNK))
    if workers < 2:
        for chunk in chunks:
            yield from _make_chunk(make, chunk)
        return
    pool = concurrent.futures.ThreadPoolExecutor(workers)
    # Only a few chunks are under way, or results would pile up before the writer.
    waiting: collections.deque = collections.deque()
    try:
        for chunk in chunks:
            waiting.append(pool.submit(_make_chunk, make, chunk))
            if len(waiting) >= 2 * workers:
                yield from waiting.popleft().result()
        while waiting:
            yield from waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
