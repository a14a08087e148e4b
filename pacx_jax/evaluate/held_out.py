"""Measures a finished run on held-out patients, with intervals."""

from __future__ import annotations

import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from pacx_jax import files, sharding, step
from pacx_jax.distributed import processes
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import statistics
from pacx_jax.input import patients
from pacx_jax.objectives import segment
from pacx_jax.run import batches, checkpoint, finished, overlap, setup


def evaluate(config, workdir: str, split: str) -> dict:
    """Metrics of the run's exported checkpoint on `split`; evaluation_SPLIT.json.

    Classifiers also get each label's AUROC, and segmentation its Dice and IoU, with a
    95% interval from 1,000 resamples of patients (of images, where the data name none).
    Of several sets, each has all of these too, under `sets`.

    Raises:
      PacxError: an unfinished run, or data without that split.
    """
    if not (pathlib.Path(workdir) / "done.json").exists():
        raise PacxError(f"{workdir} holds no finished run: train it first")
    config = ml_collections.ConfigDict(config.to_dict())
    config.data.val_split = split
    opened = batches.open_sources(config)
    overlap.check_evaluation(config, workdir, split)
    config = batches.with_label_names(config, opened)
    _check_labels(config, workdir)
    mesh, objective = setup.place(config)
    data = batches.Data(config, workdir, objective, mesh, opened)
    params = checkpoint.read_params(workdir, config.export)
    trained, frozen = step.split_params(params, objective.trainable)
    state = step.TrainState(jnp.zeros((), jnp.int32), trained, frozen, ())
    shardings = sharding.tree_shardings(state, mesh)
    state = sharding.put_tree(state, shardings)
    eval_step = step.make_eval_step(objective, mesh, shardings)
    key = jax.random.key(config.seed)
    outputs, index = setup.collect(eval_step, state, data.val(), key, mesh)
    result = {"split": split, "n": len(index)} | objective.summarize(outputs)
    if split in data.left_out:
        result["left_out"] = data.left_out[split]
    source, spread = data.sources[split], None
    if "logits" in outputs or "hits" in outputs:
        named = source.patients() or [""] * len(source)
        units, unknown = patients.units([named[int(i)] for i in index])
        what = "images" if "image" in source.entries else "records"
        if unknown == len(units):
            result[f"n_{what}"] = unknown
        else:
            result["n_patients"] = len(set(units)) - unknown
            if unknown:
                result[f"n_{what}_without_patient"] = unknown

        def spread(outputs: dict, rows) -> dict:
            who, names = np.array(units)[rows], config.data.label_columns
            if "hits" in outputs:
                return {"intervals": mask_intervals(outputs, who, config.seed)}
            return {"intervals": intervals(outputs, who, names, config.seed)}

        result |= spread(outputs, slice(None))
    if sets := setup.by_set(objective, source, outputs, index, spread):
        result["sets"] = sets
    processes.check_agreement({f"evaluated {k}": v for k, v in result.items()})
    if processes.is_first():
        files.write_json(pathlib.Path(workdir) / f"evaluation_{split}.json", result)
    return result


def _check_labels(config, workdir: str) -> None:
    """PacxError where the data have other labels by now than the run was trained on."""
    file = pathlib.Path(workdir) / "labels.json"
    now = list(config.data.label_columns)
    if file.exists() and finished.label_names(file) != now:
        raise PacxError(
            f"{config.data.path}: its labels are {', '.join(now)}, those that the run "
            f"was trained on are in {file}: train another with data.label_columns"
        )


def intervals(outputs, units, names, seed: int) -> dict[str, dict]:
    """AUROC of each label with its patient-clustered 95% interval.

    Args:
      outputs: logits, labels, label_mask, (n, c) each.
      units: (n,) patients, or what stands for one (`patients.units`).
    """
    weights = statistics.bootstrap_weights(units, 1000, seed)
    found = {}
    for c, name in enumerate(names):
        known = outputs["label_mask"][:, c] > 0
        scores, labels = outputs["logits"][known, c], outputs["labels"][known, c]
        value = statistics.auroc(scores, labels)
        if np.isnan(value):
            continue  # one class alone: there is no AUROC
        spread = statistics.weighted_auroc(scores, labels, weights[:, known])
        low, high = np.nanpercentile(spread, (2.5, 97.5))
        found[name] = {"auroc": value, "low": float(low), "high": float(high)}
    return found


def mask_intervals(outputs, units, seed: int) -> dict[str, dict]:
    """Dice and IoU, pooled and per image, with patient-clustered 95% intervals.

    Args:
      outputs: hits, called, truth, (n,) each (see objectives.segment).
      units: (n,) patients, or what stands for one (`patients.units`).
    """
    counts = [np.float64(outputs[k]) for k in ("hits", "called", "truth")]
    weights = statistics.bootstrap_weights(units, 1000, seed)
    spread = segment.overlap(*(weights @ c for c in counts))
    values = segment.overlap(*(c.sum() for c in counts))
    for name, each in segment.overlap(*counts).items():
        values[f"{name}_per_image"] = each.mean()
        spread[f"{name}_per_image"] = weights @ each / weights.sum(1)
    found = {}
    for name, value in values.items():
        low, high = np.percentile(spread[name], (2.5, 97.5))
        found[name] = {"value": float(value), "low": float(low), "high": float(high)}
    return found
