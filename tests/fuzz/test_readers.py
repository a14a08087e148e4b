"""Every reader of files on damaged ones: a valid result, or one line and no more.

A few examples, the same in every run. With `--soak_minutes=N` others, at random: the
bytes of one that fails, hangs or ends the process are kept in runs/soak and are read
again by the next such run, until they pass. What was found is in test_faults.py.
"""

import collections
import pathlib

import hypothesis
import pytest

from tests.fuzz import readers as fuzz

pytest.importorskip("pydicom", reason="the extra dicom is not installed")
pytest.importorskip("wfdb", reason="the extra ecg is not installed")
EXAMPLES, SOAKED = 12, 100  # a round
KEPT = pathlib.Path(__file__).parents[2] / "runs" / "soak"


@pytest.mark.parametrize("name", fuzz.readers())
def test_a_damaged_file_is_read_or_refused_in_one_line(
    name, tmp_path, rounds, soaks, monkeypatch
):
    if name == "pt":
        pytest.importorskip("torch")  # which writes it
    reader, folder = fuzz.readers()[name], tmp_path / "set"
    reader.draw(folder)
    sound = (folder / reader.file).read_bytes()
    assert fuzz.check(reader, folder, sound) == "read"
    kept, outcomes = KEPT / f"{name.replace('/', ' ')}.bin", collections.Counter()
    if soaks:
        KEPT.mkdir(parents=True, exist_ok=True)
        # By the clock: a soak beside other work may wait long for its turn.
        monkeypatch.setattr(fuzz, "SECONDS", 120)
        if kept.exists():
            fuzz.check(reader, folder, kept.read_bytes())

    @hypothesis.settings(
        max_examples=SOAKED if soaks else EXAMPLES,
        derandomize=not soaks,
        database=None,
        deadline=None,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    @hypothesis.given(reader.damage([sound, *reader.seeds()]))
    def one(data):
        if soaks:
            kept.write_bytes(data)
        outcomes[fuzz.check(reader, folder, data)] += 1

    with fuzz.limited_memory():
        for _ in rounds:
            one()
    if soaks:
        kept.unlink()
        print(f"{name}: {dict(outcomes)}")  # shown by -rP
