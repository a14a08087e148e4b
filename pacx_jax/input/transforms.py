"""From a raw example to fixed-shape arrays.

A transform has two halves. `load` decodes and is the same every time, so its result
may be cached; `augment` draws from the generator it is given, and from nothing else.
Images stay uint8: they are normalised on the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from pacx_jax.errors import PacxError
from pacx_jax.input import augment, images, masks, subsets, views

Example = dict[str, Any]
NAMES = ("mae", "mvmae", "distill", "probe", "segment", "")
ENTRIES = ("image", "images", "mask", "labels")
UNCERTAIN = ("ignore", "zero", "one", "reference")


class Reader(Protocol):
    """What reads further arrays of an example, such as a `modalities.Reader`.

    Attributes:
      requires: entries that an example must have.
    """

    requires: tuple[str, ...]

    def load(self, example: Mapping[str, Any], name: str) -> Example: ...


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


def make(
    name: str,
    data: Any,
    *,
    train: bool,
    entries: Sequence[str] = ("image",),
    readers: Sequence[Reader] = (),
) -> Transform:
    """Makes the transform of a stage.

    Fields of `data`, with the value they have where they are missing: `image_size`
    (s, 224), `channels` (k, 3; 1 is grey), `crop_scale` ((0.5, 1.0)), `hflip` (0.5),
    `degrees` (10), `jitter` (0.4), `max_views` (v, 3), `uncertain` ("ignore", see
    `subsets.known_labels`).

    Args:
      name: what training does to the image; evaluation squashes it to (s, s).
        mae: random resized crop with the ratios (3/4, 4/3), horizontal flip.
        mvmae: square random resized crop, horizontal flip, brightness and contrast
          within `jitter`.
        distill: the augmentation of PaCX-MAE's Stage 2, without a flip.
        probe: squashed, horizontal flip.
        segment: image and mask mirrored, and turned within +- `degrees`, alike.
        "": squashed, or no image.
      entries: of ENTRIES.
        image: uint8 (s, s, k).
        images: of a study: images uint8 (v, s, s, k); view int32 (v,), see
          `views.number`; view_mask float32 (v,), 1 where there is an image. Of a study
          of more views, training draws v and evaluation takes the first.
        mask: target uint8 (s, s), squashed by nearest neighbours; 1 inside.
        labels: labels and label_mask float32 (c,), see `subsets.known_labels`.
      readers: make all other arrays.

    The pipeline adds `index`.
    """
    if name not in NAMES:
        known = ", ".join(filter(None, NAMES))
        raise PacxError(f"data.transform {name!r}: give one of {known}, or nothing")
    unknown = sorted(set(entries) - set(ENTRIES))
    if unknown:
        raise PacxError(f"entries {', '.join(unknown)}: give {', '.join(ENTRIES)}")
    requires = tuple(entries)
    requires += tuple(entry for reader in readers for entry in reader.requires)
    load = _make_load(tuple(entries), tuple(readers), data)
    if name == "segment":
        return Transform(name, requires, load, _make_joint_augment(data, train))
    image_augment = _make_image_augment(name, data, train)
    if "images" in entries:
        augment_study = _make_study_augment(image_augment, data, train)
        return Transform(name, requires, load, augment_study)
    return Transform(name, requires, load, _make_augment(image_augment))


def _make_load(
    entries: tuple[str, ...], readers: tuple[Reader, ...], data: Any
) -> Callable[..., Example]:
    uncertain = getattr(data, "uncertain", "ignore")
    if uncertain not in UNCERTAIN:
        raise PacxError(
            f"data.uncertain {uncertain!r}: give one of {', '.join(UNCERTAIN)}"
        )

    def load(example: Mapping[str, Any], name: str = "") -> Example:
        name = name or str(example.get("path", "")) or "example"
        loaded: Example = {}
        if "image" in entries:
            loaded["image"] = images.decode(_entry(example, "image", name), name)
        if "images" in entries:
            found = _entry(example, "images", name)
            for i, image in enumerate(found):
                loaded[f"image_{i}"] = images.decode(image, f"{name}, image {i + 1}")
            loaded["view"] = np.array([views.number(v) for v in example["views"]])
        if "mask" in entries:
            loaded["mask"] = masks.decode(_entry(example, "mask", name), name)
            masks.check_size(loaded["image"], loaded["mask"], name)
        for reader in readers:
            for entry in reader.requires:
                _entry(example, entry, name)
            loaded |= reader.load(example, name)
        if "labels" in entries:
            labels = subsets.known_labels(_entry(example, "labels", name), uncertain)
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


def _make_study_augment(image_augment: Callable, data: Any, train: bool) -> Callable:
    most = int(getattr(data, "max_views", 3))
    if most < 1:
        raise PacxError(f"data.max_views {most}: give at least 1")

    def augment_study(
        loaded: Example, rng: np.random.Generator
    ) -> dict[str, np.ndarray]:
        kinds = loaded["view"]
        chosen = np.arange(len(kinds))
        if train and len(kinds) > most:
            chosen = np.sort(rng.permutation(len(kinds))[:most])
        chosen = chosen[:most]
        shown = [image_augment(loaded[f"image_{i}"], rng) for i in chosen]
        out = {k: v for k, v in loaded.items() if not k.startswith("image_")}
        out["images"] = np.zeros((most, *shown[0].shape), np.uint8)
        out["images"][: len(shown)] = shown
        out["view"] = np.full(most, views.number("unknown"), np.int32)
        out["view"][: len(shown)] = kinds[chosen]
        out["view_mask"] = (np.arange(most) < len(shown)).astype(np.float32)
        return out

    return augment_study


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
    channels = int(getattr(data, "channels", 3))
    amount = float(getattr(data, "jitter", 0.4))
    if channels not in (1, 3) or not 0 <= amount < 1:
        raise PacxError(
            f"data.channels {channels} or data.jitter {amount:g}: give 1 or 3, and 0 "
            "to below 1"
        )
    scale = tuple(getattr(data, "crop_scale", (0.5, 1.0)))
    if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
        raise PacxError(f"data.crop_scale {scale}: give (low, high) within (0, 1]")

    def squash(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return augment.shaped(images.resize_to(image, size, size), channels)

    def mae(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = augment.random_resized_crop(image, size, scale, (3 / 4, 4 / 3), rng)
        return augment.shaped(augment.random_flip(image, hflip, rng), channels)

    def mvmae(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = augment.random_resized_crop(image, size, scale, (1.0, 1.0), rng)
        image = augment.random_flip(image, hflip, rng)
        if amount:
            image = augment.jitter(image, rng, amount)
        return augment.shaped(image, channels)

    def distill(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        return augment.shaped(augment.distillation(image, size, rng), channels)

    def probe(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        image = images.resize_to(image, size, size)
        return augment.shaped(augment.random_flip(image, hflip, rng), channels)

    ways = {"mae": mae, "mvmae": mvmae, "distill": distill, "probe": probe}
    return ways.get(name, squash) if train else squash


def _entry(example: Mapping[str, Any], key: str, name: str) -> Any:
    if key not in example:
        raise PacxError(f"{name}: the example has no {key}")
    return example[key]
