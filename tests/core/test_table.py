"""Teachers of one's own: tables of embeddings by patient, study and image."""

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.modalities import table, teachers
from tests.core.test_batches import N, data, folders  # noqa: F401 - a fixture
from tests.core.test_physiology import Source


class Named(Source):
    """Five examples of four patients."""

    def patients(self):
        return ["1", "2", "2", "3", "4"]

    def __getitem__(self, i):
        study = {"study_id": f"s{i}"} if i < 2 else {}
        return {"path": f"p{i}/study{i}/view.png"} | study


def write(file, **arrays):
    np.savez(file, **arrays)
    return str(file)


EMBEDDING = np.arange(6, dtype=np.float64).reshape(3, 2)


@pytest.mark.parametrize(
    ("by", "ids", "rows"),
    [
        ("patient", np.array([2, 4, 9]), [None, 0, 0, None, 1]),
        ("patient", np.array(["2", "4", "9"]), [None, 0, 0, None, 1]),
        ("study", np.array(["s1", "p3/study3", "x"]), [None, 0, None, 1, None]),
        ("image", np.array(["p4/study4/view.png", "a", "b"]), [None] * 4 + [0]),
    ],
)
def test_each_example_gets_the_row_of_its_id(tmp_path, by, ids, rows):
    path = write(tmp_path / "t.npz", id=ids, embedding=EMBEDDING)
    teacher = teachers.load("teacher", {"init": path, "by": by})
    got = teacher.of(Named())
    want = [[-np.inf] * 2 if r is None else EMBEDDING[r] for r in rows]
    assert teacher.width == 2 and got.dtype == np.float32
    np.testing.assert_array_equal(got, np.float32(want))


def test_what_embed_writes_is_a_table_by_image(tmp_path):
    paths = np.array(["p0/study0/view.png"])
    path = write(tmp_path / "z.npz", path=paths, embedding=EMBEDDING[:1])
    assert table.load("teacher", path, "image").rows == {paths[0]: 0}
    with pytest.raises(PacxError, match="names images .*: set config.modalities"):
        table.load("teacher", path, "patient")


@pytest.mark.parametrize(
    ("arrays", "by", "message"),
    [
        ({"id": ["a"], "embedding": EMBEDDING}, "patient", r"id of shape \(1,\) and"),
        ({"embedding": EMBEDDING}, "patient", "no table of embeddings"),
        ({"id": list("aab"), "embedding": EMBEDDING}, "patient", "1 ids occur .* as a"),
        ({"id": ["a", "", "b"], "embedding": EMBEDDING}, "patient", "id 1 .* is empty"),
        ({"id": list("abc"), "embedding": EMBEDDING[:, 0]}, "patient", r"\(3,\)"),
        ({"id": [0.5, 1, 2], "embedding": EMBEDDING}, "patient", "dtype float64"),
        ({"id": list("abc"), "embedding": EMBEDDING * np.nan}, "patient", "no row"),
        ({"id": list("abc"), "embedding": EMBEDDING}, "hospital", "by 'hospital'"),
    ],
)
def test_a_bad_table_is_one_line_that_names_the_file(tmp_path, arrays, by, message):
    arrays = {name: np.array(value) for name, value in arrays.items()}
    path = write(tmp_path / "t.npz", **arrays)
    with pytest.raises(PacxError, match=message):
        table.load("teacher", path, by)


def test_a_file_that_is_no_table_is_one_line(tmp_path):
    (tmp_path / "t.npz").write_bytes(b"PK\x03\x04 cut")
    for path in (tmp_path / "t.npz", tmp_path / "none.npz"):
        with pytest.raises(PacxError, match=f"{path}: no table of embeddings"):
            table.load("teacher", str(path), "patient")


def test_ids_of_others_are_refused(tmp_path):
    path = write(tmp_path / "t.npz", id=np.array(["x", "y", "z"]), embedding=EMBEDDING)
    match = r"none of its 3 ids \(the first: x\) is a patient of the train split"
    with pytest.raises(PacxError, match=match):
        table.load("teacher", path, "patient").of(Named())


def test_unusable_rows_count_as_unreadable_and_too_many_stop_the_run(
    tmp_path,
    folders,  # noqa: F811
    meshes,
    monkeypatch,
):
    embedding = np.ones((N, 3))
    embedding[[2, 3]] = np.nan
    ids = np.array([f"i{i}" for i in range(N)])
    path = write(tmp_path / "t.npz", id=ids, embedding=embedding)
    fields = {
        "modalities__teacher__init": path,
        "modalities__teacher__clip_weight": 1.0,
    }

    def change(source):
        monkeypatch.setattr(type(source), "patients", lambda s: list(ids), False)
        source.ecg[:] = source.ecg[0]

    made = data(
        folders, tmp_path / "one", meshes[1], change, data__max_bad_share=0.1, **fields
    )
    assert len(made.quarantine) == 4  # two of each split
    with pytest.raises(PacxError, match="2 unreadable samples of 20"):
        data(folders, tmp_path / "two", meshes[1], change, **fields)
