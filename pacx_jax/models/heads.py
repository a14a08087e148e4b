"""Projection, regression and classification heads on an embedding."""

from __future__ import annotations

import flax.linen as nn

from pacx_jax.models.vit import fan_in_uniform
from pacx_jax.types import Array, PacxError


class Head(nn.Module):
    """Dropout -> Linear -> LayerNorm: every head of Stage 2 (reference.md 4.4).

    Attributes:
      features: output width.
      kind: "linear_ln" (the code) or "linear" (the paper's words, D5).
      dropout: rate on the input, in training.
    """

    features: int
    kind: str = "linear_ln"
    dropout: float = 0.2

    @nn.compact
    def __call__(self, z: Array, *, train: bool) -> Array:
        """(b, d) -> (b, features)."""
        if self.kind not in ("linear_ln", "linear"):
            raise PacxError(f"head {self.kind!r}: choose linear_ln or linear")
        z = nn.Dropout(self.dropout, deterministic=not train)(z)
        init = nn.initializers.truncated_normal(0.02)
        z = nn.Dense(self.features, kernel_init=init, name="linear")(z)
        if self.kind == "linear_ln":
            z = nn.LayerNorm(epsilon=1e-5, name="norm")(z)
        return z


class LinearClassifier(nn.Module):
    """One linear layer with PyTorch's default initialisation (reference.md 5.1)."""

    num_classes: int

    @nn.compact
    def __call__(self, z: Array) -> Array:
        init = fan_in_uniform(z.shape[-1])
        return nn.Dense(
            self.num_classes, kernel_init=init, bias_init=init, name="linear"
        )(z)
