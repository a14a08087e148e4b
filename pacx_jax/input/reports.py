"""Texts of radiology reports: sections, cleaning, and the studies of a source."""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pacx_jax.errors import PacxError

SECTIONS = ("findings", "impression")  # entries of an example that are report text
LONGEST = 2000  # words of a report that are read; a normal one has 20 to 300
# What stands for removed names and dates: MIMIC's ___, Open-i's XXXX.
_REMOVED = re.compile(r"_{2,}|\bX{3,}\b")
# Letters of UTF-8 that were read as Latin-1 or Windows-1252, and lost ones.
_FOREIGN = re.compile("\ufffd|[\u00c2\u00c3][\u0080-\u00bf]|\u00e2\u20ac")


def sections(wanted: Any) -> tuple[str, ...]:
    """Checks `config.data.report_sections`, a tuple or names with commas between."""
    if isinstance(wanted, str):
        wanted = [name.strip() for name in wanted.split(",")]
    found = tuple(wanted)
    if not found or set(found) - set(SECTIONS) or len(set(found)) < len(found):
        raise PacxError(
            f"config.data.report_sections {found}: give one or more of "
            f"{', '.join(SECTIONS)}, each once"
        )
    return found


def clean(text: str) -> str:
    """One line of text: removed names and dates go, blanks are single.

    ___ and XXXX, which stand for what was removed, become a blank; so do line breaks,
    other runs of blanks, and unprintable characters. Case and digits stay: the
    tokenizer's normalizer decides about them. At most LONGEST words are kept.
    """
    text = _REMOVED.sub(" ", text)
    text = "".join(c if c.isprintable() else " " for c in text)
    return " ".join(text.split()[:LONGEST])


def text_of(example: Mapping[str, Any], wanted: Sequence[str]) -> str:
    """The cleaned text of an example's sections, in this order; "" without any."""
    return clean(" ".join(str(example.get(name) or "") for name in wanted))


@dataclasses.dataclass
class Reports:
    """What `read` found.

    Attributes:
      texts: cleaned, one a study that has some, in the order of the source.
      images: examples of the source.
      studies: different studies among them.
      counts: problem -> studies that have it. "no report"; "cut", of more than LONGEST
        words; "encoding", letters of another encoding than UTF-8; "unreadable", of
        examples.
      first: problem -> name of the first such example.
    """

    texts: list[str]
    images: int = 0
    studies: int = 0
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    first: dict[str, str] = dataclasses.field(default_factory=dict)

    def lines(self) -> list[str]:
        """What to print: a line for the whole, and one for each problem."""
        words = {
            "no report": "studies without a report: nothing to learn from, left out",
            "cut": f"reports of more than {LONGEST} words: cut there",
            "encoding": "reports with letters of another encoding: write them as UTF-8",
            "unreadable": "examples that cannot be read: left out",
        }
        head = f"reports: {len(self.texts)} of {self.studies} studies, {self.images} "
        return [f"{head}examples"] + [
            f"{self.counts[kind]} {text} (the first: {self.first[kind]})"
            for kind, text in words.items()
            if self.counts[kind]
        ]


def read(source, wanted: Sequence[str]) -> Reports:
    """Reads the reports of a source, each study's once though several images share it.

    A study is a patient's `study_id` (of one set of a mixture). An example without a
    study id is a study of its own.

    Raises:
      PacxError: the data hold no reports.
    """
    if not set(wanted) & set(source.entries):
        raise PacxError(
            f"the {source.split} split has no {' and no '.join(wanted)} (it has "
            f"{', '.join(source.entries)}): give data with reports, such as MIMIC-CXR's"
        )
    found, seen = Reports([], len(source)), set()

    def problem(kind, name):
        found.counts[kind] += 1
        found.first.setdefault(kind, name)

    for i, study, example in _examples(source):
        if example is None:
            problem("unreadable", source.name(i))
            continue
        if study in seen:
            continue
        seen.add(study)
        name = str(example.get("path", "")) or f"{source.split}[{i}]"
        raw = " ".join(str(example.get(s) or "") for s in wanted)
        text = clean(raw)
        if not text:
            problem("no report", name)
            continue
        if len(raw.split()) > LONGEST:
            problem("cut", name)
        if _FOREIGN.search(raw):
            problem("encoding", name)
        found.texts.append(text)
    found.studies = len(seen)
    return found


def _examples(source) -> Iterator[tuple[int, tuple, dict[str, Any] | None]]:
    """(row, study, example) of every example; None for what cannot be read."""
    numbers = source.set_numbers() if hasattr(source, "set_numbers") else None
    for i in range(len(source)):
        try:
            example = source[i]
        except PacxError:
            yield i, (), None
            continue
        study = str(example.get("study_id", ""))
        of = 0 if numbers is None else int(numbers[i])
        key = (of, str(example.get("patient_id", "")), study) if study else (i,)
        yield i, key, example
