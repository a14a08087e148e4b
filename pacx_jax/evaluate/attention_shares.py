"""Attention rollout of X-rays as files, and how much of it lies inside masks.

  python -m pacx_jax.evaluate.rollout --encoder=DIR --images=DIR --out=DIR
  python -m pacx_jax.evaluate.rollout --encoder=DIR --images=DIR --out=DIR \\
      --masks=lungs=DIR --masks=heart=DIR --against=DIR

writes maps.npz (`path` (n,), `rollout` (n, grid, grid), and `against` where another
encoder is given), shares.csv, a row an image, and pictures: the image, its map scaled
to [0, 1], and with --against the map less the other's. The mask of image a/x.jpg is
a/x.png in the folder of masks, or x.png.

A share is the attention on the patches inside a mask over that on all patches; beside
it stands the mask's share of the image, which attention spread evenly would have.
"""

from __future__ import annotations

import csv
import itertools
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import cv2
import numpy as np
from PIL import Image

from pacx_jax import cli, files
from pacx_jax.encoders.xray_encoder import Encoder, load_encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import rollout, statistics
from pacx_jax.input import masks, names


def maps_of(
    encoder: Encoder, images: Iterable[np.ndarray], view: str | None = None
) -> np.ndarray:
    """Rollout of images of any number, (n, grid, grid) float32 shares.

    Args:
      images: as `Encoder.preprocess` gives them.
      view: of all images, for an encoder with view embeddings.
    """
    about, out = encoder.architecture, []
    registers, pool = about.get("registers", 0), about.get("pool", "cls")
    images = iter(images)
    size = max(encoder.batch_size // 4, 1)  # every block's attention is kept
    while some := list(itertools.islice(images, size)):
        found = encoder.attentions(some, view)
        out.append(rollout.attention_rollout(found, registers, pool))
    return np.concatenate(out).astype(np.float32)


def coverage(mask: np.ndarray, grid: int) -> np.ndarray:
    """The share of each patch that a mask (h, w) covers, (grid, grid) float64."""
    inside = np.asarray(mask > 0, np.float32)
    return np.float64(cv2.resize(inside, (grid, grid), interpolation=cv2.INTER_AREA))


def share_inside(map_: np.ndarray, covered: np.ndarray) -> float:
    """The share of a map (grid, grid) that lies inside a mask; NaN of an empty map."""
    total = map_.sum()
    return float((map_ * covered).sum() / total) if total > 0 else math.nan


def shares(
    maps: Mapping[str, np.ndarray], covered: Mapping[str, Iterable[np.ndarray | None]]
) -> list[dict[str, float]]:
    """A row an image: of each mask its area and each encoder's share inside it.

    Args:
      maps: encoder's name -> (n, grid, grid), whose grids may differ in size.
      covered: mask's name -> (h, w) masks of the n images, None where there is none.
    """
    rows = [{} for _ in next(iter(maps.values()))]
    for name, each in covered.items():
        for i, (row, mask) in enumerate(zip(rows, each, strict=True)):
            missing = mask is None or not mask.any()
            row[f"{name}_area"] = math.nan if missing else float((mask > 0).mean())
            for encoder, found in maps.items():
                inside = math.nan
                if not missing:
                    inside = share_inside(found[i], coverage(mask, found.shape[-1]))
                row[f"{name}_{encoder}"] = inside
    return rows


def summary(columns: Mapping[str, np.ndarray], units: Sequence) -> dict[str, dict]:
    """Means over images with 95% intervals over units and trainings.

    Args:
      columns: name -> (n,), or (t, n) of t trainings; NaN where undefined.
      units: (n,) patients, or files where these are unknown.

    Returns:
      name -> {"value", "low", "high", "n"}; low and high None for a single unit.
    """
    found = {}
    for name, values in columns.items():
        values = np.atleast_2d(values)
        there = ~np.isnan(values).any(0)
        values, named, n = values[:, there], np.asarray(units)[there], int(there.sum())
        if len(set(named.tolist())) < 2:
            value = float(values.mean()) if n else None
            found[name] = {"value": value, "low": None, "high": None, "n": n}
            continue
        weights = np.float64(statistics.bootstrap_weights(named))
        weights = np.concatenate([np.ones((1, n)), weights])
        means = [statistics.weighted_means(each, weights) for each in values]
        found[name] = statistics.row_over_trainings(np.array(means)) | {"n": n}
    return found


def picture(image: np.ndarray, maps: Sequence[np.ndarray]) -> Image.Image:
    """The image (s, s, c) uint8, and beside it each map (s, s) laid over it.

    A map in [0, 1] is red; of a difference, in [-1, 1], what is below 0 is blue.
    """
    grey = np.float32(image).mean(-1)
    tiles = [np.repeat(grey[..., None], 3, -1)]
    for heat in maps:
        colour = np.zeros((*heat.shape, 3))
        colour[..., 0], colour[..., 2] = 255 * (heat > 0), 255 * (heat < 0)
        amount = 0.6 * np.abs(heat)[..., None]
        tiles.append(tiles[0] * (1 - amount) + colour * amount)
    return Image.fromarray(np.uint8(np.round(np.concatenate(tiles, 1))))


def _masks(asked: Sequence[str], paths: Sequence[str]) -> dict[str, list[str]]:
    """--masks=NAME=DIR -> the file of each image's mask, "" where there is none."""
    found = {}
    for one in asked:
        name, equals, folder = one.partition("=")
        root = pathlib.Path(folder)
        if not (name and equals and folder):
            raise PacxError(f"--masks={one}: give NAME=DIR, such as lungs=DIR")
        if not root.is_dir():
            raise PacxError(f"--masks={one}: no such folder")
        files_, each = set(names.find(root, f"--masks={one}").paths), []
        for path in paths:
            own = pathlib.PurePosixPath(path).with_suffix(".png")
            file = next((str(x) for x in (own, own.name) if str(x) in files_), "")
            each.append(str(root / file) if file else "")
        if not any(each):
            raise PacxError(
                f"--masks={one}: none of {len(paths)} images has a mask there; the "
                f"first would be {pathlib.PurePosixPath(paths[0]).with_suffix('.png')}"
            )
        found[name] = each
    return found


def _write(out: pathlib.Path, paths, images, maps, rows) -> None:
    with files.whole(out / "maps.npz", "wb") as file:
        arrays = dict(zip(("rollout", "against"), maps.values(), strict=False))
        np.savez(file, path=np.array(paths, dtype=np.str_), **arrays)
    with files.whole(out / "shares.csv") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", *rows[0]])
        for path, row in zip(paths, rows, strict=True):
            cells = ["" if math.isnan(x) else f"{x:.6g}" for x in row.values()]
            writer.writerow([path, *cells])
    for i, (path, image) in enumerate(zip(paths, images, strict=False)):
        size = image.shape[0]
        shown = [
            rollout.minmax(rollout.upsample(each[i : i + 1], size))[0]
            for each in maps.values()
        ]
        if len(shown) > 1:
            shown[1] = rollout.difference_map(shown[1], shown[0])
        name = f"{path.replace('/', '_')}.png"
        with files.whole(out / "pictures" / name, "wb") as file:
            picture(image, shown).save(file, format="PNG")


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = cli.Parser(prog="python -m pacx_jax.evaluate.rollout", description=__doc__)
    add = parser.add_argument
    add("--encoder", required=True, help="exported folder or workdir")
    add("--images", required=True, help="folder of JPEG, PNG or DICOM files")
    add("--out", required=True, help="folder to write")
    add("--against", default="", help="another encoder, whose map is subtracted")
    add("--masks", action="append", default=[], help="NAME=DIR; again for more")
    add("--view", help="of all images, for an encoder with view embeddings")
    add("--image_size", type=int, default=0, help="pixels a side (default: its own)")
    add("--batch_size", type=int, default=32)
    add("--pictures", type=int, default=50, help="of the first so many images")
    args = parser.parse_args(argv)
    if args.batch_size < 1:
        raise PacxError(f"--batch_size {args.batch_size}: give at least 1")
    listed = names.find(args.images, "--images")
    covered = _masks(args.masks, listed.paths)
    maps, images = {}, []
    for name, folder in (("against", args.against), ("share", args.encoder)):
        if folder:
            encoder = load_encoder(folder, args.batch_size, image_size=args.image_size)
            files_ = [pathlib.Path(args.images) / path for path in listed.paths]
            images = [encoder.preprocess(x) for x in files_[: args.pictures]]
            view = args.view if encoder.views else None
            maps[name] = maps_of(encoder, map(encoder.preprocess, files_), view)
    maps = dict(sorted(maps.items(), reverse=True))  # the share first
    read = {
        name: (masks.decode(x, x) if x else None for x in each)
        for name, each in covered.items()
    }
    rows = shares(maps, read)
    for name, found in maps.items():
        for row, map_ in zip(rows, found, strict=True):
            row[f"patches_{name}"] = float(map_.sum())
    out = pathlib.Path(args.out)
    _write(out, listed.paths, images, maps, rows)
    asked = [f"{m}_{k}" for m in covered for k in (*maps, "area")]
    columns = {column: np.array([row[column] for row in rows]) for column in asked}
    if args.against:
        for m in covered:
            gap = columns[f"{m}_share"] - columns[f"{m}_against"]
            columns[f"{m}_share - {m}_against"] = gap
    found = summary(columns, listed.paths)
    files.write_json(out / "shares.json", found)
    for column, row in found.items():
        span = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
        print(f"{column}: {row['value']:.3f}{span}, {row['n']} images")
    print(f"{len(listed.paths)} maps in {out}")
    return 0
