"""Tokenizers of reports: trained on the training split alone, read, refused."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from pacx_jax import files
from pacx_jax.commands import train_tokenizer
from pacx_jax.errors import PacxError
from pacx_jax.input import tokenizer
from tests import report_sets

ROOT = pathlib.Path(__file__).resolve().parents[2]
WANTED = ("impression",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("tokenizer") / "tokenizer.json")
    made, _ = tokenizer.train_on(report_sets.source(), path, 1000, WANTED)
    return made


def test_texts_come_back_but_for_case_and_blanks(trained):
    text = "No effusion.   There is EDEMA."
    ids = trained.encode(text, 20)
    assert ids.dtype == np.int32 and ids.shape == (20,)
    assert ids[0] == trained.start_id and trained.unk_id not in ids
    assert trained.decode(ids).replace(" .", ".") == "no effusion. there is edema."
    assert trained.decode([trained.start_id, trained.end_id, ids[1]]) == ""


def test_a_text_ends_in_its_sign_and_padding(trained):
    ids = list(trained.encode("No edema.", 8))
    end = ids.index(trained.end_id)
    assert ids[end + 1 :] == [trained.pad_id] * (7 - end)
    assert ids[1:end] == trained.ids("No edema.")


def test_a_long_text_is_cut_and_ended(trained):
    ids = trained.encode("edema " * 50, 10)
    assert ids[0] == trained.start_id and ids[-1] == trained.end_id
    assert trained.pad_id not in ids


def test_letters_that_training_did_not_have_are_unknown(trained):
    assert trained.unk_id in trained.encode("\u6c34", 10)
    about = tokenizer.coverage(trained, ["edema \u6c34", "edema " * 9], 8)
    assert about["unknown"] == pytest.approx(1 / 11)
    assert about["cut"] == 1 and about["tokens"] == 5.5


def test_the_same_reports_give_the_same_bytes_in_every_process():
    code = """
import hashlib
from pacx_jax.input import tokenizer
from tests import report_sets
made = tokenizer.train(report_sets.texts(300, seed=1), 1000)
print(hashlib.sha256(made.to_str().encode()).hexdigest())
"""
    found = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True,
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)},
        ).stdout
        for seed in "12"
    }  # fmt: skip
    assert len(found) == 1


def test_sidecar_says_what_it_was_trained_on(trained):
    about = json.loads(pathlib.Path(trained.path + tokenizer.SIDECAR).read_text())
    assert about == {
        "split": "train", "fingerprint": "300 examples", "namespace": "of the tests",
        "sections": ["impression"], "reports": 200, "vocab_size": trained.vocab_size,
        "sha256": files.sha256(trained.path),
    }  # fmt: skip
    assert trained.sha256 == about["sha256"]


def test_a_tokenizer_without_a_sidecar_is_taken(trained, tmp_path):
    path = tmp_path / "other.json"
    path.write_bytes(pathlib.Path(trained.path).read_bytes())
    assert tokenizer.load(path, "train").vocab_size == trained.vocab_size


def test_a_vocabulary_of_test_reports_is_refused(tmp_path):
    path = str(tmp_path / "t.json")
    made = tokenizer.train_on(report_sets.source(split="test"), path, 1000, WANTED)[0]
    assert made.vocab_size < 1000
    with pytest.raises(PacxError, match=r"trained on test reports \(refused\)"):
        tokenizer.load(path, "train")


def test_a_sidecar_of_another_file_is_refused(trained, tmp_path):
    path = tmp_path / "t.json"
    path.write_text(json.dumps(json.loads(pathlib.Path(trained.path).read_text())))
    sidecar = pathlib.Path(trained.path + tokenizer.SIDECAR)
    (tmp_path / "t.json.pacx.json").write_bytes(sidecar.read_bytes())
    with pytest.raises(PacxError, match="says what another tokenizer than"):
        tokenizer.load(path)


def test_files_that_are_no_tokenizer_are_one_line_each(trained, tmp_path):
    path = tmp_path / "t.json"
    with pytest.raises(PacxError, match="no such file"):
        tokenizer.load(path)
    for content in ("", "{}", "[]", "words\n", '{"model": {"type": "WordPiece"}}'):
        path.write_text(content)
        with pytest.raises(PacxError, match=r"no tokenizer.json \(.*pacx tokenizer"):
            tokenizer.load(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PacxError, match="no tokenizer.json"):
        tokenizer.load(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(PacxError, match="git-lfs pointer"):
        tokenizer.load(path)


def test_a_tokenizer_that_fails_at_unknown_letters_is_refused(trained, tmp_path):
    content = json.loads(pathlib.Path(trained.path).read_text())
    content["model"]["unk_token"] = "<unknown>"
    path = tmp_path / "t.json"
    path.write_text(json.dumps(content))
    with pytest.raises(PacxError, match="no tokenizer.json .*[Mm]issing"):
        tokenizer.load(path)


def test_a_tokenizer_without_the_special_tokens_is_refused(trained, tmp_path):
    content = pathlib.Path(trained.path).read_text()
    path = tmp_path / "t.json"
    path.write_text(content.replace("[CLS]", "<s>").replace("[SEP]", "</s>"))
    with pytest.raises(PacxError, match=r"without \[CLS\], \[SEP\]: give one that has"):
        tokenizer.load(path)


def test_truncation_and_padding_of_a_given_tokenizer_are_ours(trained, tmp_path):
    inner = tokenizer.load(trained.path).inner
    inner.enable_truncation(3)
    inner.enable_padding(length=30)
    path = tmp_path / "t.json"
    inner.save(str(path))
    text = "No edema. Small effusion."
    np.testing.assert_array_equal(
        tokenizer.load(path).encode(text, 20), trained.encode(text, 20)
    )


@pytest.mark.parametrize(
    ("texts", "size", "message"),
    [
        ([], 1000, "no report to train a tokenizer on"),
        (["edema"], 10, "--vocab_size=10: give at least 1000"),
        (
            ["".join(map(chr, range(0x4E00, 0x5000))).replace("", " ")], 1000,
            "--vocab_size=1000: the reports have 512 letters and signs, so give more",
        ),
    ],
)  # fmt: skip
def test_reports_that_give_no_vocabulary_are_one_line(texts, size, message):
    with pytest.raises(PacxError, match=message):
        tokenizer.train(texts, size)


def run(monkeypatch, source, *flags):
    asked = []

    def opened(data, split):
        asked.append((data.path, data.source, split))
        return source

    monkeypatch.setattr(train_tokenizer.sources, "open_source", opened)
    return train_tokenizer.main(
        [*flags, "--data=somewhere", "--vocab_size=1000"]
    ), asked


def test_command_trains_on_the_training_split_and_tells(monkeypatch, tmp_path, capsys):
    source = report_sets.source()
    source.examples[0] = None
    source.examples[1] |= {"impression": " ___ \n"}
    source.examples[3] |= {"impression": "edema " * 20_000}
    source.examples[4] |= {"impression": "Derrame \u00c3\u00a1 izquierdo"}
    target = tmp_path / "t.json"
    code, asked = run(monkeypatch, source, f"--target={target}")
    out = capsys.readouterr().out
    assert code == 0 and asked == [("somewhere", "prepared", "train")]
    assert tokenizer.load(target, "train").vocab_size < 1000
    assert "reports: 198 of 199 studies, 300 examples" in out
    for line in ("1 studies without a report", "1 reports of more than 2000 words: cut",
                 "1 reports with letters of another encoding", "1 examples that cannot",
                 "1 reports have more than the 300 tokens"):  # fmt: skip
        assert line in out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--split=test",), "trained on test reports (refused)"),
        (("--split=Val",), "trained on Val reports (refused)"),
        (("--sections=history",), "report_sections ('history',): give one or more of"),
        (("--vocab_size=0",), "--vocab_size=0: give at least 1000"),
    ],
)
def test_command_refuses_in_one_line(monkeypatch, tmp_path, capsys, flags, message):
    code, _ = run(monkeypatch, report_sets.source(), f"--target={tmp_path}/t", *flags)
    if flags[0].startswith("--vocab"):
        code = train_tokenizer.main(["--data=x", f"--target={tmp_path}/t", *flags])
    assert code == 2 and message in capsys.readouterr().err


def test_data_without_reports_are_refused(monkeypatch, tmp_path, capsys):
    source = report_sets.Source([{"image": b"", "path": "a.png"}])
    assert run(monkeypatch, source, f"--target={tmp_path}/t")[0] == 2
    assert "train split has no impression" in capsys.readouterr().err
