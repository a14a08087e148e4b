"""The distillation objective: its parts, targets, choices and errors."""

import jax
import numpy as np
import pytest

from pacx_jax import objectives, sharding, step
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.modalities import teachers
from pacx_jax.objectives import distill
from tests import tiny


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def config(folders):
    return tiny.distill_config(folders)


@pytest.fixture(scope="module")
def objective(config, meshes):
    return objectives.make(config, meshes[2])


@pytest.fixture(scope="module")
def params(objective):
    return tiny.random_start(objective)


def evaluate(objective, params, batch, mesh, train=False):
    loss = jax.jit(lambda p, b, k: objective.loss(p, b, k, train=train))
    value, metrics = loss(params, sharding.put_batch(batch, mesh), jax.random.key(3))
    return float(value), {k: float(v) for k, v in metrics.items()}


@pytest.fixture(scope="module")
def cached(objective, params, meshes):
    return evaluate(objective, params, tiny.distill_batch(16), meshes[2])


@pytest.fixture(scope="module")
def outputs(objective, params, meshes):
    run = jax.jit(objective.outputs)
    batch = sharding.put_batch(tiny.distill_batch(16), meshes[2])
    return {k: np.asarray(v) for k, v in run(params, batch, jax.random.key(4)).items()}


def test_cached_and_in_graph_embeddings_give_equal_losses(
    config, folders, params, meshes, cached
):
    # Bound 1e-6. Measured 0.
    config = tiny.distill_config(folders, physiology="in_graph")
    objective = objectives.make(config, meshes[2])
    batch = tiny.distill_batch(16)
    batch = {k: v for k, v in batch.items() if not k.endswith("embedding")}
    frozen = {
        f"{m}_encoder": teachers.load(m, config.modalities[m]).folder.params
        for m in ("ecg", "labs")
    }
    value, metrics = evaluate(objective, params | frozen, batch, meshes[2])
    assert abs(value - cached[0]) / cached[0] < 1e-6
    for name in ("clip_ecg", "clip_labs", "regression_ecg", "regression_labs"):
        assert abs(metrics[name] - cached[1][name]) / cached[1][name] < 1e-6
    assert [reader.name for reader in objective.readers] == ["ecg", "labs"]

    # A study without any modality changes no loss, and is counted.
    ecg = np.asarray([1] * 15 + [0], np.float32)
    labs = np.asarray([0] * 4 + [1] * 11 + [0], np.float32)
    batch |= {"ecg_present": ecg, "labs_present": labs}
    value, metrics = evaluate(objective, params | frozen, batch, meshes[2])
    assert metrics["without_modality"] == 1 / 16
    batch["image"] = np.concatenate([batch["image"][:15], 255 - batch["image"][15:]])
    assert evaluate(objective, params | frozen, batch, meshes[2])[0] == value


def test_physiological_encoders_in_the_graph_are_frozen(folders, meshes):
    config = tiny.distill_config(folders, physiology="in_graph")
    objective = objectives.make(config, meshes[1])
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    trained, frozen = step.split_params(shapes, objective.trainable)
    assert not [k for k in tiny.flat(trained) if "_encoder" in k]
    assert {"encoder", "ecg_encoder", "labs_encoder"} <= set(frozen)


def test_backbone_is_frozen_but_for_its_norms(params, objective):
    trained, frozen = step.split_params(params, objective.trainable)
    assert all("norm" in k for k in tiny.flat(trained["encoder"]))
    assert not any("norm" in k for k in tiny.flat(frozen))


def test_evaluation_loss_equals_the_loss_without_dropout(config, objective, outputs,
                                                         cached):  # fmt: skip
    # One batch of the whole validation set. Bound 1e-6; measured 6.9e-8.
    metrics = objective.summarize(outputs)
    assert abs(metrics["loss"] - cached[0]) / cached[0] < 1e-6
    for m in ("ecg", "labs"):
        assert abs(metrics[f"clip_{m}"] - cached[1][f"clip_{m}"]) < 1e-5


def test_dropout_is_on_in_training_alone(objective, params, meshes, cached):
    value, _ = evaluate(
        objective, params, tiny.distill_batch(16), meshes[2], train=True
    )
    assert abs(value - cached[0]) > 1e-3


def test_evaluation_logs_the_metrics_of_the_reference(objective, outputs):
    metrics = objective.summarize(outputs)
    names = {"loss", "z_norm", "z_std", "logit_scale"}
    for m in ("ecg", "labs"):
        per = "clip top1 top5 pos_sim neg_sim mi_bound loss_over_log_n cosine_sim"
        per = (*per.split(), "recall@1", "recall@5", "recall@10")
        names |= {f"{p}_{m}" for p in per}
    assert set(metrics) == names
    assert all(np.isfinite(v) for v in metrics.values())
    for m in ("ecg", "labs"):
        similarity = outputs["cxr"] @ outputs[m].T
        assert metrics[f"pos_sim_{m}"] == pytest.approx(np.diag(similarity).mean())
        off = similarity[~np.eye(16, dtype=bool)].mean()
        assert metrics[f"neg_sim_{m}"] == pytest.approx(off, abs=1e-6)
        first = (similarity.argmax(1) == np.arange(16)).mean()
        assert metrics[f"top1_{m}"] == metrics[f"recall@1_{m}"] == first
        bound = np.log(16) - metrics[f"clip_{m}"]
        assert metrics[f"mi_bound_{m}"] == pytest.approx(bound)


def test_validation_metrics_are_within_groups_of_a_batch(config, objective, outputs):
    # 16 + 5 examples: groups of 16 and 5, weighted by their sizes.
    more = {k: np.concatenate([v, v[:5]]) for k, v in outputs.items()}
    whole = objective.summarize(outputs)["clip_ecg"]
    part = objective.summarize({k: v[:5] for k, v in outputs.items()})["clip_ecg"]
    got = objective.summarize(more)["clip_ecg"]
    assert got == pytest.approx((16 * whole + 5 * part) / 21, rel=1e-6)


def without(name):
    weights = ("clip_weight", "regression_weight")
    return {f"modalities__{name}__{weight}": 0.0 for weight in weights}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"loss__clip_weight": 0.0}, lambda m: m["regression"]),
        ({"loss__regression_weight": 0.0}, lambda m: 0.5 * m["clip"]),
        (
            {"modalities__ecg__clip_weight": 0.0},
            lambda m: 0.5 * m["clip_labs"] + m["regression"],
        ),
        (
            {"modalities__labs__regression_weight": 3.0},
            lambda m: (
                0.5 * m["clip"] + (m["regression_ecg"] + 3 * m["regression_labs"]) / 4
            ),
        ),
        (
            {"loss__reduction": "half_sum"} | without("labs"),
            lambda m: 0.5 * m["clip_ecg"] / 2 + m["regression_ecg"] / 2,
        ),
        (
            without("labs"),
            lambda m: 0.5 * m["clip_ecg"] + m["regression_ecg"],
        ),
    ],
    ids=[
        "no clip",
        "no regression",
        "no clip of ecg",
        "labs thrice",
        "ecg alone, half_sum",
        "ecg alone, mean",
    ],
)
def test_ablations_change_the_sum_as_stated(folders, params, meshes, fields, expected):
    objective = objectives.make(tiny.distill_config(folders, **fields), meshes[1])
    value, m = evaluate(objective, params, tiny.distill_batch(16), meshes[1])
    assert value == pytest.approx(expected(m), rel=1e-6)
    if without("labs").items() <= fields.items():
        assert "clip_labs" not in m


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tuning", "adapters"),
        ("train_norms", "some"),
        ("physiology", "lazy"),
        ("loss__reduction", "sum"),
    ],
)
def test_unknown_choice_is_an_error_that_names_field_and_choices(
    folders, meshes, field, value
):
    config = tiny.distill_config(folders, **{field: value})
    name = field.replace("__", ".")
    with pytest.raises(PacxError, match=f"config.{name} '{value}': choose"):
        objectives.make(config, meshes[1])


def test_no_modality_at_all_is_an_error(folders, meshes):
    config = tiny.distill_config(folders, **without("ecg"), **without("labs"))
    with pytest.raises(PacxError, match="config.modalities: all clip_weight and"):
        objectives.make(config, meshes[1])


def test_a_negative_weight_is_an_error_that_names_its_field(folders, meshes):
    config = tiny.distill_config(folders, modalities__ecg__clip_weight=-1.0)
    match = "config.modalities.ecg.clip_weight is -1.0: give at least 0"
    with pytest.raises(PacxError, match=match):
        objectives.make(config, meshes[1])


@pytest.mark.parametrize("chunk", [5, -4])
def test_chunk_that_does_not_divide_the_batch_is_an_error(folders, meshes, chunk):
    config = tiny.distill_config(folders, loss__chunk=chunk)
    with pytest.raises(PacxError, match=f"config.loss.chunk {chunk} does not divide "
                       "config.global_batch_size 16: give a divisor"):  # fmt: skip
        objectives.make(config, meshes[1])


@pytest.mark.parametrize(
    "field", ["model_init", "modalities__ecg__init", "modalities__labs__init"]
)
def test_empty_initial_folder_is_an_error_that_names_its_field(folders, meshes, field):
    config = tiny.distill_config(folders | {field: ""})
    with pytest.raises(PacxError, match=f"config.{field.replace('__', '.')} is empty"):
        objectives.make(config, meshes[1])


def test_encoder_of_another_kind_is_an_error(folders, meshes):
    config = tiny.distill_config(
        folders | {"modalities__ecg__init": folders["modalities__labs__init"]}
    )
    with pytest.raises(PacxError, match="holds a labs_dae model, but a ecg_net1d"):
        objectives.make(config, meshes[1])


def test_epsilon_of_the_layer_norms_is_the_folders_unless_the_config_says(folders):
    own = distill.load_image_encoder(tiny.distill_config(folders))
    other = distill.load_image_encoder(tiny.distill_config(folders, ln_eps=1e-5))
    assert own.architecture["ln_eps"] == 1e-6 and own.module().ln_eps == 1e-6
    assert other.architecture["ln_eps"] == 1e-5 and other.module().ln_eps == 1e-5
    assert model_folder.load(folders["model_init"]).architecture["ln_eps"] == 1e-6
