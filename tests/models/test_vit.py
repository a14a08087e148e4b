"""The ViT against plain numpy, and its patches and positions."""

import functools

import einops
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.models import positions, transformer, vit
from tests import tiny
from tests.models import plain


@pytest.fixture(scope="module")
def model():
    return vit.ViT(patch_size=8, width=32, depth=2, num_heads=2)


@pytest.fixture(scope="module")
def params(model):
    return tiny.random_params(model, jnp.zeros((1, 32, 24, 3)), seed=1)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(2).normal(size=(3, 32, 24, 3)).astype(np.float32)


def test_patches_run_row_by_row_with_pixels_in_order_row_column_channel():
    image = np.arange(4 * 6 * 3).reshape(1, 4, 6, 3)
    got = np.asarray(vit.patchify(image, 2))
    assert (got[0] == plain.patches(image[0], 2)).all()
    # MAE's einsum, nhwpqc: n, h, p, w, q, c transposed to n, h, w, p, q, c.
    mae = image.reshape(1, 2, 2, 3, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    assert (got == mae.reshape(1, 6, 12)).all()


def test_unpatchify_inverts_patchify_on_a_rectangle():
    image = np.random.default_rng(0).normal(size=(2, 6, 8, 3))
    back = vit.unpatchify(vit.patchify(image, 2), 2, (3, 4))
    assert (np.asarray(back) == image).all()


@pytest.mark.parametrize(("grid", "width"), [((14, 14), 768), ((2, 5), 16)])
def test_positions_follow_the_formula(grid, width):
    # Bound: rounding to float32 of values up to 1. Measured 3.0e-8.
    got = positions.sincos_2d(grid, width)
    assert got.dtype == np.float32
    assert np.abs(got - plain.positions(*grid, width)).max() < 6e-8


def test_first_half_of_the_position_encodes_the_column():
    grid = einops.rearrange(positions.sincos_2d((3, 4), 8), "(h w) d -> h w d", h=3)
    assert (grid[:, :, :4] == grid[:1, :, :4]).all()  # the same in every row
    assert (grid[:, :, 4:] == grid[:, :1, 4:]).all()  # the same in every column
    assert not (grid[:, :, :4] == grid[:, :1, :4]).all()


def test_width_that_positions_cannot_split_is_an_error():
    with pytest.raises(PacxError, match="width 30 is not divisible by 4"):
        positions.sincos_2d((2, 2), 30)


def test_image_that_patches_cannot_tile_is_an_error(model, params):
    with pytest.raises(PacxError, match="30x32 is not divisible by patch_size 8"):
        model.apply({"params": params}, jnp.zeros((1, 30, 32, 3)))


def test_vit_equals_plain_numpy(model, params, images):
    # Bound 1e-5 of the largest value. Measured 4.6e-7 (float32 against float64).
    got = np.asarray(jax.jit(model.apply)({"params": params}, images))
    want = np.stack([plain.vit(params, x, 8, 2, 1e-6) for x in np.float64(images)])
    assert got.shape == (3, 1 + 12, 32)
    assert tiny.worst(got, want) < 1e-5


def test_paths_that_all_count_change_no_bit(model, params, images):
    apply = jax.jit(model.apply)
    ones = transformer.drop_path(jax.random.key(0), np.arange(3), 2, 0.0)
    np.testing.assert_array_equal(ones, np.ones((3, 2, 2)))
    got = apply({"params": params}, images, paths=ones)
    np.testing.assert_array_equal(got, apply({"params": params}, images))


def test_a_dropped_path_leaves_its_branch_out(model, params, images):
    paths = np.ones((3, 2, 2), np.float32)
    paths[0, 1], paths[1, 0, 0] = 0, 0
    got = np.asarray(model.apply({"params": params}, images, paths=paths))
    whole = np.asarray(model.apply({"params": params}, images))
    cut = flax.core.copy(params, {})
    cut["block_01"] = jax.tree.map(lambda p: p * 0, cut["block_01"])
    shallow = np.asarray(model.apply({"params": cut}, images))
    np.testing.assert_allclose(got[0], shallow[0], atol=1e-6)
    assert np.abs(got[1] - whole[1]).max() > 1e-3
    np.testing.assert_array_equal(got[2], whole[2])


def test_paths_are_dropped_at_rates_that_grow_over_the_depth():
    depth, rate, b = 4, 0.3, 20_000
    rows = np.arange(b)
    paths = np.asarray(transformer.drop_path(jax.random.key(1), rows, depth, rate))
    rates = rate * np.arange(depth) / (depth - 1)
    share = (paths == 0).mean((0, 2))
    bound = 5 * np.sqrt(rates * (1 - rates) / (2 * b))
    assert (np.abs(share - rates) <= bound).all()
    kept = paths[:, -1][paths[:, -1] > 0]
    np.testing.assert_allclose(kept, 1 / (1 - rate), rtol=1e-6)
    some = transformer.drop_path(jax.random.key(1), rows[[7, 3]], depth, rate)
    np.testing.assert_array_equal(some, paths[[7, 3]])  # by the image's number alone
    with pytest.raises(PacxError, match="config.drop_path is 1.0"):
        transformer.drop_path(jax.random.key(1), rows, depth, 1.0)


def test_vit_equals_plain_numpy_with_the_other_epsilon(params, images):
    # Tokens of small variance, where 1e-5 and 1e-6 differ by 6%: the bound tells them.
    # Measured 1.9e-7.
    small = jax.tree.map(lambda p: p * 1e-2, params)
    model = vit.ViT(patch_size=8, width=32, depth=2, num_heads=2, ln_eps=1e-5)
    got = np.asarray(jax.jit(model.apply)({"params": small}, images[:1] * 1e-2))[0]
    image = np.float64(images[0]) * 1e-2
    want, other = (plain.vit(small, image, 8, 2, eps) for eps in (1e-5, 1e-6))
    assert tiny.worst(got, want) < 1e-5
    assert tiny.worst(got, other) > 1e-4


def test_cls_token_has_position_zero():
    model = vit.ViT(patch_size=8, width=32, depth=0, num_heads=2)
    cls_token = np.random.default_rng(0).normal(size=(1, 1, 32)).astype(np.float32)
    params = {
        "cls_token": cls_token,
        "norm": {"scale": np.ones(32, np.float32), "bias": np.zeros(32, np.float32)},
        "patch_embed": {"kernel": np.ones((192, 32)), "bias": np.zeros(32)},
    }
    got = jax.jit(model.apply)({"params": params}, jnp.ones((1, 16, 16, 3)))[0, 0]
    want = plain.layer_norm(np.float64(cls_token[0, 0]), params["norm"], 1e-6)
    assert tiny.worst(got, want) < 1e-6  # measured 6.8e-8


def test_kept_patches_are_embedded_as_if_the_others_were_not_there(
    model, params, images
):
    # Bound 1e-5 of the largest value. Measured 3.7e-7.
    keep = np.array([[5, 0, 7], [11, 1, 2], [3, 4, 5]])
    got = np.asarray(jax.jit(model.apply)({"params": params}, images, keep))
    want = np.stack(
        [
            plain.vit(params, x, 8, 2, 1e-6, k)
            for x, k in zip(np.float64(images), keep, strict=True)
        ]
    )
    assert got.shape == (3, 1 + 3, 32)
    assert tiny.worst(got, want) < 1e-5


def test_keeping_every_patch_equals_keeping_none_out(model, params, images):
    keep = np.tile(np.arange(12), (3, 1))
    a = np.asarray(jax.jit(model.apply)({"params": params}, images, keep))
    b = np.asarray(jax.jit(model.apply)({"params": params}, images))
    np.testing.assert_array_equal(a, b)


def test_cls_token_alone_is_that_of_all_tokens(model, params, images):
    # Measured 2.4e-7: fewer rows are summed in another order.
    whole = jax.jit(model.apply)({"params": params}, images)
    options = {"cls_only": True, "mutable": "intermediates"}
    apply = jax.jit(functools.partial(model.apply, **options))
    alone, state = apply({"params": params}, images)
    assert alone.shape == (3, 1, 32)
    np.testing.assert_allclose(alone, whole[:, :1], atol=2e-6)
    (probs,) = state["intermediates"]["block_01"]["attn"]["attention"]
    assert probs.shape == (3, 2, 13, 13)  # rollout wants those of all tokens


def test_bfloat16_stays_near_float32(params, images):
    # bfloat16 has 8 bits, 0.4% a product. Bound 1% of the norm; measured 0.45%.
    half = vit.ViT(patch_size=8, width=32, depth=2, num_heads=2, dtype=jnp.bfloat16)
    full = vit.ViT(patch_size=8, width=32, depth=2, num_heads=2)
    a = jax.jit(half.apply)({"params": params}, images)
    b = jax.jit(full.apply)({"params": params}, images)
    assert a.dtype == jnp.float32  # the last LayerNorm's
    assert 1e-4 < tiny.relative(a, b) < 0.01


def test_attention_is_computed_in_float32_under_bfloat16(params, images):
    half = vit.ViT(patch_size=8, width=32, depth=2, num_heads=2, dtype=jnp.bfloat16)
    _, state = half.apply({"params": params}, images, mutable="intermediates")
    probs = state["intermediates"]["block_01"]["attn"]["attention"][0]
    assert probs.dtype == jnp.float32 and probs.shape == (3, 2, 13, 13)
    # Rows sum to 1 far better than bfloat16 could hold (measured 1.8e-7).
    assert np.abs(np.asarray(probs).sum(-1) - 1).max() < 1e-6


def test_unknown_variant_is_an_error_that_lists_the_known():
    config = tiny.config("mae_vitb16", model__variant="XL")
    with pytest.raises(PacxError, match="'XL'; choose one of mu, demo, Ti, S, B, L, H"):
        vit.from_config(config.model)


def test_initial_values_are_the_references():
    # As published: xavier-uniform kernels, zero biases but the patch embedding's,
    # which is U(+-1/sqrt(768)), CLS N(0, 0.02).
    model = vit.ViT(patch_size=16, width=64, depth=1, num_heads=2)
    p = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    bound = (6 / (64 + 192)) ** 0.5  # on the fused qkv
    qkv = p["block_00"]["attn"]["qkv"]
    assert 0.98 * bound < np.abs(qkv["kernel"]).max() <= bound
    assert not np.asarray(qkv["bias"]).any()
    bias = np.abs(p["patch_embed"]["bias"])
    assert 0.8 * 768**-0.5 < bias.max() <= 768**-0.5
    assert 0.01 < np.asarray(p["cls_token"]).std() < 0.03
