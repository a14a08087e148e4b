"""Published lists of the examples that keep their labels."""

import json
import types

import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.input import listed, sources, subsets
from tests.input.test_sources import draw, write


@pytest.fixture
def folder(tmp_path):
    """Twelve images in train and three in val; two have one name."""
    names = [*draw(tmp_path, 15), "sub1/im000.png"]
    (tmp_path / names[-1]).write_bytes((tmp_path / names[0]).read_bytes())
    rows = [f"{n},p{i},{i % 2},{'val' if i in (3, 4, 5) else 'train'}"
            for i, n in enumerate(names)]  # fmt: skip
    write(tmp_path, "path,patient_id,heart,split", *rows)
    return tmp_path


def kept(folder, at, **fields):
    more = {"label_fraction": 1.0, "label_draw": "positives", "label_columns": ()}
    data = types.SimpleNamespace(
        source="folder", path=str(folder), subset_list=str(at), train_split="train",
        val_split="val", **more | fields,
    )  # fmt: skip
    return sources.open_splits(data)["train"]


IDS = ["im001", "sub2/im002.png", "SUB0/IM006.PNG", "other/sub1/im007"]


@pytest.mark.parametrize("form", ["txt", "csv", "one column", "json"])
def test_the_listed_images_keep_their_labels(folder, form):
    text = {
        "txt": "\ufeff" + "\r\n".join([*IDS, "", IDS[0]]),
        "csv": "\n".join(["Image Index,site", *(f"{x},a" for x in IDS)]),
        "one column": "\n".join(["names", *IDS]),
        "json": json.dumps(IDS),
    }[form]
    at = folder / f"list.{'csv' if form == 'one column' else form}"
    at.write_text(text)
    train = kept(folder, at)
    assert train.paths() == [train[i]["path"] for i in range(len(train))]
    assert train.paths() == [
        "sub0/im006.png", "sub1/im001.png", "sub1/im007.png", "sub2/im002.png",
    ]  # fmt: skip
    assert train.notes[-1].endswith("4 of 13 train examples keep their labels")
    np.testing.assert_array_equal(train.labels()[:, 0], [0, 1, 1, 0])


def test_ids_that_are_not_in_the_split_are_counted(folder):
    at = folder / "train_1.txt"
    at.write_text("im001\nim004\nelsewhere\n")  # the second is in val
    train = kept(folder, at)
    assert train.paths() == ["sub1/im001.png"]
    told = "2 of its 3 ids are NOT in the split, the first is 'im004'"
    assert told in train.notes[-1]
    start = train.fingerprint
    at.write_text("im002\n")
    assert kept(folder, at).fingerprint != start


BAD = {
    "none": ("x\ny\n", {}, "none of its 2 ids is in the train split; its first is 'x'"),
    "empty": ("\n \n", {}, "no ids in it"),
    "two": ("im000\n", {}, "'im000' is both sub0/im000.png and sub1/im000.png"),
    "fraction": ("im001\n", {"label_fraction": 0.1}, "and data.label_fraction 0.1"),
    "count": ("im001\n", {"label_count": 9}, "and data.label_count 9: give one of"),
}


@pytest.mark.parametrize("case", BAD)
def test_lists_that_cannot_be_meant_are_refused(folder, case):
    text, fields, message = BAD[case]
    (folder / "list.txt").write_text(text)
    with pytest.raises(PacxError, match=message):
        kept(folder, folder / "list.txt", **fields)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("list.csv", "site,label\na,b\n", "no column of paths or names .* site, label"),
        ("list.json", '{"a": 1}', "not a list of texts"),
        ("list.json", "[", "data.subset_list .*list.json"),
        ("", "", "no such file"),
    ],
)
def test_a_damaged_list_is_refused(tmp_path, name, text, message):
    path = tmp_path / (name or "gone.txt")
    if name:
        path.write_text(text)
    with pytest.raises(PacxError, match=message):
        listed.read(str(path))


def test_a_list_is_of_images_and_not_of_studies_or_ecgs():
    source = types.SimpleNamespace(entries=("images", "path", "labels"))
    data = types.SimpleNamespace(
        path="p", subset_list="l", label_fraction=1.0, label_draw="positives"
    )
    with pytest.raises(PacxError, match="it names images, and an example of p has"):
        subsets.few_labels(source, data)
