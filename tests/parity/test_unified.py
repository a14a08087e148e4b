"""CheXmix's transformer and its loss against PyTorch with the same weights.

Bounds and precisions are those of test_models.py; `pytest -v` prints what is measured.
"""

import jax
import jax.numpy as jnp
import pytest

from pacx_jax.models import text_loss, unified
from tests.parity import sizes


@pytest.mark.parametrize("name", ["unified", "unified_learned"])
def test_logits_layers_loss_and_gradients_equal(case, precision, measure, name):
    c, s = case(name), sizes.UNIFIED
    words = unified.Words(sizes.UNIFIED_TEXT, sizes.UNIFIED_CODES)
    assert words.size == s["vocab"]
    model = unified.Transformer(
        words.size, sizes.UNIFIED_LENGTH, s["d"], s["depth"], s["heads"],
        positions="rotary" if name == "unified" else "learned",
        tied=name == "unified_learned", dtype=jnp.dtype(precision.name),
    )  # fmt: skip
    tokens, weights = c.input("tokens"), jnp.array(sizes.UNIFIED_WEIGHTS)

    def run(params):
        of = {"params": params}
        hidden = model.apply(of, tokens, method="hidden")
        kernel = unified.output_kernel(params, model.tied)
        kinds = words.kinds(tokens[:, 1:])
        valid = jnp.stack([kinds == unified.IMAGE, kinds == unified.TEXT], -1)
        total, count = text_loss.chunked_cross_entropy(
            hidden[:, :-1], kernel, tokens[:, 1:], valid, chunk=7, dtype=precision.name
        )
        layers = model.apply(of, tokens, (0, s["depth"]), method="mean_layers")
        loss = (weights * total).sum() / (weights * count).sum()
        return loss, (model.apply(of, tokens), layers)

    params = c.params("unified")
    value = jax.jit(jax.value_and_grad(run, has_aux=True))
    (loss, (logits, layers)), grads = value(params)
    measure(f"{name} logits", logits, c.out("logits"), precision.forward)
    measure(f"{name} layers", layers, c.out("layers"), precision.forward)
    measure(f"{name} loss", loss, c.out("loss"), precision.forward)
    want = c.gradients("unified", "loss")
    measure(f"{name} gradients", grads, want, precision.gradient, relative=True)
