"""One form of every id, and whose ids they are: the namespaces of data sets.

Patient "1" of one hospital is not patient "1" of another, so two ids are compared only
within one namespace: that of the data set which gave them out. Data sets cut from one
archive share its namespace: `subject_id` of Symile-MIMIC, MedMod, CXLSeg, MIMIC-CXR,
the laboratory events and the emergency stays are all MIMIC's.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

from pacx_jax.errors import PacxError

# Name in data/prepare.py -> the archive whose ids it has; others are their own.
NAMESPACES = {
    "symile_mimic": "mimic",
    "medmod": "mimic",
    "cxlseg": "mimic",
    "mimic_cxr": "mimic",
    "mimic_labs": "mimic",
    "mimic_vitals": "mimic",
}
FOLDER = "folder"  # all folders of images whose origin nobody stated
SIMULATED = "simulated"  # the embedded cohort, which numbers everybody once
BETWEEN = "+"  # namespaces of a mixture, whose ids say which they are of
MISSING = {"", "nan", "na", "n/a", "none", "null", "unknown", "?", "<na>"}
MISSING |= {"#n/a", "#ref!", "#value!", "#name?"}  # spreadsheets'
# Of ids alone: as a label, a dash may say that nothing was found.
_NO_ID = MISSING | {"-", "--", "\u2013", "\u2014", ".", "anonymous"}
_NO_ID |= {"anonymized", "anonymised"}
NOBODY = (
    "NO PATIENTS are known: splits and intervals are by {what}, and one patient's may "
    "be in several splits"
)
_BLANK = r"\s'\"\ufeff\u200b-\u200f\u2060"  # some of no width, as web pages have them
_AROUND = re.compile(f"^[={_BLANK}]+|[{_BLANK}]+$")  # ="00211", of spreadsheets
_SHORTENED = re.compile(r"[0-9]([.,][0-9]+)?[eE]\+?[0-9]+")  # 1.23E+11, of spreadsheets
# 1,234, 10.000.032 or 10 000 032: numbers as tables show them. 1.234 may be an id.
_GROUPED = re.compile(
    "[0-9]{1,3}(([,'\u2019\u00a0\u2009\u202f][0-9]{3})+|([. ][0-9]{3}){2,})"
)
_EXACT = 15  # digits of a number that spreadsheets keep; the others become 0
_WIDEST = 16  # digits of a zero-padded id in lists of older versions


def canonical(value: Any) -> str:
    """The one form of a patient's, study's or record's id; "" where it is unknown.

    Blanks and quotes around it go. Digits alone are a number: 211, 211.0 (as pandas
    writes them beside a blank cell) and 00211 are all "211". Other ids stay as text.
    """
    text = _written(value)
    return (text.lstrip("0") or "0") if re.fullmatch("[0-9]+", text) else text


def _written(value: Any) -> str:
    """The id with its leading zeros."""
    text = _AROUND.sub("", unicodedata.normalize("NFC", str(value)))
    if text.lower() in _NO_ID:
        return ""
    number = re.fullmatch(r"(-?[0-9]+)(\.0*|,0{0,2})", text)  # 211,000 is no 211
    return number[1] if number else text


def canonical_column(cells: Sequence[str], column: str) -> list[str]:
    """The ids of a table's column in their one form, none of them unknown.

    Args:
      column: what messages call it: its file and name.

    Raises:
      PacxError: a blank id, one that a spreadsheet shortened (1.23E+11), rounded or
        grouped (1,234), or two that look alike, or differ in leading zeros or capitals
        alone: whether these are one patient is not known.
    """
    ids, seen = [], {}
    for row, cell in enumerate(cells, start=2):
        written = _written(cell)
        if not written:
            raise PacxError(
                f"{column}, row {row}: no known id ({cell!r}); fill it in or remove "
                "the row"
            )
        if _SHORTENED.fullmatch(written):
            raise PacxError(
                f"{column}, row {row}: {cell!r} is a number that a spreadsheet has "
                "shortened, which may be several ids; export it again as text"
            )
        if _GROUPED.fullmatch(written):
            raise PacxError(
                f"{column}, row {row}: {cell!r} is a number with commas, points or "
                "blanks between its digits; export it again as text"
            )
        ids.append(canonical(written))
        other = seen.setdefault(look(ids[-1]), written)
        if other != written:
            what = "leading zeros" if canonical(other) == ids[-1] else "capitals"
            if other.casefold() != written.casefold() and what == "capitals":
                what = "blanks, dashes, quotes or the width of letters"
            raise PacxError(
                f"{column}, row {row}: has both {other!r} and {written!r}, which "
                f"differ in {what} alone; write one patient in one way, and others "
                "with a letter in front"
            )
    ends = {i: i[_EXACT:] for i in ids if i.isdecimal() and i[_EXACT:]}
    if len("".join(ends.values())) >= 4 and not "".join(ends.values()).strip("0"):
        raise PacxError(
            f"{column}: all ids of more than {_EXACT} digits end in zeros, such as "
            f"{next(iter(ends))}: a spreadsheet has rounded them, and several may have "
            "become one; export them again as text (or, if they are right, with a "
            "letter in front)"
        )
    return ids


def look(text: str) -> str:
    """What a text looks like: in any case, width, dashes and quotes, with one blank."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub("[\u200b-\u200f\u2060\ufeff]", "", text)
    text = re.sub("[\u2010-\u2015\u2212]", "-", text)
    return " ".join(re.sub("[\"'\u2018-\u201f`\u00b4]", "", text).split())


def as_written(cells: Sequence[str], ids: Sequence[str]) -> list[str]:
    """Each row's id as its table has it, if all rows of the patient do, else its form.

    Splits are drawn by it, so that those of earlier versions stay as they were.
    """
    forms: dict[str, set[str]] = {}
    for cell, who in zip(cells, ids, strict=True):
        forms.setdefault(who, set()).add(cell.strip())
    return [min(forms[who]) if len(forms[who]) == 1 else who for who in ids]


def units(ids: Iterable[Any]) -> tuple[list[str], int]:
    """What is resampled: the patient of each example, else the example itself.

    Returns:
      The unit of each example, and how many have no known patient.
    """
    known = [canonical(i) for i in ids]
    named = [f"patient {who}" if who else f"#{i}" for i, who in enumerate(known)]
    return named, known.count("")


def namespace(name: str) -> str:
    """The namespace of a data set's patient ids."""
    return NAMESPACES.get(name, name)


def key(space: str, patient: str) -> str:
    """The patient's name across data sets: "mimic/10000032".

    Ids are `canonical`; MIMIC's also come as p10000032 (its folders), the cohort's as
    7 and patient00007, and these too are one.
    """
    if BETWEEN in space:  # the id is a key itself, or a mixture's set names nobody
        return patient
    text = canonical(patient)
    if space in ("mimic", SIMULATED):
        text = canonical(re.sub(r"^(p|patient)(?=[0-9]+(\.0+)?$)", "", text))
    return f"{space}/{text}"


def older_keys(space: str, patient: str) -> set[str]:
    """What `key` may have given before ids had one form, with `key` itself.

    Lists of older workdirs have an id as their tables did: 211, 211.0, 00211.
    """
    if BETWEEN in space:
        return older_keys(*patient.split("/", 1))
    name = key(space, patient)
    text = name.removeprefix(f"{space}/")
    if not re.fullmatch("[0-9]+", text):
        return {name, f"{space}/{patient.strip()}"}
    padded = {text.zfill(width) for width in range(len(text), _WIDEST + 1)}
    return {f"{space}/{i}" for i in (text, f"{text}.0", patient.strip(), *padded)}
