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

import collections
import itertools
import json
import os
import pathlib
import sys
import types

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from data import cells, twins  # noqa: E402
from pacx_jax import cli  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402
from pacx_jax.input import folders, patients, sources  # noqa: E402
from pacx_jax.input import prepared as manifests  # noqa: E402
from pacx_jax.stores import staging  # noqa: E402

KINDS = ("patients", "studies", "identical", "near")
_EXAMPLES = 3  # of a pair of splits
_SHOWN = 10
# Splits of one set that share by construction: Symile-MIMIC's val_retrieval is made
# from val, as queries and candidates.
_REPEATED = {"val", "val_retrieval"}


def audit(arguments: list[str], workers: int = 0) -> dict:
    """Reads the sets and compares each two of their splits.

    Returns:
      `sets` (what was read), `shared` (a row for each two splits that share anything),
      `repeated` (the same where the published set repeats a split; no finding),
      `compared` (pairs of splits), `findings` (rows of `shared`), `near` (its rule).

    Raises:
      PacxError: no such folder, an empty or a damaged one.
    """
    workers = workers or len(os.sched_getaffinity(0))
    opened = [_open(argument) for argument in arguments]
    names = _names([path for path, _ in opened])
    read = [
        cells.read(f"{name}:{split}", number, source, workers)
        for number, (name, (_, found)) in enumerate(zip(names, opened, strict=True))
        for split, source in found.items()
    ]
    rows, repeated = _compare(read)
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
                for c in read
                if c.number == number
            },
        }
        for number, (name, (path, found)) in enumerate(zip(names, opened, strict=True))
    ]
    return {
        "sets": sets,
        "compared": len(read) * (len(read) - 1) // 2,
        "findings": len(rows),
        "shared": rows,
        "repeated": repeated,
        "near": {"bits": twins.DISTANCE, "correlation": twins.CORRELATION},
    }


def _open(argument: str) -> tuple[str, dict[str, sources.Source]]:
    """A set's path and its splits."""
    space, path = "", argument
    if "=" in argument and not pathlib.Path(argument).exists():
        space, _, path = argument.partition("=")
        space = patients.namespace(space)
    folder = staging.local(path)
    if not folder.is_dir():
        raise PacxError(f"{path}: no such folder; give prepared sets or image folders")
    prepared = (folder / manifests.FILE).is_file()
    kind = "prepared" if prepared else "folder"
    data = types.SimpleNamespace(source=kind, path=path, namespace=space)
    if not prepared:
        data.val_fraction = 0.0  # the CSV's splits, or all in one
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


def _compare(read: list[cells.Cell]) -> tuple[list[dict], list[dict]]:
    """A row for each two cells that share anything, those of one set first.

    Rows of splits that repeat each other by construction come apart.
    """
    digests = np.concatenate([c.digests for c in read])
    owner = np.repeat(np.arange(len(read)), [len(c.digests) for c in read])
    first = np.cumsum([0] + [len(c.digests) for c in read])
    ids = twins.identities(digests)
    pairs = twins.near_pairs(digests, owner)
    pairs = pairs[ids[pairs[:, 0]] != ids[pairs[:, 1]]]
    rows, repeated = [], []
    for a, b in itertools.combinations(range(len(read)), 2):
        one, two = read[a], read[b]
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
            both = {one.source.split, two.source.split}
            expected = row["within_one_set"] and both == _REPEATED
            (repeated if expected else rows).append(row)
    return sorted(rows, key=lambda row: not row["within_one_set"]), repeated


def _common(a: set[str] | None, b: set[str] | None) -> int | None:
    return None if a is None or b is None else len(a & b)


def _called(cell: cells.Cell, i: int) -> str:
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
        counts = ["unknown" if row[k] is None else str(row[k]) for k in KINDS[:2]]
        counts += [f"{row[k][0]} and {row[k][1]}" for k in KINDS[2:]]
        text = f"{row['a']} and {row['b']}"
        print(f"{text:{width}}" + "".join(f"{count:>17}" for count in counts))
    examples = [pair for row in report["shared"] for pair in row["examples"]]
    for a, b in examples[:_SHOWN]:
        print(f"  {a} is like {b}")
    if len(examples) > _SHOWN:
        print(f"  and {len(examples) - _SHOWN} more examples in the JSON")
    for row in report["repeated"]:
        print(
            f"note: {row['a']} and {row['b']} share {row['patients']} patients, as "
            "published: val_retrieval is made from val"
        )
    n, compared = report["findings"], report["compared"]
    print(
        f"\n{n} OF {compared} PAIRS OF SPLITS SHARE PATIENTS, STUDIES OR IMAGES"
        if n
        else f"\nnothing found in {compared} pairs of splits"
    )
    print(json.dumps(report))


@cli.command
def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    parser = cli.Parser(prog="data/audit.py", description=__doc__, remote=("sets",))
    parser.add_argument("sets", nargs="+", metavar="[NAME=]DIR")
    parser.add_argument("--workers", type=int, default=0, help="0 = one for each core")
    parser.add_argument("--fail", action="store_true", help="exit 1 with findings")
    options = parser.parse_args(argv)
    if options.workers < 0:
        raise PacxError(f"--workers {options.workers}: give at least 0")
    report = audit(options.sets, options.workers)
    _print(report)
    return 1 if options.fail and report["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
