"""Views of a chest X-ray: one table for what data sets call them.

A view has a fine name (FINE), as far as its source says, and one of three coarse ones
(COARSE), which models embed. Where the name comes from is its origin (ORIGINS).
"""

from __future__ import annotations

import collections
import functools
import re
from collections.abc import Iterable
from typing import NamedTuple

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
    "chest lateral, large lateral",
    # Known, and neither: obliques, ribs, and tables' own words for nothing.
    "unknown": "unknown, unk, u, na, nan, none, other, oblique, lao, rao, lpo, rpo, "
    "costal, exclude, lordotic, ap lordotic, oblicua, generica",
}
_FINER = {"AP": "AP supine"}  # also a coarse name, by each of its fine ones
_RULES = {word: name for name, words in _WORDS.items() for word in words.split(", ")}


@functools.lru_cache(4096)
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


class Settled(NamedTuple):
    """What several statements on one image's view come to.

    Attributes:
      view: a key of FINE.
      origin: one of ORIGINS, of the statement that was taken.
      strange: texts that no rule knows.
      conflict: two texts that cannot both be right, as a message shows them, or "".
    """

    view: str
    origin: str
    strange: tuple[str, ...] = ()
    conflict: str = ""


def settle(claims: Iterable[tuple[str, str]]) -> Settled:
    """The view that (origin, text) pairs state together; earlier ones take precedence.

    Of two that agree the finer one counts: frontal and PA are PA, AP and AP supine are
    AP supine. PA and AP are frontal, LL and RL lateral, frontal and lateral unknown,
    and all these are a conflict.

    >>> settle([("listed", "Frontal"), ("listed", "AP")]).view
    'AP'
    >>> settle([("listed", "PA"), ("DICOM", "LATERAL")]).conflict
    "'PA' (listed) and 'LATERAL' (DICOM)"
    """
    claims = tuple(claims)
    strange = tuple(text for _, text in claims if parse(text) is None)
    known = [(o, t, parse(t)) for o, t in claims if parse(t) not in (None, "unknown")]
    if not known:
        return Settled("unknown", claims[0][0] if claims else "listed", strange)
    origin, text, view = known[0]
    for other_origin, other_text, other in known[1:]:
        joined = _joined(view, other)
        if joined is None:
            conflict = f"{text!r} ({origin}) and {other_text!r} ({other_origin})"
            both = FINE[view] if FINE[view] == FINE[other] else "unknown"
            return Settled(both, origin, strange, conflict)
        if joined != view:
            origin, text, view = other_origin, other_text, joined
    return Settled(view, origin, strange)


def _joined(one: str, two: str) -> str | None:
    """The finer of two names that agree; None if they do not."""
    for broad, fine in ((one, two), (two, one)):
        if broad in (fine, FINE[fine]) or _FINER.get(broad) == fine:
            return fine
    return None


class Tally:
    """Settles the views of a data set's images, and counts what there is to tell."""

    def __init__(self) -> None:
        self._views: collections.Counter[str] = collections.Counter()
        self._origins: collections.Counter[str] = collections.Counter()
        self._strange: collections.Counter[str] = collections.Counter()
        self._conflicts: collections.Counter[str] = collections.Counter()
        self._settle = functools.lru_cache(4096)(settle)  # sets say few things

    def settle(self, claims: Iterable[tuple[str, str]]) -> Settled:
        """`settle` of one image, counted."""
        settled = self._settle(tuple(claims))
        self._views[settled.view] += 1
        if settled.view != "unknown":
            self._origins[settled.origin] += 1
        self._strange.update(settled.strange[:1])
        self._conflicts.update([settled.conflict] if settled.conflict else [])
        return settled

    def told(self) -> list[str]:
        """Lines for people: how many of each view, and what was wrong with them."""
        if not self._views:
            return []
        lines = [f"views: {_counts(self._views, FINE)}"]
        if self._origins:
            lines[0] += f" (by origin: {_counts(self._origins, ORIGINS)})"
        if number := self._strange.total():
            shown = _counts({repr(k): n for k, n in self._strange.items()})
            lines.append(f"{number} images have a view that no rule knows: {shown}")
        if number := self._conflicts.total():
            lines.append(
                f"{number} images have views that contradict each other and count as "
                f"what both allow: {_counts(self._conflicts)}"
            )
        return lines


def _counts(counts: dict[str, int], order: Iterable[str] = (), most: int = 8) -> str:
    """ "PA 3, AP 2": in the order given, else the most frequent first."""
    names = [name for name in order if name in counts]
    names = names or sorted(counts, key=lambda name: (-counts[name], name))
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"{name} {counts[name]}" for name in names[:most]) + more
