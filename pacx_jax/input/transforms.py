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

from pacx_jax.errors import PacxError
from pacx_jax.input import augment, ecg, images, masks, subsets

Example = dict[str, Any]
NAMES = ("mae", "distill", "probe", "segment", "labs", "ecg")
UNCERTAIN = ("ignore", "zero", "one", "reference")


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
    (s, 224), `crop_scale` ((0.5, 1.0)), `hflip` (0.5), `degrees` (10), `modalities`
    (image, ecg, labs), `ecg_fs` (500), `ecg_decimate` (1), `uncertain` ("ignore",
    see `subsets.known_labels`).

    Returns, by name:
      mae: image uint8 (s, s, 3). Training: random resized crop with the ratios
        (3/4, 4/3), horizontal flip. Evaluation: squash.
      distill: those of image, ecg, labs and labs_mask that `modalities` names.
        Training: the augmentation of reference.md 4.7, without a flip.
      probe: image (squashed; flipped in training), labels and label_mask float32
        (c,), as `subsets.known_labels` makes them.
      segment: image (squashed) and target uint8 (s, s), its mask, squashed by nearest
        neighbours: 1 inside. Training: both mirrored and turned within +- `degrees`
        alike (reference.md 5.3).
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
        "segment": ("image", "mask"),
        "labs": ("labs",),
        "ecg": ("ecg", "labels"),
    }[name]
    unknown = set(modalities) - {"image", "mask", "ecg", "labs", "labels"}
    if unknown:
        raise PacxError(
            f"data.modalities has {', '.join(sorted(unknown))}; give image, ecg, labs"
        )
    requires = tuple(m for m in modalities if not (name == "ecg" and m == "labels"))
    load = _make_load(modalities, data)
    if name == "segment":
        return Transform(name, requires, load, _make_joint_augment(data, train))
    return Transform(
        name=name,
        requires=requires,
        load=load,
        augment=_make_augment(_make_image_augment(name, data, train)),
    )


def _make_load(modalities: tuple[str, ...], data: Any) -> Callable[..., Example]:
    fs = float(getattr(data, "ecg_fs", 500.0))
    decimation = int(getattr(data, "ecg_decimate", 1))
    uncertain = getattr(data, "uncertain", "ignore")
    if uncertain not in UNCERTAIN:
        raise PacxError(
            f"data.uncertain {uncertain!r}: give one of {', '.join(UNCERTAIN)}"
        )

    def load(example: Mapping[str, Any], name: str = "") -> Example:
        name = name or str(example.get("path", "")) or "example"
        loaded: Example = {}
        if "image" in modalities:
            loaded["image"] = _image(example, name)
        if "mask" in modalities:
            loaded["mask"] = masks.decode(_entry(example, "mask", name), name)
            masks.check_size(loaded["image"], loaded["mask"], name)
        if "ecg" in modalities:
            order = example.get("lead_order", "standard")
            record = ecg.preprocess(_entry(example, "ecg", name), fs, order, name)
            loaded["ecg"] = ecg.decimate(record, decimation)
        if "labs" in modalities:
            loaded["labs"], loaded["labs_mask"] = _labs(example, name)
        if "labels" in modalities and "labels" in example:
            labels = subsets.known_labels(example["labels"], uncertain)
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


def _make_joint_augment(data: Any, train: bool) -> Callable:
    size, hflip = _size_and_flip(data)
    degrees = float(getattr(data, "degrees", 10.0))
    if not 0 <= degrees <= 180:
        raise PacxError(f"data.degrees {degrees:g}: give 0 to 180")

    def augment_pair(
        loaded: Example, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        image = images.resize_to(loaded["image"], size, size)
        target = masks.resize_to(loaded["mask"], size, size)
        if train:
            pair = [image, target]
            image, target = augment.random_flip_and_turn(pair, hflip, degrees, rng)
        return {"image": augment.tripled(image), "target": target}

    return augment_pair


def _size_and_flip(data: Any) -> tuple[int, float]:
    size = int(getattr(data, "image_size", 224))
    hflip = float(getattr(data, "hflip", 0.5))
    if size < 1 or not 0 <= hflip <= 1:
        raise PacxError(f"data.image_size {size} or data.hflip {hflip} out of range")
    return size, hflip


def _make_image_augment(name: str, data: Any, train: bool) -> Callable:
    size, hflip = _size_and_flip(data)
    scale = tuple(getattr(data, "crop_scale", (0.5, 1.0)))
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
