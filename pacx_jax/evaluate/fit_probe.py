"""A linear probe on an encoder, from images and labels in memory to a classifier."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from pacx_jax.encoders import xray_encoder
from pacx_jax.encoders.xray_encoder import Encoder, Image
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import frozen, measures, probe, thresholds
from pacx_jax.evaluate.classifier import Classifier, calibration_of
from pacx_jax.input import in_memory
from pacx_jax.input import patients as ids


def fit_probe(
    encoder: Encoder | str | os.PathLike,
    images: Image | Sequence[Image],
    labels: Any,
    patients: Sequence[Any] | None = None,
    names: Sequence[str] = (),
    validation: Sequence[bool] | None = None,
    rules: Sequence[str] = thresholds.RULES,
) -> Classifier:
    """Fits a logistic regression for each label on an encoder's embeddings.

    One patient in five is held out (by `probe.folds`, which spreads the labels evenly
    and draws the same ones each time). On the others the L2 penalty of each label is
    chosen by cross-validation in which patients stay together, and the regression is
    fitted (`probe.fit`). On the held-out patients probabilities are calibrated and
    thresholds chosen (`frozen.choose`).

    Args:
      encoder: of `load_encoder`, or what that opens.
      images: n images, as for a call of `Encoder`.
      labels: (n,) or (n, c) of 1, 0, -1 (uncertain) and NaN (unknown), the latter two
        left out; or name -> (n,) values, such as a dict or a pandas DataFrame.
      patients: (n,) ids. Without them each image counts as a patient of its own.
      names: of the c labels; by default those of `labels`, else label_0, ...
      validation: (n,) which images are held out, instead of one patient in five.
      rules: for thresholds, see `evaluate.thresholds.choose`.

    Returns:
      Classifier. Its `calibration` says on how many held-out images each label was
      known and positive; a label of one class there is not calibrated.

    Raises:
      PacxError: labels, patients and images of different lengths, values that are no
        labels, a label with one class among the images that are fitted on, or a patient
        both held out and fitted on.

    Example:
      encoder = load_encoder("runs/demo/distill")
      classifier = fit_probe(encoder, paths, {"effusion": y}, patients=who)
      classifier.save("effusion_model")
    """
    values, names = in_memory.table(labels, names)
    if hasattr(images, "__len__") and not isinstance(images, str | os.PathLike):
        _check_count(len(images), len(values))
    if not values.size:
        raise PacxError("no labels: give a row for each image, and a column or more")
    units = _patients(patients, len(values))
    known = (values == 0) | (values == 1)
    target = np.where(known, values, 0.0)
    held = probe.folds(target, units) == 0
    if validation is not None:
        held = _held_out(validation, units)
    _check_classes(target[~held], known[~held], names)
    if not isinstance(encoder, Encoder):
        encoder = xray_encoder.load_encoder(encoder)
    z = encoder(images)
    _check_count(len(z), len(values))
    if not np.isfinite(z).all():
        bad = int(np.argmin(np.isfinite(z).all(1)))
        raise PacxError(f"image {bad}: its embedding is not finite; leave it out")
    fit = ~held
    fitted = probe.fit(z[fit], target[fit], known[fit], groups=units[fit])
    kernel = fitted.weights / fitted.scale[:, None]
    bias = fitted.bias - fitted.mean @ kernel
    found = Classifier(encoder, kernel, bias, names)
    arrays = {
        "logits": found.logits(z[held]),
        "labels": target[held],
        "label_mask": known[held],
    }
    given = measures.Examples("multilabel", names, arrays)
    split = "held-out images" if patients is None else "held-out patients"
    chosen = frozen.choose(given, split, rules)
    calibration = calibration_of(chosen, split)
    return Classifier(encoder, kernel, bias, names, calibration=calibration)


def _patients(patients: Sequence[Any] | None, count: int) -> np.ndarray:
    if patients is None:
        return np.array([f"#{i}" for i in range(count)])
    if len(patients) != count:
        raise PacxError(f"{len(patients)} patients for {count} labels: give one each")
    for i, patient in enumerate(patients):
        if patient is None or patient != patient or patient == "":
            raise PacxError(f"patients: {patient!r} of image {i} is no id; give one")
    return np.array(ids.units(patients)[0])


def _check_count(images: int, labels: int) -> None:
    if images != labels:
        raise PacxError(f"{images} images for {labels} labels: give one each")


def _held_out(validation: Sequence[bool], units: np.ndarray) -> np.ndarray:
    held = np.asarray(validation)
    if held.dtype != bool or held.shape != units.shape:
        raise PacxError(
            f"validation of shape {held.shape} and type {held.dtype}: give "
            f"{len(units)} truth values"
        )
    if both := sorted({*units[held]} & {*units[~held]}):
        raise PacxError(
            f"validation: {both[0]} is both held out and fitted on ({len(both)} such): "
            "hold all images of a patient out"
        )
    return held


def _check_classes(target: np.ndarray, known: np.ndarray, names) -> None:
    positives, count = (target * known).sum(0), known.sum(0)
    for name, k, n in zip(names, positives, count, strict=True):
        if k in (0, n):
            raise PacxError(
                f"label {name!r}: {k:.0f} of the {n:.0f} images that are fitted on are "
                "positive, both classes are needed; add images or leave the label out"
            )
