"""Projection, regression and classification heads on an embedding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import einops
import flax.linen as nn

from pacx_jax.errors import PacxError
from pacx_jax.models.layer_norm import LayerNorm
from pacx_jax.models.vit import fan_in_uniform
from pacx_jax.types import Array

if TYPE_CHECKING:
    from jaxtyping import Float


class Head(nn.Module):
    """Dropout -> Linear -> LayerNorm: every head of Stage 2.

    Attributes:
      features: output width.
      kind: "linear_ln" (the code) or "linear" (the paper, D5).
      dropout: rate on the input, in training.
    """

    features: int
    kind: str = "linear_ln"
    dropout: float = 0.2

    @nn.compact
    def __call__(
        self, z: Float[Array, "b d"], *, train: bool
    ) -> Float[Array, "b features"]:
        """(b, d) -> (b, features)."""
        if self.kind not in ("linear_ln", "linear"):
            raise PacxError(f"head {self.kind!r}: choose linear_ln or linear")
        z = nn.Dropout(self.dropout, deterministic=not train)(z)
        init = nn.initializers.truncated_normal(0.02)
        z = nn.Dense(self.features, kernel_init=init, name="linear")(z)
        if self.kind == "linear_ln":
            z = LayerNorm(1e-5, name="norm")(z)
        return z


class LinearClassifier(nn.Module):
    """One linear layer with PyTorch's default initialisation."""

    num_classes: int

    @nn.compact
    def __call__(self, z: Float[Array, "b d"]) -> Float[Array, "b classes"]:
        init = fan_in_uniform(z.shape[-1])
        return nn.Dense(
            self.num_classes, kernel_init=init, bias_init=init, name="linear"
        )(z)


class SegmentationDecoder(nn.Module):
    """Patch tokens -> mask logits: a 3x3 convolution and doublings of the side.

    Attributes:
      widths: channels after the convolution and after each doubling; the last is the
        number of masks.
    """

    widths: tuple[int, ...] = (256, 128, 64, 32, 1)

    @nn.compact
    def __call__(
        self, tokens: Float[Array, "b h w d"]
    ) -> Float[Array, "b 16*h 16*w masks"]:
        """(b, h, w, d), the grid of patches -> (b, 16 h, 16 w, masks)."""
        init = fan_in_uniform(tokens.shape[-1] * 9)
        x = nn.Conv(
            self.widths[0], (3, 3), kernel_init=init, bias_init=init, name="conv"
        )(tokens)
        for i, width in enumerate(self.widths[1:]):
            # A transposed convolution of kernel 2 and stride 2 is a dense layer whose
            # outputs are the four pixels: nothing overlaps, nothing is flipped.
            init = fan_in_uniform(width * 4)  # PyTorch's fan-in of ConvTranspose2d
            x = nn.Dense(4 * width, kernel_init=init, use_bias=False, name=f"up_{i}")(
                nn.relu(x)
            )
            x = einops.rearrange(x, "b h w (p q c) -> b (h p) (w q) c", p=2, q=2)
            x = x + self.param(f"up_{i}_bias", init, (width,))
        return x
