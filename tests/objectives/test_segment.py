"""Segmentation: its loss and metrics by plain formulas, a run from data to a folder."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from data import prepare
from data.cohort import latents, xray
from pacx_jax import export, main, objectives, step
from pacx_jax.convert.__main__ import main as convert_main
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import held_out
from pacx_jax.input import images
from pacx_jax.objectives import segment
from tests import tiny


def config(folder, **fields):
    small = {
        "dtype": "float32",
        "data__image_size": 32,
        "decoder__width": 16,
        "global_batch_size": 8,
    }
    return tiny.config("segment", model_init=str(folder), **(small | fields))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    path = tmp_path_factory.mktemp("encoder") / "vit"
    model_folder.save(path, tiny.folder("vit"), "")
    return path


def counts(seed=0, n=5):
    """Logits and targets, one image with nothing in it that is called empty."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, 8, 8)).astype(np.float32)
    t = (rng.random((n, 8, 8)) < 0.4).astype(np.uint8)
    x[1], t[1] = -4, 0
    return x, t


def test_loss_is_bce_and_pooled_soft_dice_by_plain_numpy():
    x, t = counts()
    each = jax.jit(segment.sums)(x, t)
    p = 1 / (1 + np.exp(-x.astype(np.float64)))
    bce = -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean()
    dice = (2 * (p * t).sum() + 1e-6) / (p.sum() + t.sum() + 1e-6)
    assert float(each["bce"].mean()) == pytest.approx(bce, rel=1e-6)
    assert float(segment.soft_dice(each)) == pytest.approx(dice, rel=1e-6)
    out = {k: np.asarray(v) for k, v in each.items()}
    loss = segment.summary(out, 5)["loss"]
    assert loss == pytest.approx(bce + 1 - dice, rel=1e-6)
    assert segment.summary(out, 5, 0.5, 2.0)["loss"] == pytest.approx(
        0.5 * bce + 2 * (1 - dice), rel=1e-6
    )


def test_metrics_are_pooled_per_image_and_per_batch_as_by_hand():
    # hits, called, truth: 3 images in batches of 2; the last is empty and called so.
    out = {
        "hits": np.array([2, 1, 0]),
        "called": np.array([4, 1, 0]),
        "truth": np.array([2, 3, 0]),
    } | dict.fromkeys(("bce", "soft_hits", "soft_called"), np.zeros(3))
    got = segment.summary(out, 2)
    want = {
        "dice": 6 / 10,
        "iou": 3 / 7,
        "dice_per_image": (4 / 6 + 2 / 4 + 1) / 3,
        "iou_per_image": (2 / 4 + 1 / 3 + 1) / 3,
        "dice_per_batch": (2 * (6 / 10) + 1) / 3,
        "iou_per_batch": (2 * (3 / 7) + 1) / 3,
    }
    for name, value in want.items():
        assert got[name] == pytest.approx(value, abs=1e-6), name
    units = np.array(["a", "a", "b"])
    rows = held_out.with_intervals(out, units, (), 0, "multilabel")["intervals"]
    assert rows["dice"]["value"] == pytest.approx(0.6, abs=1e-6)
    # Two patients: a resample has a alone, b alone, or both.
    ends = rows["dice_per_image"]
    assert ends["low"] == pytest.approx((4 / 6 + 2 / 4) / 2, abs=1e-6)
    assert ends["high"] == pytest.approx(1)


def test_the_decoder_alone_is_trained_and_needs_a_patch_of_a_power_of_two(
    encoder, meshes
):
    objective = objectives.make(config(encoder), meshes[1])
    shapes = jax.eval_shape(objective.init, jax.random.key(0))
    trained, frozen = step.split_params(shapes, objective.trainable)
    assert set(trained) == {"decoder"} and set(frozen) == {"encoder"}
    assert segment.widths(16, 256) == (256, 128, 64, 32, 1)
    with pytest.raises(PacxError, match="patch_size is 14: .* power of two"):
        segment.widths(14, 256)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """Twenty films of the cohort with their lungs, split by patient."""
    root = tmp_path_factory.mktemp("masked")
    (root / "in/images").mkdir(parents=True)
    (root / "in/masks").mkdir()
    rows = ["path,patient_id,split"]
    for i in range(20):
        study = latents.study(latents.Key(0, "probe_train", i, 0))
        film, mask = xray.render(study, 64, mask=True)
        (root / f"in/images/{i}.jpg").write_bytes(images.encode_jpeg(film))
        (root / f"in/masks/{i}.png").write_bytes(images.encode_png(mask))
        split = "train" if i < 12 else ("val" if i < 16 else "test")
        rows.append(f"images/{i}.jpg,{i // 2},{split}")
    (root / "in/labels.csv").write_text("\n".join(rows) + "\n")
    argv = ["folder", f"--source={root / 'in'}", f"--target={root / 'out'}"]
    assert prepare.main([*argv, "--size=48", "--masks=masks", "--workers=1"]) == 0
    return root


@pytest.fixture(scope="module")
def run(prepared, encoder, tmp_path_factory):
    c = config(
        encoder,
        data__path=str(prepared / "out"),
        data__threads=1,
        data__hflip=0.0,
        total_steps=100,
        optim__warmup_steps=5,
        optim__peak_lr=2e-2,
        log_every=5,
        eval_every=100,
        save_every=100,
        num_devices=1,
    )
    workdir = tmp_path_factory.mktemp("runs") / "segment"
    main.run(c, str(workdir))
    return c, workdir


def test_a_few_steps_learn_and_the_test_split_has_intervals(run, capsys):
    c, workdir = run
    rows = [json.loads(r) for r in (workdir / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[0], rows[-1]
    assert last["loss"] < 0.5 * first["loss"]
    main.measure(tiny.copy_of(c), str(workdir), "test")
    result = json.loads((workdir / "evaluation_test.json").read_text())
    assert (result["n"], result["n_patients"]) == (4, 2)
    row = result["intervals"]["dice"]
    assert row["low"] <= row["value"] <= row["high"]
    assert row["value"] == pytest.approx(result["dice"]) and result["dice"] > 0.5
    assert "dice_per_image" in capsys.readouterr().out


def test_the_decoder_travels_in_a_folder_and_as_published(run, tmp_path):
    _, workdir = run
    assert (
        export.main([f"--workdir={workdir}", "--head", f"--out={tmp_path / 'a'}"]) == 0
    )
    folder = model_folder.load(str(tmp_path / "a"), "vit")
    assert folder.heads.kind == "segment"
    assert folder.heads.architecture == {"encoder_width": 32, "widths": [16, 8, 4, 1]}
    published = str(tmp_path / "b.safetensors")
    argv = ["--kind=segment", "--to=torch", f"--source={workdir}"]
    assert convert_main([*argv, f"--target={published}"]) == 0
    state = safetensors.numpy.load_file(published)
    assert state["model.decoder.0.weight"].shape == (16, 32, 3, 3)
    assert state["model.decoder.6.weight"].shape == (4, 1, 2, 2)
    argv = ["--kind=segment", f"--source={published}", f"--target={tmp_path / 'c'}"]
    assert convert_main([*argv, "--num_heads=2"]) == 0
    again = model_folder.load(str(tmp_path / "c"), "vit").heads.flat()
    for name, value in folder.heads.flat().items():
        np.testing.assert_array_equal(again[name], value, err_msg=name)
