"""Features of probe sets: what every arm of a comparison sees of the same studies."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pacx_jax import files, sharding
from pacx_jax.encoders import forward
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.evaluate import subgroups
from pacx_jax.input import images, patients, subsets, views
from pacx_jax.modalities import teachers
from pacx_jax.run import embedding_cache


@dataclasses.dataclass(frozen=True)
class ProbeSet:
    """One split, decoded once for all arms.

    Attributes:
      images: uint8 arrays of any size, in the source's order.
      labels: (n, c) float32, 0 where unknown.
      mask: (n, c) float32, 1 where the label is known.
      patients: (n,) str, of an example without one its number (`patients.units`).
      views: the fine name of each, "unknown" where the data name none.
    """

    images: list[np.ndarray]
    labels: np.ndarray
    mask: np.ndarray
    patients: np.ndarray
    views: list[str]


def read_probe_set(source) -> ProbeSet:
    """Reads a labelled source (see pacx_jax.input.sources) into memory."""
    decoded, labels, named, seen = [], [], [], []
    for i in range(len(source)):
        example = source[i]
        decoded.append(images.decode(example["image"], source.name(i)))
        labels.append(example["labels"])
        named.append(example.get("patient_id", ""))
        seen.append(example.get("view", "unknown"))
    labels, known = subsets.known_labels(np.stack(labels), "ignore")
    units, _ = patients.units(named)
    return ProbeSet(decoded, labels, known, np.array(units), seen)


@dataclasses.dataclass(frozen=True)
class StudySet:
    """One split of studies, decoded once for all arms.

    Attributes:
      images: uint8 arrays of any size; those of a study stand together, in its order
        (see `input.studies`).
      views: the fine name of each.
      index: (k,) the number of each one's study.
      labels, mask: (n, c) float32 of the studies, as of `ProbeSet`.
      patients: (n,) str.
      paths: (n,) of the studies' first images.
    """

    images: list[np.ndarray]
    views: list[str]
    index: np.ndarray
    labels: np.ndarray
    mask: np.ndarray
    patients: np.ndarray
    paths: list[str]


def read_study_set(source) -> StudySet:
    """Reads a labelled source of studies (`data.group=study`) into memory."""
    decoded, names, index, labels, named, paths = [], [], [], [], [], []
    for i in range(len(source)):
        example = source[i]
        decoded += [images.decode(each, source.name(i)) for each in example["images"]]
        names += example["views"]
        index += [i] * len(example["images"])
        labels.append(example["labels"])
        named.append(example.get("patient_id", ""))
        paths.append(example.get("path", ""))
    labels, known = subsets.known_labels(np.stack(labels), "ignore")
    units, _ = patients.units(named)
    return StudySet(
        decoded, names, np.array(index), labels, known, np.array(units), paths
    )


def view_labels(study_set: StudySet) -> np.ndarray:
    """The view of each image alone, (k, v) one-hot over fine names: a floor."""
    names = list(views.FINE)
    place = [names.index(name) for name in study_set.views]
    return np.eye(len(names), dtype=np.float32)[place]


def by_view(features: np.ndarray, study_set: StudySet, mean: np.ndarray) -> np.ndarray:
    """Features with a block of columns for each coarse view, so with its own weights.

    Args:
      features: (k, d), one row an image.
      mean: (v, d) of the training images of each coarse view. It is subtracted, so that
        a view's absence is 0 and says nothing.

    Returns:
      (k, v d).
    """
    kinds = np.array([views.number(name) for name in study_set.views])
    out = np.zeros((len(features), *mean.shape), np.float32)
    out[np.arange(len(kinds)), kinds] = features - mean[kinds]
    return out.reshape(len(features), -1)


def view_means(features: np.ndarray, study_set: StudySet) -> np.ndarray:
    """Mean features (v, d) of the images of each coarse view; of none they are 0."""
    kinds = np.array([views.number(name) for name in study_set.views])
    out = np.zeros((len(views.COARSE), features.shape[1]), np.float32)
    for kind in np.unique(kinds):
        out[kind] = features[kinds == kind].mean(axis=0)
    return out


def pixels(probe_set: ProbeSet | StudySet, size: int = 24) -> np.ndarray:
    """Raw grey pixels of each image, (n, size^2) float32: the floor without a model."""
    return small_pixels(probe_set.images, size)


def small_pixels(decoded: Sequence[np.ndarray], size: int = 24) -> np.ndarray:
    """`pixels` of uint8 images."""
    small = [images.resize(image, size)[..., 0] for image in decoded]
    return np.stack(small).reshape(len(small), -1).astype(np.float32) / 255


def fingerprint(encoder: Encoder) -> str:
    """Names an encoder by its weights, architecture and preprocessing."""
    digest = hashlib.sha256()
    digest.update(json.dumps([encoder.architecture, encoder.preprocessing]).encode())
    for leaf in jax.tree.leaves(encoder.params):
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()[:16]


def embedded(
    encoder: Encoder, source, probe_set: ProbeSet, folder: str | os.PathLike
) -> np.ndarray:
    """Embeddings (n, d) of a split, computed once for an encoder and a set.

    Args:
      source: whose fingerprint names the set.
      probe_set: the same split, decoded.
      folder: of the cache; a file is named by both fingerprints.

    Raises:
      PacxError: a damaged file.
    """
    return _once(encoder, source, folder, probe_set.images, probe_set.views)


def of_source(encoder: Encoder, source, folder: str | os.PathLike) -> np.ndarray:
    """`embedded` of a split that is read image by image, in its order."""
    named = None
    if encoder.views:  # of some sets each record has to be read for them
        rows = np.arange(len(source))
        named = subgroups.view_groups(source, rows) or [subgroups.UNKNOWN] * len(rows)
    decoded = (
        images.decode(source[i]["image"], source.name(i)) for i in range(len(source))
    )
    return _once(encoder, source, folder, decoded, named)


def of_teacher(config, modality: str, source, cache_dir) -> np.ndarray:
    """A frozen encoder's embeddings (n, f) of a source's studies; NaN where none is.

    Args:
      config: of a distilled run.
      cache_dir: where they are kept.
    """
    return embedding_cache.embeddings(
        source,
        teachers.load(modality, config.modalities[modality]),
        config.data,
        sharding.make_mesh(),
        cache_dir=cache_dir,
        batch_size=config.global_batch_size,
        quarantine=None,
    )


def _once(encoder: Encoder, source, folder, decoded, named) -> np.ndarray:
    key = f"{fingerprint(encoder)}_{source.fingerprint[:16]}"
    if encoder.views:  # an embedding is of an X-ray and its view
        key += f"_{subsets.digest(*named)[:8]}"
    path = pathlib.Path(folder) / f"{key}.npy"
    if path.is_file():
        return embedding_cache.read(path, (len(source), encoder.width))
    z = encoder(decoded, *((named,) if encoder.views else ()))
    with files.whole(path, "wb") as file:
        np.save(file, z)
    return z


def random_encoder(folder: ModelFolder, seed: int) -> Encoder:
    """An encoder of the same architecture with random weights: the untrained floor."""
    size, module = folder.architecture["image_size"], folder.module()
    everywhere = sharding.replicated(sharding.make_mesh())
    init = jax.jit(module.init, in_shardings=everywhere, out_shardings=everywhere)
    image = jnp.zeros((1, size, size, module.channels))
    params = init(jax.random.key(seed), image)["params"]
    return Encoder(dataclasses.replace(folder, params=params))


def random_like(encoder: Encoder, seed: int) -> Encoder:
    """`random_encoder` of an opened encoder's architecture."""
    about = encoder.architecture, encoder.preprocessing, encoder.params
    return random_encoder(ModelFolder(encoder.kind, *about), seed)


def physiology(
    ecg_encoder: ModelFolder,
    labs_encoder: ModelFolder,
    ecg: np.ndarray,
    labs: np.ndarray,
    labs_mask: np.ndarray,
    batch_size: int = 64,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """ECG and lab embeddings side by side, (n, d_ecg + d_labs): the ceiling.

    Rows are split over the devices, the encoders are on each.

    Args:
      ecg: (n, t, 12), preprocessed as the encoder's folder says.
      labs, labs_mask: (n, 50).
      batch_size: rows a call of all devices, rounded up to a multiple of them.
      mesh: the devices; None = all.
    """
    mesh = mesh or sharding.make_mesh()
    batch_size = sharding.padded_size(batch_size, mesh)
    parts = []
    for folder, arrays in ((ecg_encoder, (ecg,)), (labs_encoder, (labs, labs_mask))):
        rows = zip(*(np.asarray(a, np.float32) for a in arrays), strict=True)
        apply, shape = forward.arrays(folder.module(), mesh), (folder.width,)
        parts.append(
            forward.in_batches(apply, folder.params, rows, shape, batch_size, mesh)
        )
    return np.concatenate(parts, axis=1)
