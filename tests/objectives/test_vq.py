"""The image tokenizer: quantisation, moving averages and refusals, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import embed, objectives, optim, sharding, step
from pacx_jax.encoders import image_tokenizer, kinds, model_folder
from pacx_jax.errors import PacxError
from pacx_jax.models import vq
from pacx_jax.models.discriminator import Discriminator
from pacx_jax.objectives import image_scores
from pacx_jax.objectives import vq as objective_vq
from tests import stages, tiny

RNG = np.random.default_rng(0)
CODES, WIDTH = 16, 4


def config(**fields):
    return stages.config("vq", {}, **fields)


def start(objective):
    """Random parameters whose codes have length 1 and have been used a while."""
    params = tiny.random_start(objective)
    codes = RNG.normal(size=(CODES, WIDTH))
    codes /= np.linalg.norm(codes, axis=1, keepdims=True)
    share = np.full(CODES, 1 / CODES)
    share[3] = 1e-4  # this one falls dead
    sums = {"share": share, "sum": codes * share[:, None]}
    sums = {k: np.float32(v) for k, v in sums.items()}
    return params | {"codebook": {"codes": np.float32(codes)}, "usage": sums}


def quantized(z, codes):
    """Plain nearest codes: (tokens, d), (k, d) -> their numbers."""
    return np.array([np.argmin(((codes - row) ** 2).sum(1)) for row in z])


@pytest.mark.parametrize("devices", [1, 8])
def test_codes_move_as_in_plain_numpy(devices, meshes):
    # Bound 1e-6. Measured 9.3e-8 on one device, 1.2e-7 on eight.
    c = config(optim__clip_norm=0.0)
    objective = objectives.make(c, meshes[devices])
    params = start(objective)
    tx = optim.make(c.optim, c.total_steps)
    state = step.make_state(params, objective, tx)
    shardings = sharding.tree_shardings(state, meshes[devices])
    update = step.make_train_step(objective, tx, meshes[devices], shardings)
    batch = stages.batch("vq")
    after, metrics = update(
        sharding.put_tree(state, shardings),
        sharding.put_batch(batch, meshes[devices]),
        jax.random.key(5),
    )
    model = vq.module(model_of(c, params).architecture)
    weights = {k: params[k] for k in objective_vq.MODEL}
    x = (batch["image"] / 255 - c.data.mean[0]) / c.data.std[0]
    z = model.apply({"params": weights}, np.float32(x), method="features")
    z = np.asarray(z, np.float64)
    tokens = z.reshape(-1, WIDTH)
    codes = quantized(tokens, params["codebook"]["codes"])
    share, sums = np.zeros(CODES), np.zeros((CODES, WIDTH))
    for code, row in zip(codes, tokens, strict=True):
        share[code] += 1 / len(tokens)
        sums[code] += row / len(tokens)
    decay = c.loss.decay
    new_share = decay * params["usage"]["share"] + (1 - decay) * share
    new_sum = decay * params["usage"]["sum"] + (1 - decay) * sums
    dead = new_share < c.loss.dead / CODES
    assert dead[3] and not dead.all()
    key = jax.random.fold_in(jax.random.key(5), 0)  # of the first step
    drawn = np.asarray(jax.random.randint(key, (CODES,), 0, len(tokens)))
    new_share[dead], new_sum[dead] = 1 / CODES, tokens[drawn[dead]] / CODES
    new_codes = new_sum / np.linalg.norm(new_sum, axis=1, keepdims=True)
    np.testing.assert_allclose(after.frozen["usage"]["share"], new_share, atol=1e-6)
    np.testing.assert_allclose(after.frozen["usage"]["sum"], new_sum, atol=1e-6)
    got = after.frozen["codebook"]["codes"]
    np.testing.assert_allclose(got, new_codes, atol=1e-6)
    print(f"{devices} devices: {np.abs(got - new_codes).max():.1e}")
    entropy = -sum(p * np.log(p) for p in share if p)
    want = {"perplexity": np.exp(entropy), "codes_used": (share > 0).mean(),
            "codes_revived": dead.mean()}  # fmt: skip
    assert {k: float(metrics[k]) for k in want} == pytest.approx(want, rel=1e-5)


def model_of(c, params):
    return objectives.load("vq").export(c, params)


def test_gradient_passes_straight_through_the_codes():
    # In float64. Bound 1e-12 of each leaf's largest. Measured 1.1e-15.
    with jax.enable_x64(True):
        c = config(global_batch_size=2, dtype="float64")
        objective = objectives.make(c, None)
        params = jax.tree.map(np.float64, start(objective))
        batch = {"image": np.float64(stages.batch("vq", 2)["image"])}

        def loss(trained):
            found = objective.loss(
                params | trained, batch, jax.random.key(0), train=True
            )
            return found[0]

        names = ("encoder", "decoder")
        got = jax.jit(jax.grad(loss))({k: params[k] for k in names})
        wants = by_hand(c, params, batch)
    for name, want in zip(names, wants, strict=True):
        got_flat, want_flat = tiny.flat(got[name]), tiny.flat(want)
        worst = max(tiny.worst(got_flat[k], want_flat[k]) for k in want_flat)
        print(f"{name}: {worst:.1e}")
        assert worst < 1e-12
        assert all(np.abs(v).max() > 1e-9 for v in want_flat.values())


def by_hand(c, params, batch):
    """Gradients of encoder and decoder, with quantisation and chain rule in NumPy."""
    model = vq.module(model_of(c, params).architecture, jnp.float64)
    weights = {k: params[k] for k in objective_vq.MODEL}
    x = (batch["image"] / 255 - c.data.mean[0]) / c.data.std[0]

    def features(encoder):
        tree = {"params": weights | {"encoder": encoder}}
        return model.apply(tree, x, method="features")

    z, back = jax.vjp(jax.jit(features), params["encoder"])
    codes = params["codebook"]["codes"]
    chosen = quantized(np.asarray(z).reshape(-1, WIDTH), codes)
    quantised = codes[chosen].reshape(z.shape)
    decoder = vq.Decoder(model.widths, model.blocks, 1, jnp.float64)

    def l1(quantised, decoder_weights):
        decoded = decoder.apply({"params": decoder_weights}, quantised)
        return jnp.abs(decoded - x).mean()

    to_codes, to_decoder = jax.jit(jax.grad(l1, (0, 1)))(quantised, params["decoder"])
    # The commitment, weight mean(1 - z code), has the gradient - weight code / tokens.
    commitment = -c.loss.commitment * quantised / len(chosen)
    (to_encoder,) = back(to_codes + commitment)
    return to_encoder, to_decoder


def test_discriminator_and_decoder_move_by_their_own_losses_alone(meshes):
    # Bound 1e-6 of the largest. Measured 4.6e-7.
    c = config(loss__adversarial=0.5, loss__adversarial_from=3)
    objective = objectives.make(c, meshes[1])
    params = start(objective)
    batch = {"image": stages.batch("vq", 4)["image"]}
    x = np.float32((batch["image"] / 255 - c.data.mean[0]) / c.data.std[0])
    judge = Discriminator((8,))
    model = vq.module(model_of(c, params).architecture)

    def total(trained, step):
        key = jax.random.key(0)
        return objective.loss(params | trained, batch, key, train=True, step=step)[0]

    def by_hand(decoder, discriminator):
        weights = {k: params[k] for k in objective_vq.MODEL} | {"decoder": decoder}
        decoded = model.apply({"params": weights}, x)[0]
        real, made = (judge.apply({"params": discriminator}, i) for i in (x, decoded))
        hinge = jnp.maximum(1 - real, 0).mean() + jnp.maximum(1 + made, 0).mean()
        return jnp.abs(decoded - x).mean(), -made.mean(), hinge / 2

    trained = {k: params[k] for k in ("decoder", "discriminator")}
    got = jax.jit(jax.grad(total))
    l1, fooling, hinge = jax.jit(jax.jacrev(by_hand, (0, 1)))(*trained.values())
    before, after = got(trained, 2), got(trained, 3)
    decoder = jax.tree.map(lambda a, b: a + 0.5 * b, l1[0], fooling[0])
    for found, want in (
        (before["decoder"], l1[0]),
        (after["decoder"], decoder),
        (after["discriminator"], hinge[1]),
    ):
        found, want = tiny.flat(found), tiny.flat(want)
        assert found.keys() == want.keys()
        whole = max(np.abs(leaf).max() for leaf in want.values())
        worst = max(np.abs(found[k] - want[k]).max() for k in want) / whole
        print(f"{worst:.1e}")
        assert worst < 1e-6
    assert not any(np.any(g) for g in jax.tree.leaves(before["discriminator"]))
    assert "discriminator" not in model_of(c, params).params


def test_dead_codes_become_features_of_the_batch_and_others_stay():
    loss = config().loss
    codes = np.eye(4, dtype=np.float32)
    frozen = {
        "codebook": {"codes": codes},
        "usage": {"share": np.float32([0.5, 0.4, 0, 0.1]), "sum": codes * 0.25},
    }
    found = {
        "share": np.float32([0.5, 0.4, 0, 0.1]),
        "sum": codes * 0.25,
        "drawn": np.float32([[1, 1, 0, 0]] * 4) * 7,  # of any length, as of parts
        "l1": 0.25,
    }
    after, metrics = objective_vq.advanced(frozen, found, loss)
    want = codes.copy()
    want[2] = np.float32([1, 1, 0, 0]) / np.sqrt(2)
    np.testing.assert_allclose(after["codebook"]["codes"], want, atol=1e-7)
    np.testing.assert_allclose(after["usage"]["share"], [0.5, 0.4, 0.25, 0.1])
    assert metrics.keys() == {"l1", "perplexity", "codes_used", "codes_revived"}
    assert metrics["codes_revived"] == 0.25 and metrics["codes_used"] == 0.75


def test_first_batch_makes_the_codes():
    loss, z = config().loss, np.float32(RNG.normal(size=(2, 8, WIDTH)))
    loss.decay = 0.99
    z /= np.linalg.norm(z, axis=-1, keepdims=True)
    drawn = objective_vq.drawn(jax.random.key(0), z, np.arange(2), 2, CODES)
    nothing = {"share": np.zeros(CODES), "sum": np.zeros((CODES, WIDTH))}
    found = {"share": np.full(CODES, 1 / CODES), "sum": nothing["sum"], "drawn": drawn}
    codes = {"codes": np.full((CODES, WIDTH), 0.5, np.float32)}
    frozen = {"codebook": codes, "usage": nothing}
    after, _ = objective_vq.advanced(frozen, found, loss)
    apart = np.abs(after["codebook"]["codes"][:, None] - z.reshape(-1, WIDTH)).max(-1)
    assert apart.min(1).max() < 1e-6  # each code is a feature of the batch
    # Unless none may die: then those that were never used stay as they are.
    loss.dead = 0.0
    found["share"][0] = 0
    found["sum"] = np.ones((CODES, WIDTH)) * [0, 3, 0, 4]
    after, _ = objective_vq.advanced(frozen, found, loss)
    want = np.full((CODES, WIDTH), [0, 0.6, 0, 0.8])
    want[0] = 0.5
    np.testing.assert_allclose(after["codebook"]["codes"], want, atol=1e-6)


def test_outputs_pictures_and_perplexity_are_of_the_reconstruction():
    c = config()
    objective = objectives.make(c, None)
    params, batch = start(objective), {"image": stages.batch("vq", 6)["image"]}
    key = jax.random.key(0)
    (shown,) = jax.jit(objective.images)(params, batch, key).values()
    assert shown.shape == (4, 16, 32, 3) and shown.dtype == np.uint8
    raw = batch["image"][:4].astype(int)
    assert np.abs(np.asarray(shown[:, :, :16]) - raw).max() <= 1  # rounding
    found = jax.device_get(jax.jit(objective.outputs)(params, batch, key))
    decoded = np.asarray(shown[:, :, 16:, :1]) / 255
    squared = ((decoded - raw / 255) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found["psnr"][:4], -10 * np.log10(squared), rtol=1e-2)
    loss = found["l1"] + c.loss.commitment * found["commitment"]
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-6)
    told = objective.summarize(found)
    _, counts = np.unique(found["codes"], return_counts=True)
    share = counts / counts.sum()
    assert told["perplexity"] == pytest.approx(np.prod(share**-share), rel=1e-6)
    assert told["codes_used"] == len(counts) / CODES
    assert told["psnr"] == pytest.approx(found["psnr"].mean(), rel=1e-6)


def test_features_drawn_from_parts_of_a_batch_are_those_of_the_whole():
    z = np.float32(RNG.normal(size=(6, 4, WIDTH)))
    key, rows = jax.random.key(3), np.arange(6)
    whole = objective_vq.drawn(key, z, rows, 6, CODES)
    parts = [objective_vq.drawn(key, z[i::3], rows[i::3], 6, CODES) for i in range(3)]
    np.testing.assert_array_equal(sum(parts), whole)
    assert len(np.unique(whole, axis=0)) > 4
    other = objective_vq.drawn(jax.random.key(4), z, rows, 6, CODES)
    assert not np.array_equal(other, whole)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    c = config()
    params = start(objectives.make(c, None))
    folder = tmp_path_factory.mktemp("vq") / "folder"
    model_folder.save(folder, model_of(c, params), card="a test's")
    return folder, c, params


def test_exported_tokenizer_gives_the_codes_and_images_of_the_model(exported):
    folder, c, params = exported
    tokenizer = image_tokenizer.load_image_tokenizer(folder)
    images = RNG.integers(0, 256, (5, 16, 16), dtype=np.uint8)
    codes = tokenizer.encode(images)
    assert codes.shape == (5, 8, 8) and codes.dtype == np.int32
    assert len(np.unique(codes)) > 3
    model = vq.module(model_of(c, params).architecture)
    weights = {"params": {k: params[k] for k in objective_vq.MODEL}}
    x = np.float32((images[..., None] / 255 - c.data.mean[0]) / c.data.std[0])
    want, _, want_codes = jax.jit(model.apply)(weights, x)
    np.testing.assert_array_equal(codes, want_codes)
    want = np.clip(np.asarray(want) * c.data.std[0] + c.data.mean[0], 0, 1)
    np.testing.assert_allclose(tokenizer.decode(codes), want, atol=1e-6)
    wider = tokenizer.decode(np.zeros((1, 2, 5), np.int64))
    assert wider.shape == (1, 4, 10, 1)


def test_bad_codes_images_and_uses_are_one_line_each(exported, capsys):
    folder, *_ = exported
    tokenizer = image_tokenizer.load_image_tokenizer(folder)
    codes = np.zeros((2, 8, 8), np.int32)
    codes[1, 2, 3] = 16
    for bad, message in (
        (codes, r"code 16 is out of range: this tokenizer has codes 0 to 15 \(1 such"),
        (-1 - codes, "code -1 is out of range"),
        (codes[0], r"codes of dtype int32 and shape \(8, 8\): give whole numbers"),
        (codes * 1.0, "codes of dtype float64"),
    ):
        with pytest.raises(PacxError, match=message):
            tokenizer.decode(bad)
    model = vq.module(model_folder.load(folder).architecture)
    with pytest.raises(PacxError, match=r"shape \(1, 17, 16, 1\): .* multiples of 2"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 17, 16, 1)))
    with pytest.raises(PacxError, match="image array of dtype float32"):
        tokenizer.encode(np.zeros((16, 16), np.float32))
    assert embed.main([f"--encoder={folder}", "--images=.", "--out=x.npz"]) == 2
    assert (
        "holds a vq model, but a vit, unified or densenet is" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__image_size": 17}, "config.data.image_size 17: .* a multiple of 2"),
        ({"data__image_size": 8}, "config.data.image_size is 8: give at least 11"),
        ({"model__blocks": (1, 1)}, "config.model.widths .* one of each"),
        ({"model__codes": 1}, "config.model.codes is 1: give at least 2"),
        ({"loss__decay": 1.0}, "config.loss.decay is 1.0: give at least 0 and below 1"),
        ({"model_init": "runs/mae"}, "config.model_init: a tokenizer does not start"),
        ({"remat": "all"}, "config.remat 'all': choose none, dots, full"),
    ],
)
def test_bad_config_is_one_line(fields, message):
    with pytest.raises(PacxError, match=message):
        objective = objectives.make(config(**fields), None)
        jax.eval_shape(objective.init, jax.random.key(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks": [1, 1]}, "widths .* and blocks .* do not match"),
        ({"widths": [0]}, "must be whole numbers above 0"),
        ({"image_size": 17}, "image_size 17 is not divisible by 2"),
        ({"channels": 2}, "channels is 2: 1 or 3"),
    ],
)
def test_bad_description_of_a_folder_is_one_line(change, message, exported):
    model = model_folder.load(exported[0])
    with pytest.raises(ValueError, match=message):
        kinds.of("vq").check(model.architecture | change)


def test_scores_are_those_of_plain_numpy():
    # Bound 1e-5, relative.
    truth = RNG.random((2, 18, 15, 1))
    images = np.clip(truth + 0.1 * RNG.normal(size=truth.shape), 0, 1)
    mask = RNG.random((2, 18, 15)) < 0.3
    got = image_scores.scores(*map(np.float32, (images, truth, mask)))
    at = np.arange(11) - 5
    window = np.exp(-(at[:, None] ** 2 + at**2) / (2 * 1.5**2))
    window /= window.sum()
    for i in range(2):
        x, y, m = images[i, ..., 0], truth[i, ..., 0], mask[i]
        difference = (x - y)[m]
        want = {"l1": np.abs(difference).mean(),
                "psnr": 10 * np.log10(1 / (difference**2).mean())}  # fmt: skip
        each = []
        for r, c in zip(*np.nonzero(m[5:-5, 5:-5]), strict=True):
            a, b = x[r : r + 11, c : c + 11], y[r : r + 11, c : c + 11]
            ma, mb = (window * a).sum(), (window * b).sum()
            va, vb = (window * (a - ma) ** 2).sum(), (window * (b - mb) ** 2).sum()
            covariance = (window * (a - ma) * (b - mb)).sum()
            top = (2 * ma * mb + 1e-4) * (2 * covariance + 9e-4)
            each.append(top / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4)))
        want["ssim"] = np.mean(each)
        found = {k: float(v[i]) for k, v in got.items()}
        assert found == pytest.approx(want, rel=1e-5)
    same = image_scores.scores(*[np.float32(truth)] * 2)
    assert same["l1"].max() == 0 and np.allclose(same["ssim"], 1)
    np.testing.assert_allclose(same["psnr"], image_scores.MOST_PSNR, rtol=1e-6)
