"""Reading the CSV beside a data set: its columns, patients and splits.

Every reader here answers with one line that names the file, the column and the row
when the table is not what it should be.
"""

from __future__ import annotations

import collections
import csv
import dataclasses
import hashlib
import io
import itertools
import os
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence

from pacx_jax import files
from pacx_jax.errors import PacxError
from pacx_jax.input import names
from pacx_jax.input import patients as ids
from pacx_jax.input.images import EXTENSIONS

# What a column is by its name, in any case and without blanks and signs. The second
# names count where a table has none of the first.
ROLES = {
    "path": (
        "path filepath imagepath file filename imagefile imagefilename imageindex",
        "image imageid imagename imgname img",
    ),
    "patient": (
        "patientid subjectid patient subject",
        "participantid personid patientnumber subjectnumber mrn pid",
    ),
    "split": ("split", "datasplit"),
    "study": ("studyid study studyinstanceuid accession accessionnumber hadmid", ""),
    "view": ("view viewposition projection viewname frontallateral appa", ""),
}
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "test": "test",
}
LABEL_FILES = ("labels.csv", "labels.tsv", "metadata.csv", "metadata.tsv")
_A_SPLIT = re.compile(
    "(is|in)?(train|training|val|valid|validation|test|holdout)(set)?"
)
_DELIMITERS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@dataclasses.dataclass(frozen=True)
class Table:
    """A CSV file as text: its columns and the cells of each row."""

    path: str
    columns: tuple[str, ...]
    rows: list[list[str]]

    def column(self, name: str, field: str) -> list[str]:
        """The cells of one column; `field` is the config field that named it."""
        if name not in self.columns:
            raise PacxError(
                f"{self.path}: no column {name!r} ({field}); its columns are "
                f"{', '.join(self.columns)}"
            )
        index = self.columns.index(name)
        return [row[index] for row in self.rows]


def label_file(
    folder: str | os.PathLike, names: Iterable[str], known: Sequence[str] = LABEL_FILES
) -> str:
    """Which of a folder's files has its labels, by its name; "" for none.

    PacxError where it may be two: labels.csv and labels.tsv.
    """
    here = sorted((n for n in names if n.lower() in known), key=str.lower)
    same = [n for n in here if n.lower()[:-4] == here[0].lower()[:-4]]
    if len(same) > 1:
        raise PacxError(
            f"{folder}: the labels may be in {same[0]} or {same[1]}; give one as "
            "data.csv (--csv), or remove it"
        )
    return same[0] if same else ""


def read_table(path: str | os.PathLike) -> Table:
    """Reads a CSV with a header: UTF-8 or UTF-16, whose header tells the separator."""
    path = pathlib.Path(path)
    text = _decoded(path)
    said = re.match(r"\s*\"?sep=(.)\"?\s*?(?:\r\n?|\n)", text)  # Excel's own line
    text = text[said.end() :] if said else text
    delimiter = said[1] if said else _delimiter(text)
    told = f"separated by {_DELIMITERS.get(delimiter, repr(delimiter))}"
    try:
        # Strict, or one quote too many takes the rows after it into its cell.
        file = io.StringIO(text, newline="")
        lines = csv.reader(
            file, delimiter=delimiter, skipinitialspace=True, strict=True
        )
        rows = [row for row in lines if any(cell.strip() for cell in row)]
    except csv.Error as error:
        raise PacxError(
            f"{path}: not a readable CSV file, {told} ({error}); check its quotes"
        ) from None
    if len(rows) < 2:
        raise PacxError(f"{path}: the CSV has no rows under a header")
    columns = tuple(cell.strip() for cell in rows[0])
    file = next((c for c in columns if c.lower().endswith((*EXTENSIONS, ".hea"))), "")
    if file:
        raise PacxError(
            f"{path}: its first row has the file {file!r}, so it is no header; put "
            "the columns' names above it, such as path,patient_id,label"
        )
    if len(columns) == 1 and len(columns[0].split()) > 1 and not role(columns[0]):
        raise PacxError(
            f"{path}: its header {columns[0]!r} has no comma, semicolon, tab or bar; "
            "write one of them, not blanks, between the columns"
        )
    for number, row in enumerate(rows[1:], start=2):
        while len(row) > len(columns) and not row[-1].strip():
            row.pop()  # NIH's rows end in a comma where the header may not
        if len(row) != len(columns):
            raise PacxError(
                f"{path}: row {number} has {len(row)} cells, the header "
                f"{len(columns)}, {told}"
            )
    twice = [c for c, n in collections.Counter(columns).items() if c and n > 1]
    if twice:
        raise PacxError(f"{path}: two columns are called {twice[0]!r}; rename one")
    return Table(str(path), columns, rows[1:])


def _decoded(path: pathlib.Path) -> str:
    if names.waits(path):
        raise PacxError(f"{path}: a pipe, socket or device, no CSV; check data.csv")
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise PacxError(f"{path}: no such CSV file; check data.csv") from None
    except OSError as error:
        raise PacxError(f"{path}: cannot be read ({error.strerror})") from None
    if data.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"\x1f\x8b")):
        raise PacxError(
            f"{path}: a workbook or an archive, no CSV; save its table as CSV (UTF-8)"
        )
    if other := files.other_kind(data):
        raise PacxError(f"{path}: {other}")
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data[:2]:  # no header begins so but in UTF-16 without its mark
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise PacxError(
            f"{path}: no {encoding.upper().removesuffix('-SIG')} at byte {error.start} "
            f"({data[error.start : error.start + 1]}); save it as UTF-8"
        ) from None


def _delimiter(text: str) -> str:
    """The separator that divides the header most."""
    cell = r'(?<![^,;\t|\r\n ])"[^"]*"'  # which may have several lines
    header = re.match(rf"[\r\n]*((?:{cell}|[^\r\n])*)", text)[1]
    return max(_DELIMITERS, key=re.sub('"[^"]*"', "", header).count)


def plain(name: str) -> str:
    """A column's name in any case, without blanks and signs."""
    return re.sub(r"[\W_]", "", name.casefold())


def role(name: str) -> str:
    """Which of ROLES a column or field of this name has; "" for none."""
    found = (r for r, tiers in ROLES.items() if plain(name) in " ".join(tiers).split())
    return next(found, "")


def columns(table: Table, chosen: Mapping[str, str]) -> dict[str, str]:
    """The column of each role, "" where there is none.

    Args:
      table: its first column of a role's names, in their order, is taken.
      chosen: role -> a column by name, "" to look for one, or "-" for none.

    Raises:
      PacxError: two columns may have a role that can be chosen, and differ.
    """
    found = {}
    for name, tiers in ROLES.items():
        if chosen.get(name):
            found[name] = "" if chosen[name] == "-" else chosen[name]
            continue
        places = [
            [c for n in tier.split() for c in table.columns if plain(c) == n]
            for tier in tiers
        ]
        same = next(filter(None, places), [""])
        found[name] = same[0]
        for other in same[1:] if name in chosen else ():
            pair = zip(table.column(same[0], ""), table.column(other, ""), strict=True)
            if any(_ALIKE[name](a) != _ALIKE[name](b) for a, b in pair):
                raise PacxError(
                    f"{table.path}: columns {same[0]!r} and {other!r} may both be the "
                    f"{name} and differ; give data.{name}_column"
                )
    if not found["split"] and not chosen.get("split", "-"):
        _refuse_other_split(table)
    return found


def _refuse_other_split(table: Table) -> None:
    """PacxError for a publisher's split under another name, which would be lost."""
    for column in table.columns:
        cells = {cell.strip().lower() for cell in table.column(column, "")}
        if _A_SPLIT.fullmatch(plain(column)) and len(cells - {""}) <= 2:
            raise PacxError(
                f"{table.path}: column {column!r} seems to mark one split; put all "
                "into one column, split, of train, val and test, or give "
                "data.split_column='-' to draw another"
            )
        found = set(map(SPLIT_NAMES.get, cells))
        if len(found) > 1 and None not in found:
            raise PacxError(
                f"{table.path}: column {column!r} seems the split; give "
                f"data.split_column={column!r}, or '-' to draw another"
            )


# What makes two cells of a role the same.
_ALIKE = {
    "path": lambda cell: names.stem(re.split(r"[/\\]", cell.strip())[-1]),
    "patient": ids.canonical,
    "split": lambda cell: SPLIT_NAMES.get(cell.strip().lower(), cell),
}


def patients(table: Table, column: str, field: str) -> list[str]:
    """Ids of all rows in their one form, none of them blank or unknown."""
    cells = table.column(column, field)
    return ids.canonical_column(cells, f"{table.path}, column {column!r}")


def split_names(table: Table, column: str, field: str) -> list[str]:
    """The rows' splits as train, val or test."""
    found = []
    for number, cell in enumerate(table.column(column, field), start=2):
        name = SPLIT_NAMES.get(cell.strip().lower())
        if name is None:
            raise PacxError(
                f"{table.path}: row {number} has the unknown split {cell!r} in column "
                f"{column!r}; use train, val or test"
            )
        found.append(name)
    return found


def assign_splits(
    groups: Sequence[str], val_fraction: float, test_fraction: float = 0.0
) -> list[str]:
    """Splits examples by the hash of their group: a patient, else a file.

    A group goes where its hash, uniform in [0, 1), falls: below `test_fraction` to
    test, then `val_fraction` to val, else to train. So the split depends on neither
    the order nor the number of files, and nobody moves when others are added. When
    chance leaves val (or train) empty, the group nearest to it by hash moves there.
    """
    for field, value in (("val", val_fraction), ("test", test_fraction)):
        if not 0 <= value < 1:
            raise PacxError(f"data.{field}_fraction {value}: give a number in [0, 1)")
    if val_fraction + test_fraction >= 1:
        raise PacxError("data.val_fraction + data.test_fraction must be below 1")
    where = {group: _uniform(group) for group in groups}
    split = {
        group: "test"
        if u < test_fraction
        else ("val" if u < test_fraction + val_fraction else "train")
        for group, u in where.items()
    }
    ordered = sorted(where, key=lambda group: (where[group], group))
    for name, fraction, nearest in (
        ("test", test_fraction, ordered),
        ("val", val_fraction, ordered),
        ("train", 1.0, ordered[::-1]),
    ):
        if fraction and name not in split.values():
            counts = collections.Counter(split.values())
            movable = (group for group in nearest if counts[split[group]] > 1)
            split.update({group: name for group in itertools.islice(movable, 1)})
    return [split[group] for group in groups]


def _uniform(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big") / 2**56
