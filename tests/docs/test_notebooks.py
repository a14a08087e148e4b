"""docs/notebooks/: their cells run, in order, and what they print is kept and small."""

import json
import pathlib

import matplotlib
import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[2] / "docs" / "notebooks"
NAMES = ("quickstart", "own_data", "interpret")  # each starts from those before it


def cells(name):
    """The code cells of a notebook."""
    book = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    return [cell for cell in book["cells"] if cell["cell_type"] == "code"]


def test_notebooks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    matplotlib.use("agg")
    for name in NAMES:
        names_of_the_book = {}
        for i, cell in enumerate(cells(name)):
            source = "".join(cell["source"])
            capsys.readouterr()
            exec(compile(source, f"{name} cell {i}", "exec"), names_of_the_book)
            said = bool(capsys.readouterr().out)
            assert said or "print(" not in source
    overlap = json.loads(pathlib.Path("runs/finetune/overlap.json").read_text())
    assert overlap["status"] == "none" and overlap["splits"]["test"]["patients"] > 1


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_kept_small_and_name_no_machine(name):
    text = (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8")
    assert len(text) < 200_000
    assert not [p for p in ("/tmp", "/root", "/home", "Traceback") if p in text]
    for cell in cells(name):
        source = "".join(cell["source"])
        shows = "print(" in source or "plt." in source
        assert bool(cell["outputs"]) == shows, source
