"""Reports of examples: cleaning, studies, and tokens for a batch."""

import cloudpickle
import numpy as np
import pytest

from pacx_jax.errors import PacxError
from pacx_jax.input import reports, tokenizer, transforms
from pacx_jax.modalities import report
from tests import report_sets


class Data:
    """A config's data."""

    def __init__(self, **fields):
        self.__dict__.update(fields)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    tokenizer.train_on(report_sets.source(), path, 1000, ("impression",))
    return path


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("  No\n\n edema.\t", "No edema."),
        ("Seen by ___ on ____/__/2010.", "Seen by on / /2010."),
        ("Compared to XXXX, XXXX-year-old", "Compared to , -year-old"),
        ("snake_case stays, XX too", "snake_case stays, XX too"),
        ("zero\x00width\u200b and \u00a0 blank", "zero width and blank"),
        ("Peque\u00f1o derrame", "Peque\u00f1o derrame"),
        ("___", ""),
    ],
)
def test_cleaning(text, want):
    assert reports.clean(text) == want


def test_20000_words_are_cut_to_those_that_are_read():
    assert len(reports.clean("word " * 20_000).split()) == reports.LONGEST


def test_sections_are_joined_in_the_order_asked_for():
    one = {"findings": "Clear.\n", "impression": "Normal. "}
    assert reports.text_of(one, ("findings", "impression")) == "Clear. Normal."
    assert reports.text_of(one, ("impression", "findings")) == "Normal. Clear."
    assert reports.text_of({"impression": None}, ("impression", "findings")) == ""
    assert reports.sections("findings, impression") == ("findings", "impression")
    for wrong in ((), ("history",), ("findings", "findings")):
        with pytest.raises(PacxError, match="config.data.report_sections"):
            reports.sections(wrong)


def test_a_study_counts_once_however_many_images_share_its_report():
    e = report_sets.example
    examples = [e(1, 1, "a"), e(1, 1, "a", view=1), e(1, 2, "b"), e(2, 1, "c"),
                e(2, 2, ""), e(3, "", "d"), e(3, "", "d", view=1)]  # fmt: skip
    found = reports.read(report_sets.Source(examples), ("impression",))
    assert found.texts == ["a", "b", "c", "d", "d"]
    assert (found.images, found.studies) == (7, 6)
    assert found.counts == {"no report": 1}
    assert found.first == {"no report": "p2/s2/0.jpg"}


def test_studies_of_a_mixtures_sets_are_different():
    source = report_sets.Source([report_sets.example(1, 1, "a")] * 2)
    source.set_numbers = lambda: np.array([0, 1])
    assert reports.read(source, ("impression",)).texts == ["a", "a"]


@pytest.mark.parametrize(
    ("text", "foreign"),
    [("\ufffd", True), ("\u00c3\u00b1", True), ("it\u00e2\u20ac\u2122s", True),
     ("se\u00f1al \u00c1rea", False), ("37 \u00b0C, \u2265 5", False)],
)  # fmt: skip
def test_letters_of_another_encoding_are_counted(text, foreign):
    source = report_sets.Source([report_sets.example(1, 1, text)])
    found = reports.read(source, ("impression",))
    assert found.counts["encoding"] == foreign
    assert any("another encoding" in line for line in found.lines()) == foreign


def test_reader_gives_tokens_and_whether_there_are_any(path):
    data = Data(tokenizer=path, report_length=16)
    reader = report.reader(data)
    assert reader.requires == ("impression",)
    chosen = transforms.make("", data, train=True, entries=(), readers=(reader,))
    rng, made = np.random.default_rng(0), tokenizer.load(path)
    one = chosen(report_sets.example(1, 1, "No edema."), rng)
    assert set(one) == {"report_tokens", "report_present"}
    np.testing.assert_array_equal(one["report_tokens"], made.encode("No edema.", 16))
    assert one["report_present"] == 1 and one["report_present"].dtype == np.float32
    for empty in ("", " ___ \n"):
        none = chosen(report_sets.example(1, 1, empty, "Findings alone."), rng)
        assert none["report_present"] == 0
        assert (none["report_tokens"] == made.pad_id).all()
        assert none["report_tokens"].dtype == np.int32


def test_reader_of_other_sections_requires_and_reads_these(path):
    both = report.reader(
        Data(tokenizer=path, report_sections=("findings", "impression"))
    )
    assert both.requires == ("findings", "impression")
    one = report_sets.example(1, 1, "No edema.", "Small effusion.")
    tokens = both.load(one, "")["report_tokens"]
    assert tokens.shape == (300,)
    made = tokenizer.load(path)
    assert made.decode(tokens).startswith("small effusion")
    assert not report.missing(one) and report.missing(report_sets.example(1, 1, ""))


def test_reader_travels_to_other_processes(path):
    reader = cloudpickle.loads(cloudpickle.dumps(report.reader(Data(tokenizer=path))))
    one = report_sets.example(1, 1, "No edema.")
    assert reader.load(one, "")["report_present"] == 1


def test_settings_name_the_tokenizer_by_its_hash(path):
    found, made = report.settings(Data(tokenizer=path)), tokenizer.load(path)
    assert found["sha256"] == made.sha256
    assert found["vocab_size"] == made.vocab_size
    ids = [found[f"{name}_id"] for name in ("pad", "unk", "start", "end")]
    assert ids == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer": ""}, "config.data.tokenizer is empty"),
        ({"report_length": 2}, "config.data.report_length 2: give at least 3"),
        ({"report_sections": ()}, "config.data.report_sections"),
        ({"train_split": "fold1"}, r"trained on train reports \(refused\)"),
    ],
)
def test_fields_that_make_no_sense_are_one_line(path, fields, message):
    with pytest.raises(PacxError, match=message):
        report.settings(Data(**{"tokenizer": path} | fields))


def test_a_tokenizer_that_changed_meanwhile_is_one_line(path, tmp_path):
    copy = tmp_path / "t.json"
    copy.write_bytes(open(path, "rb").read())
    reader = report.reader(Data(tokenizer=str(copy)))
    tokenizer.train_on(report_sets.source(50), str(copy), 1000, ("impression",))
    with pytest.raises(PacxError, match="changed while the run went on"):
        reader.load(report_sets.example(1, 1, "No edema."), "")
