"""The losses against plain numpy, and InfoNCE on 1 to 8 devices."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import losses, sharding
from tests import tiny


def plain_info_nce(za, zb, scale, smoothing):
    """The published loss by loops, float64."""
    za, zb = np.float64(za), np.float64(zb)
    za = za / np.linalg.norm(za, axis=1, keepdims=True)
    zb = zb / np.linalg.norm(zb, axis=1, keepdims=True)
    b, total = len(za), 0.0
    for x, y in ((za, zb), (zb, za)):
        for i in range(b):
            logits = scale * y @ x[i]
            logp = logits - np.log(np.exp(logits).sum())
            for j in range(b):
                target = smoothing / b + (1 - smoothing) * (i == j)
                total -= target * logp[j] / b / 2
    return total


@pytest.fixture(scope="module")
def pairs():
    rng = np.random.default_rng(0)
    za = rng.normal(size=(16, 24))
    return za, 0.5 * za + rng.normal(size=(16, 24))


def value_and_grads(mesh, pairs, dtype, chunk=0):
    """Loss and gradients of both embeddings and the logit scale, on a mesh."""

    def loss(za, zb, logit_scale):
        scale = losses.temperature_scale(logit_scale)
        return losses.info_nce(
            za, {"b": zb}, scale, label_smoothing=0.02, mesh=mesh, chunk=chunk
        )["b"]

    rows = sharding.batch_sharding(mesh)
    everywhere = jax.sharding.NamedSharding(mesh, jax.P())
    grad = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1, 2)),
        in_shardings=(rows, rows, everywhere),
    )
    args = *(z.astype(dtype) for z in pairs), jnp.asarray(2.6593, dtype)
    value, grads = grad(*args)
    assert value.dtype == dtype
    return float(value), [np.asarray(g) for g in grads]


@pytest.fixture(scope="module")
def one_device(meshes, pairs):
    with jax.enable_x64(True):
        double = value_and_grads(meshes[1], pairs, jnp.float64)
    return {
        "float32": value_and_grads(meshes[1], pairs, jnp.float32),
        "float64": double,
    }


@pytest.mark.parametrize("smoothing", [0.0, 0.02, 0.3])
def test_info_nce_equals_plain_numpy(meshes, pairs, smoothing):
    # Bound 1e-6. Measured 5.3e-8.
    za, zb = (z.astype(np.float32) for z in pairs)

    @jax.jit
    def loss(za, zb):
        return losses.info_nce(
            za,
            {"b": zb},
            jnp.float32(14.3),
            label_smoothing=smoothing,
            mesh=meshes[2],
        )["b"]

    got, want = loss(za, zb), plain_info_nce(*pairs, 14.3, smoothing)
    assert abs(float(got) - want) / want < 1e-6


@pytest.mark.parametrize("n", [2, 8])
def test_info_nce_on_several_devices_equals_one(meshes, pairs, one_device, n):
    # Bounds 1e-6 (loss) and 1e-5 (gradients). Measured 0 and 3.2e-7.
    value, grads = value_and_grads(meshes[n], pairs, jnp.float32)
    want, want_grads = one_device["float32"]
    assert abs(value - want) / want < 1e-6
    assert max(map(tiny.relative, grads, want_grads)) < 1e-5
    assert min(map(np.linalg.norm, want_grads)) > 1e-3


@pytest.mark.parametrize(
    ("mesh", "chunk"),
    [((1, 1, 1), 4), ((2, 1, 1), 1), ((8, 4, 1), 8), ((8, 2, 2), 0), ((8, 1, 1), 0),
     ((4, 4, 1), 16)],
)  # fmt: skip
def test_info_nce_by_chunks_and_on_any_mesh_is_the_same(mesh, chunk, pairs, one_device):
    # Bound 1e-12. Measured 5.4e-16 (loss) and 5.6e-15 (gradients).
    on = sharding.make_mesh(*mesh)
    with jax.enable_x64(True):
        value, grads = value_and_grads(on, pairs, jnp.float64, chunk)
    want, want_grads = one_device["float64"]
    errors = [abs(value - want) / want, *map(tiny.relative, grads, want_grads)]
    print(f"{mesh} {chunk}: {errors[0]:.1e}, gradients {max(errors[1:]):.1e}")
    assert max(errors) < 1e-12


def test_float64_loss_equals_plain_numpy(pairs, one_device):
    want = plain_info_nce(*pairs, np.exp(2.6593), 0.02)
    assert abs(one_device["float64"][0] - want) / want < 1e-12  # measured 3.6e-16


def test_embeddings_are_gathered_once_for_all_modalities(meshes, pairs):
    za, zb = (z.astype(np.float32) for z in pairs)

    def loss(za, others):
        found = losses.info_nce(
            za, others, jnp.float32(9), label_smoothing=0.1, mesh=meshes[8]
        )
        return sum(found.values()), found

    rows = sharding.batch_sharding(meshes[8])
    grad = jax.jit(
        jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), in_shardings=rows
    )
    others = {"b": zb, "c": np.float32(zb[::-1] + 1)}
    # (b, d) is moved twice: anchors forward, the sum of their gradients back. Columns'
    # sums are (b,) numbers.
    text = grad.lower(za, others).compile().as_text()
    assert len(re.findall(r"f32\[16,24\]\S* all-gather\(", text)) == 1
    assert len(re.findall(r"f32\[2,24\]\S* reduce-scatter\(", text)) == 1
    reduced = re.findall(r"= (\(.*?\)|\S+) all-reduce\(", text)
    assert all(set(re.findall(r"\[([\d,]*)\]", r)) <= {"", "16"} for r in reduced)
    (_, found), (gradient, _) = grad(za, others)
    alone = [grad(za, {name: z}) for name, z in others.items()]
    for name, ((_, one), _) in zip(others, alone, strict=True):
        assert abs(float(found[name] - one[name])) < 1e-6
    want = sum(np.asarray(one[1][0]) for one in alone)
    assert tiny.relative(np.asarray(gradient), want) < 1e-6


def test_other_rows_are_negatives(meshes, pairs):
    # With each device's own rows alone the loss would be near log 2, not log 16.
    za, zb = (z.astype(np.float32) for z in pairs)

    @jax.jit
    def loss(za, zb):
        return losses.info_nce(
            za, {"b": zb}, jnp.float32(10), label_smoothing=0.0, mesh=meshes[8]
        )["b"]

    got = loss(za * 0 + 1, zb * 0 + 1)
    assert abs(float(got) - np.log(16)) < 1e-5


@pytest.mark.parametrize(
    ("logit_scale", "scale", "gradient"),
    [(2.0, np.exp(2.0), np.exp(2.0)), (5.0, 100.0, 0.0), (-1.0, 1.0, 0.0)],
)
def test_temperature_is_clamped_without_gradient_outside(logit_scale, scale, gradient):
    got, grad = jax.value_and_grad(losses.temperature_scale)(jnp.float32(logit_scale))
    np.testing.assert_allclose(got, scale, rtol=1e-6)
    np.testing.assert_allclose(grad, gradient, rtol=1e-6)


def test_l2_normalize_has_a_finite_gradient_at_zero():
    grad = jax.grad(lambda x: losses.l2_normalize(x).sum())(jnp.zeros((2, 3)))
    assert np.isfinite(grad).all()


def test_l2_normalize_gives_unit_rows_in_float32_from_bfloat16():
    x = np.random.default_rng(0).normal(size=(4, 8))
    got = losses.l2_normalize(jnp.asarray(x, jnp.bfloat16))
    assert got.dtype == jnp.float32
    assert np.abs(np.linalg.norm(got, axis=1) - 1).max() < 1e-6


def test_cosine_regression_equals_plain_numpy(pairs):
    a, b = pairs
    cos = [
        x @ y / np.linalg.norm(x) / np.linalg.norm(y)
        for x, y in zip(*pairs, strict=True)
    ]
    got = float(losses.cosine_regression(*(z.astype(np.float32) for z in (a, b))))
    assert abs(got - (1 - np.mean(cos))) < 1e-6


def test_cosine_regression_gives_the_target_no_gradient(pairs):
    grads = jax.grad(losses.cosine_regression, argnums=(0, 1))(
        *(jnp.asarray(z, jnp.float32) for z in pairs)
    )
    assert np.abs(grads[0]).max() > 1e-4
    assert not np.asarray(grads[1]).any()


def test_masked_bce_equals_plain_numpy_and_ignores_masked_entries():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(5, 3)) * 4, rng.integers(0, 2, (5, 3))
    mask = rng.integers(0, 2, (5, 3)).astype(np.float32)
    p = 1 / (1 + np.exp(-x))
    want = -(y * np.log(p) + (1 - y) * np.log(1 - p))[mask > 0].mean()
    args = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), mask
    got, grad = jax.value_and_grad(losses.masked_bce)(*args)
    assert abs(float(got) - want) / want < 1e-6
    assert not np.asarray(grad)[mask == 0].any() and np.asarray(grad)[mask > 0].all()
    changed = losses.masked_bce(args[0], jnp.where(mask > 0, args[1], 1.0), mask)
    assert float(changed) == float(got)


def test_masked_bce_is_finite_for_large_logits_and_an_empty_mask():
    x = jnp.array([[1e4, -1e4]])
    assert float(losses.masked_bce(x, jnp.array([[0.0, 1.0]]), jnp.ones((1, 2)))) == 1e4
    assert float(losses.masked_bce(x, jnp.zeros((1, 2)), jnp.zeros((1, 2)))) == 0


FULL = pytest.mark.full
PRESENT = np.array([1, 1, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0, 1, 1, 1], np.float64)


@pytest.mark.parametrize(
    ("n", "chunk"), [(1, 0), (8, 4), pytest.param(1, 4, marks=FULL),
                     pytest.param(8, 0, marks=FULL)]
)  # fmt: skip
def test_studies_that_lack_a_modality_are_as_if_they_were_not_there(
    meshes, pairs, n, chunk
):
    # Against the studies that have it, alone, on one device. Bound 1e-12 in float64.
    kept = np.flatnonzero(PRESENT)

    def loss(za, zb, mesh, chunk=0, present=None):
        given = {} if present is None else {"b": present}
        scale = jnp.float64(14.3)
        return losses.info_nce(
            za,
            {"b": zb},
            scale,
            label_smoothing=0.02,
            mesh=mesh,
            chunk=chunk,
            present=given,
        )["b"] + losses.cosine_regression(za, zb, present)

    with jax.enable_x64(True):
        za, zb = (jnp.asarray(z) for z in pairs)
        zb = zb.at[PRESENT == 0].set(0)
        grad = jax.value_and_grad(loss, argnums=(0, 1))
        want, want_grads = jax.jit(lambda a, b: grad(a, b, meshes[1]))(
            za[kept], zb[kept]
        )
        got, grads = jax.jit(lambda a, b, p: grad(a, b, meshes[n], chunk, p))(
            za, zb, jnp.asarray(PRESENT)
        )
    assert abs(float(got) - float(want)) / float(want) < 1e-12
    for g, w in zip(grads, want_grads, strict=True):
        assert tiny.relative(g[kept], w) < 1e-12
        assert not np.asarray(g)[PRESENT == 0].any()


def test_a_modality_that_no_study_has_costs_nothing_and_gives_no_gradient(
    meshes, pairs
):
    za, zb = (jnp.asarray(z, jnp.float32) for z in pairs)
    none = jnp.zeros(16)

    def loss(za, zb):
        found = losses.info_nce(
            za,
            {"b": zb},
            jnp.float32(14.3),
            label_smoothing=0.02,
            mesh=meshes[8],
            present={"b": none},
        )
        return found["b"] + losses.cosine_regression(za, zb, none)

    value, grads = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(za, zb)
    assert float(value) == 0 and not any(np.asarray(g).any() for g in grads)
