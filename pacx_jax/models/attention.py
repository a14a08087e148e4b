"""Softmax attention: one function, computed the fast way for each kind of device.

  o = softmax(q k^T / sqrt(c)) v,  the softmax in float32

Shape letters: b batch, n tokens, h heads, c channels of a head.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import einops
import jax
import jax.numpy as jnp
import numpy as np
from jax import nn

from pacx_jax import sharding, target
from pacx_jax.errors import PacxError
from pacx_jax.types import Array

# With at least this many bytes of scores per image and few channels per head, a CPU
# takes one image at a time: the scores are then most of the memory traffic.
LARGE_SCORES, FEW_CHANNELS = 2**20, 32
# Tokens that the kernel for TPUs takes: few leave it little to do, and the scores of
# many do not fit VMEM, nor do many of many channels (bfloat16: on v5e and v5p 320 of
# 1,280 channels fit, on v5e 400 of 1,024; 448 of 1,024 do not. float32: 264 do not).
LEAST_TOKENS, MOST_TOKENS, MOST_NUMBERS = 64, 400, 320 * 1280


ALL = slice(None)  # tokens
# config.attention: what suits the device; XLA's form; our kernel for TPUs.
WAYS = ("auto", "xla", "pallas")


def attend(
    qkv: Array,
    num_heads: int,
    way: str = "auto",
    outputs: slice = ALL,
    causal: bool = False,
) -> Array:
    """Multi-head self-attention of fused projections, (b, n, 3 h c) -> (b, n, h c).

    Args:
      qkv: [q | k | v] of every token.
      way: one of WAYS. "auto" takes the best form for the mesh's devices: cuDNN's flash
        attention on a GPU and our Pallas kernel on a TPU, both in two-byte dtypes and
        tried once on a small batch; on one CPU device an image at a time if that is
        faster; else XLA's form. "pallas" falls back to "auto" with one warning.
      outputs: tokens to compute, (b, m, h c); a single one takes XLA's form.
      causal: whether a token attends to itself and those before it alone.
    """
    if way not in WAYS:
        raise PacxError(f"config.attention is {way!r}: choose {' or '.join(WAYS)}")
    if way != "xla" and len(range(qkv.shape[1])[outputs]) > 1:
        n, c, dtype = qkv.shape[1], qkv.shape[2] // 3 // num_heads, qkv.dtype
        asked = way == "pallas"
        if kernel_runs(n, num_heads, c, dtype, asked=asked, causal=causal):
            return by_kernel(qkv, num_heads, causal=causal)[:, outputs]
        if cudnn_runs(n, num_heads, c, dtype, causal):
            return by_cudnn(qkv, num_heads, causal)[:, outputs]
        large = num_heads * n * n * 4 >= LARGE_SCORES and c <= FEW_CHANNELS
        if (
            large
            and not causal
            and target.platform() == "cpu"
            and target.device_count() == 1
        ):
            return by_image(qkv, num_heads)[:, outputs]
    return as_written(qkv, num_heads, outputs, causal)


def as_written(
    qkv: Array, num_heads: int, outputs: slice = ALL, causal: bool = False
) -> Array:
    """`attend` by the formula of this module, left to XLA."""
    q, k, v = split_heads(qkv, num_heads)
    q, n = q[..., outputs, :], k.shape[-2]
    mask = jnp.tril(jnp.ones((n, n), bool))[outputs] if causal else None
    return join_heads(weighted(probabilities(q, k, mask), v))


def by_kernel(
    qkv: Array, num_heads: int, interpret: bool = False, causal: bool = False
) -> Array:
    """`attend` by `attention_tpu`.

    Rows that the mesh's devices cannot share evenly, as in `init`, use `as_written`.
    """
    from pacx_jax.models import attention_tpu  # Pallas takes 0.4 s to import

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and len(qkv) % sharding.batch_shards(mesh):
        return as_written(qkv, num_heads, causal=causal)
    return attention_tpu.attend(qkv, num_heads, interpret, causal)


def kernel_runs(
    n: int,
    heads: int,
    channels: int,
    dtype,
    asked: bool = False,
    causal: bool = False,
) -> bool:
    """Whether `by_kernel` runs on the mesh's devices.

    Warns once of the reason if it was `asked` for or failed its trial. False for few
    tokens, as in an MAE's encoder, and without a mesh, when only shapes are traced.
    """
    mesh, platform = jax.sharding.get_abstract_mesh(), target.platform()
    if n < LEAST_TOKENS or not platform:
        return False
    most = min(MOST_TOKENS, MOST_NUMBERS // (heads * channels))
    reasons = {
        f"{platform} is no TPU": platform != "tpu",
        f"its kernel does not take {dtype}": dtype.itemsize != 2,
        f"its kernel takes up to {most} tokens, here are {n}": n > most,
        "it does not split heads over config.mesh.tensor": not mesh.empty
        and mesh.shape["tensor"] > 1,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        if asked:
            _say_of(f"config.attention=pallas: {found[0]}. It is computed as by auto")
        return False
    what = "Our attention kernel for TPUs"
    return runs_alike(what, by_kernel, n, heads, channels, dtype, causal)


def by_cudnn(qkv: Array, num_heads: int, causal: bool = False) -> Array:
    """`attend` by cuDNN's flash attention.

    JAX 0.10 and 0.12 refuse an odd number of tokens with a gradient (a check for a
    bias, applied without one too). Such inputs get one more token, which the lengths
    or the causal mask exclude; the padding is part of the copy that separates q, k and
    v.
    """
    b, n = qkv.shape[:2]
    qkv = jnp.pad(qkv, ((0, 0), (0, n % 2), (0, 0)))
    q, k, v = einops.rearrange(qkv, "b n (qkv h c) -> qkv b n h c", qkv=3, h=num_heads)
    lengths = jnp.full((b,), n, jnp.int32) if n % 2 and not causal else None
    out = nn.dot_product_attention(
        q,
        k,
        v,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        is_causal=causal,
        implementation="cudnn",
    )
    return einops.rearrange(out[:, :n], "b n h c -> b n (h c)")


def cudnn_runs(n: int, heads: int, channels: int, dtype, causal: bool = False) -> bool:
    """Whether `by_cudnn` runs on the mesh's devices; warns once if not."""
    if target.platform() != "gpu":
        return False
    capability, kind = target.capability(), target.device().device_kind
    most = 256 if capability >= (9, 0) else 128
    reasons = {
        f"{kind} is no NVIDIA GPU": not capability,
        f"{kind} is older than compute capability 8.0": capability < (8, 0),
        f"it does not take {dtype}, but bfloat16 and float16": dtype.itemsize != 2,
        f"it takes heads of 8, 16, ... {most} channels, here are {channels}": channels
        % 8
        or channels > most,
    }
    found = [reason for reason, holds in reasons.items() if holds]
    if found:
        _say_of(f"No cuDNN attention: {found[0]}. XLA's is used")
        return False
    return runs_alike("cuDNN attention", by_cudnn, n, heads, channels, dtype, causal)


def runs_alike(
    what: str,
    form: Callable,
    n: int,
    heads: int,
    channels: int,
    dtype,
    causal: bool = False,
) -> bool:
    """Whether a form matches `as_written`, gradient included, on a device."""
    shape, about = (2, n, 3 * heads * channels), f"{n} tokens, {heads} x {channels}"
    how = {"causal": True} if causal else {}
    about += ", causal" if causal else ""

    def attempt(device: jax.Device) -> str:
        noise = np.random.default_rng(0).standard_normal(shape, np.float32)
        one = jax.sharding.SingleDeviceSharding(device)
        qkv = jax.device_put(noise.astype(dtype), one)

        def gradient(form):
            of = lambda x: _wide(form(x, heads, **how))  # noqa: E731
            loss = lambda x: jnp.square(of(x)).sum()  # noqa: E731
            run = jax.jit(jax.grad(loss), in_shardings=one, out_shardings=one)
            return np.asarray(run(qkv), np.float64)

        got, want = gradient(form), gradient(as_written)
        far = np.abs(got - want).max() / np.abs(want).max()
        return "" if far < 0.05 else f"its gradient differs by {far:.2g} of the largest"

    wrong = target.tried(f"{what} of {about} in {dtype}", attempt)
    if wrong:
        _say_of(f"{what} does not run here ({wrong}). XLA's is used")
    return not wrong


def _say_of(text: str) -> None:
    target.say_once(f"{text}, with the same results but for rounding")


def split_heads(qkv: Array, num_heads: int) -> Array:
    """([b,] n, 3 h c) -> (3, [b,] h, n, c); heads first is 4 times faster on CPU."""
    b = "b " if qkv.ndim == 3 else ""
    pattern = f"{b}n (qkv h c) -> qkv {b}h n c"
    return einops.rearrange(qkv, pattern, qkv=3, h=num_heads)


def join_heads(x: Array) -> Array:
    """([b,] h, n, c) -> ([b,] n, h c)."""
    b = "b " if x.ndim == 4 else ""
    return einops.rearrange(x, f"{b}h n c -> {b}n (h c)")


def probabilities(q: Array, k: Array, mask: Array | None = None) -> Array:
    """(..., n, c) each -> softmax of scaled scores, (..., n, n), float32 or wider.

    Args:
      mask: (n, n), True where a query (row) sees a key; others get exactly 0.
    """
    scores = _wide(_scores(q * q.shape[-1] ** -0.5, k))
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(scores.dtype).min)
    return jax.nn.softmax(scores)


def weighted(probs: Array, v: Array) -> Array:
    """Sums of values (..., n, c) weighted by (..., n, n), in the dtype of v."""
    return jnp.einsum("...qk,...kc->...qc", probs.astype(v.dtype), v)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def by_image(qkv: Array, num_heads: int) -> Array:
    """`attend` whose backward pass takes an image at a time, in a CPU's cache.

    It keeps no probabilities but computes an image's again (Dao 2022), with the row's
    maximum and sum. If these were outputs of the forward pass, XLA would not fuse it
    into one loop.
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
        g = g / total  # (h, n, c) here; dividing the scores would be (h, n, n)
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
    """exp(scores - their row's maximum), (..., n, n), and its row sums, (..., n, 1)."""
    scores = _wide(_scores(q * q.shape[-1] ** -0.5, k))
    exps = jnp.exp(scores - scores.max(-1, keepdims=True))
    return exps, exps.sum(-1, keepdims=True)


def _scores(q, k):
    return jnp.einsum("...qc,...kc->...qk", q, k)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
