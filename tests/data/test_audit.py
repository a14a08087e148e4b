"""data/audit.py: what sets share, found exactly and fast."""

import json
import pathlib

import numpy as np
import pytest

from data import audit, prepare, twins
from pacx_jax.input import images
from tests.data import test_prepare

REAL = pathlib.Path(__file__).resolve().parents[3] / "shared" / "realdata" / "cxr"


@pytest.fixture
def run(capsys):
    """Runs the command in this process: (exit code, JSON of the last line, output)."""

    def command(*argv):
        capsys.readouterr()
        try:
            code = audit.main([str(a) for a in argv])
        except SystemExit as error:
            code = error.code
        out, err = capsys.readouterr()
        report = json.loads(out.splitlines()[-1]) if code < 2 else None
        return code, report, out if code < 2 else err

    return command


def film(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return images.resize_to(rng.integers(0, 255, (9, 8), dtype=np.uint8), 200, 180)


def draw(root, rows):
    """A folder of (name, patient, split, pixels or encoded bytes)."""
    root.mkdir()
    lines = ["path,patient_id,split"]
    for name, patient, split, image in rows:
        data = image if isinstance(image, bytes) else images.encode_png(image)
        (root / name).write_bytes(data)
        lines.append(f"{name},{patient},{split}")
    (root / "labels.csv").write_text("\n".join(lines))
    return root


def shared(report, a, b):
    found = [r for r in report["shared"] if (r["a"], r["b"]) == (a, b)]
    return found[0] if found else None


def test_disjoint_sets_have_no_findings(tmp_path, run):
    one = draw(
        tmp_path / "one",
        [("a.png", "1", "train", film(1)), ("b.png", "2", "test", film(2))],
    )
    two = draw(tmp_path / "two", [("c.png", "3", "train", film(3))])
    code, report, out = run(one, two, "--fail")
    assert code == 0 and report["findings"] == 0 and report["compared"] == 3
    assert "nothing found in 3 pairs of splits" in out


def test_shared_patients_and_images_are_counted_and_said_loudly(tmp_path, run):
    one = draw(
        tmp_path / "one",
        [
            ("a.png", "1", "train", film(1)),
            ("b.png", "2", "train", film(2)),
            ("copy.png", "3", "test", film(1)),
            ("small.jpg", "4", "test", images.encode_jpeg(images.shrink(film(2), 90))),
        ],
    )
    rgb = np.repeat(film(1)[..., None], 3, -1)
    two = draw(
        tmp_path / "two", [("c.png", "2", "val", film(5)), ("d.png", "9", "val", rgb)]
    )
    code, report, out = run(one, two)
    assert code == 0 and run(one, two, "--fail")[0] == 1
    row = shared(report, "one:train", "one:test")
    assert row["within_one_set"] and row["patients"] == 0
    assert row["identical"] == [1, 1] and row["near"] == [1, 1]
    assert row["examples"][0] == [f"{one}/a.png", f"{one}/copy.png"]
    between = shared(report, "one:train", "two:val")
    assert between["patients"] == 1 and not between["within_one_set"]
    assert between["identical"] == [1, 1] and between["near"] == [0, 0]
    assert "3 OF 3 PAIRS OF SPLITS SHARE" in out


def test_namespaces_keep_ids_of_different_data_sets_apart(tmp_path, run):
    one = draw(tmp_path / "one", [("a.png", "10000032", "train", film(1))])
    two = draw(tmp_path / "two", [("b.png", "p10000032", "train", film(2))])
    assert run(f"nih14={one}", f"chexpert={two}")[1]["findings"] == 0
    code, report, _ = run(f"symile_mimic={one}", f"mimic={two}")
    assert report["findings"] == 1 and report["shared"][0]["patients"] == 1
    assert {s["namespace"] for s in report["sets"]} == {"mimic"}


def test_prepared_sets_are_read_with_patients_and_studies(tmp_path, run):
    # One patient's X-ray is in train, and again in a folder of test images.
    root = tmp_path / "CheXpert-v1.0"
    for split, patient in (("train", 1), ("valid", 2)):
        path = f"{split}/patient{patient:05d}/study1/view1_frontal.jpg"
        (root / path).parent.mkdir(parents=True)
        (root / path).write_bytes(images.encode_jpeg(film(patient)))
        (root / f"{split}.csv").write_text(f"Path,Edema\nCheXpert-v1.0/{path},1.0\n")
    target = tmp_path / "prepared"
    argv = ["chexpert", f"--source={root}", f"--target={target}", "--size=0"]
    assert prepare.main(argv) == 0
    image = (root / "train/patient00001/study1/view1_frontal.jpg").read_bytes()
    mine = draw(tmp_path / "mine", [("x.jpg", "patient00001", "test", image)])
    code, report, _ = run(target, f"chexpert={mine}")
    row = shared(report, "prepared:train", "mine:test")
    assert (row["patients"], row["identical"]) == (1, [1, 1])
    assert report["findings"] == 1
    assert report["sets"][0]["splits"]["train"]["studies"] == 1
    # Two different sets of one name are told apart.
    _, report, _ = run(target, target)
    assert [s["name"] for s in report["sets"]] == ["prepared(1)", "prepared(2)"]
    assert shared(report, "prepared(1):train", "prepared(2):train")["studies"] == 1


def test_symiles_val_retrieval_repeats_val_and_that_is_no_finding(tmp_path, run):
    test_prepare.draw_symile(tmp_path)
    target = tmp_path / "symile"
    argv = ["symile_mimic", f"--source={tmp_path}", f"--target={target}", "--size=24"]
    assert prepare.main(argv) == 0
    code, report, out = run(target, "--fail")
    assert code == 0 and report["findings"] == 0
    assert [row["patients"] for row in report["repeated"]] == [2]
    assert "note: symile:val and symile:val_retrieval share 2 patients" in out
    code, report, _ = run(target, target, "--fail")  # of another set it is one
    assert code == 1 and shared(report, "symile(1):val", "symile(2):val_retrieval")


def test_data_without_patients_are_unknown_and_unreadable_images_counted(tmp_path, run):
    one = draw(
        tmp_path / "one",
        [("a.png", "1", "train", film(1)), ("bad.png", "2", "train", b"no")],
    )
    two = tmp_path / "two"
    two.mkdir()
    (two / "a.png").write_bytes(images.encode_png(film(1)))
    code, report, out = run(one, two)
    assert report["sets"][0]["splits"]["train"]["unreadable"] == 1
    assert report["sets"][1]["splits"]["train"]["patients"] is None
    assert report["shared"][0]["patients"] is None and "unknown" in out


@pytest.mark.parametrize("argument", ["nowhere", "empty", "cut"])
def test_bad_input_is_one_line(tmp_path, run, argument):
    (tmp_path / "empty").mkdir()
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "pacx.json").write_text("{")
    code, _, err = run(tmp_path / argument)
    assert code == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and argument in err


def random_digests(n: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    digests = np.zeros(n, twins.DIGEST)
    digests["phash"] = rng.integers(0, 2**63, n, dtype=np.uint64)
    digests["thumb"] = 7
    digests["thumb"][:, ::2] = 9
    return digests


@pytest.mark.parametrize("distance", [0, 3, 4, 7])
def test_near_pairs_are_those_of_comparing_all_with_all(distance, monkeypatch):
    monkeypatch.setattr(twins, "_PAIRS_AT_ONCE", 100)
    n = 600
    rng = np.random.default_rng(distance)
    digests = random_digests(n)
    # Half are another one with 0 to 10 bits flipped, wherever they lie.
    for i in range(n // 2, n):
        bits = rng.choice(64, rng.integers(0, 11), replace=False).astype(np.uint64)
        mask = np.bitwise_or.reduce(np.uint64(1) << bits) if len(bits) else np.uint64(0)
        digests["phash"][i] = digests["phash"][rng.integers(0, n // 2)] ^ mask
    cells = rng.integers(0, 4, n)
    pairs = twins.near_pairs(digests, cells, distance)
    hashes = digests["phash"]
    close = np.bitwise_count(hashes[:, None] ^ hashes[None]) <= distance
    want = np.argwhere(close & (cells[:, None] < cells[None]))
    assert len(want) > 10
    np.testing.assert_array_equal(pairs, want)


def test_near_images_need_alike_thumbnails_and_flat_ones_have_none():
    digests = random_digests(2)
    digests["phash"] = 5
    assert len(twins.near_pairs(digests, np.array([0, 1]))) == 1
    digests["thumb"][1] = digests["thumb"][1][::-1]
    assert len(twins.near_pairs(digests, np.array([0, 1]))) == 0
    blank = np.full((50, 50), 9, np.uint8)
    digests = np.stack([twins.digest(blank), twins.digest(blank + 1)])
    assert len(twins.near_pairs(digests, np.array([0, 1]))) == 0


def test_no_images_have_no_pairs():
    empty = np.zeros(0, twins.DIGEST)
    assert twins.near_pairs(empty, np.zeros(0, np.int64)).shape == (0, 2)
    assert twins.identities(empty).shape == (0,)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real X-rays are not on this machine")
def test_no_two_patients_of_the_real_xrays_are_called_near(tmp_path):
    # data/README.md has the rate over all pairs; here of every third image.
    files = sorted(REAL.glob("*.jpg"))[::3]
    patient = [f.name.split("_")[1] for f in files]
    digests = np.stack([twins.digest(images.decode(f)) for f in files])
    pairs = twins.near_pairs(digests, np.arange(len(files)))
    assert not [(i, j) for i, j in pairs if patient[i] != patient[j]]
