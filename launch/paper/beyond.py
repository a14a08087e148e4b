"""What else is measured of the encoders: alignment, attention, which set it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from launch.paper import measure
from launch.paper.measure import Setting, open_split, shown
from launch.paper.rows import ENCODERS, Row
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import (
    alignment,
    attention_shares,
    features,
    source_probe,
    statistics,
)
from pacx_jax.input import images, masks, patients, sources, subsets
from pacx_jax.run import finished


def aligned(setting: Setting, workdir: str) -> dict:
    """Table 2: how well ECG and laboratory embeddings are predicted and found.

    Args:
      workdir: of a distillation, whose config names data and teachers.
    """
    config = finished.read_config(workdir)
    splits = {s: sources.open_source(config.data, s) for s in ("train", "test")}
    data = config.data.to_dict()
    refused, told = measure.check_patients(setting, data, "table 2", ENCODERS)
    arms = [a for a in ENCODERS if a in setting.encoders and a not in refused]
    targets = {  # kept under what the teachers are
        m: {
            s: features.of_teacher(config, m, source, setting.out / "features")
            for s, source in splits.items()
        }
        for m in ("ecg", "labs")
    }
    tables = [y.tobytes() for each in targets.values() for y in each.values()]
    found = setting.remembered(
        "alignment",
        [arms, subsets.digest(*tables), *(s.fingerprint for s in splits.values())],
        lambda: _aligned(setting, splits, targets, arms),
    )
    return found | {"refused": refused, "told": told}


def _aligned(setting, splits, targets, arms) -> dict:
    who = patients.units(splits["test"].patients() or [""] * len(splits["test"]))[0]
    weights = np.float64(statistics.bootstrap_weights(who, setting.resamples))
    weights = np.concatenate([np.ones((1, len(who))), weights])
    found: dict = {"n": len(who)}
    for m, y in targets.items():
        there = {s: np.isfinite(each).all(1) for s, each in y.items()}
        for s, each in there.items():
            if not each.any():
                raise PacxError(f"no {s} example has {m}")
        found[m] = {}
        for arm in arms:
            values: dict = {}
            for encoder in setting.encoders[arm]:
                z = {
                    s: features.of_source(encoder, each, setting.out / "features")
                    for s, each in splits.items()
                }
                z, t = (
                    {s: each[there[s]] for s, each in given.items()} for given in (z, y)
                )
                predicted = alignment.predict(z["train"], t["train"], z["test"])
                of_test = weights[:, there["test"]]
                each = alignment.resampled(predicted, t["test"], of_test)
                for name, value in each.items():
                    values.setdefault(name, []).append(value)
            n = int(there["test"].sum())
            for name, each in values.items():
                each = np.array(each)
                cell = shown((each[:, 0], each[:, 1:].mean(0)), "n", n)
                if name.startswith("recall@"):
                    cell |= {"hits": cell["value"] * n}
                    cell |= {"chance": min(int(name[7:]) / n, 1.0)}
                found[m].setdefault(arm, {})[name] = cell
            if values:  # of the last arm's last training
                floors = alignment.floors(z["train"], t["train"], z["test"])
                for floor, predicted in floors.items():
                    each = alignment.resampled(predicted, t["test"], of_test)
                    found[m][floor] = {k: statistics.row(v) for k, v in each.items()}
    return found


def inside_masks(setting: Setting, row: Row, limit: int = 200) -> dict:
    """The share of attention inside a row's masks, and the films of figures 4 and 5."""
    source = open_split(setting.data, row, "test")
    return setting.remembered(
        f"attention_{row.folder}",
        [source.fingerprint, limit],
        lambda: _inside(setting, source, limit),
    )


def _inside(setting, source, limit) -> dict:
    examples = [source[i] for i in range(min(limit, len(source)))]
    drawn = [masks.decode(x["mask"], source.name(i)) for i, x in enumerate(examples)]
    maps = {}
    for arm in ("mae", "pacx"):
        each = setting.encoders.get(arm, ())
        for k, encoder in enumerate(each):
            films = (
                encoder.preprocess(images.decode(example["image"]))
                for example in examples
            )
            maps[f"{arm} {k}"] = attention_shares.maps_of(encoder, films)
    rows = attention_shares.shares(maps, {"mask": drawn})
    columns = {"mask_area": np.array([row["mask_area"] for row in rows])}
    for arm in ("mae", "pacx"):
        mine = [name for name in maps if name.startswith(f"{arm} ")]
        columns[arm] = np.array([[r[f"mask_{name}"] for r in rows] for name in mine])
    columns["pacx - mae"] = columns["pacx"] - columns["mae"]  # training k from k
    named = source.patients() or [""] * len(source)
    units = patients.units(named[: len(examples)])[0]
    found = attention_shares.summary(columns, units)
    trainings = max(len(columns["mae"]), len(columns["pacx"]))
    return {"shares": found, "trainings": trainings}


def told_apart(setting: Setting, rows: Sequence[Row], limit: int = 2000) -> dict:
    """Accuracy of a probe that guesses the data set from the embedding, by arm."""
    splits = {
        row.folder: {s: open_split(setting.data, row, s) for s in ("train", "test")}
        for row in rows
    }
    chosen = {  # in their order
        (name, s): np.sort(np.random.default_rng(0).permutation(len(each))[:limit])
        for name, of_set in splits.items()
        for s, each in of_set.items()
    }
    named = {}
    for name, of_set in splits.items():
        people = of_set["test"].patients() or [""] * len(of_set["test"])
        named[name] = [people[i] for i in chosen[name, "test"]]
    found = {}
    for arm in ENCODERS:
        trainings = [
            {
                s: {
                    name: features.of_source(
                        encoder, of_set[s], setting.out / "features"
                    )[chosen[name, s]]
                    for name, of_set in splits.items()
                }
                for s in ("train", "test")
            }
            for encoder in setting.encoders.get(arm, ())
        ]
        if trainings:
            found[arm] = source_probe.measured(trainings, named, setting.resamples)
    pixels = {
        s: {
            name: source_probe.pixels_of(of_set[s], chosen[name, s])
            for name, of_set in splits.items()
        }
        for s in ("train", "test")
    }
    found["pixels"] = source_probe.measured([pixels], named, setting.resamples)
    return found
