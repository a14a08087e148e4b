"""Every reader of files on damaged ones: a valid result, or one line and no more.

A few examples, the same in every run; `launch/soak.py` draws others for as long as one
likes. What it found is in test_faults.py.
"""

import hypothesis
import pytest

from tests.fuzz import readers as fuzz

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
pytest.importorskip("wfdb", reason="the extra ecg is not installed")
EXAMPLES = 12


@pytest.mark.parametrize("name", fuzz.readers())
def test_a_damaged_file_is_read_or_refused_in_one_line(name, tmp_path):
    if name == "pt":
        pytest.importorskip("torch")  # which writes it
    reader, folder = fuzz.readers()[name], tmp_path / "set"
    reader.draw(folder)
    sound = (folder / reader.file).read_bytes()
    assert fuzz.check(reader, folder, sound) == "read"

    @hypothesis.settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(reader.damage([sound, *reader.seeds()]))
    def one(data):
        fuzz.check(reader, folder, data)

    one()
