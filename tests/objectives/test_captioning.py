"""MVMAE-V2T: the report's loss, what it must not move, and what it writes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pacx_jax import main, objectives
from pacx_jax.errors import PacxError
from pacx_jax.input import tokenizer
from pacx_jax.objectives import captioning
from pacx_jax.run import finished
from tests import stages, tiny
from tests.reliability import runs

KEY = jax.random.key(5)
ALL = {"caption__per_step": "all"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    path = tmp_path_factory.mktemp("words")
    tiny.write_tokenizer(path / "tokenizer.json")
    return {"model_init": str(path / "vit")}


@pytest.fixture(scope="module")
def made(folders, meshes):
    """Fields of the config -> objective, parameters, and its loss, compiled once."""
    known = {}

    def make(**fields):
        key = tuple(fields.items())
        if key not in known:
            objective = objectives.make(
                runs.config("v2t", folders, **fields), meshes[1]
            )

            def loss(params, examples, train, o=objective):
                return o.loss(params, examples, KEY, train=train, step=20)

            value = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=2)
            known[key] = objective, tiny.random_start(objective), value
        return known[key]

    return make


def test_padding_and_missing_reports_move_nothing(made):
    _, params, value = made()
    examples = stages.batch("v2t", 8)
    other = dict(examples, report_tokens=examples["report_tokens"].copy())
    absent = examples["report_present"] == 0
    assert absent.any() and not absent.all()
    other["report_tokens"][absent] = 7
    got, want = (value(params, x, False) for x in (other, examples))
    jax.tree.map(np.testing.assert_array_equal, got, want)
    none = dict(examples, report_present=np.zeros(8, np.float32))
    (_, metrics), grads = value(params, none, False)
    assert metrics["caption"] == 0
    assert all(not np.any(g) for g in jax.tree.leaves(grads["caption"]))
    (_, metrics), grads = want
    assert metrics["caption"] > 0
    flat = tiny.flat(grads["caption"])
    assert [k for k, g in flat.items() if not np.any(g)] == []


def test_a_view_that_is_missing_is_never_read(made):
    for per_step in captioning.PER_STEP:
        _, params, value = made(**({} if per_step == "one" else ALL))
        examples = stages.batch("v2t", 8)
        gone = examples["view_mask"] == 0
        assert gone.any()
        changed = dict(examples, images=examples["images"].copy())
        changed["images"][gone] = 255 - changed["images"][gone]
        got, want = (value(params, x, False) for x in (changed, examples))
        jax.tree.map(np.testing.assert_array_equal, got, want)


def test_one_of_the_views_is_drawn_by_key_and_row():
    mask = jnp.float32([[1, 1, 0], [1, 0, 0], [1, 1, 1]])
    rows = jnp.arange(3)
    drawn = np.stack(
        [captioning.drawn_slot(jax.random.key(i), rows, mask) for i in range(64)]
    )
    assert set(drawn[:, 0]) == {0, 1} and set(drawn[:, 1]) == {0}
    assert set(drawn[:, 2]) == {0, 1, 2}
    alone = captioning.drawn_slot(jax.random.key(0), rows[2:], mask[2:])
    assert alone[0] == drawn[0, 2]


def test_all_views_are_the_mean_over_tokens_of_each(made):
    (_, params, of_all), (_, _, of_one) = made(**ALL), made()
    examples = stages.batch("v2t", 8)
    (_, metrics), _ = of_all(params, examples, False)
    total = count = 0
    for slot in range(2):  # a batch whose studies have this view alone
        here = examples["view_mask"][:, slot] > 0
        mask = np.zeros_like(examples["view_mask"])
        mask[:, slot] = here
        present = examples["report_present"] * here
        alone = dict(examples, view_mask=mask, report_present=present)
        (_, found), _ = of_one(params, alone, False)
        words = (examples["report_tokens"][:, 1:] > 0).sum(1) @ present
        total, count = total + words * found["caption"], count + words
    np.testing.assert_allclose(metrics["caption"], total / count, rtol=1e-5)


def test_validation_is_per_token_from_the_first_view(made):
    objective, params, value = made()
    examples = stages.batch("v2t", 8)
    out = jax.jit(objective.outputs)(params, examples, KEY)
    out = {k: np.asarray(v) for k, v in out.items()}
    words = (examples["report_tokens"][:, 1:] > 0).sum(1)
    want = words * examples["report_present"]
    np.testing.assert_array_equal(out["caption_tokens"], want)
    found = objective.summarize(out)
    first = dict(examples, view_mask=np.float32([[1, 0]] * 8))
    (_, metrics), _ = value(params, first, False)
    np.testing.assert_allclose(found["caption"], metrics["caption"], rtol=1e-5)
    np.testing.assert_allclose(found["perplexity"], np.exp(found["caption"]))


def test_dropout_acts_in_training_alone(made):
    _, params, value = made()
    examples = stages.batch("v2t", 8)
    (_, evaluated), _ = value(params, examples, False)
    (_, trained), _ = value(params, examples, True)
    assert evaluated["caption"] != trained["caption"]


def test_the_text_decoder_is_discarded_at_export(folders, made):
    c, (_, params, _) = runs.config("v2t", folders), made()
    assert "caption" in params
    folder = objectives.load("mvmae").export(c, params, None)
    assert folder.kind == "vit" and folder.heads.kind == "mae"
    assert "caption" not in folder.params and set(folder.heads.params) == {"decoder"}
    assert folder.architecture["views"] == 3


def test_texts_are_written_from_the_visible_tokens(folders, made):
    captioner, (_, params, _) = captioning.make(runs.config("v2t", folders)), made()
    rng = np.random.default_rng(0)
    tokens = np.float32(rng.normal(size=(3, 3, 32)))
    keep, view = np.int32([[0, 1], [2, 3], [1, 2]]), np.int32([0, 1, 0])
    greedy = captioner.write(params, tokens, keep, view)
    assert len(greedy) == 3 and all(isinstance(text, str) for text in greedy)
    assert greedy == captioner.write(params, tokens, keep, view)
    drawn = [
        captioner.write(params, tokens, keep, view, k=5, key=jax.random.key(i))
        for i in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__tokenizer": ""}, "config.data.tokenizer is empty"),
        ({"caption__weight": -1.0}, "config.caption.weight is -1.0"),
        ({"caption__per_step": "two"}, "config.caption.per_step 'two': choose one or"),
        ({"caption__posemb": "sin"}, "config.caption.posemb 'sin'"),
    ],
)
def test_a_config_that_cannot_be_is_one_line(made, fields, message):
    with pytest.raises(PacxError, match=message):
        made(**fields)


def test_texts_of_a_run_are_written_with_its_own_tokenizer(folders, tmp_path):
    words = tmp_path / "tokenizer.json"
    tiny.write_tokenizer(words)
    config = runs.config("v2t", folders, data__tokenizer=str(words))
    (tmp_path / "config.json").write_text(config.to_json())
    about = {"report.fingerprint": tokenizer.load(words).sha256}
    (tmp_path / "data.json").write_text(json.dumps(about))
    assert finished.read_captioner(str(tmp_path)).words.path == str(words)
    tokenizer.train(["edema is seen", "edema was seen"], 1000).save(str(words))
    with pytest.raises(PacxError, match="another tokenizer .*restore that one"):
        finished.read_captioner(str(tmp_path))


@pytest.mark.full
def test_a_run_of_another_tokenizer_is_not_gone_on_with(folders, tmp_path, monkeypatch):
    runs.use_patients(monkeypatch)
    words = tmp_path / "tokenizer.json"
    tiny.write_tokenizer(words)
    short = {"total_steps": 2, "save_every": 2, "eval_every": 2, "best": ""}
    c = runs.config("v2t", folders, data__tokenizer=str(words), **short)
    main.run(c, str(tmp_path / "run"))
    (tmp_path / "run" / "done.json").unlink()
    tokenizer.train(["edema is seen", "edema was seen"], 1000).save(str(words))
    with pytest.raises(PacxError, match="another data: .*report.fingerprint was"):
        main.run(c, str(tmp_path / "run"))


@pytest.mark.full
def test_a_run_whose_studies_lack_what_it_reads_warns(
    folders, tmp_path, monkeypatch, capsys
):
    runs.use_patients(monkeypatch)
    short = {"total_steps": 2, "save_every": 2, "eval_every": 2, "best": ""}
    sections = {"data__report_sections": ("findings",)}  # which are all blank
    main.run(runs.config("v2t", folders, **short, **sections), str(tmp_path / "run"))
    said = capsys.readouterr().err
    assert "has a report (findings): it may teach nothing" in said


@pytest.mark.full
def test_devices_change_no_number(folders, meshes):
    c = stages.config("v2t", folders, loss__beta_schedule="constant")
    alone = stages.one_step(c, meshes[1], "float32", optimizer=False)
    shared = stages.one_step(c, meshes[2], "float32", optimizer=False)
    assert max(stages.differences(shared, alone)) < 1e-5
