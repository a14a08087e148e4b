"""`mimic_cxr/`: studies of one to three films with reports, as MIMIC-CXR-JPG 2.1.0.

Which films a study has, what its tables say of them and whether they are right is
drawn here; README, "Files", describes the folder.
"""

import datetime

import numpy as np

from data.cohort import (
    depth,
    latents,
    lateral,
    layouts,
    report_text,
    reports,
    write,
    xray,
)

SPLITS = ("train", "validate", "test")
NO_REPORT = 0.04  # share of studies
VIEW_MISSING, VIEW_WRONG = 0.04, 0.005  # shares of films
# Kinds of films of a study, F frontal and L lateral, and how often: AP films are
# taken at the bedside, and mostly alone.
_FILMS = {
    True: (("F", 0.62), ("FF", 0.09), ("FL", 0.26), ("L", 0.03)),
    False: (("F", 0.08), ("FF", 0.02), ("FFL", 0.05), ("FL", 0.82), ("L", 0.03)),
}
_STUDY_BASE = {"train": 50_000_000, "validate": 58_000_000, "test": 59_000_000}
FINDINGS = tuple(sorted(reports.FINDINGS))
_METADATA = (
    "dicom_id",
    "subject_id",
    "study_id",
    "PerformedProcedureStepDescription",
    "ViewPosition",
    "Rows",
    "Columns",
    "StudyDate",
    "StudyTime",
    "ProcedureCodeSequence_CodeMeaning",
    "ViewCodeSequence_CodeMeaning",
    "PatientOrientationCodeSequence_CodeMeaning",
)
_CODES = {"PA": "postero-anterior", "AP": "antero-posterior"}


def films(study, rng: np.random.Generator) -> list[str]:
    """Fine names of the study's films: "PA" or "AP", "LL" or "RL"."""
    kinds, shares = zip(*_FILMS[study.ap], strict=True)
    chosen = kinds[rng.choice(len(kinds), p=shares)]
    frontal = "AP" if study.ap else "PA"
    return [frontal if kind == "F" else lateral.view(study) for kind in chosen]


def listed_view(view: str, rng: np.random.Generator) -> str:
    """What the metadata's ViewPosition says of a film: "" or a wrong name at times."""
    u = rng.random(3)
    if u[0] < VIEW_MISSING:
        return ""
    if u[0] < VIEW_MISSING + VIEW_WRONG:
        return {"PA": ("AP", "LATERAL"), "AP": ("PA", "LL")}.get(view, ("PA", "AP"))[
            int(u[1] < 0.5)
        ]
    if view in _CODES:
        return view
    return view if u[2] < 0.35 else "LATERAL"


def draw_mimic(task) -> list:
    """Writes films and reports of a task; returns the tables' rows of each study."""
    context, group = task
    out = []
    for patient, n, _ in group:
        for k in range(n):
            key = latents.Key(context.seed, context.stream, patient, k)
            out.append(_draw_study(context, depth.study(key)))
    return out


def _draw_study(context, study) -> tuple[list, list | None, dict]:
    """Rows of the metadata, the findings as CheXpert reads them, and the labels."""
    rng = study.key.rng("films")
    views = films(study, rng)
    subject = study.key.patient_id
    number = _STUDY_BASE[context.split] + 8 * study.key.patient + study.key.study
    place = f"files/p{subject // 1_000_000}/p{subject}"
    folder = context.folder / place / f"s{number}"
    folder.mkdir(parents=True)
    rows, frontals = [], 0
    for view in views:
        if view in _CODES:
            image = xray.render(study, context.image_size, again=frontals > 0)
            frontals += 1
        else:
            image = lateral.render(study, context.image_size)
        words = rng.integers(0, 1 << 32, 5, dtype=np.uint64).tolist()
        name = "-".join(f"{word:08x}" for word in words)
        (folder / f"{name}.jpg").write_bytes(xray.encode(image))
        row = _metadata(study, view, views, image.shape, rng)
        rows.append([name, subject, number, *row])
    found = None
    if rng.random() >= NO_REPORT:
        text, found = report_text.write(study, study.key.rng("report"), views)
        path = context.folder / "mimic-cxr-reports" / place / f"s{number}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return rows, found, study.labels


def _metadata(study, view, views, shape, rng) -> list:
    """A film's columns of the metadata after its identifiers."""
    listed = listed_view(view, rng)
    code = _CODES.get(view, "lateral")
    if not listed:  # the code mostly lacks too
        code = code if rng.random() < 0.3 else ""
    side = any(v not in _CODES for v in views)
    frontal = next((v for v in views if v in _CODES), "")
    step = (
        "CHEST (PORTABLE AP)" if frontal == "AP" and not side else "CHEST (PA AND LAT)"
    )
    stamp = _taken(study)
    date, time = f"{stamp:%Y%m%d}", f"{stamp:%H%M%S}.{stamp.microsecond // 1000:03d}"
    orientation = "Recumbent" if step.endswith("AP)") else "Erect"
    return [step, listed, *shape, date, time, step, code, orientation]


def _taken(study) -> datetime.datetime:
    """When the study was made: shifted into another century, later studies later."""
    seed = abs(int(study.patient.anatomy[27] * 1e6))
    rng = np.random.Generator(np.random.SFC64(seed))
    days = rng.integers(0, 25_000) + np.cumsum(
        rng.integers(1, 400, latents.MAX_STUDIES)
    )
    moment = rng.integers(0, 86_400_000, latents.MAX_STUDIES)
    return datetime.datetime(2110, 1, 1) + datetime.timedelta(
        days=int(days[study.key.study]), milliseconds=int(moment[study.key.study])
    )


def _negbio(found: dict, rng: np.random.Generator) -> dict:
    """Another labeller's reading: it leaves open more, and misses some negations."""
    out = {}
    for name, value in found.items():
        u = rng.random()
        if value == 1.0 and u < 0.04 and name not in ("No Finding", "Support Devices"):
            value = -1.0
        elif value == 0.0 and u < 0.05:
            value = ""
        out[name] = value
    return out


def write_mimic(root, parameters, run) -> dict:
    """Writes MIMIC-CXR-JPG's layout with reports; returns what was realised."""
    sizes = {split: parameters[split] for split in SPLITS}
    short = parameters["film_size"]
    need = int(40_000 * (short / 320) ** 2 + 9_000) * sum(sizes.values())
    labelled = ["subject_id", "study_id", *FINDINGS]
    columns = {
        "split": ["dicom_id", "study_id", "subject_id", "split"],
        "metadata": _METADATA,
        "chexpert": labelled,
        "negbio": labelled,
    }
    with (
        write.partial(root, parameters, need) as (work, done),
        write.packed_tables(
            {k: work / f"mimic-cxr-2.0.0-{k}.csv.gz" for k in columns}, columns
        ) as tables,
    ):
        for split, n in sizes.items():
            context = layouts.Context(
                work, parameters["seed"], f"mimic_{split}", split, image_size=short
            )
            planned = latents.plan(context.seed, context.stream, n)
            count = write.Prevalence()
            items = write.tasks(context, planned)
            drawn = write.records(run, draw_mimic, items, n, f"mimic {split}")
            tally = {"films": 0, "reports": 0}
            for rows, found, labels in drawn:
                count.add(labels)
                tally["films"] += len(rows)
                tally["reports"] += found is not None
                _write_rows(tables, rows, found, split)
            done[split] = layouts.summary(n, planned, count) | tally
    return done


def _write_rows(tables, rows, found, split) -> None:
    """Adds one study to the four tables."""
    for row in rows:
        name, subject, number = row[:3]
        tables["split"].writerow([name, number, subject, split])
        tables["metadata"].writerow(row)
    if found is None:
        return
    rng = np.random.Generator(np.random.SFC64(number))
    for table, values in (("chexpert", found), ("negbio", _negbio(found, rng))):
        tables[table].writerow([subject, number, *(values[n] for n in FINDINGS)])
