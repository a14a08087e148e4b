"""Views of a chest X-ray: one table for what data sets call them.

A view has a fine name (FINE), as far as its source says, and one of three coarse ones
(COARSE), which models embed. Where the name comes from is its origin (ORIGINS).
"""

from __future__ import annotations

import re

COARSE = ("frontal", "lateral", "unknown")
# Fine name -> coarse name. LL: the left side at the detector; RL: the right side.
FINE = {
    "PA": "frontal",
    "AP": "frontal",
    "AP supine": "frontal",
    "LL": "lateral",
    "RL": "lateral",
    "frontal": "frontal",
    "lateral": "lateral",
    "unknown": "unknown",
}
# listed: a table of the data set says so; DICOM: the file's header; guessed: from the
# image's name or place.
ORIGINS = ("listed", "DICOM", "guessed")

# What data sets write, without case and punctuation -> fine name.
_WORDS = {
    "PA": "pa, postero anterior, posteroanterior, posterior anterior, pa lld, pa rld, "
    "pa erect, chest pa",
    "AP": "ap, antero posterior, anteroposterior, anterior posterior, ap axial, "
    "ap lld, ap rld, ap erect, ap upright, ap portable, portable, chest ap, ap sitting",
    "AP supine": "ap supine, ap horizontal, supine, ap lying",
    "LL": "ll, l, left lateral, lateral left, l lateral, lat l",
    "RL": "rl, r, right lateral, lateral right, r lateral, lat r",
    "frontal": "frontal, front, f",
    "lateral": "lateral, lat, side, xtable lateral, x table lateral, swimmers, "
    "chest lateral",
    # Known, and neither: obliques, ribs, and tables' own words for nothing.
    "unknown": "unknown, unk, u, na, nan, none, other, oblique, lao, rao, lpo, rpo, "
    "costal, exclude, lordotic, ap lordotic",
}
_RULES = {word: name for name, words in _WORDS.items() for word in words.split(", ")}


def parse(text: str) -> str | None:
    """The fine name of a view as a data set writes it.

    Returns:
      A key of FINE, "unknown" for an empty cell; None where no rule knows the text.

    >>> parse("Postero-Anterior"), parse("AP_horizontal"), parse(""), parse("mammo")
    ('PA', 'AP supine', 'unknown', None)
    """
    words = re.sub(r"[^a-z0-9]+", " ", str(text).lower()).strip()
    return _RULES.get(words) if words else "unknown"


def coarse(name: str) -> str:
    """The coarse name of a fine one."""
    return FINE[name]


def number(name: str) -> int:
    """The coarse view as models embed it: 0 frontal, 1 lateral, 2 unknown."""
    return COARSE.index(FINE[name])
