"""Pairs shuffled within groups of a table: view and sex stay, the patient does not."""

import collections

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.run import strata
from tests.core.test_batches import BAD, N, Triplets, data, folders  # noqa: F401


def write(path, rows, head="hadm_id,sex,view"):
    path.write_text("\n".join([head, *rows]) + "\n")
    return str(path)


def group(i):
    """(sex, view) of triplet i: groups of 9, 9, 1 and 1."""
    return ("F", "M")[i % 2], "AP" if i < 18 else "PA"


@pytest.fixture
def table(tmp_path):
    rows = [f"{100 + i},{','.join(group(i))}" for i in range(N)]
    return write(tmp_path / "people.csv", rows)


def name_studies(source):
    """Admission 100 + i of triplet i."""
    source.fingerprint = "with admissions"
    source.__class__ = Admitted


class Admitted(Triplets):
    def __getitem__(self, i):
        return super().__getitem__(i) | {"hadm_id": f"{100 + i}"}


def test_pairs_stay_within_view_and_sex(folders, tmp_path, meshes, table):  # noqa: F811
    fields = {"data__max_bad_share": 0.06}
    plain = data(folders, tmp_path / "a", meshes[1], name_studies, **fields)
    fields |= {"data__shuffle_pairs": True, "data__shuffle_table": table}
    fields |= {"data__shuffle_within": ("sex", "view")}
    mixed = data(folders, tmp_path / "b", meshes[1], name_studies, **fields)
    name = "labs_embedding"
    before, after = (made.tables["train"][name] for made in (plain, mixed))
    assert not np.array_equal(before, after)
    for who in {group(i) for i in range(N)}:
        rows = [i for i in range(N) if group(i) == who]
        kept = [
            collections.Counter(x.tobytes() for x in each[rows])
            for each in (before, after)
        ]
        assert kept[0] == kept[1], who


def test_an_order_without_groups_is_that_of_before():
    usable = np.ones(30, bool)
    usable[[3, 7]] = False
    good = np.flatnonzero(usable)
    want = np.arange(30)
    want[good] = good[np.random.default_rng(5).permutation(28)]
    got = strata.shuffled(usable, None, np.random.default_rng(5))
    np.testing.assert_array_equal(got, want)


def test_groups_keep_their_members_and_bad_rows_stay():
    rng = np.random.default_rng(0)
    groups = rng.integers(0, 4, 200)
    usable = rng.random(200) < 0.9
    order = strata.shuffled(usable, groups, rng)
    assert sorted(order) == list(range(200))
    np.testing.assert_array_equal(groups[order], groups)
    np.testing.assert_array_equal(order[~usable], np.flatnonzero(~usable))
    assert np.mean(order[usable] == np.flatnonzero(usable)) < 0.1


def test_columns_are_compared_without_case_and_blanks(tmp_path):
    source = Admitted()
    rows = [f"{100 + i}.0, {('f', 'F ')[i % 2]},AP" for i in range(N)]
    found = strata.of(source, write(tmp_path / "t.csv", rows), ("sex",))
    assert set(found) == {0}


@pytest.mark.parametrize(
    ("head", "rows", "columns", "says"),
    [
        ("hadm_id,sex", ["100,F"], ("sex",), "lacks 19 of 20 examples of the train"),
        ("hadm_id,sex", ["100,F", "100,M"], ("sex",), "row 3: another row of 100 has"),
        ("hadm_id,sex", ["100,F"], ("view",), "no column 'view'"),
        ("who,sex", ["100,F"], ("sex",), "no column of studies, images or patients"),
        ("hadm_id,sex", ["100,F"], (), "go together: name columns"),
    ],
)
def test_a_table_that_does_not_fit_is_one_line(tmp_path, head, rows, columns, says):
    file = write(tmp_path / "t.csv", rows, head)
    with pytest.raises(PacxError, match=says):
        strata.of(Admitted(), file, columns)
