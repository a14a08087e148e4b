"""Stage 2 against PyTorch: adapters, heads, losses, and the whole objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import lora, losses, sharding, step
from pacx_jax.models import vit
from pacx_jax.models.heads import Head
from tests.parity import cases_stage_two, sizes
from tests.parity.comparing import FLOAT32, PRECISIONS


def encoder_of(precision) -> vit.ViT:
    s = sizes.PACX
    dtype = jnp.dtype(precision.name)
    return vit.ViT(s["patch"], s["d"], s["depth"], s["heads"], s["eps"], dtype)


def normalized(c):
    """As the case's: float32 arithmetic, whatever the precision of the model."""
    return c.precision.cast(cases_stage_two.normalized(c.input("images")))


def test_lora_forward_equals_pefts(case, precision, measure):
    # Measured 2.5e-6; float64 3.1e-15.
    c = case("pacx")
    params = c.params("pacx")

    def run(params):
        with lora.applied(params["lora"], alpha=sizes.PACX_ALPHA):
            images = normalized(c)
            return encoder_of(precision).apply({"params": params["encoder"]}, images)

    got = jax.jit(run)(params)[:, 0]
    measure("LoRA forward", got, c.out("z"), precision.forward)


def test_lora_merge_equals_pefts(case, precision, measure):
    # Measured: weights 0, forward 2.3e-6; float64 2.9e-15.
    c = case("pacx")
    params = c.params("pacx")
    merged = lora.merge(params["encoder"], params["lora"], sizes.PACX_ALPHA)
    kernel = merged["block_01"]["attn"]["qkv"]["kernel"]
    measure("LoRA merged qkv", kernel, c.out("qkv_merged").T, precision.forward)
    got = jax.jit(encoder_of(precision).apply)({"params": merged}, normalized(c))
    measure("LoRA merged", got[:, 0], c.out("z_merged"), precision.forward)


def batch_of(c) -> dict[str, np.ndarray]:
    rows = {f"{m}_embedding": c.input(m) for m in ("ecg", "labs")}
    return rows | {"image": c.input("images")}


@FLOAT32
def test_stage_two_loss_its_parts_and_all_gradients_equal(
    case, precision, measure, stage_two, meshes
):
    # Measured: loss 7.2e-7, its parts 1.2e-6, gradients 1.2e-5.
    c, objective = case("pacx"), stage_two(meshes[4])
    params = c.params("pacx")
    trained, frozen = step.split_params(params, objective.trainable)
    batch = sharding.put_batch(batch_of(c), meshes[4])

    def run(trained):
        whole = step.merge_params(trained, frozen)
        return objective.loss(whole, batch, jax.random.key(0), train=False)

    (loss, parts), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(trained)
    measure("Stage 2 loss", loss, c.out("loss"), precision.forward)
    for m in ("ecg", "labs"):
        for name in (f"clip_{m}", f"regression_{m}"):
            measure(name, parts[name], c.out(name), precision.forward)
    # The names agree too: what is trained is what PyTorch has gradients of (D2).
    want = c.gradients("pacx", "loss")
    measure("Stage 2 gradients", grads, want, precision.gradient, relative=True)


@FLOAT32
def test_outputs_of_the_five_heads_equal(case, precision, measure):
    # Measured 4.8e-7.
    c = case("pacx")
    params = c.params("pacx")["heads"]
    inputs = {"cxr": c.out("z"), "ecg": c.input("ecg"), "labs": c.input("labs")}

    def run(params):
        out = {}
        for name, weights in params.items():
            head = Head(weights["linear"]["bias"].size)
            x = inputs[name.split("_")[0]]
            out[name] = head.apply({"params": weights}, x, train=False)
        return out

    got = jax.jit(run)(params)
    want = {name: c.out(name) for name in got}
    assert len(want) == 5
    measure("heads", got, want, precision.forward)


@pytest.mark.parametrize(
    ("precision", "devices"),
    [(PRECISIONS[0], 1), (PRECISIONS[0], 8), (PRECISIONS[1], 8)],
    ids=["float32-1", "float32-8", "float64-8"],
    indirect=["precision"],
)
@pytest.mark.parametrize("smoothing", [0.0, 0.02])
@pytest.mark.parametrize("scale", sizes.SCALES)
def test_info_nce_and_gradients_equal(
    case, precision, measure, meshes, scale, smoothing, devices
):
    # "above" and "below" start outside of the clamp: no gradient of the scale.
    # Measured: loss 7.2e-7, gradients 1.2e-5 (of the scale).
    c = case("info_nce")
    inputs = {k: c.input(k) for k in ("za", "zb")}
    inputs["logit_scale"] = precision.cast(np.asarray(sizes.SCALES[scale], np.float32))

    def run(x):
        factor = losses.temperature_scale(x["logit_scale"])
        return losses.info_nce(
            x["za"],
            {"b": x["zb"]},
            factor,
            label_smoothing=smoothing,
            mesh=meshes[devices],
        )["b"]

    name = f"{scale}_{smoothing}"
    loss, grads = jax.jit(jax.value_and_grad(run))(inputs)
    measure("InfoNCE", loss, c.out(name), precision.forward)
    want = c.part(f"grad/{name}")
    assert (want["logit_scale"] == 0) == (scale != "start")
    measure("InfoNCE gradients", grads, want, precision.gradient, relative=True)


def test_cosine_regression_and_gradient_equal(case, precision, measure):
    # One row is shorter than eps, one target is zero. Below eps, cosine_similarity
    # clamps the norm behind autograd's back; ours has the gradient of F.normalize.
    # Measured: value 0, gradients 8.5e-8.
    c = case("cosine_regression")
    run = jax.value_and_grad(losses.cosine_regression)
    loss, grad = jax.jit(run)(c.input("pred"), c.input("target"))
    short = np.linalg.norm(c.input("pred"), axis=-1) < 1e-6
    assert short.sum() == 1
    for name, rows in (("cosine_similarity", ~short), ("normalize", short | True)):
        measure(name, loss, c.out(name), precision.forward)
        want = c.part(f"grad/{name}")["pred"]
        for i in np.flatnonzero(rows):  # the short row's is a million times the others'
            measure(f"gradient of row {i}", grad[i], want[i], precision.gradient, True)


def test_no_gradient_flows_into_the_target_of_the_regression(case):
    c = case("cosine_regression")
    assert set(c.part("grad/cosine_similarity")) == {"pred"}
    run = jax.grad(losses.cosine_regression, argnums=1)
    assert not np.asarray(run(c.input("pred"), c.input("target"))).any()
