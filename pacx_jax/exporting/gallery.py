"""The images that a page shows as neighbours, for `web`."""

from __future__ import annotations

import base64
import io
import pathlib

import numpy as np
import PIL.Image

from pacx_jax import files
from pacx_jax.errors import PacxError, one_line
from pacx_jax.exporting.source import Source
from pacx_jax.input import images as imageio

MOST_ROWS = 20_000
THUMBNAIL = 96  # pixels


def read(page: Source) -> dict:
    """Names, unit embeddings and thumbnails of the images of an .npz.

    Args:
      page: a `web.Page` with a gallery.

    Raises:
      PacxError: no such file, an image that cannot be read, or embeddings of another
        encoder.
    """
    where = page.gallery
    try:
        with np.load(where, allow_pickle=False) as found:
            paths, z = found["path"], np.asarray(found["embedding"], np.float32)
    except Exception as error:  # hostile bytes make NumPy raise almost anything
        raise PacxError(
            f"--gallery {where}: no embeddings of pacx_jax.embed ({one_line(error)})"
        ) from None
    if z.shape != (len(paths), page.model.width) or not 0 < len(paths) <= MOST_ROWS:
        raise PacxError(
            f"--gallery {where}: embeddings of shape {z.shape}: give 1 to {MOST_ROWS} "
            f"rows of width {page.model.width}, this encoder's"
        )
    root, pictures = pathlib.Path(page.pictures), []
    decoded = []
    for i, path in enumerate(map(str, paths)):
        image = imageio.decode(files.read_bytes(root / path), path)
        pictures.append(_thumbnail(image))
        if i in np.linspace(0, len(paths) - 1, 4).astype(int):
            decoded.append((i, image))
    view = page.view if page.with_views else None
    mine = page.encoder([image for _, image in decoded], view)
    theirs = z[[i for i, _ in decoded]]
    if not np.abs(mine - theirs).max() <= 1e-2 * max(1.0, float(np.abs(mine).max())):
        raise PacxError(
            f"--gallery {where}: its embeddings are not this encoder's: make them by "
            "pacx embed with the same --encoder, from the images under --images"
        )
    norms = np.linalg.norm(z, axis=1, keepdims=True)
    unit = (z / np.maximum(norms, 1e-30)).astype("<f4")
    return {
        "names": [str(path) for path in paths],
        "pictures": pictures,
        "embeddings": base64.b64encode(unit.tobytes()).decode(),
    }


def _thumbnail(image: np.ndarray) -> str:
    """A square JPEG, as a data URL."""
    small = PIL.Image.fromarray(imageio.resize_to(image, THUMBNAIL, THUMBNAIL))
    small.save(file := io.BytesIO(), "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
