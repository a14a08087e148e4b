"""Encoders' forward passes, jitted: rows split over the devices, parameters on each."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from pacx_jax import sharding, target
from pacx_jax.input.normalize import normalize
from pacx_jax.types import Array, Params

Forward = Callable[[Params, Array], jax.Array]


def images(
    module,
    mean: Sequence[float],
    std: Sequence[float],
    mesh: Mesh,
    tokens: bool = False,
) -> Forward:
    """(params, uint8 images (n, h, w, c)) -> CLS tokens (n, d) float32, on all devices.

    Args:
      module: a `models.vit.ViT`. One with view embeddings takes (images, view), the
        latter (n,) int32, in place of images.
      mean, std: of the pixels, by which images are normalised.
      tokens: all tokens instead, (n, 1 + patches, d).
    """

    def forward(params, inputs):
        x, view = _normalized(module, inputs, mean, std)
        z = module.apply({"params": params}, x, cls_only=not tokens, view=view)
        return (z if tokens else z[:, 0]).astype(jnp.float32)

    return on_mesh(forward, mesh, jnp.dtype(module.dtype).name)


def attentions(module, mean: Sequence[float], std: Sequence[float], mesh: Mesh):
    """(params, uint8 images) -> each block's attention, (n, heads, tokens, tokens).

    Inputs are as those of `images`.
    """

    def forward(params, inputs):
        x, view = _normalized(module, inputs, mean, std)
        _, state = module.apply(
            {"params": params}, x, view=view, mutable="intermediates"
        )
        blocks = state["intermediates"]
        return [
            blocks[f"block_{i:02d}"]["attn"]["attention"][0]
            for i in range(module.depth)
        ]

    return on_mesh(forward, mesh, jnp.dtype(module.dtype).name)


def _normalized(module, inputs, mean, std):
    images, view = inputs if module.views else (inputs, None)
    return normalize(images, mean, std), view


def arrays(module, mesh: Mesh) -> Forward:
    """(params, inputs) -> embeddings (n, d) float32, on all devices.

    Args:
      module: an encoder of other things than images; its inputs are an array, such as
        ECGs (n, t, 12), or a tuple of arrays.
    """

    def forward(params, inputs):
        inputs = inputs if isinstance(inputs, tuple) else (inputs,)
        return module.apply({"params": params}, *inputs).astype(jnp.float32)

    dtype = getattr(module, "dtype", jnp.float32)
    return on_mesh(forward, mesh, jnp.dtype(dtype).name)


def in_batches(
    forward: Forward,
    params: Params,
    examples: Iterable[np.ndarray | tuple[np.ndarray, ...]],
    shape: tuple[int, ...],
    batch_size: int,
    mesh: Mesh,
    dtype: type = np.float32,
) -> np.ndarray:
    """Embeds examples, at most `batch_size` at a time: (n, *shape) of `dtype`.

    The last ones are padded to a power of two a device, so that few sizes are compiled.
    """
    examples, out = iter(examples), [np.zeros((0, *shape), dtype)]
    while chunk := list(itertools.islice(examples, batch_size)):
        size = sharding.call_size(len(chunk), batch_size, mesh)
        rows = jax.tree.map(
            lambda *x: sharding.pad_rows(np.stack(x), size),
            *chunk,
        )
        out.append(np.asarray(forward(params, rows))[: len(chunk)])
    return np.concatenate(out)


def on_mesh(forward: Forward, mesh: Mesh, dtype: str) -> Forward:
    """Jits (params, inputs) -> outputs: rows split over the devices, outputs on all."""
    everywhere = sharding.replicated(mesh)

    def traced(params, inputs):
        with sharding.tracing(mesh):
            target.say_of_dtype(dtype)
            return forward(params, inputs)

    return jax.jit(
        traced,
        in_shardings=(everywhere, sharding.batch_sharding(mesh)),
        out_shardings=everywhere,
    )
