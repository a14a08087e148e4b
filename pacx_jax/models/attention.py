"""Softmax attention: one function, computed as each kind of device does it well.

  o = softmax(q k^T / sqrt(c)) v,  the softmax in float32

Shape letters: b batch, n tokens, h heads, c channels of a head.
"""

from __future__ import annotations

import functools

import einops
import jax
import jax.numpy as jnp
from absl import logging

from pacx_jax import sharding
from pacx_jax.types import Array, PacxError

# From so many bytes of an image's scores on, a CPU takes one image at a time, if heads
# have few channels: the scores are then most of what is read and written.
LARGE_SCORES, FEW_CHANNELS = 2**20, 32
# Images that the kernel for TPUs takes: few tokens leave it little to do, the scores of
# many do not fit VMEM (v5e, v5p: 320 of 1,280 channels do in bfloat16, 448 of 1,024 do
# not; in float32 264 do not).
LEAST_TOKENS, MOST_TOKENS = 64, 320


# config.attention: what suits the device; as written, by XLA; our kernel for TPUs.
WAYS = ("auto", "xla", "pallas")


def attend(qkv: Array, num_heads: int, way: str = "auto") -> Array:
    """Multi-head self-attention of fused projections, (b, n, 3 h c) -> (b, n, h c).

    By `way`, one of WAYS. "auto": on a GPU in bfloat16 or float16 by cuDNN's flash
    attention, on one CPU device an image at a time where that is faster, otherwise as
    written. "pallas", where the kernel cannot run, is as "auto", which is said once.
    """
    if way not in WAYS:
        raise PacxError(f"config.attention is {way!r}: choose {' or '.join(WAYS)}")
    n, c = qkv.shape[1], qkv.shape[2] // 3 // num_heads
    kind = device_kind()
    if way == "pallas" and kernel_runs(n, qkv.dtype, kind):
        return by_kernel(qkv, num_heads)
    if way == "xla":
        return as_written(qkv, num_heads)
    if "nvidia" in kind and qkv.dtype.itemsize == 2 and cudnn_runs(c, str(qkv.dtype)):
        q, k, v = einops.rearrange(
            qkv, "b n (qkv h c) -> qkv b n h c", qkv=3, h=num_heads
        )
        out = jax.nn.dot_product_attention(q, k, v, implementation="cudnn")
        return einops.rearrange(out, "b n h c -> b n (h c)")
    large = num_heads * n * n * 4 >= LARGE_SCORES and c <= FEW_CHANNELS
    if large and kind == "cpu" and device_count() == 1:
        return by_image(qkv, num_heads)
    return as_written(qkv, num_heads)


def as_written(qkv: Array, num_heads: int) -> Array:
    """`attend` by the formula above."""
    q, k, v = split_heads(qkv, num_heads)
    return join_heads(weighted(probabilities(q, k), v))


def by_kernel(qkv: Array, num_heads: int, interpret: bool = False) -> Array:
    """`attend` by `attention_tpu`.

    Rows that a mesh's devices cannot share evenly, as those of `init`, go as written.
    """
    from pacx_jax.models import attention_tpu  # Pallas, which takes 0.4 s to import

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and len(qkv) % sharding.batch_shards(mesh):
        return as_written(qkv, num_heads)
    return attention_tpu.attend(qkv, num_heads, interpret)


def kernel_runs(tokens: int, dtype, kind: str) -> bool:
    """Whether `by_kernel` can be taken; if not, why is said once.

    Not for few tokens, as an MAE's encoder has them: that needs no word.
    """
    if tokens < LEAST_TOKENS:
        return False
    mesh = jax.sharding.get_abstract_mesh()
    reasons = {
        f"{kind} is no TPU": "tpu" not in kind,
        f"its kernel does not take {dtype}": dtype.itemsize != 2,
        f"its kernel takes up to {MOST_TOKENS} tokens, here are {tokens}": tokens
        > MOST_TOKENS,
        "it does not split heads over config.mesh.tensor": not mesh.empty
        and mesh.shape["tensor"] > 1,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        _say_once(f"config.attention=pallas: {found[0]}. It is computed as by auto")
    return not found


@functools.cache
def _say_once(text: str) -> None:
    logging.warning("%s, with the same results but for rounding", text)


def split_heads(qkv: Array, num_heads: int) -> Array:
    """([b,] n, 3 h c) -> (3, [b,] h, n, c): heads first, four times faster on CPU."""
    b = "b " if qkv.ndim == 3 else ""
    pattern = f"{b}n (qkv h c) -> qkv {b}h n c"
    return einops.rearrange(qkv, pattern, qkv=3, h=num_heads)


def join_heads(x: Array) -> Array:
    """([b,] h, n, c) -> ([b,] n, h c)."""
    b = "b " if x.ndim == 4 else ""
    return einops.rearrange(x, f"{b}h n c -> {b}n (h c)")


def probabilities(q: Array, k: Array) -> Array:
    """(..., n, c) each -> softmax of scaled scores, (..., n, n), float32 or wider."""
    scores = _scores(q * q.shape[-1] ** -0.5, k)
    return jax.nn.softmax(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)))


def weighted(probs: Array, v: Array) -> Array:
    """Sums of values (..., n, c) by (..., n, n), in the dtype of v."""
    return jnp.einsum("...qk,...kc->...qc", probs.astype(v.dtype), v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def by_image(qkv: Array, num_heads: int) -> Array:
    """`attend` whose backward pass takes an image at a time, in a CPU's cache.

    It keeps no probabilities, but computes an image's again (Dao 2022), with the row's
    maximum and sum: were these results of the forward pass, XLA would not make one
    loop of it.
    """
    q, k, v = split_heads(qkv, num_heads)
    exps, total = _exponentials(q, k)
    return join_heads((weighted(exps, v) / total).astype(v.dtype))


def _by_image_forward(qkv, num_heads):
    out = by_image(qkv, num_heads)
    return out, (qkv, out)


def _by_image_backward(num_heads, residuals, g):
    def one(residuals):
        qkv, out, g = residuals
        q, k, v = split_heads(qkv, num_heads)
        out, g = (
            _wide(einops.rearrange(x, "n (h c) -> h n c", h=num_heads))
            for x in (out, g)
        )
        exps, total = _exponentials(q, k)
        g = g / total  # here, (h, n, c), and not where it is (h, n, n)
        along = (g * out).sum(-1, keepdims=True)
        exps, g, along = (x.astype(qkv.dtype) for x in (exps, g, along))
        dscores = exps * (_scores(g, v) - along)
        scale = q.shape[-1] ** -0.5
        dq = weighted(dscores, k) * scale
        dk = jnp.einsum("hqk,hqc->hkc", dscores, q) * scale
        dv = jnp.einsum("hqk,hqc->hkc", exps, g)
        return einops.rearrange(jnp.stack([dq, dk, dv]), "qkv h n c -> n (qkv h c)")

    return (jax.lax.map(one, (*residuals, g)),)


by_image.defvjp(_by_image_forward, _by_image_backward)


def _exponentials(q, k):
    """exp(scores - their row's maximum), (..., n, n), and its sums, (..., n, 1)."""
    scores = _wide(_scores(q * q.shape[-1] ** -0.5, k))
    exps = jnp.exp(scores - scores.max(-1, keepdims=True))
    return exps, exps.sum(-1, keepdims=True)


def _scores(q, k):
    return jnp.einsum("...qc,...kc->...qk", q, k)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def device_kind() -> str:
    """What is compiled for, in lower case: "cpu", "nvidia ...", "tpu ..."."""
    mesh = jax.sharding.get_abstract_mesh()
    named = None if mesh.empty else mesh.abstract_device
    return (named.device_kind if named else jax.devices()[0].device_kind).lower()


def device_count() -> int:
    """How many devices the mesh of `sharding.tracing` has; without one, one."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


@functools.cache
def cudnn_runs(channels: int, dtype: str) -> bool:
    """Whether cuDNN's attention can be compiled here; if not, that is said once."""
    x = jax.ShapeDtypeStruct((1, 8, 1, channels), dtype)
    attention = functools.partial(jax.nn.dot_product_attention, implementation="cudnn")
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    gradient = jax.jit(
        jax.grad(lambda x: attention(x, x, x).sum()),
        in_shardings=one,
        out_shardings=one,
    )
    try:
        gradient.lower(x).compile()
    except Exception as error:  # whatever the installed cuDNN says
        logging.warning(
            "cuDNN attention does not run here (%s): XLA's is used, with the same "
            "results but for rounding",
            " ".join(str(error).split())[:200],
        )
        return False
    return True
