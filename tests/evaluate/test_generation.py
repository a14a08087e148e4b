"""A CheXmix that writes, fills in and scores; its floors; the command."""

import json

import jax
import numpy as np
import PIL.Image
import pytest

from pacx_jax import load_encoder
from pacx_jax.commands import generate
from pacx_jax.encoders import model_folder
from pacx_jax.encoders.generator import Generator, load_generator
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import features, generation, inpainting, masked_embeddings
from pacx_jax.input import tokenizer
from pacx_jax.models import mae
from tests import tiny
from tests.reliability import runs

K = 16  # patches of 4 pixels a side


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    tiny.write_tokenizer(path / "words.json")
    folder = tiny.unified_folder(tokenizer.load(path / "words.json"))
    model_folder.save(path / "model", folder, card="a test's")
    return path


@pytest.fixture(scope="module")
def model(files):
    return load_generator(files / "model", files / "words.json", batch_size=8)


@pytest.fixture(scope="module")
def films():
    return np.random.default_rng(0).integers(0, 256, (5, 20, 24), dtype=np.uint8)


@pytest.fixture(scope="module")
def studies(films, model):
    pixels = model.pixels(films)
    texts = ["no effusion", "possible edema", "", "no effusion", "small effusion"]
    lung = np.zeros((5, 16, 16), bool)
    lung[:, :, :8] = True
    names = np.array(list("aabcd"))
    return generation.Studies(pixels, texts, lung, names)


def test_reports_depend_on_image_seed_and_number_alone(model, films):
    greedy = model.write(films)
    assert len(greedy) == 5 and all(isinstance(text, str) for text in greedy)
    assert model.write(films) == greedy
    nothing = model.write(films, np.ones(K, bool))
    assert len(set(nothing)) == 1 and len(set(greedy)) > 1
    how = {"k": 50, "temperature": 2.0, "top_p": 0.95}
    drawn = [model.write(films, seed=seed, **how) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.full
def test_devices_and_batches_change_no_text_and_no_pixel(files, model, films):
    folder = model_folder.load(files / "model")
    words = tokenizer.load(files / "words.json")
    alone = Generator(folder, words, batch_size=2, num_devices=1)
    how = {"k": 50, "temperature": 2.0, "seed": 3}
    assert alone.write(films, **how) == model.write(films, **how)
    hidden = generation.hidden_patches(5, 4, 0.5)
    got, want = (m.paint(films, hidden, **how) for m in (alone, model))
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("way", ["sequence", "at once"])
def test_filled_in_x_rays_keep_what_is_seen_and_never_read_what_is_hidden(
    model, films, way
):
    pixels, hidden = model.pixels(films), generation.hidden_patches(5, 4, 0.5)
    painted = model.paint(pixels, hidden, way=way)
    inside = hidden.reshape(5, 4, 4).repeat(4, 1).repeat(4, 2)
    seen = np.float32(pixels / 255)
    np.testing.assert_array_equal(painted[~inside], seen[~inside])
    assert painted.shape == (5, 16, 16, 1) and painted.min() >= 0 <= painted.max() <= 1
    changed = np.where(inside[..., None], 255 - pixels, pixels)
    np.testing.assert_array_equal(model.paint(changed, hidden, way=way), painted)
    told = model.paint(pixels, hidden, ["possible edema"] * 5, way=way)
    assert (told != painted).any()


def test_masked_inputs_have_its_row_and_never_read_what_is_removed(files, films):
    folder = model_folder.load(files / "model")
    numbers, x = np.arange(5, dtype=np.uint32), Generator(folder, None).pixels(films)
    rows = masked_embeddings.Rows(x, np.zeros(5, np.int32), numbers)
    *_, drawn = mae.random_masking(jax.random.key(0), numbers, K, 0.5)
    gone = np.asarray(drawn).reshape(5, 4, 4).repeat(4, 1).repeat(4, 2) > 0
    changed = np.where(gone[..., None], 255 - x, x)
    others = masked_embeddings.Rows(changed, *(rows.views, numbers))
    embed = masked_embeddings.embeddings
    z, same = (embed(folder, r, 0.5, 0, 8) for r in (rows, others))
    np.testing.assert_array_equal(z, same)
    assert np.abs(z - embed(folder, rows, 0.0, 0, 8)).max() > 1e-3
    model, reason = inpainting.with_decoder(str(files / "model"))
    assert model.kind == "unified" and not reason
    mean = np.full((16, 16, 1), 0.5)
    scores = inpainting.filled(model, rows, mean, 0.5, 0, 8)
    assert scores.shape == (5, 2, 3)
    apart = np.abs(x[..., 0] / 255 - 0.5)
    want = [apart[i][gone[i]].mean() for i in range(5)]
    np.testing.assert_allclose(scores[:, 1, 0], want, rtol=1e-5)


def test_layers_are_those_that_the_encoder_averages(files, model, films):
    z = load_encoder(files / "model")(films)
    layers = model.layers(films)
    assert layers.shape == (5, 2, 32)
    np.testing.assert_allclose(layers[:, 0], z, atol=1e-5)


def test_likelihoods_are_of_the_text_after_the_image(model, films, capsys):
    texts = ["no effusion", "possible edema is seen", "small effusion"]
    found = model.log_likelihood(films[:2], texts)
    codes, words, of = model.codes(films[:2]), model.words, model.module.transformer
    params = {"params": jax.device_get(model.params)["transformer"]}
    apply = jax.jit(of.apply)
    for i in range(2):
        for j, text in enumerate(texts):
            ids = np.array([2, *model.tokenizer.ids(text), 3])
            image = [words.image_start, *(codes[i] + words.first_code)]
            tokens = np.array([[*image, words.image_end, *ids]])
            padded = np.zeros((1, 34), int)
            padded[:, : tokens.shape[1]] = tokens
            logs = jax.nn.log_softmax(apply(params, padded))[0]
            want = sum(logs[18 + t, ids[t + 1]] for t in range(len(ids) - 1))
            np.testing.assert_allclose(found[i, j], want, rtol=1e-4)
    assert "are cut" not in capsys.readouterr().err
    model.text_log_likelihood([*texts, "edema " * 50])
    assert "1 of 4 texts have more than the" in capsys.readouterr().err
    alone = model.text_log_likelihood(texts)
    assert alone.shape == (3,) and (alone < 0).all()
    logs = jax.nn.log_softmax(
        apply(params, np.pad([ids], ((0, 0), (0, 34 - len(ids)))))
    )
    want = sum(logs[0, t, ids[t + 1]] for t in range(len(ids) - 1))
    np.testing.assert_allclose(alone[-1], want, rtol=1e-4)


def test_hidden_patches_are_a_share_by_seed_and_row():
    for share, count in ((0, 0), (0.25, 9), (0.5, 18), (1, 36)):
        found = generation.hidden_patches(20, 6, share)
        assert (found.sum(1) == count).all()
    half = generation.hidden_patches(20, 6, 0.5, seed=1)
    np.testing.assert_array_equal(
        half[:7], generation.hidden_patches(7, 6, 0.5, seed=1)
    )
    assert len({row.tobytes() for row in half}) == 20
    block = generation.hidden_patches(3, 6, 0.25, "block").reshape(3, 6, 6)
    for one in block:
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert rows == columns == 3 and one.sum() == 9
    with pytest.raises(PacxError, match="share 1.5 and shape 'random': give 0 to 1"):
        generation.hidden_patches(1, 6, 1.5)


def test_inpainting_scores_hidden_pixels_inside_and_outside_of_masks(model, studies):
    mean = np.full((16, 16, 1), 0.5)
    rows = generation.inpainting([model], studies, mean, 0.5)
    found = {(row["filled_by"], row["where"]): row for row in rows}
    names = {"model", "model and report", "report alone", "mean image",
             "image tokenizer"}  # fmt: skip
    assert set(found) == {(n, w) for n in names for w in ("all", "inside", "outside")}
    hidden = generation.hidden_patches(5, 4, 0.5)
    gone = hidden.reshape(5, 4, 4).repeat(4, 1).repeat(4, 2)
    apart = np.abs(studies.images[..., 0] / 255 - 0.5)
    each = {
        "all": gone,
        "inside": gone & studies.masks,
        "outside": gone & ~studies.masks,
    }
    for where, region in each.items():
        row = found["mean image", where]
        want = np.mean([apart[i][region[i]].mean() for i in range(5)])
        np.testing.assert_allclose(row["l1"]["value"], want, rtol=1e-5)
        assert row["l1"]["low"] <= row["l1"]["value"] <= row["l1"]["high"]
        assert row["n"] == 5 and found["report alone", where]["n"] == 4
    whole = model.decode(model.codes(studies.images))
    scores = generation.pixel_scores(whole, studies.images, gone)
    row = found["image tokenizer", "all"]
    np.testing.assert_allclose(row["psnr"]["value"], scores["psnr"].mean(), rtol=1e-5)
    perfect = generation.pixel_scores(studies.images / 255, studies.images, gone)
    assert perfect["l1"].max() < 1e-6 and perfect["ssim"].min() > 0.9999


def test_intervals_of_filled_in_pixels_and_reports_cover_trainings(model, studies):
    pytest.importorskip("rouge_score")
    mean = np.full((16, 16, 1), 0.5)

    def painter(level):
        return lambda images, hidden: np.full(images.shape, level, np.float32)

    others = {"grey": [painter(level) for level in (0.3, 0.5, 0.7)]}
    rows = generation.inpainting([model] * 3, studies, mean, 0.5, others=others)
    found = {row["filled_by"]: row for row in rows if row["where"] == "all"}
    grey, floor = found["grey"], found["mean image"]
    assert grey["trainings"] == 3 and floor["trainings"] == 1
    each = [
        generation.inpainting([model], studies, mean, 0.5, others={"a": [painter(x)]})
        for x in (0.3, 0.5, 0.7)
    ]
    values = [
        next(r for r in e if r["filled_by"] == "a" and r["where"] == "all")["l1"]
        for e in each
    ]
    want = np.mean([v["value"] for v in values])
    np.testing.assert_allclose(grey["l1"]["value"], want, rtol=1e-6)
    width = {k: r["l1"]["high"] - r["l1"]["low"] for k, r in found.items()}
    assert width["grey"] > max(v["high"] - v["low"] for v in values)
    alone = generation.inpainting([model], studies, mean, 0.5)[0]["l1"]
    assert found["model"]["l1"]["value"] == pytest.approx(alone["value"])
    np.testing.assert_allclose(width["model"], alone["high"] - alone["low"], rtol=1e-6)
    less = floor["model_less"]["l1"]["value"]
    both = found["model"]["l1"]["value"] - floor["l1"]["value"]
    np.testing.assert_allclose(less, both, rtol=1e-6)

    rows, _ = generation.written_reports([model] * 2, studies, studies, (0.0,))
    by = {row["written_by"]: row for row in rows}
    assert by["model"]["f1"]["value"] == pytest.approx(by["model"]["label_f1_micro"])
    nearest = by["nearest training X-ray"]
    assert nearest["f1"]["value"] == 1 and nearest["trainings"] == 2
    less = nearest["model_less"]["f1"]["value"]
    assert less == pytest.approx(by["model"]["f1"]["value"] - 1)


def test_written_reports_stand_beside_their_floors(model, studies):
    pytest.importorskip("rouge_score")
    rows, texts = generation.written_reports([model], studies, studies, (0.0, 1.0))
    by = {(row["written_by"], row["share"]): row for row in rows}
    assert set(by) == {("model", 0.0), ("model", 1.0), ("most frequent report", 1.0),
                       ("nearest training X-ray", 0.0)}  # fmt: skip
    nearest = by["nearest training X-ray", 0.0]  # each is its own
    assert nearest["pairs"] == 4 and nearest["rouge_l"] == 1
    assert [row["true"] for row in texts] == [t for t in studies.texts if t]
    common = [row["most frequent report, 1 hidden"] for row in texts]
    assert common == ["no effusion"] * 4
    assert len({row["model, 1 hidden"] for row in texts}) == 1


def test_retrieval_is_over_studies_of_different_texts(model, studies):
    rows = generation.retrieval(model, studies)
    assert len(rows) == 3 and {row["n"] for row in rows} == {3}
    assert all(row["recall@5"] == 1 and row["chance@1"] == 1 / 3 for row in rows)


def test_best_layers_are_found_on_validation_images(model):
    rng = np.random.default_rng(0)
    labels = np.float32(np.arange(40) % 2)[:, None]
    bright = np.uint8(
        60 + 120 * labels[:, :1, None] + rng.integers(0, 40, (40, 16, 16))
    )
    names = np.array([str(i) for i in range(40)])
    mask = np.ones_like(labels)
    sets = [
        features.ProbeSet(list(x), labels, mask, names, ["PA"] * 40)
        for x in (bright, bright[::-1][::-1])
    ]
    rows = generation.best_layers(model, *sets)
    assert {(row["first"], row["last"]) for row in rows} == {(0, 0), (1, 1), (0, 1)}
    assert [row["auroc"] for row in rows] == sorted(
        (row["auroc"] for row in rows), reverse=True
    )
    assert rows[0]["auroc"] > 0.9


def test_what_does_not_fit_is_one_line(files, model, films, tmp_path):
    text = (files / "words.json").read_text().replace('"effusion"', '"effusions"')
    (tmp_path / "words.json").write_text(text)
    with pytest.raises(PacxError, match="another tokenizer .sha256"):
        load_generator(files / "model", tmp_path / "words.json")
    with pytest.raises(
        PacxError, match="codes from 0 to 16: the image tokenizer has 0"
    ):
        model.decode(np.full((1, K), 16) * np.eye(1, K, dtype=int))
    with pytest.raises(PacxError, match=r"codes of shape \(1, 9\): give \(n, 16\)"):
        model.decode(np.zeros((1, 9), int))
    with pytest.raises(
        PacxError, match=r"shape \(9,\): give bool \(16,\) or \(5, 16\)"
    ):
        model.write(films, np.zeros(9, bool))
    with pytest.raises(PacxError, match="way 'sideways': choose sequence or at once"):
        model.paint(films, np.zeros(K, bool), way="sideways")
    with pytest.raises(PacxError, match="1 texts, 5 images: give one each"):
        model.paint(films, np.zeros(K, bool), ["edema"])


def run(*argv):
    return generate.main([str(a) for a in argv])


def test_command_writes_reports_of_a_folder(files, films, tmp_path, capsys):
    for i, film in enumerate(films[:2]):
        PIL.Image.fromarray(film).save(tmp_path / f"{i}.png")
    given = f"--model={files / 'model'}", f"--tokenizer={files / 'words.json'}"
    out = tmp_path / "reports.jsonl"
    assert run("write", *given, f"--images={tmp_path}", f"--out={out}") == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["path"] for row in rows] == ["0.png", "1.png"]
    assert "2 reports in" in capsys.readouterr().out
    assert run("inpainting", *given, f"--out={out}") == 2
    assert "--data is missing" in capsys.readouterr().err
    assert run("write", *given, f"--out={out}") == 2
    assert "--images is missing" in capsys.readouterr().err
    wrong = f"--data={tmp_path}", "--shares=a"
    assert run("inpainting", *given, *wrong, f"--out={out}") == 2


@pytest.mark.parametrize(
    "what",
    [
        "inpainting",
        *(pytest.param(w, marks=pytest.mark.full) for w in generate.WHAT[2:]),
    ],
)
def test_command_measures_on_a_set(what, files, tmp_path, monkeypatch, capsys):
    if what == "reports":
        pytest.importorskip("rouge_score")
    runs.use_patients(monkeypatch)
    out = tmp_path / "found.json"
    argv = [what, f"--model={files / 'model'}", f"--tokenizer={files / 'words.json'}"]
    argv += ["--data=set", f"--out={out}", "--shares=0.5", "--batch_size=8"]
    split = [] if what == "layers" else ["--split=val"]
    assert run(*argv, *split) == 0
    found = json.loads(out.read_text())
    assert len(capsys.readouterr().out.splitlines()) == len(found["rows"]) > 0
    assert bool(found["texts"]) == (what == "reports")
