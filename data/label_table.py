"""A prepared set's labels as a teacher: what a report says, in place of an ECG.

  python data/label_table.py --data=prepared/symile_mimic --out=report_labels.npz

The file has `id` (n,), the study or admission of each example, or its patient
(--by=patient), and `embedding` (n, labels): 1 positive, -1 negative, 0 uncertain or
missing. Examples of which nothing is known are left out and counted. Distil by

  --config.modalities.teacher.init=report_labels.npz \\
  --config.modalities.teacher.by=study

with weights, as docs/extending.md says of tables.
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from pacx_jax import cli, files  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402
from pacx_jax.input import patients, sources  # noqa: E402

_STUDY = ("hadm_id", "study_id")


def rows(source, by: str) -> tuple[list[str], np.ndarray, list[str]]:
    """Ids, embeddings (n, c), and the names of examples of which nothing is known.

    PacxError where an example has no id, or a patient's examples disagree.
    """
    found: dict[str, np.ndarray] = {}
    unknown = []
    for i in range(len(source)):
        example = source[i]
        keys = _STUDY if by == "study" else ("patient_id",)
        one = next((x for k in keys if (x := example.get(k, ""))), "")
        if not (one := patients.canonical(str(one))):
            raise PacxError(
                f"{source.name(i)}: no {' or '.join(keys)}; give --by="
                f"{'patient' if by == 'study' else 'study'}"
            )
        y = np.asarray(example["labels"], np.float32)
        y = np.where(y == 1, 1.0, np.where(y == 0, -1.0, 0.0)).astype(np.float32)
        if not y.any():
            unknown.append(source.name(i))
        elif not np.array_equal(found.setdefault(one, y), y):
            raise PacxError(
                f"{source.name(i)}: {by} {one} has other labels in another example; "
                "give --by=study"
            )
    return list(found), np.array([*found.values()], np.float32), unknown


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = cli.Parser(prog="data/label_table.py", description=__doc__)
    parser.add_argument("--data", required=True, help="a prepared set with labels")
    parser.add_argument("--out", required=True, help="the .npz to write")
    parser.add_argument("--splits", default="train,val")
    parser.add_argument("--by", default="study", choices=("study", "patient"))
    args = parser.parse_args(argv)
    ids, parts, unknown = [], [], []
    for split in args.splits.split(","):
        config = argparse.Namespace(
            source="prepared", path=args.data, stage="", group="image"
        )
        source = sources.open_source(config, split)
        if not source.label_names:
            raise PacxError(f"{args.data}: no labels; prepare a set that has some")
        found, embedding, lacking = rows(source, args.by)
        ids, parts, unknown = ids + found, [*parts, embedding], unknown + lacking
    if not ids:
        raise PacxError(f"{args.data}: no label of any example is known")
    with files.whole(args.out, "wb") as file:
        np.savez(file, id=np.array(ids), embedding=np.concatenate(parts))
    told = f"; {len(unknown)} have no known label and are left out" if unknown else ""
    print(f"{len(ids)} rows of {len(source.label_names)} labels in {args.out}{told}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
