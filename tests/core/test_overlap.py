"""Training patients as keyed hashes, and probes whose patients the encoder has seen."""

import json
import shutil
import stat

import numpy as np
import pytest

from pacx_jax import main
from pacx_jax.errors import PacxError
from pacx_jax.input import images, patients, sources
from pacx_jax.run import fingerprints, overlap
from tests import tiny


def draw(root, split_of):
    """A folder of one image a patient; `split_of` is patient -> split."""
    root.mkdir()
    rng = np.random.default_rng(0)
    for patient in split_of:
        pixels = rng.integers(0, 256, (20, 24), dtype=np.uint8)
        (root / f"{patient}.png").write_bytes(images.encode_png(pixels))
    rows = [
        f"{p}.png,{p},{split},{i % 2}" for i, (p, split) in enumerate(split_of.items())
    ]
    (root / "labels.csv").write_text("\n".join(["path,patient_id,split,y", *rows]))
    return root


def configured(recipe, data, **fields):
    return tiny.config(
        recipe,
        data__source="folder",
        data__path=str(data),
        data__val_fraction=0.0,
        **fields,
    )


def account(config, workdir):
    train = sources.open_source(config.data, "train")
    overlap.account(config, str(workdir), train)
    return workdir


@pytest.fixture
def pretrained(tmp_path):
    """The lists of an MAE run on a, b and of a distillation from it on c, d."""
    first = draw(tmp_path / "first", {"a": "train", "b": "train", "z": "val"})
    second = draw(tmp_path / "second", {"c": "train", "d": "train", "b2": "val"})
    mae = account(configured("mae_vitb16", first), tmp_path / "mae")
    config = configured("distill_vitb16", second, model_init=str(mae))
    return account(config, tmp_path / "distill")


def probe(tmp_path, pretrained, split_of, **fields):
    """Accounts for a probe; returns its overlap.json."""
    data = draw(tmp_path / "probe_data", split_of)
    fields = {"model_init": str(pretrained)} | fields
    workdir = tmp_path / "probe"
    account(configured("linear_probe", data, **fields), workdir)
    return json.loads((workdir / "overlap.json").read_text())


def test_probe_of_unseen_patients_is_clean_whoever_it_trains_on(
    tmp_path, pretrained, capsys
):
    found = probe(tmp_path, pretrained, {"a": "train", "v": "val", "z": "test"})
    assert found["status"] == "none" and not found["unknown"]
    assert found["splits"] == {
        "val": {"patients": 1, "shared": 0},
        "test": {"patients": 1, "shared": 0},
    }
    assert [run["patients"] for run in found["runs"]] == [2, 2]
    assert not capsys.readouterr().out


@pytest.mark.parametrize("seen", ["a", "c"])
@pytest.mark.parametrize("split", ["val", "test"])
def test_probe_of_a_patient_seen_by_any_run_of_the_chain_is_refused(
    tmp_path, pretrained, seen, split
):
    with pytest.raises(PacxError) as error:
        probe(tmp_path, pretrained, {"t": "train", seen: split, "u": split})
    text = str(error.value)
    assert f"1 of 2 {split} patients" in text and "allow_overlap" in text
    run = {"a": "mae", "c": "distill"}[seen]
    assert str(tmp_path / run) in text and "\n" not in text
    assert not (tmp_path / "probe" / "patients.json").exists()


def test_allowed_overlap_trains_and_says_so(tmp_path, pretrained, capsys):
    split_of = {"t": "train", "a": "test", "v": "val"}
    found = probe(tmp_path, pretrained, split_of, data__allow_overlap=True)
    assert found["status"] == "shared" and found["allowed"]
    assert "1 of 1 test patients" in capsys.readouterr().out


def test_patients_that_two_sets_split_differently_are_told_and_no_probe_is_made(
    tmp_path, capsys
):
    one = draw(tmp_path / "one", {"a": "train", "v": "val"})
    two = draw(tmp_path / "two", {"b": "train", "a": "val", "w": "test"})
    data, text = (str(one), str(two)), "1 of 2 val patients are in train too"
    account(configured("mae_vitb16", data), tmp_path / "mae")
    assert text in capsys.readouterr().out
    with pytest.raises(PacxError, match=f"{text}.*config.data.namespace"):
        account(configured("linear_probe", data), tmp_path / "probe")
    spaces = {"data__namespace": '("", "mine")'}
    account(configured("linear_probe", data, **spaces), tmp_path / "probe")


def test_chain_outlives_its_first_run(tmp_path, pretrained):
    shutil.rmtree(tmp_path / "mae")
    with pytest.raises(PacxError, match="1 of 1 test patients"):
        probe(tmp_path, pretrained, {"t": "train", "a": "test", "v": "val"})


def test_export_inside_a_workdir_is_still_that_run(tmp_path, pretrained):
    (pretrained / "export").mkdir()
    with pytest.raises(PacxError, match="1 of 1 test patients"):
        split_of = {"t": "train", "a": "test", "v": "val"}
        probe(tmp_path, pretrained / "export", split_of)


def test_exported_or_converted_encoder_is_unknown_and_says_so_once(
    tmp_path, pretrained, capsys
):
    exported = tmp_path / "exported"
    exported.mkdir()
    found = probe(tmp_path, exported, {"t": "train", "a": "test", "v": "val"})
    assert found["status"] == "unknown" and str(exported) in found["unknown"][0]
    assert "overlap unknown" in capsys.readouterr().out
    config = configured(
        "linear_probe", tmp_path / "probe_data", model_init=str(exported)
    )
    account(config, tmp_path / "probe")
    assert not capsys.readouterr().out


def test_without_the_key_the_overlap_is_unknown(tmp_path, pretrained):
    (pretrained / "patients.key").unlink()
    found = probe(tmp_path, pretrained, {"t": "train", "a": "test", "v": "val"})
    assert found["status"] == "unknown" and "patients.key" in found["unknown"][0]


def test_data_without_patients_are_unknown(tmp_path, pretrained):
    split_of = {"t": "train", "a": "test", "v": "val"}
    found = probe(tmp_path, pretrained, split_of, data__patient_column="-")
    assert found["status"] == "unknown" and "names no patients" in found["unknown"][0]
    assert found["splits"]["test"] == {"patients": None, "shared": None}


def test_ids_of_other_data_sets_are_other_people(tmp_path, pretrained):
    split_of = {"t": "train", "a": "test", "v": "val"}
    found = probe(tmp_path, pretrained, split_of, data__namespace="elsewhere")
    # A folder's ids may be anybody's, so that it is not known.
    assert found["status"] == "unknown" and "namespace" in found["unknown"][0]
    assert found["splits"]["test"]["shared"] == 0


def test_data_sets_cut_from_mimic_share_its_patients():
    spaces = {patients.namespace(n) for n in ("symile_mimic", "medmod", "cxlseg")}
    assert spaces == {"mimic"}
    spellings = ("10000032", "p10000032", "p10000032.0")
    assert {patients.key("mimic", p) for p in spellings} == {"mimic/10000032"}
    assert patients.key("chexpert", "p7") == "chexpert/p7"
    assert patients.namespace("chexpert") == "chexpert"


def test_list_holds_no_id_and_its_key_is_for_the_owner(tmp_path):
    data = draw(tmp_path / "data", {"patient-17": "train", "other-4": "val"})
    config = configured("mae_vitb16", data)
    workdirs = [account(config, tmp_path / name) for name in ("one", "two")]
    lists = [(w / "patients.json").read_text() for w in workdirs]
    assert all("patient-17" not in text and "other-4" not in text for text in lists)
    hashes = [json.loads(text)["runs"][0]["hashes"] for text in lists]
    assert len(hashes[0]) == 1 and hashes[0] != hashes[1]  # a key of its own each
    assert stat.S_IMODE((workdirs[0] / "patients.key").stat().st_mode) == 0o600


def test_resumed_run_keeps_its_list(tmp_path):
    data = draw(tmp_path / "data", {"a": "train", "b": "val"})
    config = configured("mae_vitb16", data)
    workdir = account(config, tmp_path / "run")
    before = {p.name: p.read_bytes() for p in workdir.iterdir()}
    account(config, workdir)
    assert {p.name: p.read_bytes() for p in workdir.iterdir()} == before
    assert set(before) == {"patients.json", "patients.key"}


def test_damaged_list_is_one_line(tmp_path, pretrained):
    (pretrained / "patients.json").write_text('{"format": 1, "runs": [{}]}')
    with pytest.raises(PacxError, match="patients.json is damaged") as error:
        probe(tmp_path, pretrained, {"t": "train", "a": "test", "v": "val"})
    assert "\n" not in str(error.value)


def test_finished_probe_is_not_measured_on_seen_patients(tmp_path, pretrained):
    split_of = {"t": "train", "v": "val", "u": "test"}
    probe(tmp_path, pretrained, split_of)
    later = draw(tmp_path / "later", {"t": "train", "v": "val", "a": "test"})
    config = configured("linear_probe", later, model_init="moved")
    workdir = str(tmp_path / "probe")
    overlap.check_evaluation(config, workdir, "val")
    with pytest.raises(PacxError, match="1 of 1 test patients"):
        overlap.check_evaluation(config, workdir, "test")


def test_main_refuses_before_anything_is_trained(tmp_path, pretrained):
    data = draw(tmp_path / "data", {"t": "train", "a": "val"})
    config = configured("linear_probe", data, model_init=str(pretrained))
    with pytest.raises(PacxError, match="1 of 1 val patients"):
        main.run(config, str(tmp_path / "run"))
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_permission_to_overlap_changes_no_run(tmp_path):
    old = {"seed": 0, "data": {"path": "x"}}
    new = {"seed": 0, "data": {"path": "x", "allow_overlap": True, "namespace": "n"}}
    old, new = fingerprints.flat(old), fingerprints.flat(new)
    fingerprints.refuse(old, new, fingerprints.HARMLESS, "run", "config", force=False)
