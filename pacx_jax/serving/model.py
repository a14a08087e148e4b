"""What the service computes: one model at fixed batch sizes, each compiled once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pacx_jax import sharding
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.xray_encoder import Encoder, load_encoder
from pacx_jax.evaluate import rollout
from pacx_jax.evaluate.classifier import Classifier


class Row(NamedTuple):
    """One image of a request, as the model takes it.

    Attributes:
      pixels: uint8 (s, s, c).
      view: for an encoder with view embeddings, a name such as "lateral".
    """

    pixels: np.ndarray
    view: str | None = None


class Served:
    """An X-ray encoder, and what stands on it, as functions of lists of rows.

    Args:
      encoder: what embeds.
      classifier: that has this encoder, if there is one.

    Attributes:
      work: route -> function of rows to one result a row, in their order.
    """

    def __init__(self, encoder: Encoder, classifier: Classifier | None = None):
        self.encoder, self.classifier = encoder, classifier
        self.work = {"embed": self.embed, "rollout": self.rollout}
        if classifier:
            self.work["predict"] = self.predict

    def prepare(self, image: np.ndarray, view: str | None = None) -> Row:
        """A decoded image as the model takes it; PacxError for an unknown view."""
        if view is not None or self.encoder.views:
            self.encoder.view_number(view := view or "frontal")
        return Row(self.encoder.preprocess(image), view)

    def compile(self) -> None:
        """Computes every batch size of all work once, so that no request waits."""
        s, c = self.encoder.image_size, self.encoder.channels
        row = self.prepare(np.zeros((s, s, c), np.uint8))
        for size in self.sizes():
            for function in self.work.values():
                function([row] * size)

    def sizes(self) -> Iterator[int]:
        """The fixed batch sizes: powers of two a device, up to the encoder's."""
        most, mesh = self.encoder.batch_size, self.encoder.mesh
        size = 0
        while size < most:
            size = sharding.call_size(size + 1, most, mesh)
            yield size

    def embed(self, rows: Sequence[Row]) -> np.ndarray:
        """(n, width) float32."""
        return self.encoder(*_inputs(rows))

    def predict(self, rows: Sequence[Row]) -> np.ndarray:
        """Calibrated probabilities (n, c) float64."""
        logits = self.classifier.logits(self.embed(rows))
        return self.classifier.probabilities(logits)

    def rollout(self, rows: Sequence[Row]) -> np.ndarray:
        """Shares of attention of the patches, (n, grid, grid) float64."""
        size = sharding.call_size(len(rows), self.encoder.batch_size, self.encoder.mesh)
        padded = [*rows, *[rows[-1]] * (size - len(rows))]
        attentions = self.encoder.attentions(*_inputs(padded))
        about = self.encoder.architecture
        maps = rollout.attention_rollout(
            attentions, about.get("registers", 0), about.get("pool", "cls")
        )
        return maps[: len(rows)]


def load(
    path: str | os.PathLike,
    batch_size: int = 16,
    dtype: str = "float32",
) -> Served:
    """The classifier, or else the encoder, in a folder or a finished run's workdir.

    Raises:
      PacxError: as `load_encoder` and `Classifier.load`.
    """
    heads = model_folder.load(path, "vit").heads
    if heads is None or heads.kind != "classify":
        return Served(load_encoder(path, batch_size, dtype))
    classifier = Classifier.load(path, batch_size, dtype)
    return Served(classifier.encoder, classifier)


def _inputs(rows: Sequence[Row]) -> tuple[list[np.ndarray], list[str] | None]:
    views = [row.view for row in rows if row.view is not None]
    return [row.pixels for row in rows], views or None
