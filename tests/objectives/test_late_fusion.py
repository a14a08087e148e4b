"""Late fusion: the logits of a study are the mean over the views that it has."""

import dataclasses
import json

import jax
import numpy as np
import PIL.Image
import pytest
import sklearn.metrics

from pacx_jax import main, step
from pacx_jax.encoders import model_folder
from pacx_jax.models import vit
from pacx_jax.objectives import classify, classify_metrics, late_fusion
from pacx_jax.run import finished
from tests import tiny

B, V, C = 6, 3, 2


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))["model_init"]


def config(encoder, recipe="late_fusion", **fields):
    small = {
        "model_init": encoder,
        "dtype": "float32",
        "data__image_size": 32,
        "data__channels": 3,
        "data__label_columns": ("a", "b"),
    }
    return tiny.config(recipe, **(small | fields))


def studies(seed=0):
    """Studies of one, two and three views; zeros where a view is missing."""
    rng = np.random.default_rng(seed)
    mask = np.float32(np.arange(V) < np.array([1, 2, 3, 1, 2, 3])[:, None])
    images = rng.integers(0, 256, (B, V, 32, 32, 3), dtype=np.uint8)
    return {
        "images": images * np.uint8(mask)[..., None, None, None],
        "view": np.where(mask > 0, np.int32([0, 1, 1]), 2).astype(np.int32),
        "view_mask": mask,
        "labels": np.float32(rng.random((B, C)) < 0.5),
        "label_mask": np.float32(rng.random((B, C)) < 0.8),
    }


@pytest.fixture(scope="module", params=["linear", "full"])
def trained(request, encoder):
    """The objective, its parameters, and (loss, gradient of what is trained)."""
    objective = classify.make(config(encoder, tuning=request.param))
    params = tiny.random_start(objective)
    trained, frozen = step.split_params(params, objective.trainable)

    def loss(trained, batch):
        whole = step.merge_params(trained, frozen)
        return objective.loss(whole, batch, None, train=True)[0]

    gradient = jax.jit(jax.value_and_grad(loss))
    return objective, params, lambda batch: gradient(trained, batch)


@pytest.fixture(scope="module")
def probed(encoder):
    """The objective of a linear probe, its parameters, and its jitted outputs."""
    objective = classify.make(config(encoder))
    params = tiny.random_start(objective)
    outputs = jax.jit(lambda batch: objective.outputs(params, batch, None))
    return objective, params, lambda batch: jax.device_get(outputs(batch))


def leaves(tree):
    return {k: np.asarray(v) for k, v in tiny.flat(tree).items()}


def test_what_stands_in_place_of_a_missing_view_moves_nothing(trained):
    _, _, gradient = trained
    batch, rng = studies(), np.random.default_rng(1)
    there = batch["view_mask"][..., None, None, None] > 0
    other = rng.integers(0, 256, batch["images"].shape, dtype=np.uint8)
    spoiled = batch | {"images": np.where(there, batch["images"], other)}
    spoiled["view"] = np.where(batch["view_mask"] > 0, batch["view"], 1)
    assert (spoiled["images"] != batch["images"]).any()
    (loss, grads), (loss_of_other, grads_of_other) = gradient(batch), gradient(spoiled)
    assert float(loss) == float(loss_of_other)
    grads, grads_of_other = leaves(grads), leaves(grads_of_other)
    for name, value in grads.items():
        np.testing.assert_array_equal(value, grads_of_other[name], err_msg=name)


def test_repeating_a_studys_only_view_changes_nothing(probed):
    _, _, outputs = probed
    batch = studies()
    first = np.repeat(batch["images"][:, :1], V, axis=1)
    once = batch | {"images": first, "view_mask": np.float32([[1, 0, 0]] * B)}
    thrice = once | {"view_mask": np.ones((B, V), np.float32)}
    np.testing.assert_allclose(
        outputs(once)["logits"], outputs(thrice)["logits"], atol=1e-6
    )


def test_the_views_of_a_study_take_the_same_paths(encoder):
    objective = classify.make(config(encoder, tuning="full", drop_path=0.5))
    params = tiny.random_start(objective)
    loss = jax.jit(lambda b, k: objective.loss(params, b, k, train=True)[0])
    batch = studies()
    first = np.repeat(batch["images"][:, :1], V, axis=1)
    once = batch | {"images": first, "view_mask": np.float32([[1, 0, 0]] * B)}
    thrice = once | {"view_mask": np.ones((B, V), np.float32)}
    key = jax.random.key(1)
    assert float(loss(once, key)) == pytest.approx(float(loss(thrice, key)), abs=1e-6)
    assert abs(loss(once, key) - loss(once, jax.random.key(2))) > 1e-4


def test_the_order_of_views_does_not_matter(probed):
    _, _, outputs = probed
    batch = studies()
    turned = {k: batch[k][:, ::-1] for k in ("images", "view", "view_mask")}
    one, other = outputs(batch), outputs(batch | turned)
    np.testing.assert_allclose(one["logits"], other["logits"], atol=1e-6)
    np.testing.assert_allclose(
        one["view_logits"], other["view_logits"][:, ::-1], atol=1e-6
    )


def test_studies_of_one_view_are_images(trained, encoder):
    objective, params, gradient = trained
    tuning = "full" if objective.trainable("encoder/norm/scale") else "linear"
    of_images = classify.make(config(encoder, "linear_probe", tuning=tuning))
    shapes = [jax.eval_shape(o.init, jax.random.key(0)) for o in (objective, of_images)]
    assert shapes[0] == shapes[1]
    batch = studies()
    batch |= {k: batch[k][:, :1] for k in ("images", "view", "view_mask")}
    single = {k: batch[k] for k in ("labels", "label_mask")}
    single["image"] = batch["images"][:, 0]
    trained, frozen = step.split_params(params, of_images.trainable)

    @jax.jit
    @jax.value_and_grad
    def loss(trained, batch):
        whole = step.merge_params(trained, frozen)
        return of_images.loss(whole, batch, None, train=True)[0]

    want, grads = loss(trained, single)
    value, found = gradient(batch)
    assert float(value) == pytest.approx(float(want), rel=1e-6)
    found = leaves(found)
    for name, grad in leaves(grads).items():
        np.testing.assert_allclose(found[name], grad, atol=1e-6, err_msg=name)
    outputs = jax.eval_shape(lambda: of_images.outputs(params, single, None))
    assert set(outputs) == {"labels", "label_mask", "logits"}


def test_logits_of_a_study_are_those_of_its_mean_embedding(probed, encoder):
    """So probes on mean features (evaluate.probe.fuse) are late fusion."""
    _, params, outputs = probed
    batch = studies()
    module = model_folder.load(encoder).module()
    x = batch["images"].reshape(-1, 32, 32, 3) / np.float32(255)
    about = model_folder.load(encoder).preprocessing
    x = (x - np.float32(about["mean"])) / np.float32(about["std"])
    z = jax.jit(module.apply)({"params": params["encoder"]}, x)[:, 0].reshape(B, V, -1)
    head, mask = params["head"]["linear"], batch["view_mask"][..., None]
    mean = (np.asarray(z) * mask).sum(1) / mask.sum(1)
    found = outputs(batch)["logits"]
    np.testing.assert_allclose(found, mean @ head["kernel"] + head["bias"], atol=1e-5)


def test_one_class_of_several_is_fused_too(encoder):
    objective = classify.make(config(encoder, task="multiclass"))
    params = tiny.random_start(objective)
    batch = studies()
    batch |= {"labels": np.eye(C, dtype=np.float32)[[0, 1, 0, 1, 1, 0]]}
    batch["label_mask"] = np.ones((B, C), np.float32)

    @jax.jit
    def both(batch):
        loss = objective.loss(params, batch, None, train=True)[0]
        return loss, objective.outputs(params, batch, None)

    loss, outputs = jax.device_get(both(batch))
    got = objective.summarize(outputs)
    assert got["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert (got["n_one_view"], got["n_two_views"]) == (6, 4)
    assert {"auroc_macro_two_views", "acc_macro_one_view"} <= set(got)


@pytest.mark.skipif(
    "views" not in vit.ViT.__dataclass_fields__, reason="this ViT embeds no views"
)
def test_an_encoder_that_embeds_views_is_given_them(tmp_path):
    plain = tiny.folder("vit")
    table = {"view_embed": np.float32(np.random.default_rng(0).normal(size=(3, 32)))}
    embeds = dataclasses.replace(
        plain,
        architecture=plain.architecture | {"views": 3},
        params={**plain.params, **table},
    )
    model_folder.save(tmp_path / "vit", embeds, "card")
    objective = classify.make(config(str(tmp_path / "vit")))
    params = tiny.random_start(objective) | {"encoder": embeds.params}
    outputs = jax.jit(lambda batch: objective.outputs(params, batch, None))
    batch = studies()
    changed = np.array(batch["view"])
    changed[1, 1] = 0  # a lateral called frontal
    before, after = (
        np.asarray(outputs(b)["view_logits"])
        for b in (batch, batch | {"view": changed})
    )
    moved = (np.abs(before - after).max(-1) > 1e-6).nonzero()
    assert (moved[0].tolist(), moved[1].tolist()) == ([1], [1])


def outputs_of(n=400, seed=0):
    rng = np.random.default_rng(seed)
    mask = np.float32(np.arange(V) < rng.integers(1, V + 1, (n, 1)))
    y = np.float32(rng.random((n, C)) < 0.3)
    x = np.float32(rng.normal(size=(n, V, C)) + y[:, None] - 1)
    return {
        "view_logits": x,
        "view_mask": mask,
        "labels": y,
        "label_mask": np.float32(rng.random((n, C)) < 0.9),
        "logits": late_fusion.mean_logits(x, mask),
    }


def test_metrics_of_one_and_two_views_are_of_the_first_slots():
    out = outputs_of()
    plain = classify_metrics.multilabel(("a", "b"))
    got = late_fusion.by_views(plain)(out)
    whole = {k: v for k, v in out.items() if not k.startswith("view")}
    assert {k: got[k] for k in plain(whole)} == plain(whole)
    two = out["view_mask"][:, 1] > 0
    assert (got["n_one_view"], got["n_two_views"]) == (400, two.sum())
    assert got["n_one_of_two_views"] == two.sum()
    x, known, y = out["view_logits"], out["label_mask"] > 0, out["labels"]
    wanted = {
        "one_view": (x[:, 0], np.ones(400, bool)),
        "two_views": (x[:, :2].mean(1), two),
        "one_of_two_views": (x[:, 0], two),
    }
    for name, (logits, rows) in wanted.items():
        aurocs = []
        for c in range(C):
            m = rows & known[:, c]
            aurocs.append(sklearn.metrics.roc_auc_score(y[m, c], logits[m, c]))
        assert got[f"auroc_macro_{name}"] == pytest.approx(np.mean(aurocs)), name
    assert {"ap_macro_two_views", "ece_macro_one_view"} <= set(got)


def test_without_a_second_view_there_are_no_metrics_of_two():
    out = outputs_of()
    out["view_mask"][:, 1:] = 0
    out["logits"] = out["view_logits"][:, 0]
    got = late_fusion.by_views(classify_metrics.multilabel(("a", "b")))(out)
    assert not [k for k in got if "two" in k]
    assert got["auroc_macro_one_view"] == got["auroc_macro"]
    assert "view_logits" not in classify_metrics.multilabel(("a", "b"))(out)


def test_the_model_card_says_how_images_make_a_study(encoder, tmp_path):
    for recipe, says in (("late_fusion", True), ("linear_probe", False)):
        c = config(encoder, recipe)
        params = tiny.random_start(classify.make(c))
        model = classify.export(c, params, ["a", "b"])
        assert model.heads.architecture["labels"] == ["a", "b"]
        (tmp_path / "metrics.jsonl").touch()
        card = finished.card(c, tmp_path, model, "latest")
        assert ("the logits of a study are the mean" in card) == says


def test_a_run_of_studies_trains_and_is_measured_by_views(encoder, tmp_path, capsys):
    rng, root = np.random.default_rng(0), tmp_path / "data"
    root.mkdir()
    rows = ["path,patient_id,study_id,view,split,sick"]
    for i in range(60):  # the second half has a lateral too, which alone tells
        sick, split = i % 2, ("train", "val", "test")[i // 2 % 3]
        for view in ("PA", "LL")[: 1 + (i >= 30)]:
            level = 100 + 60 * sick * (view == "LL")
            image = rng.normal(level, 20, (20, 20)).clip(0, 255).astype(np.uint8)
            PIL.Image.fromarray(image).save(root / f"{i}_{view}.png")
            rows.append(f"{i}_{view}.png,p{i},{i},{view},{split},{sick}")
    (root / "labels.csv").write_text("\n".join(rows) + "\n")
    c = config(
        encoder,
        data__source="folder",
        data__path=str(root),
        data__label_columns=("sick",),
        data__label_count=500,
        data__max_views=2,
        data__hflip=0.0,
        data__threads=1,
        global_batch_size=8,
        total_steps=4,
        log_every=2,
        eval_every=4,
        save_every=4,
    )
    main.run(c, str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert "data.label_count is 500, but the train split has 20 labelled" in said
    assert "labels of 500 training studies (data.label_count, all that are" in said
    main.measure(c, str(tmp_path / "run"), "test")
    result = json.loads((tmp_path / "run/evaluation_test.json").read_text())
    assert (result["n"], result["n_one_view"], result["n_two_views"]) == (20, 20, 10)
    views = {k: v["n"] for k, v in result["views"].items()}
    assert views == {"one_view": 20, "two_views": 10, "one_of_two_views": 10}
    assert "macro, two views (10 studies): AUROC" in capsys.readouterr().out
    card = (tmp_path / "run/export/README.md").read_text()
    assert "the logits of a study are the mean" in card
