"""Learning-rate schedule, weight decay, clipping, and one step of AdamW by hand."""

import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import pytest

from configs import base
from pacx_jax import optim
from pacx_jax.errors import PacxError
from tests import tiny


def settings(**fields) -> ml_collections.ConfigDict:
    c = base.get_config().optim
    c.update(fields)
    return c


def rates(c, total, steps):
    lr = optim.schedule(c, total)
    return [float(lr(s)) for s in steps]


def test_rate_per_step_follows_the_formula():
    c = settings(peak_lr=2.0, warmup_steps=10)
    steps = [0, 4, 9, 10, 55, 99, 100, 500]
    cosine = [1 + math.cos(math.pi * (s - 10) / 90) for s in (10, 55, 99)]
    want = [0.2, 1.0, 2.0, *cosine, 0.0, 0.0]
    np.testing.assert_allclose(rates(c, 100, steps), want, atol=2e-7)


def test_rate_per_epoch_follows_the_references_formula():
    # (e + 1) / 5 for e < 5, then max(0.01, cosine): Stage 2's published rule.
    c = tiny.config("distill_vitb16", "reference")
    assert (c.optim.steps_per_epoch, c.optim.warmup_steps) == (78, 390)
    for epoch in (0, 3, 4, 5, 6, 27, 48, 49):
        want = (epoch + 1) / 5
        if epoch >= 5:
            want = max(0.01, 0.5 * (1 + math.cos(math.pi * (epoch - 5) / 45)))
        steps = [78 * epoch, 78 * epoch + 40, 78 * epoch + 77]
        got = rates(c.optim, c.total_steps, steps)
        np.testing.assert_allclose(got, 1e-4 * want, rtol=1e-5, err_msg=str(epoch))


def test_rate_of_the_mae_reference_preset_follows_its_epochs():
    # (e + 1) / 10 for e < 10, then the cosine to 400 epochs: the MAE's. The rate
    # is float32: bound 2e-7 of its peak. Measured 6.9e-8.
    c = tiny.config("mae_vitb16", "reference")
    unit = c.optim.steps_per_epoch
    for epoch in (0, 8, 9, 10, 11, 200, 399):
        want = (epoch + 1) / 10
        if epoch >= 10:
            want = 0.5 * (1 + math.cos(math.pi * (epoch - 10) / 390))
        steps = [unit * epoch, unit * epoch + unit - 1]
        assert steps[-1] < c.total_steps
        got = rates(c.optim, c.total_steps, steps)
        error = np.abs(np.array(got) - 1.5e-4 * want).max() / 1.5e-4
        assert error < 2e-7, epoch


def test_rate_of_the_labs_starts_at_zero():
    # LambdaLR: step / 200, then the cosine to 1950 steps: the labs autoencoder's.
    c = tiny.config("labs_dae")
    assert c.total_steps == 1950
    want = [0, 3e-4 / 2, 3e-4 * 199 / 200, 3e-4]
    want.append(3e-4 * 0.5 * (1 + math.cos(math.pi * 800 / 1750)))
    got = rates(c.optim, c.total_steps, [0, 100, 199, 200, 1000])
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-12)


def test_warm_up_longer_than_the_run_is_said_loudly_and_stays_a_warm_up(caplog):
    rate = optim.schedule(settings(warmup_steps=100), 2)
    assert "never reaches its peak" in caplog.text
    assert float(rate(1)) == pytest.approx(settings().peak_lr * 2 / 100)


def tree():
    rng = np.random.default_rng(0)
    shapes = {
        "encoder": {"kernel": (4, 3), "bias": (3,), "cls_token": (1, 1, 3)},
        "logit_scale": (),
    }
    draw = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return tuple(
        jax.tree.map(draw, shapes, is_leaf=lambda x: isinstance(x, tuple))
        for _ in range(3)
    )


def plain_adamw(params, grads, c, lr, decayed):
    """Two steps of decoupled AdamW, float64, from the paper's formulas."""
    p = np.float64(params)
    m = v = 0.0
    for t, g in enumerate(map(np.float64, grads), start=1):
        m = c.b1 * m + (1 - c.b1) * g
        v = c.b2 * v + (1 - c.b2) * g**2
        update = m / (1 - c.b1**t) / (np.sqrt(v / (1 - c.b2**t)) + c.eps)
        p = p - lr(t - 1) * (update + c.weight_decay * decayed * p)
    return p


def two_steps(c, params, grads):
    tx = optim.make(c, 100)
    state = tx.init(params)
    for g in grads:
        updates, state = tx.update(g, state, params)
        params = optax.apply_updates(params, updates)
    return tiny.flat(params)


@pytest.mark.parametrize("decay", ["kernels", "all"])
def test_two_steps_equal_adamw_by_hand(decay):
    # Bound 1e-6. Measured 1.2e-7.
    c = settings(peak_lr=0.1, b2=0.95, weight_decay=0.3, warmup_steps=5, decay=decay)
    params, *grads = tree()
    got = two_steps(c, params, grads)
    for name, p in tiny.flat(params).items():
        decayed = decay == "all" or name.endswith(("kernel", "cls_token"))
        g = [tiny.flat(x)[name] for x in grads]
        lr = lambda t: 0.1 * (t + 1) / 5  # noqa: E731
        np.testing.assert_allclose(
            got[name], plain_adamw(p, g, c, lr, decayed), rtol=1e-6, atol=1e-6
        )


def test_decay_spares_biases_norms_and_scalars_but_not_tokens():
    mask = tiny.flat(optim.decay_mask(tree()[0]))
    assert {k for k, v in mask.items() if v} == {"encoder/kernel", "encoder/cls_token"}


def test_clipping_scales_all_gradients_by_their_global_norm():
    # AdamW divides the scale away, but its eps does not: seen with a large eps.
    params, grads, _ = tree()
    norm = math.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(grads)))
    c = settings(peak_lr=0.1, eps=1e3, clip_norm=norm / 4)
    scaled = jax.tree.map(lambda g: g / 4, grads)
    clipped = two_steps(c, params, [grads])
    free = settings(peak_lr=0.1, eps=1e3)
    for name, want in two_steps(free, params, [scaled]).items():
        np.testing.assert_allclose(clipped[name], want, rtol=1e-6)
    larger = two_steps(free, params, [grads])
    assert not np.array_equal(larger["encoder/kernel"], clipped["encoder/kernel"])
    below = settings(peak_lr=0.1, eps=1e3, clip_norm=norm * 2)
    for name, want in larger.items():
        np.testing.assert_array_equal(two_steps(below, params, [grads])[name], want)


def test_encoder_may_have_a_slower_rate():
    params, grads, _ = tree()
    full = two_steps(settings(peak_lr=0.1), params, [grads])
    slow = two_steps(settings(peak_lr=0.1, encoder_lr_ratio=0.1), params, [grads])
    start = tiny.flat(params)
    for name in start:
        ratio = 0.1 if name.startswith("encoder") else 1.0
        np.testing.assert_allclose(
            slow[name] - start[name], ratio * (full[name] - start[name]), atol=1e-6
        )


def test_layer_decay_multiplies_the_updates_of_each_layer():
    params = {
        "encoder": {
            "patch_embed": {"kernel": jnp.zeros((2, 2))},
            "cls_token": jnp.zeros((1, 1, 2)),
            "block_00": {"mlp": {"fc1": {"kernel": jnp.zeros((2, 2))}}},
            "block_01": {"norm1": {"scale": jnp.zeros(2)}},
            "norm": {"scale": jnp.zeros(2)},
        },
        "head": {"linear": {"kernel": jnp.zeros((2, 1))}},
    }
    grads = jax.tree.map(lambda p: jnp.full_like(p, 0.5), params)
    moved = {}
    for decay in (1.0, 0.5):
        c = settings(peak_lr=0.1, layer_decay=decay)
        moved[decay] = two_steps(c, params, [grads])
    power = {"patch_embed": 3, "cls_token": 3, "block_00": 2, "block_01": 1}
    for name, full in moved[1.0].items():
        want = 0.5 ** power.get(name.split("/")[1], 0)
        np.testing.assert_allclose(moved[0.5][name], want * full, rtol=1e-6)


def test_layer_decay_of_1_leaves_the_optimizer_as_it_was():
    params, *grads = tree()
    c = settings(peak_lr=0.1)
    without = settings(peak_lr=0.1)
    del without["layer_decay"]  # an older workdir's
    for name, want in two_steps(without, params, grads).items():
        np.testing.assert_array_equal(two_steps(c, params, grads)[name], want)


def test_layer_decay_that_can_do_nothing_is_an_error():
    with pytest.raises(PacxError, match="layer_decay is 1.5: give above 0"):
        optim.make(settings(layer_decay=1.5), 100)
    tx = optim.make(settings(layer_decay=0.65), 100)
    with pytest.raises(PacxError, match="no block of an encoder is trained"):
        tx.init({"head": {"kernel": jnp.ones((2, 2))}})


def test_unknown_decay_is_an_error():
    with pytest.raises(PacxError, match="config.optim.decay 'some': choose kernels or"):
        optim.make(settings(decay="some"), 100)


def test_peak_rate_scales_with_the_batch_only_where_a_base_is_given():
    c = tiny.config("mae_vitb16", global_batch_size=1024)
    assert optim.settings(c) is c.optim
    c.optim.base_batch_size = 256
    assert optim.settings(c).peak_lr == pytest.approx(4 * c.optim.peak_lr)
    assert optim.settings(c).weight_decay == c.optim.weight_decay
    c.optim.base_batch_size = -1
    with pytest.raises(PacxError, match="base_batch_size -1"):
        optim.settings(c)
