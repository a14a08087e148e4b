"""Reports what prepared sets share: patients, studies and images, between their splits.

  python data/audit.py prepared/chexpert prepared/nih14 ... [--fail] [--workers=N]

Each argument is a folder that data/prepare.py wrote, or any folder of JPEG and PNG
files. Patients are compared where their ids come from one archive; NAME=DIR says which
that is for a folder, such as nih14=DIR. Images are compared by their pixels (identical)
and by a perceptual hash (near-identical, see data/twins.py). The last line printed is
JSON. What is shared is a finding, not an error: the exit code is 0, or 1 with --fail.
Bad input is one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import re
import sys
import types

import numpy as np
import tqdm

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from data import twins  # noqa: E402
from pacx_jax.input import folders, images, patients, sources  # noqa: E402
from pacx_jax.types import PacxError  # noqa: E402

KINDS = ("patients", "studies", "identical", "near")
_CHUNK = 32  # images a worker gets at a time
_EXAMPLES = 3  # of a pair of splits
_SHOWN = 10
_STUDY_ENTRIES = ("study_id", "hadm_id")


@dataclasses.dataclass
class Cell:
    """One split of one set, read once.

    Attributes:
      name: "SET:SPLIT".
      number: which argument the set was, so that its splits are told from others'.
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


def audit(arguments: list[str], workers: int = 0) -> dict:
    """Reads the sets and compares each two of their splits.

    Returns:
      `sets` (what was read), `shared` (a row for each two splits that share anything),
      `compared` (pairs of splits), `findings` (how many rows), `near` (its rule).

    Raises:
      PacxError: no such folder, an empty or a damaged one.
    """
    workers = workers or len(os.sched_getaffinity(0))
    opened = [_open(argument) for argument in arguments]
    names = _names([path for path, _ in opened])
    cells = [
        _read(f"{name}:{split}", number, source, workers)
        for number, (name, (_, found)) in enumerate(zip(names, opened, strict=True))
        for split, source in found.items()
    ]
    rows = _compare(cells)
    sets = [
        {
            "path": path,
            "name": name,
            "namespace": next(iter(found.values())).namespace,
            "splits": {
                c.source.split: {
                    "examples": len(c.source),
                    "patients": None if c.patients is None else len(c.patients),
                    "without_patient": c.unnamed,
                    "studies": None if c.studies is None else len(c.studies),
                    "unreadable": c.unreadable,
                }
                for c in cells
                if c.number == number
            },
        }
        for number, (name, (path, found)) in enumerate(zip(names, opened, strict=True))
    ]
    return {
        "sets": sets,
        "compared": len(cells) * (len(cells) - 1) // 2,
        "findings": len(rows),
        "shared": rows,
        "near": {"bits": twins.DISTANCE, "correlation": twins.CORRELATION},
    }


def _open(argument: str) -> tuple[str, dict[str, sources.Source]]:
    """A set's path and its splits."""
    space, path = "", argument
    if "=" in argument and not pathlib.Path(argument).exists():
        space, _, path = argument.partition("=")
        space = patients.namespace(space)
    folder = pathlib.Path(path)
    if not folder.is_dir():
        raise PacxError(f"{path}: no such folder; give prepared sets or image folders")
    prepared = (folder / sources.MANIFEST).is_file()
    data = types.SimpleNamespace(
        source="prepared" if prepared else "folder",
        path=path,
        namespace=space,
        val_fraction=0.0,  # the CSV's splits, or all in one
    )
    found = {}
    for split in sources.splits(data):
        try:
            found[split] = sources.open_source(data, split)
        except PacxError:
            if prepared:
                raise
    if not found:
        folders.read_folder(folders.FolderSpec.from_config(data))  # says what is wrong
        raise PacxError(f"{path}: no images in train, val or test")
    return path, found


def _names(paths: list[str]) -> list[str]:
    """The last part of each path, with its number where two have the same."""
    names = [pathlib.Path(path).resolve().name for path in paths]
    counts = collections.Counter(names)
    return [n if counts[n] == 1 else f"{n}({i})" for i, n in enumerate(names, start=1)]


def _read(name: str, number: int, source: sources.Source, workers: int) -> Cell:
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
    patient = str(example.get("patient_id", ""))
    patient = patients.key(source.namespace, patient) if patient.strip() else ""
    study = _study(example, source.namespace)
    if not has_image:
        return patient, study, None
    try:
        image = images.decode(example["image"])
        return patient, study, twins.digest(image)
    except PacxError:
        return patient, study, None


def _study(example: dict, space: str) -> str:
    """The study or, where data name those, the admission of an example."""
    for entry in _STUDY_ENTRIES:
        if example.get(entry):
            return f"{space}/{entry}/{example[entry]}"
    found = re.search(r"(?:^|/)(patient\w+/study\w+)/", str(example.get("path", "")))
    return f"{space}/{found[1]}" if found and space == "chexpert" else ""


def _compare(cells: list[Cell]) -> list[dict]:
    """A row for each two cells that share anything, those of one set first."""
    digests = np.concatenate([c.digests for c in cells])
    owner = np.repeat(np.arange(len(cells)), [len(c.digests) for c in cells])
    first = np.cumsum([0] + [len(c.digests) for c in cells])
    ids = twins.identities(digests)
    pairs = twins.near_pairs(digests, owner)
    pairs = pairs[ids[pairs[:, 0]] != ids[pairs[:, 1]]]
    rows = []
    for a, b in itertools.combinations(range(len(cells)), 2):
        one, two = cells[a], cells[b]
        ids_a, ids_b = ids[owner == a], ids[owner == b]
        same = [
            np.flatnonzero(np.isin(ids_a, ids_b)) + first[a],
            np.flatnonzero(np.isin(ids_b, ids_a)) + first[b],
        ]
        near = pairs[(owner[pairs] == (a, b)).all(1)]
        row = {
            "a": one.name,
            "b": two.name,
            "within_one_set": one.number == two.number,
            "patients": _common(one.patients, two.patients),
            "studies": _common(one.studies, two.studies),
            "identical": [len(same[0]), len(same[1])],
            "near": [len(np.unique(near[:, 0])), len(np.unique(near[:, 1]))],
        }
        if row["patients"] or row["studies"] or len(same[0]) or len(near):
            partner = {ids[j]: j for j in same[1]}
            examples = [(i, partner[ids[i]]) for i in same[0][:_EXAMPLES]]
            examples += [tuple(pair) for pair in near[:_EXAMPLES]]
            row["examples"] = [
                [_called(one, i - first[a]), _called(two, j - first[b])]
                for i, j in examples
            ]
            rows.append(row)
    return sorted(rows, key=lambda row: not row["within_one_set"])


def _common(a: set[str] | None, b: set[str] | None) -> int | None:
    return None if a is None or b is None else len(a & b)


def _called(cell: Cell, i: int) -> str:
    return cell.source.name(int(cell.index[i]))


def _print(report: dict) -> None:
    for one in report["sets"]:
        for split, row in one["splits"].items():
            people = "no patients named"
            if row["patients"] is not None:
                people = f"{row['patients']} patients of {one['namespace']}"
            blank = row["without_patient"]
            if blank and row["patients"] is not None:
                people += f", {blank} without one"
            bad = f", {row['unreadable']} unreadable" if row["unreadable"] else ""
            print(f"{one['name']}:{split}: {row['examples']} examples, {people}{bad}")
    if report["shared"]:
        width = max(len(f"{r['a']} and {r['b']}") for r in report["shared"])
        print(f"\nSHARED{'':{width - 6}}" + "".join(f"{k:>17}" for k in KINDS))
    for row in report["shared"]:
        cells = ["unknown" if row[k] is None else str(row[k]) for k in KINDS[:2]]
        cells += [f"{row[k][0]} and {row[k][1]}" for k in KINDS[2:]]
        text = f"{row['a']} and {row['b']}"
        print(f"{text:{width}}" + "".join(f"{cell:>17}" for cell in cells))
    examples = [pair for row in report["shared"] for pair in row["examples"]]
    for a, b in examples[:_SHOWN]:
        print(f"  {a} is like {b}")
    if len(examples) > _SHOWN:
        print(f"  and {len(examples) - _SHOWN} more examples in the JSON")
    n, compared = report["findings"], report["compared"]
    print(
        f"\n{n} OF {compared} PAIRS OF SPLITS SHARE PATIENTS, STUDIES OR IMAGES"
        if n
        else f"\nnothing found in {compared} pairs of splits"
    )
    print(json.dumps(report))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        self.exit(2, f"error: {message}; see --help\n")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = _Parser(
        prog="data/audit.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("sets", nargs="+", metavar="[NAME=]DIR")
    parser.add_argument("--workers", type=int, default=0, help="0 = one for each core")
    parser.add_argument("--fail", action="store_true", help="exit 1 with findings")
    options = parser.parse_args(argv)
    try:
        if options.workers < 0:
            raise PacxError(f"--workers {options.workers}: give at least 0")
        report = audit(options.sets, options.workers)
    except PacxError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    _print(report)
    return 1 if options.fail and report["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
