"""MedMod's ICU stays, the X-ray of each, and which of them Symile-MIMIC has seen.

Read are MedMod's tables with the metadata of MIMIC-CXR-JPG, or tables that are linked
and split already. Ids are compared as numbers, so that 10000032.0 is 10000032.
"""

from __future__ import annotations

import dataclasses
import datetime
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from data import listings, splits
from data.mimic_cxr import metadata
from data.mimic_labs import events
from pacx_jax.errors import PacxError
from pacx_jax.input import findings, patients, tables, views

STAYS, LABELS = "all_stays.csv", "phenotype_labels.csv"
METADATA = ("mimic-cxr-2.0.0-metadata.csv.gz", "mimic-cxr-2.0.0-metadata.csv")
LISTS = {"val": "valset_iv.csv", "test": "testset_iv.csv"}
SYMILE = ("train", "val", "val_retrieval", "test")
_IDS = ("subject_id", "hadm_id", "stay_id")
_STARTS, _ENDS = ("intime", "admittime"), ("outtime", "dischtime")  # ICU, hospital
_COLUMNS = ("dicom_id", "subject_id", "study_id", "StudyDate", "StudyTime")
Views = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class Stay:
    """One ICU stay.

    Attributes:
      origin: where it stands, for messages.
      patient, admission: subject_id and hadm_id, as `number` writes them.
      labels: float32 (c,) of the task.
      stratum: of the label by which draws are stratified.
      window: seconds from the first of its times to the last.
      film: its X-ray, relative to the folder of images; "" without one.
      views: what the metadata say of its view, see `listings.Row`.
      split: the official one, "" without one.
    """

    origin: str
    patient: str
    admission: str
    labels: np.ndarray
    stratum: float
    window: tuple[float, float] = (0.0, 0.0)
    film: str = ""
    split: str = ""
    views: Views = ()


class Film(NamedTuple):
    """An X-ray: seconds, path, and what is said of its view."""

    taken: float
    path: str
    views: Views


def number(text: str) -> str:
    """An id of MIMIC, as it is written in the names of its folders."""
    return patients.key("mimic", text).removeprefix("mimic/")


def read_split(
    root: pathlib.Path, names: tuple[str, ...], stratum: str
) -> Iterator[Stay]:
    """The stays of {train,val,test}/{train,val,test}.csv, whose X-rays are linked."""
    for split in splits.NAMES:
        path = root / split / f"{split}.csv"
        table = listings.read_table(path, (*_IDS[:2], "cxr_path", *names, stratum))
        for i, stay in enumerate(_stays(table.table, table.table, names, stratum)):
            name = table.table.rows[i][table.table.columns.index("cxr_path")]
            yield dataclasses.replace(stay, film=f"{split}/{name}", split=split)


def read_release(
    root: pathlib.Path, names: tuple[str, ...], stratum: str
) -> Iterator[Stay]:
    """The stays of MedMod's tables, in the order of their ids, without X-rays.

    phenotype_labels.csv names no stays: its rows are those of all_stays.csv sorted by
    stay_id.
    """
    stays = tables.read_table(root / STAYS)
    ids = tables.patients(stays, "stay_id", "as MedMod has it")
    if odd := [i for i in ids if not i.isdecimal()]:
        raise PacxError(f"{stays.path}: stay_id {odd[0]!r} is no number; correct it")
    order = np.argsort([int(i) for i in ids], kind="stable")
    stays = dataclasses.replace(stays, rows=[stays.rows[i] for i in order])
    labels = tables.read_table(root / LABELS)
    for name in (*names, stratum):
        if name not in stays.columns:
            labels.column(name, "as MedMod has it")
    if len(labels.rows) != len(stays.rows):
        raise PacxError(
            f"{labels.path}: {len(labels.rows)} rows, but {stays.path} has "
            f"{len(stays.rows)} stays; both must be of one run of MedMod's code"
        )
    official = _official(root)
    times = [
        [stays.column(name, "as MedMod has it") for name in group]
        for group in (_STARTS, _ENDS)
    ]
    found = _stays(stays, labels, names, stratum)
    for stay, *cells in zip(found, *times[0], *times[1], strict=True):
        named = zip(cells, (*_STARTS, *_ENDS), strict=True)
        seconds = [events.seconds(cell, stay.origin, name) for cell, name in named]
        starts = [t for t in seconds[:2] if t is not None]
        ends = [t for t in seconds[2:] if t is not None]
        if not starts or not ends:
            raise PacxError(
                f"{stay.origin}: neither {' nor '.join(_STARTS if ends else _ENDS)} is "
                "there; fill one in or remove the row"
            )
        window = (min(starts), max(ends))
        split = official.get(stay.patient, "train") if official else ""
        yield dataclasses.replace(stay, window=window, split=split)


def link(
    stays: list[Stay], images: pathlib.Path, root: pathlib.Path, frontal: bool = False
) -> list[Stay]:
    """The stays with an X-ray: the earliest of the patient within the stay's window.

    Any view counts, or `frontal` ones alone; of one time the first in the metadata, and
    no image is taken twice.
    """
    films = _films(_metadata(images, root), {stay.patient for stay in stays}, frontal)
    linked = []
    for stay in stays:
        first, last = stay.window
        mine = films.get(stay.patient, [])
        inside = [film for film in mine if first <= film.taken <= last]
        if inside:
            chosen = min(inside, key=lambda film: film.taken)
            mine.remove(chosen)
            about = {"film": chosen.path, "views": chosen.views}
            linked.append(dataclasses.replace(stay, **about))
    return linked


def frontal_of(
    stays: list[Stay], images: pathlib.Path, root: pathlib.Path
) -> list[Stay]:
    """The stays whose X-ray, linked already, is frontal by the metadata."""
    path = _metadata(images, root)
    films = {
        pathlib.PurePosixPath(film.path).stem: film.views
        for each in _films(path, {stay.patient for stay in stays}, True).values()
        for film in each
    }
    named = [(stay, pathlib.PurePosixPath(stay.film).stem) for stay in stays]
    return [
        dataclasses.replace(stay, views=films[name])
        for stay, name in named
        if name in films
    ]


def _metadata(images: pathlib.Path, root: pathlib.Path) -> pathlib.Path:
    """The metadata of MIMIC-CXR-JPG, in either folder."""
    found = [d / name for d in (root, images) for name in METADATA]
    path = next((path for path in found if path.is_file()), None)
    if path is None:
        raise PacxError(
            f"{images}: no {METADATA[0]}; put that of MIMIC-CXR-JPG beside {STAYS}, or "
            "give the folder of MIMIC-CXR-JPG as --images"
        )
    return path


def seen(stays: list[Stay], symile: pathlib.Path, policy: str) -> list[bool]:
    """Whether Symile-MIMIC has each stay.

    strict: its patient is in any split of Symile. reference: its admission is in
    Symile's training split, as the authors' code had it.
    """
    by_patient = policy == "strict"
    column = "subject_id" if by_patient else "hadm_id"
    ids: set[str] = set()
    for name in SYMILE if by_patient else SYMILE[:1]:
        path = symile / f"{name}.csv"
        if not path.is_file():
            raise PacxError(
                f"--symile {symile}: no {path.name}; give the folder of Symile-MIMIC "
                f"with {', '.join(f'{s}.csv' for s in SYMILE)}"
            )
        table = tables.read_table(path)
        ids |= {number(i) for i in tables.patients(table, column, "Symile-MIMIC")}
    return [(s.patient if by_patient else s.admission) in ids for s in stays]


def _stays(
    stays: tables.Table, labels: tables.Table, names: tuple[str, ...], stratum: str
) -> Iterator[Stay]:
    """The rows as stays; a label may be in either table."""
    people = tables.patients(stays, "subject_id", "the patient's id")
    admissions = tables.patients(stays, "hadm_id", "the admission's id")
    of_task = stays if set(names) <= set(stays.columns) else labels
    values = findings.read(of_task, names)[1]
    strata = findings.read(labels, (stratum,))[1][:, 0]
    for i, (patient, admission) in enumerate(zip(people, admissions, strict=True)):
        origin = f"{stays.path}: admission {admission}"
        yield Stay(origin, number(patient), number(admission), values[i], strata[i])


def _official(root: pathlib.Path) -> dict[str, str]:
    """Patient -> val or test by MedMod's lists; empty without them."""
    if not any((root / name).is_file() for name in LISTS.values()):
        return {}
    found = {}
    for split, name in LISTS.items():
        path = listings.first_file(root, name)
        for line in listings.read_lines(path):
            patient, _, listed = line.partition(",")
            if listed.strip() not in ("0", "1"):
                raise PacxError(f"{path}: {line!r} is not a subject_id and 0 or 1")
            if listed.strip() == "1":
                found[number(patient)] = split
    return found


def _films(
    path: pathlib.Path, people: set[str], frontal: bool
) -> dict[str, list[Film]]:
    """Patient -> X-rays, in the order of the metadata; frontal ones alone if asked."""
    films: dict[str, list[Film]] = {}
    asked = (*_COLUMNS, metadata.VIEWS[0]) if frontal else _COLUMNS
    more = tuple(name for name in metadata.VIEWS if name not in asked)
    names = (*asked, *more)
    for row, places in events.rows(path, asked, progress=True, optional=more):
        cells = {
            name: row[i].strip() if i >= 0 else None
            for name, i in zip(names, places, strict=True)
        }
        dicom, patient, study, date, time = (cells[name] for name in _COLUMNS)
        patient = number(patient)
        if patient not in people:
            continue
        said: Views = ()
        if cells[metadata.VIEWS[0]] is not None:
            said = metadata.claims(*(cells[name] or "" for name in metadata.VIEWS))
        if frontal and views.coarse(views.settle(said).view) != "frontal":
            continue
        # 213014.531 is half past nine in the evening; zeros in front are lacking.
        whole, _, fraction = time.partition(".")
        try:
            whole = patients.canonical(date) + f"{int(whole):06}"
            day = datetime.datetime.strptime(whole, "%Y%m%d%H%M%S")
            taken = events.seconds(day.isoformat(), "", "") + float(
                f"0.{fraction or 0}"
            )
        except ValueError:
            raise PacxError(
                f"{path}: image {dicom} has the StudyDate {date!r} and StudyTime "
                f"{time!r}; they must be such as 21800506 and 213014.531"
            ) from None
        place = f"files/p{patient[:2]}/p{patient}/s{number(study)}/{dicom}.jpg"
        films.setdefault(patient, []).append(Film(taken, place, said))
    return films
