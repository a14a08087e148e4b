"""CheXmix: both stages, what must not move, the exported encoder, bad input."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import load_encoder, objectives
from pacx_jax.encoders import golden, model_folder
from pacx_jax.encoders.image_tokenizer import load_image_tokenizer
from pacx_jax.errors import PacxError
from pacx_jax.models import unified
from pacx_jax.objectives import unified as objective_module
from pacx_jax.run import setup
from tests import stages, tiny
from tests.reliability import runs

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("parts")
    tiny.write_tokenizer(path / "tokenizer.json")
    folder = tiny.vq_folder()
    model_folder.save(path / "image_tokenizer", folder, card="a test's")
    return {"model_init": str(path / "vit")}


@pytest.fixture(scope="module")
def made(folders):
    """Stage and fields -> objective, parameters, and its loss, compiled once."""
    known = {}

    def make(stage, **fields):
        key = stage, tuple(fields.items())
        if key not in known:
            objective = objectives.make(runs.config(stage, folders, **fields), None)
            params = tiny.random_start(objective) | {"vq": tiny.vq_folder().params}

            def loss(trained, examples, train=True):
                whole = {"vq": params["vq"], "transformer": trained}
                return objective.loss(whole, examples, KEY, train=train)

            value = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
            known[key] = objective, params, value
        return known[key]

    return make


def test_stage_masked_with_share_0_equals_the_causal_stage_bit_for_bit(made):
    none = {"loss__mask_image": (0.0, 0.0), "loss__mask_text": (0.0, 0.0)}
    examples, found = stages.batch("causal", 8), []
    for stage, fields in (("causal", {}), ("masked", none)):
        _, params, value = made(stage, **fields)
        found.append(value(params["transformer"], examples))
    jax.tree.map(np.testing.assert_array_equal, *found)
    (loss, metrics), _ = found[0]
    some = made("masked")[2](params["transformer"], examples)
    assert loss > 0 and abs(some[0][0] - loss) > 1e-4
    assert set(metrics) == {"image", "text", "reports"}


def test_padding_and_missing_reports_move_nothing(made):
    _, params, value = made("causal")
    examples = stages.batch("causal", 8)
    other = dict(examples, report_tokens=examples["report_tokens"].copy())
    absent = examples["report_present"] == 0
    assert absent.any() and not absent.all()
    other["report_tokens"][absent] = 7
    got, want = (value(params["transformer"], x) for x in (other, examples))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    none = dict(examples, report_present=np.zeros(8, np.float32))
    (loss, metrics), grads = value(params["transformer"], none)
    np.testing.assert_allclose(loss, metrics["image"], rtol=1e-6)
    assert metrics["text"] == 0
    rows = np.abs(grads["token_embed"]["embedding"]).max(1)
    words = objective_words(made)
    assert not rows[: words.text_size].any()  # padding's too
    assert rows[words.image_start] > 0 and rows[words.first_code :].any()
    assert not rows[words.mask]


def objective_words(made):
    size = made("causal")[1]["transformer"]["token_embed"]["embedding"].shape[0]
    return unified.Words(size - 3 - 16, 16)


def test_loss_is_the_weighted_mean_over_tokens(made):
    examples = stages.batch("causal", 8)
    weights = {"loss__image_weight": 0.5, "loss__text_weight": 2.0}
    (_, params, value), (_, _, weighted) = made("causal"), made("causal", **weights)
    (loss, parts), _ = value(params["transformer"], examples)
    (other, same), _ = weighted(params["transformer"], examples)
    assert parts == same
    present = examples["report_present"] > 0
    text = (examples["report_tokens"] > 0).sum(1) @ present
    first = text_first(made, examples)
    # What stands first is not predicted: [IMG], or [CLS] where the text stands first.
    image, text = 8 * 17 + (first & present).sum(), text - (first & present).sum()
    for got, (a, b) in ((loss, (1, 1)), (other, (0.5, 2.0))):
        want = (a * image * parts["image"] + b * text * parts["text"]) / (
            a * image + b * text
        )
        np.testing.assert_allclose(got, want, rtol=1e-5)


def text_first(made, examples):
    return np.asarray(
        objective_module.text_first(
            "both", KEY, jnp.arange(len(examples["image"])), True
        )
    )


def test_order_is_drawn_by_key_and_row_and_fixed_in_evaluation():
    rows = jnp.arange(64)
    drawn = objective_module.text_first("both", KEY, rows, True)
    assert 16 < drawn.sum() < 48
    alone = objective_module.text_first("both", KEY, rows[40:], True)
    np.testing.assert_array_equal(alone, drawn[40:])
    assert not objective_module.text_first("both", KEY, rows, False).any()
    assert objective_module.text_first("text_first", KEY, rows, False).all()
    assert not objective_module.text_first("image_first", KEY, rows, True).any()


def test_masks_replace_a_drawn_share_of_codes_and_words_alone(made):
    words = unified.Words(40, 16)
    rng = np.random.default_rng(0)
    text = stages.report_tokens(64, rng)
    codes = rng.integers(0, 16, (64, 16))
    tokens = words.sequences(codes, text, np.arange(64) % 2 == 0)
    rows, shares = jnp.arange(64), ((0.75, 0.75), (0.0, 0.5))
    replaced = functools.partial(objective_module.replaced, words, shares)
    found = np.asarray(replaced(tokens, KEY, rows))
    content, kinds = (np.asarray(f(tokens)) for f in (words.content, words.kinds))
    assert not (found & ~content).any()
    image, text = (found[content & (kinds == k)].mean() for k in (1, 2))
    assert 0.7 < image < 0.8 and 0.15 < text < 0.35
    alone = replaced(tokens[9:], KEY, rows[9:])
    np.testing.assert_array_equal(alone, found[9:])


def test_loss_on_masked_tokens_alone_counts_them_alone(made):
    objective, params, _ = made("masked", loss__on="masked")
    every, _, _ = made("masked")
    examples = stages.batch("masked", 8)
    some, whole = (
        jax.device_get(jax.jit(o.outputs)(params, examples, KEY))
        for o in (objective, every)
    )
    assert (some["count"] <= whole["count"]).all()
    assert 0 < some["count"].sum() < whole["count"].sum()
    assert (some["total"] <= whole["total"] + 1e-4).all()


def test_validation_is_per_token_with_the_image_first(made):
    objective, params, value = made("causal")
    examples = stages.batch("causal", 8)
    out = jax.device_get(jax.jit(objective.outputs)(params, examples, KEY))
    present = examples["report_present"] > 0
    words = np.where(present, (examples["report_tokens"] > 0).sum(1), 0)
    np.testing.assert_array_equal(out["count"], np.stack([[17] * 8, words], 1))
    found = objective.summarize(out)
    (loss, metrics), _ = value(params["transformer"], examples, False)
    np.testing.assert_allclose(found["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(found["text"], metrics["text"], rtol=1e-5)
    np.testing.assert_allclose(found["text_perplexity"], np.exp(found["text"]))


@pytest.fixture(scope="module")
def exported(folders, made, tmp_path_factory):
    """The folder of a model that was not trained, and its parameters."""
    params = made("causal")[1]
    c = runs.config("causal", folders)
    folder = objectives.load("unified").export(c, params, None)
    path = tmp_path_factory.mktemp("models") / "unified"
    model_folder.save(path, folder, "a test's", golden.beside(folder))
    return path, folder


def test_exported_folder_embeds_an_x_ray_alone(exported, folders):
    (path, folder), c = exported, runs.config("causal", folders)
    again = model_folder.load(path)
    jax.tree.map(np.testing.assert_array_equal, again.params, folder.params)
    assert again.kind == "unified" and again.architecture["layers"] == [0, 2]
    images = stages.batch("causal", 3)["image"]
    encoder = load_encoder(path)
    z, tokens = encoder(images), encoder.tokens(images)
    assert z.shape == (3, 32) and tokens.shape == (3, 17, 32)
    np.testing.assert_allclose(z, tokens[:, 1:].mean(1), rtol=1e-5, atol=1e-6)
    module = again.module()
    codes = load_image_tokenizer(c.vq_init)
    codes = codes.encode(images).reshape(3, 16)
    words, transformer = module.words, {"params": folder.params["transformer"]}
    text = np.zeros((3, 1), int)
    sequence = words.sequences(codes, text, np.zeros(3, bool))[:, :-1]
    layers = [
        module.transformer.apply(
            transformer, sequence, (i, i + 1), method="mean_layers"
        )
        for i in (0, 1)
    ]
    np.testing.assert_allclose(z, sum(layers)[:, 1:-1].mean(1) / 2, atol=1e-5)
    assert "4 golden images" in golden.check(path)


def test_what_is_hidden_of_an_x_ray_changes_nothing(exported):
    path, folder = exported
    module, keep = folder.module(), jnp.array([[0, 1, 4, 5]])
    images = np.random.default_rng(0).normal(size=(1, 16, 16, 1)).astype(np.float32)
    run = jax.jit(lambda x: module.apply({"params": folder.params}, x, keep))
    changed = images.copy()
    changed[:, 8:] += 1
    changed[:, :, 8:] += 1
    np.testing.assert_array_equal(run(images), run(changed))
    changed[:, :8, :8] *= -1
    assert np.abs(run(images) - run(changed)).max() > 1e-3


def test_masked_stage_starts_from_a_model_and_its_image_tokenizer(
    exported, folders, tmp_path
):
    path, folder = exported
    c = runs.config("masked", folders, model_init=str(path), vq_init="")
    objective = objectives.make(c, None)
    assert objective.pretrained == {"vq": str(path), "transformer": str(path)}
    loaded = setup.load_parts(objective, KEY)
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(folder.params))
    assert not objective.trainable("vq/codebook/codes")
    assert objective.trainable("transformer/head/kernel")


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """An image tokenizer with other weights."""
    path = tmp_path_factory.mktemp("others")
    model_folder.save(path / "vq", tiny.vq_folder(7), card="a test's")
    tiny.write_tokenizer(path / "words.json")
    text = (path / "words.json").read_text().replace('"effusion"', '"effusions"')
    (path / "words.json").write_text(text)
    return path


@pytest.mark.parametrize(
    ("stage", "fields", "message"),
    [
        ("causal", {"order": "none"}, "config.order 'none': choose image_first, text_"),
        ("causal", {"loss__on": "masked"}, "no token is masked in config.stage=causal"),
        ("masked", {"loss__mask_text": (0.5, 0.2)}, r"mask_text \(0.5, 0.2\): give"),
        ("causal", {"loss__text_weight": -1.0}, "config.loss.text_weight is -1.0"),
        ("causal", {"vq_init": ""}, "config.vq_init is empty"),
        ("causal", {"data__tokenizer": ""}, "config.data.tokenizer is empty"),
        ("causal", {"data__image_size": 32}, "image_size is 32, but the enc"),
        ("causal", {"data__channels": 3}, "channels is 3, but the encoder"),
        ("causal", {"data__mean": (0.4,)}, "config.data.mean is .0.4., but"),
        ("causal", {"model__positions": "none"}, "config.model.positions 'none'"),
        ("causal", {"model__layers": (1, 3)}, r"model.layers \(1, 3\): give \(fir"),
        ("masked", {"model_init": "MODEL", "vq_init": "OTHER"}, "not the image token"),
        ("masked", {"model_init": "MODEL", "vq_init": "", "data__report_length": 12},
         "report_length: .* was trained with 16, here is 12"),
        ("masked", {"model_init": "MODEL", "vq_init": "", "data__tokenizer": "WORDS"},
         "config.data.tokenizer: .* was trained with"),
        ("causal", {"vq_init": "MODEL"}, "holds a unified model, but a vq is needed"),
    ],
)  # fmt: skip
def test_a_config_that_cannot_be_is_one_line(
    stage, fields, message, folders, exported, others
):
    named = {"MODEL": str(exported[0]), "OTHER": str(others / "vq"),
             "WORDS": str(others / "words.json")}  # fmt: skip
    fields = {
        k: named.get(v, v) if isinstance(v, str) else v for k, v in fields.items()
    }
    with pytest.raises(PacxError, match=message):
        objective = objectives.make(runs.config(stage, folders, **fields), None)
        jax.eval_shape(objective.init, KEY)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layers": [1, 3]}, r"layers is \[1, 3\]"),
        ({"image_size": 32}, "image_size and channels are not those of vq"),
        ({"patch_size": 8}, "vq makes 16 codes of 4 pixels a side"),
        ({"text_size": 50}, "weights do not fit"),
        ({"pad_id": -1}, "pad_id"),
        ({"positions": "sincos"}, "positions 'sincos'"),
        ({"vq": 3}, "vq must be an image tokenizer's description"),
    ],
)
def test_a_damaged_description_is_one_line(change, message, exported, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(exported[0], folder)
    about = json.loads((folder / "config.json").read_text())
    about["architecture"] |= change
    (folder / "config.json").write_text(json.dumps(about))
    with pytest.raises(PacxError, match=message):
        model_folder.load(folder)


def test_another_image_size_is_refused(exported):
    with pytest.raises(PacxError, match="image size 32: this model's sequences are"):
        load_encoder(exported[0], image_size=32)
