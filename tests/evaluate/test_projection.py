"""Embeddings in the plane."""

import csv
import sys

import numpy as np
import pytest
import scipy.spatial

from pacx_jax.errors import PacxError
from pacx_jax.evaluate.reports import projection


def embeddings(n=60):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(n, 12)) * ([5, 3] + [0.1] * 10)
    return (z @ np.linalg.qr(rng.normal(size=(12, 12)))[0] + 7).astype(np.float32), z


def test_principal_components_keep_the_distances_of_a_plane():
    z, plane = embeddings()
    points, axes = projection.project(z, "pca")
    far = [scipy.spatial.distance.pdist(x) for x in (points, plane[:, :2])]
    np.testing.assert_allclose(*far, atol=0.6)
    assert axes[0].startswith("component 1, 7") and points[:, 0].std() > 4
    again, _ = projection.project(z[::-1], "pca")  # nor does a sign depend on the order
    np.testing.assert_allclose(again[::-1], points, atol=1e-8)


@pytest.mark.parametrize("method", ["tsne", "umap"])
def test_neighbours_are_kept_and_a_seed_repeats(method):
    if method == "umap":
        pytest.importorskip("umap")
    z = np.repeat(np.eye(3), 8, 0) + 0.01 * np.random.default_rng(0).normal(
        size=(24, 3)
    )
    points, _ = projection.project(z, method)
    np.testing.assert_array_equal(points, projection.project(z, method)[0])
    far = scipy.spatial.distance.cdist(points, points) + 1e9 * np.eye(24)
    assert (far.argmin(1) // 8 == np.arange(24) // 8).all()


def test_the_command_writes_a_table_and_a_chart(tmp_path, capsys):
    z, _ = embeddings()
    paths = np.array([f"a/{i}.png" for i in range(60)])
    np.savez(tmp_path / "z.npz", path=paths, embedding=z)
    labels = "path,sick\n" + "".join(f"{p},{i % 2}\n" for i, p in enumerate(paths))
    (tmp_path / "labels.csv").write_text(labels)
    flags = [f"--embeddings={tmp_path}/z.npz", f"--out={tmp_path}/points"]
    more = [f"--labels={tmp_path}/labels.csv", "--column=sick"]
    assert projection.main([*flags, *more]) == 0
    with open(tmp_path / "points.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["group"] for r in rows[:2]] == ["0", "1"] and len(rows) == 60
    assert "1 (30)" in (tmp_path / "points.svg").read_text()
    assert "60 points in" in capsys.readouterr().out


def test_umap_without_its_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(PacxError, match=r"umap-learn, .*pip install -e '.\[umap\]'"):
        projection.project(embeddings()[0], "umap")


@pytest.mark.parametrize(
    ("n", "flag", "says"),
    [
        (2, "--method=pca", "2 embeddings; give at least 3"),
        (9, "--column=sick", "--labels and --column go together"),
        (0, "--method=pca", "no output of pacx_jax.embed"),
        (9, "--method=tsne", "all embeddings are the same"),
    ],
)
def test_bad_input_is_one_line(tmp_path, n, flag, says, capsys):
    arrays = {"path": np.array(["x"] * n), "embedding": np.ones((n, 4))} if n else {}
    np.savez(tmp_path / "z.npz", **arrays)
    flags = [f"--embeddings={tmp_path}/z.npz", f"--out={tmp_path}/p", flag]
    assert projection.main(flags) == 2
    said = capsys.readouterr().err
    assert says in said and said.count("\n") == 1
