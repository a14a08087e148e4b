"""The form of a report: MIMIC-CXR's sections around what `report_text` says."""

import dataclasses
import textwrap

from data.cohort import report_words, reports

PRESENT, ABSENT, UNCERTAIN = 1.0, 0.0, -1.0


@dataclasses.dataclass(frozen=True)
class Sentence:
    """A text and the (finding, status) it states."""

    text: str
    labels: tuple[tuple[str, float], ...] = ()


def examination(views) -> str:
    """Names the films as the hospital's system does."""
    frontal = next((v for v in views if v in ("PA", "AP")), None)
    side = any(v in ("LL", "RL") for v in views)
    if frontal and side:
        return f"CHEST ({frontal} AND LAT)"
    if frontal:
        return "CHEST (PORTABLE AP)" if frontal == "AP" else "CHEST (PA)"
    return "CHEST (LATERAL)"


def indication(study, rng) -> str:
    """A complaint that fits the causes, and a question."""
    causes = {"fluid": study.fluid, "inflammation": study.inflammation, "other": 0.4}
    kind = max(causes, key=lambda k: causes[k] + 0.8 * rng.standard_normal())
    complaint = rng.choice(report_words.COMPLAINTS[kind])
    sex = "M" if study.patient.male else "F"
    question = rng.choice(report_words.QUESTIONS)
    return f"___{sex} with {complaint}  // {question}"


def comparison(study, rng) -> str:
    """The date of the prior study, blanked out, or that there is none."""
    if not study.key.study:
        return "None." if rng.random() < 0.7 else "None available."
    return "Chest radiograph ___." if rng.random() < 0.6 else "___."


def paragraph(sentences) -> str:
    """The sentences in a row."""
    return " ".join(s.text for s in sentences)


def numbered(sentences, rng) -> str:
    """A list with numbers, or a paragraph."""
    if len(sentences) < 2 or rng.random() < 0.5:
        return paragraph(sentences)
    return "\n".join(f"{i}. {s.text}" for i, s in enumerate(sentences, 1))


def page(sections) -> str:
    """The sections as MIMIC-CXR's text files set them."""
    lines = [" " * 33 + "FINAL REPORT"]
    for name, text in sections:
        if name in ("FINDINGS", "IMPRESSION"):
            lines += [f" {name}:", " "]
            for part in text.split("\n"):
                lines += [f" {line}" for line in textwrap.wrap(part, 76)]
        else:
            lines += [f" {name}:  {text}"]
        lines += [" "]
    return "\n".join(lines[:-1]) + "\n"


def labels(sentences) -> dict[str, float | str]:
    """What the sentences state together: present before open before absent."""
    out: dict[str, float | str] = dict.fromkeys(reports.FINDINGS, "")
    rank = {"": 0, ABSENT: 1, UNCERTAIN: 2, PRESENT: 3}
    for sentence in sentences:
        for name, status in sentence.labels:
            if rank[status] > rank[out[name]]:
                out[name] = status
    ill = any(
        out[n] in (PRESENT, UNCERTAIN)
        for n in reports.FINDINGS
        if n not in ("Support Devices", "No Finding")
    )
    out["No Finding"] = "" if ill else PRESENT
    return out
