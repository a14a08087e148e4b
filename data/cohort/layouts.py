"""The four folders of the cohort, laid out as the public data sets are.

`chexpert/`, `symile_mimic/`, `ecg/` and `probe/`. A function `draw_*` runs in a worker
and writes images and array rows; a function `write_*` runs in the parent, plans the
rows and writes tables. README describes every file.
"""

import dataclasses
import pathlib

import cv2
import numpy as np

from data.cohort import ecg, labs, latents, reports, write, xray

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
_STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
CANDIDATES = 10  # Symile: one true and nine false candidates a query
_RECORD = ecg.LENGTH * 12


@dataclasses.dataclass(frozen=True)
class Context:
    """What a worker must know: where to write, which split, and which options."""

    folder: pathlib.Path
    seed: int
    stream: str
    split: str
    image_size: int = 0
    masks_below: int = 0  # rows below this number get a lung mask


def _studies(context: Context, group):
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
    for _, study in _studies(context, group):
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
            done[split] = _summary(n, planned, count)
    return done


def _summary(n, planned, count) -> dict:
    return {"studies": n, "patients": len(planned), "prevalence": count.shares()}


# --- symile_mimic -----------------------------------------------------------------


def symile_image(film: np.ndarray, size: int, rng=None) -> np.ndarray:
    """Symile's image: shorter side to `size`, crop, ImageNet normalisation.

    Args:
        film: (h, w) uint8.
        size: side of the square in pixels.
        rng: for a random crop (training); None crops the centre.

    Returns:
        (3, size, size) float32.
    """
    h, w = film.shape
    scale = size / min(h, w)
    shape = (max(size, round(w * scale)), max(size, round(h * scale)))
    mode = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    film = cv2.resize(film, shape, interpolation=mode)
    spare = np.array(film.shape) - size
    top, left = spare // 2 if rng is None else rng.integers(0, spare + 1)
    grey = film[top : top + size, left : left + size] * np.float32(1 / 255)
    return (grey - _MEAN) / _STD


def _admission(study) -> int:
    return study.key.patient_id * 10 + study.key.study


def draw_symile(task) -> list:
    """Writes X-ray and ECG rows of a task; returns what the tables need."""
    context, group = task
    folder, split = context.folder / "data_npy" / context.split, context.split
    films = np.lib.format.open_memmap(folder / f"cxr_{split}.npy", mode="r+")
    waves = np.lib.format.open_memmap(folder / f"ecg_{split}.npy", mode="r+")
    out = []
    for row, study in _studies(context, group):
        film = xray.render(study)
        crop = study.key.rng("reports") if split == "train" else None
        films[row] = symile_image(film, context.image_size, crop)
        signal = ecg.to_mimic(ecg.record(study)[0])
        waves[row, 0] = ecg.min_max(signal)
        found = reports.findings(study)
        hadm, person = _admission(study), study.key.patient_id
        row_head = [
            person,
            hadm,
            f"files/p{person}/s{hadm}/{hadm}.jpg",
            *(found[name] for name in reports.SYMILE_FINDINGS),
            f"files/p{person}/s{hadm}/{hadm}",
        ]
        out.append((row_head, labs.values(study), study.labels))
    return out


def _symile_columns(retrieval: bool) -> list[str]:
    items = [str(item) for item in labs.ITEM_IDS]
    head = ["subject_id", "hadm_id", "cxr_path", *reports.SYMILE_FINDINGS, "ecg_path"]
    tail = ["label_hadm_id", "label"] if retrieval else []
    return head + items + [f"{item}_percentile" for item in items] + tail


def _symile_row(head, values, percentiles, seen) -> list:
    shown = ["" if not s else f"{x:g}" for x, s in zip(values, seen, strict=True)]
    rank = ["" if not s else f"{x:.6g}" for x, s in zip(percentiles, seen, strict=True)]
    return head + shown + rank


def candidates(seed: int, split: str, queries: int) -> np.ndarray:
    """Sources of a retrieval split's rows: (queries * CANDIDATES, 2) of (row, query).

    The first `queries` rows are the queries themselves; then come nine other admissions
    for every query. A negative row is the whole other admission, X-ray included; only
    its label_hadm_id points to the query.
    """
    number = 100 + ["val_retrieval", "test"].index(split)
    rng = np.random.Generator(
        np.random.SFC64(np.random.SeedSequence([seed, number, queries]))
    )
    rows = [(q, q) for q in range(queries)]
    for q in range(queries):
        others = rng.choice(queries - 1, CANDIDATES - 1, replace=False)
        rows += [(int(o + (o >= q)), q) for o in others]
    return np.array(rows)


def write_symile(root, parameters, run) -> dict:
    """Writes Symile-MIMIC's layout; returns what was realised."""
    train, val, test = (parameters[k] for k in ("train", "val", "test"))
    side = parameters["image_size"]
    # Split: (stream, distinct admissions, rows). Retrieval in validation asks about
    # admissions of the validation split, as its patients are the same.
    splits = {
        "train": ("symile_train", train, train),
        "val": ("symile_val", val, val),
        "val_retrieval": ("symile_val", min(val, test), min(val, test) * CANDIDATES),
        "test": ("symile_test", test, test * CANDIDATES),
    }
    row_bytes = 4 * (3 * side * side + _RECORD) + 2_000
    size = row_bytes * sum(rows for _, _, rows in splits.values())
    with write.partial(root, parameters, size) as (work, done):
        percentiles = fit_percentiles(parameters["seed"], train)
        means = zip(labs.ITEM_IDS, percentiles.means, strict=True)
        write.write_json(
            work / "labs_means.json", {f"{item}_percentile": m for item, m in means}
        )
        for split, (stream, n, rows) in splits.items():
            context = Context(work, parameters["seed"], stream, split, side)
            done[split] = _write_symile_split(context, n, rows, percentiles, run)
    return done


def _write_symile_split(context, n, rows, percentiles, run) -> dict:
    split = context.split
    folder = context.folder / "data_npy" / split
    folder.mkdir(parents=True)
    side = context.image_size
    write.create_array(folder / f"cxr_{split}.npy", (rows, 3, side, side), np.float32)
    write.create_array(folder / f"ecg_{split}.npy", (rows, 1, 5000, 12), np.float32)
    ranks = np.empty((rows, 50), np.float32)
    seen = np.empty((rows, 50), np.int64)
    hadm = np.empty(rows, np.int64)
    # Retrieval patients have one admission, so a false candidate is another person.
    most = latents.MAX_STUDIES if split == "train" else 1
    planned = latents.plan(context.seed, context.stream, n, most)
    count, kept = write.Prevalence(), []
    items = write.tasks(context, planned)
    drawn = write.records(run, draw_symile, items, n, f"symile {split}")
    retrieval = split in ("val_retrieval", "test")
    columns = _symile_columns(retrieval)
    with write.table(context.folder / f"{split}.csv", columns) as table:
        for i, (head, values, labels) in enumerate(drawn):
            ranks[i], seen[i] = percentiles(values)
            hadm[i] = head[1]
            count.add(labels)
            row = _symile_row(head, values, ranks[i], seen[i])
            if retrieval:
                kept.append(row)
                row = [*row, head[1], 1]
            table.writerow(row)
        if retrieval:
            sources = candidates(context.seed, split, n)
            _repeat(folder, split, sources, (ranks, seen, hadm))
            for source, query in sources[n:]:
                table.writerow([*kept[source], hadm[query], 0])
            np.save(folder / f"label_hadm_id_{split}.npy", hadm[sources[:, 1]])
            truth = (np.arange(rows) < n).astype(np.int64)
            np.save(folder / f"label_{split}.npy", truth)
    np.save(folder / f"labs_percentiles_{split}.npy", ranks)
    np.save(folder / f"labs_missingness_{split}.npy", seen)
    np.save(folder / f"hadm_id_{split}.npy", hadm)
    return _summary(n, planned, count) | {
        "rows": rows,
        "missing_share": round(1 - float(seen.mean()), 4),
    }


def _repeat(folder, split, sources, small) -> None:
    """Fills the false candidates' rows with copies of their admissions' rows."""
    for name in ("cxr", "ecg"):
        array = np.lib.format.open_memmap(folder / f"{name}_{split}.npy", mode="r+")
        for row, (source, query) in enumerate(sources):
            if source != query:
                array[row] = array[source]
    for array in small:
        array[:] = array[sources[:, 0]]


# --- ecg --------------------------------------------------------------------------


def draw_ecg(task) -> list:
    """Writes the ECG rows of a task; returns (patient, diagnoses) a study."""
    context, group = task
    waves = np.lib.format.open_memmap(context.folder / "ecg.npy", mode="r+")
    out = []
    for row, study in _studies(context, group):
        signal, found = ecg.record(study)
        waves[row] = ecg.to_microvolts(signal)
        out.append((study.key.patient_id, found))
    return out


def write_ecg(root, parameters, run) -> dict:
    """Writes the ECG encoder's own training set; returns what was realised."""
    sizes = {"train": parameters["train"], "val": parameters["val"]}
    total = sum(sizes.values())
    with write.partial(root, parameters, 2 * _RECORD * total) as (work, done):
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
                done[split] = _summary(n, planned, count)
                first += n
    return done


# --- probe ------------------------------------------------------------------------


def draw_probe(task) -> list:
    """Writes images, masks and ECG rows of a task; returns table row and lab values."""
    context, group = task
    waves = np.lib.format.open_memmap(context.folder / "ecg.npy", mode="r+")
    out = []
    for row, study in _studies(context, group):
        name = f"{study.key.patient_id}_{study.key.study + 1}"
        film, mask = xray.render(study, mask=True)
        path = context.folder / "images" / f"{name}.jpg"
        path.write_bytes(xray.encode(film))
        if row < context.masks_below:
            png = cv2.imencode(".png", mask)[1].tobytes()
            (context.folder / "masks" / f"{name}.png").write_bytes(png)
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
    with write.partial(root, parameters, (2 * _RECORD + 28_000) * total) as (
        work,
        done,
    ):
        percentiles = fit_percentiles(parameters["seed"], parameters["percentiles_on"])
        (work / "images").mkdir()
        (work / "masks").mkdir()
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
                done[split] = _summary(n, planned, count) | {"masks": min(masks, n)}
                first += n
        np.save(work / "labs_percentiles.npy", ranks)
        np.save(work / "labs_missingness.npy", seen)
    return done
