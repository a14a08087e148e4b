"""data/prepare.py --check: what it finds in damaged sets."""

import hashlib
import json
import re

import numpy as np
import pytest

from data import prepare, records
from pacx_jax.input import images
from pacx_jax.input import prepared as manifests


@pytest.fixture
def target(tmp_path, capsys):
    root, target = tmp_path / "films", tmp_path / "out"
    root.mkdir()
    rows = ["path,patient_id,y,split"]
    for i in range(6):
        grey = np.random.default_rng(i).integers(0, 255, (20, 20), dtype=np.uint8)
        (root / f"{i}.png").write_bytes(images.encode_png(grey))
        rows.append(f"{i}.png,p{i},{i % 2},{'train' if i < 4 else 'val'}")
    (root / "labels.csv").write_text("\n".join(rows))
    assert prepare.main(["folder", f"--source={root}", f"--target={target}"]) == 0
    capsys.readouterr()
    return target


@pytest.fixture
def check(target, capsys):
    def command(*flags):
        code = prepare.main([*flags, "--check", f"--target={target}"])
        out, err = capsys.readouterr()
        errors = [line for line in err.splitlines() if line.startswith("error: ")]
        return code, json.loads(out.splitlines()[-1]) if out else None, errors

    return command


def change(target, **fields):
    """Changes fields of the manifest."""
    path = target / manifests.FILE
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def rewrite(target, file, data):
    """Replaces a file by another one, whose sum the manifest then states."""
    (target / file).write_bytes(data)
    manifest = json.loads((target / manifests.FILE).read_text())
    size, digest = len(data), hashlib.sha256(data).hexdigest()
    files, sums = manifest["files"] | {file: size}, manifest["sha256"] | {file: digest}
    change(target, files=files, sha256=sums)


def test_a_good_set_is_good(check):
    code, report, errors = check()
    assert code == 0 and not errors and report["status"] == "good"
    assert report["counts"] == {"train": 4, "val": 2}
    assert report["positives"] == {"train": {"y": 2}, "val": {"y": 1}}
    assert check("folder")[0] == 0
    assert check("tb")[0] == 2


RECORDS = "folder-train.array_record-00000-of-00001"


def _flip(target):
    data = bytearray((target / RECORDS).read_bytes())
    data[bytes(data).index(b"PNG") + 100] ^= 1
    (target / RECORDS).write_bytes(data)


def _no_image(target):
    """A record whose image cannot be decoded, in a file whose sum is right."""
    source = records.tfds.builder_from_directory(str(target))
    raw = {"image": records.tfds.decode.SkipDecoding()}
    examples = list(source.as_data_source("train", decoders=raw))
    examples[3]["image"] = examples[3]["image"][:60]
    path = target.parent / "other"
    writer = records.tfds.core.file_adapters.ArrayRecordFileAdapter
    features = source.info.features
    writer.write_examples(
        path, [(i, features.serialize_example(e)) for i, e in enumerate(examples)]
    )
    rewrite(target, RECORDS, path.read_bytes())


DAMAGES = {
    "flipped bit": (
        _flip,
        [f"{RECORDS}: other contents", "train\\[", "readable examples"],
    ),
    "cut off": (
        lambda t: (t / RECORDS).write_bytes(b"x"),
        ["1 bytes, .* were written", "no record was read"],
    ),
    "missing": (
        lambda t: (t / "features.json").unlink(),
        ["features.json: cannot be read \\(No such file", "no record was read"],
    ),
    "image": (
        _no_image,
        ["train\\[3\\] 3.png: unreadable", "train: 3 readable", "train: 1 of y"],
    ),
    "other counts": (
        lambda t: change(
            t, summary={"positives": {"train": {"y": 2}, "val": {"y": 2}}}
        ),
        ["val: 1 of y are 1, 2 were written"],
    ),
    "patients": (
        lambda t: rewrite(t, "patients-val.json", b'["p4", "p9"]'),
        ["val\\[1\\] 5.png: patient 'p5', but 'p9'", "val: 1 readable", "val: 0 of y"],
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_one_line_each_and_exit_code_2(target, check, case):
    damage, messages = DAMAGES[case]
    damage(target)
    code, report, errors = check()
    assert code == 2 and report["status"] == "damaged"
    assert errors == [f"error: {line}" for line in report["problems"]]
    for message in messages:
        assert any(re.search(message, line) for line in errors), message
