"""One attention, however it is computed; layers with backward passes of their own."""

import functools

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import sharding
from pacx_jax.models import attention, attention_tpu, dense, mae, vit
from pacx_jax.types import PacxError
from tests import tiny


def textbook(qkv, num_heads):
    q, k, v = einops.rearrange(qkv, "b n (qkv h c) -> qkv b h n c", qkv=3, h=num_heads)
    scores = jnp.einsum("bhqc,bhkc->bhqk", q, k) / q.shape[-1] ** 0.5
    out = jnp.einsum("bhqk,bhkc->bhqc", jax.nn.softmax(scores), v)
    return einops.rearrange(out, "b h n c -> b n (h c)")


def value_and_gradient(function, *arguments):
    """The output, and the gradient of its product with fixed noise."""

    def loss(*arguments):
        out = function(*arguments)
        noise = jax.random.normal(jax.random.key(9), out.shape, out.dtype)
        return (out * noise).sum(), out

    grad = jax.grad(loss, argnums=tuple(range(len(arguments))), has_aux=True)
    return grad(*arguments)


def furthest(got, want):
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    return max(
        float(jnp.abs(g - w).max() / jnp.maximum(jnp.abs(w).max(), 1e-30))
        for g, w in pairs
    )


@pytest.mark.parametrize("form", [attention.attend, attention.by_image])
@pytest.mark.parametrize("tokens, heads, channels", [(5, 2, 4), (17, 3, 8)])
def test_attention_and_its_gradient_are_the_textbooks(form, tokens, heads, channels):
    with jax.enable_x64(True):
        key, shape = jax.random.key(0), (3, tokens, 3 * heads * channels)
        qkv = 3 * jax.random.normal(key, shape, jnp.float64)
        got = value_and_gradient(lambda x: form(x, heads), qkv)
        want = value_and_gradient(lambda x: textbook(x, heads), qkv)
        assert furthest(got, want) < 1e-13


def test_scores_of_any_size_neither_overflow_nor_vanish():
    qkv = 300 * jax.random.normal(jax.random.key(0), (2, 9, 3 * 8))
    got = value_and_gradient(lambda x: attention.by_image(x, 2), qkv)
    want = value_and_gradient(lambda x: textbook(x, 2), qkv)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(got))
    assert furthest(got[1], want[1]) < 1e-5


def test_bfloat16_has_float32_softmax():
    qkv = jax.random.normal(jax.random.key(0), (2, 50, 3 * 32))
    want = textbook(qkv, 4)
    for form in (attention.attend, attention.by_image):
        got = form(qkv.astype(jnp.bfloat16), 4)
        assert got.dtype == jnp.bfloat16
        assert float(jnp.abs(got - want).max()) < 0.03  # values of size 1, 8 bits


def test_one_cpu_device_takes_large_scores_by_image_and_several_do_not(monkeypatch):
    taken = []
    monkeypatch.setattr(attention, "by_image", lambda x, h: taken.append(x.shape))
    large = jax.ShapeDtypeStruct((16, 197, 3 * 512), jnp.float32)
    jax.eval_shape(lambda x: attention.attend(x, 16), large)
    assert taken == [large.shape]
    monkeypatch.setattr(attention, "device_count", lambda: 8)
    jax.eval_shape(lambda x: attention.attend(x, 16), large)
    assert len(taken) == 1


def test_where_cudnn_does_not_run_that_is_said_once_and_xla_is_used(
    monkeypatch, caplog
):
    attention.cudnn_runs.cache_clear()
    monkeypatch.setattr(attention, "device_kind", lambda: "nvidia h200")
    qkv = jax.random.normal(jax.random.key(0), (2, 9, 3 * 16), jnp.bfloat16)
    with caplog.at_level("WARNING"):
        got = [attention.attend(qkv, 2) for _ in range(2)]  # this machine has no cuDNN
    attention.cudnn_runs.cache_clear()
    said = [r.getMessage() for r in caplog.records if "cuDNN" in r.getMessage()]
    assert len(said) == 1 and "\n" not in said[0]
    assert float(jnp.abs(got[0] - textbook(qkv, 2)).max()) < 0.05


@pytest.mark.parametrize("d_in, d_out", [(3, 7), (7, 3)])
def test_dense_has_the_gradients_of_flax(d_in, d_out):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 5, d_in), jnp.float64)
        kernel = jax.random.normal(jax.random.key(1), (d_in, d_out), jnp.float64)
        variables = {"params": {"kernel": kernel, "bias": jnp.ones(d_out)}}
        ours = dense.dense(d_out, dtype=jnp.float64, name=None)
        plain = nn.Dense(d_out, dtype=jnp.float64)
        got, want = (value_and_gradient(m.apply, variables, x) for m in (ours, plain))
        assert furthest(got, want) < 1e-14


def test_gelu_is_exact_in_value_and_slope():
    with jax.enable_x64(True):
        x = jnp.linspace(-9, 9, 1001, dtype=jnp.float64)
        got = value_and_gradient(dense.gelu, x)
        want = value_and_gradient(lambda x: jax.nn.gelu(x, approximate=False), x)
        assert furthest(got, want) < 1e-14
    narrow = np.linspace(-9, 9, 1001, dtype=np.float32)
    with jax.enable_x64(True):
        want = np.asarray(dense.gelu(jnp.asarray(narrow, jnp.float64)))
    error = np.abs(np.asarray(dense.gelu(narrow)) - want) / np.maximum(
        np.abs(narrow), 1
    )
    assert error.max() < 3e-7


# The published encoder's heads, its decoder's, and others than lanes are divided by.
@pytest.mark.parametrize("heads, channels", [(3, 64), (4, 32), (2, 80)])
def test_kernel_for_tpus_is_the_textbooks(heads, channels):
    # Bound 1e-5 of the largest value: float32, summed in another order. Measured 1e-6.
    key, shape = jax.random.key(0), (1, 24, 3 * heads * channels)
    qkv = 3 * jax.random.normal(key, shape)
    got = value_and_gradient(lambda x: attention_tpu.attend(x, heads, True), qkv)
    want = value_and_gradient(lambda x: textbook(x, heads), qkv)
    assert furthest(got, want) < 1e-5


def test_kernel_for_tpus_has_float32_softmax_in_bfloat16():
    qkv = jax.random.normal(jax.random.key(0), (2, 70, 3 * 64))
    narrow = qkv.astype(jnp.bfloat16)
    got = value_and_gradient(lambda x: attention_tpu.attend(x, 2, True), narrow)
    ours = value_and_gradient(lambda x: attention.as_written(x, 2), narrow)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(ours), strict=True):
        assert one.dtype == jnp.bfloat16
        spread = jnp.abs(one.astype(jnp.float32) - other).max()
        assert float(spread) < 0.03 * float(jnp.abs(other).max())


def test_devices_take_the_kernel_with_their_own_rows():
    mesh = sharding.make_mesh(8, fsdp=2)
    rows = sharding.batch_sharding(mesh)
    qkv = jax.random.normal(jax.random.key(0), (16, 70, 3 * 32))

    def both(x, interpret):
        with sharding.tracing(mesh):
            by = functools.partial(attention.by_kernel, interpret=interpret)
            return value_and_gradient(lambda x: by(x, 2), x)

    run = jax.jit(both, static_argnums=1, in_shardings=rows, out_shardings=rows)
    got = run(jax.device_put(qkv, rows), True)
    text = run.lower(qkv, True).compile().as_text()
    assert "all-gather" not in text and "all-reduce" not in text
    want = value_and_gradient(lambda x: textbook(x, 2), qkv)
    assert furthest(got, want) < 1e-5
    few = qkv[:3]  # which eight devices do not share
    with sharding.tracing(mesh):
        got = attention.by_kernel(few, 2)
    assert furthest([got], [textbook(few, 2)]) < 1e-5


def test_where_the_kernel_does_not_run_that_is_said_once(caplog, monkeypatch):
    attention._say_once.cache_clear()
    qkv = jax.random.normal(jax.random.key(0), (2, 70, 3 * 16))
    with caplog.at_level("WARNING"):
        got = [attention.attend(qkv, 2, "pallas") for _ in range(2)]
        attention.attend(qkv[:, :9], 2, "pallas")  # too few tokens to be worth a word
    (said,) = [r.getMessage() for r in caplog.records]
    assert "config.attention=pallas: cpu is no TPU. It is computed as by auto" in said
    assert furthest([got[0]], [textbook(qkv, 2)]) < 1e-5
    narrow, v5e = np.dtype("float16"), "tpu v5 lite"
    assert attention.kernel_runs(197, narrow, v5e)
    assert not attention.kernel_runs(197, np.dtype("float32"), v5e)
    assert not attention.kernel_runs(500, narrow, v5e)
    with sharding.tracing(sharding.make_mesh(8, tensor=2)):
        assert not attention.kernel_runs(197, narrow, v5e)


def test_unknown_way_is_an_error():
    with pytest.raises(PacxError, match="config.attention is 'flash': choose auto or"):
        attention.attend(jnp.zeros((2, 70, 3 * 16)), 2, "flash")


def test_config_chooses_the_way(monkeypatch):
    taken = []
    monkeypatch.setattr(attention, "kernel_runs", lambda *_: True)
    monkeypatch.setattr(
        attention, "by_kernel", lambda x, h: taken.append(h) or attention.attend(x, h)
    )
    config = tiny.config("mae_vitb16", attention="pallas")
    model = mae.from_config(config.model, ways=vit.ways(config))
    assert model.encoder.attention == model.decoder.attention == "pallas"
    ids = mae.random_masking(jax.random.key(0), np.arange(1), 16, 0.75)[:2]
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), *ids)
    assert len(taken) == model.encoder.depth + model.decoder.depth
