"""One split of a set as the audit sees it: patients, studies, digests of images."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import itertools
import re

import numpy as np
import tqdm

from data import twins
from pacx_jax.errors import PacxError
from pacx_jax.input import images, patients, sources

_CHUNK = 32  # images a worker gets at a time
_STUDY_ENTRIES = ("study_id", "hadm_id")
_STUDY_FOLDERS = {"chexpert": r"patient\w+/study\w+", "mimic": r"p\d+/s\d+"}


@dataclasses.dataclass
class Cell:
    """One split of one set, read once.

    Attributes:
      name: "SET:SPLIT".
      number: the set's place among the arguments, which keeps its splits apart.
      source: where the images are, to name them.
      patients, studies: ids with their namespace; None where the data name none.
      digests: twins.DIGEST (n,) of the readable images; empty without images.
      index: int (n,), their places in the source.
      unreadable: how many images could not be decoded.
      unnamed: how many examples have a blank patient, where others have one.
    """

    name: str
    number: int
    source: sources.Source
    patients: set[str] | None
    studies: set[str] | None
    digests: np.ndarray
    index: np.ndarray
    unreadable: int
    unnamed: int


def read(name: str, number: int, source: sources.Source, workers: int) -> Cell:
    """Reads all examples, by so many threads, in constant memory but for digests."""
    has_image = "image" in source.entries
    has_patient = "patient_id" in source.entries
    people: set[str] = set()
    studies: set[str] = set()
    digests = np.zeros(len(source), twins.DIGEST)
    readable = np.zeros(len(source), bool)
    unreadable = unnamed = 0
    chunks = [
        range(i, min(i + _CHUNK, len(source))) for i in range(0, len(source), _CHUNK)
    ]

    def work(chunk: range) -> list:
        return [_example(source, i, has_image) for i in chunk]

    bar = tqdm.tqdm(total=len(source), desc=name, unit="ex")
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        # A few chunks at a time are under way, so that memory stays constant.
        waiting: collections.deque = collections.deque()
        todo = iter(chunks)
        while True:
            for chunk in itertools.islice(todo, 2 * workers - len(waiting)):
                waiting.append((chunk, pool.submit(work, chunk)))
            if not waiting:
                break
            chunk, job = waiting.popleft()
            for i, (patient, study, digest) in zip(chunk, job.result(), strict=True):
                unreadable += digest is None and has_image
                unnamed += not patient and has_patient
                people |= {patient} if patient else set()
                studies |= {study} if study else set()
                if digest is not None:
                    digests[i], readable[i] = digest, True
            bar.update(len(chunk))
    bar.close()
    index = np.flatnonzero(readable)
    return Cell(
        name,
        number,
        source,
        people if people else None,
        studies if studies else None,
        digests[index],
        index,
        unreadable,
        unnamed,
    )


def _example(source: sources.Source, i: int, has_image: bool) -> tuple:
    """(patient, study, digest) of an example, each with its namespace, "" or None."""
    try:
        example = source[i]
    except PacxError:
        return "", "", None
    patient = patients.canonical(example.get("patient_id", ""))
    patient = patients.key(source.namespace, patient).casefold() if patient else ""
    study = _study(example, source.namespace, patient)
    if not has_image:
        return patient, study, None
    try:
        image = images.decode(example["image"])
        return patient, study, twins.digest(image)
    except PacxError:
        return patient, study, None


def _study(example: dict, space: str, patient: str) -> str:
    """The study of a patient or, where data name those, the admission of an example."""
    for entry in _STUDY_ENTRIES:
        if number := patients.canonical(example.get(entry, "")):
            # Some sets number the studies of each patient anew.
            owner = patient if patient and entry == "study_id" else space
            return f"{owner}/{entry}/{number}"
    folders = _STUDY_FOLDERS.get(space, "$^")
    found = re.search(f"(?:^|/)({folders})/", str(example.get("path", "")))
    return f"{space}/{found[1]}" if found else ""
