"""Masked inputs: what is removed is not seen, whose mask it is, tables and refusals."""

import dataclasses
import doctest
import json

import jax
import numpy as np
import pytest

from pacx_jax import main
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.evaluate import features, inpainting, masked_embeddings, masked_inputs
from pacx_jax.input import sources
from pacx_jax.models import mae, vit
from pacx_jax.objectives import mae as mae_objective
from tests import tiny
from tests.objectives import test_vq
from tests.reliability import runs

PATCH, SIDE = 8, 32
N = {"train": 60, "test": 40}


class Labelled:
    """X-rays whose brightness tells their label, as functions of their number."""

    label_names = ("bright", "striped")
    namespace, notes, entries = "tests", (), ("image", "labels")

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return N[self.split]

    def __getitem__(self, i):
        rng = np.random.default_rng([i, *self.split.encode()])
        labels = rng.integers(0, 2, 2)
        level = 110 + 15 * labels[0] + 10 * rng.normal()
        image = rng.normal(level, 20, (SIDE, SIDE))
        image += 30 * labels[1] * (np.arange(SIDE) % 4 < 2)
        return {
            "image": np.uint8(np.clip(image, 0, 255)),
            "labels": np.float32(labels),
            "patient_id": f"{self.split}{i // 2}",
        }

    def name(self, i):
        return f"{self.split}[{i}]"

    def patients(self):
        return [f"{self.split}{i // 2}" for i in range(len(self))]

    def paths(self):
        return [f"{self.split}/{i}.png" for i in range(len(self))]


@pytest.fixture
def labelled(monkeypatch):
    monkeypatch.setattr(sources, "open_source", lambda data, split: Labelled(split))


def rows(folder, split="test"):
    source = Labelled(split)
    probe_set = features.read_probe_set(source)
    return masked_embeddings.rows_of(folder, probe_set, source.paths())


def removed(numbers, ratio, seed=0):
    """(n, side, side) whether a pixel is removed."""
    n = (SIDE // PATCH) ** 2
    *_, mask = mae.random_masking(jax.random.key(seed), numbers, n, ratio)
    mask = np.asarray(mask).reshape(-1, SIDE // PATCH, SIDE // PATCH)
    return mask.repeat(PATCH, 1).repeat(PATCH, 2) > 0


@pytest.mark.parametrize(
    "kind", ["vit", pytest.param("mvmae", marks=pytest.mark.full), "eva02"]
)
def test_removed_patches_are_not_seen_and_the_others_are(kind):
    folder = {
        "vit": lambda: tiny.folder("vit"),
        "mvmae": tiny.mvmae_folder,
        "eva02": lambda: tiny.foreign_folder("eva02"),
    }[kind]()
    whole = rows(folder)
    z = masked_embeddings.embeddings(folder, whole, 0.5, 0, 16)
    gone = removed(whole.numbers, 0.5)
    assert gone.mean() == 0.5
    noise = np.random.default_rng(1).integers(0, 256, whole.images.shape, np.uint8)
    other = np.where(gone[..., None], noise, whole.images)
    unseen = dataclasses.replace(whole, images=other)
    np.testing.assert_array_equal(
        masked_embeddings.embeddings(folder, unseen, 0.5, 0, 16), z
    )
    other = np.where(gone[..., None], whole.images, noise)
    seen = dataclasses.replace(whole, images=other)
    moved = np.abs(masked_embeddings.embeddings(folder, seen, 0.5, 0, 16) - z).max(1)
    assert moved.min() > 1e-3
    if kind == "vit":  # nothing removed: the encoder's own embedding
        got = masked_embeddings.embeddings(folder, whole, 0.0, 0, 16)
        want = Encoder(folder, 16)(list(whole.images))
        np.testing.assert_allclose(got, want, atol=1e-5)


def test_an_image_s_mask_is_its_own_and_a_greater_one_holds_a_smaller():
    folder = tiny.folder("vit")
    whole = rows(folder)
    z = masked_embeddings.embeddings(folder, whole, 0.75, 0, 16)
    some = [7, 3, 30]
    few = masked_embeddings.Rows(
        *(getattr(whole, f.name)[some] for f in dataclasses.fields(whole))
    )
    got = masked_embeddings.embeddings(folder, few, 0.75, 0, 16)
    np.testing.assert_allclose(got, z[some], atol=1e-5)
    other = masked_embeddings.embeddings(folder, few, 0.75, 1, 16)
    assert np.abs(other - got).max(1).min() > 1e-3  # another seed's
    small, great = removed(whole.numbers, 0.25), removed(whole.numbers, 0.75)
    assert (great >= small).all() and len(np.unique(small, axis=0)) > 10


def autoencoder():
    """A tiny MAE with its decoder beside it."""
    c = runs.config("mae", {})
    c.data.image_size = SIDE
    params = tiny.random_start(mae_objective.make(c))
    return mae_objective.export(c, params)


def test_filled_pixels_have_the_scores_of_plain_numpy():
    # Bound 1e-5, relative.
    model, size = autoencoder(), SIDE // PATCH
    train, test = rows(model, "train"), rows(model)
    mean_image = train.images.mean(0) / 255
    got = inpainting.filled(model, test, mean_image, 0.5, 0, 16)
    assert got.shape == (40, 2, 3)
    gone = removed(test.numbers, 0.5)
    fields = dict(model.heads.architecture)
    del fields["encoder_width"]
    whole = mae.MAE(model.module(), mae.decoder(fields))
    mean, std = (np.array(model.preprocessing[k]) for k in ("mean", "std"))
    x = np.float32((test.images / 255 - mean) / std)
    drawn = mae.random_masking(jax.random.key(0), test.numbers, size**2, 0.5)
    weights = {"encoder": model.params, "decoder": model.heads.params["decoder"]}
    pred = jax.jit(whole.apply)({"params": weights}, x, *drawn[:2])
    pred = np.asarray(vit.unpatchify(pred, PATCH, (size, size))) * std + mean
    truth = test.images / 255
    fillers = np.clip(pred, 0, 1), np.broadcast_to(mean_image, truth.shape)
    for k, filler in enumerate(fillers):
        difference = [(filler[i] - truth[i])[gone[i]] for i in range(40)]
        l1 = [np.abs(d).mean() for d in difference]
        psnr = [-10 * np.log10((d**2).mean()) for d in difference]
        np.testing.assert_allclose(got[:, k, 0], l1, rtol=1e-5)
        np.testing.assert_allclose(got[:, k, 1], psnr, rtol=1e-5)
    table = inpainting.measure(
        model, train, test, np.arange(40) // 2, (0.0, 0.5), seed=0, batch_size=16
    )
    assert [row["filled_by"] for row in table] == list(inpainting.FILLERS)
    for k, row in enumerate(table):
        for j, name in enumerate(inpainting.SCORES):
            assert row[name]["low"] < row[name]["value"] < row[name]["high"]
            assert row[name]["value"] == pytest.approx(got[:, k, j].mean(), rel=1e-5)


def test_one_command_writes_the_curve_with_intervals(labelled, tmp_path, capsys):
    for name, folder in (("vit", tiny.folder("vit")), ("views", tiny.mvmae_folder())):
        model_folder.save(tmp_path / name, folder, card="a test's")
    out = tmp_path / "out"
    argv = [f"A={tmp_path}/vit", f"B={tmp_path}/views", "--data=x", f"--out={out}"]
    before = {}
    for way in masked_inputs.PROBES:
        assert masked_inputs.main([*argv, "--ratios=0,.75", f"--probe={way}"]) == 0
        told = capsys.readouterr().out
        assert told == (out / "masked_inputs.txt").read_text()
        assert "A: not filled in, no decoder of pixels" in told
        assert f"{tmp_path}/vit: overlap unknown: " in told
        found = json.loads((out / "masked_inputs.json").read_text())
        cells = {(r["arm"], r["removed"], r["labels"]): r for r in found["auroc"]}
        assert len(cells) == 2 * 2 * 3
        for row in cells.values():
            assert row["low"] <= row["auroc"] <= row["high"]
            assert row["n_patients"] == 20
        # A random encoder sees brightness, and less of it where patches are gone.
        assert cells["A", 0.0, "bright"]["auroc"] > 0.7
        assert found["probe"] == way and found["n"] == 40
        assert {row["removed"] for row in found["pairs"]} == {0.0, 0.75}
        if way == "masked":
            assert cells["A", 0.0, "macro"] == before["A", 0.0, "macro"]
            assert cells["A", 0.75, "macro"] != before["A", 0.75, "macro"]
        before = cells


def test_bad_commands_are_one_line_each(labelled, tmp_path, capsys):
    model_folder.save(tmp_path / "vit", tiny.folder("vit"), card="a test's")
    c = test_vq.config()
    params = tiny.random_start(test_vq.objectives.make(c, None))
    model_folder.save(tmp_path / "vq", test_vq.model_of(c, params), card="a test's")
    vit_folder = f"{tmp_path}/vit"
    for argv, message in (
        (
            [f"{tmp_path}/vq"],
            "holds a vq model: masked inputs are for encoders of X-rays",
        ),
        (["A="], "encoder 'A=': give FOLDER or NAME=FOLDER"),
        ([vit_folder, "--ratios=0,1"], "--ratios=0,1: give numbers from 0 to below 1"),
        ([vit_folder, "--ratios=half"], "--ratios=half: give numbers"),
        ([vit_folder, "--ratios=.99"], "mask_ratio 0.99 keeps 0 of 16 patches"),
        ([vit_folder, "--split=train"], "x: train and train share patients"),
        ([*["A=" + vit_folder] * 2, *["B=" + vit_folder] * 3], "trainings differ"),
    ):
        assert masked_inputs.main([*argv, "--data=x", f"--out={tmp_path}/out"]) == 2
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_examples_in_docstrings_are_true():
    result = doctest.testmod(masked_inputs)
    assert result.attempted == 1 and result.failed == 0


@pytest.mark.full
def test_a_run_s_decoder_fills_in_what_is_removed(labelled, tmp_path, monkeypatch):
    with monkeypatch.context() as patched:
        runs.use_patients(patched)
        for norm in (False, True):
            c = runs.config("mae", {}, total_steps=2, loss__norm_pix_loss=norm)
            main.run(c, str(tmp_path / f"mae_{norm}"))
    out = tmp_path / "out"
    argv = [f"A={tmp_path}/mae_False", f"B={tmp_path}/mae_True", "--data=x"]
    assert masked_inputs.main([*argv, "--ratios=0,.5", f"--out={out}"]) == 0
    found = json.loads((out / "masked_inputs.json").read_text())
    assert [row["encoder"] for row in found["inpainting"]] == ["A", "A"]
    assert "standardised" in found["no_inpainting"]["B"]
    assert found["overlap"][f"{tmp_path}/mae_False"]["status"] == "unknown"
