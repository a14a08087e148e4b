"""Net1D, the 1-D convolutional ECG encoder of ECGFounder.

Shape letters: b batch, t time samples, l leads (12), c channels.
Input is (b, t, 12); the embedding is the mean over time of the last stage, (b, 1024)
at the published size. Batch normalisation exists in the published state dict but is
never executed, so it has no parameters here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from pacx_jax.models.convolution import conv
from pacx_jax.models.dense import silu
from pacx_jax.models.vit import fan_in_uniform
from pacx_jax.types import Array

if TYPE_CHECKING:
    from jaxtyping import Float


def _conv(c_in: int, c_out: int, kernel: int, stride: int, groups: int, dtype, name):
    init = fan_in_uniform(c_in // groups * kernel)
    return conv(
        c_out,
        kernel,
        stride,
        groups,
        dtype=dtype,
        name=name,
        kernel_init=init,
        bias_init=init,
    )


def max_pool(x: Float[Array, "b t c"]) -> Float[Array, "b half c"]:
    """Max pool 2, stride 2. A *zero* pads odd lengths: the last output is max(x, 0)."""
    if x.shape[1] % 2:
        x = jnp.pad(x, ((0, 0), (0, 1), (0, 0)))
    return nn.max_pool(x, (2,), (2,))


class Block(nn.Module):
    """Bottleneck of 1x1, grouped, 1x1 convolutions with squeeze-excitation."""

    features: int
    kernel: int
    stride: int
    groups: int
    first: bool
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b t c"]) -> Float[Array, "b s d"]:
        c_in, c = x.shape[-1], self.features
        y = x if self.first else silu(x)
        y = _conv(c_in, c, 1, 1, 1, self.dtype, "conv1")(y)
        y = silu(y)
        y = _conv(c, c, self.kernel, self.stride, self.groups, self.dtype, "conv2")(y)
        y = silu(y)
        y = _conv(c, c, 1, 1, 1, self.dtype, "conv3")(y)
        scale = y.mean(axis=1)
        init = fan_in_uniform(c)
        half = fan_in_uniform(c // 2)
        scale = nn.Dense(c // 2, kernel_init=init, bias_init=init, name="se_fc1")(scale)
        scale = nn.Dense(c, kernel_init=half, bias_init=half, name="se_fc2")(
            silu(scale)
        )
        y = y * nn.sigmoid(scale)[:, None]
        if self.stride == 2:
            x = max_pool(x)
        if c > c_in:  # zero channels pad the shortcut on both sides
            left = (c - c_in) // 2
            x = jnp.pad(x, ((0, 0), (0, 0), (left, c - c_in - left)))
        return x + y


class Net1D(nn.Module):
    """ECG (b, t, 12) -> embedding (b, filters[-1])."""

    base_filters: int = 64
    filters: tuple[int, ...] = (64, 160, 160, 400, 400, 1024, 1024)
    blocks: tuple[int, ...] = (2, 2, 2, 3, 3, 4, 4)
    kernel: int = 16
    groups_width: int = 16
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, ecg: Float[Array, "b t l"]) -> Float[Array, "b d"]:
        x = _conv(ecg.shape[-1], self.base_filters, self.kernel, 2, 1, self.dtype,
                  "stem")(ecg)  # fmt: skip
        x = silu(x)
        for s, (features, count) in enumerate(
            zip(self.filters, self.blocks, strict=True)
        ):
            for i in range(count):
                x = Block(
                    features,
                    self.kernel,
                    stride=2 if i == 0 else 1,
                    groups=features // self.groups_width,
                    first=s == 0 and i == 0,
                    dtype=self.dtype,
                    name=f"stage_{s}_block_{i}",
                )(x)
        return x.mean(axis=1)


class Classifier(nn.Module):
    """Net1D with the linear multi-label head of its pretraining."""

    encoder: Net1D
    num_classes: int

    @nn.compact
    def __call__(self, ecg: Float[Array, "b t l"]) -> Float[Array, "b classes"]:
        z = self.encoder(ecg)
        init = fan_in_uniform(z.shape[-1])
        return nn.Dense(
            self.num_classes, kernel_init=init, bias_init=init, name="head"
        )(z)


def from_config(model, dtype: str = "float32") -> Net1D:
    """The ECG encoder that `config.model` describes."""
    return Net1D(
        base_filters=model.base_filters,
        filters=tuple(model.filters),
        blocks=tuple(model.blocks),
        kernel=model.kernel,
        groups_width=model.groups_width,
        dtype=jnp.dtype(dtype),
    )
