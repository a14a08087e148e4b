"""Radiology reports: their text from bytes, and the sections that are cut out of it.

`sections` reads a report as follows.

1. Where a line says FINAL REPORT, what stands above it (a preliminary reading) is left
   out. Where several do, the last one counts.
2. A heading begins a line and ends in a colon: words in capitals, or in any case one of
   the headings named here. Its section goes to the next heading or the end.
3. FINDINGS (also FINDING, OBSERVATIONS, REPORT) and IMPRESSION (also IMPRESSIONS,
   CONCLUSION, CONCLUSIONS, OPINION, SUMMARY, INTERPRETATION) are kept. FINDINGS AND
   IMPRESSION, in any order and however joined, is an impression. Several sections of
   one kind are joined. All others are left out: INDICATION, HISTORY, TECHNIQUE,
   COMPARISON, NOTIFICATION, RECOMMENDATION, ADDENDUM, WET READ, ...
4. Without FINDINGS, a section whose heading names the image, such as PA AND LATERAL
   VIEWS OF THE CHEST, is the findings if it has at least MIN_WORDS words.
5. Where this gives neither, the last paragraph (blank lines divide them) of at least
   MIN_WORDS words is the impression, unless it begins with a heading.
6. White space becomes single blanks; a section longer than LONGEST words is cut there.
"""

from __future__ import annotations

import re
from typing import NamedTuple

MIN_WORDS = 4
LONGEST = 2_000  # words of a section; the longest that radiologists write have hundreds
BYTES = 4 * 2**20  # of a file; a report has a few thousand

_FINDINGS = "findings, finding, observations, report"
_IMPRESSION = (
    "impression, impressions, conclusion, conclusions, opinion, summary, "
    "interpretation, findings and impression, findings impression, impression and "
    "findings, impression findings, findings and impressions, findings conclusion, "
    "findings and conclusion"
)
_KINDS = dict.fromkeys(_FINDINGS.split(", "), "findings")
_KINDS |= dict.fromkeys(_IMPRESSION.split(", "), "impression")
_IMAGE = re.compile(r"\b(chest|views?|radiographs?|frontal|lateral|portable|ap|pa)\b")
_NAMED = "|".join(sorted((k.replace(" ", r"[ /,&]+") for k in _KINDS), reverse=True))
_HEADING = re.compile(
    rf"^[ \t]*([A-Z][A-Z /,&()\-]{{1,58}}|(?i:{_NAMED}))[ \t]*:", re.MULTILINE
)
_FINAL = re.compile(r"^[ \t]*FINAL REPORT[ \t]*$", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]{2,}")


class Sections(NamedTuple):
    """Two sections of a report, each "" where there is none.

    Attributes:
      findings, impression: their text.
      cut: whether one was longer than LONGEST words.
    """

    findings: str
    impression: str
    cut: bool


def decode(data: bytes) -> tuple[str, bool]:
    """The text of a report's bytes, and whether they were other than UTF-8.

    UTF-16 is known by its first bytes; else each byte is a character of Windows-1252,
    as old systems have it.
    """
    encoding = "utf-8-sig"
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif b"\0" in data[:2]:
        encoding = "utf-16-be" if data[0] == 0 else "utf-16-le"
    try:
        return data.decode(encoding), encoding != "utf-8-sig"
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace"), True


def sections(text: str) -> Sections:
    """The findings and the impression of a report, by the rules above."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _FINAL.split(text)[-1]
    headings = list(_HEADING.finditer(text))
    found: dict[str, list[str]] = {"findings": [], "impression": [], "image": []}
    ends = [heading.start() for heading in headings[1:]] + [len(text)]
    for heading, end in zip(headings, ends, strict=False):
        body = text[heading.end() : end]
        name = " ".join(re.findall("[a-z]+", heading[1].lower()))
        kind = _KINDS.get(name, "image" if _IMAGE.search(name) else "")
        if kind and (kind != "image" or len(_WORD.findall(body)) >= MIN_WORDS):
            found[kind].append(body)
    findings = clip(" ".join(found["findings"] or found["image"]))
    impression = clip(" ".join(found["impression"]))
    if not findings[0] and not impression[0]:
        impression = clip(_last_paragraph(text))
    return Sections(findings[0], impression[0], findings[1] or impression[1])


def clip(text: str) -> tuple[str, bool]:
    """The text in single blanks, at most LONGEST words, and whether it had more."""
    words = text.split()
    return " ".join(words[:LONGEST]), len(words) > LONGEST


def _last_paragraph(text: str) -> str:
    paragraphs = re.split(r"\n[ \t]*\n", text)
    written = [p for p in paragraphs if len(_WORD.findall(p)) >= MIN_WORDS]
    return "" if not written or _HEADING.match(written[-1]) else written[-1]


class Tally:
    """Counts what was unusual about reports, for lines to tell."""

    def __init__(self) -> None:
        self._other: list[str] = []
        self._cut: list[str] = []

    def add(self, name: str, *, other: bool = False, cut: bool = False) -> None:
        """Counts one report that messages call `name`."""
        self._other += [name] if other else []
        self._cut += [name] if cut else []

    def told(self) -> list[str]:
        """Lines for people."""
        pairs = (
            (self._other, "reports are not in UTF-8 and are read as UTF-16 or CP1252"),
            (self._cut, f"reports have more than {LONGEST} words and are cut there"),
        )
        return [
            f"{len(names)} {what}, the first is {names[0]}"
            for names, what in pairs
            if names
        ]
