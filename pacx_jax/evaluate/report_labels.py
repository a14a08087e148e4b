"""Labels of report text by rules: CheXpert's 14 findings, each mention judged.

  1   present         somebody says that it is there
  -1  uncertain       possible, may be, cannot be excluded, versus
  0   absent          denied, normal, not seen, resolved
  NaN not mentioned

In a sentence, every word for a finding (MENTIONS) is a mention. The nearest trigger
before it within its scope decides, else one behind it, else it is present. Of several
mentions of a finding, present counts before uncertain before absent. Heart and
mediastinum are judged by their adjectives too ("heart size is normal"). "No Finding" is
1 where no other finding but support devices is present or uncertain, else NaN, and NaN
for an empty text.

The words and rules are ours: they cover the grammar of the embedded cohort and common
English reports. They are no CheXpert labeler; compare models by them, not papers.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np

NO_FINDING, DEVICES = "No Finding", "Support Devices"
PRESENT, UNCERTAIN, ABSENT = 1.0, -1.0, 0.0

# Finding -> what names it, as regular expressions of lower-case text.
MENTIONS = {
    "Enlarged Cardiomediastinum": r"(cardio)?mediastinal (widening|enlargement)|"
    r"(widening|enlargement) of the (cardio)?mediastinum|"
    r"(widened|enlarged|wide) (cardio)?mediastin(um|al \w+)|mediastinal shift",
    "Cardiomegaly": r"cardiomegaly|(cardiac|heart) enlargement|(enlarged|large) "
    r"(heart|cardiac silhouette)|enlargement of the (heart|cardiac silhouette)",
    "Lung Opacity": r"opacit(y|ies)|opacifications?|infiltrates?|infiltration|"
    r"(airspace|air space|parenchymal) disease|interstitial (markings|pattern)",
    "Lung Lesion": r"nodules?|nodular (lesion|densit|opacit)\w*|mass(es)?(?! effect)|"
    r"(pulmonary|lung|cavitary|parenchymal) lesions?|neoplasms?|carcinoma|tumors?",
    "Edema": r"(?<!tissue )o?edema|(vascular|venous|pulmonary) congestion|"
    r"(congestive )?heart failure|fluid overload|chf",
    "Consolidation": r"consolidations?|consolidated",
    "Pneumonia": r"(broncho)?pneumonias?|pneumonic|infections?|infectious( process)?",
    "Atelectasis": r"atelecta\w+|volume loss|(lung|lobar|lobe) collapse|"
    r"collapse of the \w+ (\w+ )?(lobe|lung)",
    "Pneumothorax": r"pneumothora(x|ces)",
    "Pleural Effusion": r"(?<!pericardial )effusions?|pleural fluid|hydrothorax|"
    r"fluid in the pleural space",
    "Pleural Other": r"pleural (thickening|scarring|scar|plaques?|fibrosis|"
    r"calcifications?)|fibrothorax|thickening of the pleura",
    "Fracture": r"fractur\w+",
    DEVICES: r"pacemakers?|defibrillator|icd|pacer|catheters?|picc( line)?|"
    r"(central|venous|arterial|subclavian|jugular) lines?|lines and tubes|"
    r"port-?a-?cath|(endotracheal|tracheostomy|nasogastric|orogastric|enteric|"
    r"feeding|chest|ng|et) tubes?|sternotomy wires|prosthetic valve|stents?|devices?|"
    r"swan-ganz|balloon pump|leads?",
}
FINDINGS = (NO_FINDING, *MENTIONS)

# An organ, up to four words, and its state.
_HEART = r"\b(heart|cardiac (silhouette|size|contour|shadow)|cardiopericardial \w+)\b"
_MEDIASTINUM = (
    r"\b((cardio)?mediastinum|(cardio)?mediastinal( and hilar)? (contours?|"
    r"silhouettes?|structures|borders?|width))\b"
)
_BETWEEN = r"(?P<between>( [a-z-]+){0,5}?) "
_LARGE = r"(?P<large>enlarged|widened|prominent|increased in size|wide|large)"
_BORDERLINE = r"(?P<open>borderline)"
_NORMAL = r"(?P<normal>normal|unremarkable|within normal limits|clear)"
ORGANS = {
    "Cardiomegaly": _HEART,
    "Enlarged Cardiomediastinum": _MEDIASTINUM,
}

# Words that only look like a denial, or that deny a change.
_PSEUDO = (
    r"no (significant |relevant |substantial |appreciable |interval |acute |obvious |"
    r"short-?term )*(change|increase|decrease|difference)s?( (in|of|from))?|"
    r"not (significantly |substantially )?(changed|increased|decreased)|"
    r"without (significant |interval )*change|not only"
)
_UNCERTAIN_BEFORE = (
    r"possibl[ey]|probabl[ey]|likely|questionabl[ey]|question of|suspected|"
    r"suspicious for|suspicion (of|for)|concern(ing)? (of|for)|worrisome for|"
    r"may|might|could|can represent|cannot exclude|cannot rule out|not exclude|"
    r"borderline|differential\w*|consider|equivocal|suggest\w*|versus|vs|rule out|"
    r"r/o|\?"
)
_UNCERTAIN_AFTER = (
    r"(can ?not|could not|not) be (entirely |completely )?(excluded|ruled out)|"
    r"not (entirely |completely )?excluded|(is|are|remains?) "
    r"(possible|likely|suspected|questionable|probable|a consideration)|"
    r"(may|might|could) be( present)?|versus|vs"
)
_NEGATIVE_BEFORE = (
    r"no|not|without|negative for|(free|clear) of|absence of|absent|den(y|ies)|nor|"
    r"neither|resolution of|resolved|removal of|never|cleared"
)
_NEGATIVE_AFTER = (
    r"(is|are|was|were|has|have)? ?(been )?(not|no longer) (been )?"
    r"(definitely |clearly )?(seen|present|identified|visuali[sz]ed|visible|"
    r"appreciated|evident|detected|noted|demonstrated|found)|"
    r"((has|have) )?(since |completely |now )?(resolved|cleared)|(is|are) absent|"
    r"(has|have) been (removed|ruled out|excluded)|(is|are) (ruled out|excluded)|"
    r"(is|are|was|were) removed|ruled out"
)
# What ends the scope of a trigger before a mention. A new thought may begin after a
# comma with a size, but not where the sentence goes on to "or": that is a list.
_ENDS = (
    r"\b(but|however|although|though|except|apart from|aside from|which|while|whereas|"
    r"there (is|are|has|was|were)|otherwise|yet)\b|,\s*(with|and (a|the)|now|new|small|"
    r"mild|moderate|large|stable|unchanged|persistent|bibasilar|increased)\b"
    r"(?!.*\b(or|nor)\b)"
)


def labels(text: str) -> np.ndarray:
    """float32 (14,), in the order of FINDINGS; see the module for the values."""
    found: dict[str, float] = {}
    rank = {ABSENT: 0, UNCERTAIN: 1, PRESENT: 2}
    for name, status in mentions(text):
        if name not in found or rank[status] > rank[found[name]]:
            found[name] = status
    out = np.full(len(FINDINGS), np.nan, np.float32)
    for i, name in enumerate(FINDINGS):
        out[i] = found.get(name, np.nan)
    ill = [n for n, s in found.items() if s != ABSENT and n != DEVICES]
    if text.strip() and not ill:
        out[0] = PRESENT
    return out


def label(texts: Sequence[str]) -> np.ndarray:
    """float32 (n, 14) of texts."""
    return np.stack([labels(t) for t in texts]) if len(texts) else _none()


def _none() -> np.ndarray:
    return np.zeros((0, len(FINDINGS)), np.float32)


def mentions(text: str) -> Iterator[tuple[str, float]]:
    """(finding, status) of every mention, in order within each finding."""
    for sentence in sentences(text):
        for name, pattern in ORGANS.items():
            yield from _of_organ(sentence, name, pattern)
        marked = _PATTERN.sub(lambda m: "@" * len(m[0]), sentence)
        for name, pattern in _COMPILED.items():
            for m in pattern.finditer(sentence):
                before, after = marked[: m.start()], marked[m.end() :]
                yield name, _status(before, after)


def sentences(text: str) -> list[str]:
    """Sentences in lower case, their blanks as a writer sets them.

    A tokenizer's decoder puts blanks around signs: "left - sided", "no edema .".
    """
    text = re.sub(r"\s*([-/'])\s*", r"\1", " ".join(text.lower().split()))
    text = re.sub(r"\s+([.,;:?!])", r"\1", text)
    text = re.sub(r"\b(dr|vs|approx|e\.g|i\.e)\.", r"\1", text)
    text = re.sub(_PSEUDO_WORDS, lambda m: "=" * len(m[0]), text)
    parts = re.split(r"(?<!\d)[.;!](?!\d)|[.;:](?=\s|$)", text)
    return [part.strip() for part in parts if part.strip()]


def _of_organ(sentence: str, name: str, pattern: str) -> Iterator[tuple[str, float]]:
    """Heart or mediastinum with an adjective behind it, or "normal" before it."""
    for m in re.finditer(
        f"{pattern}{_BETWEEN}({_LARGE}|{_BORDERLINE}|{_NORMAL})\\b", sentence
    ):
        between = m["between"]
        if m["open"]:
            yield name, UNCERTAIN
        elif m["large"]:
            if re.search(rf"\b({_UNCERTAIN_BEFORE})\b", between):
                yield name, UNCERTAIN
            else:
                yield name, ABSENT if re.search(r"\b(not|no)\b", between) else PRESENT
        else:
            yield name, ABSENT
    if re.search(rf"\bnormal (size of the )?{pattern}", sentence):
        yield name, ABSENT
    if re.search(rf"\bnormal (\w+ )?size of the {pattern}", sentence):
        yield name, ABSENT


def _status(before: str, after: str) -> float:
    """Returns whether a mention is present, absent or uncertain.

    Args:
      before, after: the sentence around it, other mentions as @.
    """
    ends = [m.start() for m in re.finditer(_ENDS, f"{before}@{after}")]
    scope = before[max((e for e in ends if e < len(before)), default=0) :]
    triggers = [(m.end(), ABSENT) for m in _NEGATIVE.finditer(scope)]
    triggers += [(m.end(), UNCERTAIN) for m in _OPEN.finditer(scope)]
    nearest = max(triggers, default=None)
    behind = _behind(after)
    if re.search(rf"\b({_UNCERTAIN_AFTER})", behind):
        return UNCERTAIN
    if nearest:
        return nearest[1]
    if re.search(rf"\b({_NEGATIVE_AFTER})\b", behind):
        return ABSENT
    return PRESENT


def _behind(after: str) -> str:
    """What may speak of a mention after it: up to a comma that begins another thought.

    A list goes on: in "edema, effusion and pneumonia are not seen", all three are
    denied.
    """
    m = re.search(_ENDS, after)
    parts = (after[: m.start()] if m else after).split(",")
    joined = [i for i, part in enumerate(parts) if re.match(r"\s*(and|or|nor)\b", part)]
    last = joined[-1] if joined else 0
    listed = all("@" in part and len(part.split()) < 5 for part in parts[1:last])
    return " ".join(parts[: last + 1 if listed else 1])


_COMPILED = {n: re.compile(rf"\b({p})\b") for n, p in MENTIONS.items()}
_PATTERN = re.compile("|".join(rf"\b(?:{p})\b" for p in MENTIONS.values()))
_PSEUDO_WORDS = re.compile(rf"\b({_PSEUDO})\b")
_NEGATIVE = re.compile(rf"(?<![\w-])({_NEGATIVE_BEFORE})\b")
_OPEN = re.compile(rf"(?<![\w-])({_UNCERTAIN_BEFORE})(?!\w)")
