"""Folders of images: labels, patients, splits, fingerprints, and bad input."""

import pathlib
import types

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.input import images, sources, subsets, tables, transforms

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared/realdata/cxr"


def draw(root: pathlib.Path, n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    names = []
    for i in range(n):
        name = f"sub{i % 3}/im{i:03d}.png"
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 255, (12, 10), dtype=np.uint8)
        (root / name).write_bytes(images.encode_png(pixels))
        names.append(name)
    return names


def write(root: pathlib.Path, header: str, *rows: str, name: str = "labels.csv"):
    (root / name).write_text("\n".join([header, *rows]) + "\n")


def config(path, **fields):
    return types.SimpleNamespace(source="folder", path=str(path), **fields)


def opened(path, split="train", **fields):
    return sources.open_source(config(path, **fields), split)


def paths(source) -> set[str]:
    return {source[i]["path"] for i in range(len(source))}


@pytest.fixture
def labelled(tmp_path):
    """30 images of 10 patients with two numeric labels and one of separated values."""
    names = draw(tmp_path, 30)
    found = ["A|B", "B", "No Finding"]
    write(
        tmp_path,
        "path,patient_id,heart,lung,age,findings",
        *(f"{n},p{i % 10},{i % 2},{'' if i == 4 else -1},{i},{found[i % 3]}"
          for i, n in enumerate(names)),
    )  # fmt: skip
    return tmp_path


def test_a_folder_without_csv_gives_encoded_images_and_splits_by_file(tmp_path):
    names = draw(tmp_path, 40)
    train, val = opened(tmp_path), opened(tmp_path, "val", val_fraction=0.1)
    assert paths(train) | paths(val) == set(names)
    assert not paths(train) & paths(val) and len(val) > 0
    assert train.entries == ("image", "path") and train.label_names == ()
    assert images.decode(train[0]["image"]).shape == (12, 10)
    assert train.name(0) == str(tmp_path / train[0]["path"])


def test_the_split_stays_when_files_are_added_and_copies_stay_together(tmp_path):
    names = draw(tmp_path, 40)
    before = paths(opened(tmp_path, "val"))
    for name in names:
        copy = tmp_path / f"copy_{pathlib.Path(name).name}"
        copy.write_bytes((tmp_path / name).read_bytes())
    after = paths(opened(tmp_path, "val"))
    assert before <= after and len(after) == 2 * len(before)


def test_validation_shares_no_patient_with_training(labelled):
    who = {
        split: {source[i]["patient_id"] for i in range(len(source))}
        for split in ("train", "val", "test")
        for source in [opened(labelled, split, val_fraction=0.3, test_fraction=0.2)]
    }
    assert not who["train"] & who["val"] and not who["train"] & who["test"]
    assert not who["val"] & who["test"] and all(who.values())
    assert sum(map(len, who.values())) == 10


def test_even_two_patients_are_split():
    assert sorted(tables.assign_splits(["a", "a", "b"], 0.01)) in (
        ["train", "train", "val"],
        ["train", "val", "val"],
    )
    assert tables.assign_splits(["a", "a"], 0.5, 0.0) in (["train"] * 2, ["val"] * 2)


def test_shares_of_the_split_follow_the_fractions():
    split = tables.assign_splits([f"p{i}" for i in range(5000)], 0.1, 0.2)
    assert abs(split.count("val") / 5000 - 0.1) < 0.02
    assert abs(split.count("test") / 5000 - 0.2) < 0.02


def test_labels_of_columns_are_read_with_missing_and_uncertain_kept(labelled):
    source = opened(labelled, val_fraction=0.0)
    assert source.label_names == ("heart", "lung")  # age and findings are no labels
    by_path = {source[i]["path"]: source[i]["labels"] for i in range(30)}
    np.testing.assert_array_equal(by_path["sub1/im004.png"], [0, np.nan])
    np.testing.assert_array_equal(by_path["sub2/im005.png"], [1, -1])


def test_a_folders_uncertain_and_missing_labels_follow_the_policy(labelled):
    expected = {  # of (1, -1) and (0, blank)
        "ignore": ([[1, 0], [0, 0]], [[1, 0], [1, 0]]),
        "zero": ([[1, 0], [0, 0]], [[1, 1], [1, 0]]),
        "one": ([[1, 1], [0, 0]], [[1, 1], [1, 0]]),
        "reference": ([[1, 0], [0, 0]], [[1, 0], [1, 1]]),
    }
    source = opened(labelled, val_fraction=0.0)
    by_path = {source[i]["path"]: source[i] for i in range(30)}
    for policy, (labels, mask) in expected.items():
        data = types.SimpleNamespace(image_size=8, uncertain=policy)
        load = transforms.make(
            "probe", data, train=False, entries=("image", "labels")
        ).load
        for i, name in enumerate(("sub2/im005.png", "sub1/im004.png")):
            loaded = load(by_path[name])
            np.testing.assert_array_equal(loaded["labels"], labels[i])
            np.testing.assert_array_equal(loaded["label_mask"], mask[i])


def test_labels_of_separated_values_are_read(labelled):
    source = opened(labelled, val_fraction=0.0, label_columns=("B", "heart", "A"))
    assert source.label_names == ("B", "heart", "A")
    by_path = {source[i]["path"]: source[i]["labels"] for i in range(30)}
    np.testing.assert_array_equal(by_path["sub0/im003.png"], [1, 1, 1])
    np.testing.assert_array_equal(by_path["sub1/im004.png"], [1, 0, 0])
    np.testing.assert_array_equal(by_path["sub2/im005.png"], [0, 1, 0])


def test_a_split_column_is_obeyed_and_validation_drawn_where_it_has_none(tmp_path):
    names = draw(tmp_path, 20)
    rows = [f"{n},{'test' if i < 5 else 'Train'},1" for i, n in enumerate(names)]
    write(tmp_path, "file,split,y", *rows, name="other.csv")
    fields = {"csv": "other.csv", "val_fraction": 0.3}
    assert paths(opened(tmp_path, "test", **fields)) == set(names[:5])
    assert len(opened(tmp_path, "val", **fields)) > 0
    rows[7] = rows[7].replace("Train", "valid")
    write(tmp_path, "file,split,y", *rows, name="other.csv")
    assert paths(opened(tmp_path, "val", **fields)) == {names[7]}


def test_the_listing_does_not_depend_on_the_order_of_rows(labelled):
    one = opened(labelled)
    lines = (labelled / "labels.csv").read_text().splitlines()
    write(labelled, lines[0], *lines[:0:-1])
    two = opened(labelled)
    assert [one[i]["path"] for i in range(len(one))] == [
        two[i]["path"] for i in range(len(two))
    ]
    np.testing.assert_array_equal(one[3]["labels"], two[3]["labels"])


def test_the_fingerprint_changes_with_files_labels_and_split(labelled):
    start = opened(labelled).fingerprint
    assert opened(labelled).fingerprint == start
    assert opened(labelled, "val").fingerprint != start
    assert opened(labelled, label_columns=("A",)).fingerprint != start
    assert opened(labelled, limit=5).fingerprint != start
    victim = labelled / opened(labelled)[0]["path"]
    victim.write_bytes(images.encode_png(np.zeros((12, 10), np.uint8)))
    assert opened(labelled).fingerprint != start


@pytest.mark.parametrize("field", ["csv", "patient_column", "test_fraction"])
def test_a_folders_field_beside_a_prepared_set_is_refused_by_name(field):
    data = types.SimpleNamespace(source="prepared", path="p", **{field: 0.25})
    with pytest.raises(PacxError, match=f"data.{field} 0.25 is for data.source=folder"):
        sources.open_source(data, "train")


def few(path, draw="positives", seed=42, fraction=0.4, columns=("heart", "lung")):
    data = config(
        path, label_fraction=fraction, label_draw=draw, label_seed=seed,
        label_columns=columns, uncertain="zero",
    )  # fmt: skip
    return subsets.few_labels(sources.open_source(data, "train"), data)


def test_a_fraction_of_the_labelled_examples_is_drawn_by_its_own_seed(labelled):
    whole, drawn = opened(labelled, label_columns=("heart", "lung")), few(labelled)
    assert len(drawn) == int(0.4 * len(whole))
    np.testing.assert_array_equal(
        drawn.labels(), [drawn[i]["labels"] for i in range(len(drawn))]
    )
    assert paths(drawn) == paths(few(labelled)) != paths(few(labelled, seed=1))
    assert paths(drawn) != paths(few(labelled, "stratified"))
    assert len(few(labelled, fraction=1.0)) == len(whole)
    for fields in ({"fraction": 0.0}, {"draw": "some"}):
        with pytest.raises(PacxError, match="data.label_"):
            few(labelled, **fields)


def by_count(path, count, draw="positives", **fields):
    data = config(
        path, label_fraction=fields.get("fraction", 1.0), label_count=count,
        label_draw=draw, label_seed=42, label_columns=("heart", "lung"),
        uncertain="zero",
    )  # fmt: skip
    return subsets.few_labels(sources.open_source(data, "train"), data)


@pytest.mark.parametrize("draw", ["positives", "stratified"])
def test_a_number_of_labelled_examples_is_drawn_as_its_fraction_is(labelled, draw):
    n = len(opened(labelled, label_columns=("heart", "lung")))
    drawn = by_count(labelled, int(0.4 * n), draw)
    assert paths(drawn) == paths(few(labelled, draw))
    assert drawn.notes == few(labelled, draw).notes


def test_more_labels_than_there_are_takes_all_and_says_so(labelled):
    whole = opened(labelled, label_columns=("heart", "lung"))
    drawn = by_count(labelled, 5000)
    assert paths(drawn) == paths(whole)
    assert drawn.notes[-1] == (
        f"{labelled}: data.label_count is 5,000, but the train split has "
        f"{len(whole)} labelled examples: all are taken"
    )
    assert "label_count" not in "".join(whole.notes)


@pytest.mark.parametrize(
    ("count", "fields", "message"),
    [
        (5, {"fraction": 0.5}, "data.label_count 5 and data.label_fraction 0.5: give"),
        (2, {}, "data.label_count 2: give 0 .all. or more than the 2 labels"),
        (-1, {}, "data.label_count -1: give 0"),
    ],
)
def test_wrong_numbers_of_labels_are_refused(labelled, count, fields, message):
    with pytest.raises(PacxError, match=message):
        by_count(labelled, count, **fields)


def test_a_limit_draws_the_same_few(labelled):
    few = opened(labelled, limit=5)
    assert len(few) == 5 and paths(few) == paths(opened(labelled, limit=5))
    assert few.name(2).endswith(few[2]["path"])


def _bad_rows(root, header, *rows):
    draw(root, 3)
    write(root, header, *rows)


BAD = {
    "no such folder": (lambda root: root.rmdir(), {}, "no such folder"),
    "empty": (lambda root: None, {}, "no JPEG, PNG or DICOM files"),
    "no csv": (lambda r: draw(r, 2), {"csv": "a.csv"}, "a.csv: no such CSV"),
    "labels without csv": (
        lambda r: draw(r, 2),
        {"label_columns": ("A",)},
        "data.label_columns is set but there is no CSV",
    ),
    "no path column": (
        lambda r: _bad_rows(r, "what,y", "sub0/im000.png,1"),
        {},
        "no column of paths.*one of what, y, remove",
    ),
    "no patient column": (
        lambda r: _bad_rows(r, "path,y", "sub0/im000.png,1"),
        {"patient_column": "who"},
        "no column 'who' .data.patient_column.*path, y",
    ),
    "file twice": (
        lambda r: _bad_rows(r, "path,y", "sub0/im000.png,1", "sub0/im000.png,1"),
        {},
        "rows 2 and 3 both name",
    ),
    "unknown label": (
        lambda r: _bad_rows(r, "path,y", "sub0/im000.png,1"),
        {"label_columns": ("z",)},
        "'z', which is neither a column .path, y. nor a value",
    ),
    "header alone": (lambda r: _bad_rows(r, "path,y"), {}, "no rows"),
    "unknown split": (
        lambda r: _bad_rows(r, "path,split", "sub0/im000.png,dev"),
        {},
        "unknown split 'dev'",
    ),
    "patient in two splits": (
        lambda r: _bad_rows(
            r,
            "path,patient_id,split",
            "sub0/im000.png,p,train",
            "sub1/im001.png,p,val",
        ),
        {},
        "patient 'p' is in both train and val",
    ),
    "fraction": (lambda r: draw(r, 2), {"val_fraction": 1.5}, "val_fraction 1.5"),
    "limit": (lambda r: draw(r, 2), {"limit": -1}, "limit -1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_folders_give_one_line(tmp_path, case):
    spoil, fields, message = BAD[case]
    root = tmp_path / "x"
    root.mkdir()
    spoil(root)
    with pytest.raises(PacxError, match=message) as error:
        opened(root, **fields)
    assert "\n" not in str(error.value)


def test_an_empty_split_and_unknown_sources_give_one_line(tmp_path):
    draw(tmp_path, 3)
    with pytest.raises(PacxError, match="the test split is empty .train 2, val 1"):
        opened(tmp_path, "test")
    with pytest.raises(PacxError, match="data.source 'tree'"):
        sources.open_source(types.SimpleNamespace(source="tree"), "train")
    prepared = types.SimpleNamespace(source="prepared", path=str(tmp_path))
    with pytest.raises(PacxError, match="not a prepared data set"):
        sources.open_source(prepared, "train")
    prepared.path += "/none"
    with pytest.raises(PacxError, match="no such folder"):
        sources.open_source(prepared, "train")


@pytest.mark.skipif(not REAL.is_dir(), reason="no real X-rays in ../shared/realdata")
def test_the_real_xrays_open_with_labels_split_by_patient():
    fields = {"csv": "metadata.csv", "label_columns": ("Pneumonia",)}
    train, val = opened(REAL, **fields), opened(REAL, "val", **fields)
    assert len(train) + len(val) == 537 and 0.04 < len(val) / 537 < 0.2
    every = [s[i]["labels"] for s in (train, val) for i in range(len(s))]
    assert np.sum(every) == 284
    patients = [{s[i]["patient_id"] for i in range(len(s))} for s in (train, val)]
    assert len(patients[0] | patients[1]) == 420 and not patients[0] & patients[1]
    assert images.decode(train[0]["image"]).ndim == 2
    assert "Effusion" in opened(REAL).label_names  # all the values, found by itself


@pytest.mark.parametrize("source", ["folder", "prepared"])
def test_real_patients_are_not_called_simulated(tmp_path, source):
    """The preset runlocal says simulated, whatever path is given beside it."""
    (tmp_path / "croissant.json").write_text('{"name": "nih14"}')
    with pytest.raises(PacxError, match="is not from data/cohort: give --config.data"):
        sources._check_simulated(str(tmp_path), source)
    (tmp_path / "croissant.json").write_text('{"name": "nih14-simulated"}')
    (tmp_path / "cohort_layout.json").write_text("{}")
    sources._check_simulated(str(tmp_path), source)


def test_a_prepared_set_without_a_card_is_not_called_simulated(tmp_path):
    with pytest.raises(PacxError, match="is not from data/cohort"):
        sources._check_simulated(str(tmp_path), "prepared")
