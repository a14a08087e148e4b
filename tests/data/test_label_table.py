"""A set's labels as a teacher's table."""

import argparse

import numpy as np
import pytest

from data import label_table
from pacx_jax.input import sources
from pacx_jax.modalities import table
from tests.data import test_prepare
from tests.data.test_published import edit
from tests.data.test_published import run as run


@pytest.fixture
def prepared(tmp_path, run):
    test_prepare.draw_symile(tmp_path / "in")
    path = tmp_path / "in/train.csv"
    edit(path, "\n1,10,1.0,,-1.0", "\n1,10,,,-1.0")  # nothing is known
    edit(path, "\n2,20,1.0,,-1.0", "\n2,20,0.0,1.0,")
    assert run("symile_mimic", tmp_path / "in", tmp_path / "out")[0] == 0
    return tmp_path / "out"


def test_labels_become_a_table_by_study(prepared, tmp_path, capsys):
    out = tmp_path / "labels.npz"
    assert label_table.main([f"--data={prepared}", f"--out={out}"]) == 0
    told = capsys.readouterr().out
    assert "5 rows of 3 labels in" in told and "1 have no known label" in told
    given = argparse.Namespace(
        source="prepared", path=str(prepared), stage="", group="image"
    )
    train = sources.open_source(given, "train")
    found = table.load("teacher", str(out), "study").of(train)
    hadm = [train[i]["hadm_id"] for i in range(len(train))]
    rows = dict(zip(map(int, hadm), found.tolist(), strict=True))
    assert rows[0] == rows[30] == [1, 0, 0] and rows[20] == [-1, 1, 0]
    assert rows[10] == [-np.inf] * 3


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--data={0}/nowhere"], "nowhere: no such folder"),
        (["--data={0}/out", "--splits=trian"], "trian"),
    ],
)
def test_bad_input_is_one_line(prepared, tmp_path, flags, says, capsys):
    flags = [flag.format(tmp_path) for flag in flags]
    assert label_table.main([*flags, f"--out={tmp_path}/x.npz"]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
