"""Train steps on meshes of data, fsdp and tensor axes against one device."""

import collections
import re

import jax
import jax.numpy as jnp
import pytest

from pacx_jax import losses, sharding
from tests import stages, tiny

# (devices, fsdp, tensor)
MESHES = ((8, 4, 1), (8, 2, 2), (8, 1, 2))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def configs(folders):
    """Stage -> config, and the probe with a trained encoder: "full"."""
    every = {stage: stages.config(stage, folders) for stage in stages.STAGES}
    return every | {"full": stages.config("classify", folders, tuning="full")}


@pytest.fixture(scope="module")
def one_device(configs, meshes):
    """Stage -> its step on one device, in float64."""
    found = {}

    def run(stage):
        if stage not in found:
            found[stage] = stages.one_step(configs[stage], meshes[1], "float64")
        return found[stage]

    return run


@pytest.fixture(autouse=True)
def float64():
    with jax.enable_x64(True):
        yield


CHEAP = [("mae", (8, 2, 2)), ("distill", (8, 2, 2)), ("ecg", (8, 4, 1)),
         ("labs_dae", (8, 4, 1))]  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "mesh"),
    CHEAP
    + [
        pytest.param(stage, mesh, marks=pytest.mark.full)
        for stage in (*stages.STAGES, "full")
        for mesh in MESHES
        if (stage, mesh) not in CHEAP
    ],
)
def test_step_on_a_mesh_equals_one_device(stage, mesh, configs, one_device):
    on = sharding.make_mesh(*mesh)
    got = stages.one_step(configs[stage], on, "float64")
    value, gradient = stages.differences(got, one_device(stage))
    print(f"{stage} {mesh}: metrics {value:.1e}, gradients {gradient:.1e}")
    assert value < 1e-12 and gradient < 1e-12
    # What comes out lies as the rules say, so that nothing moves before the next step.
    state = got[2]
    stated = sharding.tree_shardings(state, on)
    jax.tree.map(lambda x, s: pytest.fail(f"{x.sharding}") if x.sharding != s else 0,
                 state, stated)  # fmt: skip


def collectives(compiled) -> collections.Counter:
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    return collections.Counter(
        re.findall(rf" ({kinds})(?:-start)?\(", compiled.as_text())
    )


def test_data_parallel_mae_needs_no_collective_but_the_reduction(configs, meshes):
    update, args = stages.jitted(configs["mae"], meshes[8], "float64")
    found = collectives(update.lower(*args).compile())
    assert set(found) == {"all-reduce"}


def test_logits_do_not_exist_as_a_whole_where_they_are_chunked(meshes):
    # 64 rows on 2 devices: 32 x 64 logits each; in chunks of 8 columns 32 x 8.
    def loss(za, zb, chunk):
        return losses.info_nce(za, zb, jnp.float64(9.0), label_smoothing=0.1,
                               mesh=meshes[2], chunk=chunk)  # fmt: skip

    rows = sharding.batch_sharding(meshes[2])
    z = jax.ShapeDtypeStruct((64, 16), jnp.float64, sharding=rows)
    texts = {}
    for chunk in (0, 8):
        grad = jax.jit(jax.grad(loss, (0, 1)), static_argnums=2)
        texts[chunk] = grad.lower(z, z, chunk).compile().as_text()
    assert "f64[32,64]" in texts[0]
    assert "f64[32,64]" not in texts[8] and "f64[64,32]" not in texts[8]
    assert "f64[32,8]" in texts[8]
