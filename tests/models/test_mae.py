"""Masking, decoder and loss of the MAE."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.models import mae, vit
from tests import tiny
from tests.models import plain


@pytest.mark.parametrize(("ratio", "kept"), [(0.9, 19), (0.75, 49), (0.5, 98)])
def test_exactly_the_stated_share_of_196_patches_is_kept(ratio, kept):
    ids_keep, ids_restore, mask = mae.random_masking(
        jax.random.key(0), np.arange(5), 196, ratio
    )
    assert ids_keep.shape == (5, kept)
    assert (np.asarray(mask).sum(1) == 196 - kept).all()
    assert (np.sort(ids_restore, axis=1) == np.arange(196)).all()


def test_mask_is_zero_just_where_patches_are_kept():
    ids_keep, _, mask = mae.random_masking(jax.random.key(1), np.arange(4), 16, 0.75)
    for row, keep in zip(np.asarray(mask), np.asarray(ids_keep), strict=True):
        assert set(np.flatnonzero(row == 0)) == set(keep)
        assert set(np.unique(row)) == {0, 1}


def test_ids_restore_puts_kept_patches_back_in_their_places():
    ids_keep, ids_restore, _ = mae.random_masking(
        jax.random.key(2), np.arange(3), 10, 0.6
    )
    patches = np.arange(30).reshape(3, 10)
    kept = np.take_along_axis(patches, np.asarray(ids_keep), 1)
    padded = np.concatenate([kept, np.full((3, 6), -1)], 1)
    restored = np.take_along_axis(padded, np.asarray(ids_restore), 1)
    assert ((restored == patches) | (restored == -1)).all()
    assert (restored >= 0).sum() == kept.size


def test_images_have_different_masks():
    ids_keep, _, _ = mae.random_masking(jax.random.key(0), np.arange(32), 196, 0.9)
    assert len({tuple(sorted(row)) for row in np.asarray(ids_keep)}) == 32


def test_every_patch_is_kept_about_equally_often():
    # 2,000 images keep 4 of 16: 500 each, s.d. 19.4. Bound 5 s.d.; measured 2.6.
    _, _, mask = mae.random_masking(jax.random.key(3), np.arange(2000), 16, 0.75)
    kept = (1 - np.asarray(mask)).sum(0)
    assert np.abs(kept - 500).max() < 5 * 19.4


def test_masks_do_not_depend_on_the_number_of_devices(meshes):
    draws = []
    for mesh in meshes.values():
        rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
        draw = jax.jit(
            lambda key: mae.random_masking(key, np.arange(16), 16, 0.75),
            out_shardings=rows,
        )
        draws.append([np.asarray(x) for x in draw(jax.random.key(5))])
    for other in draws[1:]:
        for a, b in zip(draws[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("ratio", [0.0, 1.0, 0.97, -0.1])
def test_mask_ratio_that_keeps_or_masks_nothing_is_an_error(ratio):
    with pytest.raises(PacxError, match=f"mask_ratio {ratio} keeps"):
        mae.random_masking(jax.random.key(0), np.arange(1), 16, ratio)


def setting_model():
    encoder = vit.ViT(patch_size=4, width=16, depth=1, num_heads=2)
    decoder = mae.Decoder(patch_pixels=48, width=8, depth=2, num_heads=2)
    return mae.MAE(encoder, decoder)


@pytest.fixture(scope="module")
def setting():
    """A small MAE with random weights, a batch, masks, and its prediction."""
    model = setting_model()
    images = np.random.default_rng(0).normal(size=(3, 12, 16, 3)).astype(np.float32)
    ids_keep, ids_restore, mask = mae.random_masking(
        jax.random.key(1), np.arange(3), 12, 0.75
    )
    params = tiny.random_params(model, images, ids_keep, ids_restore, seed=3)
    pred = jax.jit(model.apply)({"params": params}, images, ids_keep, ids_restore)
    ids = np.asarray(ids_keep), np.asarray(ids_restore), np.asarray(mask)
    return params, images, ids, np.asarray(pred)


def plain_prediction(params, images, ids):
    return np.stack(
        [
            plain.decoder(
                params["decoder"],
                plain.vit(params["encoder"], image, 4, 2, 1e-6, keep),
                restore,
                (3, 4),
                2,
                1e-6,
            )
            for image, keep, restore in zip(
                np.float64(images), ids[0], ids[1], strict=True
            )
        ]
    )


def test_decoder_equals_plain_numpy(setting):
    # Bound 1e-5 of the largest value. Measured 2.2e-7.
    params, images, ids, pred = setting
    want = plain_prediction(params, images, ids)
    assert tiny.worst(pred, want) < 1e-5


def test_loss_equals_plain_numpy(setting):
    # Bound 1e-5. Measured 2.7e-8.
    params, images, ids, pred = setting
    masked = mae.masked_ids(*ids[:2])
    target = mae.patch_targets(jnp.asarray(images), 4, False, masked)
    of_masked = mae.take_patches(jnp.asarray(pred), masked)
    got = float(mae.reconstruction_loss(of_masked, target).mean())
    truth = np.stack([plain.patches(x, 4) for x in np.float64(images)])
    want = plain.mae_loss(plain_prediction(params, images, ids), truth, ids[2])
    assert abs(got - want) / want < 1e-5


def test_masked_patches_alone_are_those_of_the_whole_prediction(setting):
    # Bound: float32 rounding; products of other shapes may sum in another order.
    params, images, ids, pred = setting
    masked = np.asarray(mae.masked_ids(*ids[:2]))
    for image, mask in zip(masked, ids[2], strict=True):
        assert set(image) == set(np.flatnonzero(mask))
    model = setting_model()
    apply = jax.jit(functools.partial(model.apply, masked_only=True))
    alone = apply({"params": params}, images, *ids[:2])
    assert alone.shape == (3, 9, 48)
    want = np.asarray(mae.take_patches(jnp.asarray(pred), masked))
    assert tiny.worst(np.asarray(alone), want) < 1e-6
    for flag in (False, True):
        some = mae.patch_targets(jnp.asarray(images), 4, flag, masked)
        whole = mae.patch_targets(jnp.asarray(images), 4, flag)
        np.testing.assert_array_equal(some, mae.take_patches(whole, masked))


def test_norm_pix_standardises_by_the_unbiased_variance():
    # Bound: float32 rounding of values up to 2. Measured 2.4e-7.
    image = np.random.default_rng(4).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    got = np.asarray(mae.patch_targets(jnp.asarray(image), 4, norm_pix_loss=True))[0]
    x = plain.patches(np.float64(image[0]), 4)
    want = (x - x.mean(1, keepdims=True)) / np.sqrt(
        x.var(1, ddof=1, keepdims=True) + 1e-6
    )
    assert np.abs(got - want).max() < 2e-6
    biased = want * np.sqrt(x.var(1, ddof=1) / x.var(1))[:, None]
    assert np.abs(got - biased).max() > 1e-3  # the bound tells them apart
