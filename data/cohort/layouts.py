"""Folders of the cohort, laid out as the public data sets are.

`chexpert/`, `ecg/`, `probe/` and `views_probe/` here, `symile_mimic/` in `symile.py`,
`mimic_cxr/` in `mimic.py`. A function
`draw_*` runs in a worker and writes images and array rows; a function `write_*` runs
in the parent, plans the rows and writes tables. README describes every file.
"""

import dataclasses
import pathlib

import cv2
import numpy as np

from data.cohort import depth, ecg, labs, latents, lateral, reports, write, xray

RECORD = ecg.LENGTH * 12


@dataclasses.dataclass(frozen=True)
class Context:
    """What a worker must know: where to write, which split, and which options."""

    folder: pathlib.Path
    seed: int
    stream: str
    split: str
    image_size: int = 0
    masks_below: int = 0  # rows below this number get a lung mask


def studies(context: Context, group):
    """Yields (row, study) of a task's patients."""
    for patient, n, row in group:
        for k in range(n):
            key = latents.Key(context.seed, context.stream, patient, k)
            yield row + k, latents.study(key)


def _sex(study, long: bool) -> str:
    male = study.patient.male
    return ("Male" if male else "Female") if long else ("M" if male else "F")


def fit_percentiles(seed: int, train: int) -> labs.Percentiles:
    """Fits the percentiles on the laboratory values of Symile's training split."""
    rows = [
        labs.values(latents.study(latents.Key(seed, "symile_train", patient, k)))
        for patient, n in latents.plan(seed, "symile_train", train)
        for k in range(n)
    ]
    return labs.Percentiles(np.array(rows))


# --- chexpert ---------------------------------------------------------------------


def draw_chexpert(task) -> list:
    """Writes the JPEGs of a task; returns one (row of the CSV, findings) a study."""
    context, group = task
    out = []
    for _, study in studies(context, group):
        visit = f"patient{study.key.patient_id:05d}/study{study.key.study + 1}"
        folder = context.folder / context.split / visit
        folder.mkdir(parents=True)
        (folder / "view1_frontal.jpg").write_bytes(xray.encode(xray.render(study)))
        found = reports.findings(study, complete=context.split == "valid")
        path = f"CheXpert-v1.0-small/{context.split}/{visit}/view1_frontal.jpg"
        who = [_sex(study, True), study.patient.age, "Frontal", _view(study)]
        out.append(([path, *who, *found.values()], found))
    return out


def _view(study) -> str:
    return "AP" if study.ap else "PA"


def write_chexpert(root, parameters, run) -> dict:
    """Writes CheXpert's layout; returns what was realised."""
    sizes = {"train": parameters["train"], "valid": parameters["valid"]}
    with write.partial(root, parameters, 22_000 * sum(sizes.values())) as (work, done):
        columns = ["Path", "Sex", "Age", "Frontal/Lateral", "AP/PA", *reports.FINDINGS]
        for split, n in sizes.items():
            context = Context(work, parameters["seed"], f"chexpert_{split}", split)
            planned = latents.plan(context.seed, context.stream, n)
            count = write.Prevalence()
            items = write.tasks(context, planned)
            with write.table(work / f"{split}.csv", columns) as table:
                for row, found in write.records(
                    run, draw_chexpert, items, n, f"chexpert {split}"
                ):
                    table.writerow(row)
                    count.add(found)
            done[split] = summary(n, planned, count)
    return done


def summary(n, planned, count) -> dict:
    return {"studies": n, "patients": len(planned), "prevalence": count.shares()}


# --- ecg --------------------------------------------------------------------------


def draw_ecg(task) -> list:
    """Writes the ECG rows of a task; returns (patient, diagnoses) a study."""
    context, group = task
    waves = np.lib.format.open_memmap(context.folder / "ecg.npy", mode="r+")
    out = []
    for row, study in studies(context, group):
        signal, found = ecg.record(study)
        waves[row] = ecg.to_microvolts(signal)
        out.append((study.key.patient_id, found))
    return out


def write_ecg(root, parameters, run) -> dict:
    """Writes the ECG encoder's own training set; returns what was realised."""
    sizes = {"train": parameters["train"], "val": parameters["val"]}
    total = sum(sizes.values())
    with write.partial(root, parameters, 2 * RECORD * total) as (work, done):
        write.create_array(work / "ecg.npy", (total, 5000, 12), np.int16)
        columns = ["record", "patient_id", "split", *ecg.DIAGNOSES]
        first = 0
        with write.table(work / "labels.csv", columns) as table:
            for split, n in sizes.items():
                context = Context(work, parameters["seed"], f"ecg_{split}", split)
                planned = latents.plan(context.seed, context.stream, n)
                count = write.Prevalence()
                items = write.tasks(context, planned, first)
                drawn = write.records(run, draw_ecg, items, n, f"ecg {split}")
                for row, (person, found) in enumerate(drawn, first):
                    table.writerow([row, person, split, *found.values()])
                    count.add(found)
                done[split] = summary(n, planned, count)
                first += n
    return done


# --- probe ------------------------------------------------------------------------


def draw_probe(task) -> list:
    """Writes images, masks and ECG rows of a task; returns table row and lab values."""
    context, group = task
    waves = np.lib.format.open_memmap(context.folder / "ecg.npy", mode="r+")
    out = []
    for row, study in studies(context, group):
        name = f"{study.key.patient_id}_{study.key.study + 1}"
        film, mask = xray.render(study, mask=True)
        path = context.folder / "images" / f"{name}.jpg"
        path.write_bytes(xray.encode(film))
        if row < context.masks_below:
            drawn = {"masks": mask, "hearts": xray.heart_mask(study)}
            for folder, each in drawn.items():
                png = cv2.imencode(".png", each)[1].tobytes()
                (context.folder / folder / f"{name}.png").write_bytes(png)
        waves[row] = ecg.to_microvolts(ecg.record(study)[0])
        head = [f"images/{name}.jpg", study.key.patient_id, context.split]
        who = [study.patient.age, _sex(study, False), _view(study)]
        line = [*head, *who, *study.labels.values()]
        out.append((line, labs.values(study), study.labels))
    return out


def write_probe(root, parameters, run) -> dict:
    """Writes the labelled evaluation set; returns what was realised."""
    sizes = {split: parameters[split] for split in ("train", "val", "test")}
    total = sum(sizes.values())
    asked = parameters["masks"]
    with write.partial(root, parameters, (2 * RECORD + 28_000) * total) as (
        work,
        done,
    ):
        percentiles = fit_percentiles(parameters["seed"], parameters["percentiles_on"])
        (work / "images").mkdir()
        (work / "masks").mkdir()
        (work / "hearts").mkdir()
        write.create_array(work / "ecg.npy", (total, 5000, 12), np.int16)
        ranks = np.empty((total, 50), np.float32)
        seen = np.empty((total, 50), np.int64)
        columns = ["path", "patient_id", "split", "age", "sex", "view", *latents.LABELS]
        first = 0
        with write.table(work / "labels.csv", columns) as table:
            for split, n in sizes.items():
                masks = n if asked < 0 else round(asked * n / total)
                context = Context(
                    work,
                    parameters["seed"],
                    f"probe_{split}",
                    split,
                    masks_below=first + masks,
                )
                planned = latents.plan(context.seed, context.stream, n)
                count = write.Prevalence()
                items = write.tasks(context, planned, first)
                drawn = write.records(run, draw_probe, items, n, f"probe {split}")
                for row, (line, values, labels) in enumerate(drawn, first):
                    ranks[row], seen[row] = percentiles(values)
                    table.writerow(line)
                    count.add(labels)
                done[split] = summary(n, planned, count) | {"masks": min(masks, n)}
                first += n
        np.save(work / "labs_percentiles.npy", ranks)
        np.save(work / "labs_missingness.npy", seen)
    return done


# --- views_probe ------------------------------------------------------------------


def draw_views(task) -> list:
    """Writes a frontal and a lateral a study; returns both table rows and labels."""
    context, group = task
    out = []
    for patient, n, _ in group:
        for k in range(n):
            key = latents.Key(context.seed, context.stream, patient, k)
            study = depth.study(key)
            name = f"{key.patient_id}_{k + 1}"
            drawn = {
                _view(study): xray.render(study, context.image_size),
                lateral.view(study): lateral.render(study, context.image_size),
            }
            lines = []
            for kind, (view, film) in zip(("f", "l"), drawn.items(), strict=True):
                path = f"images/{name}_{kind}.jpg"
                (context.folder / path).write_bytes(xray.encode(film))
                head = [path, key.patient_id, name, context.split, view]
                who = [study.patient.age, _sex(study, False)]
                lines.append([*head, *who, *study.labels.values()])
            out.append((lines, study.labels))
    return out


def write_views(root, parameters, run) -> dict:
    """Writes the labelled set of two views a study; returns what was realised."""
    sizes = {split: parameters[split] for split in ("train", "val", "test")}
    short = parameters["film_size"]
    need = int(44_000 * (short / 320) ** 2 + 8_000) * sum(sizes.values())
    columns = ["path", "patient_id", "study_id", "split", "view", "age", "sex"]
    columns += depth.LABELS
    with write.partial(root, parameters, need) as (work, done):
        (work / "images").mkdir()
        with write.table(work / "labels.csv", columns) as table:
            for split, n in sizes.items():
                context = Context(
                    work, parameters["seed"], f"views_{split}", split, image_size=short
                )
                planned = latents.plan(context.seed, context.stream, n)
                count = write.Prevalence()
                items = write.tasks(context, planned)
                drawn = write.records(run, draw_views, items, n, f"views {split}")
                for lines, labels in drawn:
                    table.writerows(lines)
                    count.add(labels)
                done[split] = summary(n, planned, count)
    return done
