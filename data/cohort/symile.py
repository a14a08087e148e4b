"""Symile-MIMIC's folder: paired X-rays, ECGs and laboratory values.

Rows of `val_retrieval` and `test` are candidates, ten a query (README, "Files").
"""

import cv2
import numpy as np

from data.cohort import ecg, labs, latents, layouts, reports, vitals, write, xray

_MEAN = np.array([0.485, 0.456, 0.406], np.float32)[:, None, None]
_STD = np.array([0.229, 0.224, 0.225], np.float32)[:, None, None]
CANDIDATES = 10  # one true and nine false candidates a query


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
    for row, study in layouts.studies(context, group):
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
    row_bytes = 4 * (3 * side * side + layouts.RECORD) + 2_000
    size = row_bytes * sum(rows for _, _, rows in splits.values())
    with write.partial(root, parameters, size) as (work, done):
        percentiles = layouts.fit_percentiles(parameters["seed"], train)
        means = zip(labs.ITEM_IDS, percentiles.means, strict=True)
        write.write_json(
            work / "labs_means.json", {f"{item}_percentile": m for item, m in means}
        )
        for split, (stream, n, rows) in splits.items():
            context = layouts.Context(work, parameters["seed"], stream, split, side)
            done[split] = _write_symile_split(context, n, rows, percentiles, run)
        sizes = {"train": train, "val": val, "test": test}
        vitals.write_tables(work / "ed", _admissions(parameters["seed"], sizes))
        head = ("subject_id", "hadm_id", "age", "sex", "view")
        with write.table(work / "people.csv", head) as table:
            for hadm, study in _admissions(parameters["seed"], sizes):
                who = study.key.patient_id, hadm, study.patient.age
                sex, view = "FM"[study.patient.male], ("PA", "AP")[bool(study.ap)]
                table.writerow([*who, sex, view])
    return done


def _plan(seed: int, split: str, stream: str, n: int) -> list[tuple[int, int]]:
    # Retrieval patients have one admission, so a false candidate is another person.
    most = latents.MAX_STUDIES if split == "train" else 1
    return latents.plan(seed, stream, n, most)


def _admissions(seed: int, sizes: dict[str, int]):
    """Yields (admission, study) of all splits; val_retrieval's are val's."""
    for split, n in sizes.items():
        for patient, studies in _plan(seed, split, f"symile_{split}", n):
            for k in range(studies):
                study = latents.study(latents.Key(seed, f"symile_{split}", patient, k))
                yield _admission(study), study


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
    planned = _plan(context.seed, split, context.stream, n)
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
    return layouts.summary(n, planned, count) | {
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
