"""Attention rollout against a direct computation."""

import numpy as np
import pytest

from pacx_jax.evaluate import rollout


def _attention(layers=3, b=2, heads=4, n=10):
    rng = np.random.default_rng(0)
    return [rng.dirichlet(np.ones(n), size=(b, heads, n)) for _ in range(layers)]


def _product(attentions, i):
    """The rollout of image i, of all tokens to all."""
    n = attentions[0].shape[-1]
    product = np.eye(n)
    for attention in attentions:
        mixed = np.zeros((n, n))
        for head in attention[i]:
            mixed += head / 4
        mixed += np.eye(n)
        for row in mixed:
            row /= row.sum()
        product = mixed @ product
    return product


def test_rollout_equals_the_product_of_matrices():
    attentions = _attention()
    for i in range(2):
        expected = _product(attentions, i)[0, 1:].reshape(3, 3)
        np.testing.assert_allclose(rollout.attention_rollout(attentions)[i], expected)


def test_registers_take_part_and_are_left_out():
    attentions = _attention(n=12)
    for i in range(2):
        product = _product(attentions, i)
        got = rollout.attention_rollout(attentions, registers=2)[i]
        np.testing.assert_allclose(got, product[0, 3:].reshape(3, 3))
        got = rollout.attention_rollout(attentions, registers=2, pool="mean")[i]
        np.testing.assert_allclose(got, product[3:, 3:].mean(0).reshape(3, 3))
    with pytest.raises(ValueError, match="10 patch tokens"):
        rollout.attention_rollout(attentions, registers=1)


def test_rollout_of_a_cls_that_looks_at_one_patch_finds_it():
    attention = np.broadcast_to(np.eye(10), (1, 2, 10, 10)).copy()
    attention[:, :, 0] = np.eye(10)[6]  # CLS looks at patch 5: row 1, column 2
    maps = rollout.rollout_maps([attention], size=12)
    assert np.unravel_index(maps[0].argmax(), (12, 12))[0] in range(4, 8)
    assert np.unravel_index(maps[0].argmax(), (12, 12))[1] in range(8, 12)
    assert maps.min() == 0 and maps.max() == 1


def test_upsampling_keeps_constants_and_means():
    np.testing.assert_allclose(rollout.upsample(np.full((1, 3, 3), 2.0), 7), 2.0)
    maps = np.random.default_rng(0).random((2, 6, 6))
    assert rollout.upsample(maps, 48).shape == (2, 48, 48)
    np.testing.assert_allclose(rollout.upsample(maps, 6), maps)


def test_a_constant_map_scales_to_zero_and_maps_subtract():
    assert np.all(rollout.minmax(np.ones((1, 4, 4))) == 0)
    gap = rollout.difference_map(np.zeros((1, 2, 2)), np.ones((1, 2, 2)))
    assert np.all(gap == 1)


def test_tokens_that_form_no_square_are_refused():
    with pytest.raises(ValueError, match="11 patch tokens"):
        rollout.attention_rollout(_attention(n=12))
