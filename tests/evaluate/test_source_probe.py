"""Which set an image is from: told where they differ, and not where they do not."""

import json

import numpy as np
import PIL.Image
import pytest

from data import prepare
from pacx_jax.encoders import model_folder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import source_probe
from tests import tiny


def test_sets_that_differ_are_told_and_others_are_not():
    rng = np.random.default_rng(0)
    x = {k: rng.normal(size=(150, 6)) for k in ("a", "b", "c")}
    y = {k: rng.normal(size=(100, 6)) for k in x}
    named = {k: [str(i // 2) for i in range(100)] for k in x}
    same = source_probe.measured([{"train": x, "test": y}], named, 200)
    row = same["balanced_accuracy"]
    assert same["chance"] == 1 / 3 and row["low"] < 1 / 3 < row["high"]
    x["c"], y["c"] = x["c"] + 4, y["c"] + 4
    other = source_probe.measured([{"train": x, "test": y}], named, 200)
    assert other["balanced_accuracy"]["low"] > same["balanced_accuracy"]["high"]
    assert other["auroc"]["value"] > same["auroc"]["value"] + 0.1
    assert other["n"] == {"a": 100, "b": 100, "c": 100} and other["trainings"] == 1
    noise = {k: rng.normal(size=each.shape) for k, each in x.items()}
    blind = {"train": noise, "test": {k: noise[k][:100] for k in noise}}
    both = [{"train": x, "test": y}, blind]
    both = source_probe.measured(both, named, 200)  # which trainings take apart
    row = both["balanced_accuracy"]
    assert row["high"] - row["low"] > 0.3 and both["trainings"] == 2
    with pytest.raises(PacxError, match="takes two of them"):
        one = {"train": {"a": x["a"]}, "test": {"a": y["a"]}}
        source_probe.measured([one], {"a": named["a"]})


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    root = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    for name, level in (("dark", 0), ("light", 100)):
        (root / "in" / name).mkdir(parents=True)
        rows = ["path,patient_id,split,a"]
        for i in range(60):
            film = level + rng.integers(0, 120, (24, 24))
            PIL.Image.fromarray(np.uint8(film)).save(root / "in" / name / f"{i}.png")
            rows.append(f"{i}.png,{i},{('train', 'test', 'val')[i % 10 // 4]},{i % 2}")
        (root / "in" / name / "labels.csv").write_text("\n".join(rows))
        flags = [f"--source={root}/in/{name}", f"--target={root}/{name}", "--size=24"]
        prepare.prepare(prepare.parse(["folder", *flags, "--csv=labels.csv"]))
    model_folder.save(root / "vit", tiny.folder("vit"), card="a test's")
    return root


def test_the_command_tells_light_sets_from_dark_ones(sets, capsys):
    flags = [f"--encoder={sets}/vit", f"--set={sets}/dark", f"--set={sets}/light"]
    assert source_probe.main([*flags, f"--out={sets}/out.json"]) == 0
    found = json.loads((sets / "out.json").read_text())
    assert found["pixels"]["balanced_accuracy"]["value"] == 1
    assert found["encoder"]["n"] == {"dark": 24, "light": 24}
    out = capsys.readouterr().out
    assert "pixels: the set is right for 1.000 (1.000 to 1.000), chance 0.500" in out


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--set={0}/dark", "give two sets or more"),
        ("--splits=train", "--splits=train: give two"),
        ("--limit=2", "--limit=2: give at least 10"),
        ("--splits=train,tset", "tset"),
    ],
)
def test_wrong_flags_are_one_line(sets, flag, says, capsys):
    flags = [f"--encoder={sets}/vit", f"--set={sets}/dark", f"--set={sets}/light"]
    assert source_probe.main([*flags, flag.format(sets)]) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
