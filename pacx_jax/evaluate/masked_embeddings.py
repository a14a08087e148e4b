"""Embeddings of X-rays from which patches are removed."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import jax
import numpy as np

from pacx_jax import sharding
from pacx_jax.encoders import forward
from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.xray_encoder import preprocess
from pacx_jax.input import views
from pacx_jax.input.normalize import normalize
from pacx_jax.models import mae


@dataclasses.dataclass(frozen=True)
class Rows:
    """Images of one split, as one encoder takes them.

    Attributes:
      images: (n, s, s, c) uint8.
      views: (n,) int32, of `input.views`.
      numbers: (n,) uint32, from the images' paths. An image's mask depends on its
        number and the seed alone: not on the split, its order, or the batch.
    """

    images: np.ndarray
    views: np.ndarray
    numbers: np.ndarray


def rows_of(folder: ModelFolder, probe_set, paths: Sequence[str]) -> Rows:
    """A probe set in the size and channels of an encoder."""
    a = folder.architecture
    size, channels = a["image_size"], a.get("channels", 3)
    return Rows(
        np.stack([preprocess(image, size, channels) for image in probe_set.images]),
        np.array([views.number(name) for name in probe_set.views], np.int32),
        np.array([zlib.crc32(path.encode()) for path in paths], np.uint32),
    )


def embeddings(
    folder: ModelFolder, rows: Rows, ratio: float, seed: int, batch_size: int
) -> np.ndarray:
    """Embeddings (n, d) from the patches that are left; the others are not there.

    As in MAE's training, a ViT gets fewer tokens: nothing stands for a removed patch.
    `pool` mean is over those left. With views, each image has its own. A
    CheXmix reads [MASK] for a removed patch, and its mean is over all places.

    Args:
      folder: an encoder of patches, which takes the numbers of those that are left as
        `vit.ViT` does.
      ratio: share that is removed; 0: the encoder's own embedding.
      seed: of the masks.

    Raises:
      PacxError: so high a share that no patch is left.
    """
    module, mesh = folder.module(), sharding.make_mesh()
    about, a = folder.preprocessing, folder.architecture
    patches = (a["image_size"] // a["patch_size"]) ** 2

    def embed(params, inputs):
        images, view, numbers = inputs
        x, ids = normalize(images, about["mean"], about["std"]), None
        if ratio:
            ids, *_ = mae.random_masking(jax.random.key(seed), numbers, patches, ratio)
        view = view if module.views else None
        z = module.apply({"params": params}, x, ids, cls_only=True, view=view)
        return z[:, 0].astype("float32")

    return forward.in_batches(
        forward.on_mesh(embed, mesh, "float32"),
        jax.device_put(folder.params, sharding.replicated(mesh)),
        zip(rows.images, rows.views, rows.numbers, strict=True),
        (folder.width,),
        sharding.padded_size(batch_size, mesh),
        mesh,
    )
