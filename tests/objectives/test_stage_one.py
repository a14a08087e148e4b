"""Objectives of Stage 1 and of the probe: losses and validation metrics."""

import dataclasses

import jax
import numpy as np
import pytest
import sklearn.metrics

from pacx_jax import Encoder, objectives, step
from pacx_jax.convert import kinds
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.input.normalize import IMAGENET_MEAN, IMAGENET_STD
from pacx_jax.models import labs_dae, mae
from pacx_jax.objectives import classify, classify_metrics
from tests import tiny
from tests.convert import test_kinds as converted


def test_unknown_objective_is_an_error_that_lists_the_known(meshes):
    config = tiny.config("mae_vitb16", objective="dino")
    with pytest.raises(PacxError, match="'dino': choose mae, mvmae, labs_dae, ecg"):
        objectives.make(config, meshes[1])


def test_a_modality_outside_of_the_library_trains_its_own_encoder(meshes):
    config = tiny.config("vitals_dae", modality="pacx_jax.modalities.vitals")
    objective = objectives.make(config, meshes[1])
    assert objective.readers[0].name == "vitals"
    assert objective.readers[0].requires == ("vitals", "vitals_mask")
    with pytest.raises(PacxError, match="'mine.signs' cannot be imported"):
        objectives.make(tiny.config("vitals_dae", modality="mine.signs"), meshes[1])


def mae_objective(mesh, **fields):
    small = {"model__variant": "mu", "model__patch_size": 8, "data__image_size": 32}
    config = tiny.config("mae_vitb16", dtype="float32", **(small | fields))
    config.model.decoder.update(width=16, depth=1, num_heads=2)
    return objectives.make(config, mesh)


def test_mae_honours_its_mask_ratio_and_compares_with_the_mean_colour(meshes):
    objective = mae_objective(meshes[1], loss__mask_ratio=0.75)
    params = tiny.random_start(objective)
    image = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    out = jax.jit(objective.outputs)(params, {"image": image}, jax.random.key(1))
    # By hand: the masks this key draws, 12 of 16 patches, and the mean's squared error.
    _, _, mask = map(
        np.asarray, mae.random_masking(jax.random.key(1), np.arange(3), 16, 0.75)
    )
    assert (mask.sum(1) == 12).all()
    x = (image / 255 - np.array([0.485, 0.456, 0.406])) / [0.229, 0.224, 0.225]
    error = (x - x.mean((1, 2), keepdims=True)) ** 2
    patches = error.reshape(3, 4, 8, 4, 8, 3).mean((2, 4, 5)).reshape(3, 16)
    want = (patches * mask).sum(1) / 12
    np.testing.assert_allclose(out["loss_of_mean"], want, rtol=1e-5)
    loss, _ = jax.jit(lambda p, b, k: objective.loss(p, b, k, train=True))(
        params, {"image": image}, jax.random.key(1)
    )
    np.testing.assert_allclose(loss, out["loss"].mean(), rtol=1e-5)
    summary = objective.summarize({k: np.asarray(v) for k, v in out.items()})
    np.testing.assert_allclose(summary["loss"], loss, rtol=1e-5)


def test_mae_trains_every_parameter(meshes):
    objective = mae_objective(meshes[1])
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    trained, frozen = step.split_params(shapes, objective.trainable)
    assert not frozen and tiny.count(trained) == tiny.count(shapes)


def test_mae_starts_from_the_parts_named_by_the_config(meshes, tmp_path):
    run = str(tmp_path / "run")
    model_folder.save(run, tiny.folder("vit"), "card")
    assert mae_objective(meshes[1]).pretrained == {}
    whole = mae_objective(meshes[1], model_init=run).pretrained
    assert whole == {"encoder": run, "decoder": run}
    half = mae_objective(
        meshes[1], model_init=run, model_init_parts=("encoder",)
    ).pretrained
    assert half == {"encoder": run}


@pytest.fixture(scope="module")
def labs(meshes):
    objective = objectives.make(
        tiny.config("labs_dae", model__hidden=16, model__latent=8), meshes[1]
    )
    rng = np.random.default_rng(0)
    batch = {
        "labs": rng.random((12, 50)).astype(np.float32),
        "labs_mask": (rng.random((12, 50)) < 0.6).astype(np.float32),
    }
    return objective, tiny.random_start(objective), batch


def test_labs_loss_corrupts_inputs_in_training_alone(labs):
    objective, params, batch = labs
    loss = jax.jit(
        lambda k, train: objective.loss(params, batch, k, train=train)[0],
        static_argnums=1,
    )
    a, b = jax.random.split(jax.random.key(0))
    assert float(loss(a, False)) == float(loss(b, False))
    assert float(loss(a, True)) != float(loss(b, True))


def test_labs_validation_metrics_equal_plain_numpy(labs):
    objective, params, batch = labs
    key = jax.random.key(5)
    out = jax.device_get(jax.jit(objective.outputs)(params, batch, key))
    got = objective.summarize(out)
    values, mask = batch["labs"], batch["labs_mask"]
    x, m, drop = map(
        np.asarray, labs_dae.corrupt(key, np.arange(12), values, mask, 0.15)
    )
    model = labs_dae.from_config(
        tiny.config("labs_dae", model__hidden=16, model__latent=8).model
    )
    clean = np.asarray(model.apply({"params": params}, values, mask), np.float64)
    noisy = np.asarray(model.apply({"params": params}, x, m), np.float64)
    want = {
        "clean_recon_mse": ((clean - values) ** 2)[mask > 0].mean(),
        "denoising_mse": ((noisy - values) ** 2)[mask > 0].mean(),
        "imputation_mse": ((noisy - values) ** 2)[drop].mean(),
    }
    for name, value in want.items():
        assert got[name] == pytest.approx(value, rel=1e-5), name
    assert got["loss"] == got["denoising_mse"] and got["z_std"] > 0


def test_multilabel_summary_leaves_out_labels_with_one_class():
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, (40, 3)).astype(np.float32)
    y[:, 2] = 0  # no positive: AUROC does not exist (D35)
    mask = (rng.random((40, 3)) < 0.8).astype(np.float32)
    x = rng.normal(size=(40, 3)).astype(np.float32)
    out = {"labels": y, "label_mask": mask, "logits": x}
    got = classify_metrics.multilabel(("a", "b", "c"))(out)
    aurocs, f1s = [], []
    for c in range(2):
        m = mask[:, c] > 0
        aurocs.append(sklearn.metrics.roc_auc_score(y[m, c], x[m, c]))
        f1s.append(sklearn.metrics.f1_score(y[m, c], x[m, c] >= 0))
    assert got["auroc_macro"] == pytest.approx(np.mean(aurocs))
    assert got["f1_macro"] == pytest.approx(np.mean(f1s))
    assert got["n_labels"] == 2 and "auroc_c" not in got
    zero = classify_metrics.multilabel(("a", "b", "c"), "zero")(out)  # torchmetrics'
    assert zero["auroc_macro"] == pytest.approx(np.sum(aurocs) / 3)
    assert zero["f1_macro"] == pytest.approx(np.sum(f1s) / 3)
    assert zero["n_labels"] == 2 and "auroc_c" not in zero
    p = 1 / (1 + np.exp(-np.float64(x)))
    bce = -(y * np.log(p) + (1 - y) * np.log(1 - p))
    assert got["loss"] == pytest.approx(bce[mask > 0].mean(), rel=1e-5)


def test_multiclass_summary_equals_scikit_learn():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 3, 60)
    x = (rng.normal(size=(60, 3)) + np.eye(3)[truth]).astype(np.float32)
    labels = np.eye(3, dtype=np.float32)[truth]
    # Rows without a class, with two, or unknown count for nothing.
    extra = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 0]], np.float32)
    mask = np.ones((63, 3), np.float32)
    mask[-1] = 0
    out = {"labels": np.concatenate([labels, extra]), "label_mask": mask}
    out["logits"] = np.concatenate([x, 9 * rng.normal(size=(3, 3)).astype(np.float32)])
    got = classify_metrics.multiclass(("a", "b", "c"))(out)
    p = np.exp(np.float64(x))
    p /= p.sum(1, keepdims=True)
    want = {
        "loss": sklearn.metrics.log_loss(truth, p),
        "acc_macro": sklearn.metrics.balanced_accuracy_score(truth, x.argmax(1)),
        "f1_macro": sklearn.metrics.f1_score(truth, x.argmax(1), average="macro"),
        "auroc_macro": sklearn.metrics.roc_auc_score(truth, p, multi_class="ovr"),
        "ap_macro": sklearn.metrics.average_precision_score(labels, p),
        "accuracy": sklearn.metrics.accuracy_score(truth, x.argmax(1)),
        "precision_macro": sklearn.metrics.precision_score(
            truth, x.argmax(1), average="macro"
        ),
        "recall_macro": sklearn.metrics.recall_score(
            truth, x.argmax(1), average="macro"
        ),
    }
    for name, value in want.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name


@pytest.fixture(scope="module")
def vit_folder(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))["model_init"]


def probe(mesh, folder, **fields):
    config = tiny.config(
        "linear_probe",
        model_init=folder,
        data__label_columns=("a", "b"),
        data__image_size=32,
        **fields,
    )
    return objectives.make(config, mesh)


def test_linear_probe_trains_its_linear_layer_alone(meshes, vit_folder):
    objective = probe(meshes[1], vit_folder)
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    trained, frozen = step.split_params(shapes, objective.trainable)
    assert tiny.count(trained) == 32 * 2 + 2 and set(frozen) == {"encoder"}
    full = probe(meshes[1], vit_folder, tuning="full")
    assert step.split_params(shapes, full.trainable)[1] == {}


@pytest.mark.parametrize("preset, mean", [(None, 0.5), ("reference", 0.4)])
def test_a_probe_takes_the_encoders_own_statistics_or_imagenets(tmp_path, preset, mean):
    state = kinds.write("vit_timm", converted.folder("vit_timm", posemb_grid=[4, 4]))
    timm, _ = kinds.read("vit_timm", state, converted.OPTIONS, "file")
    model_folder.save(tmp_path / "imagenet", timm, "card")
    config = tiny.config(
        "linear_probe",
        preset,
        model_init=str(tmp_path / "imagenet"),
        data__label_columns=("a",),
        data__image_size=32,
    )
    objective = classify.make(config)
    params = tiny.random_start(objective) | {"encoder": timm.params}
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    labels = np.ones((2, 1), np.float32)
    batch = {"image": image, "labels": labels, "label_mask": labels}
    got = objective.outputs(params, batch, None)["logits"]
    if preset:  # D34: the authors' code
        about = model_folder.image_preprocessing(IMAGENET_MEAN, IMAGENET_STD)
        timm = dataclasses.replace(timm, preprocessing=about)
    assert round(timm.preprocessing["mean"][2], 1) == mean
    head = params["head"]["linear"]
    want = Encoder(timm)(image) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tuning": "some"}, "config.tuning 'some': choose linear or full"),
        ({"task": "regression"}, "config.task 'regression': choose multilabel"),
        ({"model_init": ""}, "config.model_init is empty"),
    ],
)
def test_wrong_probe_config_is_an_error(meshes, vit_folder, fields, message):
    with pytest.raises(PacxError, match=message):
        probe(meshes[1], **({"folder": fields.pop("model_init", vit_folder)} | fields))


def test_ecg_objective_ignores_masked_labels(meshes):
    config = tiny.config("ecg_net1d", dtype="float32", data__label_columns=("a", "b"))
    config.model.update(**{k: tuple(v) if isinstance(v, list) else v
                           for k, v in tiny.ECG.items()})  # fmt: skip
    objective = objectives.make(config, meshes[1])
    params = tiny.random_start(objective)
    rng = np.random.default_rng(0)
    batch = {
        "ecg": rng.normal(size=(4, 64, 12)).astype(np.float32),
        "labels": np.array([[1, 0], [0, 0], [1, 1], [0, 1]], np.float32),
        "label_mask": np.array([[1, 0], [1, 1], [0, 1], [1, 1]], np.float32),
    }
    loss = jax.jit(lambda b: objective.loss(params, b, None, train=True)[0])
    other = batch | {"labels": np.where(batch["label_mask"] > 0, batch["labels"], 1)}
    assert float(loss(batch)) == float(loss(other))
    flipped = batch | {"labels": 1 - batch["labels"]}
    assert float(loss(batch)) != float(loss(flipped))


def test_multiclass_loss_leaves_out_rows_without_one_class(vit_folder):
    config = tiny.config(
        "linear_probe",
        task="multiclass",
        model_init=vit_folder,
        data__image_size=32,
        data__label_columns=("a", "b", "c"),
        dtype="float32",
    )
    objective = classify.make(config)
    params = tiny.random_start(objective)
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    labels = np.array([[1, 0, 0], [0, 0, 1], [0, 0, 0], [1, 1, 0]], np.float32)
    batch = {"image": image, "labels": labels, "label_mask": np.ones_like(labels)}
    loss, _ = objective.loss(params, batch, None, train=True)
    logits = np.float64(objective.outputs(params, batch, None)["logits"])
    logp = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    assert float(loss) == pytest.approx(-(logp[0, 0] + logp[1, 2]) / 2, rel=1e-5)
