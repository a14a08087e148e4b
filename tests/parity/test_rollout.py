"""Attention and its rollout against PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np

from pacx_jax.evaluate import rollout
from pacx_jax.models import vit
from tests.parity import sizes


def attentions_of(c) -> list:
    s = sizes.ROLLOUT
    dtype = jnp.dtype(c.precision.name)
    model = vit.ViT(s["patch"], s["d"], s["depth"], s["heads"], dtype=dtype)
    _, state = jax.jit(
        lambda p, x: model.apply({"params": p}, x, mutable=["intermediates"])
    )(c.params("encoder"), c.input("images"))
    blocks = state["intermediates"]
    return [
        np.asarray(blocks[f"block_{i:02d}"]["attn"]["attention"][0])
        for i in range(s["depth"])
    ]


def test_attention_of_every_block_equals(case, precision, measure):
    c = case("rollout")
    for i, got in enumerate(attentions_of(c)):
        measure(f"attention {i}", got, c.out(f"attention_{i}"), precision.forward)


def test_rollout_of_the_same_attention_equals(case, precision, measure):
    c = case("rollout")
    given = [c.out(f"attention_{i}") for i in range(sizes.ROLLOUT["depth"])]
    got = rollout.rollout_maps(given, sizes.ROLLOUT_SIZE)
    measure("rollout", got, c.out("map"), precision.forward)


def test_rollout_from_images_to_maps_equals(case, precision, measure):
    c = case("rollout")
    got = rollout.rollout_maps(attentions_of(c), sizes.ROLLOUT_SIZE)
    measure("rollout from images", got, c.out("map"), precision.forward)
