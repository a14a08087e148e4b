"""A trained X-ray encoder as a function: images in, embeddings out."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import jax
import numpy as np
import PIL.Image

from pacx_jax import sharding
from pacx_jax.encoders import forward, kinds, model_folder
from pacx_jax.errors import PacxError, one_line
from pacx_jax.input import images as imageio
from pacx_jax.input import views as viewnames
from pacx_jax.stores import staging

if TYPE_CHECKING:
    from jaxtyping import Float32, UInt8

Image = np.ndarray | str | os.PathLike | PIL.Image.Image
Views = str | Sequence[str] | None


class Encoder:
    """Callable: X-rays -> (n, width) float32, the CLS token after the last LayerNorm.

    Of an encoder with `pool` "mean", it is the patches' mean in its place, and of a
    CheXmix the mean over the image's positions of some layers. Of a DenseNet it is the
    mean of the last feature map.

    Only the X-ray is needed. A call of less than `batch_size` images is padded to the
    next power of two a device, so that one image does not cost a batch; each such size
    is compiled when it first comes. An image's embedding does not depend on the others
    in the call, beyond the rounding of another size (below 1e-6 of it). Rows are split
    over the devices, the parameters are on each.

    Args:
      folder: as read by `model_folder.load`.
      batch_size: most images a step of all devices, rounded up to a multiple of them;
        lower it where memory is short.
      dtype: of the matrix products.
      num_devices: how many devices to use; 0 = all.

    Attributes:
      kind, architecture, preprocessing: of the folder.
      width: length of an embedding.
      image_size, channels: pixels a side, and 1 or 3, of what the model sees; images of
        any size, grey or RGB, are converted to it.
      views: number of view embeddings; 0: it takes no views.
      batch_size: as given, rounded up.
      params: the parameters, on every device.
      forward, attention_maps: jitted functions of them and of uint8 (b, s, s, c); with
        view embeddings, of these and the views' numbers (b,).
    """

    def __init__(
        self,
        folder: model_folder.ModelFolder,
        batch_size: int = 32,
        dtype: str = "float32",
        num_devices: int = 0,
    ):
        self.kind, self.architecture = folder.kind, folder.architecture
        self.preprocessing = folder.preprocessing
        self.width = folder.width
        self.image_size = folder.architecture["image_size"]
        self.channels = folder.architecture.get("channels", 3)
        self.views = folder.architecture.get("views", 0)
        self.mesh = sharding.make_mesh(num_devices)
        self.batch_size = sharding.padded_size(batch_size, self.mesh)
        everywhere = sharding.replicated(self.mesh)
        self.params = jax.device_put(folder.params, everywhere)
        about = folder.preprocessing
        args = (folder.module(dtype), about["mean"], about["std"], self.mesh)
        self.forward = forward.images(*args)
        self.forward_tokens = forward.images(*args, tokens=True)
        self.attention_maps = forward.attentions(*args)

    def __repr__(self) -> str:
        size = f"{self.image_size} x {self.image_size} x {self.channels}"
        views = ", with views" if self.views else ""
        return f"Encoder({self.kind}: {size} pixels to {self.width} numbers{views})"

    def __call__(
        self, images: Image | Sequence[Image], views: Views = None
    ) -> Float32[np.ndarray, "n width"]:
        """Embeds images of any size.

        Args:
          images: uint8 array, of any library, (h, w), (h, w, 1 or 3), (n, h, w) or
            (n, h, w, 3); or a file path, or a PIL image; or a sequence of any of these.
          views: for an encoder with view embeddings (MVMAE's): a name for each image,
            such as "PA" or "lateral" (`input.views.parse` reads them), or one for all;
            None: all are frontal.

        Raises:
          PacxError: an unreadable file, or an array that is no uint8 image; views that
            are unknown, not as many as images, or for an encoder without them.
        """
        return self._batches(self.forward, images, (self.width,), views)

    def tokens(
        self, images: Image | Sequence[Image], views: Views = None
    ) -> Float32[np.ndarray, "n tokens width"]:
        """All tokens after the last LayerNorm, (n, 1 + patches, width) float32.

        The first is the CLS token (or what takes its place), which a call returns; the
        patches follow row by row. Registers are not among them. Of a DenseNet they are
        the mean of the last feature map, and its cells (49 of 224 pixels).

        Args:
          images, views: as for a call.
        """
        patches = (self.image_size // self.architecture["patch_size"]) ** 2
        shape = (1 + patches, self.width)
        return self._batches(self.forward_tokens, images, shape, views)

    def attentions(
        self, images: Image | Sequence[Image], views: Views = None
    ) -> list[Float32[np.ndarray, "n heads tokens tokens"]]:
        """Softmax attention of every block, (n, heads, tokens, tokens) each.

        Tokens are CLS, the registers of an encoder that has them, and the patches.

        Args:
          images: at least one, as for a call; all are taken in one step.
          views: as for a call.
        """
        if self.kind != "vit":
            raise PacxError(f"attentions of a {self.kind} model: only a vit has maps")
        rows = list(self._rows(images, views))
        if not rows:
            raise PacxError("attentions of no image: give at least one")
        size = sharding.padded_size(len(rows), self.mesh)
        batch = jax.tree.map(lambda *x: sharding.pad_rows(np.stack(x), size), *rows)
        maps = self.attention_maps(self.params, batch)
        return [np.asarray(a)[: len(rows)] for a in maps]

    def _batches(self, function, images, shape: tuple[int, ...], views) -> np.ndarray:
        rows = self._rows(images, views)
        return forward.in_batches(
            function, self.params, rows, shape, self.batch_size, self.mesh
        )

    def _rows(self, images, views: Views) -> Iterator:
        """Each image, preprocessed; with view embeddings, paired with its number."""
        rows = map(self.preprocess, each_image(images))
        if views is not None:
            self._check_views()
        if not self.views:
            return rows
        if views is None or isinstance(views, str):
            numbers = itertools.repeat(self.view_number(views or "frontal"))
            return zip(rows, numbers, strict=False)
        return _paired(rows, [self.view_number(name) for name in views])

    def _check_views(self) -> None:
        if not self.views:
            raise PacxError("views are given, and this encoder has no view embeddings")

    def view_number(self, name: str) -> np.int32:
        """The number of a view's embedding; PacxError for a name that is no view's."""
        self._check_views()
        fine = viewnames.parse(name)
        number = viewnames.number(fine) if fine else self.views
        if number >= self.views:
            known = ", ".join(viewnames.COARSE[: self.views])
            raise PacxError(
                f"view {name!r}: this encoder knows {known}, and names of these such "
                "as PA, AP and LL"
            )
        return np.int32(number)

    def preprocess(self, image: Image) -> UInt8[np.ndarray, "s s c"]:
        """One image as the model sees it before normalisation: uint8 (s, s, c)."""
        return preprocess(image, self.image_size, self.channels)


def _paired(rows: Iterator, numbers: list) -> Iterator:
    """Pairs of images and views, as many of each."""
    count = 0
    for count, row in enumerate(rows, 1):
        if count <= len(numbers):
            yield row, numbers[count - 1]
    if count != len(numbers):
        raise PacxError(
            f"{len(numbers)} views for {count} images: give one each, or one for all"
        )


def preprocess(image: Image, size: int, channels: int) -> UInt8[np.ndarray, "s s c"]:
    """One image as a model sees it before normalisation: uint8 (s, s, c).

    Raises:
      PacxError: an unreadable file, or an array that is no uint8 image.
    """
    if isinstance(image, (str, os.PathLike)):
        if os.path.isdir(image):
            raise PacxError(f"{image} is a folder: give the paths of its images")
        image = imageio.decode(staging.local(image), name=str(image))
    elif isinstance(image, PIL.Image.Image):
        image = imageio.decode(image)
    try:
        image = np.asarray(image)
    except Exception as error:  # what other libraries' arrays and lists raise
        raise PacxError(
            f"{type(image).__name__}: no image ({one_line(error)}); give uint8 "
            "(h, w) or (h, w, 3)"
        ) from None
    deep = image.ndim == 3 and image.shape[-1] in (1, 3)
    if image.dtype != np.uint8 or not (image.ndim == 2 or deep) or not image.size:
        raise PacxError(
            f"image array of dtype {image.dtype} and shape {image.shape}: give "
            "uint8 (h, w) or (h, w, 3), without alpha, channels last"
        )
    return imageio.resize(image, size, channels)


def each_image(images) -> Iterator[Image]:
    """The images of one, an array or a sequence of them."""
    if isinstance(images, (str, os.PathLike, PIL.Image.Image)):
        yield images
    elif (shape := getattr(images, "shape", None)) is not None:  # JAX's and torch's too
        # Of 2 or 4 channels it is one image, which is refused: its rows are none.
        if len(shape) == 3 and shape[0] == 3 and shape[-1] > 4:
            raise PacxError(
                f"array of shape {tuple(shape)}: if it is one image, move its channels "
                "last, (h, w, 3); if it is three grey images, give a list of them"
            )
        single = len(shape) in (0, 2) or (len(shape) == 3 and shape[-1] <= 4)
        yield from [images] if single else images
    elif isinstance(images, Iterable):
        yield from images
    else:
        raise PacxError(f"{type(images).__name__}: give uint8 arrays, paths or images")


def load_encoder(
    path: str | os.PathLike,
    batch_size: int = 32,
    dtype: str = "float32",
    image_size: int = 0,
    pooling: Literal["cls", "mean"] | None = None,
) -> Encoder:
    """Opens an exported X-ray encoder (or a finished run's workdir).

    Args:
      path: the folder; a zip of one; in gs:// or s3://; or hf://OWNER/NAME, where
        huggingface_hub is installed.
      batch_size, dtype: see `Encoder`.
      image_size: pixels a side, if not the encoder's own; the patches must divide it.
      pooling: what the embedding is, if not the encoder's own: "cls", the CLS token
        after the last LayerNorm, or "mean", the mean of the patches' tokens, then that
        LayerNorm.

    Example:
      encoder = load_encoder("runs/demo/distill")
      z = encoder(["patient1.png", "patient2.jpg"])   # (2, width) float32
      z = encoder(["front.png", "side.png"], views=["PA", "lateral"])  # MVMAE's

    Raises:
      PacxError: no such folder, or weights that do not fit its description.
    """
    folder = model_folder.at_size(model_folder.load(path, kinds.XRAY), image_size)
    return Encoder(_pooled(folder, pooling), batch_size, dtype)


def _pooled(folder: model_folder.ModelFolder, pooling: str | None):
    """The encoder with another embedding; None leaves it."""
    if pooling is None:
        return folder
    if pooling not in model_folder.EMBEDDINGS:
        known = " or ".join(model_folder.EMBEDDINGS)
        raise PacxError(f"pooling {pooling!r}: give {known}")
    if folder.kind != "vit":
        raise PacxError(f"pooling {pooling!r}: a {folder.kind} has one embedding")
    about = {"embedding": model_folder.EMBEDDINGS[pooling]}
    return dataclasses.replace(
        folder,
        architecture=folder.architecture | {"pool": pooling},
        preprocessing=folder.preprocessing | about,
    )
