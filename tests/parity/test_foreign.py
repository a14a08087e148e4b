"""Other people's encoders, converted, against PyTorch with the same weights.

Bounds and precisions are those of test_models.py; `pytest -v` prints what is measured.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax.convert import kinds
from pacx_jax.convert.options import Options
from tests import tiny
from tests.parity import sizes

OPTIONS = Options(num_heads=sizes.FOREIGN["heads"], mean=(0.5,) * 3, std=(0.5,) * 3)
EVA = {"rotary_grid": sizes.EVA_REFERENCE}
# case -> kind and options.
CASES = {
    "dinov2": ("dinov2", {}),
    "dinov2_plain": ("dinov2", {}),
    "eva02": ("eva02", EVA | {"pool": "cls"}),
    "eva02_mean": ("eva02", EVA),
}


def opened(state, name):
    kind, fields = CASES[name]
    options = Options(**(vars(OPTIONS) | fields))
    folder, left = kinds.read(kind, state, options, name)
    return folder, left


@pytest.mark.parametrize("name", CASES)
def test_tokens_equal(case, name, precision, measure):
    # Measured 2.6e-6; float64 5.8e-15.
    found = case(name)
    folder, left = opened(found.part("state"), name)
    assert left == ["mask_token"]
    module = folder.module().clone(dtype=jnp.dtype(precision.name))
    params = precision.cast(folder.params)
    registers = folder.architecture.get("registers", 0)
    pooled = folder.architecture.get("pool") == "mean"

    @jax.jit
    def tokens(params, images):
        return module.apply({"params": params}, images, cls_only=pooled)

    def without_registers(out):
        if pooled:
            return out[:, None]
        return np.concatenate([out[:, :1], out[:, 1 + registers :]], 1)

    for which in ("images", "larger") if "in/larger" in found.arrays else ("images",):
        got = tokens(params, found.input(which))
        want = without_registers(found.out(which))
        measure(f"{name}, {which}", got, want, precision.forward)


def without_key_bias(tree) -> dict:
    """Gradients without those of k's bias, which EVA-02 has not.

    DINOv2's adds the same to all scores of a query: its gradient is rounding alone.
    """
    flat = tiny.flat(tree)
    for name, value in flat.items():
        if name.endswith("qkv/bias"):
            q, _, v = np.split(np.asarray(value), 3)
            flat[name] = np.concatenate([q, v])
    return flat


@pytest.mark.parametrize("name", ["dinov2_plain", "eva02_mean"])
def test_gradients_equal(case, name, precision, measure):
    # Measured 3.0e-6; float64 5.4e-8, the rounding of what is recorded.
    found = case(name)
    folder, _ = opened(found.part("state"), name)
    module = folder.module().clone(dtype=jnp.dtype(precision.name))
    pooled = folder.architecture.get("pool") == "mean"

    @jax.jit
    @jax.grad
    def gradient(params):
        out = module.apply({"params": params}, found.input("images"), cls_only=pooled)
        return (out**3).mean()

    got = gradient(precision.cast(folder.params))
    state = found.part("state")
    there = {k: np.zeros_like(v) for k, v in state.items()} | found.part("grad/loss")
    want, _ = opened(there, name)
    measure(name, *map(without_key_bias, (got, want.params)), precision.gradient, True)


def test_densenet_equals(case, precision, measure):
    # Measured 3.6e-7; float64 7.2e-16.
    found = case("densenet")
    state = found.part("state")
    folder, left = kinds.read("densenet_xrv", state, Options(), "densenet")
    counters = [k for k in state if k.endswith("num_batches_tracked")]
    assert {*left} == {*counters, "classifier.weight", "classifier.bias"}
    module = folder.module().clone(dtype=jnp.dtype(precision.name))
    got = jax.jit(module.apply)(
        {"params": precision.cast(folder.params)}, found.input("images")
    )
    measure("cells and their mean", got, found.out("images"), precision.forward)
