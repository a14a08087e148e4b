"""Reads MIMIC's hospital tables, plain or gzipped, row by row in constant memory."""

from __future__ import annotations

import collections
import contextlib
import csv
import dataclasses
import datetime
import functools
import gzip
import hashlib
import io
import math
import os
import pathlib
import re
import zlib
from collections.abc import Iterator, Mapping

import numpy as np
import tqdm

from data.mimic_labs import items
from pacx_jax.errors import PacxError
from pacx_jax.input import patients

DAY = 24 * 3600  # seconds
_ENDS = 65536
_LONGEST_LINE = 2**20  # characters
_NO_TIME = patients.MISSING | {"nat"}
_EPOCH = datetime.datetime(1970, 1, 1)


@dataclasses.dataclass(frozen=True)
class Stays:
    """Admissions, or other stays: their ids, patients, and times in seconds."""

    ids: list[str]
    patients: list[str]
    times: list[int]


@dataclasses.dataclass(frozen=True)
class Found:
    """The earliest value of each item in each admission, and what was left out.

    Attributes:
      values: float64 (admissions, 50), NaN where there is none.
      read: how many events were read.
      dropped: reason -> events of the 50 items that were left out for it.
      units: "name: unit" -> how many of them were in that other unit.
    """

    values: np.ndarray
    read: int
    dropped: Mapping[str, int]
    units: Mapping[str, int]


def table(
    source: pathlib.Path, name: str, folder: str = "hosp", title: str = "MIMIC-IV"
) -> pathlib.Path:
    """`name`.csv or .csv.gz in the source or its folder `folder`."""
    if not source.is_dir():
        raise PacxError(f"{source}: no such folder; check its flag")
    found = [
        parent / f"{name}{suffix}"
        for parent in (source / folder, source)
        for suffix in (".csv", ".csv.gz")
        if (parent / f"{name}{suffix}").is_file()
    ]
    if not found:
        raise PacxError(
            f"{source}: no {name}.csv or {name}.csv.gz, here or in {folder}/; give the "
            f"folder of {title}"
        )
    if len(found) > 1:
        raise PacxError(
            f"{found[0]} and {found[1]} are both there; remove the one not meant"
        )
    return found[0]


def digest(path: pathlib.Path) -> str:
    """A digest of size and both ends: a gzip file's end has its contents' checksum."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            ends = file.read(_ENDS)
            file.seek(max(size - _ENDS, 0))
            ends += file.read(_ENDS)
    except OSError as error:
        raise PacxError(f"{path}: cannot be read ({error.strerror})") from None
    return hashlib.sha256(size.to_bytes(8, "big") + ends).hexdigest()


def rows(
    path: pathlib.Path,
    columns: tuple[str, ...],
    progress: bool = False,
    optional: tuple[str, ...] = (),
) -> Iterator[tuple[list[str], list[int]]]:
    """Yields each row with the positions of `columns` and `optional` in it.

    The position of an optional column that is not there is -1. Whether the file is
    gzipped is read from its bytes.

    Raises:
      PacxError: a column that is not there, a row of another length, damage.
    """
    number = 1
    try:
        with contextlib.ExitStack() as stack:
            raw = stack.enter_context(path.open("rb"))
            size = os.fstat(raw.fileno()).st_size
            zipped = raw.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=raw) if zipped else raw
            text = io.TextIOWrapper(
                io.BufferedReader(stream, 1 << 20), encoding="utf-8-sig", newline=""
            )
            reader = csv.reader(_lines(text))
            header = [cell.strip() for cell in next(reader, [])]
            twice = [n for n in columns + optional if header.count(n) > 1]
            if twice:
                raise PacxError(
                    f"{path}: two columns are called {twice[0]!r}; rename one"
                )
            absent = [name for name in columns if name not in header]
            if absent:
                raise PacxError(
                    f"{path}: no column {', '.join(absent)}; its columns are "
                    f"{', '.join(header)[:300] or '(none)'}"
                )
            places = [header.index(name) for name in columns]
            places += [header.index(n) if n in header else -1 for n in optional]
            bar = stack.enter_context(
                tqdm.tqdm(
                    total=size,
                    unit="B",
                    unit_scale=True,
                    desc=path.name,
                    disable=not progress,
                )
            )
            width = len(header)
            for row in reader:
                number += 1
                if len(row) != width:
                    if not row:
                        continue
                    raise PacxError(
                        f"{path}: row {number} has {len(row)} cells, the header "
                        f"{width}; the file is cut off or damaged"
                    )
                yield row, places
                if not number % 65536:
                    bar.update(raw.tell() - bar.n)
            bar.update(raw.tell() - bar.n)
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as error:
        reason = " ".join(str(error).split())
        raise PacxError(
            f"{path}: cannot be read on after row {number} ({reason}); get it again"
        ) from None


def _lines(text: io.TextIOBase) -> Iterator[str]:
    """Lines of the text; a whole file without line breaks is not held in memory."""
    while line := text.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise csv.Error(f"a line of more than {_LONGEST_LINE} characters")
        yield line


def seconds(text: str, origin: str, field: str) -> int | None:
    """A time ("2180-05-07 00:10:00", or with a T) in seconds; None where it is blank.

    PacxError for another form, such as a day alone: its hour is not known.
    """
    text = text.strip()
    if text.lower() in _NO_TIME:
        return None
    try:
        if len(text) < len("2180-05-07T00"):
            raise ValueError
        return int((datetime.datetime.fromisoformat(text) - _EPOCH).total_seconds())
    except (ValueError, TypeError):  # TypeError: with a time zone
        raise PacxError(
            f"{origin} has the {field} {text!r}; it must be such as 2180-05-07 00:10:00"
        ) from None


def number(text: str, origin: str, field: str) -> float:
    """A cell's number; NaN for a blank and for words. PacxError for one with commas."""
    try:
        return (
            math.nan if "_" in text else float(text)
        )  # 1_0, which Python takes for 10
    except ValueError:
        if re.fullmatch(r"\s*[-+]?[0-9.]*,[0-9.,]+\s*", text):
            raise PacxError(
                f"{origin} has the {field} {text!r}; write numbers with a point and "
                "without commas"
            ) from None
        return math.nan


def read_stays(
    path: pathlib.Path,
    what: str = "admission",
    key: str = "hadm_id",
    start: str = "admittime",
) -> Stays:
    """All stays; PacxError for one without patient, id or time, or named twice.

    Ids have the form of `patients.canonical`.

    Args:
      what: names a stay in messages.
      key, start: the columns of its id and of its time.
    """
    columns = ("subject_id", key, start)
    cells = [[row[i] for i in places] for row, places in rows(path, columns)]
    if not cells:
        raise PacxError(f"{path}: the CSV has no rows under a header")
    people, keys, times = zip(*cells, strict=True)
    people = patients.canonical_column(people, f"{path}, column 'subject_id'")
    keys = patients.canonical_column(keys, f"{path}, column {key!r}")
    stays: dict[str, tuple[str, int]] = {}
    found = zip(keys, people, times, strict=True)
    for row, (stay_id, patient, text) in enumerate(found, start=2):
        time = seconds(text, f"{path}: row {row}", start)
        if time is None:
            raise PacxError(
                f"{path}: row {row} is an {what} without {start}; fill it in or remove "
                "the row"
            )
        if stays.setdefault(stay_id, (patient, time)) != (patient, time):
            raise PacxError(
                f"{path}: {what} {stay_id} is in it twice, with other patients or "
                f"times (row {row}); keep one"
            )
    ids = sorted(stays)  # so that the file's order is no matter
    return Stays(ids, [stays[i][0] for i in ids], [stays[i][1] for i in ids])


def read_labels(path: pathlib.Path) -> dict[str, tuple[str, str]]:
    """Item id -> its name and fluid."""
    found = {}
    for row, places in rows(path, ("itemid", "label", "fluid")):
        item, label, fluid = (row[i].strip() for i in places)
        found[patients.canonical(item)] = (label, fluid)
    return found


def earliest(
    path: pathlib.Path,
    admissions: Stays,
    where: Mapping[int, str],
    known: Mapping[str, object],
    any_unit: bool = False,
) -> Found:
    """The earliest value of each item from 24 h before to 24 h after each admission.

    As Symile-MIMIC's: events are matched by patient and charttime, whatever their
    hadm_id (events before an admission have none, or another one's); both ends of the
    48 hours count; of several values at one time the first in the file is taken. A
    value is `valuenum`; what is no finite number there is left out, even where `value`
    has text such as "<0.5".

    Args:
      where: id of items.ITEMS -> its id in the file.
      known: the source's item ids.
      any_unit: take values whatever their unit, as Symile does.
    """
    stays: dict[str, list[tuple[int, int]]] = {}
    for i, patient in enumerate(admissions.patients):
        stays.setdefault(patient, []).append((admissions.times[i], i))
    index: dict[str, int] = dict.fromkeys(known, -1)
    index |= {where[number]: j for j, number in enumerate(items.IDS)}
    shape = (len(admissions.ids), len(items.ITEMS))
    values = np.full(shape, np.nan)
    offsets = np.full(shape, DAY + 1, np.int32)  # of the value, from admission
    dropped, units = collections.Counter(), collections.Counter()
    right: dict[tuple[int, str], bool] = {}
    # A patient's events follow each other.
    canonical = functools.lru_cache(4096)(patients.canonical)
    columns = ("subject_id", "itemid", "charttime", "valuenum", "valueuom")
    read, last, time = 0, "", None
    for row, (patient_at, item_at, time_at, value_at, unit_at) in rows(
        path, columns, progress=True
    ):
        read += 1
        item = index.get(canonical(row[item_at]))
        if item is None:
            dropped["item not in d_labitems"] += 1
            continue
        if item < 0:
            continue
        mine = stays.get(canonical(row[patient_at]))
        if mine is None:
            dropped["patient without admission"] += 1
            continue
        if row[time_at] != last:  # events of one specimen follow each other
            last = row[time_at]
            time = seconds(last, f"{path}: row {read + 1}", "charttime")
        if time is None:
            dropped["no charttime"] += 1
            continue
        near = [(time - t, i) for t, i in mine if -DAY <= time - t <= DAY]
        if not near:
            continue
        value = number(row[value_at], f"{path}: row {read + 1}", "valuenum")
        if not math.isfinite(value):
            dropped["no number in valuenum"] += 1
            continue
        unit = row[unit_at]
        if (item, unit) not in right:
            right[item, unit] = items.same_unit(item, unit)
        if not right[item, unit]:
            units[f"{items.ITEMS[item][1]}: {unit}"] += 1
            if not any_unit:
                dropped["another unit"] += 1
                continue
        for offset, i in near:
            if offset < offsets[i, item]:
                offsets[i, item] = offset
                values[i, item] = value
    return Found(values, read, dict(dropped), dict(units))
