"""Hospital tables as exports have them: ids, times and numbers, right or one line."""

import pathlib
import re

import numpy as np
import pytest

from data.medmod import stays as medmod_stays
from data.mimic_labs import events, items
from data.mimic_vitals import stays
from pacx_jax.errors import PacxError
from tests.data.test_prepare_mimic_labs import draw, plain_events
from tests.data.test_prepare_mimic_vitals import draw as draw_vitals
from tests.data.test_prepare_mimic_vitals import plain

WHERE = {number: str(number) for number in items.IDS}


def labs(root):
    admissions = events.read_stays(root / "hosp/admissions.csv")
    known = events.read_labels(root / "hosp/d_labitems.csv")
    return events.earliest(root / "hosp/labevents.csv", admissions, WHERE, known)


def change(path: pathlib.Path, pattern: str, new: str):
    text = path.read_text()
    assert re.search(pattern, text, re.MULTILINE), text
    path.write_text(re.sub(pattern, new, text, flags=re.MULTILINE))


# (table, pattern, what an export made of it): pandas writes floats where a cell is
# blank, BigQuery a T, Excel quotes.
SAME = {
    "float patients": ("admissions", r"^(\d+),", r"\1.0,"),
    "float patients of events": ("labevents", r"^(\d+),(\d+),", r"\1,\2.0,"),
    "padded ids": ("admissions", r"^(\d),1", r"000\1, 1"),
    "float items": ("labevents", ",50983,", ",50983.0,"),
    "float items of the list": ("d_labitems", r"^(\d+),", r"\1.0,"),
    "T": ("labevents", r"(2180-05-07) ", r"\1T"),
    "fractions": ("labevents", r"(2180-05-07 \d\d:\d\d:\d\d)", r"\1.000"),
    "no seconds": ("admissions", "12:00:00", "12:00"),
    "quotes": ("admissions", r"(2180-05-07 12:00:00)", r'"\1"'),
}


@pytest.mark.parametrize("case", SAME)
def test_other_spellings_of_ids_and_times_are_the_same(tmp_path, case):
    want = labs(draw(tmp_path / "a", plain_events(), zipped=False))
    assert np.isfinite(want.values).sum() == 8
    root = draw(tmp_path / "b", plain_events(), zipped=False)
    table, pattern, new = SAME[case]
    change(root / f"hosp/{table}.csv", pattern, new)
    found = labs(root)
    np.testing.assert_array_equal(found.values, want.values)
    assert found.dropped == want.dropped == {}


# (table, pattern, new, the one line)
REFUSED = {
    "shortened": (
        "admissions",
        "^3,",
        "1.23E+07,",
        "row 5: '1.23E.07' is a number that",
    ),
    "two forms": ("admissions", "^3,103", "02,103", "has both '2' and '02'"),
    "blank stay": ("admissions", "^3,103", "3,nan", "'hadm_id', row 5: no known id"),
    "blank time": (
        "admissions",
        "^(3,103),[^,]*",
        r"\1,NaT",
        "row 5 is an admission wit",
    ),
    "day alone": ("labevents", " 13:00:00", "", "row 2 has the charttime '2180-05-07'"),
    "American": (
        "labevents",
        "2180-05-07 1",
        "5/7/2180 1",
        "charttime '5/7/2180 13:00",
    ),
    "a serial number": (
        "admissions",
        "2180[^,]*",
        "102345.5",
        "admittime '102345.5'; it",
    ),
    "a time zone": ("labevents", "13:00:00", "13:00:00+01:00", "must be such as 2180"),
    "decimal commas": (
        "labevents",
        ",13(.),mEq",
        r',"13\1,0",mEq',
        "valuenum '130,0'; w",
    ),
    "columns twice": ("labevents", "storetime", "charttime", "are called 'charttime'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_may_be_another_id_time_or_number_is_refused(tmp_path, case):
    table, pattern, new, message = REFUSED[case]
    root = draw(tmp_path / "a", plain_events(), zipped=False)
    change(root / f"hosp/{table}.csv", pattern, new)
    with pytest.raises(PacxError, match=f"{table}.csv.*{message}"):
        labs(root)


def test_vital_signs_are_of_the_stay_in_any_spelling(tmp_path):
    want = stays.read(stays.paths(draw_vitals(tmp_path / "a", plain(), zipped=False)))
    root = draw_vitals(tmp_path / "b", plain(), zipped=False)
    change(root / "ed/triage.csv", r"^(\d),(\d+),", r"\1.0,\2.0,")
    change(root / "ed/edstays.csv", r"^(\d),(\d*),", r"0\1,\2.0,")
    change(root / "ed/edstays.csv", r"^07,\.0,", "07,nan,")
    found = stays.read(stays.paths(root))
    np.testing.assert_array_equal(found.values, want.values)
    assert found.hadm_ids == want.hadm_ids and found.stays == want.stays
    change(root / "ed/triage.csv", ",98.6,71", ',"98,6",71')
    with pytest.raises(PacxError, match="row 3 has the temperature '98,6'; write num"):
        stays.read(stays.paths(root))


def test_a_film_without_its_time_is_refused(tmp_path):
    metadata = tmp_path / medmod_stays.METADATA[1]
    metadata.write_text(
        "dicom_id,subject_id,study_id,StudyDate,StudyTime\nd,7.0,5.0,21800507.0,93014\n"
    )
    stay = medmod_stays.Stay("", "7", "1", np.zeros(1), 0.0, (0.0, 1e12))
    (found,) = medmod_stays.link([stay], tmp_path, tmp_path)
    assert found.film == "files/p7/p7/s5/d.jpg"
    change(metadata, ",93014", ",")
    with pytest.raises(
        PacxError, match="image d has the StudyDate .* and StudyTime ''"
    ):
        medmod_stays.link([stay], tmp_path, tmp_path)
