"""data/prepare.py end to end, on tiny sets in the published layouts."""

import json
import pathlib
import re
import subprocess
import sys
import types

import numpy as np
import pytest

from data import prepare
from pacx_jax import modalities
from pacx_jax.errors import PacxError
from pacx_jax.input import images, pipeline, sources, transforms
from pacx_jax.input import prepared as manifests

ROOT = pathlib.Path(__file__).resolve().parents[2]


def open_prepared(path, split="train"):
    data = types.SimpleNamespace(source="prepared", path=str(path))
    return sources.open_source(data, split)


def film(seed: int, shape=(60, 50)) -> np.ndarray:
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (6, 5), dtype=np.uint8)
    return images.resize_to(small, *shape)


def draw_chexpert(root: pathlib.Path) -> pathlib.Path:
    root = root / "CheXpert-v1.0-small"
    header = "Path,Sex,Age,Frontal/Lateral,AP/PA,No Finding,Edema"
    rows = {"train": [], "valid": []}
    for i in range(8):
        split = "train" if i < 6 else "valid"
        for j, view in enumerate(("view1_frontal", "view2_lateral")):
            path = f"{split}/patient{i:05d}/study1/{view}.jpg"
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_bytes(images.encode_jpeg(film(2 * i + j)))
            label = ["1.0", "0.0", "-1.0", ""][i % 4]
            rows[split].append(f"{root.name}/{path},Male,50,Frontal,AP,,{label}")
    for split, lines in rows.items():
        (root / f"{split}.csv").write_text("\n".join([header, *lines]) + "\n")
    return root


def draw_symile(root: pathlib.Path) -> dict:
    """Writes the layout of Symile-MIMIC; returns the grey images by split and row."""
    rng = np.random.default_rng(0)
    films = {}
    for s, n in (("train", 4), ("val", 2), ("val_retrieval", 4), ("test", 4)):
        folder = root / "data_npy" / s
        folder.mkdir(parents=True)
        films[s] = rng.integers(0, 255, (n, 320, 320), dtype=np.uint8)
        rgb = np.repeat(films[s][:, None] / np.float32(255), 3, 1)
        mean, std = np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225])
        normal = (rgb - mean[:, None, None]) / std[:, None, None]
        wave = np.cumsum(rng.normal(size=(n, 1, 5000, 12)), 2)
        wave /= np.abs(wave).max(axis=(1, 2, 3), keepdims=True)
        patients = np.arange(n) + {"train": 0, "test": 200}.get(s, 100)
        arrays = {
            "cxr": normal.astype(np.float32),
            "ecg": wave.astype(np.float32),
            "labs_percentiles": rng.random((n, 50)).astype(np.float32),
            "labs_missingness": (rng.random((n, 50)) < 0.6).astype(np.int64),
            "hadm_id": patients * 10,
        }
        for name, array in arrays.items():
            np.save(folder / f"{name}_{s}.npy", array)
        rows = [f"{p},{p * 10},1.0,,-1.0" for p in patients]
        header = "subject_id,hadm_id,Atelectasis,Cardiomegaly,Edema"
        if s in ("val_retrieval", "test"):
            header += ",label_hadm_id,label"
            rows = [f"{r},{i},{int(i < 2)}" for i, r in enumerate(rows)]
        (root / f"{s}.csv").write_text("\n".join([header, *rows]) + "\n")
    return films


def draw_ecgs(root: pathlib.Path) -> np.ndarray:
    rng = np.random.default_rng(0)
    ecg = np.cumsum(rng.integers(-9, 10, (6, 5000, 12)), 1).astype(np.int16)
    np.save(root / "ecg.npy", ecg)
    rows = [f"{i},p{i // 2},{i % 2},{'train' if i < 4 else 'val'}" for i in range(6)]
    (root / "labels.csv").write_text("\n".join(["record,patient_id,af,split", *rows]))
    return ecg


def test_chexpert_keeps_labels_patients_and_the_official_split(tmp_path, run):
    root, target = draw_chexpert(tmp_path), tmp_path / "out"
    code, summary, _ = run(
        "chexpert", f"--source={root}", f"--target={target}", "--size=32"
    )
    assert code == 0 and summary["counts"] == {"train": 12, "val": 4}
    assert summary["positives"]["train"] == {"No Finding": 0, "Edema": 4}
    train = open_prepared(target)
    assert train.label_names == ("No Finding", "Edema")
    assert train[0]["patient_id"] == "patient00000"
    assert train[0]["path"] == "train/patient00000/study1/view1_frontal.jpg"
    np.testing.assert_array_equal(
        [train[2 * i]["labels"][1] for i in range(4)], [1, 0, -1, np.nan]
    )
    assert images.decode(train[0]["image"]).shape == (38, 32)
    assert len(open_prepared(target, "val")) == 4


def test_symile_keeps_images_ecgs_and_labs_of_the_queries(tmp_path, run):
    films, target = draw_symile(tmp_path), tmp_path / "out"
    code, summary, _ = run(
        "symile_mimic", f"--source={tmp_path}", f"--target={target}", "--size=0"
    )
    assert code == 0
    assert summary["counts"] == {"train": 4, "val": 2, "val_retrieval": 2, "test": 2}
    for split in films:
        source = open_prepared(target, split)
        arrays = {
            name: np.load(tmp_path / "data_npy" / split / f"{name}_{split}.npy")
            for name in ("ecg", "labs_percentiles", "labs_missingness")
        }
        for i in range(len(source)):
            example = source[i]
            np.testing.assert_array_equal(
                images.decode(example["image"]), films[split][i]
            )
            np.testing.assert_allclose(example["ecg"], arrays["ecg"][i, 0], atol=1.6e-5)
            np.testing.assert_array_equal(
                example["labs"], arrays["labs_percentiles"][i]
            )
            np.testing.assert_array_equal(
                example["labs_mask"], arrays["labs_missingness"][i]
            )
            assert example["lead_order"] == "mimic"
            assert int(example["hadm_id"]) == 10 * int(example["patient_id"])
    np.testing.assert_array_equal(source[0]["labels"], [1, np.nan, -1])
    distill = transforms.make(
        "distill",
        types.SimpleNamespace(image_size=16),
        train=True,
        readers=[modalities.Reader(m, modalities.get(m), {}) for m in ("ecg", "labs")],
    )
    batch = next(
        pipeline.train_batches(
            open_prepared(target), distill, global_batch_size=3, seed=0
        )
    )
    assert batch["image"].shape == (3, 16, 16, 3)
    assert batch["ecg"].shape == (3, 5000, 12) and np.isfinite(batch["ecg"]).all()


def test_ecg_arrays_come_back_in_millivolts_exactly(tmp_path, run):
    ecg, target = draw_ecgs(tmp_path), tmp_path / "out"
    code, summary, _ = run("ecg_array", f"--source={tmp_path}", f"--target={target}")
    assert code == 0 and summary["counts"] == {"train": 4, "val": 2}
    source = open_prepared(target, "val")
    np.testing.assert_array_equal(
        source[1]["ecg"], ecg[5].astype(np.float32) * np.float32(1e-3)
    )
    assert source.label_names == ("af",) and source[1]["labels"].tolist() == [1]


def draw_folder(root: pathlib.Path, n=12) -> pathlib.Path:
    root = root / "films"
    root.mkdir()
    for i in range(n):
        (root / f"{i:02d}.png").write_bytes(images.encode_png(film(i)))
    rows = [f"{i:02d}.png,p{i // 2},{i % 2}" for i in range(n)]
    (root / "labels.csv").write_text("\n".join(["path,patient_id,y", *rows]))
    return root


def test_a_prepared_folder_has_the_examples_of_the_raw_one(tmp_path, run):
    root, target = draw_folder(tmp_path), tmp_path / "out"
    assert run("folder", f"--source={root}", f"--target={target}", "--size=0")[0] == 0
    for split in ("train", "val"):
        data = types.SimpleNamespace(source="folder", path=str(root))
        raw, prepared = sources.open_source(data, split), open_prepared(target, split)
        assert len(raw) == len(prepared) and raw.label_names == prepared.label_names
        for i in range(len(raw)):
            one, two = raw[i], prepared[i]
            assert one.keys() == two.keys()
            assert all(one[k] == two[k] for k in ("image", "path", "patient_id"))
            np.testing.assert_array_equal(one["labels"], two["labels"])


def test_a_finished_target_is_left_alone_and_an_interrupted_one_made_anew(
    tmp_path, run
):
    root, target = draw_folder(tmp_path), tmp_path / "out"
    argv = ("folder", f"--source={root}", f"--target={target}", "--size=20")
    leftover = tmp_path / ".out.partial" / "folder"
    leftover.mkdir(parents=True)
    (leftover / "half").write_text("x")
    _, first, _ = run(*argv)
    before = {p.name: p.stat().st_mtime_ns for p in target.iterdir()}
    code, second, _ = run(*argv)
    assert first.pop("made")["examples"] == 12
    assert code == 0 and second == first | {"status": "unchanged"}
    assert before == {p.name: p.stat().st_mtime_ns for p in target.iterdir()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["films", "out"]
    code, _, err = run(*argv[:3], "--size=24")
    assert code == 2 and "other settings (size)" in err
    (root / "00.png").write_bytes(images.encode_png(film(99)))
    code, _, err = run(*argv)
    assert code == 2 and "had other contents" in err


def test_the_fingerprint_follows_the_contents_not_the_place(tmp_path, run):
    root = draw_folder(tmp_path)
    prints = []
    for i in range(3):
        if i == 2:
            (root / "00.png").write_bytes(images.encode_png(film(99)))
        target = tmp_path / f"out{i}"
        run("folder", f"--source={root}", f"--target={target}", "--size=20")
        prints.append(open_prepared(target).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_unreadable_images_are_counted_listed_and_left_out(tmp_path, run):
    root, target = draw_folder(tmp_path), tmp_path / "out"
    data = (root / "03.png").read_bytes()
    (root / "03.png").write_bytes(data[: len(data) // 2])
    code, summary, _ = run("folder", f"--source={root}", f"--target={target}")
    assert code == 0
    assert sum(summary["unreadable"].values()) == 1
    assert sum(summary["counts"].values()) == 11
    (line,) = (target / "quarantine.jsonl").read_text().splitlines()
    assert json.loads(line)["name"].endswith("03.png")
    assert not list(tmp_path.glob("*.quarantine.jsonl"))


def test_too_many_unreadable_images_stop_it_and_are_listed_beside(tmp_path, run):
    root, target = draw_folder(tmp_path), tmp_path / "out"
    for name in ("01.png", "03.png"):
        (root / name).write_bytes(b"not an image")
    argv = ("folder", f"--source={root}", f"--target={target}", "--split_column=-")
    argv += ("--val_fraction=0",)
    code, _, err = run(*argv)
    (error,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert code == 2 and "Traceback" not in err
    assert "2 unreadable samples of 12 in the train split" in error
    assert "--max_bad_share=0.01" in error
    assert "the first: " in error and "01.png" in error
    listed = tmp_path / "out.quarantine.jsonl"
    assert str(listed) in error
    rows = [json.loads(line) for line in listed.read_text().splitlines()]
    assert [pathlib.Path(r["name"]).name for r in rows] == ["01.png", "03.png"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["films", listed.name]
    # A share that allows them prepares the rest, and the old list goes.
    code, summary, _ = run(*argv, "--max_bad_share=0.2")
    assert code == 0 and summary["unreadable"] == {"train": 2}
    assert (target / "quarantine.jsonl").read_text().count("\n") == 2
    assert not listed.exists()


def test_full_disk_is_one_line_and_leaves_nothing_half_made(tmp_path, run, monkeypatch):
    def write(*_):  # ArrayRecord raises a RuntimeError with the system's words in it
        raise RuntimeError("write() failed: No space left on device; at byte 307200")

    monkeypatch.setattr(prepare.records.RecordBuilder, "serialize", write)
    root, target = draw_folder(tmp_path), tmp_path / "out"
    code, _, err = run("folder", f"--source={root}", f"--target={target}")
    (error,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert code == 2 and error.startswith(f"error: {target}: no space left")
    assert "Traceback" not in err
    assert [p.name for p in tmp_path.iterdir()] == ["films"]


@pytest.mark.parametrize("share", ["0.01", "1"])
def test_a_folder_of_unreadable_images_names_the_first(tmp_path, run, share):
    root = draw_folder(tmp_path)
    for file in root.glob("*.png"):
        file.write_bytes(b"not an image")
    code, _, err = run(
        "folder",
        f"--source={root}",
        f"--target={tmp_path / 'out'}",
        f"--max_bad_share={share}",
    )
    (error,) = (line for line in err.splitlines() if line.startswith("error: "))
    assert code == 2 and re.search(r"the first: .*\.png: ", error)
    assert len((tmp_path / "out.quarantine.jsonl").read_text().splitlines()) >= 2


@pytest.mark.parametrize(
    "flag", ["--workers=-1", "--max_bad_share=-0.1", "--max_bad_share=1.5"]
)
def test_a_number_outside_its_range_is_one_line(tmp_path, run, flag):
    root = draw_folder(tmp_path)
    code, _, err = run(
        "folder", f"--source={root}", f"--target={tmp_path / 'out'}", flag
    )
    assert code == 2 and err.startswith("error: " + flag.replace("=", " "))
    assert err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_the_script_runs_from_anywhere_and_threads_change_nothing(tmp_path, run):
    root = draw_folder(tmp_path, n=100)
    argv = ["folder", f"--source={root}", "--size=16"]
    _, one, _ = run(*argv, f"--target={tmp_path / 'one'}", "--workers=1")
    script = [sys.executable, ROOT / "data/prepare.py", *argv, "--workers=3"]
    done = subprocess.run(
        [*script, f"--target={tmp_path / 'two'}"],
        capture_output=True,
        text=True,
        cwd="/",
    )
    assert done.returncode == 0, done.stderr
    two = json.loads(done.stdout.splitlines()[-1])
    assert one["fingerprint"] == two["fingerprint"]
    assert one["counts"] == two["counts"]


def _spoil_hadm(root):
    draw_symile(root)
    path = root / "data_npy/val/hadm_id_val.npy"
    np.save(path, np.load(path)[::-1])


def _spoil_array(root):
    draw_symile(root)
    (root / "data_npy/train/cxr_train.npy").write_bytes(b"no array")


def _spoil_rows(root):
    draw_ecgs(root)
    (root / "labels.csv").write_text("patient_id,af\np1,1\n")


def _spoil_dtype(root):
    np.save(root / "ecg.npy", np.zeros((2, 5000, 12), np.float32))


def _spoil_records(root):
    ecg = draw_ecgs(root)
    ecg[:, :, 3] = 0
    np.save(root / "ecg.npy", ecg)


BAD = {
    "unknown name": ("nih", lambda r: None, "invalid choice: 'nih'"),
    "no source": ("chexpert", lambda r: r.rmdir(), "no such folder"),
    "no train.csv": ("chexpert", lambda r: None, "no train.csv here"),
    "no valid.csv": (
        "chexpert",
        lambda r: (draw_chexpert(r) / "valid.csv").unlink(),
        "valid.csv: no such CSV",
    ),
    "missing image": (
        "chexpert",
        lambda r: (
            draw_chexpert(r) / "train/patient00003/study1/view1_frontal.jpg"
        ).unlink(),
        "1 rows name files that are not under",
    ),
    "no symile": ("symile_mimic", lambda r: None, "no train.csv"),
    "other order": ("symile_mimic", _spoil_hadm, "row 0 is admission 1010, but 1000"),
    "no array": ("symile_mimic", _spoil_array, "cxr_train.npy: not a readable .npy"),
    "empty folder": ("folder", lambda r: None, "no JPEG, PNG or DICOM files"),
    "rows": ("ecg_array", _spoil_rows, "1 rows for 6 records"),
    "dtype": ("ecg_array", _spoil_dtype, "float32 array of shape .* must be int16"),
    "no ecg": ("ecg_array", lambda r: None, "ecg.npy: no such file"),
    "all bad": (
        "ecg_array",
        _spoil_records,
        "2 unreadable samples of 4 in the train split.*the first: ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, run, case):
    name, spoil, message = BAD[case]
    root = tmp_path / "in"
    root.mkdir()
    spoil(root)
    code, _, err = run(name, f"--source={root}", f"--target={tmp_path / 'out'}")
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(errors) == 1 and "Traceback" not in err
    assert re.search(message, errors[0])
    assert not (tmp_path / "out").exists()


def test_a_target_that_is_something_else_is_not_touched(tmp_path, run):
    root = draw_folder(tmp_path)
    code, _, err = run("folder", f"--source={root}", f"--target={root}")
    assert code == 2 and "exists and is not a prepared data set" in err
    assert len(list(root.iterdir())) == 13


def test_a_damaged_prepared_set_is_one_line(tmp_path, run):
    root, target = draw_folder(tmp_path), tmp_path / "out"
    run("folder", f"--source={root}", f"--target={target}")
    with pytest.raises(PacxError, match="no split 'dev'; it has train, val"):
        open_prepared(target, "dev")
    (record,) = target.glob("*-train.array_record*")
    record.write_bytes(record.read_bytes()[:1000])
    with pytest.raises(PacxError, match="array_record.*: missing or cut off") as error:
        open_prepared(target)
    assert "\n" not in str(error.value)


def test_a_set_of_another_version_is_one_line(tmp_path, run):
    root, target = draw_folder(tmp_path), tmp_path / "out"
    run("folder", f"--source={root}", f"--target={target}")
    (target / manifests.FILE).write_text('{"splits": {"train": 3}}')
    with pytest.raises(PacxError, match="prepared by another version"):
        open_prepared(target)


def test_a_flipped_byte_makes_a_sample_unreadable_never_wrong(tmp_path, run):
    root, target = draw_folder(tmp_path), tmp_path / "out"
    run("folder", f"--source={root}", f"--target={target}")
    good = [dict(open_prepared(target)[i]) for i in range(9)]
    (record,) = target.glob("*-train.array_record*")
    data = bytearray(record.read_bytes())
    position = bytes(data).index(good[4]["image"][:64])
    data[position + 30] ^= 1
    record.write_bytes(data)
    source, bad = open_prepared(target), 0
    for i in range(9):
        try:
            assert source[i]["image"] == good[i]["image"]
        except PacxError as error:
            bad += 1
            assert "cannot be read" in str(error) and "\n" not in str(error)
    assert bad >= 1


def test_a_folder_with_masks_needs_one_for_each_image(tmp_path, run):
    root = tmp_path / "in"
    for i in range(20):
        (root / f"{i % 2}").mkdir(parents=True, exist_ok=True)
        (root / f"masks/{i % 2}").mkdir(parents=True, exist_ok=True)
        inside = np.uint8(film(i) > 128)
        (root / f"{i % 2}/{i // 2}.jpg").write_bytes(images.encode_jpeg(film(i)))
        path = root / f"masks/{i % 2}/{i // 2}.png"  # names repeat, paths do not
        path.write_bytes(images.encode_png(inside))
    argv = ["folder", f"--source={root}", f"--target={tmp_path / 'out'}", "--size=0"]
    argv += ["--val_fraction=0", "--masks=masks"]
    (root / "masks/1/3.png").unlink()
    code, _, error = run(*argv)
    assert code == 2 and "1 images have no mask in masks, the first is 1/3.jpg" in error
    code, summary, _ = run(*argv, "--allow_missing")
    assert code == 0 and summary["counts"] == {"train": 19}
    source = open_prepared(tmp_path / "out")
    masks = {
        e["path"]: images.decode(e["mask"]) for e in map(source.__getitem__, range(19))
    }
    np.testing.assert_array_equal(masks["1/2.jpg"] > 0, film(5) > 128)
