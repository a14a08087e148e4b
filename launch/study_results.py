"""The tables of a study: probes of every arm and training, floors, within each view.

Features of an encoder and a set are computed once, in TARGET/features. Everything that
is written is the same, to the byte, when it is written again on the same machine.
"""

from __future__ import annotations

import csv
import dataclasses
import json
import pathlib
from collections.abc import Sequence

import ml_collections
import numpy as np

from launch import spreads, studies
from launch.studies import Study
from pacx_jax import files, load_encoder
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import comparison, features, probe, source_probe, statistics
from pacx_jax.evaluate.reports import tables, words
from pacx_jax.input import sources as sources_
from pacx_jax.input import subsets
from pacx_jax.input import tables as csv_tables
from pacx_jax.objectives import scores
from pacx_jax.run import fingerprints, overlap

NAMES = {
    "random": tables.Arm("Random ViT", "floor", "The same architecture, untrained."),
    "pixels": tables.Arm("Pixels 24x24", "floor", "Logistic regression on raw pixels."),
    "view": tables.Arm("View alone", "floor", "Which view was taken: PA, AP, ..."),
    "person": tables.Arm(
        "Age, sex, view", "floor", "What a table says of the patient."
    ),
    "permuted": tables.Arm(
        "Labels permuted", "floor", "The treatment, fitted to others' labels: chance."
    ),
}


def write(study: Study, target: pathlib.Path, seeds: Sequence[int], split: str) -> str:
    """Writes comparison.json, .txt and values.csv into the target; returns the text.

    Raises:
      PacxError: no seed whose runs are all finished; patients of the probe's test in
        an encoder's training.
    """
    probed = {name: arm for name, arm in study.arms.items() if arm.probed}
    lacking = {
        seed: [name for name in probed if not _there(study, str(target), name, seed)]
        for seed in seeds
    }
    whole = [seed for seed in seeds if not lacking[seed]]
    if not whole:
        raise PacxError(
            f"{target}: no seed has all arms finished; seed {seeds[0]} lacks "
            f"{', '.join(lacking[seeds[0]])}. Run the study without --compare"
        )
    notes = [
        f"Seed {seed} is left out: {', '.join(names)} not finished."
        for seed, names in lacking.items()
        if names
    ]
    sources = {s: _source(study.probe.path, s) for s in ("train", split)}
    folders = {  # of an arm that all seeds share, one
        (name, k): study.folder(str(target), name, seed)
        for name in probed
        for k, seed in enumerate(whole[:1] if study.single(name) else whole)
    }
    for (name, k), folder in folders.items():
        own = str(target / "overlap" / f"{name}-seed_{whole[k]}")
        if told := _check_patients(study, own, name, split, folder):
            notes.append(f"{name}: {told}.")
    notes += [
        f"{name} is one encoder: no interval covers another training of it."
        for name in probed
        if study.single(name)
    ]
    sets = {s: features.read_probe_set(source) for s, source in sources.items()}
    train, test = sets["train"], sets[split]
    if set(train.patients) & set(test.patients):
        raise PacxError(f"{study.probe.path}: patients stand in train and in {split}")
    names = sources["train"].label_names
    wanted = [
        k for k in names if any(k in each for each in study.probe.groups.values())
    ]
    columns = [names.index(k) for k in wanted]
    for s, each in sets.items():
        what = f"{s} images with a known label"
        probe.check_classes(
            each.labels[:, columns], each.mask[:, columns], wanted, what
        )
    found, prints = {}, {}
    for (name, k), folder in folders.items():
        encoder = _open(study, name, folder)
        seed = "" if study.single(name) else f", seed {whole[k]}"
        prints[f"{name}{seed}"] = features.fingerprint(encoder)
        found[name, k] = _embed(target, encoder, sources, sets, split)
    for name in probed:
        mine = {k: x for k, x in prints.items() if k.partition(", seed ")[0] == name}
        studies.check_trainings(mine)
    for k, seed in enumerate(whole):
        if "random" in study.floors:
            like = folders.get((study.treatment, k), folders[study.treatment, 0])
            encoder = features.random_like(_open(study, study.treatment, like), seed)
            found["random", k] = _embed(target, encoder, sources, sets, split)
    found |= _floors(study, sets, sources, split)
    scores = _scores(study, found, train, len(whole))
    result = compare(study, scores, train, test, names)
    notes += _left_out(study, test, wanted, columns)
    name = study.name or "this study"
    notes += spreads.notes(result["all"].summary, name, spreads.read())
    apart = _told_apart(study, target, folders, split)
    everything = {
        "study": {"split": split, "seeds": whole, "notes": notes},
        "data": {s: source.fingerprint for s, source in sources.items()},
        "encoders": prints,
        "tables": {k: dataclasses.asdict(each) for k, each in result.items()},
    }
    everything |= {"sources": apart} if apart else {}
    files.write(target / "comparison.json", json.dumps(everything, indent=1) + "\n")
    _write_values(target / "values.csv", study, scores, test, names, whole, prints)
    parts = [_text(study, k, c, split) for k, c in result.items()]
    parts += [_text_of_sources(study, apart)] if apart else []
    text = "\n\n".join([*notes, *parts])
    files.write(target / "comparison.txt", text + "\n")
    return text


def _scores(study, found, train, trainings) -> dict:
    """(arm, fraction) -> (trainings, label subsets, test images, labels).

    Args:
      found: (arm, training) -> {"train": (n, d), "test": (m, d)}.
    """
    asked = study.probe
    about = (asked.fractions, range(asked.subsets), train.patients)
    scores = probe.run_probes(found, train.labels, train.mask, *about)
    if "permuted" in study.floors:
        for k in range(trainings):
            order = np.random.default_rng(k).permutation(len(train.labels))
            treated = found.get((study.treatment, k), found[study.treatment, 0])
            own = {("permuted", k): treated}
            labels = train.labels[order], train.mask[order]
            scores |= probe.run_probes(own, *labels, *about)
    return comparison.by_training(scores)


def compare(study, scores, train, test, names) -> dict:
    """The comparison over all test patients, and within each view that is asked for.

    Returns:
      "all" or the view's name -> comparison.Comparison.
    """
    asked = study.probe
    fraction_sizes = {
        f: subsets.subset_size(len(train.labels), len(names), f)
        for f in asked.fractions
    }
    kept = {"all": np.ones(len(test.labels), bool)}
    for view in asked.within:
        kept[f"within {view}"] = np.array([v == view for v in test.views])
        if not kept[f"within {view}"].any():
            raise PacxError(
                f"{asked.path}: no test image of the view {view!r}; there are "
                f"{', '.join(sorted(set(test.views)))}"
            )
    return {
        name: comparison.compare_arms(
            {key: each[:, :, rows] for key, each in scores.items()},
            test.labels[rows],
            test.mask[rows],
            test.patients[rows],
            names,
            asked.groups,
            study.pairs,
            fraction_sizes,
            study.baseline,
            study.treatment,
        )
        for name, rows in kept.items()
    }


def _write_values(path, study, scores, test, names, seeds, prints) -> None:
    """A row an arm, training, share of the labels, label subset and label."""
    truth = np.where(test.mask > 0, test.labels, np.nan)
    with files.whole(path) as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow("arm seed fraction subset labels auroc encoder".split())
        for (arm, fraction), each in scores.items():
            for k, s, c in np.ndindex(each.shape[0], each.shape[1], each.shape[3]):
                several = len(each) > 1 or arm in study.arms and not study.single(arm)
                seed = seeds[k] if several else ""
                encoder = prints.get(f"{arm}, seed {seed}" if several else arm, "")
                auroc = statistics.auroc(each[k, s, :, c], truth[:, c])
                shown = "" if np.isnan(auroc) else repr(float(auroc))
                about = arm, seed, fraction, s, names[c], shown, encoder
                table.writerow(about)


def _source(path: str, split: str):
    return sources_.open_source(
        ml_collections.ConfigDict({"source": "prepared", "path": path}), split
    )


def _open(study: Study, name: str, folder: str):
    return load_encoder(folder, pooling=study.arms[name].pooling or None)


def _there(study: Study, target: str, arm: str, seed: int) -> bool:
    """Whether an arm's run of a seed is finished, or those that a given one is of."""
    about = study.arms[arm]
    if about.given:
        return all(_there(study, target, each, seed) for each in about.after())
    folder = pathlib.Path(study.folder(target, arm, seed))
    return (folder / fingerprints.DONE).exists()


def _left_out(study: Study, test, wanted, columns) -> list[str]:
    """Labels of one class within a view, which its macro means are without."""
    told = []
    for view in study.probe.within:
        rows = np.array([v == view for v in test.views])
        both = scores.both_classes(test.labels[rows], test.mask[rows])[columns]
        told += [
            f"Within {view} {name} has one class alone and is left out."
            for name, there in zip(wanted, both, strict=True)
            if not there
        ]
    return told


def _check_patients(study, own, name, split, folder) -> str:
    """Refuses an encoder that has learnt from the probe's test patients."""
    data = {"source": "prepared", "path": study.probe.path, "allow_overlap": False}
    data["namespace"] = study.probe.namespace
    config = ml_collections.ConfigDict({"name": name, "data": data})
    return overlap.check(config, own, [split], overlap.behind(folder), allow="")


def _embed(target, encoder, sources, sets, split) -> dict[str, np.ndarray]:
    """The features of the training split and of the one that is probed."""
    return {
        part: features.embedded(encoder, sources[s], sets[s], target / "features")
        for part, s in (("train", "train"), ("test", split))
    }


def _told_apart(study, target, folders, split) -> dict[str, dict]:
    """Arm -> how well it tells the probe's set from those beside it."""
    paths = (study.probe.path, *study.probe.beside)
    if len(paths) < 2:
        return {}
    opened = {
        path: {s: _source(path, s) for s in ("train", split)}
        for path in dict.fromkeys(paths)
    }
    named = {k: s[split].patients() or [""] * len(s[split]) for k, s in opened.items()}
    trainings: dict[str, list[dict]] = {}
    for (name, _), folder in folders.items():
        encoder = _open(study, name, folder)
        z = {
            s: {
                path: features.of_source(encoder, source[s], target / "features")
                for path, source in opened.items()
            }
            for s in ("train", split)
        }
        z = {"train": z["train"], "test": z[split]}
        trainings.setdefault(name, []).append(z)
    trainings["pixels"] = [
        {
            part: {k: source_probe.pixels_of(source[s]) for k, source in opened.items()}
            for part, s in (("train", "train"), ("test", split))
        }
    ]
    return {k: source_probe.measured(each, named) for k, each in trainings.items()}


def _text_of_sources(study: Study, apart: dict[str, dict]) -> str:
    lines = ["Balanced accuracy of telling the sets apart (chance: even shares)"]
    for name, row in apart.items():
        one = row["balanced_accuracy"]
        span = f"{one['value']:.3f} ({one['low']:.3f} to {one['high']:.3f})"
        many = f"{row['trainings']} training{'s' * (row['trainings'] > 1)}"
        shown = NAMES[name].name if name in NAMES else study.arms[name].name or name
        lines.append(f"{shown}: {span}, {many}")
    return "\n".join(lines)


def _floors(study, sets, sources, split) -> dict[tuple[str, int], dict]:
    train, test = sets["train"], sets[split]
    seen = sorted({*train.views, *test.views})
    view = {
        part: np.eye(len(seen))[[seen.index(v) for v in each.views]]
        for part, each in (("train", train), ("test", test))
    }
    made = {"pixels": {"train": features.pixels(train), "test": features.pixels(test)}}
    made["view"] = view
    if "person" in study.floors:
        who = _people(study.probe.table)
        made["person"] = {
            part: np.concatenate(
                [_rows(who, sources[s], study.probe.table), view[part]], 1
            )
            for part, s in (("train", "train"), ("test", split))
        }
    return {(name, 0): x for name, x in made.items() if name in study.floors}


def _people(table: str) -> dict[str, tuple[float, float]]:
    """Image path -> age in decades and 1 where female, of a CSV."""
    read = csv_tables.read_table(table)
    known = {csv_tables.plain(name): name for name in read.columns}
    wanted = {"path": csv_tables.columns(read, {})["path"]}
    wanted |= {name: known.get(name, "") for name in ("age", "sex")}
    if lacks := [name for name, column in wanted.items() if not column]:
        raise PacxError(f"{table}: no column {lacks[0]}; give path, age and sex")
    found = {}
    cells = (read.column(column, "Probe.table") for column in wanted.values())
    for path, age, sex in zip(*cells, strict=True):
        try:
            decades = float(age) / 10
            female = {"f": 1.0, "m": 0.0}[sex.strip()[:1].lower()]
        except (KeyError, ValueError):
            decades = np.nan
        if not np.isfinite(decades):
            raise PacxError(
                f"{table}: {path} has age {age!r} and sex {sex!r}: give years, and F "
                "or M, or leave out the floor 'person'"
            )
        found[path] = decades, female
    return found


def _rows(who, source, table) -> np.ndarray:
    paths = [source[i]["path"] for i in range(len(source))]
    if missing := [path for path in paths if path not in who]:
        raise PacxError(
            f"{table} lacks {len(missing)} of {len(paths)} images of {source.split}, "
            f"such as {missing[0]}"
        )
    return np.array([who[path] for path in paths], float)


def _text(study: Study, name: str, result: comparison.Comparison, split: str) -> str:
    shown = {
        arm: tables.Arm(about.name or arm, about.role, about.about)
        for arm, about in study.arms.items()
    } | NAMES
    says = dataclasses.replace(
        words.PACX,
        treatment=shown[study.treatment].name,
        baseline=shown[study.baseline].name,
    )
    whole = f"All {split} patients"
    heading = whole if name == "all" else name[0].upper() + name[1:]
    pairs = [
        r for r in result.pairs if (r["a"], r["b"]) != (study.treatment, study.baseline)
    ]
    body = tables.render_table_text(result.table, result.summary, shown, says, pairs)
    return f"{heading}\n\n{body}"
