"""Rollout as a command, and the share of attention inside masks."""

import csv
import json

import numpy as np
import PIL.Image
import pytest

from pacx_jax.encoders import model_folder
from pacx_jax.encoders.xray_encoder import load_encoder
from pacx_jax.evaluate import attention_shares, rollout
from tests import tiny


def test_coverage_is_the_share_of_each_patch_whatever_the_sizes():
    mask = np.zeros((40, 60), np.uint8)
    mask[:10, :15] = 1  # the first of 2 x 2 patches, a quarter of it
    covered = attention_shares.coverage(mask, 2)
    np.testing.assert_allclose(covered, [[0.25, 0], [0, 0]], atol=1e-6)
    odd = np.random.default_rng(0).integers(0, 2, (37, 53)).astype(np.uint8)
    assert attention_shares.coverage(odd, 5).mean() == pytest.approx(odd.mean(), 1e-4)


def test_even_attention_has_the_share_of_the_masks_area():
    mask = np.zeros((64, 64), np.uint8)
    mask[20:50, 8:40] = 1
    even = np.full((1, 8, 8), 0.7 / 64)
    looking = np.zeros((1, 8, 8))
    looking[0, 4, 3] = 0.2
    (row,) = attention_shares.shares({"even": even, "there": looking}, {"m": [mask]})
    assert row["m_even"] == pytest.approx(row["m_area"]) == pytest.approx(mask.mean())
    assert row["m_there"] == pytest.approx(1)
    (row,) = attention_shares.shares({"even": even}, {"m": [None]})
    assert np.isnan(row["m_even"]) and np.isnan(row["m_area"])


def test_means_and_differences_are_paired_and_have_intervals_over_units():
    rng = np.random.default_rng(0)
    common = rng.normal(size=80)
    a = common + 0.1 + 0.01 * rng.normal(size=80)
    a[3] = np.nan
    columns = {"a": a, "a - b": a - common}
    found = attention_shares.summary(columns, np.arange(80) // 2)
    gap = found["a - b"]
    assert gap["n"] == 79 and 0.09 < gap["low"] < gap["value"] < gap["high"] < 0.11
    assert found["a"]["high"] - found["a"]["low"] > 0.2
    alone = attention_shares.summary({"a": a[:2]}, ["p", "p"])["a"]
    assert alone["low"] is None and alone["value"] == pytest.approx(a[:2].mean())
    apart = {"a": np.stack([a, a + 0.5, a - 0.5])}  # three trainings
    row = attention_shares.summary(apart, np.arange(80) // 2)["a"]
    assert row["value"] == pytest.approx(found["a"]["value"])
    assert row["high"] - row["low"] > 1


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    root = tmp_path_factory.mktemp("rollout")
    rng = np.random.default_rng(0)
    for folder in ("images/a", "lungs/a"):
        (root / folder).mkdir(parents=True)
    for i in range(5):
        film = rng.integers(0, 256, (40, 36), dtype=np.uint8)
        PIL.Image.fromarray(film).save(root / f"images/a/{i}.png")
        mask = np.zeros((40, 36), np.uint8)
        mask[10:30, 6:20] = 255
        if i:
            PIL.Image.fromarray(mask).save(root / f"lungs/a/{i}.png")
    for name, seed in (("mae", 0), ("pacx", 1)):
        model_folder.save(root / name, tiny.folder("vit", seed), card="a test's")
    return root


def test_the_command_writes_maps_shares_and_pictures(films, capsys):
    flags = [f"--encoder={films}/pacx", f"--against={films}/mae", "--pictures=2"]
    flags += [f"--images={films}/images", f"--masks=lungs={films}/lungs"]
    assert attention_shares.main([*flags, f"--out={films}/out"]) == 0
    with np.load(films / "out/maps.npz") as file:
        paths, maps, other = (file[k] for k in ("path", "rollout", "against"))
    assert maps.shape == other.shape == (5, 4, 4) and paths[1] == "a/1.png"
    encoder = load_encoder(films / "pacx")
    one = encoder.attentions(str(films / "images/a/1.png"))
    np.testing.assert_allclose(rollout.attention_rollout(one)[0], maps[1], atol=1e-6)
    with open(films / "out/shares.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0]["lungs_share"] == "" and len(rows) == 5  # without a mask
    assert float(rows[1]["lungs_area"]) == pytest.approx(20 * 14 / (40 * 36), abs=1e-6)
    mask = np.zeros((40, 36))
    mask[10:30, 6:20] = 1
    covered = attention_shares.coverage(mask, 4)
    want = (maps[1] * covered).sum() / maps[1].sum()
    assert float(rows[1]["lungs_share"]) == pytest.approx(want, rel=1e-4)
    found = json.loads((films / "out/shares.json").read_text())
    assert found["lungs_share - lungs_against"]["n"] == 4
    pictures = sorted(p.name for p in (films / "out/pictures").iterdir())
    assert pictures == ["a_0.png.png", "a_1.png.png"]
    with PIL.Image.open(films / "out/pictures/a_0.png.png") as image:
        assert image.size == (3 * 32, 32)
    assert "5 maps in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--masks=lungs", "--masks=lungs: give NAME=DIR"),
        ("--masks=lungs=nowhere", "--masks=lungs=nowhere: no such folder"),
        ("--masks=lungs={films}/images", None),
        ("--masks=lungs={films}/elsewhere", "none of 5 images has a mask there"),
        ("--batch_size=0", "--batch_size 0: give at least 1"),
    ],
)
def test_wrong_flags_are_one_line(films, flag, says, capsys):
    (films / "elsewhere").mkdir(exist_ok=True)
    PIL.Image.new("L", (4, 4)).save(films / "elsewhere/x.png")
    flags = [f"--encoder={films}/pacx", f"--images={films}/images", "--pictures=0"]
    code = attention_shares.main([*flags, f"--out={films}/x", flag.format(films=films)])
    said = capsys.readouterr().err
    assert (code, said) == (0, "") if says is None else code == 2 and says in said
    assert said.count("\n") == (says is not None)
