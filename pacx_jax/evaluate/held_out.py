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
from pacx_jax.encoders import model_heads
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import (
    calibration,
    classifier,
    delong,
    frozen,
    measures,
    predictions,
    statistics,
    subgroups,
    thresholds,
)
from pacx_jax.input import patients, sources
from pacx_jax.objectives import late_fusion
from pacx_jax.run import batches, checkpoint, finished, overlap, setup

WORDS = {"auroc": "AUROC", "ap": "AP", "f1": "F1", "brier": "Brier", "ece": "ECE"}
WORDS |= {"accuracy": "accuracy"}


@dataclasses.dataclass(frozen=True)
class Asked:
    """What `evaluate` is asked for besides; main's flags of these names say more.

    Attributes:
      predictions: write predictions_SPLIT.csv.
      groups: a CSV that divides the examples, "" for none; see `subgroups`.
      group_columns: its columns to divide by; () = those called sex, gender or age.
      thresholds: rules by which thresholds are chosen on validation.
    """

    predictions: bool = False
    groups: str = ""
    group_columns: tuple[str, ...] = ()
    thresholds: tuple[str, ...] = thresholds.RULES


def evaluate(config, workdir: str, split: str, asked: Asked = Asked()) -> dict:
    """Metrics of the run's exported checkpoint on `split`; evaluation_SPLIT.json.

    Classifiers, masks and retrieval also have `with_intervals`: 95% intervals from
    1,000 resamples of patients (of images, where the data name none), subgroups, and
    for labels what was chosen on the validation split, unless that is measured. Of
    several sets, each has all of these too, under `sets`.

    Raises:
      PacxError: an unfinished run, data without that split, outputs that are not
        finite.
    """
    thresholds.check_rules(asked.thresholds)
    if not (pathlib.Path(workdir) / "done.json").exists():
        raise PacxError(f"{workdir} holds no finished run: train it first")
    chosen_on = config.data.val_split
    config = ml_collections.ConfigDict(config.to_dict())
    config.data.val_split = split
    opened = batches.open_sources(config)
    overlap.check_evaluation(config, workdir, split)
    config = batches.with_label_names(config, opened)
    _check_labels(config, workdir)
    mesh, objective = setup.place(config)
    collected = _collector(config, workdir, mesh, objective)
    data = batches.Data(config, workdir, objective, mesh, opened)
    outputs, index = collected(data, split)
    source = data.sources[split]
    result = {"split": split, "n": len(index)} | objective.summarize(outputs)
    if split in data.left_out:
        result["left_out"] = data.left_out[split]
    names, task = config.data.label_columns, config.get("task", "multilabel")
    given, spread = measures.examples(outputs, names, task), None
    if given:
        named = source.patients() or [""] * len(source)
        named = [named[int(i)] for i in index]
        units, unknown = patients.units(named)
        result |= _counts(source, units, unknown)
        groups, ids = _divided(source, index, named, asked)
        chosen = None
        if "logits" in outputs and split != chosen_on:
            config.data.val_split = chosen_on
            both = opened | {chosen_on: sources.open_source(config.data, chosen_on)}
            held = batches.Data(config, workdir, objective, mesh, both)
            validation, _ = collected(held, chosen_on)
            validation = measures.examples(validation, names, task)
            chosen = frozen.choose(validation, chosen_on, asked.thresholds)

        def spread(outputs: dict, rows) -> dict:
            each = {column: np.array(g)[rows] for column, g in groups.items()}
            who = np.array(units)[rows]
            return with_intervals(outputs, who, names, config.seed, task, each, chosen)

        result |= spread(outputs, slice(None))
        if asked.predictions and processes.is_first():
            file = pathlib.Path(workdir) / f"predictions_{split}.csv"
            predictions.write(file, given, ids, named)
    if sets := setup.by_set(objective, source, outputs, index, spread):
        result["sets"] = sets
    processes.check_agreement({f"evaluated {k}": v for k, v in result.items()})
    if processes.is_first():
        files.write_json(pathlib.Path(workdir) / f"evaluation_{split}.json", result)
    return result


def calibrate(config, workdir: str) -> None:
    """Writes WORKDIR/calibration.json: what a classifier's validation split says.

    Raises:
      PacxError: outputs that are not finite.
    """
    split = config.data.val_split
    opened = sources.open_splits(config.data)
    config = batches.with_label_names(config, opened)
    mesh, objective = setup.place(config)
    data = batches.Data(config, workdir, objective, mesh, opened)
    outputs, _ = _collector(config, workdir, mesh, objective)(data, split)
    given = measures.examples(outputs, config.data.label_columns, config.task)
    chosen = frozen.choose(given, split, thresholds.RULES)
    unit = config.data.get("group", "image")
    found = classifier.calibration_of(chosen, split, config.task, unit)
    if processes.is_first():
        files.write_json(pathlib.Path(workdir) / model_heads.CALIBRATION, found)


def _collector(config, workdir: str, mesh, objective):
    """(data, its validation split) -> outputs and index by the exported checkpoint."""
    params = checkpoint.read_params(workdir, config.export)
    trained, kept = step.split_params(params, objective.trainable)
    state = step.TrainState(jnp.zeros((), jnp.int32), trained, kept, ())
    shardings = sharding.tree_shardings(state, mesh)
    state = sharding.put_tree(state, shardings)
    eval_step = step.make_eval_step(objective, mesh, shardings)
    key = jax.random.key(config.seed)

    def collected(data, split: str):
        outputs, index = setup.collect(eval_step, state, data.val(), key, mesh)
        refuse_nonfinite(outputs, index, data.sources[split])
        return outputs, index

    return collected


def refuse_nonfinite(outputs: dict, index: np.ndarray, source) -> None:
    """PacxError, with their number, for examples whose scores are not finite."""
    bad = np.zeros(len(index), bool)
    for name in {"logits", "cxr", "called"} & outputs.keys():
        bad |= ~np.isfinite(outputs[name]).reshape(len(index), -1).all(1)
    if bad.any():
        first = source.name(int(index[np.argmax(bad)]))
        raise PacxError(
            f"{int(bad.sum())} of {len(bad)} examples of the {source.split} split have "
            f"scores that are not finite, the first is {first}: nothing is measured; "
            "look for the cause in that file or in the run's weights"
        )


def _counts(source, units: list[str], unknown: int) -> dict[str, int]:
    """How many patients there are, and how many examples name none."""
    what = {"image": "images", "images": "studies"}
    what = next((what[e] for e in source.entries if e in what), "records")
    if unknown == len(units):
        return {f"n_{what}": unknown}
    found = {"n_patients": len(set(units)) - unknown}
    return found | ({f"n_{what}_without_patient": unknown} if unknown else {})


def _divided(source, index, named, asked: Asked) -> tuple[dict, list[str]]:
    """The examples' groups by column, and their paths, which are read if needed."""
    groups, ids = {}, []
    if found := subgroups.view_groups(source, index):
        groups["view"] = found
    if asked.predictions or asked.groups:
        ids = [source[int(i)].get("path") or source.name(int(i)) for i in index]
    if asked.groups:
        columns = asked.group_columns
        groups |= subgroups.read_groups(asked.groups, columns, ids, named)
    return groups, ids


def with_intervals(
    outputs, units, names, seed: int, task: str, groups=None, chosen=None
) -> dict[str, dict]:
    """What `evaluate` gives with intervals.

    Args:
      outputs: of the objective, (n, ...) each.
      units: (n,) patients, or what stands for one (`patients.units`).
      names: of the labels.
      task: "multilabel" or "multiclass".
      groups: column -> (n,) subgroups.
      chosen: of `frozen.choose`.

    Returns:
      `scores` of `measures.scored`; `intervals`, for labels each one's AUROC, with
      DeLong's interval by patient beside it, else the macro means; `views`, the scores
      of fewer views; `subgroups` by column (`subgroups.compared`). For labels also
      `undefined`, those without both classes, counted; `reliability`; and with `chosen`
      what `frozen.measured` gives. Of one patient alone there are only `notes`.
    """
    given = measures.examples(outputs, names, task)
    if len(set(units)) < 2:
        told = f"no intervals: {len(units)} examples are of one patient alone"
        return {"notes": [told]}
    weights = np.float64(statistics.bootstrap_weights(units, 1000, seed))
    scored, counted = measures.scored(given, weights), measures.counts(given)
    found = {"intervals": _intervals(given, scored, units), "scores": scored}
    if undefined := {k: n for k, n in counted.items() if k not in scored["labels"]}:
        found["undefined"] = undefined
    for name, part in late_fusion.populations(outputs).items():
        rows = part.pop("rows")
        some = measures.scored(measures.examples(part, names, task), weights[:, rows])
        found.setdefault("views", {})[name] = {"n": len(rows), "scores": some}
    for column, each in (groups or {}).items():
        compared = subgroups.compared(given, each, units, weights)
        found.setdefault("subgroups", {})[column] = compared
    every = np.concatenate([np.ones((1, len(units))), weights])
    for c in measures.defined(given) if counted else ():
        x, y, rows = given.known(c)
        label, drawn = given.names[c], every[:, rows]
        of = {"reliability": calibration.reliability(x, y, drawn)}
        of |= frozen.measured(x, y, drawn, chosen[label]) if chosen else {}
        for part, value in of.items():
            found.setdefault(part, {})[label] = value
    return found


def _intervals(given, scored, units) -> dict[str, dict]:
    if "label_mask" not in given.arrays:
        return scored["macro"]
    found = {}
    for c in measures.defined(given):
        x, y, rows = given.known(c)
        row = scored["labels"][given.names[c]]["auroc"]
        auroc, variance = delong.covariance(x[None], y, units[rows])
        low, high = delong.interval(auroc[0], variance[0, 0])
        each = {"se": float(np.sqrt(variance[0, 0])), "low": low, "high": high}
        each = {k: None if np.isnan(v) else v for k, v in each.items()}
        found[given.names[c]] = {"auroc": row["value"]} | row | {"delong": each}
    return found


def lines(result: dict) -> list[str]:
    """What `evaluate` returned, as text: the whole, then each set.

    The intervals, a line for the macro means of each number of views, the gap between
    subgroups, what is undefined, and at last the metrics; everything else is in
    evaluation_SPLIT.json alone.
    """
    told = []
    for whose, found in ({"": result} | result.get("sets", {})).items():
        whose = f"{whose}: " if whose else ""
        for name, row in found.get("intervals", {}).items():
            name = f"{name}: AUROC" if "auroc" in row else name
            told.append(f"{whose}{name} {_span(row, '95% interval ')}")
        views = found.get("views", {})
        told += [
            f"{whose}{_macro(which, row)}"
            for which, row in ({"all": found} | views).items()
            if "auroc" in row.get("scores", {}).get("macro", {})
        ]
        for column, compared in found.get("subgroups", {}).items():
            told.append(f"{whose}{column}: {_gap(compared)}")
        if undefined := found.get("undefined"):
            each = (
                f"{k} ({n['positives']} of {n['known']} positive)"
                for k, n in undefined.items()
            )
            told.append(f"{whose}without both classes, left out: {', '.join(each)}")
        told += [f"{whose}{note}" for note in found.get("notes", ())]
        inner = {k for k, v in found.items() if isinstance(v, (dict, list))}
        inner |= {k for k in found for name in views if k.endswith(f"_{name}")}
        rest = (f"{k} {v}" for k, v in found.items() if k not in inner)
        told.append(whose + ", ".join(rest))
    return told


def _span(row: dict, what: str = "") -> str:
    """A row as 0.812 (0.79 to 0.83)."""
    value, low, high = (
        "undefined" if row[k] is None else f"{row[k]:.3f}"
        for k in ("value", "low", "high")
    )
    return f"{value} ({what}{low} to {high})"


def _macro(which: str, row: dict) -> str:
    n = "" if which == "all" else f" ({row['n']:,} studies)"
    each = (
        f"{WORDS.get(k, k)} {_span(at)}" for k, at in row["scores"]["macro"].items()
    )
    return f"macro, {which.replace('_', ' ')}{n}: {', '.join(each)}"


def _gap(compared: dict) -> str:
    """The gap of the first measure's mean, and which groups are not compared."""
    text = "fewer than two groups can be compared"
    if gaps := compared.get("gap"):
        name, row = next(iter(gaps["macro"].items()))
        if "highest" in row:
            high, low = row["highest"], row["lowest"]
            values = [
                compared["scores"][g]["macro"][name]["value"] for g in (high, low)
            ]
            text = f"{WORDS.get(name, name)} {values[0]:.3f} ({high})"
            text += f", {values[1]:.3f} ({low}), gap {_span(row)}"
    left = [f"{g} {compared['n'][g]['n']}" for g in compared["not_compared"]]
    return text + (f"; not compared: {', '.join(left)}" if left else "")


def _check_labels(config, workdir: str) -> None:
    """PacxError where the data have other labels by now than the run was trained on."""
    file = pathlib.Path(workdir) / "labels.json"
    now = list(config.data.label_columns)
    if file.exists() and finished.label_names(file) != now:
        raise PacxError(
            f"{config.data.path}: its labels are {', '.join(now)}, those that the run "
            f"was trained on are in {file}: train another with data.label_columns"
        )
