"""The batches of a distillation whose ECGs are not all readable."""

import json

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.modalities import teachers
from pacx_jax.objectives.distill import active
from pacx_jax.run import batches
from pacx_jax.types import Objective
from tests import tiny
from tests.core.test_physiology import Source

N, BAD = 20, 5


class Triplets(Source):
    """Twenty patients, two ECGs between them; that of one patient does not move."""

    entries = ("image", "ecg", "labs", "labs_mask")

    namespace = "tests"
    notes = ()

    def __init__(self):
        super().__init__()
        self.ecg = np.resize(self.ecg[:2], (N, 5000, 12))
        self.ecg[BAD] = 1
        self.labs = np.resize(self.labs, (N, 50))
        self.mask = np.ones((N, 50), np.float32)

    def __len__(self):
        return N

    def __getitem__(self, i):
        return super().__getitem__(i) | {"image": np.full((32, 32), i, np.uint8)}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return tiny.write_folders(tmp_path_factory.mktemp("models"))


def data(folders, workdir, mesh, change=lambda source: None, **fields):
    config = tiny.distill_config(folders, data__threads=0, **fields)
    config.cache_dir = str(workdir.parent / "cache")
    chosen = {m: teachers.load(m, config.modalities[m]) for m in active(config)}
    objective = Objective(None, None, None, None, None, teachers=chosen)
    opened = {"train": Triplets(), "val": Triplets()}
    opened["val"].split = "val"
    for source in opened.values():
        change(source)
    return batches.Data(config, workdir, objective, mesh, opened)


@pytest.mark.parametrize("shuffled", [False, True])
def test_patient_without_an_embedding_is_replaced_and_listed(
    folders, tmp_path, meshes, shuffled
):
    fields = {"data__max_bad_share": 0.05, "data__shuffle_pairs": shuffled}
    for run in ("computed", "cached"):
        made = data(folders, tmp_path / run, meshes[1], **fields)
        listed = (tmp_path / run / "quarantine.jsonl").read_text().splitlines()
        found = [(r["split"], r["index"]) for r in map(json.loads, listed)]
        assert found == [("train", BAD), ("val", BAD)]
        stream = made.train(0)
        rows = [next(stream) for _ in range(5)]
        for name in ("ecg_embedding", "labs_embedding"):
            assert all(np.isfinite(np.asarray(batch[name])).all() for batch in rows)
        val = list(made.val())
        index = np.concatenate([np.asarray(b["index"]) for b in val])
        mask = np.concatenate([np.asarray(b["mask"]) for b in val])
        assert sorted(index[mask > 0]) == [i for i in range(N) if i != BAD]
        bad_row = np.isnan(made.tables["train"]["ecg_embedding"]).any(1)
        assert np.flatnonzero(bad_row).tolist() == [BAD]


def test_more_of_them_than_the_share_stop_the_run_from_the_cache_too(
    folders, tmp_path, meshes
):
    data(folders, tmp_path / "one", meshes[1], data__max_bad_share=0.05)
    with pytest.raises(PacxError, match="1 unreadable samples of 20"):
        data(folders, tmp_path / "two", meshes[1], data__max_bad_share=0.0)


def test_studies_that_lack_a_modality_are_marked_and_those_without_any_left_out(
    folders, tmp_path, meshes
):
    def change(source):
        source.fingerprint = "some lacking"
        source.ecg[[1, 3]] = 0
        source.mask[[1, 4]] = 0

    made = data(folders, tmp_path, meshes[1], change, data__max_bad_share=0.06)
    line = "of 20 studies, without ecg 2, labs 2; 1 have none of these and are left out"
    assert made.left_out == {"train": line, "val": line}
    val = list(made.val())
    rows = {}
    for batch in val:
        arrays = {k: np.asarray(v) for k, v in batch.items()}
        for i in np.flatnonzero(arrays["mask"]):
            rows[arrays["image"][i, 0, 0, 0]] = {k: v[i] for k, v in arrays.items()}
    assert sorted(rows) == [i for i in range(N) if i not in (1, BAD)]
    assert [i for i in rows if rows[i]["ecg_present"] == 0] == [3]
    assert [i for i in rows if rows[i]["labs_present"] == 0] == [4]
    assert all(np.isfinite(row["ecg_embedding"]).all() for row in rows.values())
    assert not rows[3]["ecg_embedding"].any() and rows[3]["labs_embedding"].any()


def test_a_split_without_any_modality_is_refused(folders, tmp_path, meshes):
    def change(source):
        source.fingerprint = "all lacking"
        source.ecg[:] = 0
        source.mask[:] = 0

    with pytest.raises(PacxError, match="no study of the train split has any of ecg,"):
        data(folders, tmp_path, meshes[1], change)
