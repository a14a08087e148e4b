"""Embeddings in the plane: two coordinates an image, as CSV and as a chart.

  python -m pacx_jax.embed --encoder=DIR --images=DIR --out=embeddings.npz
  python -m pacx_jax.evaluate.reports.projection --embeddings=embeddings.npz \\
      --out=points [--labels=labels.csv --column=sick] [--method=umap]

writes OUT.csv (path, group, x, y) and OUT.svg. The paper draws UMAP, which takes the
extra `umap`. Distances of UMAP and t-SNE say little beyond who is near whom; PCA's axes
have a share of the variance, which the chart names.
"""

from __future__ import annotations

import csv
import zipfile

import matplotlib
import matplotlib.style
import numpy as np
from matplotlib.figure import Figure

from pacx_jax import cli, errors, files
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import subgroups
from pacx_jax.evaluate.reports import figures

METHODS = ("pca", "tsne", "umap")


def project(z: np.ndarray, method: str, seed: int = 0) -> tuple[np.ndarray, list[str]]:
    """Two coordinates of each embedding, and the axes' names.

    Args:
      z: (n, d), n > 2.
      method: "pca"; or "tsne" or "umap", of the first 50 principal components, started
        from the first two.
      seed: of t-SNE and UMAP.

    Returns:
      ((n, 2), two names). The sign of a principal component is the one by which its
      largest loading is positive.

    Raises:
      PacxError: "umap" without umap-learn.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    z = np.asarray(z, np.float64)
    pca = PCA(min(50, *z.shape), svd_solver="full").fit(z)
    loadings = pca.components_[:2]
    sign = np.sign(loadings[np.arange(2), np.abs(loadings).argmax(1)])
    points = pca.transform(z)
    points[:, :2] *= sign
    if method == "pca":
        shares = pca.explained_variance_ratio_[:2]
        names = [f"component {i}, {s:.1%} of variance" for i, s in enumerate(shares, 1)]
        return points[:, :2], names
    if method == "umap":
        try:
            import umap
        except ImportError:
            raise PacxError(
                "--method=umap takes umap-learn, which is not installed: "
                f"{errors.install('umap')}"
            ) from None
        start = points[:, :2] / np.abs(points[:, :2]).max() * 10  # as its own starts
        about = {"n_neighbors": min(15, len(z) - 1), "init": np.float32(start)}
        fitted = umap.UMAP(random_state=seed, n_jobs=1, **about)
        return fitted.fit_transform(points), ["UMAP 1", "UMAP 2"]
    perplexity = min(30.0, (len(z) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="pca", random_state=seed)
    return tsne.fit_transform(points), ["t-SNE 1", "t-SNE 2"]


def draw(path: str, points: np.ndarray, groups: list[str], axes: list[str]) -> None:
    """Writes the scatter as SVG, a colour for each group."""
    with matplotlib.style.context(["default", figures.STYLE]):
        figure = Figure((5.2, 4.2), layout="constrained")
        plot = figure.subplots()
        colours = matplotlib.colormaps["tab10"]
        for i, group in enumerate(dict.fromkeys(sorted(groups))):
            rows = [k for k, g in enumerate(groups) if g == group]
            label = f"{group or 'images'} ({len(rows)})"
            plot.scatter(
                *points[rows].T, s=8, alpha=0.7, color=colours(i % 10), label=label
            )
        plot.set(xlabel=axes[0], ylabel=axes[1])
        figure.legend(loc="outside right upper", frameon=False)
        with files.whole(path) as file:
            figure.savefig(file, format="svg", metadata={"Date": None})


def _read(path: str) -> tuple[list[str], np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = [str(x) for x in file["path"]], np.asarray(file["embedding"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as e:
        raise PacxError(
            f"{path}: no output of pacx_jax.embed ({' '.join(str(e).split())[:200]})"
        ) from None
    if len(found[1]) < 3 or not np.isfinite(found[1]).all():
        raise PacxError(
            f"{path}: {len(found[1])} embeddings; give at least 3, all of them finite"
        )
    if not np.ptp(found[1], axis=0).any():
        raise PacxError(f"{path}: all embeddings are the same; look at the encoder")
    return found


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = cli.Parser(
        prog="python -m pacx_jax.evaluate.reports.projection", description=__doc__
    )
    add = parser.add_argument
    add("--embeddings", required=True, help="the .npz of pacx_jax.embed")
    add("--out", required=True, help="of the files, without .csv and .svg")
    add("--labels", default="", help="CSV with a column of paths")
    add("--column", default="", help="of it, which colours the points")
    add("--method", default="pca", choices=METHODS)
    add("--seed", type=int, default=0, help="of t-SNE and UMAP")
    args = parser.parse_args(argv)
    if bool(args.labels) != bool(args.column):
        raise PacxError("--labels and --column go together: give both, or neither")
    paths, z = _read(args.embeddings)
    groups = [""] * len(paths)
    if args.labels:
        about = args.labels, (args.column,), paths, [""] * len(paths)
        groups = subgroups.read_groups(*about)[args.column]
    points, axes = project(z, args.method, args.seed)
    with files.whole(f"{args.out}.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("path", "group", "x", "y"))
        for path, group, (x, y) in zip(paths, groups, points, strict=True):
            writer.writerow((path, group, f"{x:.6g}", f"{y:.6g}"))
    draw(f"{args.out}.svg", points, groups, axes)
    print(
        f"{len(paths)} points in {args.out}.csv and {args.out}.svg: {', '.join(axes)}"
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
