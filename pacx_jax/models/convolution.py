"""1-D convolutions with backward passes that XLA runs well, on a CPU and on a mesh.

The results are the usual ones; docs/performance.md measures each form.
Shape letters: b batch, t samples in, u samples out, k kernel, g groups, i and o
channels of a group.
"""

from __future__ import annotations

import functools

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from pacx_jax import sharding, target
from pacx_jax.models.dense import matmul
from pacx_jax.types import Array

_LAYOUT = ("NHC", "HIO", "NHC")


def conv(
    features: int, kernel: int, stride: int, groups: int, *, dtype, name: str, **inits
) -> nn.Conv:
    """`nn.Conv` over time, (b, t, g i) -> (b, ceil(t / stride), g o).

    Its padding, XLA's SAME, equals the reference's at every length, odd ones included.
    """
    return nn.Conv(
        features,
        (kernel,),
        strides=(stride,),
        padding="SAME",
        feature_group_count=groups,
        dtype=dtype,
        name=name,
        conv_general_dilated=_convolve,
        **inits,
    )


def _convolve(x, kernel, strides, padding, *, feature_group_count, precision, **layout):
    """Replaces `jax.lax.conv_general_dilated`, with the arguments of `nn.Conv`."""
    (stride,), groups = strides, feature_group_count
    if kernel.shape[0] == stride == groups == 1 and precision is None:
        return matmul(x, kernel[0])
    own = target.hand_written("grouped_convolution") and precision is None
    if own and groups > 1 and kernel.shape[0] % stride == 0:
        return _by_rows(lambda x, k: grouped(x, k, stride, groups), x, kernel)

    def plain(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel,
            strides,
            padding,
            feature_group_count=groups,
            precision=precision,
            **layout,
        )

    return plain(x, kernel) if groups == 1 else _by_rows(plain, x, kernel)


def _by_rows(convolve, x, kernel):
    """Runs convolve(x, kernel) on each device's own rows of x.

    Otherwise XLA gathers the signals of all devices for the weight gradient of a
    grouped convolution.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or len(x) % sharding.batch_shards(mesh):
        return convolve(x, kernel)
    rows = PartitionSpec(sharding.ROWS)

    def local(x, kernel):  # the kernel's gradient is the sum over devices
        return convolve(x, jax.lax.pcast(kernel, sharding.ROWS, to="varying"))

    specs = {"in_specs": (rows, PartitionSpec()), "out_specs": rows}
    return jax.shard_map(local, **specs)(x, kernel)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def grouped(x: Array, kernel: Array, stride: int, groups: int) -> Array:
    """Grouped convolution: (b, t, g i) and (k, i, g o) -> (b, u, g o), SAME padding.

    JAX's weight gradient makes batches of the groups (`batch_group_count`), which XLA
    on CPU runs thirty times slower than the forward pass; here it is a grouped
    convolution too. `stride` must divide k.
    """
    return _plain(x, kernel, (stride,), "SAME", groups)


def _plain(x, kernel, strides, padding, groups, **more):
    return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        padding,
        dimension_numbers=_LAYOUT,
        feature_group_count=groups,
        **more,
    )


def _grouped_forward(x, kernel, stride, groups):
    return grouped(x, kernel, stride, groups), (x, kernel)


def _grouped_backward(stride, groups, residuals, dy):
    x, kernel = residuals
    # SAME padding, never negative because the stride divides k.
    both = (dy.shape[1] - 1) * stride + kernel.shape[0] - x.shape[1]
    before = both // 2
    dx = _to_input(kernel, dy, stride, groups)[:, before : before + x.shape[1]]
    padded = jnp.pad(x, ((0, 0), (before, both - before), (0, 0)))
    dkernel = _to_kernel(padded, dy, stride, groups)
    return dx, dkernel


def _to_input(kernel, dy, stride, groups):
    """Gradient of the padded input, (b, (u - 1) stride + k, g i).

    Sample v stride + s meets only the taps m stride + s, so one convolution of dy
    computes all samples.
    """
    phases = einops.rearrange(
        kernel, "(m s) i (g o) -> m o (g s i)", s=stride, g=groups
    )
    taps = len(phases)
    dx = _plain(dy, phases[::-1], (1,), [(taps - 1, taps - 1)], groups)
    return einops.rearrange(dx, "b v (g s i) -> b (v s) (g i)", g=groups, s=stride)


def _to_kernel(x, dy, stride, groups):
    """Gradient of the kernel, from the padded input.

    Convolves x with dy, a kernel as long as the signal: a group's channels become the
    batch, and examples are summed like channels.
    """
    x = einops.rearrange(x, "b t (g i) -> i t (g b)", g=groups)
    dy = einops.rearrange(dy, "b u c -> u b c")
    dkernel = _plain(x, dy, (1,), "VALID", groups, rhs_dilation=(stride,))
    return einops.rearrange(dkernel, "i k c -> k i c")


grouped.defvjp(_grouped_forward, _grouped_backward)
