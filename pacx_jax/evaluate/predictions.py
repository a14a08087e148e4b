"""Predictions of each example as CSV, and the paired comparison of several such files.

  python -m pacx_jax.evaluate.predictions runs/a/predictions_test.csv \\
      runs/b/predictions_test.csv --out=pairs.csv

compares every pair of files by DeLong's test for each label, by patient where one has
several studies, and corrects the p values for their number (Holm).
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

from pacx_jax import cli, files
from pacx_jax.errors import PacxError
from pacx_jax.evaluate import delong, measures, statistics
from pacx_jax.input import patients, tables
from pacx_jax.objectives.scores import sigmoid

COLUMNS = ("id", "patient_id", "label", "truth", "logit", "probability")


def write(
    path, given: measures.Examples, ids: Sequence[str], named: Sequence[str]
) -> None:
    """Writes a row for each example and label: COLUMNS, truth "" where unknown.

    Of masks and retrieval the columns after `label` are the measures: hits, called and
    truth in pixels, dice and iou; recall@1, ... (1: found, "" without the modality).

    Args:
      ids: (n,) paths of the examples; named: (n,) patients, "" where unknown.
    """
    arrays = dict(given.arrays)
    if given.kind == "masks":
        arrays |= measures.per_image(arrays)
    if "logits" in arrays:
        truth = np.where(arrays["label_mask"] > 0, arrays["labels"], np.nan)
        x = np.float64(arrays["logits"])
        arrays = {"truth": truth, "logit": x, "probability": sigmoid(x)}
    with files.whole(path) as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("id", "patient_id", "label", *arrays))
        for i, (one, who) in enumerate(zip(ids, named, strict=True)):
            for c, label in enumerate(given.names):
                cells = [float(values[i, c]) for values in arrays.values()]
                shown = ("" if math.isnan(x) else f"{x:.9g}" for x in cells)
                writer.writerow((one, who, label, *shown))


@dataclasses.dataclass(frozen=True)
class Table:
    """The predictions of a file.

    Attributes:
      path: the file.
      rows: (id, label) -> (patient, truth or NaN, logit).
    """

    path: str
    rows: dict[tuple[str, str], tuple[str, float, float]]


def read(path: str) -> Table:
    """Reads what `write` wrote of labels.

    Raises:
      PacxError: other columns, an example and label twice, a truth that is not 0, 1 or
        blank, or logits that are not finite, counted.
    """
    table = tables.read_table(path)
    cells = zip(*(table.column(c, "predictions") for c in COLUMNS[:5]), strict=True)
    rows, bad = {}, []
    for number, (one, who, label, truth, logit) in enumerate(cells, start=2):
        if (one, label) in rows:
            raise PacxError(f"{path}, row {number}: {one} has {label!r} twice")
        try:
            y, x = float(truth) if truth.strip() else math.nan, float(logit or "nan")
        except ValueError:
            y, x = math.inf, 0.0
        if y not in (0, 1) and not math.isnan(y):
            raise PacxError(
                f"{path}, row {number}: truth {truth!r} and logit {logit!r}; give 0, 1 "
                "or nothing, and a number"
            )
        if not math.isfinite(x):
            bad.append(one)
        rows[one, label] = who, y, x
    if bad:
        raise PacxError(
            f"{path}: {len(bad)} of {len(rows)} logits are not finite, the first that "
            f"of {bad[0]}: such an encoder cannot be ranked; find out why"
        )
    return Table(path, rows)


def compare(found: Sequence[Table]) -> list[dict]:
    """Every pair of files by DeLong's test, a row for each label.

    Returns:
      Rows: a, b, label, n, positives, n_patients, a_auroc, b_auroc, difference, low,
      high, p, p_holm (over all rows). A label without both classes has no numbers.

    Raises:
      PacxError: files of other examples, labels, patients or truths, counted.
    """
    first, known = found[0], found[0].rows
    for other in found[1:]:
        if apart := known.keys() ^ other.rows.keys():
            one = min(apart)
            where = first.path if one in known else other.path
            raise PacxError(
                f"{first.path} and {other.path}: {len(apart)} predictions are in one "
                f"alone, such as {one[0]} ({one[1]}) in {where}; measure both on the "
                "same examples"
            )
        differ = [
            k
            for k, (who, y, _) in other.rows.items()
            if not (y == known[k][1] or math.isnan(y) and math.isnan(known[k][1]))
            or who != known[k][0]
        ]
        if differ:
            raise PacxError(
                f"{first.path} and {other.path}: {len(differ)} predictions differ in "
                f"their truth or patient, such as {differ[0][0]} ({differ[0][1]})"
            )
    rows = []
    for label in dict.fromkeys(label for _, label in known):
        keys = [k for k in known if k[1] == label and not math.isnan(known[k][1])]
        units, _ = patients.units([known[k][0] for k in keys])
        truth = np.array([known[k][1] for k in keys])
        x = [np.array([table.rows[k][2] for k in keys]) for table in found]
        about = {"label": label, "n": len(keys), "positives": int(truth.sum())}
        about["n_patients"] = len(set(units))
        for a, b in itertools.combinations(range(len(found)), 2):
            each = dataclasses.asdict(delong.paired(x[a], x[b], truth, np.array(units)))
            each |= {"a_auroc": each.pop("a"), "b_auroc": each.pop("b")}
            rows.append({"a": found[a].path, "b": found[b].path} | about | each)
    for row, p in zip(rows, statistics.holm([row["p"] for row in rows]), strict=True):
        row["p_holm"] = float(p)
    return rows


@cli.command
def main(argv: list[str] | None = None) -> int:
    """The command line."""
    parser = cli.Parser(
        prog="python -m pacx_jax.evaluate.predictions", description=__doc__
    )
    parser.add_argument("files", nargs="+", help="predictions_SPLIT.csv of two or more")
    parser.add_argument("--out", default="", help="CSV to write the comparisons to")
    args = parser.parse_args(argv)
    if len(args.files) < 2:
        raise PacxError("give two files of predictions, or more")
    rows = compare([read(path) for path in args.files])
    for row in rows:
        if math.isnan(row["difference"]):
            told = f"no AUROC: {row['positives']} of {row['n']} are positive"
        elif math.isnan(row["low"]):
            told = (
                f"{row['difference']:+.3f}, no interval: its positives, or its "
                "negatives, are of one patient alone"
            )
        else:
            told = (
                f"{row['difference']:+.3f} ({row['low']:.3f} to {row['high']:.3f}), p "
                f"{row['p']:.2g}, {row['p_holm']:.2g} after Holm for {len(rows)}"
            )
        print(f"{row['label']}, {row['a']} - {row['b']}: {told}")
    if args.out:
        with files.whole(args.out) as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            shown = [
                {k: "" if v != v else v for k, v in row.items()} for row in rows
            ]  # NaN: nothing
            writer.writerows(shown)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
