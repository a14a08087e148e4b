"""The XML reports of Open-i (NLMCXR): sections, indexing terms and image ids.

A document with a DOCTYPE is refused before it is parsed: entities are declared in one,
and a few bytes of them can expand to gigabytes. Open-i's reports have none.
"""

from __future__ import annotations

import dataclasses
import pathlib
import xml.etree.ElementTree as ElementTree
from xml.parsers import expat

from data import reports
from pacx_jax import files
from pacx_jax.errors import PacxError, one_line

BYTES = 2**20  # of a report; the longest published has 22 KB


@dataclasses.dataclass(frozen=True)
class Report:
    """One report.

    Attributes:
      name: its uId, "CXR1".
      findings, impression: the sections, "" where they are blank.
      cut: whether one was longer than `reports.LONGEST` words.
      terms: the major MeSH terms, with their qualifiers.
      images: ids of its images.
    """

    name: str
    findings: str
    impression: str
    cut: bool
    terms: tuple[str, ...]
    images: tuple[str, ...]


def read(path: pathlib.Path) -> Report:
    """Reads a report; PacxError if it is none, damaged, or declares entities."""
    root = tree(path, "XML report")
    name = root.find("uId")
    if name is None or not name.get("id", "").strip():
        raise PacxError(f"{path}: names no study (no uId); get it again")
    texts: dict[str, list[str]] = {"FINDINGS": [], "IMPRESSION": []}
    for part in root.iter("AbstractText"):
        kept = texts.get(part.get("Label", "").strip().upper())
        if kept is not None:
            kept.append("".join(part.itertext()))
    findings, long = reports.clip(" ".join(texts["FINDINGS"]))
    impression, longer = reports.clip(" ".join(texts["IMPRESSION"]))
    return Report(
        name.get("id", "").strip(),
        findings,
        impression,
        long or longer,
        tuple(t for e in root.iter("major") if (t := (e.text or "").strip())),
        tuple(i for e in root.iter("parentImage") if (i := e.get("id", "").strip())),
    )


def tree(path: pathlib.Path, what: str) -> ElementTree.Element:
    """The root of an XML file; PacxError if it is none, or declares entities."""
    data = files.read_bytes(path, BYTES + 1)
    try:
        if len(data) > BYTES:
            raise ValueError(f"more than {BYTES} bytes")
        _refuse_doctype(data)
        return ElementTree.fromstring(data)
    except (ValueError, LookupError, ElementTree.ParseError, expat.ExpatError) as error:
        raise PacxError(
            f"{path}: no readable {what} ({one_line(error)}); get it again"
        ) from None


def _refuse_doctype(data: bytes) -> None:
    """ValueError for a document that may declare entities."""

    def refuse(*_) -> None:
        raise ValueError("a DOCTYPE, which may declare entities")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse
    parser.Parse(data, True)
