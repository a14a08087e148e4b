"""Labels of report text: mention, denial, doubt."""

import re

import numpy as np
import pytest

from pacx_jax.evaluate import report_labels

NAMES = {
    "ecm": "Enlarged Cardiomediastinum", "heart": "Cardiomegaly",
    "opacity": "Lung Opacity", "lesion": "Lung Lesion", "edema": "Edema",
    "consolidation": "Consolidation", "pneumonia": "Pneumonia",
    "atelectasis": "Atelectasis", "ptx": "Pneumothorax",
    "effusion": "Pleural Effusion", "pleura": "Pleural Other",
    "fracture": "Fracture", "devices": "Support Devices",
}  # fmt: skip


def stated(text: str) -> dict[str, float]:
    """What a text states, but for "No Finding"."""
    short = {v: k for k, v in NAMES.items()}
    values = zip(
        report_labels.FINDINGS[1:], report_labels.labels(text)[1:], strict=True
    )
    return {short[name]: float(x) for name, x in values if not np.isnan(x)}


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("There is a small left pleural effusion.", {"effusion": 1}),
        ("No pleural effusion.", {"effusion": 0}),
        ("Possible small effusion.", {"effusion": -1}),
        ("The lungs are clear.", {}),
        ("Pulmonary edema, unchanged.", {"edema": 1}),
        ("The heart is moderately enlarged, increased.", {"heart": 1}),
        ("The cardiac silhouette is possibly enlarged.", {"heart": -1}),
        ("The heart may be enlarged.", {"heart": -1}),
        ("Heart size is within normal limits.", {"heart": 0}),
        ("Heart size is borderline.", {"heart": -1}),
        ("The heart is not enlarged.", {"heart": 0}),
        ("Normal heart size.", {"heart": 0}),
        ("Opacity behind the heart, increased.", {"opacity": 1}),
        ("The cardiomediastinal silhouette is unremarkable.", {"ecm": 0}),
        ("The mediastinum is widened.", {"ecm": 1}),
        ("Widening of the mediastinum.", {"ecm": 1}),
        ("Pleural thickening at the apex.", {"pleura": 1}),
        ("Rib fractures are noted.", {"fracture": 1}),
        ("Several pulmonary nodules.", {"lesion": 1}),
        ("Left base volume loss.", {"atelectasis": 1}),
        ("Left pectoral pacemaker.", {"devices": 1}),
        ("The chest tube has been removed.", {"devices": 0}),
        ("A pericardial effusion is present.", {}),
    ],
)
def test_one_mention(text, want):
    assert stated(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [
        # A denial covers a list, and ends at a turn.
        ("No edema, consolidation, or effusion.",
         {"edema": 0, "consolidation": 0, "effusion": 0}),
        ("There is no pneumothorax but there is a small effusion.",
         {"ptx": 0, "effusion": 1}),
        ("No edema, with small effusions.", {"edema": 0, "effusion": 1}),
        ("No pneumothorax; right effusion.", {"ptx": 0, "effusion": 1}),
        ("Without consolidation. Effusion.", {"consolidation": 0, "effusion": 1}),
        ("No edema, large effusion, or pneumothorax.",
         {"edema": 0, "effusion": 0, "ptx": 0}),
        ("The lungs are clear of consolidation or edema.",
         {"consolidation": 0, "edema": 0}),
        # The nearest trigger counts.
        ("No effusion, possible pneumonia.", {"effusion": 0, "pneumonia": -1}),
        # Behind the mention.
        ("Pneumothorax is not seen.", {"ptx": 0}),
        ("Edema, effusion, and pneumonia are not seen.",
         {"edema": 0, "effusion": 0, "pneumonia": 0}),
        ("Small effusion, pneumothorax is not seen.", {"effusion": 1, "ptx": 0}),
        ("Previously seen effusions have resolved.", {"effusion": 0}),
        ("Prior consolidation is no longer seen.", {"consolidation": 0}),
        ("Pneumonia cannot be excluded.", {"pneumonia": -1}),
        ("Pneumonia is possible.", {"pneumonia": -1}),
        ("The study is negative for pneumonia.", {"pneumonia": 0}),
        # Doubt over a list, and between two.
        ("Findings could reflect atelectasis or pneumonia.",
         {"atelectasis": -1, "pneumonia": -1}),
        ("Left base atelectasis versus pneumonia.",
         {"atelectasis": -1, "pneumonia": -1}),
        ("Opacity suspicious for pneumonia.", {"opacity": 1, "pneumonia": -1}),
        # What denies a change denies no finding.
        ("No significant change in the effusion.", {"effusion": 1}),
        ("Edema is not significantly changed.", {"edema": 1}),
        # Present before uncertain before absent.
        ("No effusion on the left. Right effusion.", {"effusion": 1}),
        ("No pneumonia. Pneumonia cannot be excluded.", {"pneumonia": -1}),
        # As a tokenizer's decoder writes.
        ("no evidence of pneumothorax . left - sided effusion , increased .",
         {"ptx": 0, "effusion": 1}),
        # Numbered, and with a number in a sentence.
        ("1. No edema.\n2. A 1.5 cm\n nodule.", {"edema": 0, "lesion": 1}),
    ],
)  # fmt: skip
def test_scope(text, want):
    assert stated(text) == want


@pytest.mark.parametrize(
    ("text", "want"),
    [("Normal chest.", 1), ("No effusion.", 1), ("Pacemaker.", 1), ("Effusion.", None),
     ("Possible effusion.", None), ("", None), (" \n", None)],
)  # fmt: skip
def test_no_finding_is_the_absence_of_all_but_devices(text, want):
    found = report_labels.labels(text)[0]
    assert np.isnan(found) if want is None else found == want


def test_labels_of_texts_are_rows():
    found = report_labels.label(["Effusion.", ""])
    assert found.shape == (2, 14) and found.dtype == np.float32
    assert np.isnan(found[1]).all()
    assert report_labels.label([]).shape == (0, 14)


def test_a_long_text_of_nonsense_is_labelled_in_no_time_to_speak_of():
    text = "no " * 3000 + "the heart " * 3000 + "@" * 3000 + " , " * 3000
    assert report_labels.labels(text).shape == (14,)


def body(text: str) -> str:
    """The sections FINDINGS and IMPRESSION of a report in MIMIC-CXR's form."""
    parts = re.split(r"^ *([A-Z ]+):", text, flags=re.MULTILINE)[1:]
    named = zip(parts[::2], parts[1::2], strict=True)
    return " ".join(part for name, part in named if name in ("FINDINGS", "IMPRESSION"))


def test_the_cohorts_reports_are_read_as_they_were_written():
    report_text = pytest.importorskip(
        "data.cohort.report_text", reason="the cohort has no reports here"
    )
    from data.cohort import depth, latents

    wrong, count = [], 0
    for patient, studies in latents.plan(0, "mimic_test", 60):
        for k in range(studies):
            study = depth.study(latents.Key(0, "mimic_test", patient, k))
            for views in (("PA", "LL"), ("AP",)):
                rng = np.random.default_rng([patient, k])
                text, written = report_text.write(study, rng, views)
                assert tuple(written) == report_labels.FINDINGS
                want = [np.nan if v == "" else v for v in written.values()]
                got = report_labels.labels(body(text))
                count += len(want)
                wrong += [(name, g, w, text) for name, g, w in
                          zip(written, got, want, strict=True)
                          if not np.array_equal(g, w, equal_nan=True)]  # fmt: skip
    assert count > 500 and not wrong
