"""What is exported: an X-ray encoder at one image size, and maybe a trained head."""

from __future__ import annotations

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np

from pacx_jax.encoders.model_folder import ModelFolder
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.input import views
from pacx_jax.input.normalize import normalize
from pacx_jax.models.heads import LinearClassifier
from pacx_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Head:
    """A trained linear layer on the embedding.

    Attributes:
      kernel, bias: float32 (width, c) and (c,).
      labels: c names.
      task: "multilabel" (sigmoid of each logit) or "multiclass" (softmax).
    """

    kernel: np.ndarray
    bias: np.ndarray
    labels: tuple[str, ...]
    task: str = "multilabel"


@dataclasses.dataclass(frozen=True)
class Source:
    """The encoder and what goes with it.

    Attributes:
      model: a "vit" at the image size of the export (see `model_folder.at_size`).
      head: what gives the output `logits`, if anything does.
      card: the encoder's model card.
      view: what an encoder with view embeddings takes all images for.
    """

    model: ModelFolder
    head: Head | None = None
    card: str = ""
    view: str = "frontal"

    @property
    def image_size(self) -> int:
        """s, the side of the images that go in."""
        return self.model.architecture["image_size"]

    @property
    def channels(self) -> int:
        """Number of channels of the input images: 3, or 1."""
        return self.model.architecture.get("channels", 3)

    @property
    def with_views(self) -> bool:
        """Whether the encoder has view embeddings."""
        return bool(self.model.architecture.get("views"))

    @property
    def mean(self) -> list[float]:
        """Of each channel, for pixels in 0..1."""
        return self.model.preprocessing["mean"]

    @property
    def std(self) -> list[float]:
        """Of each channel, for pixels in 0..1."""
        return self.model.preprocessing["std"]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        return ("embedding", "logits") if self.head else ("embedding",)

    @functools.cached_property
    def encoder(self) -> Encoder:
        """What an export must agree with."""
        return Encoder(self.model, batch_size=8)

    def inputs(self, images: Array) -> tuple[Array, Array | None]:
        """uint8 (b, s, s, c) -> the module's: normalised images, and their view."""
        x, view = normalize(images, self.mean, self.std), None
        if self.with_views:
            view = jnp.array([views.number(views.parse(self.view))], jnp.int32)
        return x, view

    def forward(self, images: Array) -> tuple[Array, ...]:
        """uint8 (b, s, s, c) -> `names`: float32 (b, width), and logits with a head."""
        x, view = self.inputs(images)
        variables = {"params": self.model.params}
        z = self.model.module().apply(variables, x, view=view)[:, 0]
        return self._with_logits(z.astype(jnp.float32))

    def expected(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """As `forward`, by the encoder that `load_encoder` gives."""
        z = self.encoder(images, self.view if self.with_views else None)
        return tuple(np.asarray(x) for x in self._with_logits(z))

    def _with_logits(self, z: Array) -> tuple[Array, ...]:
        if self.head is None:
            return (z,)
        params = {"linear": {"kernel": self.head.kernel, "bias": self.head.bias}}
        classifier = LinearClassifier(len(self.head.labels))
        return z, classifier.apply({"params": params}, z)

    def description(self, normalised: bool = False) -> dict:
        """Input, outputs and preprocessing, for JSON.

        Args:
          normalised: whether floats, channels first, go in, and not uint8.
        """
        s, width, channels = self.image_size, self.model.width, self.channels
        images = {"name": "images", "dtype": "uint8", "shape": ["b", s, s, channels]}
        if normalised:
            about = {"dtype": "float32", "shape": ["b", channels, s, s]}
            images |= about | {"values": "(x / 255 - mean) / std"}
        if self.with_views:
            images["view"] = self.view
        outputs = [{"name": "embedding", "dtype": "float32", "shape": ["b", width]}]
        if self.head:
            c = len(self.head.labels)
            about = {"labels": list(self.head.labels), "task": self.head.task}
            logits = {"name": "logits", "dtype": "float32", "shape": ["b", c]}
            outputs.append(logits | about)
        return {
            "input": images,
            "outputs": outputs,
            "architecture": self.model.architecture,
            "preprocessing": self.model.preprocessing,
        }


def classifier_of(model: ModelFolder) -> Head | None:
    """The linear classifier that stands beside an encoder, if one does."""
    if model.heads is None or model.heads.kind != "classify":
        return None
    linear, about = model.heads.params["head"]["linear"], model.heads.architecture
    task = about.get("task", "multilabel")
    return Head(linear["kernel"], linear["bias"], tuple(about["labels"]), task)
