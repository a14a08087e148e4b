"""Radiology reports of the cohort: a grammar over what a reader sees on the films.

The reader sees true severities with noise. Each sentence registers the label it
states, so that CheXpert's labels of a report are consistent with its text.
"""

import dataclasses

import numpy as np

from data.cohort import depth, report_page, report_words, reports
from data.cohort.report_page import ABSENT, PRESENT, UNCERTAIN, Sentence

# How often a report states that something is absent.
_NEGATED = {
    "Pneumothorax": 0.7,
    "Pleural Effusion": 0.7,
    "Consolidation": 0.6,
    "Cardiomegaly": 0.6,
    "Enlarged Cardiomediastinum": 0.4,
    "Edema": 0.4,
    "Pneumonia": 0.2,
    "Fracture": 0.1,
    "Atelectasis": 0.05,
    "Lung Lesion": 0.05,
    "Pleural Other": 0.03,
    "Lung Opacity": 0.1,
}
_LISTED = ("Consolidation", "Pleural Effusion", "Pneumothorax", "Edema")
NO_FINDINGS, NO_IMPRESSION = 0.10, 0.08  # share of reports without the section


def write(study, rng: np.random.Generator, views=("PA", "LL")):
    """Writes the report of a study.

    Args:
        study: a study from `depth.study`.
        rng: reader's noise, order and wording.
        views: fine names of the films the reader has; without a lateral, what hides
            behind the heart or in the posterior angle is hardly seen.

    Returns:
        (text, findings): the report in MIMIC-CXR's form; a value for every name of
        `reports.FINDINGS`: 1.0, 0.0, -1.0 or "" (not mentioned), as the text says.
    """
    reader = _Reader(study, rng, views)
    u = rng.random()
    body, summary = reader.findings(), reader.impression()
    if u < NO_FINDINGS:
        body = []
    elif body and u < NO_FINDINGS + NO_IMPRESSION:
        summary = []
    sections = [("EXAMINATION", report_page.examination(views))]
    sections += [("INDICATION", report_page.indication(study, rng))]
    sections += [("COMPARISON", report_page.comparison(study, rng))]
    sections += [("FINDINGS", report_page.paragraph(body))] if body else []
    sections += [("IMPRESSION", report_page.numbered(summary, rng))] if summary else []
    return report_page.page(sections), report_page.labels(body + summary)


def _severities(study, lateral: bool) -> dict[str, float]:
    """Above zero: there, as far as the films can show it."""
    out = reports.severities(study)
    hidden = 0.0 if lateral else 1.0
    behind = study.depth.retrocardiac
    out["Lung Opacity"] = (0.7 + 0.5 * behind if behind else -1.2) - 1.3 * hidden
    fluid = max(study.depth.pleural) if lateral else max(study.effusion)
    out["Pleural Effusion"] = 0.25 + 8 * (fluid - 0.03) if fluid > 0.025 else -0.9
    return out


class _Reader:
    """One reading: what is seen, and the sentences that say it."""

    def __init__(self, study, rng, views):
        self.study, self.rng = study, rng
        self.lateral = any(v in ("LL", "RL", "lateral") for v in views)
        self.true = _severities(study, self.lateral)
        self.base = self.pick(report_words.BASES)
        self.before = {}
        if study.key.study:
            prior = dataclasses.replace(study.key, study=study.key.study - 1)
            self.before = _severities(depth.study(prior), self.lateral)
        noise = rng.standard_normal(len(self.true))
        seen = {
            n: x + 0.35 * e for (n, x), e in zip(self.true.items(), noise, strict=True)
        }
        self.present = [n for n, x in seen.items() if x > 0.15]
        self.unsure = [
            n for n, x in seen.items() if abs(x) <= 0.15 and rng.random() < 0.5
        ]
        self.absent = [
            n for n, x in seen.items() if x < -0.15 and rng.random() < _NEGATED[n]
        ]

    def pick(self, options):
        """One of the options."""
        return options[int(self.rng.integers(len(options)))]

    def findings(self) -> list[Sentence]:
        """The sentences of the FINDINGS section."""
        lungs, chest = [], []
        for name in self.present:
            place = chest if name in ("Cardiomegaly", "Fracture") else lungs
            place += self.positive(name)
        for name in self.unsure:
            lungs.append(self.state(name, UNCERTAIN))
        listed = [n for n in _LISTED if n in self.absent]
        if len(listed) > 1 and self.rng.random() < 0.7:
            lungs.append(self.none_of(listed))
        else:
            listed = []
        for name in self.absent:
            if name in listed:
                continue
            gone = self.before.get(name, -1) > 0.3 and self.rng.random() < 0.6
            chest.append(self.state(name, ABSENT, gone))
        extra = self.neutral()
        groups = [lungs, chest, extra]
        self.rng.shuffle(groups)
        out = []
        for group in groups:
            self.rng.shuffle(group)
            out += group
        devices = self.devices()
        return devices + out if self.rng.random() < 0.4 else out + devices

    def impression(self) -> list[Sentence]:
        """The sentences of the IMPRESSION section: what matters, in short."""
        out = []
        order = list(self.present)
        self.rng.shuffle(order)
        for name in order[:4]:
            out += self.positive(name)
        for name in self.unsure[:2]:
            out.append(self.state(name, UNCERTAIN))
        if not out:
            out.append(Sentence(self.pick(report_words.NORMAL)))
            if "Pneumonia" in self.absent:
                out.append(self.state("Pneumonia", ABSENT))
        elif self.stable() and self.rng.random() < 0.5:
            out.append(Sentence(self.pick(report_words.STABLE)))
        return out

    def stable(self) -> bool:
        """Whether the prior study had the same findings, much alike."""
        pairs = [(x, self.before.get(n, 9.0)) for n, x in self.true.items()]
        return all(
            (x > 0) == (y > 0) and (x <= 0 or abs(x - y) < 0.4) for x, y in pairs
        )

    def state(self, name: str, status: float, gone: bool = False) -> Sentence:
        """One sentence with the finding's status, without its place."""
        own = report_words.OWN.get((name, status))
        if gone:
            options = report_words.RESOLVED
        elif own and (status != PRESENT or self.rng.random() < 0.7):
            options = own
        else:
            options = {
                PRESENT: report_words.PRESENT,
                ABSENT: report_words.ABSENT,
                UNCERTAIN: report_words.UNCERTAIN,
            }[status]
        noun = self.pick(report_words.NOUNS[name])
        if status == PRESENT:
            noun = self.described(name, noun)
        return self.fill(self.pick(options), noun, [(name, status)], name)

    def positive(self, name: str) -> list[Sentence]:
        """A finding that is there, with place, degree and change."""
        noun = self.pick(report_words.NOUNS[name])
        said = [(name, PRESENT)]
        if name == "Lung Opacity":
            spine = self.lateral and self.rng.random() < 0.5
            options = report_words.ON_SPINE if spine else report_words.BEHIND_HEART
            first = self.fill(self.pick(options), noun, said, name)
            return [self.with_diagnosis(first)]
        if name == "Pleural Effusion" and self.posterior_only():
            options = report_words.POSTERIOR_ANGLE
            noun = self.described(name, noun)
            return [self.fill(self.pick(options), noun, said, name)]
        return [self.state(name, PRESENT)]

    def with_diagnosis(self, first: Sentence) -> Sentence:
        """Adds what the opacity may be, where that is not decided otherwise."""
        pair = ["Atelectasis", "Pneumonia"]
        if self.rng.random() < 0.5 or set(pair) & {*self.present, *self.absent}:
            return first
        self.rng.shuffle(pair)
        a, b = (self.pick(report_words.NOUNS[n]) for n in pair)
        text = self.pick(report_words.DIAGNOSIS).format(a=a, b=b)
        labels = first.labels + tuple((n, UNCERTAIN) for n in pair)
        return Sentence(f"{first.text} {text}", labels)

    def posterior_only(self) -> bool:
        return self.lateral and max(self.study.effusion) == 0 < max(
            self.study.depth.pleural
        )

    def side(self) -> str:
        """The side of the pleural fluid."""
        right, left = self.study.depth.pleural
        if min(right, left) > 0.3 * max(right, left, 1e-9):
            return "bilateral"
        return "right" if right > left else "left"

    def described(self, name: str, noun: str) -> str:
        """The noun with degree, side or lobe."""
        degree = ""
        if name in report_words.DEGREES and name != "Cardiomegaly":
            degree = self.degree(name) + " " if self.rng.random() < 0.7 else ""
        if name == "Pleural Effusion":
            side = self.side()
            if side == "bilateral":
                noun = report_words.PLURALS[noun]
            return f"{degree}{side} {noun}"
        if name == "Lung Lesion":
            places = depth.nodules(self.study.patient)
            if len(places) > 1:
                noun = report_words.PLURALS[noun]
            return noun + self.place(places)
        if name in ("Consolidation", "Pneumonia") and self.study.depth.clouds:
            return noun + self.place(self.study.depth.clouds)
        if name == "Atelectasis" and self.rng.random() < 0.6:
            return f"{degree}{noun} at the {self.base}"
        return degree + noun

    def place(self, places) -> str:
        """Where the first of the places lies, in words; "" now and then."""
        if not places or self.rng.random() < 0.15:
            return ""
        at = places[0]
        height = "upper" if at.v < -0.1 else "middle" if at.w < -0.1 else "lower"
        side = "left" if at.u > 0 else "right"
        return f" in the {self.pick(report_words.LOBES[side, height])}"

    def degree(self, name: str) -> str:
        """In three steps of the true severity."""
        step = float(np.clip(self.true[name] / 0.9, 0, 2.9))
        return report_words.DEGREES[name][int(step)]

    def change(self, name: str) -> str:
        """Compared with the prior study, or ""."""
        if not self.before or self.rng.random() < 0.35:
            return ""
        now, then = self.true[name], self.before[name]
        kind = "new" if then <= 0 else "more" if now > then + 0.4 else "same"
        kind = "less" if kind == "same" and now < then - 0.4 else kind
        return self.pick(report_words.CHANGES[kind])

    def fill(self, template: str, noun: str, labels, name: str) -> Sentence:
        """Fills a template; `noun` may end in or contain the plural's mark."""
        many = "|p" in noun
        noun = noun.replace("|p", "")
        side = self.side()
        angle = "posterior costophrenic angle"
        text = template.format(
            x=noun,
            a=_article(noun, many),
            X=noun[:1].upper() + noun[1:],
            has="have" if many else "has",
            change=self.change(name),
            degree=self.degree(name) if "{degree}" in template else "",
            angle=f"{angle}s" if side == "bilateral" else f"{side} {angle}",
            **{"is": "are" if many else "is"},
        )
        return Sentence(text, tuple(labels))

    def none_of(self, names) -> Sentence:
        """One sentence that denies several findings."""
        names = list(names)
        self.rng.shuffle(names)
        nouns = [self.pick(report_words.NOUNS[n]) for n in names]
        comma = "," if len(nouns) > 2 else ""
        text = f"{', '.join(nouns[:-1])}{comma} or {nouns[-1]}"
        labels = tuple((n, ABSENT) for n in names)
        return Sentence(self.pick(report_words.NONE_OF).format(list=text), labels)

    def neutral(self) -> list[Sentence]:
        """Sentences that change no label, where they are true."""
        who, rng = self.study.patient, self.rng
        lung_free = not set(self.present + self.unsure) - {"Cardiomegaly", "Fracture"}
        fractured = "Fracture" in self.present + self.unsure
        bones = report_words.BONES[:1] if fractured else report_words.BONES
        options = (
            (report_words.CLEAR, 0.6 * lung_free),
            (report_words.INFLATED, 0.85 * (who.inflation > 0.85)),
            (report_words.SHALLOW, 0.6 * (self.study.inspiration < -1.0)),
            (report_words.AORTA, 0.35 * (who.age > 65)),
            (bones, 0.3),
            (report_words.HILA, 0.25),
        )
        return [Sentence(self.pick(o)) for o, p in options if rng.random() < p]

    def devices(self) -> list[Sentence]:
        """Pacemaker and central line."""
        have = {"pacemaker": self.study.patient.pacemaker, "line": self.study.device}
        said = (("Support Devices", PRESENT),)
        return [
            Sentence(self.pick(report_words.DEVICES[kind]), said)
            for kind, there in have.items()
            if there and self.rng.random() < 0.9
        ]


def _article(noun: str, many: bool) -> str:
    """ "a " or "an " before one thing that can be counted, else ""."""
    head = noun.partition(" in the ")[0]
    if many or not head.endswith(report_words.COUNTED):
        return ""
    return "an " if noun[0] in "aeiou" else "a "
