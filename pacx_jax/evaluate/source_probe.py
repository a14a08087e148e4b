"""Can the set that an image is from be read off its embedding? A shortcut, if it can.

  python -m pacx_jax.evaluate.source_probe --encoder=runs/distill \\
      --set=prepared/nih14 --set=prepared/vindr_cxr --out=sources.json

Sets differ in scanners, processing and file formats. Where they differ in their
patients' diseases too, a probe trained on several of them may read the set in place of
the disease. A linear probe is fitted to the train split's embeddings and asked on the
test split's; beside it stands the same probe on raw pixels.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import ml_collections
import numpy as np

from pacx_jax import cli, files
from pacx_jax.encoders.xray_encoder import load_encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import features, probe, statistics
from pacx_jax.input import images, patients, sources


def measured(
    trainings: Sequence[Mapping[str, Mapping[str, np.ndarray]]],
    named: Mapping[str, Sequence[str]],
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict:
    """Balanced accuracy and one-against-others AUROC of telling the sets apart.

    Args:
      trainings: of each training of an encoder, "train" and "test" -> set -> (n, d)
        embeddings.
      named: set -> (n,) patients of its test images; those of two sets are others.

    Returns:
      `balanced_accuracy` and `auroc`: {"value", "low", "high"} over patients and, from
      two on, trainings; `chance`, the balanced accuracy of guessing; `n`: set -> test
      images; `trainings`.

    Raises:
      PacxError: fewer than two sets, or one without images.
    """
    for z in trainings:
        if len(z["train"]) < 2 or not all(
            len(x) for s in z.values() for x in s.values()
        ):
            raise PacxError("telling sets apart takes two of them, each with images")
    names = list(named)
    who = [f"{k}/{unit}" for k in names for unit in patients.units(named[k])[0]]
    weights = statistics.bootstrap_weights(who, n_resamples, seed)
    weights = np.concatenate([np.ones((1, len(who)), weights.dtype), weights])
    each = [_resampled(z["train"], z["test"], names, weights) for z in trainings]
    accuracies, aurocs = (np.array(x) for x in zip(*each, strict=True))
    return {
        "balanced_accuracy": statistics.row_over_trainings(accuracies),
        "auroc": statistics.row_over_trainings(aurocs),
        "chance": 1 / len(names),
        "n": {k: len(named[k]) for k in names},
        "trainings": len(trainings),
    }


def _resampled(train, test, names, weights) -> tuple[np.ndarray, np.ndarray]:
    """(1 + r,) balanced accuracies and AUROCs of a probe fitted to `train`."""
    labels = np.repeat(np.eye(len(names)), [len(train[k]) for k in names], axis=0)
    fitted = probe.fit(np.concatenate([train[k] for k in names]), labels)
    asked = np.concatenate([test[k] for k in names])
    if not np.isfinite(asked).all():
        raise PacxError("embeddings of test images are not finite: look at the encoder")
    p = fitted.predict(asked)
    truth = np.repeat(np.eye(len(names)), [len(test[k]) for k in names], axis=0)
    right = np.float64(p.argmax(1) == truth.argmax(1))
    with np.errstate(invalid="ignore"):  # a resample without images of a set
        recalls = (weights @ (truth * right[:, None])) / (weights @ truth)
    columns = zip(p.T, truth.T, strict=True)
    aurocs = [statistics.weighted_auroc(x, y, weights) for x, y in columns]
    return recalls.mean(1), np.mean(aurocs, axis=0)


def pixels_of(source, rows: Sequence[int] | None = None) -> np.ndarray:
    """Raw pixels of a source's X-rays, or of some: what the probe does without encoder.

    Returns:
      (n, 24 * 24).
    """
    chosen = range(len(source)) if rows is None else map(int, rows)
    decoded = [images.decode(source[i]["image"], source.name(i)) for i in chosen]
    return features.small_pixels(decoded)


def read(path: str, split: str, limit: int, seed: int = 0):
    """(uint8 images, patients, views) of at most `limit` images drawn from a split."""
    config = ml_collections.ConfigDict({"source": "prepared", "path": path})
    source = sources.open_source(config, split)
    chosen = np.random.default_rng(seed).permutation(len(source))[:limit]
    examples = [(source[int(i)], source.name(int(i))) for i in np.sort(chosen)]
    decoded = [images.decode(example["image"], name) for example, name in examples]
    named = [example.get("patient_id", "") for example, _ in examples]
    return decoded, named, [example.get("view", "unknown") for example, _ in examples]


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = cli.Parser(
        prog="python -m pacx_jax.evaluate.source_probe", description=__doc__
    )
    add = parser.add_argument
    add("--encoder", required=True, help="exported folder or workdir")
    add("--set", action="append", required=True, help="a prepared set, repeatable")
    add("--splits", default="train,test", help="to fit on, and to ask on")
    add("--limit", type=int, default=2000, help="images of a split, drawn by --seed")
    add("--seed", type=int, default=0)
    add("--out", default="", help="JSON to write")
    args = parser.parse_args(argv)
    paths = args.set
    names = [pathlib.Path(path).name for path in paths]
    if len(set(names)) < max(len(names), 2):
        raise PacxError(
            f"--set={' --set='.join(paths)}: give two sets or more, of different names"
        )
    if args.limit < 10:
        raise PacxError(f"--limit={args.limit}: give at least 10")
    if len(splits := args.splits.split(",")) != 2:
        raise PacxError(f"--splits={args.splits}: give two, such as train,test")
    encoder = load_encoder(args.encoder)
    z: dict[str, list] = {"encoder": [], "pixels": []}
    for split in splits:
        found = [read(path, split, args.limit, args.seed) for path in paths]
        views = [(each[2],) if encoder.views else () for each in found]
        z["encoder"].append(
            [encoder(each[0], *v) for each, v in zip(found, views, strict=True)]
        )
        z["pixels"].append([features.small_pixels(each[0]) for each in found])
        named = dict(zip(names, (each[1] for each in found), strict=True))
    result = {}
    for what, parts in z.items():
        z_of = (dict(zip(names, part, strict=True)) for part in parts)
        z_of = dict(zip(("train", "test"), z_of, strict=True))
        result[what] = row = measured([z_of], named, seed=args.seed)
        accuracy, auroc = row["balanced_accuracy"], row["auroc"]
        print(
            f"{what}: the set is right for {accuracy['value']:.3f} "
            f"({accuracy['low']:.3f} to {accuracy['high']:.3f}), chance "
            f"{row['chance']:.3f}; AUROC {auroc['value']:.3f}"
        )
    if args.out:
        files.write_json(args.out, result)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
