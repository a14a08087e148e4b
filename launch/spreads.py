"""How far training seeds move a difference: recorded once, quoted by runs of one seed.

  python launch/spreads.py --comparison=runs/pacx_study/comparison.json \\
      --name=pacx_cohort --command="python launch/study.py ... --seeds=5"

writes the standard deviations over trainings of a study, or of a demo of several seeds,
into launch/recorded_spreads.json under a name, with today's date and the command that
trained. A comparison of one training seed quotes what is recorded under its name.
"""

from __future__ import annotations

import datetime
import pathlib
import sys
from collections.abc import Callable, Mapping, Sequence

ROOT = pathlib.Path(__file__).resolve().parents[1]
if str(ROOT) not in sys.path:  # as a script, this file's folder is there instead
    sys.path.insert(0, str(ROOT))

from pacx_jax import cli, files  # noqa: E402
from pacx_jax.errors import PacxError  # noqa: E402

FILE = pathlib.Path(__file__).parent / "recorded_spreads.json"


def of(comparison: Mapping) -> dict:
    """Pair -> labels -> fraction as text -> spread, and the number of trainings.

    Args:
      comparison: of a comparison.json; a study's holds several tables, of which that
        of all patients counts.

    Raises:
      PacxError: fewer than three trainings, of which a spread says little.
    """
    table = comparison.get("tables", {}).get("all", comparison)
    rows = [row for row in table.get("pairs", ()) if row["group"]]
    trainings = max((row["trainings"] for row in rows), default=0)
    if trainings < 3:
        raise PacxError(
            f"{trainings} trainings: a spread is worth recording from 3 on; give the "
            "comparison.json of a study or a demo of more seeds"
        )
    found: dict = {}
    for row in rows:
        if row["trainings"] == trainings and row["spread"] is not None:
            pair = found.setdefault(f"{row['a']} - {row['b']}", {})
            pair.setdefault(row["labels"], {})[str(row["fraction"])] = row["spread"]
    return {"trainings": trainings, "spreads": found}


def read(file: pathlib.Path = FILE) -> dict:
    """What is recorded, by name; {} where nothing is."""
    return files.read_json(file) if file.is_file() else {}


def notes(
    rows: Sequence[Mapping],
    name: str,
    recorded: Mapping,
    budget: Callable[[float], str] = "{:g} of the labels".format,
) -> list[str]:
    """What a comparison of one training seed has to say of other trainings.

    Args:
      rows: of `comparison.Comparison.summary` or of `pairs`.
      name: under which its like is recorded.
      budget: what a row's fraction is, in words.

    Returns:
      One sentence for each label group and budget; [] of several seeds.
    """
    rows = [row for row in rows if row["trainings"] == 1]
    if not rows:
        return []
    says = "One training seed: the intervals lack the randomness of training."
    record = recorded.get(name)
    found = []
    for row in rows if record else ():
        pair = record["spreads"].get(f"{row['a']} - {row['b']}", {})
        spread = pair.get(row["labels"], {}).get(str(row["fraction"]))
        if spread is not None:
            found.append(
                f"{row['a']} - {row['b']}, {row['labels']}, "
                f"{budget(row['fraction'])}: over "
                f"{record['trainings']} training seeds the difference had a standard "
                f"deviation of {spread:.3f} (recorded {record['date']}: "
                f"{record['command']})."
            )
    if not found:
        found = [f"No spread over training seeds is recorded for {name}."]
    return [says, *found]


@cli.command
def main(argv: list[str] | None = None) -> int:
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--comparison", required=True, help="a comparison.json")
    parser.add_argument("--name", required=True, help="a study's file, or demo")
    parser.add_argument("--command", required=True, help="that trained the runs")
    parser.add_argument("--file", default=str(FILE), help="to write into")
    args = parser.parse_args(argv)
    found = of(files.read_json(args.comparison))
    about = {"date": datetime.date.today().isoformat(), "command": args.command}
    file = pathlib.Path(args.file)
    files.write_json(file, read(file) | {args.name: about | found})
    print(f"spreads over {found['trainings']} trainings, as {args.name}, in {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
