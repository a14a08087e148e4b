"""What all builders share: a plan of examples, and their form in TFDS.

A builder says which rows each split has and how one row becomes an example; this file
says what an example's features are. data/parallel.py runs it, data/shards.py writes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from data import parallel, runs
from pacx_jax.errors import PacxError
from pacx_jax.input import images, masks
from pacx_jax.modalities import vitals


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
      namespace: whose ids the patients' are; "" = those of the set's name.
      simulated: whether the source is the simulated cohort.
      identity: row -> what identifies its source, so that a preparation which is gone
        on with keeps what has not changed; None = `fingerprint` for all rows.
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
    namespace: str = ""
    simulated: bool = False
    identity: Callable[[Any], bytes] | None = None
    complete: Callable[[], Plan] | None = None


@dataclasses.dataclass(frozen=True)
class Record:
    """An example to write: its bytes, digest, which labels are 1, patient, study."""

    data: bytes
    digest: bytes
    positive: np.ndarray
    patient: str
    study: tuple[str, str]  # study_id and view


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A plan as a TFDS builder, without TensorFlow.

    TFDS gives the features, their serialisation, `dataset_info.json` and the reader.
    The shards are written by data/shards.py: `download_and_prepare` gives the same
    records, but what was cut off it makes anew, and unreadable rows it passes over.
    """

    name = "records"
    VERSION = tfds.core.Version("1.0.0")
    description = ""

    def __init__(self, *, plan: Plan, workers: int = 1, **kwargs: Any):
        self.plan, self._workers = plan, workers
        super().__init__(file_format="array_record", **kwargs)
        self._serializer = tfds.core.example_serializer.ExampleSerializer(
            self.info.features.get_serialized_info()
        )

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        kinds = {
            "image": lambda: (
                _tensor((None, None, None), np.uint8)
                if self.plan.raw_images
                else tfds.features.Image(shape=(None, None, None))
            ),
            "mask": lambda: tfds.features.Image(shape=(None, None, 1)),
            "path": text,
            "patient_id": text,
            "hadm_id": text,
            "study_id": text,
            "view": text,
            "view_origin": text,
            "findings": text,
            "impression": text,
            "labels": lambda: _tensor((len(self.plan.label_names),), np.float32),
            "ecg": lambda: _tensor(self.plan.ecg_shape, np.int16),
            "labs": lambda: _tensor((50,), np.float32),
            "labs_mask": lambda: _tensor((50,), np.float32),
            "vitals": lambda: _tensor((len(vitals.SIGNS),), np.float32),
            "vitals_mask": lambda: _tensor((len(vitals.SIGNS),), np.float32),
        }
        features = {entry: kinds[entry]() for entry in self.plan.entries}
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.description,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # training shuffles; the order is the source's
        )

    def serialize(self, example: dict[str, Any]) -> bytes:
        """An example's record: TFDS's, but with its entries always in one order."""
        encoded = self.info.features.encode_example(example)
        proto = self._serializer.get_tf_example(encoded)
        return proto.SerializeToString(deterministic=True)

    def record(self, row: Any) -> Record:
        """Makes a row's record; PacxError leaves the row out."""
        example = self.plan.make(row)
        return Record(
            self.serialize(example),
            _digest(example),
            np.asarray(example.get("labels", np.zeros(0))) == 1,
            example.get("patient_id", ""),
            (example.get("study_id", ""), example.get("view", "unknown")),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager
        return {split: self._generate_examples(split) for split in self.plan.splits}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        rows = self.plan.splits[split]
        made = parallel.make_all(self.plan.make, rows, self._workers)
        yield from ((i, example) for i, (example, _) in enumerate(made) if example)


def store_image(data: bytes | np.ndarray, size: int, name: str) -> bytes:
    """The bytes to store: shrunk once so that the shorter side is `size` pixels.

    size 0, or an image already small enough, keeps a file's bytes. What is shrunk
    from a JPEG is stored as JPEG of quality 95; PNGs and arrays as PNG, without loss.
    A DICOM is stored as a PNG of its grey levels.
    Files are decoded in any case, so that damaged ones are found now.
    """
    image = images.decode(data, name) if isinstance(data, bytes) else data
    return _encode(data, image, size)


def store_pair(
    data: bytes, mask_data: bytes | runs.Runs, size: int, name: str, mask_name: str
) -> dict[str, bytes]:
    """Entries `image`, as by `store_image`, and `mask`: a PNG of 0 and 255, its size.

    The mask is a file's bytes, or runs of pixels. It is shrunk by its nearest pixels.
    PacxError when the two differ in size, or when the mask is none (see
    pacx_jax/input/masks.py).
    """
    image = images.decode(data, name)
    if isinstance(mask_data, runs.Runs):
        mask = runs.draw(mask_data, mask_name)
    else:
        mask = masks.decode(mask_data, mask_name)
    masks.check_size(image, mask, name)
    mask = masks.resize_to(mask, *images.shrunk(image.shape, size))
    return {
        "image": _encode(data, image, size),
        "mask": images.encode_png(mask * np.uint8(255)),
    }


def _encode(data: bytes | np.ndarray, image: np.ndarray, size: int) -> bytes:
    is_file = isinstance(data, bytes)
    if size == 0 or min(image.shape[:2]) <= size:
        keep = is_file and not images.is_dicom(data)
        return data if keep else images.encode_png(image)
    image = images.shrink(image, size)
    is_jpeg = is_file and data[:2] == b"\xff\xd8"
    return images.encode_jpeg(image) if is_jpeg else images.encode_png(image)


def image_identity(root: str, row: tuple) -> bytes:
    """Identifies the source of a row as `published.MakeImage` takes it.

    A missing file has size -1.
    """
    path, patient, labels, mask, *texts = row
    text = f"{path}\0{_size(root, path)}\0{patient}\0"
    if isinstance(mask, str):
        text += f"{mask}\0{_size(root, mask)}\0"
    elif mask is not None:
        text += f"{mask.text}\0"
    for values in texts:
        text += repr(values)
    return text.encode() + labels.tobytes()


def _size(root: str, path: str) -> int:
    try:
        return os.stat(f"{root}/{path}").st_size
    except OSError:
        return -1


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


def _digest(example: dict[str, Any]) -> bytes:
    digest = hashlib.sha256()
    for key in sorted(example):
        value = example[key]
        data = value.encode() if isinstance(value, str) else value
        data = data if isinstance(data, bytes) else np.ascontiguousarray(data)
        size = len(data) if isinstance(data, bytes) else data.nbytes
        digest.update(f"\0{key}\0{size}\0".encode())
        digest.update(data)
    return digest.digest()


def _tensor(shape: tuple[int, ...], dtype: Any) -> tfds.features.Tensor:
    # Raw bytes are read a hundred times faster than lists of numbers.
    return tfds.features.Tensor(shape=shape, dtype=dtype, encoding="bytes")
