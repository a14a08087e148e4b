"""How much of an ECG or of laboratory values an image embedding carries.

  python -m pacx_jax.evaluate.alignment --workdir=runs/distill --out=alignment.json
  python -m pacx_jax.evaluate.alignment --workdir=runs/distill --encoder=runs/mae

measures a distilled run's encoder, or another, on that run's data: fitted to training
studies, asked on test studies.

Retrieval by cosine, and the ridge probe of the reference's alignment study
(D30, D31): targets raw, cosines both raw and centred, because raw
ECG embeddings share a mean direction (random pairs already agree at about 0.43).
"""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pacx_jax import cli, files
from pacx_jax.encoders.xray_encoder import Encoder, load_encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import features, statistics
from pacx_jax.input import patients as people
from pacx_jax.input import sources
from pacx_jax.objectives import distill
from pacx_jax.objectives.retrieval import hits_at_k, normalize_rows, recall_at_k
from pacx_jax.run import finished, overlap

if TYPE_CHECKING:
    from jaxtyping import Float, Real

KS = (1, 5, 10)  # of recall at k
# What the probe is fitted to besides the encoder's own embeddings.
FLOORS = {
    "shuffled": "the encoder's embeddings, paired with other patients' in training",
    "random": "normal noise in their place, as many numbers",
}


def predict(
    x_train: Float[np.ndarray, "n d"],
    y_train: Float[np.ndarray, "n f"],
    x_test: Float[np.ndarray, "m d"],
    alpha: float = 10.0,
) -> Float[np.ndarray, "m f"]:
    """Ridge regression from standardised embeddings: (m, f) predictions of x_test."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    scaler = StandardScaler().fit(x_train)
    ridge = Ridge(alpha=alpha, solver="svd").fit(scaler.transform(x_train), y_train)
    return ridge.predict(scaler.transform(x_test)).reshape(len(x_test), -1)


def ridge_alignment(
    x_train: Float[np.ndarray, "n d"],
    y_train: Float[np.ndarray, "n f"],
    x_test: Float[np.ndarray, "m d"],
    y_test: Float[np.ndarray, "m f"],
    alpha: float = 10.0,
) -> dict[str, float]:
    """Predict physiological embeddings from image embeddings by ridge regression.

    Args:
      x_train: (n, d) image embeddings; standardised here by their own statistics.
      y_train: (n, f) ECG or labs embeddings, used raw (D30).
      x_test: (m, d).
      y_test: (m, f).
      alpha: ridge penalty.

    Returns:
      dict: `r2` (uniform average over f), `cosine` and `cosine_centred` (both sides
      less the test targets' mean), `random_cosine` and `random_cosine_centred` (true
      targets against a permutation of them), `recall@k` and `chance@k` of finding
      one's own target by the prediction, k in 1, 5, 10, and `hits@k` of `n`.
    """
    predicted = predict(x_train, y_train, x_test, alpha)
    mean = y_test.mean(axis=0)
    other = y_test[np.random.default_rng(0).permutation(len(y_test))]
    each = per_example(predicted, y_test)
    hits = {f"hits@{k}": float(each[f"recall@{k}"].sum()) for k in KS}
    return {
        "r2": float(_r2(predicted, y_test, np.ones((1, len(y_test))))[0]),
        "cosine": float(each["cosine"].mean()),
        "cosine_centred": float(each["cosine_centred"].mean()),
        "random_cosine": float(_cosines(other, y_test).mean()),
        "random_cosine_centred": float(_cosines(other - mean, y_test - mean).mean()),
        **recall_at_k(predicted, y_test, KS),
        **hits,
        "n": len(y_test),
    }


def with_intervals(
    x_train: Float[np.ndarray, "n d"],
    y_train: Float[np.ndarray, "n f"],
    x_test: Float[np.ndarray, "m d"],
    y_test: Float[np.ndarray, "m f"],
    patients: Sequence,
    alpha: float = 10.0,
    n_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, dict]:
    """`ridge_alignment` with 95% intervals over test patients, and its floors.

    The mean that cosines are centred by and the gallery that is searched stay those of
    the whole test set; the probe is not fitted again.

    Args:
      patients: (m,) of the test examples.
      seed: of resamples, permutation and noise.

    Returns:
      "encoder" and each of FLOORS -> measure -> {"value", "low", "high"}, and of
      "encoder" `hits@k`, `chance@k` and `n`, which are numbers.
    """
    given = np.asarray(x_train), y_train, np.asarray(x_test)
    predicted = {"encoder": predict(*given, alpha)} | floors(*given, alpha, seed)
    weights = np.float64(statistics.bootstrap_weights(patients, n_resamples, seed))
    weights = np.concatenate([np.ones((1, len(y_test))), weights])
    found = {}
    for name, each in predicted.items():
        values = resampled(each, y_test, weights)
        found[name] = {k: statistics.row(v) for k, v in values.items()}
    n = len(y_test)
    for k in KS:
        found["encoder"][f"hits@{k}"] = found["encoder"][f"recall@{k}"]["value"] * n
        found["encoder"][f"chance@{k}"] = min(k / n, 1.0)
    found["encoder"]["n"] = n
    return found


def floors(
    x_train: Float[np.ndarray, "n d"],
    y_train: Float[np.ndarray, "n f"],
    x_test: Float[np.ndarray, "m d"],
    alpha: float = 10.0,
    seed: int = 0,
) -> dict[str, Float[np.ndarray, "m f"]]:
    """Each of FLOORS -> (m, f) predictions, as of `predict`."""
    rng = np.random.default_rng((seed, 3))
    noise = [rng.normal(size=x.shape) for x in (x_train, x_test)]
    shuffled = y_train[rng.permutation(len(y_train))]
    return {
        "shuffled": predict(x_train, shuffled, x_test, alpha),
        "random": predict(noise[0], y_train, noise[1], alpha),
    }


def resampled(
    predicted: Float[np.ndarray, "m f"],
    truth: Float[np.ndarray, "m f"],
    weights: Real[np.ndarray, "r m"],
) -> dict[str, Float[np.ndarray, " r"]]:
    """Measure -> its value under each of (r, m) weights, (r,)."""
    total = weights.sum(1)
    each = per_example(predicted, truth)
    found = {k: weights @ v / total for k, v in each.items()}
    return {"r2": _r2(predicted, truth, weights)} | found


def per_example(
    predicted: Float[np.ndarray, "m f"], truth: Float[np.ndarray, "m f"]
) -> dict[str, Float[np.ndarray, " m"]]:
    """`cosine`, `cosine_centred` and `recall@k` of each test example, (m,)."""
    mean = truth.mean(axis=0)
    hits = hits_at_k(predicted, truth, KS)
    return {
        "cosine": _cosines(predicted, truth),
        "cosine_centred": _cosines(predicted - mean, truth - mean),
    } | {f"recall@{k}": hits[k] for k in KS}


def _r2(predicted, truth, weights: np.ndarray) -> np.ndarray:
    """Mean over outputs of R^2 under (r, m) weights, (r,); a constant output has 0."""
    truth = np.asarray(truth, np.float64)
    total = weights.sum(1, keepdims=True)
    mean = weights @ truth / total
    # Around the sample's mean, so that squares do not cancel.
    centred = truth - truth.mean(axis=0)
    shift = mean - truth.mean(axis=0)
    spread = weights @ centred**2 - total * shift**2
    missed = weights @ (truth - predicted) ** 2
    defined = spread > 1e-12 * np.maximum(weights @ truth**2, 1e-300)
    ratio = np.divide(missed, spread, out=np.ones_like(missed), where=defined)
    return (1 - ratio).mean(axis=1)


def _cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.sum(normalize_rows(a) * normalize_rows(b), axis=1)


def of_run(
    workdir: str, encoder: Encoder, splits: Sequence[str], cache_dir: pathlib.Path
) -> dict[str, dict]:
    """Each modality of a distilled run -> `with_intervals` of an encoder on its data.

    Args:
      splits: to fit on, and to ask on.
      cache_dir: where embeddings are kept.
    """
    config = finished.read_config(workdir)
    if config.objective != "distill":
        raise PacxError(
            f"{workdir} is a run of {config.objective}: give a distilled one, whose "
            "config names data and teachers"
        )
    fitted, asked = (sources.open_source(config.data, split) for split in splits)
    who = np.array(people.units(asked.patients() or [""] * len(asked))[0])
    x = [features.of_source(encoder, source, cache_dir) for source in (fitted, asked)]
    found = {}
    for m in distill.active(config):
        y = [
            features.of_teacher(config, m, source, cache_dir)
            for source in (fitted, asked)
        ]
        a, b = (np.isfinite(each).all(1) for each in y)
        for split, there in zip(splits, (a, b), strict=True):
            if not there.any():
                raise PacxError(
                    f"{config.data.path}: no {split} example has {m}: give other "
                    "--splits"
                )
        found[m] = with_intervals(x[0][a], y[0][a], x[1][b], y[1][b], who[b])
    return found


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = cli.Parser(
        prog="python -m pacx_jax.evaluate.alignment", description=__doc__
    )
    add = parser.add_argument
    add("--workdir", required=True, help="a distilled run: its data and teachers")
    add("--encoder", default="", help="another X-ray encoder (default: the run's)")
    add("--splits", default="train,test", help="to fit on, and to ask on")
    add("--cache", default="", help="folder to keep embeddings in (default: nowhere)")
    add("--out", default="", help="JSON to write")
    args = parser.parse_args(argv)
    if len(splits := args.splits.split(",")) != 2:
        raise PacxError(f"--splits={args.splits}: give two, such as train,test")
    chosen = args.encoder or args.workdir
    config, encoder = finished.read_config(args.workdir), load_encoder(chosen)
    with tempfile.TemporaryDirectory() as scratch:
        cache = pathlib.Path(args.cache or scratch)
        chain = overlap.behind(chosen)
        seen = overlap.check(config, scratch, [splits[1]], chain, allow="")
        found = of_run(args.workdir, encoder, splits, cache)
    for m, by_input in found.items():
        for name, row in by_input.items():
            told = [
                f"{k} {row[k]['value']:.3f} ({row[k]['low']:.3f}-{row[k]['high']:.3f})"
                for k in ("r2", "cosine_centred", "recall@5")
            ]
            print(f"{m}, {name}: {', '.join(told)}")
    if args.out:
        about = {"encoder": features.fingerprint(encoder), "splits": splits}
        files.write_json(args.out, about | {"overlap": seen} | {"alignment": found})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
