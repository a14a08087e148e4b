"""A trained image tokenizer as two functions: images to codes, codes to images."""

from __future__ import annotations

import os
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax import sharding
from pacx_jax.encoders import forward, model_folder, xray_encoder
from pacx_jax.input.normalize import normalize
from pacx_jax.models import vq


class ImageTokenizer:
    """Encodes X-rays as grids of codes and decodes such grids.

    Rows are split over the devices, the parameters are on each. A call of less than
    `batch_size` rows is padded to a power of two a device.

    Args:
      folder: of kind "vq", as read by `model_folder.load`.
      batch_size: most rows a step of all devices, rounded up to a multiple of them.
      dtype: of the convolutions.
      num_devices: how many devices to use; 0 = all.

    Attributes:
      image_size: pixels a side.
      channels: 1 or 3.
      codes: number of codes.
      grid: tokens a side.
    """

    def __init__(
        self,
        folder: model_folder.ModelFolder,
        batch_size: int = 32,
        dtype: str = "float32",
        num_devices: int = 0,
    ):
        a, about = folder.architecture, folder.preprocessing
        self.image_size, self.channels, self.codes = (
            a[name] for name in ("image_size", "channels", "codes")
        )
        self.mesh = sharding.make_mesh(num_devices)
        self.batch_size = sharding.padded_size(batch_size, self.mesh)
        everywhere = sharding.replicated(self.mesh)
        self.params = jax.device_put(folder.params, everywhere)
        model, mean, std = folder.module(dtype), about["mean"], about["std"]
        self.grid = self.image_size // model.factor

        def encode(params, images):
            images = normalize(images, mean, std)
            return model.apply({"params": params}, images, method="encode")

        def decode(params, codes):
            images = model.apply({"params": params}, codes, method="decode")
            pixels = images * jnp.asarray(std) + jnp.asarray(mean)
            return jnp.clip(pixels.astype(jnp.float32), 0, 1)

        self._encode = forward.on_mesh(encode, self.mesh, dtype)
        self._decode = forward.on_mesh(decode, self.mesh, dtype)

    def encode(
        self, images: xray_encoder.Image | Sequence[xray_encoder.Image]
    ) -> np.ndarray:
        """X-rays of any size -> codes (n, grid, grid) int32.

        Args:
          images: as for a call of `Encoder`; they are resized to `image_size`.

        Raises:
          PacxError: an unreadable file, or an array that is no uint8 image.
        """
        rows = (
            xray_encoder.preprocess(image, self.image_size, self.channels)
            for image in xray_encoder.each_image(images)
        )
        return self._batches(self._encode, rows, (self.grid, self.grid), np.int32)

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """Codes (n, rows, columns) -> images (n, h, w, c) float32, pixels in [0, 1].

        The grid may have other sides than the images' that the model was trained on.

        Raises:
          PacxError: no whole numbers, another number of axes, or a code out of range.
        """
        codes = vq.check_codes(codes, self.codes)
        factor = self.image_size // self.grid
        shape = (codes.shape[1] * factor, codes.shape[2] * factor, self.channels)
        return self._batches(self._decode, codes, shape, np.float32)

    def _batches(self, function, rows, shape, dtype) -> np.ndarray:
        return forward.in_batches(
            function, self.params, rows, shape, self.batch_size, self.mesh, dtype
        )


def load_image_tokenizer(
    path: str | os.PathLike, batch_size: int = 32, dtype: str = "float32"
) -> ImageTokenizer:
    """Opens an exported tokenizer (or a finished run's workdir).

    Args:
      path: the folder.
      batch_size, dtype: see `ImageTokenizer`.

    Example:
      tokenizer = load_image_tokenizer("runs/vq")
      codes = tokenizer.encode(["patient1.png"])  # (1, 14, 14) int32
      images = tokenizer.decode(codes)  # (1, 224, 224, 1) float32 in [0, 1]

    Raises:
      PacxError: no such folder, another kind, or weights that do not fit it.
    """
    return ImageTokenizer(model_folder.load(path, "vq"), batch_size, dtype)
