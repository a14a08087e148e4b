"""Measures a finished run on held-out patients, with intervals."""

from __future__ import annotations

import dataclasses
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
from pacx_jax.objectives import late_fusion, scores, segment
from pacx_jax.run import batches, checkpoint, finished, overlap, setup

WORDS = {"auroc": "AUROC", "ap": "AP", "f1": "F1", "brier": "Brier", "ece": "ECE"}
WORDS |= {"accuracy": "accuracy"}


def evaluate(config, workdir: str, split: str) -> dict:
    """Metrics of the run's exported checkpoint on `split`; evaluation_SPLIT.json.

    Classifiers also get each label's AUROC, and segmentation its Dice and IoU, with a
    95% interval from 1,000 resamples of patients (of images, where the data name none).
    Multi-label classifiers have more under `scores`, and those of studies the same for
    fewer views under `views` (see `label_scores` and `late_fusion.NUMBERS`). Of several
    sets, each has all of these too, under `sets`.

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
        what = {"image": "images", "images": "studies"}
        what = next((what[e] for e in source.entries if e in what), "records")
        if unknown == len(units):
            result[f"n_{what}"] = unknown
        else:
            result["n_patients"] = len(set(units)) - unknown
            if unknown:
                result[f"n_{what}_without_patient"] = unknown

        def spread(outputs: dict, rows) -> dict:
            names, task = config.data.label_columns, config.get("task", "multilabel")
            who = np.array(units)[rows]
            return with_intervals(outputs, who, names, config.seed, task)

        result |= spread(outputs, slice(None))
    if sets := setup.by_set(objective, source, outputs, index, spread):
        result["sets"] = sets
    processes.check_agreement({f"evaluated {k}": v for k, v in result.items()})
    if processes.is_first():
        files.write_json(pathlib.Path(workdir) / f"evaluation_{split}.json", result)
    return result


def with_intervals(outputs, units, names, seed: int, task: str) -> dict[str, dict]:
    """What `evaluate` gives with intervals: `intervals`, `scores` and `views`.

    Args:
      outputs: of the objective, (n, ...) each.
      units: (n,) patients, or what stands for one (`patients.units`).
      task: only "multilabel" has `scores` and `views`, the latter of studies alone.
    """
    if "hits" in outputs:
        return {"intervals": mask_intervals(outputs, units, seed)}
    found = {"intervals": intervals(outputs, units, names, seed)}
    if task != "multilabel":
        return found
    found["scores"] = label_scores(outputs, units, names, seed)
    views = {
        name: {
            "n": len(part["rows"]),
            "scores": label_scores(part, units[part["rows"]], names, seed),
        }
        for name, part in late_fusion.populations(outputs).items()
    }
    return found | ({"views": views} if views else {})


def lines(result: dict) -> list[str]:
    """What `evaluate` returned, as text: the whole, then each set.

    The intervals, a line for the macro means of each number of views, and at last the
    metrics; the other scores are in evaluation_SPLIT.json alone.
    """
    told = []
    for whose, found in ({"": result} | result.get("sets", {})).items():
        whose = f"{whose}: " if whose else ""
        for name, row in found.get("intervals", {}).items():
            label = "auroc" in row
            value = f": AUROC {row['auroc']:.3f}" if label else f" {row['value']:.3f}"
            interval = f"95% interval {row['low']:.3f} to {row['high']:.3f}"
            told.append(f"{whose}{name}{value} ({interval})")
        views = found.get("views", {})
        shown = {"all": found} | views
        told += [
            f"{whose}{_macro(which, row)}"
            for which, row in shown.items()
            if row.get("scores", {}).get("macro")
        ]
        inner = {"sets", "intervals", "scores", "views"}
        inner |= {k for k in found for name in views if k.endswith(f"_{name}")}
        rest = (f"{k} {v}" for k, v in found.items() if k not in inner)
        told.append(whose + ", ".join(rest))
    return told


def _macro(which: str, row: dict) -> str:
    n = "" if which == "all" else f" ({row['n']:,} studies)"
    each = (
        f"{WORDS[k]} {at['value']:.3f} ({at['low']:.3f} to {at['high']:.3f})"
        for k, at in row["scores"]["macro"].items()
    )
    return f"macro, {which.replace('_', ' ')}{n}: {', '.join(each)}"


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


def label_scores(outputs, units, names, seed: int) -> dict[str, dict]:
    """AUROC, and `scores.MEASURES`, with patient-clustered 95% intervals.

    Args:
      outputs: logits, labels, label_mask, (n, c) each.
      units: (n,) patients, or what stands for one (`patients.units`).

    Noise adds to the absolute gaps of the calibration error, and resampling adds noise:
    its interval tends to lie above its value, which is itself above the truth.

    Returns:
      {"macro": {measure: {"value", "low", "high"}}, "labels": {label: the same}}. A
      label of one class is left out, also of the means; a resample that leaves a label
      undefined has the mean of the others.
    """
    x, y, mask = (outputs[k] for k in ("logits", "labels", "label_mask"))
    both = np.flatnonzero(scores.both_classes(y, mask))
    x, y, mask = (np.float64(a[:, both]) for a in (x, y, mask))
    drawn = statistics.bootstrap_weights(units, 1000, seed)
    rows = np.concatenate([np.ones((1, len(y))), drawn])  # the sample itself is first
    counts = np.int32(rows)  # exact, and quicker to sum
    truth = np.where(mask > 0, y, np.nan)
    columns = zip(x.T, truth.T, strict=True)
    aurocs = [statistics.weighted_auroc(*xy, counts) for xy in columns]
    each = {"auroc": np.stack(aurocs, 1) if len(both) else np.empty((len(rows), 0))}
    each |= {k: measure(x, y, mask, rows) for k, measure in scores.MEASURES.items()}
    labels: dict[str, dict] = {names[c]: {} for c in both}
    macro = {}
    for measure, values in each.items():
        if len(both):
            macro[measure] = _interval(statistics.mean_defined(values))
        for k, c in enumerate(both):
            labels[names[c]][measure] = _interval(values[:, k])
    return {"macro": macro, "labels": labels}


def _interval(values: np.ndarray) -> dict[str, float]:
    """The first of (1 + r,) values, with an interval from the others."""
    return dataclasses.asdict(statistics.estimate(float(values[0]), values[1:]))


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
