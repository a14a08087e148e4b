"""Train steps on meshes, in parts, and with blocks computed again, against one device.

The step on one device takes the whole batch and keeps all activations.
"""

import re

import jax
import jax.numpy as jnp
import pytest

from pacx_jax import losses, sharding
from tests import stages

FULL = pytest.mark.full
# stage, (devices, fsdp, tensor), fields of its config
CASES = [
    # LoRA's and the heads' dropout are on: each row's is its own in every part.
    (
        "distill",
        (8, 2, 2),
        {"encoder_chunks": 2, "loss__chunk": 8, "remat": "full"},
    ),
    ("labs_dae", (8, 4, 1), {"accumulate": 2}),
]
LONG = [
    ("vq", (8, 2, 2), {"accumulate": 2, "remat": "full"}),
    ("mae", (8, 2, 2), {"accumulate": 2, "remat": "dots"}),
    ("mvmae", (8, 2, 2), {"accumulate": 2, "loss__beta_schedule": "constant"}),
    *((stage, mesh, {}) for stage in ("mae", "distill") for mesh in
      ((8, 1, 1), (8, 4, 1), (8, 2, 2), (8, 1, 2))),
    *((stage, mesh, {}) for stage in ("labs_dae", "classify", "segment")
      for mesh in ((8, 4, 1), (8, 2, 2))),
    *((stage, mesh, {"loss__beta_schedule": "constant"}) for stage in ("mvmae", "v2t")
      for mesh in ((8, 1, 1), (8, 4, 1), (8, 2, 2), (8, 1, 2))),
    ("v2t", (8, 2, 2), {"remat": "full", "caption__per_step": "all"}),
    ("mvmae", (8, 1, 1), {"loss__align": "infonce", "loss__beta_schedule": "constant"}),
    *(("masked", mesh, {}) for mesh in ((8, 1, 1), (8, 4, 1), (8, 1, 2))),
    ("masked", (8, 2, 2), {"remat": "dots"}),
    ("causal", (8, 2, 2), {"model__tied": True, "model__positions": "learned"}),
    ("ecg", (8, 4, 1), {}),
    ("ecg", (8, 1, 1), {}),
    ("ecg", (8, 2, 2), {}),
    ("ecg", (8, 1, 2), {}),
    ("ecg", (8, 1, 4), {"accumulate": 2}),
    ("classify", (8, 2, 2), {"tuning": "full"}),
    ("mae", (1, 1, 1), {"accumulate": 4}),
    ("mae", (2, 1, 1), {"remat": "full"}),
    ("mae", (8, 1, 1), {"accumulate": 2}),
    ("ecg", (2, 1, 1), {"accumulate": 4}),
    ("classify", (2, 1, 1), {"accumulate": 4}),
    ("classify", (2, 1, 1), {"tuning": "full", "task": "multiclass",
                             "accumulate": 4, "remat": "dots"}),
    ("distill", (1, 1, 1), {"encoder_chunks": 8}),
    ("distill", (8, 1, 1), {"encoder_chunks": 2}),
    ("distill", (4, 2, 1), {"loss__chunk": 4}),
    ("distill", (2, 1, 1), {"remat": "dots"}),
]  # fmt: skip
PARTS = ("accumulate", "encoder_chunks", "loss__chunk", "remat")


@pytest.mark.parametrize(
    ("stage", "mesh", "fields"), CASES + [pytest.param(*c, marks=FULL) for c in LONG]
)
def test_step_equals_that_of_one_device(stage, mesh, fields, whole, stage_folders):
    # Bounds 1e-12. Measured 3.3e-16 (metrics) and 1.9e-15 (gradients, by leaf norm).
    config = stages.config(stage, stage_folders, **fields)
    on = sharding.make_mesh(*mesh)
    with jax.enable_x64(True):
        got = stages.one_step(config, on, "float64")
    model = {k: v for k, v in fields.items() if k not in PARTS}
    metrics, gradients = stages.differences(got, whole(stage, **model))
    print(f"{stage} {mesh} {fields}: {metrics:.1e}, gradients {gradients:.1e}")
    assert metrics < 1e-12 and gradients < 1e-12
    # What comes out lies as the rules say: nothing moves before the next step.
    state = got[2]
    stated = jax.tree.leaves(sharding.tree_shardings(state, on))
    assert [leaf.sharding for leaf in jax.tree.leaves(state)] == stated


def test_bfloat16_products_have_losses_and_gradients_in_float32(
    whole, stage_folders, meshes
):
    # bfloat16 has 8 bits, 0.4% a product. Bounds 1% (metrics) and 5% (gradients).
    # Measured 0.15% and 1.4%.
    for stage in ("mae", "distill", "masked"):
        config = stages.config(stage, stage_folders)
        update, args = stages.jitted(config, meshes[1], "bfloat16")
        state, metrics = jax.eval_shape(update, *args)
        kept = [*metrics.values(), *jax.tree.leaves(state.opt_state[0])]
        assert {str(x.dtype) for x in kept} == {"float32"}
    half = stages.one_step(stages.config("mae", stage_folders), meshes[1], "bfloat16")
    metrics, gradients = stages.differences(half, whole("mae"))
    print(f"bfloat16: {metrics:.1e}, gradients {gradients:.1e}")
    assert metrics < 0.01 and gradients < 0.05


@pytest.mark.full
def test_data_parallel_mae_needs_no_collective_but_the_reduction(stage_folders, meshes):
    config = stages.config("mae", stage_folders)
    update, args = stages.jitted(config, meshes[8])
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    text = update.lower(*args).compile().as_text()
    assert set(re.findall(rf" ({kinds})(?:-start)?\(", text)) == {"all-reduce"}


def test_logits_do_not_exist_as_a_whole_where_they_are_chunked(meshes):
    # 64 rows on 2 devices: 32 x 64 logits each; in chunks of 8 columns 32 x 8.
    def loss(za, zb, chunk):
        scale = jnp.float32(9)
        return losses.info_nce(
            za, {"b": zb}, scale, label_smoothing=0.1, mesh=meshes[2], chunk=chunk
        )["b"]

    rows = sharding.batch_sharding(meshes[2])
    z = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows)
    texts = {}
    for chunk in (0, 8):
        grad = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
        texts[chunk] = grad.lower(z, z, chunk).compile().as_text()
    assert "f32[32,64]" in texts[0]
    assert "f32[32,64]" not in texts[8] and "f32[64,32]" not in texts[8]
    assert "f32[32,8]" in texts[8]
