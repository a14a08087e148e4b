"""One attention, however it is computed; layers with backward passes of their own."""

import functools
import types

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import sharding, target
from pacx_jax.errors import PacxError
from pacx_jax.models import attention, attention_tpu, dense, mae, vit
from tests import tiny


def textbook(qkv, num_heads, causal=False):
    q, k, v = einops.rearrange(qkv, "b n (qkv h c) -> qkv b h n c", qkv=3, h=num_heads)
    scores = jnp.einsum("bhqc,bhkc->bhqk", q, k) / q.shape[-1] ** 0.5
    if causal:
        scores -= jnp.triu(jnp.full(scores.shape[-2:], jnp.inf), 1)
    out = jnp.einsum("bhqk,bhkc->bhqc", jax.nn.softmax(scores), v)
    return einops.rearrange(out, "b h n c -> b n (h c)")


def value_and_gradient(function, *arguments):
    """The output, and the gradient of its product with fixed noise."""

    def loss(*arguments):
        out = function(*arguments)
        noise = jax.random.normal(jax.random.key(9), out.shape, out.dtype)
        return (out * noise).sum(), out

    grad = jax.grad(loss, argnums=tuple(range(len(arguments))), has_aux=True)
    return jax.jit(grad)(*arguments)


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
    monkeypatch.setattr(attention, "by_image", lambda x, h: taken.append(x.shape) or x)
    large = jax.ShapeDtypeStruct((16, 197, 3 * 512), jnp.float32)
    for devices in (1, 8):
        with sharding.tracing(sharding.make_mesh(devices)):
            jax.eval_shape(lambda x: attention.attend(x, 16), large)
    assert taken == [large.shape]


@pytest.mark.parametrize("way", ["auto", "xla"])
def test_outputs_of_some_tokens_are_those_of_all(way):
    qkv = jax.random.normal(jax.random.key(0), (2, 9, 3 * 16))
    whole = textbook(qkv, 2)
    for wanted in (slice(0, 1), slice(4, 9)):
        got = attention.attend(qkv, 2, way, wanted)
        assert furthest([got], [whole[:, wanted]]) < 1e-6


class FakeDevice:
    """What `target` and `attention` read of a device."""

    def __init__(self, device_kind, platform="gpu", compute_capability=""):
        self.device_kind, self.platform = device_kind, platform
        self.compute_capability, self.process_index = compute_capability, 0


@pytest.fixture
def said(caplog):
    """The warnings so far; each is said anew in every test."""
    target.say_once.cache_clear()
    caplog.set_level("WARNING")
    return lambda: [r.getMessage() for r in caplog.records]


def with_device(monkeypatch, *args):
    device = FakeDevice(*args)
    monkeypatch.setattr(target, "device", lambda: device)
    return device


BFLOAT16, FLOAT32 = np.dtype(jnp.bfloat16), np.dtype("float32")


@pytest.mark.parametrize(
    "kind, capability, channels, dtype, why",
    [
        ("Tesla V100-SXM2-16GB", "7.0", 64, BFLOAT16, "older than compute capability"),
        ("NVIDIA A100", "8.0", 160, BFLOAT16, "8, 16, ... 128 channels, here are 160"),
        ("NVIDIA H100", "9.0", 20, BFLOAT16, "8, 16, ... 256 channels, here are 20"),
        ("NVIDIA H100", "9.0", 64, FLOAT32, "does not take float32"),
        ("AMD Instinct MI300X", "gfx942", 64, BFLOAT16, "is no NVIDIA GPU"),
    ],
)
def test_what_cudnn_does_not_take_is_said_once_and_xla_is_used(
    monkeypatch, said, kind, capability, channels, dtype, why
):
    with_device(monkeypatch, kind, "gpu", capability)
    qkv = jax.random.normal(jax.random.key(0), (2, 9, 3 * 2 * channels)).astype(dtype)
    got = [attention.attend(qkv, 2) for _ in range(2)]
    (line,) = said()
    assert why in line and "XLA's is used" in line and "\n" not in line
    assert furthest([got[0]], [attention.as_written(qkv, 2)]) == 0


def test_cudnn_is_asked_for_the_devices_of_the_mesh_and_for_an_even_number(monkeypatch):
    with_device(monkeypatch, "NVIDIA H100 80GB HBM3", "gpu", "9.0")
    asked = {}

    def cudnn(q, k, v, **options):
        asked.update(options, shape=q.shape)
        return jax.nn.dot_product_attention(
            q, k, v, **(options | {"implementation": "xla"})
        )

    qkv = jax.random.normal(jax.random.key(0), (2, 9, 3 * 32), jnp.float32)
    narrow = qkv.astype(jnp.bfloat16)
    assert attention.cudnn_runs(9, 2, 16, BFLOAT16)  # on devices that are not here
    fake = types.SimpleNamespace(dot_product_attention=cudnn)
    monkeypatch.setattr(attention, "nn", fake)
    with jax.disable_jit():  # so that what is asked is numbers
        got = value_and_gradient(lambda x: attention.by_cudnn(x, 2), qkv)
    assert asked["shape"] == (2, 10, 2, 16) and asked["implementation"] == "cudnn"
    assert asked["query_seq_lengths"].tolist() == [9, 9]
    want = value_and_gradient(lambda x: textbook(x, 2), qkv)
    assert furthest(got, want) < 1e-5
    assert attention.attend(narrow, 2).shape == (2, 9, 32)
    attention.attend(narrow[:, :8], 2)
    assert asked["query_seq_lengths"] is None and asked["shape"][1] == 8


def test_a_kernel_that_fails_on_the_device_is_left_out_and_that_is_said(
    monkeypatch, said
):
    """Tried within a trace, on this machine's CPU, which has neither kernel."""
    mesh, n = sharding.make_mesh(1), 70
    qkv = jax.random.normal(jax.random.key(0), (2, n, 3 * 16)).astype(jnp.bfloat16)
    real, wrong = mesh.devices.flat[0], lambda x, h: 2 * attention.as_written(x, h)
    monkeypatch.setattr(target, "_ANSWERS", {})
    tried = functools.partial(attention.runs_alike, n=n, heads=2, channels=8)

    def step(x):
        with sharding.tracing(mesh):
            assert not tried("cuDNN", attention.by_cudnn, dtype=BFLOAT16)
            assert not tried("A wrong kernel", wrong, dtype=BFLOAT16)
            assert tried("A right kernel", attention.by_image, dtype=BFLOAT16)
            return attention.attend(x, 2)

    got = jax.jit(step)(jax.device_put(qkv, real))
    assert furthest([got], [attention.as_written(qkv, 2)]) < 0.02
    first, second = said()
    assert "cuDNN of 70 tokens" in first or "cuDNN does not run here (" in first
    assert "A wrong kernel does not run here (its gradient differs by" in second


@pytest.mark.parametrize("d_in, d_out", [(3, 7), (7, 3)])
def test_dense_has_the_gradients_of_flax(d_in, d_out):
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 5, d_in), jnp.float64)
        kernel = jax.random.normal(jax.random.key(1), (d_in, d_out), jnp.float64)
        variables = {"params": {"kernel": kernel, "bias": jnp.ones(d_out)}}
        ours = dense.Dense(d_out, dtype=jnp.float64)
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
@pytest.mark.parametrize("causal", [False, True], ids=["all", "causal"])
def test_kernel_for_tpus_is_the_textbooks(heads, channels, causal):
    # Bound 1e-5 of the largest value: float32, summed in another order. Measured 1e-6.
    key, shape = jax.random.key(0), (1, 24, 3 * heads * channels)
    qkv = 3 * jax.random.normal(key, shape)
    kernel = lambda x: attention_tpu.attend(x, heads, True, causal)  # noqa: E731
    want = value_and_gradient(lambda x: textbook(x, heads, causal), qkv)
    assert furthest(value_and_gradient(kernel, qkv), want) < 1e-5


def test_causal_attention_is_the_textbooks():
    # The forms that a CPU takes, of all tokens and of some. Measured 5e-7.
    qkv = 3 * jax.random.normal(jax.random.key(0), (2, 9, 3 * 16))
    want = value_and_gradient(lambda x: textbook(x, 2, True), qkv)
    got = value_and_gradient(lambda x: attention.attend(x, 2, causal=True), qkv)
    assert furthest(got, want) < 1e-5
    some = attention.attend(qkv, 2, outputs=slice(4, 9), causal=True)
    assert furthest([some], [textbook(qkv, 2, True)[:, 4:9]]) < 1e-5


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


def test_where_the_kernel_does_not_run_that_is_said_once(monkeypatch, said):
    qkv = jax.random.normal(jax.random.key(0), (2, 70, 3 * 16))
    with sharding.tracing(sharding.make_mesh(1)):
        got = [attention.attend(qkv, 2, "pallas") for _ in range(2)]
        attention.attend(qkv[:, :9], 2, "pallas")  # too few tokens to be worth a word
    (line,) = said()
    assert "config.attention=pallas: cpu is no TPU. It is computed as by auto" in line
    assert furthest([got[0]], [textbook(qkv, 2)]) < 1e-5
    with_device(monkeypatch, "TPU v5 lite", "tpu")
    assert attention.kernel_runs(197, 12, 64, BFLOAT16)
    assert not attention.kernel_runs(20, 12, 64, BFLOAT16)
    assert not attention.kernel_runs(197, 12, 64, FLOAT32)
    assert attention.kernel_runs(326, 12, 64, BFLOAT16, causal=True)
    assert not attention.kernel_runs(500, 12, 64, BFLOAT16)
    assert not attention.kernel_runs(360, 16, 80, BFLOAT16)
    with sharding.tracing(sharding.make_mesh(8, tensor=2)):
        assert not attention.kernel_runs(197, 12, 64, BFLOAT16)
    assert len(said()) == 1


def test_auto_takes_the_kernel_on_tpus(monkeypatch):
    with_device(monkeypatch, "TPU v5 lite", "tpu")
    taken = []
    monkeypatch.setattr(
        attention, "by_kernel", lambda x, h, causal: taken.append(h) or x
    )
    qkv = jnp.zeros((2, 70, 3 * 16), jnp.bfloat16)
    attention.attend(qkv, 2)
    attention.attend(qkv, 2, "xla")
    attention.attend(qkv[:, :20], 2)
    assert taken == [2]


def test_unknown_way_is_an_error():
    with pytest.raises(PacxError, match="config.attention is 'flash': choose auto or"):
        attention.attend(jnp.zeros((2, 70, 3 * 16)), 2, "flash")


def test_config_chooses_the_way(monkeypatch):
    taken = []
    monkeypatch.setattr(attention, "kernel_runs", lambda *_, asked, causal: asked)

    def by_kernel(x, h, causal):
        taken.append(h)
        return attention.attend(x, h, causal=causal)

    monkeypatch.setattr(attention, "by_kernel", by_kernel)
    config = tiny.config("mae_vitb16", attention="pallas")
    model = mae.from_config(config.model, ways=vit.ways(config))
    assert model.encoder.attention == model.decoder.attention == "pallas"
    ids = mae.random_masking(jax.random.key(0), np.arange(1), 16, 0.75)[:2]
    jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)), *ids)
    assert len(taken) == model.encoder.depth + model.decoder.depth


def test_a_cpu_keeps_what_a_backward_pass_needs_and_no_more(meshes):
    """Of 8 layers of 16 -> 256 -> 16 units, x, x kernel and its GELU a layer.

    Measured 1.00 times that; 1.49 where `dense.first` has no effect.
    """
    rows, layers = 2048, 8

    def loss(params, x):
        for a, b in params:
            x = x + dense.affine(dense.gelu(dense.affine(x, *a)), *b)
        return (x**2).sum()

    shape = jax.ShapeDtypeStruct
    one = [
        (shape((i, o), jnp.float32), shape((o,), jnp.float32))
        for i, o in ((16, 256), (256, 16))
    ]
    x = shape((rows, 16), jnp.float32)
    with sharding.tracing(meshes[1]):
        lowered = jax.jit(jax.grad(loss)).lower([one] * layers, x)
    options = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
    compiled = lowered.compile(compiler_options=options)
    needed = layers * rows * (16 + 2 * 256) * 4
    print(compiled.memory_analysis().temp_size_in_bytes / needed)
    assert compiled.memory_analysis().temp_size_in_bytes < 1.2 * needed


def test_frozen_weights_cost_no_gradient_and_keep_no_input(meshes):
    kernel, bias = jnp.ones((16, 256)), jnp.ones(256)
    x = jnp.ones((64, 16))
    with sharding.tracing(meshes[1]):
        frozen = jax.make_jaxpr(
            jax.grad(lambda x: (dense.affine(x, kernel, bias) ** 2).sum())
        )(x)
        trained = jax.make_jaxpr(
            jax.grad(lambda k: (dense.affine(x, k, bias) ** 2).sum())
        )(kernel)
    # Forward, and the gradient of x; trained, that of the kernel too.
    assert str(frozen).count("dot_general") == 2
    assert str(trained).count("dot_general") == 3


def test_on_several_devices_the_order_of_sums_costs_no_collective(meshes):
    def loss(params, x):
        for kernel, bias in params:
            x = dense.gelu(dense.affine(x, kernel, bias))
        return (x**2).sum()

    everywhere, rows = (
        f(meshes[8]) for f in (sharding.replicated, sharding.batch_sharding)
    )
    step = jax.jit(
        jax.grad(loss), in_shardings=(everywhere, rows), out_shardings=everywhere
    )
    with sharding.tracing(meshes[8]):
        lowered = step.lower(
            [(jnp.ones((16, 16)), jnp.ones(16))] * 3, jnp.ones((16, 16))
        )
    text = lowered.compile().as_text()
    assert text.count(" all-reduce(") == 1  # of the gradients of all layers together
