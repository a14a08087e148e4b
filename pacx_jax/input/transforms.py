"""From a raw example to fixed-shape arrays, one transform per kind of training.

A transform has two halves. `load` decodes and is the same every time, so its result
may be cached; `augment` draws from the generator it is given, and from nothing else.
Images stay uint8: they are normalised on the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pacx_jax.input import augment, ecg, images
from pacx_jax.types import PacxError

Example = dict[str, Any]
NAMES = ("mae", "distill", "probe", "labs", "ecg")


@dataclasses.dataclass(frozen=True)
class Transform:
    """`transform(example, rng)` is `augment(load(example), rng)`.

    Attributes:
      name: one of NAMES.
      requires: entries that an example must have.
      load: raw example, name for messages -> decoded arrays, without chance.
      augment: decoded arrays, generator -> fixed-shape arrays.
    """

    name: str
    requires: tuple[str, ...]
    load: Callable[..., Example]
    augment: Callable[[Example, np.random.Generator], dict[str, np.ndarray]]

    def __call__(
        self, example: Mapping[str, Any], rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        return self.augment(self.load(example), rng)


def make(name: str, data: Any, *, train: bool) -> Transform:
    """Makes the transform of a stage.

    Fields of `data`, with the value they have where they are missing: `image_size`
    (s, 224), `crop_scale` ((0.5, 1.0)), `hflip` (0.5), `modalities` (image, ecg,
    labs), `ecg_fs` (500), `ecg_decimate` (1), `uncertain` ("missing", "positive" or
    "negative": what the label -1 means).

    Returns, by name:
      mae: image uint8 (s, s, 3). Training: random resized crop with the ratios
        (3/4, 4/3), horizontal flip. Evaluation: squash.
      distill: those of image, ecg, labs and labs_mask that `modalities` names.
        Training: the augmentation of reference.md 4.7, without a flip.
      probe: image (squashed; flipped in training), labels and label_mask float32
        (c,); a missing label is 0 with label_mask 0.
      labs: labs and labs_mask float32 (50,).
      ecg: ecg float32 (t, 12), preprocessed; labels and label_mask where the data
        have labels.

    The pipeline adds `index`.
    """
    if name not in NAMES:
        raise PacxError(f"transform {name!r}: give one of {', '.join(NAMES)}")
    modalities = {
        "mae": ("image",),
        "distill": tuple(getattr(data, "modalities", ("image", "ecg", "labs"))),
        "probe": ("image", "labels"),
        "labs": ("labs",),
        "ecg": ("ecg", "labels"),
    }[name]
    unknown = set(modalities) - {"image", "ecg", "labs", "labels"}
    if unknown:
        raise PacxError(
            f"data.modalities has {', '.join(sorted(unknown))}; give image, ecg, labs"
        )
    requires = tuple(m for m in modalities if not (name == "ecg" and m == "labels"))
    return Transform(
        name=name,
        requires=requires,
        load=_make_load(modalities, data),
        augment=_make_augment(_make_image_augment(name, data, train)),
    )


def _make_load(modalities: tuple[str, ...], data: Any) -> Callable[..., Example]:
    fs = float(getattr(data, "ecg_fs", 500.0))
    decimation = int(getattr(data, "ecg_decimate", 1))
    uncertain = getattr(data, "uncertain", "missing")
    if uncertain not in ("missing", "positive", "negative"):
        raise PacxError(
            f"data.uncertain {uncertain!r}: give missing, positive or negative"
        )

    def load(example: Mapping[str, Any], name: str = "") -> Example:
        name = name or str(example.get("path", "")) or "example"
        loaded: Example = {}
        if "image" in modalities:
            loaded["image"] = _image(example, name)
        if "ecg" in modalities:
            order = example.get("lead_order", "standard")
            record = ecg.preprocess(_entry(example, "ecg", name), fs, order, name)
            loaded["ecg"] = ecg.decimate(record, decimation)
        if "labs" in modalities:
            loaded["labs"], loaded["labs_mask"] = _labs(example, name)
        if "labels" in modalities and "labels" in example:
            labels = _labels(example["labels"], uncertain)
            loaded["labels"], loaded["label_mask"] = labels
        return loaded

    return load


def _make_augment(image_augment: Callable) -> Callable:
    def augment_example(
        loaded: Example, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        out = dict(loaded)
        if "image" in out:
            out["image"] = image_augment(out["image"], rng)
        return out

    return augment_example


def _make_image_augment(name: str, data: Any, train: bool) -> Callable:
    size = int(getattr(data, "image_size", 224))
    hflip = float(getattr(data, "hflip", 0.5))
    scale = tuple(getattr(data, "crop_scale", (0.5, 1.0)))
    if size < 1 or not 0 <= hflip <= 1:
        raise PacxError(f"data.image_size {size} or data.hflip {hflip} out of range")
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise PacxError(f"data.crop_scale {scale}: give (low, high) within (0, 1]")

    def squash(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return augment.tripled(images.resize_to(image, size, size))

    def mae(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = augment.random_resized_crop(image, size, scale, (3 / 4, 4 / 3), rng)
        return augment.tripled(augment.random_flip(image, hflip, rng))

    def distill(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return augment.distillation(image, size, rng)

    def probe(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = images.resize_to(image, size, size)
        return augment.tripled(augment.random_flip(image, hflip, rng))

    return (
        {"mae": mae, "distill": distill, "probe": probe}.get(name, squash)
        if (train)
        else squash
    )


def _entry(example: Mapping[str, Any], key: str, name: str) -> Any:
    if key not in example:
        raise PacxError(f"{name}: the example has no {key}")
    return example[key]


def _image(example: Mapping[str, Any], name: str) -> np.ndarray:
    return images.decode(_entry(example, "image", name), name)


def _labs(example: Mapping[str, Any], name: str) -> tuple[np.ndarray, np.ndarray]:
    values = np.asarray(_entry(example, "labs", name), np.float32)
    mask = np.asarray(_entry(example, "labs_mask", name), np.float32)
    if values.shape != mask.shape or values.ndim != 1:
        raise PacxError(
            f"{name}: labs of shape {values.shape} with a mask of {mask.shape}"
        )
    if not mask.any():
        raise PacxError(f"{name}: all laboratory values are missing; remove the row")
    if not np.isfinite(values[mask > 0]).all():
        raise PacxError(f"{name}: NaN in laboratory values that the mask calls present")
    return np.nan_to_num(values), mask


def _labels(labels: np.ndarray, uncertain: str) -> tuple[np.ndarray, np.ndarray]:
    labels = np.asarray(labels, np.float32)
    if uncertain != "missing":
        labels = np.where(labels == -1, np.float32(uncertain == "positive"), labels)
    known = ~(np.isnan(labels) | (labels == -1))
    return np.where(known, labels, 0).astype(np.float32), known.astype(np.float32)
