"""The numbers of tables 1 and 3 and of figure 3: probes on cached features, masks.

A number is the mean over t trainings (and s label subsets) with a 95% interval over
test patients, label subsets and, from two trainings on, trainings, as in a study
(`pacx_jax.evaluate.statistics`). Whatever is measured is kept in OUT/cells under the
fingerprints of what it depends on, and is not measured again.
"""

from __future__ import annotations

import csv
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import ml_collections
import numpy as np

from launch.paper.rows import Row
from pacx_jax import files
from pacx_jax.encoders.xray_encoder import Encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import (
    features,
    held_out,
    measures,
    probe,
    statistics,
)
from pacx_jax.input import patients, sources, subsets
from pacx_jax.objectives import scores
from pacx_jax.run import finished, overlap

VERSION = 3  # of how cells are measured: what an older one measured is measured again
Distribution = tuple[np.ndarray, np.ndarray]  # (t,) values, (r,) resampled means


@dataclasses.dataclass(frozen=True)
class Setting:
    """What all measurements share.

    Attributes:
      data: folder of the prepared sets.
      out: folder of what is written.
      encoders: arm -> its encoders, one a training.
      folders: arm -> their folders.
      subsets: label subsets of fractions below 1.
      resamples: of patients.
    """

    data: str
    out: pathlib.Path
    encoders: dict[str, list[Encoder]]
    folders: dict[str, list[str]]
    subsets: int = 5
    resamples: int = 1000

    def remembered(self, name: str, depends: Sequence, make: Callable[[], dict]):
        """The JSON of a measurement, made once for what it depends on."""
        prints = {
            arm: [features.fingerprint(e) for e in each]
            for arm, each in self.encoders.items()
        }
        about = [VERSION, name, *depends, prints, self.subsets, self.resamples]
        key = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:16]
        path = self.out / "cells" / f"{name}_{key}.json"
        if path.is_file():
            return files.read_json(path)
        found = make()
        files.write_json(path, found)
        return found


def open_split(data: str, row: Row, split: str):
    """A split of a row's prepared set."""
    path = str(pathlib.Path(data) / row.folder)
    config = ml_collections.ConfigDict({"source": "prepared", "path": path})
    return sources.open_source(config, split)


def shown(value: Distribution, resamples_of: str, n: int) -> dict:
    """A cell: value, low, high, the spread over trainings, and what it is over."""
    each, drawn = value
    found = statistics.over_trainings(each, drawn)
    cell = {k: None if np.isnan(v) else v for k, v in vars(found).items()}
    spread = float(np.std(each, ddof=1)) if len(each) > 1 else None
    return cell | {"spread": spread, "trainings": len(each), resamples_of: n}


def distribution(
    examples: Sequence[Sequence[measures.Examples]], weights: np.ndarray, name: str
) -> Distribution:
    """A measure's macro mean over labels, averaged over label subsets.

    Args:
      examples: of each training and label subset.
      weights: (r, m) of the test examples.
      name: of measures.MEASURES.
    """
    rows = np.concatenate([np.ones((1, weights.shape[1])), weights])
    values = []
    for training in examples:
        values.append([])
        for given in training:
            given = given.columns(measures.defined(given))
            each = measures.MEASURES[given.kind][name](given.arrays, rows)
            values[-1].append(statistics.mean_defined(each))
    values = np.array(values)  # (t, s, 1 + r)
    draws = statistics.seed_draws(values.shape[1], len(weights))
    drawn = np.take_along_axis(values[:, :, 1:].transpose(0, 2, 1), draws[None], 2)
    return values[:, :, 0].mean(1), drawn.mean((0, 2))


def classified(setting: Setting, row: Row, fractions: Mapping[str, Sequence]) -> dict:
    """AUROC and F1 of linear probes on a row's test patients.

    Args:
      fractions: arm -> the shares of the labels that it is probed at.

    Returns:
      "cells": arm -> fraction -> measure -> cell; "gains": fraction -> PaCX - MAE;
      "sizes"; "refused": what an arm cannot be asked, in words; "told": what else is to
      be known of the row.
    """
    splits = {s: open_split(setting.data, row, s) for s in ("train", "test")}
    path = str(pathlib.Path(setting.data) / row.folder)
    data = {"source": "prepared", "path": path, "namespace": row.namespace}
    refused, told = check_patients(setting, data, row.name, fractions)
    told += _in_both(*(each.patients() for each in splits.values()))
    fractions = {arm: list(f) for arm, f in fractions.items() if arm not in refused}
    depends = [splits[s].fingerprint for s in splits]
    depends += [row.labels, fractions]
    found = setting.remembered(
        f"labels_{row.folder}_{row.name}",
        depends,
        lambda: _classified(setting, row, fractions, splits),
    )
    return found | {"refused": refused, "told": [*told, *found["told"]]}


def _classified(setting, row, fractions, splits) -> dict:
    names = row.labels or splits["train"].label_names
    columns = [splits["train"].label_names.index(name) for name in names]
    known = {
        s: subsets.known_labels(each.labels()[:, columns], "ignore")
        for s, each in splits.items()
    }
    who = {
        s: patients.units(each.patients() or [""] * len(each))[0]
        for s, each in splits.items()
    }
    (y, mask), (y_test, mask_test) = known["train"], known["test"]
    told = _one_class(names, known["test"], "test") + _one_class(
        names, known["train"], "train"
    )
    arms = {
        (arm, k): {
            s: features.of_source(encoder, each, setting.out / "features")
            for s, each in splits.items()
        }
        for arm in fractions
        for k, encoder in enumerate(setting.encoders.get(arm, ()))
    }
    weights = statistics.bootstrap_weights(who["test"], setting.resamples)
    cells, by_fraction = {}, {}
    for fraction in dict.fromkeys(f for each in fractions.values() for f in each):
        asked = {key: z for key, z in arms.items() if fraction in fractions[key[0]]}
        about = ((fraction,), range(setting.subsets), np.array(who["train"]))
        probed = probe.run_probes(asked, y, mask, *about)
        for arm in dict.fromkeys(arm for arm, _ in asked):
            p = [probed[key, fraction] for key in asked if key[0] == arm]
            logits = [
                np.log(np.maximum(x, 1e-300) / np.maximum(1 - x, 1e-16)) for x in p
            ]
            examples = [
                [
                    measures.of_labels(names, x, y_test, mask_test, row.kind)
                    for x in each
                ]
                for each in logits
            ]
            for name in row.metrics:
                value = distribution(examples, weights, name)
                by_fraction[arm, fraction, name] = value
                cell = shown(value, "patients", len(set(who["test"])))
                cells.setdefault(arm, {}).setdefault(str(fraction), {})[name] = cell
    gains = {}
    for fraction in fractions.get("pacx", ()):
        pair = [by_fraction.get((a, fraction, "auroc")) for a in ("pacx", "mae")]
        if None not in pair:
            (a, drawn_a), (b, drawn_b) = pair
            each = (a - b, drawn_a - drawn_b)  # training k against training k
            gains[str(fraction)] = shown(each, "patients", len(set(who["test"])))
    sizes = {s: len(each) for s, each in splits.items()}
    return {"cells": cells, "gains": gains, "sizes": sizes, "told": told}


def _one_class(names, known, split: str) -> list[str]:
    """Labels that a split has one class of, in words."""
    both = scores.both_classes(*known)
    means = {
        "test": "it is left out of the means",
        "train": "its probe says the same of every X-ray",
    }
    return [
        f"{name} has one class alone among {split} images: {means[split]}"
        for name, there in zip(names, both, strict=True)
        if not there
    ]


def _in_both(train: Sequence[str] | None, test: Sequence[str] | None) -> list[str]:
    """Patients that the splits share, as some sets' published splits do, in words."""
    test = {*(test or ())} - {""}
    both = test & {*(train or ())}
    if not both:
        return []
    return [
        f"{len(both)} of {len(test)} test patients are in train too, as {min(both)}: "
        "the probes know them, and their numbers are too high"
    ]


def check_patients(
    setting: Setting, data: Mapping, name: str, arms: Iterable[str]
) -> tuple[dict[str, str], list[str]]:
    """Which arms have learnt from a set's test patients.

    It is asked each time: a folder may say more than another of the same encoder.

    Args:
      data: the set's fields of `config.data`.
      name: the set's, for people.

    Returns:
      (arm -> why it is refused, of which others it is unknown and why).
    """
    refused, told = {}, []
    for arm in arms:
        for k, folder in enumerate(setting.folders.get(arm, ())):
            data = {**data, "allow_overlap": False}
            config = ml_collections.ConfigDict({"name": f"{arm}, {name}", "data": data})
            own = str(setting.out / "overlap" / f"{name}_{arm}_{k}".replace("/", "_"))
            try:
                chain = overlap.behind(folder)
                unsure = overlap.check(config, own, ["test"], chain, allow="")
            except PacxError as e:
                refused[arm] = str(e)
                break
            told += [f"{arm}: {unsure}"] if unsure else []
    return refused, list(dict.fromkeys(told))


def masked(setting: Setting, row: Row, workdirs: Mapping[str, Sequence]) -> dict:
    """IoU and Dice, pooled over the test images, of each arm's decoders."""
    source = open_split(setting.data, row, "test")
    trained = {
        arm: [(str(f), files.read_json(pathlib.Path(f) / "done.json")) for f in each]
        for arm, each in workdirs.items()
    }
    depends = [source.fingerprint, trained]
    return setting.remembered(
        f"masks_{row.folder}", depends, lambda: _masked(setting, row, workdirs)
    )


def _masked(setting, row, workdirs) -> dict:
    cells: dict = {}
    for arm, folders in workdirs.items():
        examples = []
        for workdir in folders:
            asked = held_out.Asked(predictions=True)
            if not (pathlib.Path(workdir) / "predictions_test.csv").exists():
                config = finished.read_config(str(workdir))
                held_out.evaluate(config, str(workdir), "test", asked)
            with open(pathlib.Path(workdir) / "predictions_test.csv") as file:
                rows = list(csv.DictReader(file))
            arrays = {
                k: np.array([[float(r[k])] for r in rows])
                for k in ("hits", "called", "truth")
            }
            examples.append([measures.Examples("masks", ("mask",), arrays)])
        who = patients.units([r["patient_id"] for r in rows])[0]
        weights = np.float64(statistics.bootstrap_weights(who, setting.resamples))
        cells[arm] = {
            "1.0": {
                name: shown(
                    distribution(examples, weights, name), "patients", len(set(who))
                )
                for name in row.metrics
            }
        }
    found = {"cells": cells, "gains": {}, "sizes": {"test": len(rows)}}
    return found | {"refused": {}, "told": []}
