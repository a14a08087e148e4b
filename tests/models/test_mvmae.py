"""MVMAE's parts of the ViT and the MAE: qk-norm, positions, views, grey images."""

import functools

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from pacx_jax import sharding
from pacx_jax.errors import PacxError
from pacx_jax.models import attention, embeddings, mae, positions, transformer, vit
from tests import tiny

GRID, SIZE, PATCH = (4, 4), 16, 4
OURS = {"qk_norm": True, "views": 3, "final_ln_eps": 1e-5, "posemb_grid": GRID}


def model_of(dtype=jnp.float32, depth=1):
    ours = {"dtype": dtype} | OURS
    encoder = vit.ViT(PATCH, 16, depth, 2, channels=1, posemb_cls=False, **ours)
    return mae.MAE(encoder, mae.Decoder(PATCH**2, 16, 1, 2, project=False, **ours))


def batch_of(b=8, seed=0):
    """Grey images, their views, and masks of 4 kept patches."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(b, SIZE, SIZE, 1)).astype(np.float32)
    view = rng.integers(0, 3, b).astype(np.int32)
    keep, restore, _ = mae.random_masking(jax.random.key(seed), np.arange(b), 16, 0.75)
    return images, view, np.asarray(keep), np.asarray(restore)


def params_of(model, seed=0):
    images, _, *ids = batch_of(1)
    return tiny.random_params(model, images, *ids, seed=seed)


@pytest.fixture(scope="module")
def setting():
    """A model with random weights, a batch, and its compiled prediction."""
    model = model_of()
    apply = jax.jit(lambda p, x, v, k, r: model.apply({"params": p}, x, k, r, view=v))
    return model, params_of(model), batch_of(), apply


def test_parameters_are_those_of_mvmae():
    shapes = {k: v.shape for k, v in tiny.flat(params_of(model_of())).items()}
    assert shapes["encoder/pos_embed"] == (1, 16, 16)  # CLS has none
    assert shapes["decoder/pos_embed"] == (1, 17, 16)
    assert shapes["encoder/view_embed"] == shapes["decoder/view_embed"] == (3, 16)
    assert shapes["encoder/block_00/attn/q_norm/scale"] == (8,)  # of a head
    assert shapes["encoder/patch_embed/kernel"] == (16, 16)  # of one channel
    assert not [k for k in shapes if k.startswith("decoder/embed")]


def test_images_permuted_with_views_and_masks_permute_the_prediction(setting):
    # Another place in the batch is another row of one product. Measured 0.
    _, params, batch, apply = setting
    order = np.random.default_rng(1).permutation(8)
    want = np.asarray(apply(params, *batch))[order]
    got = apply(params, *(x[order] for x in batch))
    assert tiny.worst(got, want) < 1e-6


def test_prediction_depends_on_the_view_of_its_own_image_alone(setting):
    _, params, (images, view, *ids), apply = setting
    other = view.copy()
    other[3] = (view[3] + 1) % 3
    differs = apply(params, images, view, *ids) - apply(params, images, other, *ids)
    assert np.flatnonzero(np.abs(differs).max((1, 2)) > 1e-4).tolist() == [3]


def test_encoder_adds_a_views_embedding_to_every_patch_before_masking(setting):
    # As if it were in the patch embedding's bias. Bound 1e-5. Measured 4.6e-7.
    model, params, (images, _, keep, _), _ = setting
    params = params["encoder"]
    ours = jax.jit(model.encoder.apply)
    plain = jax.jit(model.encoder.clone(views=0).apply)
    for ids in (None, keep):
        got = ours({"params": params}, images, ids, view=np.full(8, 2))
        bias = params["patch_embed"]["bias"] + params["view_embed"][2]
        other = params | {"patch_embed": params["patch_embed"] | {"bias": bias}}
        del other["view_embed"]
        want = plain({"params": other}, images, ids)
        assert tiny.worst(got, want) < 1e-5


def test_cls_token_has_no_view_in_the_encoder_and_one_in_the_decoder():
    images, view, keep, restore = batch_of()
    model = model_of(depth=0)
    params = params_of(model)
    embed = jax.jit(model.encoder.apply)
    tokens = [
        embed({"params": params["encoder"]}, images, view=np.full(8, v)) for v in (0, 1)
    ]
    np.testing.assert_array_equal(tokens[0][:, 0], tokens[1][:, 0])
    assert np.abs(tokens[0][:, 1:] - tokens[1][:, 1:]).min(1).max() > 1e-3
    # All tokens of a decoder carry one bias more, as of its positions.
    tokens = tokens[0][:, :5]
    p = params["decoder"]
    moved = p | {"pos_embed": p["pos_embed"] + p["view_embed"][1]}
    del moved["view_embed"]

    def decode(model, params, **view):
        run = lambda p, x: model.apply({"params": p}, x, restore, GRID, **view)  # noqa: E731
        return jax.jit(run)(params, tokens)

    got = decode(model.decoder, p, view=np.full(8, 1))
    want = decode(model.decoder.clone(views=0), moved)
    assert tiny.worst(got, want) < 1e-5


def test_no_views_are_frontal_views_and_numbers_beyond_give_nan(setting):
    model, params, (images, *_), _ = setting
    apply = jax.jit(model.encoder.apply)
    run = functools.partial(apply, {"params": params["encoder"]}, images)
    for frontal in (np.zeros(8, np.int32), np.zeros(1, np.int32)):
        np.testing.assert_array_equal(run(), run(view=frontal))
    lost = np.isnan(run(view=np.array([0, 3, 1, 2, -1, 0, 0, 0]))).all((1, 2))
    assert lost.tolist() == [False, True, False, False, True, False, False, False]


def ways_of(monkeypatch):
    """Every way that a CPU has, each with the tokens it returns."""

    def run(way, qkv):
        net = transformer.Attention(3, qkv.dtype, qk_norm=True)
        params = tiny.random_params(net, qkv[:1], seed=3)

        def of(qkv):
            if way == "probabilities":
                return net.apply({"params": params}, qkv, mutable="intermediates")[0]
            return net.clone(attention=way).apply({"params": params}, qkv)

        return jax.jit(jax.value_and_grad(lambda x: (of(x) ** 3).sum()))(qkv)

    yield "xla", lambda x: run("xla", x)
    yield "probabilities", lambda x: run("probabilities", x)

    def by_image(x):
        with monkeypatch.context() as m, sharding.tracing(sharding.make_mesh(1)):
            m.setattr(attention, "LARGE_SCORES", 0)
            m.setattr(attention, "as_written", None)  # it is not this one
            return run("auto", x)

    yield "by_image", by_image


def test_qk_norm_is_the_same_for_every_way_of_attention(monkeypatch):
    # Bound 1e-12 of the largest value. Measured 8.4e-15.
    with jax.enable_x64(True):
        x = jax.random.normal(jax.random.key(0), (2, 9, 24), jnp.float64)
        found = {name: way(x) for name, way in ways_of(monkeypatch)}
    value, gradient = found.pop("xla")
    for got in found.values():
        assert tiny.worst(got[0], value) < 1e-12
        assert tiny.worst(got[1], gradient) < 1e-12


def test_qk_norm_normalises_each_heads_q_and_k():
    x = jax.random.normal(jax.random.key(0), (2, 5, 24))
    net = transformer.Attention(3, qk_norm=True)
    params = tiny.random_params(net, x, seed=3)
    _, state = net.apply({"params": params}, x, mutable="intermediates")
    (got,) = state["intermediates"]["attention"]
    qkv = x @ params["qkv"]["kernel"] + params["qkv"]["bias"]
    q, k = (
        np.asarray(y, np.float64).reshape(2, 5, 3, 8) for y in np.split(qkv, 3, -1)[:2]
    )
    for y, name in ((q, "q_norm"), (k, "k_norm")):
        y -= y.mean(-1, keepdims=True)
        y /= np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
        y *= params[name]["scale"]
        y += params[name]["bias"]
    scores = np.exp(np.einsum("bqhc,bkhc->bhqk", q, k) / np.sqrt(8))
    assert tiny.worst(got, scores / scores.sum(-1, keepdims=True)) < 1e-5


def test_learned_rows_have_the_gradient_of_indexing():
    # Bound 1e-12 of the largest entry.
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        table = rng.normal(size=(6, 3))
        place = np.argsort(rng.random((4, 6)), axis=1)
        ids = rng.integers(0, 6, (4, 9))
        for ours, rows in (
            (lambda t: embeddings.take_rows(t, ids), ids),
            (lambda t: embeddings.permuted(t, place), np.argsort(place, axis=1)),
        ):
            plain = lambda t, rows=rows: t[rows]  # noqa: E731
            np.testing.assert_array_equal(ours(table), plain(table))
            loss = lambda f: jax.grad(lambda t: jnp.sin(3 * f(t)).sum())(table)  # noqa: E731
            noise = loss(ours), loss(plain)
            assert tiny.worst(*noise) < 1e-12


def test_heads_split_over_devices_give_the_loss_and_gradients_of_one():
    # In float64, mesh.tensor 2 and fsdp 2 of 8. Bound 1e-12 of the largest entry.
    images, view, keep, restore = batch_of(b=8)
    with jax.enable_x64(True):
        model = model_of(jnp.float64)
        params = jax.tree.map(np.float64, params_of(model))

        def loss(params, images, view, keep, restore):
            pred = model.apply({"params": params}, images, keep, restore, True, view)
            return (pred**3).sum()

        found = []
        for shape in ((1, 1, 1), (8, 2, 2)):
            mesh = sharding.make_mesh(*shape)
            rows = sharding.batch_sharding(mesh)
            where = sharding.tree_shardings(params, mesh)
            run = jax.jit(jax.value_and_grad(loss), in_shardings=(where, *[rows] * 4))
            with sharding.tracing(mesh):
                out = run(params, np.float64(images), view, keep, restore)
            found.append(jax.device_get(out))
        (one, gradient), (split, other) = found
        assert abs(one - split) < 1e-12 * abs(one)
        for name, value in tiny.flat(gradient).items():
            error = np.abs(value - tiny.flat(other)[name]).max()
            if name.endswith("k_norm/bias"):  # rounding alone, see test_mvmae of parity
                assert np.abs(value).max() < 1e-11
            else:
                assert error < 1e-12 * np.abs(value).max(), name


def test_positions_without_cls_are_resampled_as_those_with_it():
    with_cls = np.random.default_rng(0).normal(size=(1, 17, 8)).astype(np.float32)
    want = positions.resample(with_cls, (4, 4), (6, 6))
    got = positions.resample(with_cls[:, 1:], (4, 4), (6, 6))
    np.testing.assert_array_equal(got, want[:, 1:])
    np.testing.assert_array_equal(want[:, :1], with_cls[:, :1])


def config(**fields):
    model = ml_collections.ConfigDict(
        {
            "variant": "mu", "patch_size": 8, "ln_eps": 1e-6,
            "decoder": {"width": 32, "depth": 1, "num_heads": 2},
        }
    )  # fmt: skip
    model.update_from_flattened_dict(fields)
    for name, value in fields.items():
        node = model
        *path, leaf = name.split(".")
        for part in path:
            node = node[part]
        node[leaf] = value
    return model


MVMAE = {
    "channels": 1, "qk_norm": True, "posemb": "learned", "posemb_cls": False,
    "views": 3, "final_ln_eps": 1e-5, "decoder.posemb": "learned",
    "decoder.project": False,
}  # fmt: skip


def test_config_without_the_new_fields_describes_what_it_did():
    assert vit.architecture(config(), 32) == {
        "patch_size": 8, "width": 32, "depth": 2, "num_heads": 2, "ln_eps": 1e-6,
        "image_size": 32,
    }  # fmt: skip
    assert mae.decoder_architecture(config(), 32) == {
        "width": 32, "depth": 1, "num_heads": 2, "encoder_width": 32,
        "patch_pixels": 192, "ln_eps": 1e-6,
    }  # fmt: skip
    assert vit.from_config(config()) == vit.ViT(8, 32, 2, 2)


def test_config_of_mvmae_makes_encoder_and_decoder():
    model = mae.from_config(config(**MVMAE), "bfloat16", {"remat": "dots"}, 32)
    fields = OURS | {"dtype": jnp.bfloat16, "remat": "dots"}
    assert model.encoder == vit.ViT(8, 32, 2, 2, channels=1, posemb_cls=False, **fields)
    assert model.decoder == mae.Decoder(64, 32, 1, 2, project=False, **fields)
    own = config(**MVMAE, **{"decoder.qk_norm": False})
    assert not mae.from_config(own, image_size=32).decoder.qk_norm


@pytest.mark.parametrize(
    "fields, size, says",
    [
        ({"channels": 4}, 32, "config.model.channels is 4: give 1 or 3"),
        ({"views": 2}, 32, "config.model.views is 2: give 0"),
        ({"posemb": "rope"}, 32, "config.model.posemb is 'rope': choose sincos or"),
        ({"posemb": "learned"}, 0, "config.model.posemb is learned, which needs an"),
        ({"decoder.posemb": "x"}, 32, "config.model.decoder.posemb is 'x': choose"),
    ],
)
def test_config_that_does_not_fit_is_an_error(fields, size, says):
    with pytest.raises(PacxError, match=says):
        mae.from_config(config(**fields), image_size=size)


def test_what_the_encoder_cannot_take_is_an_error():
    grey = vit.ViT(PATCH, 16, 1, 2, channels=1)
    with pytest.raises(
        PacxError, match="images of 3 channels, and the encoder takes 1"
    ):
        jax.eval_shape(grey.init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    frontal = functools.partial(grey.init, view=np.zeros(1, np.int32))
    with pytest.raises(PacxError, match="views are given to a model without"):
        jax.eval_shape(frontal, jax.random.key(0), jnp.zeros((1, 16, 16, 1)))
    narrow = model_of()
    narrow = narrow.clone(decoder=narrow.decoder.clone(width=8))
    with pytest.raises(PacxError, match="a decoder of width 8 without a projection"):
        jax.eval_shape(
            narrow.init, jax.random.key(0), *batch_of(1)[::2], batch_of(1)[3]
        )
