"""Findings a radiology report would mention, in CheXpert's encoding.

CheXpert labels are read from reports by a program: 1.0 mentioned as present, 0.0 as
absent, -1.0 as uncertain, and blank, the most frequent, not mentioned at all.
"""

FINDINGS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
SYMILE_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Edema",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
)


def severities(study) -> dict[str, float]:
    """How ill the films look: above zero, a finding is there."""
    who = study.patient
    heart = 0.8 * who.dilation + 0.35 * who.lv_mass + 0.25 * study.ap - 0.9
    effusion = 10 * (max(study.effusion) - 0.10)
    shallow = -study.inspiration + 0.4 * study.ap - 1.2
    pneumonia = 1.5 * (study.consolidation > 0) + 0.8 * study.inflammation - 2.0
    return {
        "Cardiomegaly": heart,
        "Enlarged Cardiomediastinum": 0.6 * heart - 0.9,
        "Lung Lesion": 1.6 * (who.nodules > 0) - 1.0,
        "Edema": 1.2 * (study.fluid - 0.9),
        "Consolidation": 2.0 * (study.consolidation > 0) - 1.3,
        "Pneumonia": pneumonia,
        "Atelectasis": shallow,
        "Pneumothorax": -2.6,
        "Pleural Effusion": effusion,
        "Pleural Other": -2.4,
        "Fracture": -2.2 + 0.02 * (who.age - 61),
    }


def findings(study, *, complete: bool = False) -> dict[str, float | str]:
    """Reads a study's report.

    Args:
        study: a `latents.Study`.
        complete: label every finding 0.0 or 1.0, as CheXpert's valid.csv does, instead
            of leaving uncertain and unmentioned ones.

    Returns:
        A value for every name of FINDINGS: 1.0, 0.0, -1.0 or "" (not mentioned).
    """
    rng = study.key.rng("reports")
    severity = severities(study)
    out: dict[str, float | str] = dict.fromkeys(FINDINGS, "")
    noise = rng.standard_normal(len(severity))
    mention = rng.random(len(severity))
    for (name, x), e, u in zip(severity.items(), noise, mention, strict=True):
        seen = x + 0.35 * e
        if complete:
            out[name] = float(seen > 0)
        elif seen > 0.15:
            out[name] = 1.0
        elif abs(seen) <= 0.15:
            out[name] = -1.0 if u < 0.5 else ""
        else:
            out[name] = 0.0 if u < 0.18 else ""
    opaque = any(
        out[n] == 1.0 for n in ("Edema", "Consolidation", "Pneumonia", "Lung Lesion")
    )
    blank = 0.0 if complete else ""
    out["Lung Opacity"] = 1.0 if opaque else blank
    devices = study.patient.pacemaker or study.device
    out["Support Devices"] = 1.0 if devices else blank
    ill = any(out[n] in (1.0, -1.0) for n in FINDINGS if n != "Support Devices")
    out["No Finding"] = blank if ill else 1.0
    return out
